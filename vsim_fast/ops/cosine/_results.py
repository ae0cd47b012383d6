"""What the reducing forms return, and how statistics of blocks become statistics of the whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class SimilarityStats(NamedTuple):
    """Statistics over all entries of each similarity matrix, diagonal included."""

    mean: Tensor
    """float64, one per matrix: [P] for positions, [T] for frames, [] for the frame similarity."""
    std: Tensor
    """Population standard deviation."""
    min: Tensor
    max: Tensor
    count: int
    """Entries per matrix."""


class TopMatches(NamedTuple):
    """The k best partners of each row, the row itself left out, best first; equal scores in any order."""

    values: Tensor
    """[..., M, k] cosines, float32 (float64 for float64 input)."""
    indices: Tensor
    """[..., M, k] int64."""


class BestMatch(NamedTuple):
    """For each row the most similar row of the other side; equal scores give the lowest index."""

    scores_ab: Tensor
    """[..., Pa] best cosine of each row of a, float32 (float64 for float64 input)."""
    index_ab: Tensor
    """[..., Pa] int64 row of b."""
    scores_ba: Tensor
    """[..., Pb]"""
    index_ba: Tensor
    """[..., Pb] int64 row of a."""


def pool(mean: Tensor, squares: Tensor, low: Tensor, high: Tensor, count: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Mean, std, min and max of unions along `dim` of parts with `count` entries and `squares` = sum of squared
    deviations from their own mean. In float64, without cancellation however small the deviation (Chan et al. 1979)."""
    total = count.expand_as(mean).sum(dim)
    overall = (mean * count).sum(dim) / total
    spread = (squares + count * (mean - overall.unsqueeze(dim)).square()).sum(dim)
    return overall, (spread / total).sqrt(), low.amin(dim), high.amax(dim)


def merge_stats(parts: Iterable[SimilarityStats]) -> SimilarityStats:
    """Statistics over every entry of every matrix in `parts`: scalars, on the CPU. The parts may differ in `count`."""
    columns = [
        torch.stack([part.mean, part.std, part.min, part.max, torch.full_like(part.mean, part.count)])
        .cpu()
        .reshape(5, -1)
        for part in parts
    ]
    if not columns:
        raise ValueError("parts must hold at least one SimilarityStats, got none")
    mean, std, low, high, count = torch.cat(columns, 1)
    return SimilarityStats(*pool(mean, std.square() * count, low, high, count, 0), count=int(count.sum()))
