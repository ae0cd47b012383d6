"""Which videos a command is to read: folders, patterns, list files, URLs and files to one ordered list, each once."""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import io
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vsim_fast import remote
from vsim_fast.errors import OpenError, UsageError, VsimError
from vsim_fast.records import IMAGE_SUFFIXES

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".qt", ".avi", ".divx", ".mkv", ".webm", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".m2v",
    ".vob", ".flv", ".f4v", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".mxf",
)  # fmt: skip
"""What counts as a video of a folder, in upper or lower case."""
LIST_SUFFIXES = (".txt", ".csv", ".json")
LIST_COLUMNS = ("path", "file", "video")
SHOWN = 80
"""Characters shown of a line that is no path."""


class Alias(NamedTuple):
    """One more name of a file that is read already: a hard link or a symbolic link."""

    path: str
    same_as: str


class Missing(NamedTuple):
    """Something that was named and is not there. What a list named carries the list and the line in its reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class Inputs:
    """What `find_videos` found. Names are as given: a relative name stays relative."""

    files: list[str]
    """Each file once, by its first name that is no link. Folders of images and URLs are among them."""
    sets: list[list[int]]
    """Of each set of paths asked for, its files as indices into `files`, in order; sets may share files."""
    aliases: list[Alias] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


class _Entry(NamedTuple):
    """A file, or a folder of images, that the search came by."""

    path: str
    linked: bool
    """A symbolic link, or below one that the walk followed."""
    relative: str | None
    """To what was searched, for the patterns; None: named outright."""
    is_folder: bool = False
    identity: tuple[int, int] | None = None
    """Device and inode where the folder's listing told them."""


class _Found(NamedTuple):
    path: str
    linked: bool
    identity: tuple[int | str, int | str]
    """Device and inode: the same for all names of a file. Of a URL the URL."""


class _Listed(NamedTuple):
    """One entry of a list file: a path, or the reason why it is none."""

    text: str
    place: str
    problem: str | None = None


def find_videos(
    *sets: Sequence[str | Path],
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    skip_folders: Iterable[str | Path] = (),
    images: bool = False,
) -> Inputs:
    """The videos that each of `sets` names.

    Args:
        sets: of each set its paths. A folder stands for every file below it with one of VIDEO_SUFFIXES; links to
            folders are followed, but no folder is entered twice, and names that start with a dot are passed over. A
            pattern (`clips/**/*.mp4`) is expanded; unless it ends in a suffix of its own, only videos count. A .txt
            (a path per line, # starts a comment), .csv (column path, file or video, else the first) or .json (a list,
            or {"videos": [...]}) is a list of such paths, relative to the list. A URL of `remote.SCHEMES` that ends in
            one of VIDEO_SUFFIXES, and any of http(s), is taken as it is and not looked at; another stands for what is
            below it or matches it; file:// is a local path. Any other file is taken for a video.
        include: patterns of which what is found must match one.  exclude: patterns of which neither it nor a folder on
            the way to it may match one. A pattern with a slash is held against the path relative to the searched
            folder (`**` stands for any number of folders), to the folders that a pattern in `sets` names outright, or
            as a list has it; one without, against the last name. Upper and lower case are the same in a suffix. Files
            and folders of images that are named outright are not held against any.
        skip_folders: folders that are not entered.
        images: a local folder that holds images, and no video at any depth, counts as one video, by the folder's name.
    Returns:
        The files in order: sets and paths as given, the contents of a folder by name.
    Raises:
        UsageError: a set names no video at all, a list file cannot be read as one, or a pattern is empty.
    What is not there, and each line of a list that is no path, is recorded in `missing` and stops nothing.
    """
    include, exclude = list(include), list(exclude)
    for name, patterns in (("include", include), ("exclude", exclude)):
        if not all(pattern.strip("/") for pattern in patterns):
            raise UsageError(f"{name} must hold patterns like '*.mp4' or 'raw/**', got an empty one")
    skipped = {identity for folder in skip_folders if (identity := _identity(os.fspath(folder))) is not None}
    searched = [_Search(include, exclude, skipped, images) for _ in sets]
    for search, paths in zip(searched, sets, strict=True):
        for path in paths:
            search.add(os.fspath(path))
        if not search.found:
            _raise_none(paths, search)
    found = [entry for search in searched for entry in search.found]
    place = {identity: n for n, identity in enumerate(dict.fromkeys(entry.identity for entry in found))}
    names: dict[int, str] = {}
    for entry in sorted(found, key=lambda entry: entry.linked):  # stable: the first name that is no link
        names.setdefault(place[entry.identity], entry.path)
    others = [entry for entry in found if entry.path != names[place[entry.identity]]]
    aliases = dict.fromkeys(Alias(entry.path, names[place[entry.identity]]) for entry in others)
    return Inputs(
        files=[names[n] for n in range(len(names))],
        sets=[list(dict.fromkeys(place[entry.identity] for entry in search.found)) for search in searched],
        aliases=[alias for alias in aliases if os.path.abspath(alias.path) != os.path.abspath(alias.same_as)],
        missing=list(dict.fromkeys(entry for search in searched for entry in search.missing)),
    )


