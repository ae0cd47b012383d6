"""Features of many videos in a folder, for one writing run at a time and any number of readers.

FOLDER/features/<key[:2]>/<key>.<settings>.safetensors     features of one content (or a folder of .npy)
FOLDER/ledger.sqlite     which path has which content and name, what is done, what failed
FOLDER/paths.jsonl       names and contents of paths once more: with the feature files it replaces a lost ledger
FOLDER/settings.json     what the features were computed with
FOLDER/in_flight         what the writing run has begun and not ended
FOLDER/embeddings.*      one vector per video, mapped      FOLDER/lock     who writes
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sqlite3
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, get_args

import numpy as np

from vsim_fast import __version__
from vsim_fast.errors import OutputError, UsageError, VsimError
from vsim_fast.feature_store.embeddings import EmbeddingFile, gathered
from vsim_fast.feature_store.files import (
    FEATURES,
    DamagedFeatures,
    FeatureFile,
    FeatureReader,
    Layout,
    feature_file,
    file_digest,
    write_features,
)
from vsim_fast.feature_store.keys import Stamp, path_text, settings_hash, stamp
from vsim_fast.feature_store.ledger import Ledger, Lock, connect, database_errors, holder, is_whole, kind
from vsim_fast.inputs import path_id
from vsim_fast.store import PARTIAL, atomic_path, output_errors

if TYPE_CHECKING:
    from torch import Tensor

APPLICATION, SCHEMA = 0x7673696D, 1
LEDGER, PATHS, SETTINGS, IN_FLIGHT, LOCK = "ledger.sqlite", "paths.jsonl", "settings.json", "in_flight", "lock"
MOST_NAME = 180
"""Bytes of a NAME, so that what is appended to it still makes a file name."""
# A rollback journal and not a write-ahead log: a reader of the latter creates and changes files, and it needs shared
# memory, which network folders lack. The price, that a reader keeps a commit waiting, is small: `Ledger.read` is brief.
TABLES = """
create table meta (name text primary key, value text) without rowid;
create table contents (id integer primary key, key text unique, facts text, file text, size int, digest text);
create table paths (path text primary key, key text, size int, mtime_ns int, inode int, name text, folded text unique,
                    outputs text) without rowid;
create index paths_of on paths (key);
create table failures (subject text primary key, path text, status text, reason text, remembered int,
                       strikes int) without rowid;
"""
NOTE = """
insert into paths (path, key, size, mtime_ns, inode) values (?, ?, ?, ?, ?) on conflict (path) do update set
key = excluded.key, size = excluded.size, mtime_ns = excluded.mtime_ns, inode = excluded.inode,
outputs = case when key = excluded.key then outputs end
"""
CONTENT = "into contents (key, facts, file, size, digest) values (?, ?, ?, ?, ?)"
AGAIN = """
on conflict (key) do update set
facts = excluded.facts, file = excluded.file, size = excluded.size, digest = excluded.digest
"""
DONE_PATH = """
insert into paths (path, key, outputs) values (?, ?, ?) on conflict (path) do update set
size = case when key = excluded.key then size end, key = excluded.key, outputs = excluded.outputs
"""
FAILED = """
insert into failures values (?, ?, ?, ?, ?, 0) on conflict (subject) do update set
path = excluded.path, status = excluded.status, reason = excluded.reason, remembered = excluded.remembered
"""
STRIKE = """
insert into failures values (?, ?, 'new', ?, 0, 1) on conflict (subject) do update set
path = excluded.path, reason = excluded.reason, strikes = strikes + 1
returning strikes
"""

Status = Literal["done", "failed", "quarantined", "new"]


class Done(NamedTuple):
    """A video whose features are stored and whose outputs are written."""

    key: str
    path: str
    facts: Mapping[str, Any]
    feature_file: FeatureFile
    outputs: Mapping[str, tuple[int, str]] = {}
    """File name, relative to a root of the caller's choice -> `file_digest`."""


class Failed(NamedTuple):
    key: str | None
    """None: the content could not be read."""
    path: str
    status: Literal["failed", "quarantined"]
    reason: str
    remembered: bool = True
    """False: told by `status()`, and tried again by the next run."""


class State(NamedTuple):
    """What a store knows of a file."""

    status: Status
    reason: str | None = None
    """Also of a "new" one, if its failure was not to be remembered."""
    strikes: int = 0
    outputs: Mapping[str, tuple[int, str]] = {}
    """Of this path; whoever has another one with the same content has its own."""
    feature_file: FeatureFile | None = None
    facts_json: str | None = None

    @property
    def facts(self) -> dict[str, Any] | None:
        """Of what is done. Parsed here: of 100,000 states nearly all are asked for their status alone."""
        return None if self.facts_json is None else json.loads(self.facts_json)


