"""Statistics of the path that attention takes through the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vsim_fast.fingerprints.sequences import Metric, as_sequence, equal_parts, jitter, vector_similarity

PARTS = 16
"""Equal parts of a clip whose mean points make its path: long enough to average jitter, short enough for zigzags."""
STILL = 0.02
"""Picture sides. Lengths are told apart in octaves above this; below it, nothing moves."""
HEADINGS = 8
"""Bins of aggregation "histogram"."""

Aggregation = Literal["statistics", "sequence", "histogram"]


@dataclass(frozen=True, eq=False)
class MotionFingerprint:
    """One trajectory. Lengths in picture sides, times in frames; x to the right, y down, so that clockwise is positive.

    Fields the constructor switched off, or too few frames leave undefined, are None.
    """

    vector: Tensor
    """float32, on the CPU."""
    path: Tensor
    """float64 [16, 2], mean points of equal parts of the smoothed clip; compat: the smoothed trajectory [T, 2]."""
    extent: tuple[float, float]
    """Width and height of the box around the path."""
    path_length: float | None = None
    mean_speed: float | None = None
    """Per frame."""
    std_speed: float | None = None
    max_speed: float | None = None
    mean_direction: float | None = None
    """Radians; circular mean weighted by speed: the direction of the net displacement. compat: arithmetic mean."""
    direction_variance: float | None = None
    """1 - |net displacement| / path length, in [0, 1]: 0 straight ahead, 1 back to the start. compat: of the angles."""
    mean_acceleration: float | None = None
    """Per frame squared."""
    std_acceleration: float | None = None
    mean_curvature: float | None = None
    """Signed turns (of 360 degrees) made over the clip: about +1 for a clockwise circle of any size and tempo, 0 for a
    line. compat: mean of |v × a| / (|v|³ + 1e-8)."""
    std_curvature: float | None = None
    """Of the signed turns from one of the 16 parts to the next. compat: of the values above."""
    max_curvature: float | None = None
    """The sharpest of them, in [0, 1/2]. compat: the largest of the values above."""


class TrajectoryFingerprint:
    """Fingerprint of a trajectory of attention centroids.

    The mended reading (default) first reduces the clip to 16 mean points, so that from about 24 frames on it depends
    neither on playback speed nor on sampling, and per-frame noise of half a step is averaged out. It counts turns with
    their sign and does not count turns that are no larger than the noise makes.

    Args:
        use_velocity, use_acceleration, use_curvature: which statistics to include; each needs those before it.
        smoothing_window: frames of the moving average taken first, >= 1; 1 is none.
        aggregation: "statistics": the 14 numbers below. "sequence": the 16 points about their mean, in fortieths of a
            side, so that a distance of 1 is a root mean square of a tenth. "histogram": the share of the path's length
            in each of 8 headings.
        compat: the published formulas, mistakes included: arithmetic mean of angles, unsigned curvature with 1e-8 under
            it, nothing scaled; "sequence" and "histogram" carry extent and length alone. Where they gave NaN (standard
            deviation of one value) it is 0.

    Vector of "statistics", in this order, less what is switched off: mean, std, max speed; cosine and sine of the
    direction; direction variance; mean, std acceleration; mean, std, max curvature; extent x, y; path length. Mended,
    each is scaled so that a difference of 1 halves the score and none outweighs the others: extents, length and mean
    speed (as length per clip) in steps of two octaves above 0.02, std speed and accelerations relative to mean speed,
    max speed in octaves above it, cosine and sine times 2·(1 - variance), curvature in half turns.
    """

    def __init__(
        self,
        use_velocity: bool = True,
        use_acceleration: bool = True,
        use_curvature: bool = True,
        smoothing_window: int = 3,
        aggregation: Aggregation = "statistics",
        *,
        compat: bool = False,
    ):
        if not isinstance(smoothing_window, int) or smoothing_window < 1:
            raise ValueError(f"smoothing_window must be an integer >= 1, got {smoothing_window!r}")
        if aggregation not in ("statistics", "sequence", "histogram"):
            raise ValueError(f"aggregation must be 'statistics', 'sequence' or 'histogram', got {aggregation!r}")
        self.use_velocity = use_velocity
        self.use_acceleration = use_velocity and use_acceleration
        self.use_curvature = use_velocity and use_acceleration and use_curvature
        self.smoothing_window = smoothing_window
        self.aggregation = aggregation
        self.compat = compat

    def compute(self, trajectory: Any) -> MotionFingerprint:
        """The fingerprint of a trajectory.

        Args:
            trajectory: [T, 2] (x, y) in picture sides, T >= 2 (compat: 1), NumPy or torch.
        Raises:
            ValueError: shape, too few frames, NaN or infinity.  TypeError: not a floating-point array.
        """
        points = as_sequence("trajectory", trajectory, torch.float64, frames=1 if self.compat else 2, dim=2).cpu()
        smooth = self._smooth(points)
        return self._original(smooth) if self.compat else self._mended(smooth, jitter(points))

    compute_fingerprint = compute

    def fingerprint_to_vector(self, fingerprint: MotionFingerprint) -> Tensor:
        return fingerprint.vector

    def compare(self, a: MotionFingerprint, b: MotionFingerprint, metric: Metric | None = None) -> float:
        """Similarity of two fingerprints of this configuration.

        Mended, without a metric: 2^-|a - b| of the scaled vectors, in [0, 1]. 1: the same motion; 0.5: one aspect off
        by its unit, such as a path twice as long and wide, half a turn more, or headed 30 degrees elsewhere in a box of
        the same sides; 0.1 and less: another motion, such as the opposite direction or sense of rotation. Moving the
        path does not change it, nor does tempo. A path that returns to its start without turning on the whole is like
        its own reverse; a line along an axis changes its box with its heading, 15 degrees leave 0.26.

        metric: "cosine" or "euclidean" of the vectors, mapped to [0, 1]; with compat unmapped, and cosine the default.
        """
        if metric is None and not self.compat:
            return 2 ** vector_similarity(a.vector, b.vector, "euclidean", compat=True)
        return vector_similarity(a.vector, b.vector, metric or "cosine", compat=self.compat)

    def _smooth(self, points: Tensor) -> Tensor:
        half = self.smoothing_window // 2
        padded = torch.cat((points[:1].expand(half, 2), points, points[-1:].expand(half, 2)))
        return padded.unfold(0, self.smoothing_window, 1).mean(-1)[: len(points)]

    def _mended(self, smooth: Tensor, noise: float) -> MotionFingerprint:
        path = equal_parts(smooth, PARTS)
        frames = len(smooth)
        frames_per_part = frames / PARTS if frames >= PARTS else (frames - 1) / (PARTS - 1)
        noise *= min(frames_per_part**-0.5, frames_per_part)  # averaged over a part, or shared out to its fractions
        velocity = path.diff(dim=0)  # [15, 2], per part
        speed = velocity.norm(dim=1)
        length, mean = speed.sum().item(), speed.mean().item()
        unit = mean or 1.0  # what stands still has no relative speed
        extent = path.amax(0) - path.amin(0)
        fields: dict[str, float] = {}
        vector: list[float] = []
        if self.use_velocity:
            dx, dy = ((path[-1] - path[0]) / (length or 1.0)).tolist()
            fields |= {
                "path_length": length,
                "mean_speed": mean / frames_per_part,
                "std_speed": speed.std().item() / frames_per_part,
                "max_speed": speed.max().item() / frames_per_part,
                "mean_direction": math.atan2(dy, dx),
                "direction_variance": 1 - min(1.0, math.hypot(dx, dy)),
            }
            fastest = math.log2(speed.max().item() / unit) if mean else 0.0
            vector += [_octaves(length) / 2, speed.std().item() / unit, fastest, 2 * dx, 2 * dy]
            vector += [fields["direction_variance"]]
        if self.use_acceleration:
            change = velocity.diff(dim=0).norm(dim=1)  # [14]
            fields["mean_acceleration"] = change.mean().item() / frames_per_part**2
            fields["std_acceleration"] = change.std().item() / frames_per_part**2
            vector += [change.mean().item() / unit, change.std().item() / unit]
        if self.use_curvature:
            turns = _turns(velocity, noise)  # [14]
            curvature = turns.sum().item(), turns.std().item(), turns.abs().max().item()
            fields |= zip(("mean_curvature", "std_curvature", "max_curvature"), curvature, strict=True)
            vector += [2 * value for value in curvature]
        vector += [_octaves(side) / 2 for side in extent.tolist()]
        vector += [_octaves(length) / 2] if self.use_velocity else []
        if self.aggregation == "sequence":
            vector = ((path - path.mean(0)) * (10 / PARTS**0.5)).flatten().tolist()
        elif self.aggregation == "histogram":
            vector = (_headings(velocity) / (length or 1.0)).tolist()
        return MotionFingerprint(torch.tensor(vector), path, tuple(extent.tolist()), **fields)

    def _original(self, smooth: Tensor) -> MotionFingerprint:
        fields: dict[str, float] = {}
        in_vector: list[float] = []
        velocity = smooth.diff(dim=0)  # [T - 1, 2]
        speed = velocity.norm(dim=1)
        if moving := self.use_velocity and len(velocity) > 0:
            angle = torch.atan2(velocity[:, 1], velocity[:, 0])
            fields |= _summary("speed", speed)
            fields |= {"mean_direction": angle.mean().item(), "direction_variance": _spread(angle) ** 2}
            heading = fields["mean_direction"]
            in_vector += [fields[f"{name}_speed"] for name in ("mean", "std", "max")]
            in_vector += [math.cos(heading), math.sin(heading), fields["direction_variance"]]
        if self.use_acceleration and len(velocity) > 1:
            acceleration = velocity.diff(dim=0)  # [T - 2, 2]
            size = acceleration.norm(dim=1)
            fields |= {"mean_acceleration": size.mean().item(), "std_acceleration": _spread(size)}
            in_vector += [fields["mean_acceleration"], fields["std_acceleration"]]
            if self.use_curvature:
                curvature = _cross(velocity[:-1], acceleration).abs() / (speed[:-1] ** 3 + 1e-8)
                fields |= _summary("curvature", curvature)
                in_vector += [fields[f"{name}_curvature"] for name in ("mean", "std", "max")]
        in_vector = in_vector if self.aggregation == "statistics" else []
        extent = (smooth.amax(0) - smooth.amin(0)).tolist()
        in_vector += extent
        if moving:
            fields["path_length"] = speed.sum().item()
            in_vector.append(fields["path_length"])
        return MotionFingerprint(torch.tensor(in_vector), smooth, tuple(extent), **fields)


def _octaves(length: float) -> float:
    return math.log2(1 + length / STILL)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """[N] from [N, 2]: positive where b turns clockwise from a on a picture with y down."""
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _turns(velocity: Tensor, noise: float) -> Tensor:
    """Signed turn from each step to the next, [N - 1] of [N, 2], in (-1/2, 1/2]; steps lost in `noise` turn little."""
    a, b = velocity[:-1], velocity[1:]
    turn = torch.atan2(_cross(a, b), (a * b).sum(1)) / (2 * math.pi)
    step = torch.minimum(a.norm(dim=1), b.norm(dim=1))
    return torch.where(step > 0, turn * step / (step + 1.5 * noise).clamp_min(1e-300), 0)


def _headings(velocity: Tensor) -> Tensor:
    """[8] length travelled in each eighth of the circle; the first one is centred on the right, the rest clockwise."""
    turns = torch.atan2(velocity[:, 1], velocity[:, 0]) / (2 * math.pi)
    heading = (turns * HEADINGS).round().long() % HEADINGS
    return velocity.new_zeros(HEADINGS).index_add_(0, heading, velocity.norm(dim=1))


def _spread(values: Tensor) -> float:
    """Unbiased standard deviation; 0 of a single value."""
    return values.std().item() if len(values) > 1 else 0.0


def _summary(name: str, values: Tensor) -> dict[str, float]:
    of = {"mean": values.mean().item(), "std": _spread(values), "max": values.max().item()}
    return {f"{key}_{name}": value for key, value in of.items()}
