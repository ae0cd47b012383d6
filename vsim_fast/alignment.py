"""Which frame of one video happens at which frame of another, and whether time runs the same way. Tensors only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.ops import dtw, dtw_path
from vsim_fast.records import FrameFeatures

QUARTERS = 2
"""Patch tokens are averaged over QUARTERS × QUARTERS parts of the frame: places are kept, small shifts forgiven."""
THUMBNAIL = 16
"""Pixels a side of the pictures that motion is measured on: noise averages out, things that move remain."""
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


def frame_descriptors(features: FrameFeatures) -> Tensor:
    """Frames as their CLS token and the mean patch tokens of their four quarters, half and half.

    Returns:
        float32 [T, D'], of length 1 (a frame of zeros stays zero), on the device of the features.
    """
    frames, _, dim = features.patches.shape
    maps = features.patches.float().reshape(frames, *features.grid, dim).permute(0, 3, 1, 2)
    parts = [F.adaptive_avg_pool2d(maps, QUARTERS).flatten(1)]
    if features.cls is not None:
        parts.append(features.cls.float())
    return torch.cat([F.normalize(part, dim=1) for part in parts], 1) / len(parts) ** 0.5


def thumbnail_descriptors(pixels: Tensor) -> Tensor:
    """Small pictures less their mean brightness, so that motion means the same whatever the encoder.

    Args:
        pixels: [T, 3, H, W], in any linear scale.
    Returns:
        float32 [T, 768], of length 1 (a frame of one colour: zero), on the device of the pixels.
    """
    small = F.adaptive_avg_pool2d(pixels.float(), THUMBNAIL).flatten(2)
    return F.normalize((small - small.mean(2, keepdim=True)).flatten(1), dim=1)


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
        x, y: descriptors [Ta, D] and [Tb, D] of frames in order of time, see `frame_descriptors`.
    """
    cost = change_cost(changes(x), changes(y)).cpu()
    forward, path = dtw_path(cost, cost="precomputed", normalize="path")
    backward = dtw(cost.flip(1), cost="precomputed", normalize="path")
    return Alignment(cost, path, float(forward), float(backward))


class Motion(NamedTuple):
    """How far a video is from its own reverse. Both are 0 where nothing changes or it looks the same backwards."""

    steady: float
    """sqrt(backward · covariance of neighbouring frames): noise has no memory and does not count. Nor does motion that
    is sampled so sparsely that neighbours have nothing in common."""
    total: float
    """sqrt(backward · variance of the frames): whatever changes, noise included."""


def motion(x: Tensor) -> Motion:
    """The motion of one video.

    Args:
        x: [T, D] of length 1, so that both numbers lie in 0..1, or near it; see `thumbnail_descriptors`.
    """
    centred = x - x.mean(0)
    variance = centred.square().sum(1).mean()
    if variance <= 1e-12:
        return Motion(0.0, 0.0)
    covariance = (centred[:-1] * centred[1:]).sum(1).mean().clamp_min(0) if len(x) > 2 else torch.zeros_like(variance)
    moved = centred / variance.sqrt()
    backward = dtw(change_cost(moved, moved.flip(0)).cpu(), cost="precomputed", normalize="path")
    return Motion(*(float((backward * part.cpu()).sqrt()) for part in (covariance, variance)))
