"""The compiled core on CPU tensors. Outputs are allocated here, but for the pairs, whose number only it knows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vsim_fast import _C
from vsim_fast.ops.top_k import Pairs, TopK, refuse_number, refuse_vector

SAMPLE = 1024


def top_k(queries: Tensor, vectors: Tensor, k: int, *, threads: int | None = None, simd: str = "") -> TopK:
    """As reference.top_k. `threads`: None: torch's, 0: all. `simd`: "" takes the fastest here."""
    out = TopK(torch.empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64))
    arrays = _numbers(queries), _numbers(vectors), _sample_mean(vectors), *(part.numpy() for part in out)
    if (bad := _C.top_k(*arrays, threads=torch.get_num_threads() if threads is None else threads, simd=simd)) >= 0:
        refuse_vector(bad)
    return out


def pairs_above(vectors: Tensor, threshold: float, most: int, *, threads: int | None = None, simd: str = "") -> Pairs:
    bad, index, scores = _C.pairs_above(
        _numbers(vectors), _sample_mean(vectors), threshold, most,
        threads=torch.get_num_threads() if threads is None else threads, simd=simd,
    )  # fmt: skip
    if bad >= 0:
        refuse_vector(bad)
    if bad == -2:
        refuse_number(most)
    return Pairs(torch.from_numpy(index), torch.from_numpy(scores))


def _numbers(rows: Tensor) -> np.ndarray:
    """float32, or the bits of float16, where they lie if they can."""
    if rows.dtype != torch.float16:
        return rows.float().contiguous().numpy()
    return rows.contiguous().view(torch.int16).numpy().view(np.uint16)


def _sample_mean(vectors: Tensor) -> np.ndarray:
    """[D] mean of vectors spread over all; any vector gives right results, this one close bounds."""
    sample = vectors[:: max(1, len(vectors) // SAMPLE)].float()
    return (sample.mean(0) if len(sample) else sample.new_zeros(vectors.shape[1])).nan_to_num(0, 0, 0).numpy()
