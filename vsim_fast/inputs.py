"""Which videos a command is to read: folders, patterns, list files and files to one ordered list, each file once."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from vsim_fast.errors import UsageError

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".qt", ".avi", ".divx", ".mkv", ".webm", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".m2v",
    ".vob", ".flv", ".f4v", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".mxf",
)  # fmt: skip
"""What counts as a video of a folder, in upper or lower case."""
LIST_SUFFIXES = (".txt", ".csv", ".json")
LIST_COLUMNS = ("path", "file", "video")


class Alias(NamedTuple):
    """One more name of a file that is read already: a hard link or a symbolic link."""

    path: str
    same_as: str


class Missing(NamedTuple):
    """Something that was named and is not there."""

    path: str
    reason: str


@dataclass(frozen=True)
class Inputs:
    """What `find_videos` found. Names are as given: a relative name stays relative."""

    files: list[str]
    """Each file once, by its first name that is no link."""
    sets: list[list[int]]
    """Of each set of paths asked for, its files as indices into `files`, in order; sets may share files."""
    aliases: list[Alias] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


class _Found(NamedTuple):
    path: str
    linked: bool
    """A symbolic link, or below one that the walk followed."""
    identity: tuple[int, int]
    """Device and inode: the same for all names of a file."""


def find_videos(*sets: Sequence[str | Path], exclude: Iterable[str | Path] = ()) -> Inputs:
    """The videos that each of `sets` names.

    Args:
        sets: of each set its paths. A folder stands for every file below it with one of VIDEO_SUFFIXES; links to
            folders are followed, but no folder is entered twice, and names that start with a dot are passed over. A
            pattern (`clips/**/*.mp4`) is expanded; unless it ends in a suffix of its own, only videos count. A .txt
            (a path per line, # starts a comment), .csv (column path, file or video, else the first) or .json (a list,
            or {"videos": [...]}) is a list of such paths, relative to the list. Any other file is taken for a video.
        exclude: folders that are not entered.
    Returns:
        The files in order: sets and paths as given, the contents of a folder by name.
    Raises:
        UsageError: a set names no video at all, or a list file cannot be read as one.
    """
    searched = [_Search(exclude) for _ in sets]
    for search, paths in zip(searched, sets, strict=True):
        for path in paths:
            search.add(os.fspath(path))
        if not search.found:
            _raise_none(paths, search.missing)
    found = [entry for search in searched for entry in search.found]
    place = {identity: n for n, identity in enumerate(dict.fromkeys(entry.identity for entry in found))}
    names: dict[int, str] = {}
    for entry in sorted(found, key=lambda entry: entry.linked):  # stable: the first name that is no link
        names.setdefault(place[entry.identity], entry.path)
    aliases = [Alias(entry.path, names[place[entry.identity]]) for entry in found]
    return Inputs(
        files=[names[n] for n in range(len(names))],
        sets=[list(dict.fromkeys(place[entry.identity] for entry in search.found)) for search in searched],
        aliases=[a for a in dict.fromkeys(aliases) if os.path.abspath(a.path) != os.path.abspath(a.same_as)],
        missing=list(dict.fromkeys(entry for search in searched for entry in search.missing)),
    )


def path_id(path: str | Path) -> str:
    """A file name as text that tells it from every other: bytes that are no UTF-8 become \\xNN."""
    return os.fsencode(path).decode(errors="backslashreplace")


class _Search:
    """The files of one set, in order."""

    def __init__(self, exclude: Iterable[str | Path]):
        self.found: list[_Found] = []
        self.missing: list[Missing] = []
        self._excluded = {os.path.realpath(path) for path in exclude}

    def add(self, path: str, listed_in: str | None = None) -> None:
        if os.path.isdir(path):
            self._take(entry for entry in self._walk(path) if _is_video(entry[0]))
        elif os.path.exists(path):
            if os.path.splitext(path)[1].lower() not in LIST_SUFFIXES:
                self._take([(path, os.path.islink(path))])
            elif listed_in is not None:
                raise UsageError(f"{path_id(listed_in)}: a list must name videos, got the list {path_id(path)!r}")
            else:
                folder = os.path.dirname(path)
                for entry in _listed(path):
                    self.add(os.path.join(folder, entry), listed_in=path)
        elif glob.has_magic(path):
            self._add_pattern(path)
        else:
            reason = "a link to nothing" if os.path.islink(path) else "no such file or folder"
            self.missing.append(Missing(path, reason))

    def _take(self, entries: Iterable[tuple[str, bool]]) -> None:
        for path, linked in entries:
            try:
                status = os.stat(path)
            except OSError as error:
                self.missing.append(Missing(path, error.strerror or str(error)))
            else:
                self.found.append(_Found(path, linked, (status.st_dev, status.st_ino)))

    def _add_pattern(self, pattern: str) -> None:
        named = os.path.splitext(pattern)[1]
        takes = _is_video if not named or glob.has_magic(named) else os.path.isfile
        matches: list[tuple[str, bool]] = []
        for path, linked in self._matching(pattern):
            if os.path.isdir(path):
                matches += [entry for entry in self._walk(path) if _is_video(entry[0])]
            elif takes(path):
                matches.append((path, linked))
        if not matches:
            self.missing.append(Missing(pattern, "no video matches this pattern"))
        self._take(dict.fromkeys(matches))

    def _matching(self, pattern: str) -> Iterator[tuple[str, bool]]:
        parts = pattern.split(os.sep)
        if "**" not in parts:
            names = sorted(glob.iglob(pattern), key=os.fsencode)
            yield from ((path, os.path.islink(path)) for path in names)
            return
        stem = next(n for n, part in enumerate(parts) if glob.has_magic(part))  # folders that are named outright
        root = os.sep.join(parts[:stem]) or (os.sep if pattern.startswith(os.sep) else "")
        for path, linked in self._walk(root or os.curdir):
            if not root:
                path = os.path.relpath(path, os.curdir)
            if _matches(path.split(os.sep)[stem:], parts[stem:]):
                yield path, linked

    def _walk(self, top: str) -> Iterator[tuple[str, bool]]:
        """Files below a folder with whether a link led there, by name; linked folders come after all others."""
        entered: set[tuple[int, int]] = set()
        pending = [(top, False)]
        while pending:
            start, linked = pending.pop(0)
            for folder, folders, files in os.walk(start, onerror=self._not_entered):
                status = os.stat(folder)
                identity = (status.st_dev, status.st_ino)
                if identity in entered or os.path.realpath(folder) in self._excluded:
                    folders.clear()
                    continue
                entered.add(identity)
                folders[:] = sorted((name for name in folders if not name.startswith(".")), key=os.fsencode)
                links = [os.path.join(folder, name) for name in folders]
                pending += [(path, True) for path in links if os.path.islink(path)]
                for name in sorted(files, key=os.fsencode):
                    path = os.path.join(folder, name)
                    if not name.startswith(".") and os.path.exists(path):
                        yield path, linked or os.path.islink(path)

    def _not_entered(self, error: OSError) -> None:
        self.missing.append(Missing(error.filename, error.strerror or str(error)))


def _is_video(path: str) -> bool:
    suffix = os.path.splitext(path)[1].lower()
    return suffix in VIDEO_SUFFIXES and os.path.isfile(path) and not (suffix in (".ts", ".mts") and _is_text(path))


def _is_text(path: str) -> bool:
    """A .ts file may be a program in TypeScript."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError:
        return False  # reading it will say why
    return bool(head) and min(head) >= 9


