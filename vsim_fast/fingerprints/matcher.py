"""Trajectories compared by dynamic time warping: where, when and in which order, whatever the tempo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vsim_fast.fingerprints.sequences import as_sequence, equal_parts, jitter
from vsim_fast.ops import dtw, dtw_path
from vsim_fast.ops.dtw import WarpingPath

STEPS = 64
"""Equal parts that both clips are reduced or interpolated to. Between unequal lengths a path could otherwise repeat the
one place where two trajectories meet until the rest of the way no longer counts."""
HALF = 0.1
"""Mean distance of matched parts, as a share of the larger extent, at which the score is 0.5."""
SMALLEST_EXTENT = 0.02
"""Picture sides. What moves less is not magnified."""
NOISE_EXTENT = 20
"""Extent that per-frame noise is given, in its standard deviations: about three times what it spans by itself."""


class DTWTrajectoryMatcher:
    """Distance and similarity of trajectories of any two lengths.

    The mended distance (default) is the mean distance of matched parts, of 64 equal ones of either clip: the Euclidean
    costs along the optimal path divided by its number of cells. So tempo and length do not count, order does.

    Args:
        normalize_trajectory: move both boxes to a common centre and divide both trajectories by one common length: the
            larger side of the larger box, or 20 times the per-frame noise, or 0.02 picture sides, whichever is most.
            So neither place in the picture nor common size counts, and a point at rest stays at rest.
            False: coordinates as they are.
        compat: the published formulas: every axis of each trajectory stretched to [0, 1], costs summed along the path.
    """

    def __init__(self, normalize_trajectory: bool = True, *, compat: bool = False):
        self.normalize_trajectory = normalize_trajectory
        self.compat = compat

    def distance(self, traj1: Any, traj2: Any) -> float:
        """Distance of two trajectories; 0: the same, whatever the tempo (and the place, where normalised).

        Args:
            traj1, traj2: [T, 2] (x, y) in picture sides, T >= 2 (compat: 1), NumPy or torch, T may differ.
        Raises:
            ValueError: shape, too few frames, NaN or infinity.  TypeError: not a floating-point array.
        """
        return self.distances([traj1], [traj2]).item()

    dtw_distance = distance

    def distances(self, first: Sequence[Any], second: Sequence[Any]) -> Tensor:
        """[N] distances of N pairs, first[i] to second[i], in one call; on the device of the trajectories."""
        if len(first) != len(second):
            raise ValueError(f"first and second must pair up, got {len(first)} and {len(second)} trajectories")
        if len(first) == 0:
            return torch.zeros(0)
        pairs = [self._prepared(a, b) for a, b in zip(first, second, strict=True)]
        x, y = (list(side) for side in zip(*pairs, strict=True))
        return dtw(x, y, cost="euclidean", normalize=None if self.compat else "path")

    def compare(self, traj1: Any, traj2: Any) -> float:
        """Similarity in [0, 1]: 2^(-10 · distance).

        1: the same motion; 0.5: matched parts lie a tenth of the larger extent apart on average (without
        normalisation: a tenth of the picture); 0.1 and less: a third of it or more, as for opposite directions.
        compat: 1 / (1 + distance), which falls with length.
        """
        return self.similarity(self.distance(traj1, traj2))

    def similarity(self, distance: float) -> float:
        """What `compare` makes of a distance."""
        return 1 / (1 + distance) if self.compat else 2 ** (-distance / HALF)

    def path(self, traj1: Any, traj2: Any) -> WarpingPath:
        """The distance, and int64 [L, 2]: which frame of the first is matched to which of the second.

        Mended, these are the middle frames of the matched parts, so a frame of a clip below 64 frames may come twice.
        """
        x, y = self._prepared(traj1, traj2)
        distance, path = dtw_path(x, y, cost="euclidean", normalize=None if self.compat else "path")
        if not self.compat:
            frames = [_middle_frames(len(traj)).to(path.device) for traj in (traj1, traj2)]
            path = torch.stack([frame[part] for frame, part in zip(frames, path.unbind(1), strict=True)], dim=1)
        return WarpingPath(distance, path)

    def _prepared(self, traj1: Any, traj2: Any) -> tuple[Tensor, Tensor]:
        frames = 1 if self.compat else 2
        a = as_sequence("traj1", traj1, torch.float64, frames=frames, dim=2)
        b = as_sequence("traj2", traj2, torch.float64, frames=frames, dim=2).to(a.device)
        if self.compat:
            return (_stretched(a), _stretched(b)) if self.normalize_trajectory else (a, b)
        noise = NOISE_EXTENT * max(jitter(a), jitter(b))
        a, b = equal_parts(a, STEPS), equal_parts(b, STEPS)
        if not self.normalize_trajectory:
            return a, b
        scale = max(SMALLEST_EXTENT, noise, *((x.amax(0) - x.amin(0)).max().item() for x in (a, b)))
        return tuple((x - (x.amax(0) + x.amin(0)) / 2) / scale for x in (a, b))


def _stretched(x: Tensor) -> Tensor:
    """Both axes of [T, 2] to [0, 1]; one that does not change becomes 0."""
    return (x - x.amin(0)) / (x.amax(0) - x.amin(0)).clamp_min(1e-8)


def _middle_frames(frames: int) -> Tensor:
    """int64 [64], the frame in the middle of each part of a clip."""
    part = torch.arange(STEPS, dtype=torch.float64)
    if frames < STEPS:
        return (part * (frames - 1) / (STEPS - 1)).round().long()
    return ((part + 0.5) * frames / STEPS).long()
