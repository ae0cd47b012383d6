"""Remote files by URL: what lies below one, and a bounded folder of local copies. FFmpeg is only given the copies."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from vsim_fast.errors import OpenError, UsageError, VsimError
from vsim_fast.remote import _http
from vsim_fast.store import output_errors

HTTP = ("http", "https")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "memory": None, "file": None}
"""Schemes read through fsspec, and the package that serves each. Others reach hosts that nobody checks."""
SCHEMES = (*PACKAGES, *HTTP)
IDENTITY = ("ETag", "etag", "generation", "md5Hash", "LastModified", "updated", "mtime", "created")
"""What the file systems call the fields that change with the content."""
CHUNK = 8 << 20
ATTEMPTS = 5
_URL = re.compile(r"[a-z][a-z0-9+.-]+://")
_CACHED = re.compile(r"[0-9a-f]{32}-[0-9a-f]{16}(\.\w{1,8})?(\.partial)?")


def is_url(path: str | os.PathLike) -> bool:
    """Whether `path` starts with a scheme in lower case, known or not."""
    return _URL.match(os.fspath(path)) is not None


def scheme(url: str) -> str:
    """What a URL starts with."""
    return url.partition("://")[0]


def file_name(url: str) -> str:
    """Last part of a URL's path, as a file is called: of http(s) without the query, and decoded."""
    if scheme(url) in HTTP:
        url = unquote(urlsplit(url).path, errors="surrogateescape")
    return url.rstrip("/").rpartition("/")[2]


def expand(url: str) -> list[tuple[str, str | None]]:
    """What a URL of an object store stands for, by name: the file itself, what a pattern matches, else all below it.

    Returns:
        Of each file its URL and its path relative to `url` (to the folder before the first `*`, `?` or `[`), None for
        the file itself. Names that start with a dot are passed over. Empty when nothing is there.
    Raises:
        OpenError: the scheme is not read here, or the file system reports an error.  VsimError: its package is missing.
    """
    system = _file_system(url)
    parts = url.partition("://")[2].strip("/").split("/")
    stem = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    with _reported(url):
        if stem == len(parts):
            names = set(system.find(url))
        else:
            matches = system.glob(url, detail=True)
            folders = [name for name, facts in matches.items() if facts["type"] == "directory"]
            names = set(matches).difference(folders).union(*map(system.find, folders))
    top, found = "/".join(parts[:stem]), []
    for name in sorted(name.strip("/") for name in names):
        relative = name.removeprefix(top).strip("/")
        if not any(part.startswith(".") for part in relative.split("/")):
            found.append((f"{scheme(url)}://{name}", relative or None))
    return found


