"""What tells one content, one set of settings and one path from another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from stat import S_ISDIR
from typing import Any, NamedTuple

from vsim_fast.inputs import folder_key, folder_stamp, path_id

WINDOW, WINDOWS = 1 << 20, 17
"""A file is known by its size and this many MiB of it, evenly spaced from the first to the last."""


class Stamp(NamedTuple):
    """A file that still has its stamp is taken for unchanged, and not read to find its key."""

    size: int
    mtime_ns: int
    inode: int


def stamp(path: str | os.PathLike) -> Stamp:
    """Of a file, or of a folder of images.  Raises: OSError."""
    status = os.stat(path)
    if S_ISDIR(status.st_mode):
        return Stamp(*folder_stamp(path))
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino)


def content_key(path: str | os.PathLike) -> str:
    """What tells one file's content from another's: BLAKE2b of WINDOWS windows (of all of it, if smaller) and the size.

    An edit that keeps the size and touches no window goes unseen; re-encoding, cutting and tagging change the size or
    an end of the file. Of a folder of images: `folder_key`.  Raises: OSError.
    """
    if os.path.isdir(path):
        return folder_key(path)
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WINDOW * WINDOWS:
            while chunk := file.read(WINDOW):
                digest.update(chunk)
        else:
            for n in range(WINDOWS):
                file.seek(n * (size - WINDOW) // (WINDOWS - 1))
                digest.update(file.read(WINDOW))
    return f"{digest.hexdigest()}-{size}"


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Twelve characters that stand for `settings` (JSON values)."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def path_text(path: str | os.PathLike) -> str:
    """The text a file is known by in a store: its absolute path, wherever a command ran; a URL is as given."""
    name = os.fspath(path)
    return path_id(name if "://" in name else os.path.abspath(name))
