"""What the fingerprints share: checked input, equal parts of a clip, noise of a path, similarity of two vectors."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

LARGEST = 1e18
"""Squares of larger numbers leave the range of float32."""

Metric = Literal["cosine", "euclidean"]


def as_sequence(name: str, value: Any, dtype: torch.dtype, *, frames: int = 1, dim: int | None = None) -> Tensor:
    """[T, D] tensor of `dtype` on the device it came from.

    Args:
        name: of the argument, for the messages.  value: NumPy array or tensor, floating-point, finite.
        frames: the fewest frames it may have.  dim: the D it must have; None: any.
    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.
    """
    if not isinstance(value, (np.ndarray, Tensor)):
        raise TypeError(f"{name} must be a NumPy array or a tensor, got {type(value).__name__}")
    if not (value.is_floating_point() if isinstance(value, Tensor) else np.issubdtype(value.dtype, np.floating)):
        raise TypeError(f"{name} must be floating-point, got {str(value.dtype).removeprefix('torch.')}")
    if isinstance(value, np.ndarray):  # of any layout and byte order
        value = torch.from_numpy(np.array(value, dtype=np.float64, order="C"))
    x = value.detach().to(dtype)
    if x.ndim != 2 or x.shape[1] == 0 or dim not in (None, x.shape[1]):
        raise ValueError(f"{name} must be [T, {'D' if dim is None else dim}], got shape {tuple(x.shape)}")
    if len(x) < frames:
        raise ValueError(f"{name} must have at least {frames} frame{'s' * (frames > 1)}, got {len(x)}")
    if not x.abs().max() <= LARGEST:  # NaN is not
        bad = ~(x.abs() <= LARGEST)
        frame = int(bad.any(dim=1).int().argmax())
        raise ValueError(
            f"{name} must be finite and at most {LARGEST:g} in size, got {x[bad][0].item()} in frame {frame}"
        )
    return x


def equal_parts(x: Tensor, parts: int) -> Tensor:
    """[parts, D] from [T, D]: means over equal parts of the clip; fewer frames than that are interpolated linearly.

    The same motion played faster or sampled more densely has the same parts.
    """
    if len(x) < parts:
        return _between(x, torch.linspace(0, len(x) - 1, parts, dtype=torch.float64))
    total = torch.cat((x.new_zeros(1, x.shape[1]), x.cumsum(0, dtype=torch.float64)))  # [T + 1, D], at frame boundaries
    edges = torch.linspace(0, len(x), parts + 1, dtype=torch.float64)
    return (_between(total, edges).diff(dim=0) * (parts / len(x))).to(x.dtype)


def _between(x: Tensor, at: Tensor) -> Tensor:
    """[N, D] rows of x at fractional places, [N] in 0..len(x) - 1, interpolated linearly."""
    before = at.long()
    after = (before + 1).clamp_max(len(x) - 1)
    return torch.lerp(x[before], x[after], (at - before)[:, None].to(x))


def jitter(path: Tensor) -> float:
    """Standard deviation per coordinate of the frame-to-frame noise of a path [T, 2]; 0 below 4 frames.

    Third differences of smooth motion nearly vanish; those of white noise have 20 times its variance.
    """
    return math.sqrt(path.diff(n=3, dim=0).square().mean() / 20) if len(path) > 3 else 0.0


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two arrays of one shape, in [-1, 1]; 1 if both are zero, 0 if one is."""
    norms = a.norm().item(), b.norm().item()
    if min(norms) == 0:
        return float(max(norms) == 0)
    return max(-1.0, min(1.0, ((a / norms[0]) * (b / norms[1])).sum().item()))


def vector_similarity(a: Tensor, b: Tensor, metric: Metric, *, compat: bool) -> float:
    """Two vectors of equal length by "cosine" or "euclidean".

    compat: the cosine in [-1, 1], or minus the distance. Otherwise (1 + cosine) / 2, or 1 / (1 + distance).
    """
    if metric not in ("cosine", "euclidean"):
        raise ValueError(
            f"metric must be 'cosine' or 'euclidean', got {metric!r}; for time warping see DTWTrajectoryMatcher and dtw"
        )
    if a.shape != b.shape:
        raise ValueError(f"fingerprints must come from one configuration, got vectors of {len(a)} and {len(b)} numbers")
    if metric == "cosine":
        return cosine(a, b) if compat else (1 + cosine(a, b)) / 2
    distance = (a - b).norm().item()
    return -distance if compat else 1 / (1 + distance)
