"""What every ledger needs: a lock on its folder, and SQLite with its errors told."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from vsim_fast.errors import OutputError
from vsim_fast.store import is_running, output_errors

WAIT_SECONDS = 60.0
"""How long one process waits for another's transaction."""


class Lock:
    """A lock on a folder that ends with the process; the file says who holds it.

    Raises:
        OutputError: another process holds it; names that process.
    """

    def __init__(self, path: Path):
        with output_errors(path):
            self._file: IO[str] = open(path, "a+")  # noqa: SIM115 - lives as long as the lock
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise OutputError(
                    f"{path.parent}: in use by another run ({_told(_written(path))}); wait for it, or write to another "
                    "folder"
                ) from None
            self._file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S%z")
            who = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": shlex.join(sys.argv)}
            self._file.write(json.dumps(who))
            self._file.flush()
        _held.add(self)

    def release(self) -> None:
        if not self._file.closed:
            with suppress(OSError):
                self._file.truncate(0)
            self._file.close()

    def _let_go(self) -> None:
        """A forked child's copy would hold the lock beyond the end of the process that took it."""
        with suppress(OSError):
            self._file.close()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [lock._let_go() for lock in list(_held)])


def holder(path: Path) -> dict[str, Any] | None:
    """Who holds the lock: pid, host, since, command; None if nobody does."""
    who = _written(path)
    if "pid" not in who or (who.get("host") == socket.gethostname() and not is_running(who["pid"])):
        return None  # not by trying the lock: that would refuse a run that starts at this moment
    with suppress(OSError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return who
    return None


def _written(path: Path) -> dict[str, Any]:
    try:
        who = json.loads(path.read_text(errors="replace"))
    except (OSError, ValueError):
        return {}
    return who if isinstance(who, dict) else {}


def _told(who: dict[str, Any]) -> str:
    if "pid" not in who:
        return "process unknown"
    return f"process {who['pid']} on {who.get('host')}, since {who.get('since')}: {who.get('command')}"


def connect(path: Path | str, *, write: bool) -> sqlite3.Connection:
    """Of `path`, or ":memory:"; transactions are begun by hand.  Raises: sqlite3.Error."""
    name = path if path == ":memory:" else f"file:{quote(os.fsencode(path))}{'' if write else '?mode=ro'}"
    return sqlite3.connect(name, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False, uri=name != path)


def kind(database: sqlite3.Connection) -> tuple[int, int]:
    """(application, schema version) of a ledger.  Raises: sqlite3.DatabaseError: it is none."""
    ((application,), (version,)) = (
        database.execute(f"pragma {name}").fetchone() for name in ("application_id", "user_version")
    )
    return application, version


def is_whole(database: sqlite3.Connection, path: Path) -> bool:
    """Raises: sqlite3.DatabaseError."""
    (size,) = database.execute("pragma page_size").fetchone()
    cut = os.path.getsize(path) % size  # SQLite would fill the last page up with zeros
    return not cut and database.execute("pragma quick_check(1)").fetchone()[0] == "ok"


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        cure = "free space or write elsewhere" if "full" in str(error) else "move this file away and run again"
        raise OutputError(f"{path}: {error}; {cure}") from error


class Ledger:
    """An open SQLite file for the threads of one process."""

    def __init__(self, database: sqlite3.Connection, path: Path):
        self.database, self.path = database, path
        self._turn = threading.RLock()

    def read(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows at once: a reader that stops half-way would keep the writer from committing."""
        with self._turn, database_errors(self.path):
            return self.database.execute(query, values).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Several `read()` of one state, whatever another process commits meanwhile."""
        with self._turn, database_errors(self.path):
            self.database.execute("begin")
            try:
                yield
            finally:
                self.database.execute("rollback")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or, if the block raises, nothing."""
        with self._turn, database_errors(self.path):
            self.database.execute("begin immediate")
            try:
                yield self.database
                self.database.execute("commit")
            except BaseException:
                if self.database.in_transaction:
                    self.database.execute("rollback")
                raise

    def close(self) -> None:
        self.database.close()
