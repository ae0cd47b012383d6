"""The k best inner products of each query among N vectors, and all pairs of vectors above a threshold.

Exact, and in blocks: no matrix of queries × vectors is ever stored.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vsim_fast.ops._checks import check_same, check_tensor
from vsim_fast.ops._dispatch import choose

__all__ = ["Pairs", "TopK", "pairs_above", "top_k"]

MOST_DIMENSIONS = 1 << 16
LONGEST = 1e18
"""Vectors must be shorter, so that no product overflows float32."""
LONGEST_LIST = 128
"""Of what a Triton program keeps in registers per query."""


class TopK(NamedTuple):
    """The best vectors of each query, best first; of equal scores the smaller index first."""

    scores: Tensor
    """[Q, min(k, N)] float32 inner products (float64 for float64 input to the reference)."""
    index: Tensor
    """[Q, min(k, N)] int64 rows of the vectors."""


class Pairs(NamedTuple):
    """Pairs i < j of vectors, by i, then j."""

    index: Tensor
    """[M, 2] int64."""
    scores: Tensor
    """[M] float32 inner products (float64 for float64 input to the reference)."""


def top_k(queries: Tensor, vectors: Tensor, k: int, *, backend: str | None = None) -> TopK:
    """The k vectors of largest inner product with each query, exactly.

    Args:
        queries: [Q, D], of the dtype and on the device of `vectors`. Normalise both for cosines.
        vectors: [N, D] float16/bfloat16/float32 (float64: in full only by the reference), D in 1 … 65536; contiguous
            rows are read where they lie, a memory map too (`torch.from_numpy`).
        k: at least 1; more than N gives N.
        backend: "cpp" (CPU), "triton" (CUDA; k up to 128) or "reference"; None picks the fastest that runs.
    Returns:
        `TopK`. Scores are float32 sums of the products of the numbers given: vectors whose scores differ by less than
        such sums round off may change places. A zero vector scores 0 and is one of them.
    Raises:
        ValueError: shapes that do not fit, k, a row that holds NaN or infinity or is longer than 1e18 (it is
            named).  TypeError: dtype.  RuntimeError: the backend cannot run.
    Memory: the results. "cpp": 0.6 MiB of scratch per thread; copies vectors that are neither float16 nor float32.
        "triton": 8·k bytes per query and program. "reference": a block of vectors in float32 and its scores.
    Source: the bound that spares "cpp" nearly all float32 products is in csrc/top_k.h.
    """
    check_vectors(vectors)
    check_tensor("queries", queries, "[Q, D]")
    check_same("queries and vectors", queries, vectors)
    if queries.shape[1] != vectors.shape[1]:
        raise ValueError(
            f"queries and vectors must agree in D, got shapes {tuple(queries.shape)} and {tuple(vectors.shape)}"
        )
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k!r}")
    lengths = torch.linalg.vector_norm(queries, dim=1, dtype=torch.promote_types(queries.dtype, torch.float32))
    if (wrong := (~(lengths < LONGEST)).nonzero()).numel():
        raise ValueError(f"queries must be finite and shorter than {LONGEST:g}, row {int(wrong[0])} is not")
    if backend is None and vectors.is_cuda and k > LONGEST_LIST:
        backend = "reference"  # lists too long for registers
    return choose("top_k", vectors.device.type, backend)(queries, vectors, min(k, len(vectors)))


def pairs_above(vectors: Tensor, threshold: float, *, most: int = 10_000_000, backend: str | None = None) -> Pairs:
    """All pairs of vectors whose inner product is at least `threshold`, exactly: a self-join in blocks.

    Args:
        vectors: [N, D], as for `top_k`.
        threshold: of the inner product as float32 rounds it.
        most: more pairs than this are refused.
        backend: "cpp" (CPU) or "reference"; None picks the fastest that runs on the device.
    Raises:
        ValueError: shape, threshold, NaN or infinity in a vector, more than `most` pairs.  TypeError: dtype.
        RuntimeError: the backend cannot run.
    Memory: the pairs, 24 bytes each, twice while they are put in order; scratch as for `top_k`.
    """
    check_vectors(vectors)
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be finite, got {threshold}")
    return choose("pairs_above", vectors.device.type, backend)(vectors, float(threshold), most)


def check_vectors(vectors: object) -> None:
    check_tensor("vectors", vectors, "[N, D]")
    if not 1 <= vectors.shape[1] <= MOST_DIMENSIONS:
        raise ValueError(f"vectors must have D in 1 … {MOST_DIMENSIONS}, got shape {tuple(vectors.shape)}")


def refuse_vector(row: int) -> None:
    raise ValueError(f"vectors must be finite and shorter than {LONGEST:g}, row {row} is not")


def refuse_number(most: int) -> None:
    raise ValueError(f"pairs_above: more than most={most} pairs reach the threshold; raise the threshold or `most`")
