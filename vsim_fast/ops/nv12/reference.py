"""Planes or RGB to normalised pixels, step by step in plain torch. With dtype=torch.float64 it is the oracle."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}  # (kr, kb)
SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}  # filter radius in output pixels when shrinking, input pixels otherwise


def yuv_coefficients(matrix: str, full_range: bool, bit_depth: int) -> tuple[float, ...]:
    """(y_offset, c_offset, y_scale, rv, gu, gv, bu): R = y_scale·(Y − y_offset) + rv·(V − c_offset), …, in 0..255.

    Source: ITU-R BT.601, BT.709, BT.2020 (non-constant luminance), H.273 for the ranges.
    """
    kr, kb = LUMA_WEIGHTS[matrix]
    kg = 1 - kr - kb
    step = 1 << (bit_depth - 8)
    if full_range:
        y_offset, y_range, c_range = 0, 256 * step - 1, 256 * step - 1
    else:
        y_offset, y_range, c_range = 16 * step, 219 * step, 224 * step
    c = 255 / c_range
    return (
        float(y_offset), float(128 * step), 255 / y_range,
        2 * (1 - kr) * c, -2 * kb * (1 - kb) / kg * c, -2 * kr * (1 - kr) / kg * c, 2 * (1 - kb) * c,
    )  # fmt: skip


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


@lru_cache(maxsize=64)
def resize_weights(in_size: int, out_size: int, interpolation: str) -> tuple[Tensor, Tensor]:
    """The antialiased resampling filter of PIL (bicubic a = −0.5): its support widens with the scale when shrinking.

    Returns:
        start: int64 [out_size], first input pixel each output reads.
        weights: float64 [out_size, taps], rows sum to 1; weights of pixels at or beyond `in_size` are 0.
    """
    scale = in_size / out_size
    widen = max(scale, 1.0)
    support = SUPPORT[interpolation] * widen
    taps = 2 * math.ceil(support) + 1
    center = (torch.arange(out_size, dtype=torch.float64) + 0.5) * scale
    start = (center - support + 0.5).floor().clamp(min=0).long()
    end = (center + support + 0.5).floor().clamp(max=in_size).long()
    pixel = start[:, None] + torch.arange(taps)
    distance = ((pixel + 0.5 - center[:, None]) / widen).abs()
    weights = _cubic(distance) if interpolation == "bicubic" else (1 - distance).clamp(min=0)
    weights = torch.where(pixel < end[:, None], weights, 0.0)
    return start, weights / weights.sum(1, keepdim=True)


def resize_matrix(in_size: int, out_size: int, interpolation: str, first: int, count: int) -> Tensor:
    """float64 [count, in_size]: the filter as a banded matrix, for outputs first .. first + count − 1 of `out_size`."""
    start, weights = (table[first : first + count] for table in resize_weights(in_size, out_size, interpolation))
    columns = (start[:, None] + torch.arange(weights.shape[1])).clamp(max=in_size - 1)  # weight 0 beyond
    return torch.zeros(count, in_size, dtype=torch.float64).scatter_add_(1, columns, weights)


def coded_window(
    size: tuple[int, int], crop: tuple[int, int, int, int] | None, rotation: int, mirrored: bool
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """`size` and `crop` of the displayed picture, seen before the rotation: ((h, w), (top, left, height, width))."""
    (h, w), (top, left, height, width) = size, crop or (0, 0, *size)
    if mirrored:
        left = w - left - width
    for _ in range(rotation // 90):  # undo one counter-clockwise quarter turn
        top, left, height, width = left, h - top - height, width, height
        h, w = w, h
    return (h, w), (top, left, height, width)


def orient(pictures: Tensor, rotation: int, mirrored: bool) -> Tensor:
    """[..., H, W] turned counter-clockwise by `rotation` degrees, then mirrored left-right."""
    turned = torch.rot90(pictures, rotation // 90, dims=(-2, -1))
    return turned.flip(-1) if mirrored else turned


def planes_to_rgb(
    y: Tensor, uv: Tensor, *, matrix: str, full_range: bool, bit_depth: int, dtype: torch.dtype
) -> Tensor:
    """[B, 3, H, W] whole levels 0..255 in `dtype`: each chroma pair serves its 2×2 pixels, clamped, rounded half up."""
    y0, c0, y_scale, rv, gu, gv, bu = yuv_coefficients(matrix, full_range, bit_depth)
    luma = (y.to(dtype) - y0) * y_scale
    u, v = (uv.to(dtype) - c0).unbind(-1)
    chroma = torch.stack((rv * v, gu * u + gv * v, bu * u), dim=1)  # [B, 3, ceil(H/2), ceil(W/2)]
    chroma = chroma.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., : y.shape[1], : y.shape[2]]
    return (luma[:, None] + chroma + 0.5).floor_().clamp_(0, 255)


def resize_and_normalise(
    rgb: Tensor, *, size, crop, mean, std, interpolation: str, rotation: int, mirrored: bool, dtype, out: Tensor | None
) -> Tensor:
    """[B, 3, h, w] `dtype` from [B, 3, H, W] levels. Not rounded after the filter; clamped to 0..255 at the end."""
    (h, w), (top, left, height, width) = coded_window(size, crop, rotation, mirrored)
    vertical = resize_matrix(rgb.shape[2], h, interpolation, top, height).to(rgb)
    horizontal = resize_matrix(rgb.shape[3], w, interpolation, left, width).to(rgb)
    levels = (vertical @ (rgb @ horizontal.T)).clamp_(0, 255)
    mean, std = (torch.tensor(v, dtype=torch.float64).to(levels)[:, None, None] for v in (mean, std))
    pixels = orient((levels / 255 - mean) / std, rotation, mirrored)
    return pixels.to(dtype).contiguous() if out is None else out.copy_(pixels)


def nv12_to_pixels(y: Tensor, uv: Tensor, *, matrix: str, full_range: bool, bit_depth: int, **picture) -> Tensor:
    """See `vsim_fast.ops.nv12.nv12_to_pixels`. Computes in fp32, in fp64 for dtype=torch.float64."""
    compute = torch.promote_types(picture["dtype"], torch.float32)
    rgb = planes_to_rgb(y, uv, matrix=matrix, full_range=full_range, bit_depth=bit_depth, dtype=compute)
    return resize_and_normalise(rgb, **picture)


def rgb_to_pixels(rgb: Tensor, **picture) -> Tensor:
    """See `vsim_fast.ops.nv12.rgb_to_pixels`. Computes in fp32, in fp64 for dtype=torch.float64."""
    compute = torch.promote_types(picture["dtype"], torch.float32)
    return resize_and_normalise(rgb.permute(0, 3, 1, 2).to(compute), **picture)
