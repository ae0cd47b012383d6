"""For each token of a frame its best cosine in another frame, both ways, for all pairs of frames of two videos.

The inner loop of copy detection. On CPUs it runs on int8 codes with one scale per token and exact integer dot products;
quantise a video once and pass the result to every comparison.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.ops._checks import check_same, check_tensor
from vsim_fast.ops._dispatch import choose

__all__ = ["BestCosines", "QuantizedTokens", "best_cosines", "quantize_tokens"]

CODE_MULTIPLE, MOST_CODES = 64, 1 << 16
"""Codes per token: zero-padded to a multiple of the one, at most the other, so that dot products fit in int32."""
BLOCK_ROWS = 1024
"""Tokens quantised at a time, so that what lies between stays in cache."""
SIGNS = 0x9E3779B97F4A7C15
"""Bits of no pattern: the signs of the rotation, which every code ever made must share."""


class QuantizedTokens(NamedTuple):
    """codes · scales ≈ tokens after a fixed rotation, which keeps cosines; off by at most half a scale per entry."""

    codes: Tensor
    """[..., K, D'] int8 in [-127, 127]; D' is D rounded up to a multiple of 64 with zeros."""
    scales: Tensor
    """[..., K] float32, the largest magnitude of the rotated token / 127; 0 for a zero token."""


class BestCosines(NamedTuple):
    """Float32 (float64 for float64 input to the reference), in [-1, 1]."""

    a_in_b: Tensor
    """[N, M, Ka] best cosine of each token of frame n of a among the tokens of frame m of b."""
    b_in_a: Tensor
    """[N, M, Kb] best cosine of each token of frame m of b among the tokens of frame n of a."""


def quantize_tokens(tokens: Tensor) -> QuantizedTokens:
    """Int8 codes with one scale per token, for `best_cosines`.

    Args:
        tokens: [..., K, D] float16/bfloat16/float32/float64, any device and strides, D in 1 … 65536.
    Raises:
        ValueError: shape, or a token with NaN or infinity.  TypeError: dtype.
    Memory: the codes; a copy of `tokens` if their strides need one.
    Source: tokens of transformers hold a few large entries, and flat patches too; a Hadamard rotation spreads those, so
        that a step of int8 is a third as large (Ashkboos et al. 2024, QuaRot).
    """
    leading = tokens.ndim - 2 if isinstance(tokens, Tensor) else 0
    check_tensor("tokens", tokens, f"[{'…, ' * leading}K, D]")
    *leading, dim = tokens.shape
    if not 1 <= dim <= MOST_CODES:
        raise ValueError(f"tokens must have D in 1 … {MOST_CODES}, got shape {tuple(tokens.shape)}")
    width = -(-dim // CODE_MULTIPLE) * CODE_MULTIPLE
    codes = torch.empty(math.prod(leading), width, dtype=torch.int8, device=tokens.device)
    scales = torch.empty(len(codes), device=tokens.device)
    turn, rows = _rotation(tokens.device), tokens.reshape(-1, dim)
    for block in (slice(start, start + BLOCK_ROWS) for start in range(0, len(rows), BLOCK_ROWS)):
        values = F.pad(rows[block].float(), (0, width - dim)).unflatten(-1, (-1, CODE_MULTIPLE)) @ turn
        values = values.flatten(1)  # [rows, D']
        scale = values.abs().amax(1, keepdim=True) / 127
        scale.masked_fill_(scale < torch.finfo(torch.float32).tiny, 0)  # too small to divide by: as good as zero
        codes[block] = (values * torch.where(scale > 0, 1 / scale, 0)).round_()
        scales[block] = scale.squeeze(1)
    if not scales.isfinite().all():
        bad = int((~scales.isfinite()).nonzero()[0])
        raise ValueError(f"tokens must be finite and of moderate size, got {rows[bad].abs().max().item():g}")
    return QuantizedTokens(codes.view(*leading, width), scales.view(leading))


@cache
def _rotation(device: torch.device) -> Tensor:
    """[64, 64] Hadamard matrix after fixed changes of sign: spreads what one entry, or a mean, holds over 64."""
    hadamard = torch.ones(1, 1)
    while len(hadamard) < CODE_MULTIPLE:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    signs = torch.tensor([[1.0 - 2.0 * (SIGNS >> k & 1)] for k in range(CODE_MULTIPLE)])
    return (signs * hadamard / math.sqrt(CODE_MULTIPLE)).to(device)


def best_cosines(
    a: Tensor | QuantizedTokens, b: Tensor | QuantizedTokens, *, backend: str | None = None
) -> BestCosines:
    """The best cosine of every token of N frames in each of M frames, and back, without the cosines themselves.

    Args:
        a: [N, Ka, D] tokens of unit length or zero (not checked), float16/bfloat16/float32 (float64: in full only by
            the reference), any strides; or what `quantize_tokens` made of them. Frames of fewer tokens: pad with zeros.
        b: [M, Kb, D], likewise: both quantised, or both of one dtype; on the device of `a`.
        backend: "cpp" (CPU) or "reference"; None picks the fastest that runs on the device. "cpp" works on int8 codes
            and quantises whatever is not yet, float32 too: cosines of natural tokens stay within 4e-3. On CUDA the
            reference serves, in the half precision of the tokens where they come in one; see `best_match` for the
            fused kernel that takes one pair of frames, or as many pairs, at a time.
    Returns:
        `BestCosines`. A zero token scores 0 with every token, and is one of them: the best where the others score less.
    Raises:
        ValueError: shapes that do not fit, a frame without tokens, NaN or infinity to be quantised.
        TypeError: dtype, or one side quantised alone.  RuntimeError: the backend cannot run.
    Memory: the results. "cpp": the codes, and per thread those of a frame of each side twice. "reference": 16 MiB of
        scratch, or one pair's cosines and tokens in float32 if larger; of quantised tokens all in float32.
    """
    quantized = isinstance(a, QuantizedTokens)
    if quantized != isinstance(b, QuantizedTokens):
        raise TypeError("a and b must both be quantised or neither; see quantize_tokens")
    if quantized:
        _check_codes("a", a)
        _check_codes("b", b)
    tokens_a, tokens_b = (a.codes, b.codes) if quantized else (a, b)
    if not quantized:
        check_tensor("a", a, "[N, Ka, D]")
        check_tensor("b", b, "[M, Kb, D]")
    check_same("a and b", tokens_a, tokens_b)
    shapes = f"got shapes {tuple(tokens_a.shape)} and {tuple(tokens_b.shape)}"
    if tokens_a.shape[2] != tokens_b.shape[2]:
        raise ValueError(f"a and b must agree in D, {shapes}")
    if not (tokens_a.shape[1] and tokens_b.shape[1] and tokens_a.shape[2]):
        raise ValueError(f"a and b must have at least one token per frame and D >= 1, {shapes}")
    return choose("best_cosines", tokens_a.device.type, backend)(a, b)


def _check_codes(name: str, tokens: QuantizedTokens) -> None:
    codes, scales = tokens
    check_tensor(f"{name}.codes", codes, "[frames, K, D']", (torch.int8,))
    check_tensor(f"{name}.scales", scales, "[frames, K]", (torch.float32,))
    if scales.shape != codes.shape[:2] or scales.device != codes.device:
        raise ValueError(
            f"{name}.scales must be {tuple(codes.shape[:2])} on {codes.device}, "
            f"got {tuple(scales.shape)} on {scales.device}"
        )
    if codes.shape[2] % CODE_MULTIPLE or codes.shape[2] > MOST_CODES:
        raise ValueError(
            f"{name}.codes must have D' a multiple of {CODE_MULTIPLE} up to {MOST_CODES}, got {tuple(codes.shape)}"
        )
