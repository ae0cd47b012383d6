"""What the reducing forms return, and how statistics of blocks become statistics of the whole."""

from __future__ import annotations

from typing import NamedTuple

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


def only(result: SimilarityStats | TopMatches) -> SimilarityStats | TopMatches:
    """Of a batch of one matrix: the result without that axis."""
    return type(result)(*(field[0] if isinstance(field, Tensor) else field for field in result))


def pool(mean: Tensor, squares: Tensor, low: Tensor, high: Tensor, count: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Mean, std, min and max of unions along `dim` of parts with `count` entries and `squares` = sum of squared
    deviations from their own mean. In float64, without cancellation however small the deviation (Chan et al. 1979)."""
    total = count.expand_as(mean).sum(dim)
    overall = (mean * count).sum(dim) / total
    spread = (squares + count * (mean - overall.unsqueeze(dim)).square()).sum(dim)
    return overall, (spread / total).sqrt(), low.amin(dim), high.amax(dim)
