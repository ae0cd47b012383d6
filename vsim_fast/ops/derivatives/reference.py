"""The oracle: every difference and direction materialised, in the dtype of the input."""

from __future__ import annotations

import torch
from torch import Tensor


def derivatives(x: Tensor, windows: tuple[int, ...], counts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(magnitudes [B, S, T], changes [B, S, T], mean [B, S, D], variance [B, S]) of x [B, T, D], counts [B, S]."""
    videos, frames, dim = x.shape
    magnitudes = x.new_zeros(videos, len(windows), frames)
    changes = x.new_zeros(videos, len(windows), frames)
    mean = x.new_zeros(videos, len(windows), dim)
    variance = x.new_zeros(videos, len(windows))
    for s, window in enumerate(windows):
        steps = frames - window
        if steps <= 0:
            continue
        n = counts[:, s]  # [B]
        valid = (torch.arange(steps, device=x.device) < n[:, None])[..., None]  # [B, steps, 1]
        d = torch.where(valid, x[:, window:] - x[:, :-window], 0)  # [B, steps, D]
        norm = d.norm(dim=-1, keepdim=True)
        u = d / norm.clamp_min(1e-12)
        magnitudes[:, s, :steps] = norm[..., 0]
        changes[:, s, : steps - 1] = torch.where(valid[:, 1:], u[:, 1:] - u[:, :-1], 0).norm(dim=-1)
        mean[:, s] = u.sum(dim=1) / n.clamp_min(1)[:, None]
        spread = torch.where(valid, u - mean[:, s, None], 0).square().sum(dim=(1, 2))  # [B]
        variance[:, s] = spread / ((n - 1).clamp_min(1) * dim)
    return magnitudes, changes, mean, variance
