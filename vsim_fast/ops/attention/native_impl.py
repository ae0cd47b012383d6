"""The compiled core on bfloat16 CPU tensors. The output is allocated here."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vsim_fast import _C

USABLE: bool = _C.has_bfloat16


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, threads: int | None = None) -> Tensor:
    """As reference.attention. `threads`: None: torch's, 0: all."""
    batch, heads, count, dim = q.shape
    out = torch.empty(batch, count, heads, dim, dtype=q.dtype).transpose(1, 2)
    if not out.numel():
        return out
    threads = torch.get_num_threads() if threads is None else threads
    _C.attention(*map(_bits, (q, k, v, out)), scale=scale, threads=threads)
    return out


@torch.library.custom_op("vsim_fast::attention", mutates_args=(), device_types="cpu")
def _compilable(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """What torch.compile calls: it cannot look into the core."""
    return attention(q, k, v, scale=scale)


@_compilable.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    batch, heads, count, dim = q.shape
    return q.new_empty(batch, count, heads, dim).transpose(1, 2)


def _bits(x: Tensor) -> np.ndarray:
    """Where they lie; copied if a token's numbers do not lie side by side."""
    if x.dtype != torch.bfloat16:
        raise TypeError(f"backend 'cpp' takes bfloat16, got {str(x.dtype).removeprefix('torch.')}")
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("backend 'cpp' has no gradient, and an input requires one; use 'reference'")
    x = x.detach()
    return (x if x.stride(-1) == 1 else x.contiguous()).view(torch.int16).numpy().view(np.uint16)
