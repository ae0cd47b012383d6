"""All pairs of a large set to a file: block by block, in bounded memory, with the time left, resumed after a stop."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsim_fast.errors import OutputError, UsageError
from vsim_fast.ops.dtw import dtw_pairwise_blocks, pair_blocks
from vsim_fast.store import atomic_path, output_errors, sync

SAVE_EVERY_SECONDS = 5.0


def dtw_matrix(
    path: str | os.PathLike[str],
    x: Any,
    y: Any = None,
    *,
    block: int = 512,
    progress: Callable[[int, int, float], None] | None = None,
    **options: Any,
) -> np.ndarray:
    """`dtw_pairwise` into a .npy file. Killed or interrupted at any moment, the same call goes on where it stopped.

    Args:
        path: of the result; it appears when all of it is there. Beside it lie `<path>.partial` and `<path>.journal`
            meanwhile.
        x, y, options: as `dtw_pairwise` takes them.
        block: sequences per side of a block; what an interruption may lose is a few seconds of work.
        progress: called after every block with (pairs done, pairs in all, seconds left).
    Returns:
        float32 [N, M] or [N, N], mapped from the file, read-only.
    Raises:
        UsageError: the partial result at `path` belongs to other data or options, or another run is writing it.
        ValueError, TypeError: as `dtw_pairwise`.  OutputError: the file cannot be written.
    Memory: the sequences, one block, and whatever part of the file the system keeps in its cache.
    """
    path = Path(path)
    partial, journal = (path.with_name(path.name + ending) for ending in (".partial", ".journal"))
    if "skip" in options:
        raise TypeError("skip is not an option of dtw_matrix: it goes on by itself")
    dtw_pairwise_blocks(x, y, block=block, **options)  # wrong arguments raise before a file is made
    rows, columns = len(x), len(x if y is None else y)
    mirrored = y is None and not any(options.get(name) for name in ("open_begin", "open_end", "subsequence"))
    key = _digest(x, y, block, options)
    total = rows * (rows - 1) // 2 if mirrored else rows * columns
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: cannot be written: it exists and is no file")
    with output_errors(path), _claimed(partial):
        done = _blocks_done(partial, journal, key, rows * columns * 4)
        if done:
            out = np.lib.format.open_memmap(partial, "r+")
        else:
            journal.unlink(missing_ok=True)
            out = np.lib.format.open_memmap(partial, "w+", dtype=np.float32, shape=(rows, columns))
            _reserve(partial)
        counted = sum(_pairs(*at, mirrored) for at in islice(pair_blocks(rows, columns, block, mirrored), done))
        start, before, saved = time.perf_counter(), counted, time.perf_counter()

        def save() -> None:
            out.flush()
            with atomic_path(journal) as temporary:
                temporary.write_text(json.dumps({"key": key, "blocks": done}))

        try:
            for at, over, distances in dtw_pairwise_blocks(x, y, block=block, skip=done, **options):
                values = distances.cpu().numpy() if isinstance(distances, torch.Tensor) else distances
                out[at, over] = values
                if mirrored and at != over:
                    out[over, at] = values.T
                done += 1
                counted += _pairs(at, over, mirrored)
                now = time.perf_counter()
                if now - saved > SAVE_EVERY_SECONDS:
                    save()
                    saved = now
                if progress:
                    progress(counted, total, (total - counted) * (now - start) / max(1, counted - before))
        except BaseException:  # an interrupt too: keep what is there
            save()
            raise
        out.flush()
        sync(partial)
        os.replace(partial, path)
        journal.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


@contextmanager
def _claimed(partial: Path) -> Iterator[None]:
    """One run at a time: two would write over each other's blocks."""
    with open(partial, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{partial} is being written by another run; wait for it or choose another path") from None
        yield


def _blocks_done(partial: Path, journal: Path, key: str, least_size: int) -> int:
    """Blocks that an earlier run has saved."""
    if not journal.exists():
        return 0
    try:
        found = json.loads(journal.read_text())
        owner, done = found["key"], int(found["blocks"])
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{journal} is damaged; remove it to begin anew") from None
    if partial.stat().st_size <= least_size:  # lost, or cut short in copying
        return 0
    if done and owner != key:
        raise UsageError(f"{partial} belongs to other sequences or options; remove it or choose another path")
    return done


def _reserve(file: Path) -> None:
    """Space on the disk: where it ends, writing to mapped memory would kill the process."""
    with open(file, "r+b") as handle:
        try:
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
        except OSError:
            file.unlink()
            raise


def _pairs(at: slice, over: slice, mirrored: bool) -> int:
    n, m = at.stop - at.start, over.stop - over.start
    return n * (n - 1) // 2 if mirrored and at == over else n * m


def _digest(x: Any, y: Any, block: int, options: dict[str, Any]) -> str:
    """Of everything that the result depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for value in (x, y):
        for part in value if isinstance(value, (list, tuple)) else [value]:
            array = part.detach().cpu() if isinstance(part, torch.Tensor) else part
            if isinstance(array, torch.Tensor):
                array = array.float().numpy() if array.dtype == torch.bfloat16 else array.numpy()
            array = np.ascontiguousarray(array) if array is not None else np.zeros(0)
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(memoryview(array).cast("B") if array.size else b"")
        digest.update(b"|")
    settings = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in options.items()}
    digest.update(json.dumps([block, settings], sort_keys=True, default=str).encode())
    return digest.hexdigest()
