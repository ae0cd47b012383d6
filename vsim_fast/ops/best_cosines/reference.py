"""Plain torch: the oracle in float64, and what CUDA runs, there in the half precision of the tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vsim_fast.ops.best_cosines import BestCosines, QuantizedTokens

SCRATCH_BYTES = 16 << 20


def best_cosines(a: Tensor | QuantizedTokens, b: Tensor | QuantizedTokens) -> BestCosines:
    if isinstance(a, QuantizedTokens):
        a, b = (tokens.codes * tokens.scales.unsqueeze(-1) for tokens in (a, b))
    (frames_a, count_a, _), (frames_b, count_b, _) = a.shape, b.shape
    dtype = a.dtype if a.dtype == torch.float64 or a.is_cuda else torch.float32
    options = dict(dtype=torch.promote_types(dtype, torch.float32), device=a.device)
    a_in_b = torch.empty(frames_a, frames_b, count_a, **options)
    b_in_a = torch.empty(frames_a, frames_b, count_b, **options)
    pair_bytes = count_a * count_b * dtype.itemsize
    for m in _blocks(frames_b, pair_bytes):
        right = b[m].to(dtype)  # [bm, Kb, D]
        for n in _blocks(frames_a, pair_bytes * len(right)):
            left = a[n].to(dtype)  # [bn, Ka, D]
            cosines = (left.flatten(0, 1) @ right.flatten(0, 1).mT).clamp_(-1, 1)
            cosines = cosines.view(len(left), count_a, len(right), count_b)
            a_in_b[n, m] = cosines.amax(3).transpose(1, 2)
            b_in_a[n, m] = cosines.amax(1)
    return BestCosines(a_in_b, b_in_a)


def _blocks(count: int, bytes_each: int) -> Iterator[slice]:
    size = max(1, SCRATCH_BYTES // bytes_each)
    for start in range(0, count, size):
        yield slice(start, start + size)
