"""Temporal derivatives of frame embeddings at several windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vsim_fast.ops._dispatch import choose


class Derivatives(NamedTuple):
    """With S windows; for a single video [T, D] every field lacks the axis B."""

    magnitudes: Tensor
    """float32 [B, S, T], Euclidean length of each difference; 0 from `counts` on."""
    direction_changes: Tensor
    """float32 [B, S, T], distance of consecutive directions, in [0, 2]; 0 from `counts` - 1 on."""
    mean_direction: Tensor
    """float32 [B, S, D], mean unit direction; 0 where `counts` is 0."""
    direction_variance: Tensor
    """float32 [B, S], unbiased variance of the direction over time, mean over D; 0 where `counts` < 2."""
    counts: Tensor
    """int64 [B, S], differences per video and window: max(0, length - window)."""


def derivatives(
    embeddings: Tensor,
    windows: Sequence[int] = (1, 5, 15, 30),
    *,
    lengths: Tensor | Sequence[int] | None = None,
    backend: str | None = None,
) -> Derivatives:
    """Magnitudes, directions and direction changes of temporal differences, all windows in one read.

    For a window w: d[t] = x[t+w] - x[t], magnitude |d[t]|, direction u[t] = d[t] / max(|d[t]|, 1e-12), direction
    change |u[t+1] - u[t]|, for t + w < length. Directions are reduced on the fly; nothing [B, S, T, D] is stored.

    Args:
        embeddings: [B, T, D] or [T, D] float32, any device; copied first if it is not contiguous. No gradient.
        windows: frames between the two ends of each difference, >= 1, any order.
        lengths: frames of each video, 0..T, [B]; the padding behind them is never read. None: all T.
        backend: "cpp", "cuda" or "reference"; None picks the fastest that runs on the device.
            "cpp" takes `torch.get_num_threads()` threads, one video each; results do not depend on their number.
    Returns:
        Derivatives on the device of `embeddings`. A video no longer than a window has count 0 and zeros there, never
        NaN; a NaN or infinity inside a video's length reaches only the values computed from it.
    Raises:
        ValueError: shape, windows or lengths break a rule.  TypeError: not float32 or no integers.
        RuntimeError: the named backend cannot run.
    Error: fp32 accumulation over D; direction_variance is off by at most about 1e-6 / D, changes by about 1e-6.
    Memory: the outputs; "cuda" adds B·S·ceil(T/64)·D floats, "reference" materialises every difference.
    Source: temporal-derivative fingerprints of frame embeddings (non-semantic video retrieval). A second-order
        derivative is this op on x[:, w:] - x[:, :-w].
    """
    if embeddings.ndim not in (2, 3):
        raise ValueError(f"embeddings must be [B, T, D] or [T, D], got shape {tuple(embeddings.shape)}")
    if embeddings.dtype != torch.float32:
        raise TypeError(f"embeddings must be float32, got {embeddings.dtype}")
    if not windows or not all(isinstance(w, int) and w >= 1 for w in windows):
        raise ValueError(f"windows must be one or more integers >= 1, got {windows!r}")
    x = embeddings.detach()
    x = x[None] if embeddings.ndim == 2 else x
    videos, frames, dim = x.shape
    if dim == 0:
        raise ValueError(f"embeddings must have D >= 1, got shape {tuple(embeddings.shape)}")
    lengths = torch.full((videos,), frames) if lengths is None else torch.as_tensor(lengths, device="cpu")
    if lengths.dtype not in (torch.int32, torch.int64) and lengths.numel():
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    lengths = lengths.reshape(1) if embeddings.ndim == 2 and lengths.ndim == 0 else lengths
    if lengths.shape != (videos,):
        raise ValueError(f"lengths must be [{videos}], got shape {tuple(lengths.shape)}")
    if videos and not 0 <= lengths.min() <= lengths.max() <= frames:
        raise ValueError(f"lengths must be in 0..{frames}, got {lengths.min()}..{lengths.max()}")
    counts = (lengths.long()[:, None] - torch.tensor(windows)).clamp_min(0).to(x.device)  # [B, S]
    run = choose("derivatives", x.device.type, backend)
    result = Derivatives(*run(x.contiguous(), tuple(windows), counts), counts)
    return Derivatives(*(field[0] for field in result)) if embeddings.ndim == 2 else result
