"""Which frame of one video happens at which frame of another, and whether time runs the same way. Tensors only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vsim_fast.ops import dtw, dtw_path

REGIONS = 4
"""Patch tokens are averaged over REGIONS × REGIONS parts of the frame: small shifts are forgiven, places are kept."""
COST_FLOOR = 1e-3
"""Costs below this are rounding; unrelated frames cost about 1."""


@dataclass(frozen=True)
class Alignment:
    """Two videos laid over each other by dynamic time warping."""

    cost: Tensor
    """float32 [Ta, Tb]: half the squared distance of frame changes; 0 the same change, around 1 unrelated ones."""
    path: Tensor
    """int64 [L, 2], frames (i, j) that belong together, from the first to the last of both videos."""
    forward: float
    """Mean cost along the path."""
    backward: float
    """The same against the second video played backwards."""

    @property
    def order(self) -> float:
        """1: the second video runs the same way; 0: it runs backwards; 0.5: neither fits better than the other.

        backward² / (forward² + backward²). Unrelated videos come out at 0.5, as does motion that looks the same
        backwards.
        """
        forward, backward = self.forward + COST_FLOOR, self.backward + COST_FLOOR
        return backward**2 / (forward**2 + backward**2)

    @property
    def match(self) -> float:
        """How much of what changes in the picture is the same along the path: 1 all of it, 0 none."""
        return min(1.0, max(0.0, 1 - self.forward))


def layout_descriptors(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Frames as the mean patch token of each of 4×4 regions, side by side.

    Args:
        patches: [T, P, D], row-major over `grid`, not normalised.
    Returns:
        float32 [T, 16 · D], on the device of `patches`.
    """
    frames, _, dim = patches.shape
    maps = patches.float().reshape(frames, *grid, dim).permute(0, 3, 1, 2)
    return torch.nn.functional.adaptive_avg_pool2d(maps, REGIONS).flatten(1)


def changes(descriptors: Tensor) -> Tensor:
    """What changes: descriptors [T, D] less their mean over time, scaled to a mean square length of 1; else zeros."""
    centred = descriptors - descriptors.mean(0)
    return centred / centred.square().sum(1).mean().sqrt().clamp_min(1e-12)


def change_cost(x: Tensor, y: Tensor) -> Tensor:
    """float32 [Ta, Tb], half the squared distances of the changes of two videos, [Ta, D] and [Tb, D]."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return squares.clamp_min(0) / 2


def align(x: Tensor, y: Tensor) -> Alignment:
    """Align two videos by what changes in them.

    Each video's mean frame is subtracted: what stands still says nothing about the order of time. Then the frames are
    warped onto each other, forwards, and once more with the second video reversed.

    Args:
        x, y: descriptors [Ta, D] and [Tb, D] of frames in order of time, see `layout_descriptors`.
    """
    cost = change_cost(changes(x), changes(y)).cpu()
    forward, path = dtw_path(cost, cost="precomputed", normalize="path")
    backward = dtw(cost.flip(1), cost="precomputed", normalize="path")
    return Alignment(cost, path, float(forward), float(backward))


def reversal_contrast(x: Tensor) -> float:
    """How far a video is from its own reverse, relative to what its frames hold: sqrt(backward) · spread / size.

    0 where nothing moves, and where motion looks the same backwards. The order of such a video cannot be told.

    Args:
        x: descriptors [T, D]. `spread` is their RMS distance from their mean, `size` their RMS length.
    """
    size = x.square().sum(1).mean().sqrt()
    spread = (x - x.mean(0)).square().sum(1).mean().sqrt()
    if len(x) < 2 or spread <= 1e-6 * size:
        return 0.0
    moved = changes(x)
    backward = dtw(change_cost(moved, moved.flip(0)).cpu(), cost="precomputed", normalize="path")
    return float(backward.sqrt() * (spread / size).cpu())
