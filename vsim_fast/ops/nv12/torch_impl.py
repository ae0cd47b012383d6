"""The CPU path: whole levels, then torch's uint8 antialiased resize: SIMD for interleaved RGB, rounds as PIL does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.ops.nv12.reference import coded_window, orient, yuv_coefficients

FRACTION_BITS = 5  # int16 holds ±1023 levels with 5 bits behind the point: 1 % of the values come out one level off


def planes_to_rgb(y: Tensor, uv: Tensor, *, matrix: str, full_range: bool, bit_depth: int) -> Tensor:
    """uint8 [B, H, W, 3] of [B, H, W] and [B, ceil(H/2), ceil(W/2), 2], in int16 fixed point."""
    y0, c0, y_scale, rv, gu, gv, bu = yuv_coefficients(matrix, full_range, bit_depth)
    batch, height, width = y.shape
    one = 1 << FRACTION_BITS
    rgb = torch.empty(batch, height, width, 3, dtype=torch.uint8)
    for frame in range(batch):  # one frame's planes stay in cache, a batch's do not
        luma = y[frame].float().mul_(y_scale * one).add_((0.5 - y_scale * y0) * one).to(torch.int16)
        u, v = uv[frame].float().sub_(c0).mul_(one).unbind(-1)
        for channel, chroma in enumerate((v * rv, u * gu + v * gv, u * bu)):
            # both pixels of a pair at once: the same int16 in the two halves of an int32
            pairs = chroma.to(torch.int32).bitwise_and_(0xFFFF).mul_(0x10001).view(torch.int16)[:, :width]
            for parity in (0, 1):
                rows = luma[parity::2]
                levels = (rows + pairs[: len(rows)]).bitwise_right_shift_(FRACTION_BITS).clamp_(0, 255)
                rgb[frame, parity::2, :, channel] = levels
    return rgb


def nv12_to_pixels(y: Tensor, uv: Tensor, *, matrix: str, full_range: bool, bit_depth: int, **picture) -> Tensor:
    """See `vsim_fast.ops.nv12.nv12_to_pixels`."""
    return rgb_to_pixels(planes_to_rgb(y, uv, matrix=matrix, full_range=full_range, bit_depth=bit_depth), **picture)


def rgb_to_pixels(
    rgb: Tensor, *, size, crop, mean, std, interpolation: str, rotation: int, mirrored: bool, dtype, out: Tensor | None
) -> Tensor:
    """See `vsim_fast.ops.nv12.rgb_to_pixels`."""
    full, (top, left, height, width) = coded_window(size, crop, rotation, mirrored)
    levels = F.interpolate(rgb.contiguous().permute(0, 3, 1, 2), size=full, mode=interpolation, antialias=True)
    levels = orient(levels[..., top : top + height, left : left + width], rotation, mirrored)
    out = torch.empty(levels.shape, dtype=dtype) if out is None else out
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        out[:, channel] = levels[:, channel].float().mul_(1 / (255 * s)).sub_(m / s)
    return out