class StoredVideo(NamedTuple):
    key: str
    paths: tuple[str, ...]
    """Absolute, in alphabetical order; all have this content."""
    names: tuple[str, ...]
    """NAME of each that has one; the key, if none has."""
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return self.names[0]


class Problem(NamedTuple):
    """A file that is not what was recorded."""

    kind: Literal["features", "output"]
    key: str
    path: str | None
    """The video, of an output."""
    file: str
    """Relative to the store's folder, or of an output as it was recorded."""
    reason: str


class Store:
    """Features of many videos, on disk; a context manager.

    Args:
        folder: where; made if need be, when writing.
        write: take the lock. Without it nothing in the folder changes, whoever else writes there.
        settings: all that the features depend on besides the content (JSON values). A store keeps to the first ones.
        layout: of new feature files.
    Attributes:
        settings, settings_hash: what the features were computed with.
        notes: what was found damaged, lost or left over, and what became of it.
    Raises:
        OutputError: no store there; another run writes there; made by another version; cannot be written.
        UsageError: the store's features were computed with other settings.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        write: bool = False,
        settings: Mapping[str, Any] | None = None,
        layout: Layout = "safetensors",
    ):
        if layout not in ("safetensors", "npy"):
            raise UsageError(f'layout must be "safetensors" or "npy", got {layout!r}')
        self.folder, self.write, self.layout = Path(folder), write, layout
        self.notes: list[str] = []
        self._lock: Lock | None = None
        self._ledger: Ledger | None = None
        self._copy: tempfile.TemporaryDirectory | None = None
        self._log: BinaryIO | None = None
        self._flights: BinaryIO | None = None
        self._abandoned: list[str] = []
        self._pending: dict[str, tuple[str, Stamp]] = {}
        self._known_text: dict[str, str] = {}
        settings = None if settings is None else json.loads(json.dumps(settings))
        try:
            if write:
                self._open_for_writing(settings)
            else:
                self._open_for_reading(settings)
        except BaseException:
            self._release()
            raise
        self._embeddings = EmbeddingFile(self.folder, self.settings_hash)

    # ---- opening

    def _open_for_writing(self, settings: dict[str, Any] | None) -> None:
        with output_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.folder / LOCK)
        path = self.folder / LEDGER
        database, bound, fault = self._opened(path)
        if database is None and fault is None and self._has_remains():
            fault = "missing"
        self._bind(settings, bound)
        if database is None:
            if fault:
                self.notes.append(f"{LEDGER}: {fault}; made again from the feature files")
            with output_errors(path):
                self._set_aside(path)
            with database_errors(path):
                database = self._created(connect(path, write=True))
        self._ledger = Ledger(database, path)
        self._read_log()
        _remove_partial(_entries(self.folder))
        self._adopt()
        self._mend()
        self._abandoned = self._read_in_flight()
        with atomic_path(self.folder / IN_FLIGHT) as partial:
            partial.write_text("".join(_flight("+", text) for text in self._abandoned))
        self._flights = _appending(self.folder / IN_FLIGHT)
        self._log = _appending(self.folder / PATHS)

    def _open_for_reading(self, settings: dict[str, Any] | None) -> None:
        path = self.folder / LEDGER
        database, bound, fault = self._opened(path)
        if database is None and fault is None:
            if not self._has_remains():
                raise OutputError(f"{self.folder}: there is no feature store here")
            fault = "missing"
        self._bind(settings, bound)
        if database is None:
            self.notes.append(f"{LEDGER}: {fault}; read from the feature files, the next writing run makes it again")
            database = self._created(connect(":memory:", write=True))
        self._ledger = Ledger(database, path)
        if fault:
            self._read_log()
            self._adopt()
        self._abandoned = self._read_in_flight()

    def _has_remains(self) -> bool:
        return (self.folder / FEATURES).is_dir() or (self.folder / PATHS).exists()

    def _opened(self, path: Path) -> tuple[sqlite3.Connection | None, dict[str, Any] | None, str | None]:
        """The ledger and its settings, or what is wrong with it; nothing if there is no file.  Raises: OutputError."""
        if not path.exists():
            return None, None, None
        database = None
        try:
            database = connect(path, write=self.write or self._copy is not None)
            application, version = kind(database)
            if (application, version) == (0, 0) and not database.execute("select 1 from sqlite_master").fetchone():
                fault = "empty"
            elif application != APPLICATION:
                raise OutputError(f"{path}: this is not the ledger of a feature store; take another folder")
            elif version != SCHEMA:
                raise OutputError(
                    f"{path}: made by vsim_fast {_made_by(database)} (schema {version}), this is vsim_fast "
                    f"{__version__} (schema {SCHEMA}); use that version, or take another folder"
                )
            elif self.write and not is_whole(database, path):
                fault = "damaged"
            else:
                (settings,) = database.execute("select value from meta where name = 'settings'").fetchone()
                return database, json.loads(settings), None
        except sqlite3.OperationalError as error:
            if database is not None:
                database.close()
            if not self.write and self._copy is None and (copy := self._copied(path)):
                return self._opened(copy)
            raise OutputError(f"{path}: {error}") from error  # nothing is known of what is in it
        except (sqlite3.DatabaseError, TypeError, ValueError) as error:
            fault = f"damaged ({error})"
        except OutputError:
            database.close()
            raise
        if database is not None:
            database.close()
        return None, None, fault

    def _copied(self, path: Path) -> Path | None:
        """A copy of a ledger that cannot be read as it is because a run was killed in mid-commit: SQLite must put back
        what its journal says first, and a reader changes nothing here."""
        self._copy = tempfile.TemporaryDirectory(prefix="vsim-")
        copy = Path(self._copy.name) / LEDGER
        try:
            shutil.copyfile(path, copy)
            shutil.copyfile(f"{path}-journal", f"{copy}-journal")
        except FileNotFoundError:  # it is something else
            return None
        return copy

    def _bind(self, settings: dict[str, Any] | None, bound: dict[str, Any] | None) -> None:
        """Raises: UsageError: other settings than the store's."""
        if bound is None:
            try:
                bound = json.loads((self.folder / SETTINGS).read_text())
            except (OSError, ValueError):
                if settings is None:
                    raise UsageError(f"{self.folder}: give the settings that its features are computed with") from None
                bound = settings
        if settings is not None and bound != settings:
            raise UsageError(
                f"{self.folder}: its features were computed with other settings "
                f"({'; '.join(_differences(bound, settings))}); take another folder for these"
            )
        self.settings, self.settings_hash = bound, settings_hash(bound)

    def _set_aside(self, path: Path) -> None:
        """Move what there is of a ledger out of the way, its journal too: it would be played into the new one."""
        n = 1
        while (aside := path.with_name(f"ledger.damaged-{n}.sqlite")).exists():
            n += 1
        for suffix in ("", "-journal"):
            old = path.with_name(path.name + suffix)
            if old.exists():
                os.replace(old, f"{aside}{suffix}")
                self.notes.append(f"{old.name}: moved to {aside.name}{suffix}")

    def _created(self, database: sqlite3.Connection) -> sqlite3.Connection:
        database.executescript(
            f"begin; {TABLES} pragma application_id = {APPLICATION}; pragma user_version = {SCHEMA};"
        )
        meta = {"settings": self.settings, "made_by": __version__}
        database.executemany("insert into meta values (?, ?)", [(k, json.dumps(v)) for k, v in meta.items()])
        database.execute("commit")
        return database

    def _read_log(self) -> None:
        """Names and contents of paths, into a ledger that knows none: it was lost, perhaps while made again."""
        if self._ledger.read("select 1 from paths limit 1"):
            return
        found: dict[str, dict[str, str]] = {"name": {}, "key": {}}
        for line in _content(self.folder / PATHS).splitlines():
            with suppress(ValueError, KeyError, TypeError):  # cut off
                what, path, value = json.loads(line)
                found[what][path] = value
        names, keys = found["name"], found["key"]
        rows = [(p, keys.get(p), name, name and _folded(name)) for p in names | keys for name in (names.get(p),)]
        with self._ledger.writing() as database:
            database.executemany("insert or ignore into paths (path, key, name, folded) values (?, ?, ?, ?)", rows)

    def _adopt(self) -> None:
        """Whole feature files that the ledger does not know, as of a run killed before it could record them."""
        known = {file for (file,) in self._ledger.read("select file from contents")}
        found, damaged = [], 0
        for file in sorted(self._feature_files() - known):
            try:
                reader = FeatureReader(self.folder / file)
            except DamagedFeatures:
                damaged += 1
                continue
            about = reader.metadata
            if file in (feature_file(about["key"], self.settings_hash, layout) for layout in get_args(Layout)):
                found.append((about["key"], json.dumps(about["facts"]), file, *reader.stored))
        if damaged:
            self.notes.append(f"{damaged} feature files that no run recorded are damaged; they are made again")
        if found:
            self.notes.append(f"{len(found)} feature files that no run recorded are whole; taken over")
            with self._ledger.writing() as database:
                database.executemany(f"insert or ignore {CONTENT}", found)

    def _mend(self) -> None:
        """What would stand in for a lost ledger is whole."""
        path, text = self.folder / SETTINGS, json.dumps(self.settings, indent=2, sort_keys=True) + "\n"
        if _content(path) != text.encode():
            with atomic_path(path) as partial:
                partial.write_text(text)
        path = self.folder / PATHS
        ((names, keys),) = self._ledger.read("select count(name), count(key) from paths")
        if _content(path).count(b"\n") < names + keys:  # it is not flushed to the disk: it may end early
            rows = self._ledger.read("select path, name, key from paths order by path")
            lines = [_logged("name", text, name) for text, name, _ in rows if name]
            lines += [_logged("key", text, key) for text, _, key in rows if key]
            with atomic_path(path) as partial:
                partial.write_text("".join(lines))

    def _feature_files(self) -> set[str]:
        """Names of what is in features/, relative to the folder; a writing run removes what killed ones left."""
        found = set()
        for folder in _entries(self.folder / FEATURES):
            entries = _entries(folder.path)
            found |= {f"{FEATURES}/{folder.name}/{entry.name}" for entry in entries if entry.name[0] != "."}
            if self.write:
                _remove_partial(entries)
        return found

    def _read_in_flight(self) -> list[str]:
        begun: dict[str, None] = {}
        for line in _content(self.folder / IN_FLIGHT).splitlines():
            with suppress(ValueError):  # cut off
                text = json.loads(line[1:])
                if line[:1] == b"+":
                    begun[text] = None
                else:
                    begun.pop(text, None)
        return list(begun)

    # ---- closing

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._end(whole=kind is None)

    def close(self) -> None:
        """Commit what is noted, bring the file of embeddings up to date, and let go of the folder."""
        self._end(whole=True)

    def _end(self, *, whole: bool) -> None:
        if self._ledger is None:
            return
        try:
            if self.write and whole:
                self.flush()
            elif self.write:
                with suppress(VsimError), self._writing():  # the exception under way is the one to tell
                    pass
        finally:
            self._release(orderly=True)

    def _release(self, *, orderly: bool = False) -> None:
        if orderly and self._flights is not None:
            self._flights.truncate(0)  # nothing was in hand of a run that was killed
        for held in (self._ledger, self._log, self._flights):
            if held is not None:
                held.close()
        self._ledger = self._log = self._flights = None
        if self._copy is not None:
            self._copy.cleanup()
        if self._lock is not None:
            self._lock.release()

    # ---- writing

    def known_keys(self, paths: Sequence[str | Path], stamp: Callable[[str | Path], Stamp] = stamp) -> list[str | None]:
        """The key of each file that has the stamp with which its key was noted, else None. Nothing is read of the
        files. `stamp` may raise OSError."""
        texts = self._texts(paths)
        known = {
            path: (key, Stamp(*values))
            for path, key, *values in self._ledger.read(
                "select path, key, size, mtime_ns, inode from paths where path in (select value from json_each(?))",
                (json.dumps(texts),),
            )
        } | self._pending
        keys: list[str | None] = []
        for path, text in zip(paths, texts, strict=True):
            key, noted = known.get(text, (None, None))
            with suppress(OSError, ValueError):  # gone; a name with a null character
                keys.append(key if key and stamp(path) == noted else None)
                continue
            keys.append(None)
        return keys

    def note_key(self, path: str | Path, key: str, stamp: Stamp) -> None:
        """A file's key, and the stamp it had before it was read for it; kept with the next `record()` or `flush()`."""
        self._pending[self._text(path)] = key, Stamp(*stamp)

    def names(self, paths: Sequence[str | Path], stems: Sequence[str]) -> list[str]:
        """NAME of each path, the base of its output files, for ever: the stem or, where another path has that, the
        stem with "~" and a hash of the path. No two differ by upper and lower case alone."""
        texts = self._texts(paths)
        query = "select path, name from paths where name is not null and path in (select value from json_each(?))"
        known = dict(self._ledger.read(query, (json.dumps(texts),)))
        plain = {text: _short(path_id(stem)) for text, stem in zip(texts, stems, strict=True) if text not in known}
        wanted = [_folded(name) for text, stem in plain.items() for name in (stem, _apart(stem, text, 8))]
        query = "select folded from paths where folded in (select value from json_each(?))"
        taken = {folded for (folded,) in self._ledger.read(query, (json.dumps(wanted),))}
        new = {}
        for text, stem in plain.items():
            name, digits = stem, 8
            while _folded(name) in taken:
                name, digits = _apart(stem, text, digits), digits + 8
            taken.add(_folded(name))
            new[text] = name
        if new:
            with self._writing() as database:
                rows = [(text, name, _folded(name)) for text, name in new.items()]
                query = "insert into paths (path, name, folded) values (?, ?, ?) on conflict (path) do update set "
                database.executemany(query + "name = excluded.name, folded = excluded.folded", rows)
                self._append(PATHS, self._log, (_logged("name", *row) for row in new.items()))
        return [known.get(text) or new[text] for text in texts]

    def write_features(
        self, key: str, tensors: Mapping[str, Tensor | np.ndarray], facts: Mapping[str, Any]
    ) -> FeatureFile:
        """`files.write_features` into this store; from any thread. `record()` makes it known."""
        return write_features(self.folder, key, self.settings_hash, self.layout, tensors, facts)

    def record(self, rows: Iterable[Done | Failed]) -> None:
        """What became of videos, all in one transaction. What is done has no failure and no strike any more."""
        rows = list(rows)
        done = [row for row in rows if isinstance(row, Done)]
        failed = [row for row in rows if isinstance(row, Failed)]
        with self._writing() as database:
            contents = [(row.key, json.dumps(dict(row.facts)), *_stored(row.feature_file)) for row in done]
            database.executemany(f"insert {CONTENT} {AGAIN}", contents)
            texts = self._texts([row.path for row in done])
            paths = [(text, row.key, json.dumps(dict(row.outputs))) for text, row in zip(texts, done, strict=True)]
            self._log_keys(database, [path[:2] for path in paths])
            database.executemany(DONE_PATH, paths)
            cleared = [(subject,) for row, text in zip(done, texts, strict=True) for subject in (row.key, text)]
            database.executemany("delete from failures where subject = ?", cleared)
            texts = self._texts([row.path for row in failed])
            values = [
                (row.key or text, text, row.status, _encodable(row.reason), row.remembered)
                for row, text in zip(failed, texts, strict=True)
            ]
            database.executemany(FAILED, values)

    def add_strike(self, path: str | Path, reason: str) -> int:
        """A process died over this file: how often that happened to its content (to the path, if its key is not noted).
        On disk when this returns."""
        text = self._text(path)
        with self._writing() as database:
            row = database.execute("select key from paths where path = ?", (text,)).fetchone()
            subject = row[0] if row and row[0] else text
            return database.execute(STRIKE, (subject, text, _encodable(reason))).fetchone()[0]

    def begin(self, paths: Iterable[str | Path]) -> None:
        """Note that files are being worked on. A run that is killed leaves this behind; the disk is not waited for."""
        texts = self._texts(paths)
        self._append(IN_FLIGHT, self._flights, (_flight("+", text) for text in texts))

    def end(self, paths: Iterable[str | Path]) -> None:
        self._append(IN_FLIGHT, self._flights, (_flight("-", text) for text in self._texts(paths)))

    def abandoned(self) -> list[str]:
        """Files (absolute) that were being worked on by the run before this one when it was killed; to a reader, also
        those that are being worked on now."""
        return list(self._abandoned)

    def set_meta(self, name: str, value: Any) -> None:
        """A small JSON value."""
        if name in ("settings", "made_by"):
            raise ValueError(f"meta {name!r} is the store's own")
        with self._writing() as database:
            database.execute("replace into meta values (?, ?)", (name, json.dumps(value)))

    def forget(self, problems: Iterable[Problem]) -> None:
        """Take it as not done: a content with damaged features (what is left of them is removed), or one output."""
        problems = list(problems)
        with self._writing() as database:
            for problem in problems:
                if problem.kind == "features":
                    database.execute("delete from contents where key = ?", (problem.key,))
                    continue
                found = database.execute("select outputs from paths where path = ?", (problem.path,)).fetchone()
                outputs = json.loads(found[0] or "{}") if found else {}
                outputs.pop(problem.file, None)
                database.execute("update paths set outputs = ? where path = ?", (json.dumps(outputs), problem.path))
        for problem in problems:
            if problem.kind == "features":
                path = self.folder / problem.file
                with output_errors(path):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def flush(self) -> None:
        """Commit what is noted, and bring the file of embeddings up to date."""
        with self._writing():
            pass
        lines, files = self._embedding_lines()
        self._embeddings.update(lines, lambda n: self._embedding(files[n]))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, which takes along what is noted."""
        self._require_writing()
        noted = list(self._pending.items())
        with self._ledger.writing() as database:
            self._log_keys(database, [(text, key) for text, (key, _) in noted])
            database.executemany(NOTE, [(text, key, *stamp) for text, (key, stamp) in noted])
            yield database
        for text, value in noted:
            if self._pending.get(text) is value:
                del self._pending[text]

    def _log_keys(self, database: sqlite3.Connection, keys: list[tuple[str, str]]) -> None:
        query = "select path, key from paths where path in (select value from json_each(?))"
        known = dict(database.execute(query, (json.dumps([text for text, _ in keys]),)).fetchall())
        self._append(PATHS, self._log, (_logged("key", *each) for each in keys if known.get(each[0]) != each[1]))

    def _require_writing(self) -> None:
        if not self.write:
            raise UsageError(f"{self.folder}: this store was opened for reading; open it with write=True")

    def _append(self, name: str, file: BinaryIO | None, lines: Iterable[str]) -> None:
        self._require_writing()
        with output_errors(self.folder / name):
            file.write("".join(lines).encode())  # unbuffered: there when this process is killed

    # ---- reading

    def meta(self, name: str) -> Any:
        """As given to `set_meta`, else None."""
        rows = self._ledger.read("select value from meta where name = ?", (name,))
        return json.loads(rows[0][0]) if rows else None

    def states(self, paths: Sequence[str | Path], keys: Sequence[str | None]) -> list[State]:
        """What is known of files and their contents; a failure without a key is the path's."""
        with collection_paused():
            return self._states(paths, keys)

    def _states(self, paths: Sequence[str | Path], keys: Sequence[str | None]) -> list[State]:
        texts = self._texts(paths)
        named = json.dumps([key for key in keys if key])
        query = "select key, facts, file, size, digest from contents where key in (select value from json_each(?))"
        contents = {row[0]: row for row in self._ledger.read(query, (named,))}
        query = "select path, key, outputs from paths where path in (select value from json_each(?))"
        rows = [row for row in self._ledger.read(query, (json.dumps(texts),)) if row[2]]
        made = parse_all(row[2] for row in rows)
        outputs = {
            (path, key): {name: (size, digest) for name, (size, digest) in each.items()}
            for (path, key, _), each in zip(rows, made, strict=True)
        }
        query = "select subject, status, reason, remembered, strikes from failures"
        failures = {subject: values for subject, *values in self._ledger.read(query)}
        states = []
        for text, key in zip(texts, keys, strict=True):
            if key in contents:
                _, facts, *stored = contents[key]
                states.append(State("done", None, 0, outputs.get((text, key), {}), FeatureFile(*stored), facts))
            elif failure := failures.get(key or text):
                status, reason, remembered, strikes = failure
                states.append(State(status if remembered else "new", reason, strikes))
            else:
                states.append(State("new"))
        return states

    def __len__(self) -> int:
        """Contents that are done."""
        return self._ledger.read("select count(*) from contents")[0][0]

    def videos(self) -> list[StoredVideo]:
        """Contents that are done and that some path has, in the order in which they were done first."""
        with collection_paused(), self._ledger.snapshot():
            return list(self._videos())

    def _videos(self) -> Iterator[StoredVideo]:
        contents = self._ledger.read("select key, facts from contents where key in (select key from paths) order by id")
        paths = defaultdict(list)
        for key, path, name in self._ledger.read("select key, path, name from paths order by path"):
            paths[key].append((path, name))
        for (key, _), facts in zip(contents, parse_all(row[1] for row in contents), strict=True):
            names = tuple(name for _, name in paths[key] if name)
            yield StoredVideo(key, tuple(path for path, _ in paths[key]), names or (key,), facts)

    def features(self, key: str, names: Iterable[str] | None = None, *, mmap: bool = True) -> dict[str, np.ndarray]:
        """Tensors of a content by name, all or `names`; mapped into memory, so that only what is touched is read.

        Raises: KeyError: the content is not done, or has no such tensor.  DamagedFeatures: missing or cut off.
        """
        rows = self._ledger.read("select file from contents where key = ?", (key,))
        if not rows:
            raise KeyError(f"{self.folder} holds no features of {key}")
        return FeatureReader(self.folder / rows[0][0]).arrays(names, mmap=mmap)

    def embeddings(self) -> tuple[list[StoredVideo], np.ndarray]:
        """The videos, and their embeddings float32 [N, D], mapped if the last writing run ended orderly. A video whose
        feature file is damaged is left out, with a note."""
        with self._ledger.snapshot():
            lines, files = self._embedding_lines()
            videos = list(self._videos())
        vectors, numbers = gathered(lines, *self._embeddings.read(), lambda n: self._embedding(files[n]))
        return [videos[n] for n in numbers], vectors

    def _embedding_lines(self) -> tuple[list[str], list[str]]:
        """What stands for each embedding, and its feature file, in the order of `videos()`."""
        rows = self._ledger.read(
            "select key, digest, file from contents where key in (select key from paths) order by id"
        )
        return [f"{key} {digest}" for key, digest, _ in rows], [file for *_, file in rows]

    def _embedding(self, file: str) -> np.ndarray | None:
        try:
            return FeatureReader(self.folder / file).arrays(["embedding"], mmap=False)["embedding"]
        except (DamagedFeatures, KeyError) as error:
            self.notes.append(f"no embedding: {error}")
            return None

    def frame_vectors(self, videos: Sequence[StoredVideo] | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every frame that shows something (not `featureless`) of `videos`, by default those of `embeddings()`; give
        them where a run may be writing.

        Returns:
            vectors [M, D], `cls` where it is kept, else `pooled`, of length 1, float16 if stored so, else float32;
            the video of each, int64 [M], as its number in `videos`; pts_seconds float64 [M].
        Raises:
            UsageError: a video has neither.
        """
        found = list(self.frames(videos))
        if not found:
            return np.zeros((0, 1), np.float32), np.zeros(0, np.int64), np.zeros(0)
        numbers = np.repeat([n for n, _, _ in found], [len(pts) for _, _, pts in found]).astype(np.int64)
        vectors = np.concatenate([vectors for _, vectors, _ in found])
        return vectors, numbers, np.concatenate([pts for _, _, pts in found])

    def frames(self, videos: Sequence[StoredVideo] | None = None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """`frame_vectors()` one video at a time: its number, vectors [T, D], pts_seconds [T]."""
        videos = self.embeddings()[0] if videos is None else videos
        files = dict(self._ledger.read("select key, file from contents"))
        for number, video in enumerate(videos):
            if (file := files.get(video.key)) is None:  # forgotten since
                continue
            try:
                reader = FeatureReader(self.folder / file)
                name = next((name for name in ("cls", "pooled") if name in reader.names), None)
                if name is None:
                    raise UsageError(
                        f"{file} has no vectors of frames (it has {', '.join(reader.names)}); embed with --keep pooled "
                        "or --keep cls"
                    )
                found = reader.arrays([name, "featureless", "pts_seconds"])
            except DamagedFeatures:
                continue
            shown = ~found["featureless"]
            vectors = found[name][shown].astype(np.float32)
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            dtype = np.float16 if found[name].dtype == np.float16 else np.float32
            yield number, vectors.astype(dtype, copy=False), found["pts_seconds"][shown]

    def status(self, *, limit: int | None = 100) -> dict[str, Any]:
        """Counts, failures (at most `limit`), the last run (meta "last_run"), and who writes now (None: nobody)."""
        (files, videos, size), *_ = self._ledger.read(
            "select (select count(*) from paths where key in (select key from contents)), count(*), sum(size) "
            "from contents"
        )
        counts = dict(self._ledger.read("select status, count(*) from failures where status != 'new' group by status"))
        failures = self._ledger.read(
            "select path, status, reason, strikes from failures where status != 'new' order by path limit ?",
            (-1 if limit is None else limit,),
        )
        return {
            "folder": path_id(self.folder), "settings": self.settings, "settings_hash": self.settings_hash,
            "videos": videos, "files": files, "feature_bytes": size or 0,
            "failed": counts.get("failed", 0), "quarantined": counts.get("quarantined", 0),
            "failures": [dict(zip(("path", "status", "reason", "strikes"), row, strict=True)) for row in failures],
            "in_flight": self.abandoned(), "last_run": self.meta("last_run"), "writer": holder(self.folder / LOCK),
            "notes": list(self.notes),
        }  # fmt: skip

    def verify(self, root: str | Path | None = None, *, content: bool = True) -> Iterator[Problem]:
        """Files that are not what was recorded; `forget()` has them made again.

        Args:
            root: folder that the names of outputs are relative to; None leaves outputs out.
            content: read every byte; False compares sizes alone, fit for the start of each run.
        """
        rows = self._ledger.read("select key, file, size, digest from contents order by id")
        sizes = Sizes(self.folder)
        for key, file, size, digest in rows:
            reason = wrong_size(sizes[file], size)
            if content and reason is None:
                try:
                    reader = FeatureReader(self.folder / file)
                    reader.check()
                    reason = None if reader.stored == (size, digest) else "other features than were recorded"
                except DamagedFeatures as error:
                    reason = str(error)
            if reason:
                yield Problem("features", key, None, file, reason)
        if root is None:
            return
        sizes = Sizes(Path(root))
        rows = self._ledger.read("select path, key, outputs from paths where outputs is not null order by path")
        for (path, key, _), outputs in zip(rows, parse_all(row[2] for row in rows), strict=True):
            for name, (size, digest) in outputs.items():
                reason = wrong_size(sizes[name], size)
                if content and reason is None:
                    try:
                        reason = None if file_digest(Path(root) / name)[1] == digest else "the checksum does not fit"
                    except OSError as error:
                        reason = f"cannot be read: {error.strerror or error}"
                if reason:
                    yield Problem("output", key, path, name, reason)

    def _text(self, path: str | Path) -> str:
        name = os.fspath(path)
        text = self._known_text.get(name)
        if text is None:
            text = self._known_text[name] = path_text(name)
        return text

    def _texts(self, paths: Iterable[str | Path]) -> list[str]:
        return [self._text(path) for path in paths]


@contextmanager
def collection_paused() -> Iterator[None]:
    """While many objects are made that all stay, looking for garbage among them takes as long as making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Sizes(dict[str, int | None]):
    """Sizes of files below a folder by relative names, of a folder its files' sum; each folder is listed once."""

    def __init__(self, root: Path):
        self._root, self._listed = root, set[str]()

    def __missing__(self, name: str) -> int | None:
        folder = name.rpartition("/")[0]
        if folder not in self._listed:
            self._listed.add(folder)
            prefix = f"{folder}/" if folder else ""
            for entry in _entries(self._root / folder):
                if entry.is_dir():
                    self[prefix + entry.name] = sum(inside.stat().st_size for inside in _entries(entry.path))
                else:
                    self[prefix + entry.name] = entry.stat().st_size
        return self.setdefault(name, None)


def wrong_size(found: int | None, size: int) -> str | None:
    if found is None:
        return "missing"
    return None if found == size else f"{found:,} bytes, {size:,} were written"


def parse_all(texts: Iterable[str]) -> list[Any]:
    """Each as JSON; 100,000 in one go take a third of the time."""
    return json.loads(f"[{','.join(texts)}]")


def _stored(file: FeatureFile) -> tuple[str, int, str]:
    return file.file, file.size, file.digest


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_partial(entries: Iterable[os.DirEntry[str]]) -> None:
    """What writers left that were killed: whoever holds the lock knows that none of them lives."""
    for entry in entries:
        if entry.name.startswith(".") and PARTIAL in entry.name:
            shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _appending(path: Path) -> BinaryIO:
    with output_errors(path):
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 - lives as long as the store
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")  # the last line was cut off
    return file


def _flight(sign: str, text: str) -> str:
    return f"{sign}{json.dumps(text)}\n"


def _logged(what: Literal["name", "key"], text: str, value: str) -> str:
    return f"{json.dumps([what, text, value])}\n"


def _encodable(text: str) -> str:
    """A file name in a message may be no UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _folded(name: str) -> str:
    """The same for names that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _short(stem: str) -> str:
    return stem.encode()[:MOST_NAME].decode(errors="ignore")


def _apart(stem: str, text: str, digits: int) -> str:
    return f"{stem}~{blake2b(text.encode()).hexdigest()[:digits]}"


def _made_by(database: sqlite3.Connection) -> str:
    try:
        return json.loads(database.execute("select value from meta where name = 'made_by'").fetchone()[0])
    except (sqlite3.Error, TypeError, ValueError):
        return "of another time"


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for field in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(field), new.get(field), f"{name}.{field}".lstrip("."))
    elif old != new:
        yield f"{name} {json.dumps(old)}, now {json.dumps(new)}"
