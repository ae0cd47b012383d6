"""Plain torch, a block of vectors at a time: the oracle in float64, and what CUDA runs where no kernel serves."""

from __future__ import annotations

import torch
from torch import Tensor

from vsim_fast.ops.top_k import LONGEST, Pairs, TopK, refuse_number, refuse_vector

BLOCK_BYTES = 16 << 20
"""Of vectors in the dtype computed in, and of their scores."""


def top_k(queries: Tensor, vectors: Tensor, k: int) -> TopK:
    queries = queries.to(dtype := torch.promote_types(vectors.dtype, torch.float32))
    scores = queries.new_empty(len(queries), 0)  # the best so far by ascending index, so that ties keep their order
    index = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    block = max(1, BLOCK_BYTES // (dtype.itemsize * max(queries.shape)))
    for start in range(0, len(vectors), block):
        products = queries @ _checked(vectors[start : start + block].to(dtype), start).mT  # [Q, block]
        if scores.shape[1] == k and not (products > scores.amin(1, keepdim=True)).any():
            continue
        rows = torch.arange(start, start + products.shape[1], device=index.device).expand_as(products)
        scores, index = torch.cat([scores, products], 1), torch.cat([index, rows], 1)
        size = min(k, scores.shape[1])
        kept = _first_of_the_best(scores, size)
        scores, index = scores[kept].view(-1, size), index[kept].view(-1, size)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return TopK(scores, index.gather(1, order))


def _first_of_the_best(scores: Tensor, k: int) -> Tensor:
    """bool like `scores` [Q, M]: the k best of each row, of equal ones the first."""
    least = scores.topk(k, 1).values[:, -1:]
    above, equal = scores > least, scores == least
    return above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))


def pairs_above(vectors: Tensor, threshold: float, most: int) -> Pairs:
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    side = max(1, min(4096, BLOCK_BYTES // (dtype.itemsize * max(vectors.shape[1], 4096))))
    found, total = [(torch.empty(0, 2, dtype=torch.int64), torch.empty(0, dtype=dtype))], 0
    for i in range(0, len(vectors), side):
        left = _checked(vectors[i : i + side].to(dtype), i)
        for j in range(i, len(vectors), side):
            products = left @ _checked(vectors[j : j + side].to(dtype), j).mT
            pairs = (products >= threshold).nonzero() + torch.tensor([i, j], device=products.device)
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            if (total := total + len(pairs)) > most:
                refuse_number(most)
            found.append((pairs.cpu(), products[pairs[:, 0] - i, pairs[:, 1] - j].cpu()))
    index, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = (index[:, 0] * len(vectors) + index[:, 1]).argsort()
    return Pairs(index[order].to(vectors.device), scores[order].to(vectors.device))


def _checked(block: Tensor, start: int) -> Tensor:
    if (wrong := (~(torch.linalg.vector_norm(block, dim=1) < LONGEST)).nonzero()).numel():
        refuse_vector(start + int(wrong[0]))
    return block
