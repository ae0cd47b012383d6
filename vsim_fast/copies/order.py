"""Order and coverage: which stretch of one video runs like which stretch of the other, forwards or backwards.

Both videos' small pictures are cut to the part of the scene that they share, so that cropping, bars, turns and insets
are gone before time is looked at. A stretch is a straight line: a speed and an offset.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.copies.features import PICTURE

SPEEDS = (0.5, 0.57, 0.67, 0.75, 0.8, 0.9, 1.0, 1.11, 1.25, 1.33, 1.5, 1.75, 2.0)
GRID = 16
"""Samples a side of the shared part."""
SAME_PICTURE = 0.5
"""Correlation of two pictures above which they show the same."""
WINDOW_SECONDS = 3.0
"""Motion is what differs from the mean over this long."""
LEAST_SECONDS = 0.5
"""Stretches shorter than this say nothing, unless a video is not longer."""
REFINED = 64
"""Lines whose correlation is computed exactly."""
OUTSIDE = -2.0
"""Gain where a line has left the matrix: less than any inside, no more than float32 sums of thousands can bear."""


class Stretch(NamedTuple):
    """A line through two videos, and how alike they are along it."""

    speed: float
    """Seconds of the reference in one of the query: at 2 the query shows everything twice as fast."""
    query: tuple[int, int]
    """First picture, and the one after the last."""
    ref: tuple[int, int]
    motion: float
    """Correlation of what changes, -1..1."""
    energies: tuple[float, float]
    """Root mean square of what changes in the query and in the reference, beside that of the picture."""
    likeness: float
    """Mean correlation of pictures, what stands included."""
    likenesses: list[float]
    """Of each of the query's pictures on the line, 0..1."""
    reversed: bool = False
    """The reference runs backwards."""


