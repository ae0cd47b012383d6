"""Fused Triton kernel: the scores of a tile are compared with the running k-th best in registers and forgotten.

A program takes BQ queries through one part of the vectors and leaves its K best per query; the lists of all parts are
merged after. An entry is one int64 that orders by score, then by smaller index, so nothing depends on the order of
tiles, parts or threads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vsim_fast.ops._triton_compile import CompileCase
from vsim_fast.ops.cosine.triton_impl import Tile, check_dtype, options, pack, unpack
from vsim_fast.ops.top_k import LONGEST_LIST, TopK, refuse_vector

# A tile of bm queries × bn vectors; bench/tune.py times others. The list lies in registers beside the accumulators:
# where it is long a program takes fewer queries, and 8 warps share it. Many other shapes of these spill.
TILES = {
    "float32": Tile(16, 64, 32, 8, 2),
    "long list": Tile(16, 128, 64, 8, 3),
    "few queries": Tile(16, 256, 64, 4, 3),
    "many queries": Tile(64, 128, 64, 8, 3),
}
LONG, FEW = 32, 16


@triton.jit
def top_k_kernel(
    q_ptr, v_ptr, best_ptr, queries, vectors, dim, parts, part_tiles, stride_qn, stride_qd, stride_vn, stride_vd,
    K: tl.constexpr, SLOTS: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """best [queries, parts, K]: packed entries, below all real ones where the part has fewer than K vectors."""
    part = tl.program_id(0) % parts
    row = tl.program_id(0) // parts * BQ + tl.arange(0, BQ)
    d = tl.arange(0, BK)
    q_start = q_ptr + row[:, None].to(tl.int64) * stride_qn + d[None, :].to(tl.int64) * stride_qd  # [BQ, BK]
    slot = tl.arange(0, SLOTS)
    empty = tl.full((BQ, SLOTS), -0x7FFFFFFFFFFFFFFF, dtype=tl.int64) + slot[None, :]  # distinct: one goes at a time
    best = tl.where(slot[None, :] < K, empty, 0x7FFFFFFFFFFFFFFF)  # [BQ, SLOTS]
    low = tl.min(best, 1)
    step = tl.full((), BK, tl.int64)
    for tile in range(part * part_tiles, (part + 1) * part_tiles):
        col = tile * BN + tl.arange(0, BN)
        q, v = q_start, v_ptr + col[:, None].to(tl.int64) * stride_vn + d[None, :].to(tl.int64) * stride_vd
        scores = tl.zeros((BQ, BN), dtype=tl.float32)
        for start in range(0, dim, BK):
            inside = d[None, :] < dim - start
            x = tl.load(q, mask=(row[:, None] < queries) & inside, other=0.0)  # [BQ, BK]
            y = tl.load(v, mask=(col[:, None] < vectors) & inside, other=0.0)  # [BN, BK]
            scores = tl.dot(x, tl.trans(y), scores, input_precision="ieee")
            q += step * stride_qd
            v += step * stride_vd
        # NaN and infinity outrank all and are found by the launcher.
        scores = tl.where(tl.abs(scores) < float("inf"), scores, float("inf"))
        scores = tl.where((row[:, None] < queries) & (col[None, :] < vectors), scores, -float("inf"))
        score, local = tl.max(scores, 1, return_indices=True)
        entry = pack(score, tile * BN + local)
        better = (entry > low) & (score > -float("inf"))
        while tl.max(better.to(tl.int32), 0) > 0:  # at most K + 1 rounds, none for most tiles once the list has filled
            best = tl.where(better[:, None] & (best == low[:, None]), entry[:, None], best)
            low = tl.min(best, 1)
            scores = tl.where(tl.arange(0, BN)[None, :] == local[:, None], -float("inf"), scores)
            score, local = tl.max(scores, 1, return_indices=True)
            entry = pack(score, tile * BN + local)
            better = (entry > low) & (score > -float("inf"))
    target = (row[:, None].to(tl.int64) * parts + part) * K + slot[None, :]
    tl.store(best_ptr + target, best, mask=(row[:, None] < queries) & (slot[None, :] < K))


def top_k(queries: Tensor, vectors: Tensor, k: int) -> TopK:
    check_dtype(vectors)
    if k > LONGEST_LIST:
        raise ValueError(f"k must be at most {LONGEST_LIST} for backend 'triton', got {k}")
    if len(vectors) > 2**30:
        raise ValueError(f"vectors must be at most 2**30 for backend 'triton', got {len(vectors)}")
    count, number = len(queries), len(vectors)
    if not count or not number:
        return TopK(queries.new_empty(count, k, dtype=torch.float32), queries.new_empty(count, k, dtype=torch.int64))
    tile = choose_tile(count, k, vectors.dtype)
    tiles, blocks = triton.cdiv(number, tile.bn), triton.cdiv(count, tile.bm)
    parts = min(tiles, max(1, 2 * multiprocessors(vectors) // blocks))
    part_tiles = triton.cdiv(tiles, parts)
    parts = triton.cdiv(tiles, part_tiles)
    best = torch.empty(count, parts, k, dtype=torch.int64, device=vectors.device)
    with torch.cuda.device_of(vectors):
        top_k_kernel[(blocks * parts,)](
            queries, vectors, best, count, number, queries.shape[1], parts, part_tiles,
            *queries.stride(), *vectors.stride(),
            K=k, SLOTS=triton.next_power_of_2(max(k, 2)), BQ=tile.bm, BN=tile.bn, BK=tile.bk, **options(tile),
        )  # fmt: skip
    best = best.flatten(1).topk(k, 1).values  # entries are distinct, so this is their one order
    scores, index = unpack(best)
    if (wrong := scores.isinf()).any():
        refuse_vector(int(index[wrong].min()))
    return TopK(scores, index)


def multiprocessors(tensor: Tensor) -> int:
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 2


def choose_tile(queries: int, k: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return TILES["float32"]
    return TILES["long list" if k > LONG else "few queries" if queries <= FEW else "many queries"]


def compile_cases() -> list[CompileCase]:
    """As launched for 100 queries and for one, D = 768, k = 10 and 128."""
    cases = []
    for kind, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for queries, k in ((100, 10), (1, 10), (100, 128)):
            tile = choose_tile(queries, k, dtype)
            signature = {"q_ptr": f"*{kind}:16", "v_ptr": f"*{kind}:16", "best_ptr": "*i64:16", "queries": "i32"}
            signature |= {"vectors": "i32", "dim": "i32:16", "parts": "i32", "part_tiles": "i32"}
            signature |= {"stride_qn": "i32:16", "stride_vn": "i32:16"}
            constexprs = dict(
                stride_qd=1, stride_vd=1, K=k, SLOTS=triton.next_power_of_2(k), BQ=tile.bm, BN=tile.bn, BK=tile.bk
            )
            cases.append(CompileCase(
                f"top_k-Q{queries}-k{k}-{kind}", top_k_kernel, signature, constexprs, tile.num_warps, tile.num_stages
            ))  # fmt: skip
    return cases
