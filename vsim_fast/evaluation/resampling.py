"""Bootstrap over bases at the price of a few sums: sort once, count per base, weigh the counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CHUNK = 1 << 22
"""Numbers held at once while resampling (32 MiB)."""


@dataclass(frozen=True)
class Measure:
    """A value with its 95 % bootstrap interval; None where it is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Sums:
    """Rows summed per (slot, base), so that a resample weighs few numbers instead of every pair."""

    def __init__(self, slot: np.ndarray, base: np.ndarray, slots: int, bases: int, values: np.ndarray | None = None):
        key, row = np.unique(slot * bases + base, return_inverse=True)
        columns = [None] if values is None else list(values.T)
        self.values = np.stack([np.bincount(row, column, len(key)) for column in columns], axis=1)  # [E, C]
        self.base, self.slots = key % bases, slots
        self.present, self.starts = np.unique(key // bases, return_index=True)

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """[slots, C, R] for weights [bases, R]."""
        sums = np.zeros((self.slots, self.values.shape[1], weights.shape[1]))
        if len(self.present):
            rows = self.values[:, :, None] * weights[self.base][:, None, :]
            sums[self.present] = np.add.reduceat(rows, self.starts, axis=0)
        return sums


def ratio(a: np.ndarray, b: np.ndarray, undefined: float = math.nan) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.broadcast_shapes(a.shape, b.shape), undefined), where=b != 0)


def with_intervals(
    measures: Callable[[np.ndarray], dict[str, np.ndarray]], bases: int, cost: int, bootstrap: int, seed: int
) -> dict[str, Measure]:
    """Values at weight 1, and percentiles over resamples of the bases; none where there is one base to resample."""
    values = {name: value[0] for name, value in measures(np.ones((bases, 1))).items()}
    replicates: dict[str, list[np.ndarray]] = {name: [] for name in values}
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // max(cost, bases))
    for start in range(0, bootstrap if bases > 1 else 0, step):
        counts = rng.multinomial(bases, np.full(bases, 1 / bases), size=min(step, bootstrap - start))
        for name, value in measures(np.ascontiguousarray(counts.T, dtype=np.float64)).items():
            replicates[name].append(value)
    found = {}
    for name, value in values.items():
        drawn = np.concatenate(replicates[name]) if replicates[name] else np.zeros(0)
        drawn = drawn[np.isfinite(drawn)]  # a resample may hold no true pair
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) and np.isfinite(value) else (math.nan, math.nan)
        found[name] = Measure(*(float(x) if np.isfinite(x) else None for x in (value, low, high)))
    return found
