"""One vector per video in one file that can be mapped: a cache, made again from the feature files when in doubt.

embeddings.<settings>.npy     float32 [N, D]
embeddings.<settings>.rows    a line per row, which feature file it was taken from; written last, so that rows
                              without a line are rows of a run that was killed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vsim_fast.store import atomic_path, output_errors, sync

OFFSET = 128
"""Bytes before the first row: a .npy header of this length, which any N fits."""


class EmbeddingFile:
    def __init__(self, folder: Path, settings_hash: str):
        self.path = folder / f"embeddings.{settings_hash}.npy"
        self.lines_path = self.path.with_suffix(".rows")

    def read(self) -> tuple[list[str], np.ndarray]:
        """The lines, and float32 [N, D], mapped (writing to it changes memory alone)."""
        try:
            with open(self.path, "rb") as file:
                np.lib.format.read_magic(file)
                (_, width), _, dtype = np.lib.format.read_array_header_1_0(file)
                if file.tell() != OFFSET or dtype != np.dtype("<f4") or width < 1:
                    return [], np.zeros((0, 0), np.float32)
                room = (self.path.stat().st_size - OFFSET) // (4 * width)
            text = self.lines_path.read_text()
            *lines, _ = text.split("\n")  # what follows the last newline was cut off
            del lines[room:]
            rows = np.zeros((0, width), np.float32)
            if lines:
                rows = np.memmap(self.path, "<f4", "c", OFFSET, (len(lines), width))
            if self.lines_path.read_text() != text:  # a writing run came between
                return [], np.zeros((0, 0), np.float32)
        except (OSError, ValueError):
            return [], np.zeros((0, 0), np.float32)
        return lines, rows

    def update(self, wanted: Sequence[str], load: Callable[[int], np.ndarray | None]) -> None:
        """Have the rows `wanted`; `load` gives float32 [D] of the n-th, or None.  Raises: OutputError."""
        lines, rows = self.read()
        if lines == wanted:
            return
        if lines and lines == wanted[: len(lines)]:
            added, vectors = _loaded(wanted[len(lines) :], lambda n: load(len(lines) + n), rows.shape[1])
            with output_errors(self.path), open(self.path, "r+b") as file:
                file.seek(OFFSET + rows.nbytes)
                file.write(vectors.tobytes())
                file.truncate()
                file.seek(0)
                file.write(_header(len(rows) + len(vectors), rows.shape[1]))
            with output_errors(self.lines_path), open(self.lines_path, "r+b") as file:
                sync(self.path)
                file.seek(sum(map(len, lines)) + len(lines))
                file.write("".join(f"{line}\n" for line in added).encode())
                file.truncate()
            return
        kept = dict(zip(lines, rows, strict=True))
        added, vectors = _loaded(wanted, lambda n: load(n) if (row := kept.get(wanted[n])) is None else row, None)
        with output_errors(self.lines_path):
            self.lines_path.unlink(missing_ok=True)  # so that no line speaks of another file's row
        with atomic_path(self.path) as partial:
            partial.write_bytes(_header(*vectors.shape) + vectors.tobytes())
        with atomic_path(self.lines_path) as partial:
            partial.write_text("".join(f"{line}\n" for line in added))


def gathered(
    wanted: Sequence[str], lines: list[str], rows: np.ndarray, load: Callable[[int], np.ndarray | None]
) -> tuple[np.ndarray, list[int]]:
    """float32 [N, D] of those of `wanted` that can be had, with their numbers; mapped if the file has just these."""
    if lines == wanted:
        return rows, list(range(len(wanted)))
    kept = dict(zip(lines, rows, strict=True))
    found = [kept[line] if line in kept else load(n) for n, line in enumerate(wanted)]
    numbers = [n for n, row in enumerate(found) if row is not None]
    return _stacked([found[n] for n in numbers]), numbers


def _loaded(
    wanted: Sequence[str], load: Callable[[int], np.ndarray | None], width: int | None
) -> tuple[list[str], np.ndarray]:
    found = [(line, row) for n, line in enumerate(wanted) if (row := load(n)) is not None]
    return [line for line, _ in found], _stacked([row for _, row in found], width)


def _stacked(rows: list[np.ndarray], width: int | None = None) -> np.ndarray:
    return np.stack(rows).astype(np.float32, copy=False) if rows else np.zeros((0, width or 1), np.float32)


def _header(count: int, width: int) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {width}), }}"
    return b"\x93NUMPY\x01\x00" + (OFFSET - 10).to_bytes(2, "little") + text.ljust(OFFSET - 11).encode() + b"\n"
