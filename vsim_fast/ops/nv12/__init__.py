"""Decoded frames to encoder input: colour matrix, antialiased resize, crop, rotation and normalisation in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vsim_fast.ops._dispatch import choose
from vsim_fast.ops.nv12.reference import LUMA_WEIGHTS, SUPPORT

__all__ = ["nv12_to_pixels", "rgb_to_pixels"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def nv12_to_pixels(
    y: Tensor,
    uv: Tensor,
    *,
    size: tuple[int, int],
    crop: tuple[int, int, int, int] | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    matrix: str = "bt601",
    full_range: bool = False,
    bit_depth: int = 8,
    interpolation: str = "bicubic",
    rotation: int = 0,
    mirrored: bool = False,
    dtype: torch.dtype = torch.float16,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Normalised RGB of 4:2:0 frames, resized as PIL does (antialiased), turned as they are displayed.

    Args:
        y: [B, H, W] uint8, or uint16 with the code value in the low bits.
        uv: [B, ceil(H/2), ceil(W/2), 2], same dtype and device; each pair serves its 2×2 pixels (nearest chroma).
        size: (height, width) of the displayed picture after the resize; aspect is not kept.
        crop: (top, left, height, width) cut out of that picture; None keeps all of it.
        mean, std: per RGB channel on the 0..1 scale.
        matrix: "bt601", "bt709" or "bt2020" (non-constant luminance).  full_range: False means 16..235 luma.
        bit_depth: 8 for uint8; 9 to 16 for uint16.
        interpolation: "bicubic" (a = −0.5) or "bilinear".
        rotation: degrees counter-clockwise, 0, 90, 180 or 270; mirrored: then flipped left-right.
        dtype: float16, bfloat16 or float32.  out: [B, 3, h, w] of that dtype to write into.
        backend: "triton", "torch" or "reference"; None picks the fastest that runs on the device.
    Returns:
        [B, 3, h, w], h and w those of `crop` or else of `size`: (level / 255 − mean) / std.
    Raises:
        TypeError: unsupported dtype.  ValueError: shape or option outside the above.  RuntimeError: backend cannot run.
    Error: RGB is clamped and rounded to whole levels before the resize, the result clamped, not rounded. Within 0.5 of
        255 levels on average (p99 2) of PIL on the same RGB; the "torch" backend rounds the result as PIL does.
    """
    if y.dtype not in (torch.uint8, torch.uint16) or uv.dtype != y.dtype:
        raise TypeError(f"y and uv must both be uint8 or uint16, got {y.dtype} and {uv.dtype}")
    if y.ndim != 3 or 0 in y.shape[1:]:
        raise ValueError(f"y must be [B, H, W] with H, W > 0, got shape {tuple(y.shape)}")
    chroma = (y.shape[0], (y.shape[1] + 1) // 2, (y.shape[2] + 1) // 2, 2)
    if tuple(uv.shape) != chroma:
        raise ValueError(f"uv must be {chroma} for y of shape {tuple(y.shape)}, got shape {tuple(uv.shape)}")
    if uv.device != y.device:
        raise ValueError(f"y and uv must be on one device, got {y.device} and {uv.device}")
    if matrix not in LUMA_WEIGHTS:
        raise ValueError(f"matrix must be one of {sorted(LUMA_WEIGHTS)}, got {matrix!r}")
    if not (bit_depth == 8 if y.dtype == torch.uint8 else 9 <= bit_depth <= 16):
        raise ValueError(f"bit_depth must be 8 for uint8 and 9 to 16 for uint16, got {bit_depth} for {y.dtype}")
    picture = _picture(len(y), y.device, size, crop, mean, std, interpolation, rotation, mirrored, dtype, out)
    run = choose("nv12_to_pixels", y.device.type, backend)
    return run(y, uv, matrix=matrix, full_range=full_range, bit_depth=bit_depth, **picture)


def rgb_to_pixels(
    rgb: Tensor,
    *,
    size: tuple[int, int],
    crop: tuple[int, int, int, int] | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    rotation: int = 0,
    mirrored: bool = False,
    dtype: torch.dtype = torch.float16,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Normalised RGB of [B, H, W, 3] uint8 pictures; arguments, result and errors as in `nv12_to_pixels`.

    On the CPU the resize equals PIL's within one level; elsewhere it is not rounded.
    backend: "torch" or "reference".
    """
    if rgb.dtype != torch.uint8:
        raise TypeError(f"rgb must be uint8, got {rgb.dtype}")
    if rgb.ndim != 4 or rgb.shape[3] != 3 or 0 in rgb.shape[1:]:
        raise ValueError(f"rgb must be [B, H, W, 3] with H, W > 0, got shape {tuple(rgb.shape)}")
    picture = _picture(len(rgb), rgb.device, size, crop, mean, std, interpolation, rotation, mirrored, dtype, out)
    return choose("rgb_to_pixels", rgb.device.type, backend)(rgb, **picture)


def _picture(batch, device, size, crop, mean, std, interpolation, rotation, mirrored, dtype, out) -> dict[str, object]:
    """The options both functions share, checked, as keywords of the backends."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width), both at least 1, got {size}")
    top, left, height, width = crop = (0, 0, *size) if crop is None else tuple(crop)
    if min(top, left) < 0 or min(height, width) < 1 or top + height > size[0] or left + width > size[1]:
        raise ValueError(f"crop (top, left, height, width) must lie inside size {tuple(size)}, got {crop}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std must hold 3 values, std above 0, got {tuple(mean)} and {tuple(std)}")
    if interpolation not in SUPPORT:
        raise ValueError(f"interpolation must be one of {sorted(SUPPORT)}, got {interpolation!r}")
    if rotation not in (0, 90, 180, 270):
        raise ValueError(f"rotation must be 0, 90, 180 or 270 degrees, got {rotation}")
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be float16, bfloat16 or float32, got {dtype}")
    want = (batch, 3, height, width)
    if out is not None and (tuple(out.shape), out.dtype, out.device) != (want, dtype, device):
        raise ValueError(f"out must be {want} {dtype} on {device}, got {tuple(out.shape)} {out.dtype} on {out.device}")
    return dict(
        size=tuple(size), crop=crop, mean=tuple(mean), std=tuple(std), interpolation=interpolation,
        rotation=rotation, mirrored=mirrored, dtype=dtype, out=out,
    )  # fmt: skip