def _matches(names: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path fit those of a pattern; `**` stands for any number of folders."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_matches(names[n:], pattern[1:] or ["*"]) for n in range(len(names)))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _listed(path: str) -> list[str]:
    """The entries of a list file."""
    try:
        text = os.fsdecode(Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise UsageError(f"{path_id(path)}: this list cannot be read: {error.strerror or error}") from None
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".txt":
        lines = (line.strip() for line in text.splitlines())
        return [line for line in lines if line and not line.startswith("#")]
    if suffix == ".csv":
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(row)]
        header = [cell.strip().lower() for cell in rows[0]] if rows else []
        column = next((header.index(name) for name in LIST_COLUMNS if name in header), None)
        rows = rows if column is None else rows[1:]
        return [row[column or 0].strip() for row in rows if len(row) > (column or 0) and row[column or 0].strip()]
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path_id(path)}: a list of videos must be JSON: {error}") from None
    videos = content.get("videos") if isinstance(content, dict) else content
    if not isinstance(videos, list) or not all(isinstance(entry, str) for entry in videos):
        raise UsageError(f'{path_id(path)}: a list of videos must be ["path", ...] or {{"videos": ["path", ...]}}')
    return videos


def _raise_none(paths: Sequence[str | Path], missing: list[Missing]) -> None:
    searched = ", ".join(path_id(path) for path in paths) or "nothing"
    reasons = "".join(f"; {path_id(path)}: {reason}" for path, reason in missing[:3])
    raise UsageError(f"no videos in {searched} (of a folder: *{', *'.join(VIDEO_SUFFIXES)}){reasons}")
