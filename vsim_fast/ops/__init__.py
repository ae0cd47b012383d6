"""The floor: tensors in, tensors out; knows nothing of files, models or videos."""

from __future__ import annotations

from vsim_fast.ops.nv12 import nv12_to_pixels, rgb_to_pixels

__all__ = ["nv12_to_pixels", "rgb_to_pixels"]
