"""Where one picture lies in another: a stretch and a shift along each axis, voted for by matched patches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE = 1 / 14
"""How far a matched patch may lie from where the transform puts it, in sides of the picture; patches are 1/16 wide."""
STRETCH = (0.3, 3.4)
"""Least and largest ratio of sizes."""
SKEW = 2.1
"""Largest ratio between the stretch along x and along y."""
TRIALS = 400
LEAST_DISTANCE = 0.15
"""Two matches closer than this along an axis say nothing about its stretch."""


class Placement(NamedTuple):
    """x_ref = stretch · x_query + shift, per axis (x, y), in sides of each picture."""

    stretch: Tensor
    """float32 [2]."""
    shift: Tensor
    """float32 [2]."""
    agreement: float
    """Weight of the matches that it explains, of 1."""

    def common(self) -> tuple[Tensor, Tensor]:
        """The part of the query's picture that the reference shows too: its lower and upper corner, [2] each."""
        low = torch.maximum(torch.zeros(2), -self.shift / self.stretch)
        return low, torch.minimum(torch.ones(2), (1 - self.shift) / self.stretch)

    def apply(self, points: Tensor) -> Tensor:
        return points * self.stretch + self.shift


def place(query: Tensor, ref: Tensor, weights: Tensor, generator: torch.Generator) -> Placement:
    """The placement that explains most of the matched points: random pairs of matches, then least squares.

    Args:
        query, ref: float32 [N, 2], x and y in 0..1 of points matched to each other.
        weights: float32 [N], not negative.
    """
    nowhere = Placement(torch.ones(2), torch.zeros(2), 0.0)
    total = float(weights.sum())
    if len(weights) < 4 or total <= 0:
        return nowhere
    i, j = torch.multinomial(weights, 2 * TRIALS, replacement=True, generator=generator).view(2, TRIALS)
    apart = query[i] - query[j]
    possible = apart.abs().amin(1) > LEAST_DISTANCE
    i, j, apart = i[possible], j[possible], apart[possible]
    stretch = (ref[i] - ref[j]) / apart
    stretch = torch.cat([stretch, torch.ones(1, 2)])  # unchanged is always tried
    shift = torch.cat([ref[i] - stretch[:-1] * query[i], torch.zeros(1, 2)])
    possible = _possible(stretch)
    stretch, shift = stretch[possible], shift[possible]
    error = (query * stretch[:, None] + shift[:, None] - ref).abs()  # [H, N, 2]
    inside = (error < TOLERANCE * stretch[:, None].clamp_min(1)).all(2)
    best = int((inside.float() @ weights).argmax())
    stretch, shift, inside = stretch[best], shift[best], inside[best]
    for _ in range(3):
        refined = _least_squares(query[inside], ref[inside], weights[inside])
        if refined is None:
            break
        moved = ((query * refined[0] + refined[1] - ref).abs() < TOLERANCE * refined[0].clamp_min(1)).all(1)
        if weights[moved].sum() < weights[inside].sum():
            break
        (stretch, shift), inside = refined, moved
    return Placement(stretch, shift, float(weights[inside].sum()) / total)


def _possible(stretch: Tensor) -> Tensor:
    in_range = ((stretch > STRETCH[0]) & (stretch < STRETCH[1])).all(1)
    return in_range & (stretch[:, 0] < SKEW * stretch[:, 1]) & (stretch[:, 1] < SKEW * stretch[:, 0])


def _least_squares(query: Tensor, ref: Tensor, weights: Tensor) -> tuple[Tensor, Tensor] | None:
    """Weighted fit of stretch and shift; None where the points do not spread enough to tell."""
    if len(weights) < 4:
        return None
    share = (weights / weights.sum())[:, None]
    centre, target = (share * query).sum(0), (share * ref).sum(0)
    spread = (share * (query - centre).square()).sum(0)
    if bool((spread < 2e-3).any()):
        return None
    stretch = (share * (query - centre) * (ref - target)).sum(0) / spread
    if not bool(_possible(stretch[None])):
        return None
    return stretch, target - stretch * centre