class Cache:
    """A folder with local copies of remote files, for any number of threads and processes at once.

    Together the copies take `max_bytes` at most, but for those in use: a copy that is used longest ago and by nobody
    goes first, one in use never. A copy of a file that has not changed since is not fetched again, in a later run
    neither. Only files the cache made are ever removed. Nothing is held in memory: it may be copied to other processes.

    Args:
        folder: made if missing.
        max_bytes: also the most that one file may have.
        allow_private: http(s) from addresses that are not public, such as this machine's own network.
        max_seconds: most that one file may take to arrive.
    """

    def __init__(self, folder: str | Path, max_bytes: int, *, allow_private: bool = False, max_seconds: float = 3600):
        for name, value in (("max_bytes", max_bytes), ("max_seconds", max_seconds)):
            if not value > 0:
                raise UsageError(f"{name} must be above 0, got {value}")
        self.folder, self.max_bytes = Path(folder), max_bytes
        self.allow_private, self.max_seconds = allow_private, max_seconds
        with output_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def stamp(self, url: str) -> str | None:
        """What identifies the content of a remote file now, without fetching it (entity tag, times, size); None when
        the server tells nothing that would change with it.

        Raises: OpenError: it is not there, not allowed, or larger than `max_bytes`.  VsimError: a package is missing.
        """
        with self._opened(url, head=True) as remote:
            return remote.stamp

    @contextmanager
    def local(self, url: str) -> Iterator[Path]:
        """A local copy that stays while the block runs; it must not be written to.

        Raises: as `stamp`; OpenError: it breaks off, takes longer than `max_seconds` or keeps changing.
            OutputError: the copy cannot be written.
        """
        path, held = self._taken(url)
        try:
            yield path
        finally:
            _release(held)

    def _taken(self, url: str) -> tuple[Path, int]:
        """A copy and the lock that keeps it."""
        for _ in range(ATTEMPTS):
            stamp = self.stamp(url)
            path = self._path(url, stamp)
            with suppress(_Changed), output_errors(path):
                while (held := self._held(path)) is None and (held := self._fetched(url, stamp, path)) is None:
                    pass  # another has just fetched it
                return path, held
        raise OpenError(url, f"it changed while it was fetched, {ATTEMPTS} times")

    def _path(self, url: str, stamp: str | None) -> Path:
        stamp = secrets.token_hex() if stamp is None else stamp  # never found again
        name = hashlib.blake2b(url.encode(errors="surrogateescape"), digest_size=16).hexdigest()
        suffix = re.search(r"\.\w{1,8}$", file_name(url), re.ASCII)
        version = hashlib.blake2b(stamp.encode(), digest_size=8).hexdigest()
        return self.folder / f"{name}-{version}{suffix[0].lower() if suffix else ''}"

    def _held(self, path: Path) -> int | None:
        """A shared lock on a copy, which keeps it from being removed; None when there is no copy."""
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        fcntl.flock(handle, fcntl.LOCK_SH)
        return _used(path, handle)

    def _fetched(self, url: str, stamp: str | None, path: Path) -> int | None:
        """The same on a new copy; None when another has fetched it since it was looked for, or gave up.

        Raises: _Changed."""
        partial = path.with_name(f"{path.name}.partial")
        handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_name_of(partial, handle) or path.exists():
                raise _Late
            with self._opened(url) as remote:
                if remote.stamp != stamp:
                    raise _Changed
                self._make_room(handle, remote.size or 0)
                size = 0
                for chunk in remote.chunks:
                    size += len(chunk)
                    self._require_small(url, size)
                    _write(handle, chunk)
            if remote.size is None:
                self._make_room(handle, size)
            if remote.size not in (None, size):
                raise OpenError(url, f"it ended early: {size} of {remote.size} bytes")
            os.replace(partial, path)
        except BaseException as error:
            if _is_name_of(partial, handle):
                partial.unlink()
            _release(handle)
            if isinstance(error, _Late):
                return None
            raise
        fcntl.flock(handle, fcntl.LOCK_SH)
        return _used(path, handle)

    def _make_room(self, handle: int, size: int) -> None:
        """Gives a new copy its size, which others see, and removes what was used longest ago to make room for it."""
        with open(self.folder / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            copies, taken = [], size - os.fstat(handle).st_size
            for entry in os.scandir(self.folder):
                if _CACHED.fullmatch(entry.name):
                    try:
                        status = entry.stat()
                    except FileNotFoundError:
                        continue
                    is_partial = entry.name.endswith(".partial")
                    copies.append((not is_partial, status.st_mtime_ns, status.st_size, entry.path))
                    taken += status.st_size
            for is_whole, _, copy_size, path in sorted(copies):  # first those that a killed process left unfinished
                if (not is_whole or taken > self.max_bytes) and _removed(path):
                    taken -= copy_size
            os.ftruncate(handle, size)

    @contextmanager
    def _opened(self, url: str, *, head: bool = False) -> Iterator[_Remote]:
        if scheme(url) in HTTP:
            with _http.opened(url, allow_private=self.allow_private, max_seconds=self.max_seconds, head=head) as answer:
                self._require_small(url, answer.size)
                yield _Remote(answer.size, answer.stamp, answer.chunks)
            return
        system = _file_system(url)
        with _reported(url):
            facts = system.info(url)
        if facts.get("type") == "directory":
            raise OpenError(url, "a folder; only files are fetched")
        self._require_small(url, facts.get("size"))
        yield _Remote(facts.get("size"), _identity(facts), self._chunks(system, url, _identity(facts)))

    def _chunks(self, system: Any, url: str, stamp: str | None) -> Iterator[bytes]:
        ends = time.monotonic() + self.max_seconds
        with _reported(url), system.open(url, "rb", block_size=CHUNK, cache_type="none") as file:
            while chunk := file.read(CHUNK):
                if time.monotonic() > ends:
                    raise OpenError(url, f"it takes longer than {self.max_seconds:g} s")
                yield chunk
            if _identity(system.info(url)) != stamp:
                raise _Changed

    def _require_small(self, url: str, size: int | None) -> None:
        if size is not None and size > self.max_bytes:
            raise OpenError(url, f"{size} bytes are more than the {self.max_bytes} of the cache")


class _Remote(NamedTuple):
    size: int | None
    stamp: str | None
    chunks: Iterator[bytes]


class _Late(Exception):
    """Whoever had the lock before is done with this file."""


class _Changed(Exception):
    """The file is another than when it was looked at."""


def _identity(facts: dict[str, Any]) -> str | None:
    known = {name: str(facts[name]) for name in IDENTITY if facts.get(name) is not None}
    return json.dumps(known | {"size": facts.get("size")}, sort_keys=True) if known else None


def _file_system(url: str) -> Any:
    kind = scheme(url)
    if kind not in PACKAGES:
        raise OpenError(url, f"{kind}:// is not read here, but {', '.join(f'{name}://' for name in SCHEMES)}")
    import fsspec

    with _reported(url):
        try:  # by name: a URL may not choose options or further file systems, as fsspec's own chains do
            return fsspec.filesystem(kind, use_listings_cache=False)
        except ImportError:
            package = PACKAGES[kind]
            raise VsimError(f"{url}: {kind}:// needs the package {package}: pip install 'vsim_fast[remote]'") from None


@contextmanager
def _reported(url: str) -> Iterator[None]:
    """Whatever a file system raises, as OpenError; each has exceptions of its own."""
    try:
        yield
    except (VsimError, _Changed):
        raise
    except FileNotFoundError:
        raise OpenError(url, "no such file") from None
    except Exception as error:
        raise OpenError(url, f"{type(error).__name__}: {error}") from error


def _is_name_of(path: Path, handle: int) -> bool:
    """Whether an open file still has this name: others may have removed or renamed it before it was locked."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _used(path: Path, handle: int) -> int | None:
    if not _is_name_of(path, handle):
        _release(handle)
        return None
    os.utime(handle)
    return handle


def _release(handle: int) -> None:
    fcntl.flock(handle, fcntl.LOCK_UN)  # not by closing alone: a forked process may have the file open, too
    os.close(handle)


def _removed(path: str) -> bool:
    """Removes a file nobody has locked."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    finally:
        os.close(handle)
    return True


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