def shared_pictures(pictures: Tensor, box: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """float32 [T, GRID²], the part low..high (x, y within `box`) of pictures uint8 [T, PICTURE, PICTURE], normalised:
    every picture's mean is taken away, then all are divided by one number."""
    steps = (torch.arange(GRID) + 0.5) / GRID
    top, left, bottom, right = box
    x = left + (right - left) * (low[0] + (high[0] - low[0]) * steps)
    y = top + (bottom - top) * (low[1] + (high[1] - low[1]) * steps)
    rows, columns = _samples(y, (high[1] - low[1]) * (bottom - top)), _samples(x, (high[0] - low[0]) * (right - left))
    part = (rows @ pictures.float() @ columns.T).flatten(1)
    part = part - part.mean(1, keepdim=True)
    return part / part.square().mean().sqrt().clamp_min(1e-6)


def _samples(at: Tensor, width: Tensor) -> Tensor:
    """[GRID, PICTURE], rows sum to 1: triangles around positions 0..1, as wide as a sample, two pixels at least."""
    reach = max(float(width) / GRID * PICTURE, 2.0)
    centres = torch.arange(PICTURE) + 0.5
    weights = (1 - (centres - (at * PICTURE)[:, None]).abs() / reach).clamp_min(0) + 1e-9
    return weights / weights.sum(1, keepdim=True)


def best_stretch(x: Tensor, y: Tensor, x_seconds: float, y_seconds: float) -> Stretch | None:
    """The stretch along which two videos are most alike.

    Args:
        x, y: of `shared_pictures`, [Tx, D] and [Ty, D].  x_seconds, y_seconds: between two pictures.
    Returns:
        None where no stretch of LEAST_SECONDS is more alike than SAME_PICTURE.
    """
    likeness = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    moved_x, moved_y = _moving(x, x_seconds), _moving(y, y_seconds)
    motion = moved_x @ moved_y.T
    power_x, power_y = moved_x.square().sum(1), moved_y.square().sum(1)
    candidates = []
    for speed in SPEEDS:
        slope = speed * x_seconds / y_seconds
        lines = _Lines(likeness, slope)
        first, last, support = lines.segments(likeness - SAME_PICTURE)
        a, b = lines.sums(motion, first, last), lines.sums(power_x[:, None].expand_as(motion), first, last)
        c = lines.sums(power_y.expand_as(motion), first, last)
        moving = a / (b * c).sqrt().clamp_min(1e-6)
        rank = support * min(1.0, slope) * (0.25 + moving.clamp_min(0))  # as long as seen from either side
        top = rank.topk(min(REFINED, len(rank))).indices
        candidates += [
            (float(rank[k]), speed, slope, int(lines.offsets[k]), int(first[k]), int(last[k])) for k in top.tolist()
        ]
    least = min(max(2, round(LEAST_SECONDS / x_seconds)), len(x), len(y))
    best, best_rank = None, 0.0
    for _, speed, slope, offset, first, last in sorted(candidates, reverse=True)[:REFINED]:
        i = torch.arange(first, last)
        j = offset + (slope * i).round().long()
        if len(i) < least:
            continue
        stretch = _exact(x, y, likeness, i, j, speed, slope, offset)
        rank = (
            len(i) * min(1.0, slope) * (likeness[i, j].mean() - SAME_PICTURE).item() * (0.25 + max(0, stretch.motion))
        )
        if rank > best_rank:
            best, best_rank = stretch, rank
    return best


def _moving(x: Tensor, step: float) -> Tensor:
    """Pictures less their mean over WINDOW_SECONDS."""
    reach = max(1, round(WINDOW_SECONDS / 2 / step))
    padded = torch.cat([x.new_zeros(1, x.shape[1]), x.cumsum(0)])
    index = torch.arange(len(x))
    low, high = (index - reach).clamp_min(0), (index + reach + 1).clamp_max(len(x))
    return x - (padded[high] - padded[low]) / (high - low)[:, None]


class _Lines:
    """All lines of one slope through a matrix [Tx, Ty]: column offset + round(slope · row)."""

    def __init__(self, matrix: Tensor, slope: float):
        rows, columns = matrix.shape
        steps = (slope * torch.arange(rows)).round().long()
        self.offsets = torch.arange(-int(steps[-1]), columns)  # from the same rounding, so that no line is all outside
        self.index = self.offsets + steps[:, None]  # [Tx, L]
        self.inside = (self.index >= 0) & (self.index < columns)
        self.index = self.index.clamp(0, columns - 1)

    def along(self, matrix: Tensor) -> Tensor:
        return matrix.gather(1, self.index) * self.inside

    def segments(self, gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The run of each line with the largest sum of `gain`: first row, row after the last, sum; [L] each."""
        inside = torch.where(self.inside, gain.gather(1, self.index), torch.full((), OUTSIDE))
        total = F.pad(inside.cumsum(0), (0, 0, 1, 0))  # [Tx + 1, L]
        least, first = total[:-1].cummin(0)
        support, last = (total[1:] - least).max(0)
        return first.gather(0, last[None])[0], last + 1, support

    def sums(self, matrix: Tensor, first: Tensor, last: Tensor) -> Tensor:
        total = F.pad(self.along(matrix).cumsum(0), (0, 0, 1, 0))
        return total.gather(0, last[None])[0] - total.gather(0, first[None])[0]


def _exact(
    x: Tensor, y: Tensor, likeness: Tensor, i: Tensor, j: Tensor, speed: float, slope: float, offset: int
) -> Stretch:
    like = likeness[i, j]
    a, b = x[i], y[j]
    if slope < 1:  # a picture of y stands beside several of x, of which one was taken at its time
        once = torch.arange(int(j[0]), int(j[-1]) + 1)
        a, b = x[((once - offset) / slope).round().long().clamp(int(i[0]), int(i[-1]))], y[once]
    a, b = a - a.mean(0), b - b.mean(0)
    power_a, power_b = a.square().sum(), b.square().sum()
    motion = float((a * b).sum() / (power_a * power_b).sqrt().clamp_min(1e-9))
    energies = tuple(float((power / a.numel()).sqrt()) for power in (power_a, power_b))
    ends = (int(i[0]), int(i[-1]) + 1), (int(j[0]), int(j[-1]) + 1)
    return Stretch(speed, *ends, motion, energies, float(like.mean()), like.clamp(0, 1).tolist())
