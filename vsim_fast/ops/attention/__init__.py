"""Softmax attention, as the layers of encoders compute it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vsim_fast.ops._checks import check_same, check_tensor
from vsim_fast.ops._dispatch import choose, why_not
from vsim_fast.processor import instruction_sets

__all__ = ["attention"]


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, backend: str | None = None) -> Tensor:
    """softmax(scale · q kᵀ) v of each head, without a mask.

    Args:
        q: [B, H, N, d] float16/bfloat16/float32/float64, any device and strides.
        k, v: [B, H, M, d], M >= 1, of the same dtype and device.
        scale: positive factor on the products; None is d ** -0.5.
        backend: "cpp" (bfloat16 on CPUs with AVX512-BF16; no gradient) or "reference" (torch's own, which has one);
            None picks the faster one that serves.
    Returns:
        [B, H, N, d] of the dtype of `q`; "cpp" lays it out as [B, N, H, d], so that heads are joined without a copy.
    Raises:
        ValueError: shapes, scale.  TypeError: dtypes.  RuntimeError: the backend cannot run.
    Memory: the result. "cpp": per thread k and v of one head, and 24 rows of scores.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, x, "[B, H, N, d]")
        check_same(f"q and {name}", q, x)
    shapes = f"got shapes {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
    if k.shape != v.shape or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]):
        raise ValueError(f"q, k and v must be [B, H, N, d], [B, H, M, d] and [B, H, M, d], {shapes}")
    if not (k.shape[2] and k.shape[3]):
        raise ValueError(f"k must have at least one token and d >= 1, {shapes}")
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if backend is None and (needs_gradient(q, k, v) or not core_is_faster(q.device, q.dtype)):
        backend = "reference"
    return choose("attention", q.device.type, backend)(q, k, v, scale=scale)


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd records what is done to them."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def core_is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the compiled core beats torch: with bfloat16 dot products, but not where torch has matrix tiles (AMX)."""
    if dtype != torch.bfloat16 or why_not("cpp", device.type) or "amx_bf16" in instruction_sets():
        return False
    from vsim_fast.ops.attention import native_impl

    return native_impl.USABLE
