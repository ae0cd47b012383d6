"""Position, frame and intra-frame similarity over blocks, and their statistics. Tensors in, never paths.

Frames arrive in batches. Intra-frame matrices need one frame, so they leave at once; position and frame similarity need
every frame, so patches are kept, compactly, until the last one has come.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.ops import frame_similarity, position_similarity
from vsim_fast.store import output_errors

Reduce = Literal["stats", "topk"]
BLOCK_BYTES = 64 << 20
"""Working memory of one block of positions."""
EXACT_BYTES = 512 << 20
"""Up to this size patches are kept as the encoder made them; beyond, as normalised float16 (cosine error ~1e-5)."""
MEMORY_BYTES = 1280 << 20
"""Beyond this size they are kept in a memory-mapped temporary file."""


@dataclass(frozen=True)
class Stats:
    """Statistics over all values of an array of similarity matrices."""

    shape: tuple[int, ...]
    mean: float
    std: float
    """Population standard deviation."""
    min: float
    max: float


class MatrixStats:
    """Mean, std, min and max of each matrix of an array, collected block by block."""

    def __init__(self) -> None:
        self._columns: list[np.ndarray] = []

    def add(self, mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> None:
        """Statistics of the next n matrices, [n] each."""
        self._columns.append(torch.stack((mean, std, low, high)).double().cpu().numpy())

    def add_matrices(self, matrices: Tensor) -> None:
        """The next n matrices, [n, side, side]."""
        flat = matrices.flatten(1)
        low, high = torch.aminmax(flat, dim=1)
        mean = flat.mean(1)
        # std_mean does the same several times slower on a CPU.
        std = torch.linalg.vector_norm(flat - mean[:, None], dim=1) / flat.shape[1] ** 0.5
        self.add(mean, std, low, high)

    @property
    def last_mean(self) -> Tensor:
        """float64 [n]: means of the matrices added last."""
        return torch.from_numpy(self._columns[-1][0])

    @property
    def columns(self) -> np.ndarray:
        """float64 [4, N]: mean, std, min, max of each matrix."""
        return np.concatenate(self._columns, axis=1)

    def overall(self, *shape: int) -> Stats:
        """Over all values of all matrices, which are equal in size; `shape` is that of the whole array."""
        mean, std, low, high = self.columns
        total = mean.mean()
        variance = (std**2 + (mean - total) ** 2).mean()
        return Stats(shape, float(total), float(np.sqrt(variance)), float(low.min()), float(high.max()))


class PatchStack:
    """Patches of all frames of a video, added batch by batch, for the analyses that need every frame.

    Args:
        frames: the most frames that will come.  patches, dim: P and D.
        dtype, device: of the patches that will come.
        scratch: file to map into memory where the stack is too large to hold.
    Raises:
        OutputError: no room for that file.
    """

    def __init__(self, frames: int, patches: int, dim: int, *, dtype: torch.dtype, device: torch.device, scratch: Path):
        self.length = 0
        self._means = torch.empty(frames, dim, dtype=torch.float32, device=device)
        size = frames * patches * dim
        fits_gpu = device.type == "cuda" and size * dtype.itemsize < torch.cuda.mem_get_info(device)[0] // 2
        self.exact = fits_gpu or size * dtype.itemsize <= EXACT_BYTES
        if self.exact:
            self.kept_as = f"{str(dtype).removeprefix('torch.')} in memory"
            self._patches = torch.empty(frames, patches, dim, dtype=dtype, device=device if fits_gpu else "cpu")
        elif size * 2 <= MEMORY_BYTES:
            self.kept_as = "normalised float16 in memory"
            self._patches = torch.empty(frames, patches, dim, dtype=torch.float16)
        else:
            self.kept_as = "normalised float16 in a temporary file"
            with output_errors(scratch), open(scratch, "wb") as file:
                if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and a deadly signal once mapped
                    os.posix_fallocate(file.fileno(), 0, 2 * size)
                file.truncate(2 * size)
            mapped = np.memmap(scratch, dtype=np.float16, mode="r+", shape=(frames, patches, dim))
            self._patches = torch.from_numpy(mapped)

    def add(self, patches: Tensor) -> None:
        """Append frames, [B, P, D], not normalised."""
        rows = slice(self.length, self.length + len(patches))
        # The frame embedding is the mean of un-normalised patches, so it is taken before they are normalised.
        self._means[rows] = patches.float().mean(1)
        self._patches[rows] = patches if self.exact else F.normalize(patches.float(), dim=-1)
        self.length += len(patches)

    def __len__(self) -> int:
        return self.length

    @property
    def patches(self) -> Tensor:
        """[T, P, D], normalised unless `exact`."""
        return self._patches[: self.length]

    def frame_similarity(self) -> Tensor:
        """float32 [T, T]."""
        return frame_similarity(self._means[: self.length, None])

    def position_slices(self) -> Iterator[Tensor]:
        """[T, n, D] for consecutive positions: n as many as BLOCK_BYTES hold with their [n, T, T] result."""
        patches = self.patches
        frames, positions, dim = patches.shape
        step = max(1, BLOCK_BYTES // (4 * frames * (dim + frames)))
        for start in range(0, positions, step):
            yield patches[:, start : start + step]


def matrices(op: Callable, patches: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`position_similarity` or `intra_frame_similarity` of [T, P, D] in `dtype`, whatever that of the patches."""
    frames, positions, _ = patches.shape
    shape = (positions, frames, frames) if op is position_similarity else (frames, positions, positions)
    return op(patches, out=torch.empty(shape, dtype=dtype, device=patches.device))


def mean_over_time(mean: Tensor, patches: Tensor) -> Tensor:
    """Mean similarity of each position with itself at *other* times.

    Args:
        mean: [n], means of the position matrices [n, T, T], diagonal included.
        patches: [T, n, D] they were made from; a zero patch has 0 on the diagonal, any other 1.
    Returns:
        [n]; 1 for a single frame.
    """
    frames = len(patches)
    if frames < 2:
        return torch.ones(len(mean), dtype=mean.dtype)
    diagonal = patches.any(-1).sum(0).cpu()
    return (mean * frames**2 - diagonal) / (frames * (frames - 1))
