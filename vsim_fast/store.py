"""Results on disk. A file gets its final name only when it is whole: everything is written under a temporary name in
the same folder, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from vsim_fast.errors import OutputError, UsageError

SYNC_EVERY = 64 << 20
"""Bytes between two flushes of a growing file, so that the last flush of a big one does not wait for all of it."""
PARTIAL = ".vsim-partial-"


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Operating-system refusals as `OutputError`, with the final path and what to do."""
    try:
        yield
    except OSError as error:
        if path.parent.name.startswith(PARTIAL):
            path = path.parent.parent / path.name
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{path}: the disk is full; free space or write elsewhere") from error
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to: renamed to `path` when the block ends, removed when it raises."""
    path = Path(path)
    partial = path.with_name(f".{path.name}{PARTIAL}{os.getpid()}-{threading.get_native_id()}")
    with output_errors(path):
        try:
            yield partial
            sync(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


class OutputFolder:
    """A folder whose new contents appear together: `file(name)` gives a temporary path to write to, and leaving the
    `with` block renames all of them, in the order they were asked for. Leaving it by an exception removes them, and
    the folder if it was made for them, and touches nothing that was there before.

    Raises:
        OutputError: the folder cannot be made or written.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.names: list[str] = []
        self._earlier: list[str] = []
        with output_errors(self.path):
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            self.partial = self.path / f"{PARTIAL}{os.getpid()}"
            self.partial.mkdir(exist_ok=True)

    def _remove_abandoned(self) -> None:
        """Temporary files of runs that were killed."""
        for folder in self.path.glob(f"{PARTIAL}*"):
            pid = folder.name.removeprefix(PARTIAL)
            if pid.isdigit() and not is_running(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)

    def file(self, name: str) -> Path:
        """Where to write the file that will be called `name` (no folders in it)."""
        if Path(name).name != name:
            raise UsageError(f"output name must not leave the folder, got {name!r}")
        if name not in self.names:
            self.names.append(name)
        return self.partial / name

    def write_json(self, name: str, content: Any, *, indent: int | None = 2) -> None:
        """The file `name`, UTF-8.  Raises: OutputError.  ValueError: NaN or infinity, which JSON has not."""
        path = self.file(name)
        with output_errors(path):
            path.write_text(json.dumps(content, indent=indent, allow_nan=False), encoding="utf-8")

    def flush(self) -> None:
        """Wait until everything written so far is on the disk."""
        with output_errors(self.path):
            for name in self.names:
                if (self.partial / name).exists():
                    sync(self.partial / name)

    def replaces(self, names: Iterable[str]) -> None:
        """Names that an earlier run wrote here: those that this run does not write are removed when it succeeds."""
        self._earlier = [name for name in names if Path(name).name == name]

    def require_space(self, need: int) -> None:
        """Raises OutputError unless `need` bytes are free."""
        free = shutil.disk_usage(self.path).free
        if need > free:
            raise OutputError(
                f"{self.path}: the planned files need {_mib(need)}, {_mib(free)} are free; "
                "use --reduce stats, fewer frames, a smaller image or another folder"
            )

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                with output_errors(self.path):
                    self.flush()
                    for name in self.names:
                        os.replace(self.partial / name, self.path / name)
                    for name in set(self._earlier) - set(self.names):
                        (self.path / name).unlink(missing_ok=True)
                    sync(self.path)
            elif isinstance(value, OSError):  # whoever wrote here need not translate it
                with output_errors(Path(os.fsdecode(value.filename or self.path))):
                    raise value
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)
            if kind is not None and self._made:
                with suppress(OSError):  # not empty: someone else writes there too
                    self.path.rmdir()


def earlier_outputs(summary: Path, *patterns: str) -> list[str]:
    """What an earlier run wrote to the folder by the "outputs" of its summary, of names that match a pattern; nothing
    if there is no summary or it is not ours."""
    try:
        outputs = json.loads(summary.read_bytes())["outputs"]
        return [name for name in outputs if any(fnmatchcase(name, pattern) for pattern in patterns)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


class ArrayWriter:
    """An array written in blocks along its first axis, to `.npy` or to a one-member `.npz`, never held whole.

    Args:
        path: where; the suffix of `key` decides nothing: `key` None means .npy, a name means .npz with that member.
        shape: [N, ...]; if fewer than N rows have been written at `close()`, the file is rewritten with what came.
        compress: deflate the .npz (about 30 times slower for a few per cent on similarity matrices).
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype | str,
        *,
        key: str | None = None,
        compress: bool = False,
    ):
        self.path, self.shape, self.dtype, self.key = Path(path), tuple(shape), np.dtype(dtype), key
        self.method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        self.rows = 0
        self._unsynced = 0
        with output_errors(self.path):
            self._open(self.path, self.shape)

    def _open(self, path: Path, shape: tuple[int, ...]) -> None:
        self._raw = open(path, "wb")  # noqa: SIM115 - lives as long as the writer
        self._zip = zipfile.ZipFile(self._raw, "w", self.method) if self.key else None
        # Sizes are unknown to zipfile in advance, so zip64 is asked for, as numpy does.
        self._file: BinaryIO = self._zip.open(f"{self.key}.npy", "w", force_zip64=True) if self._zip else self._raw
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        )

    def write(self, block: np.ndarray) -> None:
        """Append rows: [n, ...] with the trailing shape of the array; cast to its dtype if need be."""
        block = np.ascontiguousarray(block, dtype=self.dtype)
        if block.shape[1:] != self.shape[1:] or self.rows + len(block) > self.shape[0]:
            raise ValueError(f"block {block.shape} does not fit rows {self.rows}.. of {self.shape}")
        with output_errors(self.path):
            self._file.write(memoryview(block).cast("B") if block.size else b"")
            self.rows += len(block)
            self._unsynced += block.nbytes
            if self._unsynced >= SYNC_EVERY:
                self._raw.flush()
                os.fsync(self._raw.fileno())
                self._unsynced = 0

    def close(self) -> None:
        """Finish the file; with fewer rows than planned, rewrite it with the shape that came."""
        with output_errors(self.path):
            self._close_files()
            if self.rows < self.shape[0]:
                self._rewrite((self.rows, *self.shape[1:]))

    def abort(self) -> None:
        """Let go of the file after an error, whatever state it is in; without effect after `close()`."""
        with suppress(OSError, ValueError):  # the first error is the one to tell
            self._close_files()
        with suppress(OSError):
            self._raw.close()

    def _close_files(self) -> None:
        if self._zip:
            self._file.close()
            self._zip.close()
        self._raw.close()

    def _rewrite(self, shape: tuple[int, ...]) -> None:
        long = self.path.with_name(self.path.name + ".long")
        os.replace(self.path, long)
        with ExitStack() as stack:
            source = stack.enter_context(open(long, "rb"))
            if self.key:
                source = stack.enter_context(stack.enter_context(zipfile.ZipFile(source)).open(f"{self.key}.npy"))
            np.lib.format.read_magic(source)
            np.lib.format.read_array_header_1_0(source)
            self._open(self.path, shape)
            shutil.copyfileobj(source, self._file, 16 << 20)
            self._close_files()
        long.unlink()
        self.shape = shape

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
