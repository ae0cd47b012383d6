"""One launch from 4:2:0 planes to normalised pixels: a tile of outputs is Wv · RGB · Whᵀ, RGB made on the way in.

A program owns TH×TW outputs of one frame and walks the source block that their filters reach, in chunks of KH×KW
chroma positions. Each chunk becomes RGB in registers, split by row and column parity, so that chroma needs no
upsampling and two luma neighbours arrive as one 16-bit word; the filter matrices are split the same way. Levels are
kept as 1024 + level: there fp16 steps by exactly one, so adding 1024 rounds. The bias leaves with the fp32 sums.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vsim_fast.ops._triton_compile import CompileCase
from vsim_fast.ops.nv12.reference import coded_window, resize_matrix, yuv_coefficients


class Tile(NamedTuple):
    """th × tw outputs per program, kh × kw chroma positions per step, and launch options."""

    th: int
    tw: int
    kh: int
    kw: int
    num_warps: int
    num_stages: int


TILES = {"nv12_to_pixels": Tile(32, 64, 32, 64, 8, 3)}  # bench/tune.py times others
ALIGN = 8  # chunks start at multiples of this many chroma columns: 16-byte loads


@triton.jit
def _load_words(at, cols, inside, right_inside, PAIRED: tl.constexpr, BITS: tl.constexpr):
    """[KH, KW] words of two codes, the left one in the low half; `at` points to words if PAIRED, else to codes."""
    if PAIRED:
        words = tl.load(at + cols, inside, 0)
    else:
        left = tl.load(at + 2 * cols, inside, 0).to(tl.int32) & ((1 << BITS) - 1)
        right = tl.load(at + 2 * cols + 1, right_inside, 0).to(tl.int32)
        words = (left | (right << BITS)).to(tl.int16 if BITS == 8 else tl.int32)
    return words


@triton.jit
def _halves(word, zero: tl.constexpr, BITS: tl.constexpr):
    """The low and the high half of each word, less `zero`, as numbers: fp16 for 8 bits, else fp32."""
    if BITS == 8:  # fp16 1024 + n has the bit pattern 0x6400 + n: no conversion instruction, two pixels per operation
        low = ((word & 0xFF) | 0x6400).to(tl.float16, bitcast=True) - (1024.0 + zero)
        high = (((word >> 8) & 0xFF) | 0x6400).to(tl.float16, bitcast=True) - (1024.0 + zero)
    else:
        low = (word & 0xFFFF).to(tl.float32) - zero
        high = ((word >> 16) & 0xFFFF).to(tl.float32) - zero
    return low, high


@triton.jit
def _levels(luma, chroma, y_scale: tl.constexpr, SATURATE: tl.constexpr):
    """fp16 1024 + level, clamped and rounded; `chroma` is on the 0..1 scale and holds the luma offset."""
    if SATURATE:  # two pixels' multiply, add and clamp in one instruction; Triton would clamp by two more
        unit = tl.inline_asm_elementwise(
            "fma.rn.sat.f16x2 $0, $1, $2, $3;", "=r,r,r,r", [luma, tl.full((), y_scale, tl.float16), chroma],
            dtype=tl.float16, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        unit = tl.minimum(tl.maximum(luma * y_scale + chroma, 0.0), 1.0)
    return (unit * 255.0 + 1024.0).to(tl.float16)


@triton.jit
def _store(out_at, levels, mask, scale, bias):
    tl.store(out_at, tl.minimum(tl.maximum(levels, 0.0), 255.0) * scale + bias, mask)


@triton.jit
def nv12_to_pixels_kernel(
    y_ptr, uv_ptr, out_ptr, wv_ptr, wh_ptr, v_sum_ptr, v_span_ptr, h_span_ptr,
    height, width, out_h, out_w, tiles_h, tiles_w, pairs,
    y_stride_b, y_stride_h, uv_stride_b, uv_stride_h,
    out_base, out_stride_b, out_stride_c, out_stride_h, out_stride_w,
    v_reach, h_reach,
    scale_r, scale_g, scale_b, bias_r, bias_g, bias_b,
    y_scale: tl.constexpr, y_bias: tl.constexpr, c_bias: tl.constexpr,
    rv: tl.constexpr, gu: tl.constexpr, gv: tl.constexpr, bu: tl.constexpr,
    PAIRED: tl.constexpr, QUANTUM: tl.constexpr, BITS: tl.constexpr, SATURATE: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    tile_w, tile_h, b = tile % tiles_w, tile // tiles_w % tiles_h, (tile // tiles_w // tiles_h).to(tl.int64)
    oh = tile_h * TH + tl.arange(0, TH)
    ow = tile_w * TW + tl.arange(0, TW)
    first_row, row_count = tl.load(v_span_ptr + tile_h * 2), tl.load(v_span_ptr + tile_h * 2 + 1)
    first_col, col_count = tl.load(h_span_ptr + tile_w * 2) * ALIGN, tl.load(h_span_ptr + tile_w * 2 + 1)
    wv_at = wv_ptr + (tile_h * 2 * TH + tl.arange(0, TH))[:, None] * v_reach  # [TH, 1]
    wh_at = wh_ptr + (tile_w * 2 * TW + tl.arange(0, TW))[None, :] * h_reach  # [1, TW]
    y_ptr += b * y_stride_b * QUANTUM
    uv_ptr += b * uv_stride_b * QUANTUM
    v_bias = tl.load(v_sum_ptr + oh)[:, None] * 1024.0  # [TH, 1], what the 1024 adds to each filtered row

    out_r = tl.zeros((TH, TW), tl.float32)
    out_g = tl.zeros((TH, TW), tl.float32)
    out_b = tl.zeros((TH, TW), tl.float32)
    r0 = tl.zeros((TH, KW), tl.float32)  # filtered down the rows; even columns
    g0 = tl.zeros((TH, KW), tl.float32)
    b0 = tl.zeros((TH, KW), tl.float32)
    r1 = tl.zeros((TH, KW), tl.float32)  # odd columns
    g1 = tl.zeros((TH, KW), tl.float32)
    b1 = tl.zeros((TH, KW), tl.float32)
    row_steps = tl.cdiv(row_count, KH)
    for step in range(tl.cdiv(col_count, KW) * row_steps):  # one loop, so that loads run ahead into the next columns
        row, col = step % row_steps * KH, step // row_steps * KW
        rows = first_row + row + tl.arange(0, KH)
        cols = (first_col + col + tl.arange(0, KW))[None, :]
        cols_inside, right_inside = cols < pairs * QUANTUM, 2 * cols + 1 < width
        inside = (2 * rows < height)[:, None] & cols_inside
        uv_at = uv_ptr + rows[:, None].to(tl.int64) * uv_stride_h * QUANTUM
        u, v = _halves(_load_words(uv_at, cols, inside, inside, PAIRED, BITS), c_bias, BITS)
        chroma_r = v * rv + y_bias
        chroma_g = u * gu + (v * gv + y_bias)
        chroma_b = u * bu + y_bias
        for parity in tl.static_range(2):
            luma_rows = 2 * rows + parity
            inside = (luma_rows < height)[:, None] & cols_inside
            y_at = y_ptr + luma_rows[:, None].to(tl.int64) * y_stride_h * QUANTUM
            y0, y1 = _halves(_load_words(y_at, cols, inside, inside & right_inside, PAIRED, BITS), 0.0, BITS)
            wv = tl.load(wv_at + parity * TH * v_reach + row + tl.arange(0, KH)[None, :])  # [TH, KH]
            r0 = tl.dot(wv, _levels(y0, chroma_r, y_scale, SATURATE), r0)
            g0 = tl.dot(wv, _levels(y0, chroma_g, y_scale, SATURATE), g0)
            b0 = tl.dot(wv, _levels(y0, chroma_b, y_scale, SATURATE), b0)
            r1 = tl.dot(wv, _levels(y1, chroma_r, y_scale, SATURATE), r1)
            g1 = tl.dot(wv, _levels(y1, chroma_g, y_scale, SATURATE), g1)
            b1 = tl.dot(wv, _levels(y1, chroma_b, y_scale, SATURATE), b1)
        if row + KH >= row_count:  # these columns are done: across them, then start anew
            wh0 = tl.load(wh_at + col + tl.arange(0, KW)[:, None])  # [KW, TW]
            wh1 = tl.load(wh_at + TW * h_reach + col + tl.arange(0, KW)[:, None])
            out_r = tl.dot((r0 - v_bias).to(tl.float16), wh0, out_r)
            out_g = tl.dot((g0 - v_bias).to(tl.float16), wh0, out_g)
            out_b = tl.dot((b0 - v_bias).to(tl.float16), wh0, out_b)
            out_r = tl.dot((r1 - v_bias).to(tl.float16), wh1, out_r)
            out_g = tl.dot((g1 - v_bias).to(tl.float16), wh1, out_g)
            out_b = tl.dot((b1 - v_bias).to(tl.float16), wh1, out_b)
            r0, g0, b0 = tl.zeros_like(r0), tl.zeros_like(g0), tl.zeros_like(b0)
            r1, g1, b1 = tl.zeros_like(r1), tl.zeros_like(g1), tl.zeros_like(b1)

    offsets = oh[:, None].to(tl.int64) * out_stride_h + ow[None, :].to(tl.int64) * out_stride_w
    out_at = out_ptr + out_base + b * out_stride_b + offsets
    mask = (oh < out_h)[:, None] & (ow < out_w)[None, :]
    _store(out_at, out_r, mask, scale_r, bias_r)
    _store(out_at + out_stride_c, out_g, mask, scale_g, bias_g)
    _store(out_at + 2 * out_stride_c, out_b, mask, scale_b, bias_b)


@lru_cache(maxsize=32)
def _filter_tables(
    in_size: int, out_size: int, interpolation: str, first: int, count: int, tile: int, step: int, align: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`resize_matrix` cut into tiles of outputs, each from the first position its filters reach on; padded with zeros,
    so that the kernel needs no mask. A position is a pair of input pixels.

    Returns:
        weights: fp16 [tiles, 2, tile, reach], of input pixel 2·(begin + j) + parity; `reach` is a multiple of `step`.
        sums: fp32 [tiles · tile], of the rounded weights.
        spans: int32 [tiles, 2], begin / align and the number of positions.
    """
    matrix = resize_matrix(in_size, out_size, interpolation, first, count)
    bands = []
    for band in matrix.split(tile):
        used = band.ne(0).any(0).nonzero().flatten() // 2
        begin, end = int(used[0]) // align * align, int(used[-1]) + 1
        bands.append((band[:, 2 * begin : 2 * end], begin // align, end - begin))
    reach = triton.cdiv(max(length for *_, length in bands), step) * step
    weights = torch.zeros(len(bands), tile, reach, 2, dtype=torch.float64)
    for table, (band, _, _) in zip(weights, bands, strict=True):
        table.flatten(1)[: band.shape[0], : band.shape[1]] = band
    weights = weights.permute(0, 3, 1, 2).half().contiguous()
    sums = weights.double().sum((1, 3)).float().flatten()
    spans = torch.tensor([span for _, *span in bands], dtype=torch.int32)
    return weights.to(device), sums.to(device), spans.to(device)


def _words(plane: Tensor, bits: int) -> Tensor | None:
    """[..., 2n] codes as [..., n] words of two, or None where the layout does not allow it."""
    strides = plane.stride()
    if plane.shape[-1] % 2 or strides[-1] != 1 or any(s % 2 for s in (*strides[:-1], plane.storage_offset())):
        return None
    return plane.view(torch.int16 if bits == 8 else torch.int32)


def _constexprs(
    tile: Tile, matrix: str, full_range: bool, bit_depth: int, paired: bool, quantum: int, saturate: bool
) -> dict[str, object]:
    """Compile-time arguments. The colour coefficients are among them so that the compiler moves the raw words, not RGB,
    through shared memory: it hoists a layout change over arithmetic with constants alone. `quantum` divides the width
    and the strides, which come divided by it: then loads of that many words are known to be aligned."""
    y_offset, c_offset, y_scale, rv, gu, gv, bu = yuv_coefficients(matrix, full_range, bit_depth)
    return dict(
        y_scale=y_scale / 255, y_bias=-y_scale * y_offset / 255, c_bias=c_offset,
        rv=rv / 255, gu=gu / 255, gv=gv / 255, bu=bu / 255,
        PAIRED=paired, QUANTUM=quantum, BITS=8 if bit_depth == 8 else 16, SATURATE=bit_depth == 8 and saturate,
        TH=tile.th, TW=tile.tw, KH=tile.kh, KW=tile.kw, ALIGN=ALIGN,
    )  # fmt: skip


def nv12_to_pixels(
    y: Tensor, uv: Tensor, *, size, crop, mean, std, matrix: str, full_range: bool, bit_depth: int,
    interpolation: str, rotation: int, mirrored: bool, dtype: torch.dtype, out: Tensor | None,
) -> Tensor:  # fmt: skip
    """See `vsim_fast.ops.nv12.nv12_to_pixels`. Weights, filtered rows and 8-bit colour are fp16, all sums fp32."""
    batch, height, width = y.shape
    if out is None:
        out = torch.empty(batch, 3, *crop[2:], dtype=dtype, device=y.device)
    if batch == 0:
        return out
    full, (top, left, out_h, out_w) = coded_window(size, crop, rotation, mirrored)
    tile = TILES["nv12_to_pixels"]
    wv, v_sum, v_span = _filter_tables(height, full[0], interpolation, top, out_h, tile.th, tile.kh, 1, y.device)
    wh, _, h_span = _filter_tables(width, full[1], interpolation, left, out_w, tile.tw, tile.kw, ALIGN, y.device)

    bits = 8 * y.itemsize
    y = y if y.stride(2) == 1 else y.contiguous()
    uv = (uv if uv.stride()[2:] == (2, 1) else uv.contiguous()).flatten(2)  # [B, ceil(H/2), 2·ceil(W/2)]
    y_words, uv_words = _words(y, bits), _words(uv, bits)
    paired = y_words is not None and uv_words is not None
    if paired:
        y, uv = y_words, uv_words
    elif bits == 16:
        y, uv = y.view(torch.int16), uv.view(torch.int16)
    steps = ((width + 1) // 2, *y.stride()[:2], *uv.stride()[:2])
    quantum = math.gcd(16, *steps) if paired else 1

    base, h_stride, w_stride, shown_h, shown_w = 0, *out.stride()[2:], *crop[2:]
    if mirrored:
        base, w_stride = (shown_w - 1) * w_stride, -w_stride
    for _ in range(rotation // 90):  # write through the inverse of a counter-clockwise quarter turn
        base += (shown_h - 1) * h_stride
        h_stride, w_stride, shown_h, shown_w = w_stride, -h_stride, shown_w, shown_h
    saturate = isinstance(nv12_to_pixels_kernel, triton.JITFunction)  # the interpreter knows no PTX
    with torch.cuda.device_of(y):
        nv12_to_pixels_kernel[(batch * len(v_span) * len(h_span),)](
            y, uv, out, wv, wh, v_sum, v_span, h_span,
            height, width, out_h, out_w, len(v_span), len(h_span), *(step // quantum for step in steps),
            base, *out.stride()[:2], h_stride, w_stride,
            wv.shape[3], wh.shape[3],
            *(1 / (255 * s) for s in std), *(-m / s for m, s in zip(mean, std, strict=True)),
            **_constexprs(tile, matrix, full_range, bit_depth, paired, quantum, saturate),
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out


def compile_cases() -> list[CompileCase]:
    """The specialisations of 8- and 10-bit frames: aligned, less aligned, and of odd width (quantum 0: not paired)."""
    tile = TILES["nv12_to_pixels"]

    def case(name: str, plane: str, out: str, bit_depth: int, quantum: int) -> CompileCase:
        constexprs = _constexprs(tile, "bt709", False, bit_depth, quantum > 0, max(quantum, 1), True)
        pointers = dict(
            y_ptr=plane, uv_ptr=plane, out_ptr=out, wv_ptr="*fp16", wh_ptr="*fp16",
            v_sum_ptr="*fp32", v_span_ptr="*i32", h_span_ptr="*i32",
        )  # fmt: skip
        names = [name for name in nv12_to_pixels_kernel.arg_names if name not in constexprs]
        signature = {name: "fp32" if name.startswith(("scale_", "bias_")) else "i32" for name in names}
        signature |= {name: kind + ":16" for name, kind in (pointers | dict(v_reach="i32", h_reach="i32")).items()}
        name = f"nv12_to_pixels-{name}"
        return CompileCase(name, nv12_to_pixels_kernel, signature, constexprs, tile.num_warps, tile.num_stages)

    return [
        case("8bit-fp16", "*i16", "*fp16", 8, 16),
        case("8bit-fp32", "*i16", "*fp32", 8, 16),
        case("8bit-1080_wide-fp16", "*i16", "*fp16", 8, 4),
        case("10bit-bf16", "*i32", "*bf16", 10, 16),
        case("8bit-odd-fp16", "*u8", "*fp16", 8, 0),
        case("10bit-odd-fp16", "*i16", "*fp16", 10, 0),
    ]
