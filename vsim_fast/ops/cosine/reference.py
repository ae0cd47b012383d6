"""Plain torch: the oracle in float64, and what a CPU runs.

Position and intra-frame similarity are one function on [N, M, D]: N matrices over M vectors. Where only the triangle
is multiplied, the vectors are read in place and the norms divide the products, so that float32 input is never copied.
Scratch stays within SCRATCH_BYTES, or one matrix and its vectors in float32 if that is more.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vsim_fast.ops.cosine._results import BestMatch, SimilarityStats, TopMatches, only

SCRATCH_BYTES = 16 << 20
PANEL = 256
"""Rows of the upper triangle multiplied at once: 5/8 of the multiplications at M = 1024, mirrored by copy."""


def position_similarity(patches: Tensor, *, reduce: str | None, k: int, out: Tensor | None):
    return _gram(patches.transpose(0, 1), reduce, k, out)


def intra_frame_similarity(patches: Tensor, *, reduce: str | None, k: int, out: Tensor | None):
    return _gram(patches, reduce, k, out)


def frame_similarity(patches: Tensor, *, reduce: str | None, k: int, out: Tensor | None):
    frames, positions, dim = patches.shape
    means = torch.empty(frames, dim, dtype=_compute_dtype(patches), device=patches.device)
    for block in _blocks(frames, positions * dim * means.element_size()):
        torch.sum(patches[block].to(means.dtype), dim=1, out=means[block])  # [b, D]
    means /= max(positions, 1)
    result = _gram(means[None], reduce, k, None if out is None else out[None])
    return out if reduce is None else only(result)


def best_match(a: Tensor, b: Tensor) -> BestMatch:
    pairs, rows_a, dim = a.shape
    rows_b, dtype = b.shape[1], _compute_dtype(a)
    options = {"dtype": dtype, "device": a.device}
    scores_ab, scores_ba = torch.empty(pairs, rows_a, **options), torch.full((pairs, rows_b), -torch.inf, **options)
    index_ab, index_ba = (torch.zeros_like(scores, dtype=torch.int64) for scores in (scores_ab, scores_ba))
    for pair in _blocks(pairs, (rows_a + rows_b) * dim * dtype.itemsize):
        unit_a, unit_b = _unit(a[pair]), _unit(b[pair])  # [n, Pa, D] [n, Pb, D]
        for rows in _blocks(rows_a, len(unit_a) * rows_b * dtype.itemsize):
            scores = torch.bmm(unit_a[:, rows], unit_b.mT)  # [n, r, Pb]
            torch.max(scores, 2, out=(scores_ab[pair, rows], index_ab[pair, rows]))
            best, index = scores.mT.contiguous().max(2)  # twice as fast as max over a strided axis
            better = (best > scores_ba[pair]) | best.isnan()
            scores_ba[pair] = torch.where(better, best, scores_ba[pair])
            index_ba[pair] = torch.where(better, index + rows.start, index_ba[pair])
    return BestMatch(scores_ab.clamp_(-1, 1), index_ab, scores_ba.clamp_(-1, 1), index_ba)


def _gram(x: Tensor, reduce: str | None, k: int, out: Tensor | None):
    if reduce == "stats":
        return _gram_stats(x)
    return _gram_store(x, out) if reduce is None else _gram_topk(x, k)


def _gram_store(x: Tensor, out: Tensor) -> Tensor:
    matrices, rows, dim = x.shape
    dtype = _compute_dtype(x)
    for block in _blocks(matrices, rows * (rows + dim) * dtype.itemsize):
        wide, target = x[block].to(dtype), out[block]  # [b, M, D] [b, M, M]
        inverse = _inverse_norm(wide)  # [b, M]
        scores = target if target.dtype == dtype else torch.empty(target.shape, dtype=dtype, device=x.device)
        for start in range(0, rows, PANEL):
            panel = scores[:, start : start + PANEL, start:]  # [b, 256, M - start]
            _cosine_panel(wide, inverse, start, panel)
            scores[:, start + PANEL :, start : start + PANEL] = panel[:, :, PANEL:].mT
        if scores is not target:
            target.copy_(scores)
    return out


def _gram_stats(x: Tensor) -> SimilarityStats:
    matrices, rows, dim = x.shape
    dtype = _compute_dtype(x)
    mean, squares, low, high = torch.zeros(4, matrices, dtype=torch.float64, device=x.device)
    low.fill_(torch.inf), high.fill_(-torch.inf)
    for block in _blocks(matrices, rows * (min(rows, PANEL) + dim) * dtype.itemsize):
        wide = x[block].to(dtype)  # [b, M, D]
        inverse = _inverse_norm(wide)  # [b, M]
        total = torch.bmm(inverse[:, None], wide)  # [b, 1, D]: the entries of a Gram matrix sum to its squared norm
        mean[block] = total.double().square().sum((1, 2)) / rows**2
        for start in range(0, rows, PANEL):
            panel = torch.empty(len(wide), min(PANEL, rows - start), rows - start, dtype=dtype, device=x.device)
            _cosine_panel(wide, inverse, start, panel)
            low[block] = torch.minimum(low[block], panel.amin((1, 2)).double())
            high[block] = torch.maximum(high[block], panel.amax((1, 2)).double())
            panel -= mean[block, None, None].to(dtype)
            once, twice = panel[:, :, :PANEL], panel[:, :, PANEL:]  # the diagonal block, and what is mirrored
            squares[block] += _square_sum(once) + 2 * _square_sum(twice)
    return SimilarityStats(mean, (squares / rows**2).sqrt(), low, high, count=rows**2)


def _gram_topk(x: Tensor, k: int) -> TopMatches:
    matrices, rows, dim = x.shape
    dtype = _compute_dtype(x)
    values = torch.empty(matrices, rows, k, dtype=dtype, device=x.device)
    indices = torch.empty(values.shape, dtype=torch.int64, device=x.device)
    for block in _blocks(matrices, rows * dim * dtype.itemsize):
        unit = _unit(x[block])  # [b, M, D]
        for part in _blocks(rows, len(unit) * rows * dtype.itemsize):
            scores = torch.bmm(unit[:, part], unit.mT)  # [b, r, M]
            scores.diagonal(part.start, 1, 2).fill_(-torch.inf)
            values[block, part], indices[block, part] = scores.topk(k)
    return TopMatches(values.clamp_(-1, 1), indices)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _blocks(count: int, bytes_each: int) -> Iterator[slice]:
    """Slices of `range(count)` of as many items as SCRATCH_BYTES hold, at least one."""
    step = max(1, SCRATCH_BYTES // max(1, bytes_each))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _inverse_norm(x: Tensor) -> Tensor:
    """1 / norm of x [..., D]; 0 for a zero vector."""
    norm = torch.linalg.vector_norm(x, dim=-1)
    return torch.where(norm != 0, 1 / norm, 0)


def _cosine_panel(x: Tensor, inverse: Tensor, start: int, out: Tensor) -> None:
    """The panel of the upper triangle whose first row and column are `start`, into out [b, r, M - start]."""
    stop = start + out.shape[1]
    torch.bmm(x[:, start:stop], x[:, start:].mT, out=out)
    out.mul_(inverse[:, start:stop, None]).mul_(inverse[:, None, start:]).clamp_(-1, 1)


def _unit(x: Tensor) -> Tensor:
    """x [..., D] over its norm in the compute dtype; a zero vector stays zero."""
    x = x.to(_compute_dtype(x))
    return x * _inverse_norm(x).unsqueeze(-1)


def _square_sum(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(1, 2)).double().square()
