"""Trajectories compared by dynamic time warping: where, when and in which order, whatever the tempo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vsim_fast.fingerprints.sequences import as_sequence, jitter
from vsim_fast.ops import dtw, dtw_path
from vsim_fast.ops.dtw import WarpingPath

HALF = 0.1
"""Mean distance of matched frames, as a share of the larger extent, at which the score is 0.5."""
SMALLEST_EXTENT = 0.02
"""Picture sides. What moves less is not magnified."""
NOISE_EXTENT = 20
"""Extent that per-frame noise is given, in its standard deviations: about three times what it spans by itself."""


class DTWTrajectoryMatcher:
    """Distance and similarity of trajectories of any two lengths.

    The mended distance (default) is the mean distance of matched frames: the Euclidean costs along the optimal path
    divided by its number of cells, so that clips of different lengths compare.

    Args:
        normalize_trajectory: move both boxes to a common centre and divide both trajectories by one common length: the
            larger side of the larger box, or 20 times the per-frame noise, or 0.02 picture sides, whichever is most.
            So place and size in the picture do not count, but proportions do, and a point at rest stays at rest.
            False: coordinates as they are.
        compat: the published formulas: every axis of each trajectory stretched to [0, 1], costs summed along the path.
    """

    def __init__(self, normalize_trajectory: bool = True, *, compat: bool = False):
        self.normalize_trajectory = normalize_trajectory
        self.compat = compat

    def distance(self, traj1: Any, traj2: Any) -> float:
        """Distance of two trajectories; 0: the same up to tempo (and place and size, where normalised).

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
        """Similarity in (0, 1]: 2^(-10 · distance).

        1: the same motion; 0.5: matched frames lie a tenth of the larger extent apart on average (without
        normalisation: a tenth of the picture); 0.1 and less: a third of it or more, as for opposite directions.
        compat: 1 / (1 + distance), which falls with length.
        """
        return self.similarity(self.distance(traj1, traj2))

    def similarity(self, distance: float) -> float:
        """What `compare` makes of a distance."""
        return 1 / (1 + distance) if self.compat else 2 ** (-distance / HALF)

    def path(self, traj1: Any, traj2: Any) -> WarpingPath:
        """The distance, and int64 [L, 2]: which frame of the first is matched to which of the second."""
        x, y = self._prepared(traj1, traj2)
        return dtw_path(x, y, cost="euclidean", normalize=None if self.compat else "path")

    def _prepared(self, traj1: Any, traj2: Any) -> tuple[Tensor, Tensor]:
        frames = 1 if self.compat else 2
        a = as_sequence("traj1", traj1, frames=frames, dim=2)
        b = as_sequence("traj2", traj2, frames=frames, dim=2)
        a, b = a.double(), b.to(a.device).double()
        if not self.normalize_trajectory:
            return a, b
        sides = [x.amax(0) - x.amin(0) for x in (a, b)]
        if self.compat:
            return tuple((x - x.amin(0)) / side.clamp_min(1e-8) for x, side in zip((a, b), sides, strict=True))
        scale = max(SMALLEST_EXTENT, *(s.max().item() for s in sides), *(NOISE_EXTENT * jitter(x) for x in (a, b)))
        return tuple((x - (x.amax(0) + x.amin(0)) / 2) / scale for x in (a, b))
