"""The compiled core on CPU tensors, as int8 codes. Outputs are allocated here."""

from __future__ import annotations

import torch
from torch import Tensor

from vsim_fast import _C
from vsim_fast.ops.best_cosines import BestCosines, QuantizedTokens, quantize_tokens


def best_cosines(
    a: Tensor | QuantizedTokens, b: Tensor | QuantizedTokens, *, threads: int | None = None, simd: str = ""
) -> BestCosines:
    """As reference.best_cosines. `threads`: None: torch's, 0: all. `simd`: "" takes the fastest here."""
    a, b = (x if isinstance(x, QuantizedTokens) else quantize_tokens(x) for x in (a, b))
    (frames_a, count_a), (frames_b, count_b) = a.scales.shape, b.scales.shape
    out = BestCosines(torch.empty(frames_a, frames_b, count_a), torch.empty(frames_a, frames_b, count_b))
    arrays = (part.contiguous().numpy() for part in (*a, *b, *out))
    _C.best_cosines(*arrays, threads=torch.get_num_threads() if threads is None else threads, simd=simd)
    return out