def path_id(path: str | Path) -> str:
    """A file name as text that tells it from every other: bytes that are no UTF-8 become \\xNN."""
    return os.fsencode(path).decode(errors="backslashreplace")


def folder_key(path: str | os.PathLike) -> str:
    """What tells one folder of images from another: BLAKE2b of the names, sizes and bytes of its images, and how many.

    The folder's own name does not count, nor does any other file in it.  Raises: OSError.
    """
    digest, images = hashlib.blake2b(digest_size=16), _images(path)
    for entry in images:
        with open(entry.path, "rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
            digest.update(os.fsencode(entry.name) + b"\0" + file.tell().to_bytes(8, "little") + content)
    return f"{digest.hexdigest()}-{len(images)}"


def folder_stamp(path: str | os.PathLike) -> tuple[int, int, int]:
    """A folder of images at a glance: changes when an image is added, removed, renamed, or written.

    Returns:
        In the places of a file's stamp: bytes of all images, 63 bits of a hash of their names, sizes and times, inode.
    Raises: OSError.
    """
    digest, total = hashlib.blake2b(digest_size=8), 0
    for entry in _images(path):
        status = entry.stat()
        total += status.st_size
        digest.update(os.fsencode(entry.name) + b"\0%d %d\0" % (status.st_size, status.st_mtime_ns))
    return total, int.from_bytes(digest.digest(), "little") >> 1, os.stat(path).st_ino


def _images(folder: str | os.PathLike) -> list[os.DirEntry]:
    with os.scandir(os.fspath(folder)) as entries:
        images = [entry for entry in entries if _suffix(entry.name) in IMAGE_SUFFIXES and entry.is_file()]
    return sorted(images, key=lambda entry: os.fsencode(entry.name))


class _Search:
    """The files of one set, in order.

    Attributes:
        left_out: how many videos the patterns kept out.
    """

    def __init__(self, include: list[str], exclude: list[str], skipped: set[tuple[int, int]], images: bool):
        self.found: list[_Found] = []
        self.missing: list[Missing] = []
        self.left_out = 0
        self._include = [_Pattern(text) for text in include]
        self._exclude = [_Pattern(text) for text in exclude]
        self._skipped, self._with_images = skipped, images

    def add(self, path: str) -> None:
        if remote.is_url(path):
            self._add_url(path)
        elif os.path.isfile(path) and _suffix(path) in LIST_SUFFIXES:
            self._add_list(path)
        else:
            self._add_path(path)

    def _add_list(self, path: str) -> None:
        folder = os.path.dirname(path)
        for text, place, problem in _listed(path):
            where = f" ({path_id(path)}, {place})"
            if problem is not None:
                self.missing.append(Missing(text[:SHOWN], problem + where))
            elif remote.is_url(text):
                self._add_url(text, text, where)
            else:
                self._add_path(os.path.join(folder, text), os.path.normpath(text), where)

    def _add_path(self, path: str, relative: str | None = None, where: str = "") -> None:
        """`relative`, `where`: how a list names it, and which."""
        try:
            mode = os.stat(path).st_mode
        except ValueError as error:  # a null character
            self.missing.append(Missing(path[:SHOWN], f"no path: {error}{where}"))
        except OSError as error:
            if glob.has_magic(path):
                self._add_pattern(path, where)
            elif os.path.islink(path):
                self.missing.append(Missing(path, f"a link to nothing{where}"))
            else:
                absent = error.errno in (errno.ENOENT, errno.ENOTDIR)
                reason = "no such file or folder" if absent else error.strerror or str(error)
                self.missing.append(Missing(path, reason + where))
        else:
            if stat.S_ISDIR(mode):
                videos = self._videos(self._walk(path))
                self._take(video._replace(relative=relative) if not video.relative else video for video in videos)
            elif relative is not None and _suffix(path) in LIST_SUFFIXES:
                self.missing.append(Missing(path, f"a list must name videos, this is a list{where}"))
            else:
                self._take([_Entry(path, os.path.islink(path), relative)])

    def _add_url(self, url: str, relative: str | None = None, where: str = "") -> None:
        if remote.scheme(url) == "file":
            parts = urlsplit(url)
            if parts.netloc not in ("", "localhost"):
                self.missing.append(Missing(url, f"a file URL must name this machine, not {parts.netloc!r}{where}"))
            else:
                self._add_path(url2pathname(parts.path), relative, where)
            return
        try:
            entries = [(url, relative)]
            is_video = _suffix(remote.file_name(url)) in VIDEO_SUFFIXES
            if remote.scheme(url) not in remote.HTTP and (not is_video or glob.has_magic(url)):
                below = remote.expand(url)
                if is_video and not below:  # its name looks like a pattern
                    below = entries
                entries = [(u, r) for u, r in below if r is None or _suffix(u) in VIDEO_SUFFIXES]
        except VsimError as error:
            reason = error.reason if isinstance(error, OpenError) else str(error)
            self.missing.append(Missing(url, reason + where))
            return
        if not entries:
            self.missing.append(Missing(url, f"no video is below this or matches it{where}"))
        for url, relative in entries:
            if self._passes(relative):
                self.found.append(_Found(url, False, ("url", url)))

    def _add_pattern(self, pattern: str, where: str) -> None:
        named = os.path.splitext(pattern)[1]
        takes = self._videos if not named or glob.has_magic(named) else list
        parts = pattern.split(os.sep)
        stem = next(n for n, part in enumerate(parts) if glob.has_magic(part))  # folders that are named outright
        root = os.sep.join(parts[:stem]) or (os.sep if pattern.startswith(os.sep) else "")
        matches: list[_Entry] = []
        if "**" in parts:
            for entry in takes(self._walk(root or os.curdir)):
                if _matches(entry.relative.split(os.sep), parts[stem:]):
                    matches.append(entry if root else entry._replace(path=entry.relative))
        else:
            for path in sorted(glob.iglob(pattern), key=os.fsencode):
                relative = path[len(root) :].strip(os.sep)
                if not os.path.isdir(path):
                    matches += takes([_Entry(path, os.path.islink(path), relative)] if os.path.isfile(path) else [])
                elif not _fits(relative, self._exclude):
                    matches += self._videos(self._walk(path, relative))
        if not matches:
            self.missing.append(Missing(pattern, f"no video matches this pattern{where}"))
        self._take(dict.fromkeys(matches))

    def _walk(self, top: str, relative: str = "") -> Iterator[_Entry]:
        """Files below a folder, and folders with images if wanted, by name; linked folders come after all others.

        `relative`: of `top` to what is searched."""
        entered: set[tuple[int, int]] = set()
        pending, linked_folders = [(top.rstrip(os.sep) or os.sep, relative, False)], []
        while pending or linked_folders:
            folder, relative, linked = pending.pop() if pending else linked_folders.pop(0)
            try:
                status = os.stat(folder)
                identity = (status.st_dev, status.st_ino)
                if identity in entered or identity in self._skipped:
                    continue
                entered.add(identity)
                with os.scandir(folder) as scanned:
                    entries = sorted(scanned, key=lambda entry: os.fsencode(entry.name))
            except OSError as error:
                self.missing.append(Missing(folder, error.strerror or str(error)))
                continue
            shown = [entry for entry in entries if not entry.name.startswith(".")]
            inside = [(entry, os.path.join(relative, entry.name)) for entry in shown]
            folders = [(entry, name) for entry, name in inside if _is(entry.is_dir) and not _fits(name, self._exclude)]
            files = [(entry, name) for entry, name in inside if _is(entry.is_file)]
            if self._with_images and any(_suffix(name) in IMAGE_SUFFIXES for _, name in files):
                yield _Entry(folder, linked, relative, is_folder=True)
            for entry, name in files:
                link = entry.is_symlink()
                told = None if link else (status.st_dev, entry.inode())
                yield _Entry(entry.path, linked or link, name, identity=told)
            pending += [(entry.path, name, linked) for entry, name in reversed(folders) if not entry.is_symlink()]
            linked_folders += [(entry.path, name, True) for entry, name in folders if entry.is_symlink()]

    def _videos(self, entries: Iterable[_Entry]) -> list[_Entry]:
        """Those that are videos; a folder of images is one if no video lies below it."""
        taken = [entry for entry in entries if entry.is_folder or _is_video(entry.path)]
        if not any(entry.is_folder for entry in taken):
            return taken
        above: set[str] = set()
        for entry in taken:
            folder = None if entry.is_folder else os.path.dirname(entry.relative)
            while folder is not None and folder not in above:
                above.add(folder)
                folder = os.path.dirname(folder) if folder else None
        return [entry for entry in taken if not (entry.is_folder and entry.relative in above)]

    def _take(self, entries: Iterable[_Entry]) -> None:
        for path, linked, relative, _, identity in entries:
            if not self._passes(relative):
                continue
            identity = identity or _identity(path, self.missing)
            if identity is not None:
                self.found.append(_Found(path, linked, identity))

    def _passes(self, relative: str | None) -> bool:
        if relative is None:
            return True
        parts = relative.split(os.sep) if self._exclude else []
        excluded = any(_fits(os.sep.join(parts[: n + 1]), self._exclude) for n in range(len(parts)))  # or its folders
        passes = not excluded and (not self._include or _fits(relative, self._include))
        self.left_out += not passes
        return passes


class _Pattern:
    """One of `include` or `exclude`."""

    def __init__(self, text: str):
        self.is_path = os.sep in text.rstrip(os.sep)
        self.parts = _folded(os.path.normpath(text.strip(os.sep))).split(os.sep)

    def fits(self, names: list[str]) -> bool:
        return _matches(names, self.parts) if self.is_path else fnmatchcase(names[-1], self.parts[0])


def _fits(relative: str, patterns: list[_Pattern]) -> bool:
    """Whether a path fits one of the patterns."""
    if not patterns:
        return False
    names = _folded(relative).split(os.sep)
    return any(pattern.fits(names) for pattern in patterns)


def _folded(path: str) -> str:
    """A path or a pattern with its suffix in lower case."""
    stem, suffix = os.path.splitext(path)
    return stem + suffix.lower()


def _matches(names: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path fit those of a pattern; `**` stands for any number of folders."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_matches(names[n:], pattern[1:] or ["*"]) for n in range(len(names)))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _identity(path: str, missing: list[Missing] | None = None) -> tuple[int, int] | None:
    """Device and inode; None, and a line in `missing`, where there is nothing."""
    try:
        status = os.stat(path)
    except OSError as error:
        if missing is not None:
            missing.append(Missing(path, error.strerror or str(error)))
        return None
    return status.st_dev, status.st_ino


def _is(kind: Callable[[], bool]) -> bool:
    """`is_dir` or `is_file` of a folder's entry; a link that leads to itself is neither."""
    try:
        return kind()
    except OSError:
        return False


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _is_video(path: str) -> bool:
    suffix = _suffix(path)
    return suffix in VIDEO_SUFFIXES and not (suffix in (".ts", ".mts") and _is_text(path))


def _is_text(path: str) -> bool:
    """A .ts file may be a program in TypeScript."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError:
        return False  # reading it will say why
    return bool(head) and min(head) >= 9


def _listed(path: str) -> list[_Listed]:
    """The entries of a list file.  Raises: UsageError: it has none that is text."""
    try:
        text = os.fsdecode(Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise UsageError(f"{path_id(path)}: this list cannot be read: {error.strerror or error}") from None
    try:
        entries = {".txt": _listed_lines, ".csv": _listed_rows, ".json": _listed_json}[_suffix(path)](text)
    except ValueError as error:
        raise UsageError(f"{path_id(path)}: a list of videos must be {error}") from None
    entries = [
        entry._replace(problem="no path: it holds a null character") if "\0" in entry.text else entry
        for entry in entries
    ]
    if entries and all(entry.problem for entry in entries):
        first = f"{entries[0].place}: {entries[0].problem}"
        raise UsageError(f"{path_id(path)}: no entry of this list can be read; {first}")
    return entries


def _listed_lines(text: str) -> list[_Listed]:
    lines = ((line.strip(), n) for n, line in enumerate(io.StringIO(text, newline=None), 1))
    return [_Listed(line, f"line {n}") for line, n in lines if line and not line.startswith("#")]


def _listed_rows(text: str) -> list[_Listed]:
    rows = _rows(text)
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    column = next((header.index(wanted) for wanted in LIST_COLUMNS if wanted in header), None)
    entries = []
    for line, row, problem in rows if column is None else rows[1:]:
        path = row[column or 0].strip() if len(row) > (column or 0) else ""
        if not path and problem is None:
            problem = f"the row has nothing in column {header[column] if column is not None else 1}"
        entries.append(_Listed(path or ",".join(row), f"line {line}", problem))
    return entries


def _rows(text: str) -> list[tuple[int, list[str], str | None]]:
    """Rows of a csv that are not empty: number of the last line, cells, and what is wrong with it. A quote that is
    never closed would swallow all lines after it: then each line is taken for a row."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [(reader.line_num, row, None) for row in reader if any(row)]
    except csv.Error:
        rows = []
    for n, line in enumerate(io.StringIO(text, newline=None), 1):
        try:
            rows += [(n, row, None) for row in csv.reader([line]) if any(row)]
        except csv.Error as error:
            rows.append((n, [line], f"no row of a csv: {error}"))
    return rows


def _listed_json(text: str) -> list[_Listed]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"JSON: {error}") from None
    videos = content.get("videos") if isinstance(content, dict) else content
    if not isinstance(videos, list):
        raise ValueError('["path", ...] or {"videos": ["path", ...]}')
    return [
        _Listed(entry, f"entry {n}")
        if isinstance(entry, str)
        else _Listed(json.dumps(entry), f"entry {n}", "must be text between quotes")
        for n, entry in enumerate(videos, 1)
    ]


def _raise_none(paths: Sequence[str | Path], search: _Search) -> None:
    searched = ", ".join(path_id(path) for path in paths) or "nothing"
    reasons = f"; {search.left_out} left out by include and exclude" if search.left_out else ""
    reasons += "".join(f"; {path_id(path)}: {reason}" for path, reason in search.missing[:3])
    raise UsageError(f"no videos in {searched} (of a folder: *{', *'.join(VIDEO_SUFFIXES)}){reasons}")
