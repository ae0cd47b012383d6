"""How embeddings change over time, which tells a video from its reverse and from the same place on another day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.fingerprints.sequences import Metric, as_sequence, cosine, equal_parts, vector_similarity
from vsim_fast.ops import derivatives

PARTS = 8
"""Equal parts of a clip between whose mean embeddings the profile takes its directions, singly and two by two."""
BINS = 20
"""Of aggregation "histogram", and parts of "sequence"."""

ROUNDING = 1e-5
"""Steps of unit-length embeddings below this are float32 rounding."""

Aggregation = Literal["mean", "std", "histogram", "sequence"]
COMPONENTS = {  # of the mended vectors
    "mean": ("mean_magnitude", "std_magnitude", "mean_direction", "direction_variance", "mean_direction_change"),
    "std": ("std_magnitude", "direction_variance", "mean_direction_change"),
    "histogram": ("mean_direction_change", "histogram"),
    "sequence": ("mean_direction_change", "sequence"),
}


@dataclass(frozen=True, eq=False)
class DerivativeFingerprint:
    """One video at one window, d[t] = x[t+w] - x[t], repeated `derivative_order` times. What was left out is None."""

    vector: Tensor
    """float32, on the device of the embeddings."""
    magnitudes: Tensor | None = None
    """float32 [N], |d|."""
    mean_magnitude: float | None = None
    std_magnitude: float | None = None
    """Unbiased; 0 for a single difference."""
    mean_direction: Tensor | None = None
    """float32 [D], mean of d / |d|. Playing the video backwards reverses the magnitudes and, where the order is odd,
    negates this."""
    direction_variance: float | None = None
    """Unbiased variance of d / |d| over time, mean over D; 0 for a single difference."""
    mean_direction_change: float | None = None
    """Mean distance of consecutive directions, in [0, 2]; None for a single difference."""
    profile: tuple[Tensor, ...] | None = None
    """Mended: [3, D] and [7, D], directions from each of 4, and of 8, equal parts of the clip to the next."""


@dataclass(frozen=True, eq=False)
class MultiScaleFingerprint:
    vector: Tensor
    """Those of the scales, joined in the order of the windows; empty where no window fits (compat)."""
    scales: dict[int, DerivativeFingerprint]
    """By window, those shorter than the video."""


class TemporalDerivativeFingerprint:
    """Fingerprint of the changes of a video's frame embeddings.

    The mended reading (default) brings every frame to unit length, so that first-order magnitudes lie in [0, 2]
    whatever the encoder, and keeps a profile of where the embedding goes in which part of the clip. Its score knows
    order and forgives tempo.

    Args:
        derivative_order: differences taken, >= 1.
        window_size: frames between the two ends of each difference, >= 1.
        aggregation: what enters the vector, in this order. "mean": mean, std magnitude; mean direction [D]; direction
            variance; mean direction change. "histogram": mean direction change; shares of 20 bins of the magnitudes.
            Mended, "std": std magnitude; direction variance; mean direction change. "sequence": mean direction change;
            mean magnitudes of 20 equal parts.
        include_magnitude, include_direction: leave out what needs magnitudes, or directions; not both.
        compat: the published formulas: embeddings as they are, bins between the smallest and largest magnitude of the
            video, "std" and "sequence" of the mean direction change alone. What they could not compute is guarded:
            standard deviations of one value are 0, and without directions there is no mean direction change.

    Mended vectors are scaled so that no number leaves [-1, 1]: magnitudes divided by the largest possible one (2 for
    the first order), direction changes by 2, the direction variance times D (0: one direction, 1: all directions
    alike), bins from 0 to the largest possible magnitude.
    """

    def __init__(
        self,
        derivative_order: int = 1,
        window_size: int = 1,
        aggregation: Aggregation = "mean",
        include_magnitude: bool = True,
        include_direction: bool = True,
        *,
        compat: bool = False,
    ):
        _check_natural("derivative_order", derivative_order)
        _check_natural("window_size", window_size)
        if aggregation not in ("mean", "std", "histogram", "sequence"):
            raise ValueError(f"aggregation must be 'mean', 'std', 'histogram' or 'sequence', got {aggregation!r}")
        if not (include_magnitude or include_direction):
            raise ValueError(
                "include_magnitude and include_direction must not both be False: nothing is left to compare"
            )
        self.derivative_order = derivative_order
        self.window_size = window_size
        self.aggregation = aggregation
        self.include_magnitude = include_magnitude
        self.include_direction = include_direction
        self.compat = compat

    def compute(self, embeddings: Any) -> DerivativeFingerprint:
        """The fingerprint of a video.

        Args:
            embeddings: [T, D], T > derivative_order · window_size, NumPy or torch, computed in float32 on its device.
        Raises:
            ValueError: shape, too few frames, NaN or infinity.  TypeError: not a floating-point array.
        """
        x = self._frames(embeddings)
        order, window = self.derivative_order, self.window_size
        if len(x) <= order * window:
            raise ValueError(
                f"embeddings must have more than derivative_order · window_size = {order * window} frames, got {len(x)}"
            )
        for _ in range(order - 1):
            x = x[window:] - x[:-window]
        return self._scales(x, [window])[window]

    compute_fingerprint = compute

    def fingerprint_to_vector(self, fingerprint: DerivativeFingerprint) -> Tensor:
        return fingerprint.vector

    def compare(self, a: DerivativeFingerprint, b: DerivativeFingerprint, metric: Metric | None = None) -> float:
        """Similarity of two fingerprints of this configuration.

        Mended, without a metric: (1 + c) / 2 in [0, 1], c the mean of three cosines: of the mean directions, and of the
        profiles of 4 and of 8 parts. 1: the same changes in the same order, at any constant tempo; 0.5: changes that
        have nothing to do with one another; 0: opposite changes. To its reverse a video is below 0.5 unless it goes
        back and forth, or the order is even: accelerations stay what they are. Without directions: 1 minus the largest
        difference of any number of the vectors.

        metric: "cosine" or "euclidean" of the vectors, mapped to [0, 1]; with compat unmapped, and cosine the default.
        """
        if metric is not None or self.compat:
            return vector_similarity(a.vector, b.vector, metric or "cosine", compat=self.compat)
        _check_one_configuration(a, b)
        if not self.include_direction:
            return 1 - (a.vector - b.vector).abs().max().item()
        return _similarity([cosine(a.mean_direction, b.mean_direction), *_profile_cosines(a, b)])

    def _frames(self, embeddings: Any) -> Tensor:
        x = as_sequence("embeddings", embeddings, torch.float32, frames=1 if self.compat else 2)
        return x if self.compat else F.normalize(x, dim=1)

    def _scales(self, x: Tensor, windows: Sequence[int]) -> dict[int, DerivativeFingerprint]:
        """Fingerprints of the differences of x [T, D] at distinct windows < T, in one pass."""
        every = derivatives(x, windows)
        profiled = self.include_direction and not self.compat
        profile = _profile(x) if profiled else None
        result = {}
        for s, window in enumerate(windows):
            count = len(x) - window
            fields: dict[str, Any] = {"profile": profile}
            if self.include_magnitude:
                magnitudes = every.magnitudes[s, :count]
                fields["magnitudes"] = magnitudes
                fields["mean_magnitude"] = magnitudes.mean().item()
                fields["std_magnitude"] = magnitudes.std().item() if count > 1 else 0.0
            if self.include_direction:
                fields["mean_direction"] = every.mean_direction[s]
                fields["direction_variance"] = every.direction_variance[s].item()
                if count > 1:
                    fields["mean_direction_change"] = every.direction_changes[s, : count - 1].mean().item()
            components = self._original(fields, x) if self.compat else self._scaled(fields, x, count)
            if not components:
                raise ValueError(
                    f"the vector of aggregation={self.aggregation!r} is empty: it needs include_direction and more "
                    f"than one difference, got {self.include_direction} and {count}"
                )
            result[window] = DerivativeFingerprint(_joined(components, x), **fields)
        return result

    def _scaled(self, fields: dict[str, Any], x: Tensor, count: int) -> list[Tensor | float]:
        components: dict[str, Tensor | float] = {}
        if self.include_magnitude:
            largest = 2.0**self.derivative_order
            magnitudes = fields["magnitudes"] / largest
            components["mean_magnitude"] = fields["mean_magnitude"] / largest
            components["std_magnitude"] = fields["std_magnitude"] / largest
            components["histogram"] = torch.histc(magnitudes, BINS, min=0, max=1 + ROUNDING) / count
            components["sequence"] = equal_parts(magnitudes[:, None], BINS)[:, 0]
        if self.include_direction:
            components["mean_direction"] = fields["mean_direction"]
            components["direction_variance"] = fields["direction_variance"] * x.shape[1] * (count - 1) / count
            components["mean_direction_change"] = fields.get("mean_direction_change", 0.0) / 2
        return [components[name] for name in COMPONENTS[self.aggregation] if name in components]

    def _original(self, fields: dict[str, Any], x: Tensor) -> list[Tensor | float]:
        of_mean = COMPONENTS["mean"][:-1] if self.aggregation == "mean" else ()
        components = [fields[name] for name in (*of_mean, "mean_direction_change") if name in fields]
        if self.aggregation == "histogram" and self.include_magnitude:
            bins = torch.histc(fields["magnitudes"], BINS)  # between the smallest and the largest
            components.append(bins / (bins.sum() + 1e-8))
        return components


class MultiScaleDerivativeFingerprint:
    """Fingerprints of first-order changes at several windows, from one read of the embeddings.

    Args:
        window_sizes: distinct integers >= 1; those not shorter than a video are left out for it.
        aggregation, compat: as in TemporalDerivativeFingerprint.
    """

    def __init__(
        self, window_sizes: Sequence[int] = (1, 5, 15, 30), aggregation: Aggregation = "mean", *, compat: bool = False
    ):
        for window in window_sizes:
            _check_natural("window_sizes", window)
        if not window_sizes or len(set(window_sizes)) < len(window_sizes):
            raise ValueError(f"window_sizes must be one or more distinct integers, got {list(window_sizes)}")
        self.window_sizes = list(window_sizes)
        self.compat = compat
        self._each = TemporalDerivativeFingerprint(aggregation=aggregation, compat=compat)

    def compute(self, embeddings: Any) -> MultiScaleFingerprint:
        """The fingerprint of a video; embeddings and errors as in TemporalDerivativeFingerprint.

        A video as short as the smallest window is an error; with compat its vector is empty.
        """
        x = self._each._frames(embeddings)
        windows = [window for window in self.window_sizes if window < len(x)]
        if windows:
            scales = self._each._scales(x, windows)
            return MultiScaleFingerprint(torch.cat([scale.vector for scale in scales.values()]), scales)
        if self.compat:
            return MultiScaleFingerprint(x.new_zeros(0), {})
        smallest = min(self.window_sizes)
        raise ValueError(f"embeddings must have more frames than the smallest window, {smallest}, got {len(x)}")

    compute_fingerprint = compute

    def compare(self, a: MultiScaleFingerprint, b: MultiScaleFingerprint) -> float:
        """Similarity in [0, 1], as that of TemporalDerivativeFingerprint: (1 + c) / 2, where c is the mean of three
        cosines: of the mean directions, averaged over the windows that both videos have, and of the two profiles.

        compat: cosine of the vectors, the longer one cut to the shorter; 0 if one is empty.
        """
        if self.compat:
            shorter = min(len(a.vector), len(b.vector))
            return cosine(a.vector[:shorter], b.vector[:shorter]) if shorter else 0.0
        shared = [
            (a.scales[window], b.scales[window]) for window in self.window_sizes if window in a.scales.keys() & b.scales
        ]
        if not shared:
            raise ValueError(f"fingerprints share no window: {list(a.scales)} and {list(b.scales)}")
        _check_one_configuration(*shared[0])
        directions = [cosine(one.mean_direction, other.mean_direction) for one, other in shared]
        return _similarity([sum(directions) / len(directions), *_profile_cosines(*shared[0])])


def _check_natural(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def _check_one_configuration(a: DerivativeFingerprint, b: DerivativeFingerprint) -> None:
    if a.vector.shape != b.vector.shape or (a.profile is None) != (b.profile is None):
        kinds = (f"{len(one.vector)} numbers, {'without' if one.profile is None else 'with'} profile" for one in (a, b))
        raise ValueError(f"fingerprints must come from one configuration and encoder, got {' and '.join(kinds)}")


def _profile(x: Tensor) -> tuple[Tensor, Tensor]:
    """[3, D] and [7, D] directions from the mean embedding of each part to the next; zero where nothing changes."""
    fine = equal_parts(x, PARTS)  # [8, D]
    return tuple(_directions(points) for points in ((fine[::2] + fine[1::2]) / 2, fine))


def _directions(points: Tensor) -> Tensor:
    """[N - 1, D] directions of the steps of [N, D]."""
    steps = derivatives(torch.stack((points[:-1], points[1:]), dim=1), [1])  # each step a video of two frames
    return torch.where(steps.magnitudes[:, 0, :1] > ROUNDING, steps.mean_direction[:, 0], 0)


def _profile_cosines(a: DerivativeFingerprint, b: DerivativeFingerprint) -> list[float]:
    return [cosine(one, other) for one, other in zip(a.profile, b.profile, strict=True)]


def _similarity(cosines: list[float]) -> float:
    return (1 + sum(cosines) / len(cosines)) / 2


def _joined(components: list[Tensor | float], like: Tensor) -> Tensor:
    return torch.cat([torch.as_tensor(part, dtype=like.dtype, device=like.device).reshape(-1) for part in components])
