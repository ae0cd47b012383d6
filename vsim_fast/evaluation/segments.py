"""Segment AP: how well the times are found, not only the pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vsim_fast.evaluation.pairs import Pairs, Truth, keys_of, numbered
from vsim_fast.evaluation.resampling import Sums, ratio


@dataclass(frozen=True)
class Segments:
    """What each predicted segment adds to the lengths that segment AP is made of."""

    query: np.ndarray  # int64 [N]
    score: np.ndarray  # float64 [N]
    added: np.ndarray  # float64 [N, 4] seconds: common with the truth on the query's and ref's axis, predicted likewise
    true_lengths: np.ndarray  # float64 [Q, 2] seconds of each query's true segments, on either axis

    def of(self, members: np.ndarray) -> Segments:
        rows = members[self.query]
        return Segments(
            self.query[rows], self.score[rows], self.added[rows], np.where(members[:, None], self.true_lengths, 0)
        )

    @classmethod
    def build(cls, pairs: Pairs, truth: Truth, queries: dict[str, int]) -> Segments:
        refs = numbered(truth.ref_id, pairs.ref_id)
        query, key = keys_of(pairs, queries, refs)
        true_query, true_key = keys_of(truth, queries, refs)
        true_lengths = np.zeros((len(queries), 2))
        truths: dict[int, np.ndarray] = {}
        for number, rows in _rows_by(true_key):
            if truth.ref_id[rows[0]]:
                truths[number] = truth.times[rows]
                for axis in range(2):
                    union = _union(truths[number][:, 2 * axis : 2 * axis + 2].tolist())
                    true_lengths[true_query[rows[0]], axis] += _length(union)
        added = np.zeros((len(pairs), 4))
        added[:, 2:] = pairs.times[:, 1::2] - pairs.times[:, ::2]  # right for pairs of one segment and no truth
        order = np.argsort(-pairs.score, kind="stable")
        for number, rows in _rows_by(key[order]):
            if number in truths or len(rows) > 1:
                added[order[rows]] = _added_lengths(pairs.times[order[rows]], truths.get(number))
        return cls(query, pairs.score, added, true_lengths)


def _rows_by(key: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each key with its rows, which stay in their order."""
    order = np.argsort(key, kind="stable")
    numbers, starts = np.unique(key[order], return_index=True)
    return zip(numbers.tolist(), np.split(order, starts[1:]), strict=False)  # split of nothing is one empty part


def _added_lengths(predicted: np.ndarray, true: np.ndarray | None) -> np.ndarray:
    """What each of one pair's predictions [n, 4], in their order, adds to the lengths: [n, 4] as `Segments.added`."""
    lengths = np.zeros((len(predicted) + 1, 4))
    covered: list[list[list[float]]] = [[], []]
    touched = np.zeros(0 if true is None else len(true), dtype=bool)
    for row, times in enumerate(predicted, start=1):
        if true is not None:
            overlap = np.minimum(true[:, 1::2], times[1::2]) - np.maximum(true[:, ::2], times[::2])
            touched |= (overlap > 0).all(axis=1)
        for axis in range(2):
            part = slice(2 * axis, 2 * axis + 2)
            covered[axis] = _union([*covered[axis], times[part].tolist()])
            lengths[row, 2 + axis] = _length(covered[axis])
            if touched.any():
                lengths[row, axis] = _common(covered[axis], _union(true[touched, part].tolist()))
    return np.diff(lengths, axis=0)


def _union(intervals: list[list[float]]) -> list[list[float]]:
    """The same points as disjoint intervals in rising order."""
    disjoint: list[list[float]] = []
    for start, end in sorted(intervals):
        if disjoint and start <= disjoint[-1][1]:
            disjoint[-1] = [disjoint[-1][0], max(disjoint[-1][1], end)]
        else:
            disjoint.append([start, end])
    return disjoint


def _length(disjoint: list[list[float]]) -> float:
    return sum(end - start for start, end in disjoint)


def _common(a: list[list[float]], b: list[list[float]]) -> float:
    """Length of the intersection of two unions."""
    total, i, j = 0.0, 0, 0
    while i < len(a) and j < len(b):
        total += max(0.0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return total


class SegmentCurve:
    """Segment AP as a function of the bases' weights. Recall rises only where something common was added."""

    def __init__(self, segments: Segments, base_of: np.ndarray, bases: int):
        levels = -np.unique(-segments.score[(segments.added[:, :2] > 0).any(axis=1)])
        slot = np.searchsorted(-levels, -segments.score, "left")
        rows = slot < len(levels)  # what scores below the last rise changes nothing
        self.sums = Sums(slot[rows], base_of[segments.query[rows]], len(levels), bases, segments.added[rows])
        having = segments.true_lengths.any(axis=1)
        lengths = (np.bincount(base_of[having], segments.true_lengths[having, axis], bases) for axis in range(2))
        self.true_lengths = np.stack(list(lengths))  # [2, bases]

    def ap(self, weights: np.ndarray) -> np.ndarray:
        """[R] for weights [bases, R]; NaN where there is no true length."""
        sums = self.sums.weighted(weights).cumsum(axis=0)  # [K, 4, R]
        common, predicted = sums[:, :2], sums[:, 2:]
        precision = np.sqrt(ratio(common, predicted, 0.0).prod(axis=1))
        recall = np.sqrt(ratio(common, self.true_lengths @ weights).prod(axis=1))
        return np.where(
            (self.true_lengths @ weights > 0).all(axis=0),
            (precision * np.diff(recall, axis=0, prepend=0)).sum(axis=0),
            math.nan,
        )
