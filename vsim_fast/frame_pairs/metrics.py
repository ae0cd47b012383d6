"""What the pixels say, beside what features say."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vsim_fast.errors import UsageError
from vsim_fast.frame_pairs.reading import native_pair
from vsim_fast.image_quality import LEAST_SIDE, Lpips, psnr, ssim
from vsim_fast.records import frames_in_memory

METRICS = ("psnr", "ssim", "lpips")
DEFAULT_METRICS = ("psnr", "ssim")
SMALLEST_SSIM = 11
"""Pixels a side that SSIM's window needs."""
SMALLEST_LPIPS = LEAST_SIDE["alex"]


def check_metrics(metrics: Iterable[str]) -> None:
    """Raises: UsageError: one of them is none of METRICS."""
    for name in metrics:
        if name not in METRICS:
            raise UsageError(f"metrics must be of {', '.join(METRICS)}, got {name!r}")


def pixel_metrics(
    a: np.ndarray, b: np.ndarray, metrics: Iterable[str], lpips: Lpips | None = None
) -> dict[str, float | None]:
    """Of two uint8 RGB [H, W, 3]; b is resized to the size of a. PSNR is None where they are equal, the others where
    they are too small."""
    y, x = native_pair(frames_in_memory(b[None]), frames_in_memory(a[None]))
    found: dict[str, float | None] = {}
    if "psnr" in metrics:
        value = psnr(x, y).item()
        found["psnr"] = value if np.isfinite(value) else None
    if "ssim" in metrics:
        found["ssim"] = ssim(x, y).item() if min(a.shape[:2]) >= SMALLEST_SSIM else None
    if "lpips" in metrics:
        found["lpips"] = lpips(x, y).item() if min(a.shape[:2]) >= SMALLEST_LPIPS else None
    return found
