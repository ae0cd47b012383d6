"""Fused Triton kernels. Position and intra-frame similarity are one kernel on [N, M, D] by strides.

A tile of the Gram matrix is dot products of vectors that are not normalised. On the diagonal it is BM × BM, loads its
rows once for both operands, and the squared norms are its own diagonal: with M ≤ BM (position similarity of up to 128
frames) that is the whole job, one read of the tensor. With M > BM the diagonal tiles go first and leave the inverse
norms for a second launch over the BM × BN tiles right of the diagonal, each stored twice. Inverse norms enter as one
product per entry, inv_i · inv_j, so that mirrored entries are bitwise equal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vsim_fast.ops._triton_compile import CompileCase
from vsim_fast.ops.cosine._results import BestMatch, SimilarityStats, TopMatches, only, pool


@triton.jit
def dot_tile(
    a_ptr, b_ptr, row, col, rows_a, rows_b, dim, stride_am, stride_ad, stride_bm, stride_bd,
    SAME: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """[BM, BN] fp32 dot products of rows `row` of a and `col` of b; SAME: both are the same rows, loaded once."""
    d = tl.arange(0, BK)
    a = a_ptr + row[:, None].to(tl.int64) * stride_am + d[None, :].to(tl.int64) * stride_ad  # [BM, BK]
    b = b_ptr + col[:, None].to(tl.int64) * stride_bm + d[None, :].to(tl.int64) * stride_bd  # [BN, BK]
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    step = tl.full((), BK, tl.int64)
    for start in range(0, dim, BK):
        inside = d[None, :] < dim - start
        x = tl.load(a, mask=(row[:, None] < rows_a) & inside, other=0.0)
        if SAME:
            acc = tl.dot(x, tl.trans(x), acc, input_precision="ieee")
        else:
            y = tl.load(b, mask=(col[:, None] < rows_b) & inside, other=0.0)
            acc = tl.dot(x, tl.trans(y), acc, input_precision="ieee")
        a += step * stride_ad
        b += step * stride_bd
    return acc


@triton.jit
def inverse_norm(squared):
    return tl.where(squared != 0, tl.rsqrt(tl.where(squared != 0, squared, 1.0)), 0.0)


@triton.jit
def cosine(acc, inverse_row, inverse_col):
    """Dot products to cosines in [-1, 1]; NaN stays NaN."""
    scores = acc * (inverse_row[:, None] * inverse_col[None, :])
    return tl.where(scores > 1, 1.0, tl.where(scores < -1, -1.0, scores))


@triton.jit
def tiles_before(j, WIDE: tl.constexpr):
    """Tiles right of the diagonal in the tile columns before j, a tile being WIDE times as wide as high."""
    return WIDE * (j * (j - 1) // 2) + (WIDE - 1) * j


@triton.jit
def upper_tile(index, WIDE: tl.constexpr):
    """(i, j) of the index-th tile with an entry right of the diagonal tiles: by columns, from the top, as far as
    i < WIDE · (j + 1) - 1. For WIDE = 1 that is (0,1) (0,2) (1,2) (0,3) …"""
    half = 1.0 - WIDE / 2
    j = ((half + tl.sqrt(half * half + 2.0 * WIDE * index)) / WIDE).to(tl.int32)
    j -= (tiles_before(j, WIDE) > index).to(tl.int32)  # the root is rounded
    j += (tiles_before(j + 1, WIDE) <= index).to(tl.int32)
    return index - tiles_before(j, WIDE), j


@triton.jit
def gram_kernel(
    x_ptr, inverse_ptr, out_ptr, stats_ptr, rows, dim, tiles, pairs,
    stride_xn, stride_xm, stride_xd, stride_on, stride_om, stride_oc,
    DIAGONAL: tl.constexpr, STATS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    if DIAGONAL:
        n = (pid // tiles).to(tl.int64)
        i = pid % tiles
        j = i
        slot = i
    else:
        n = (pid // pairs).to(tl.int64)
        i, j = upper_tile(pid % pairs, BN // BM)
        slot = tiles + pid % pairs
    row = i * BM + tl.arange(0, BM)
    col = j * BN + tl.arange(0, BN)
    x = x_ptr + n * stride_xn
    acc = dot_tile(
        x, x, row, col, rows, rows, dim, stride_xm, stride_xd, stride_xm, stride_xd, SAME=DIAGONAL, BM=BM, BN=BN, BK=BK
    )
    inverse = inverse_ptr + n * rows
    if DIAGONAL:
        own = tl.where(row[:, None] == col[None, :], acc, 0.0)
        inverse_row = inverse_norm(tl.sum(own, 1))
        inverse_col = inverse_norm(tl.sum(own, 0))
        tl.store(inverse + row, inverse_row, mask=row < rows)
    else:
        inverse_row = tl.load(inverse + row, mask=row < rows, other=0.0)
        inverse_col = tl.load(inverse + col, mask=col < rows, other=0.0)
    scores = cosine(acc, inverse_row, inverse_col)  # [BM, BN]
    first = j * BN if DIAGONAL else tl.maximum(j * BN, (i + 1) * BM)  # column: a wide tile may reach over the diagonal
    inside = (row[:, None] < rows) & (col[None, :] < rows) & (col[None, :] >= first)
    if STATS:
        count = tl.minimum(rows - i * BM, BM) * (tl.minimum(rows, (j + 1) * BN) - first)
        mean = tl.sum(tl.sum(tl.where(inside, scores, 0.0), 1), 0) / count
        apart = tl.where(inside, scores - mean, 0.0)
        stats = stats_ptr + (n * (tiles + pairs) + slot) * 4
        tl.store(stats, mean)
        tl.store(stats + 1, tl.sum(tl.sum(apart * apart, 1), 0))
        tl.store(stats + 2, tl.min(tl.min(tl.where(inside, scores, 2.0), 1), 0))
        tl.store(stats + 3, tl.max(tl.max(tl.where(inside, scores, -2.0), 1), 0))
    else:
        down, across = row[:, None].to(tl.int64), col[None, :].to(tl.int64)
        scores = scores.to(out_ptr.dtype.element_ty)
        out = out_ptr + n * stride_on
        tl.store(out + down * stride_om + across * stride_oc, scores, mask=inside)
        if not DIAGONAL:
            tl.store(out + across * stride_om + down * stride_oc, scores, mask=inside)


@triton.jit
def inverse_norms_kernel(
    x_ptr, inverse_ptr, rows, dim, blocks, stride_xn, stride_xm, stride_xd, BM: tl.constexpr, BK: tl.constexpr
):
    pid = tl.program_id(0)
    n = (pid // blocks).to(tl.int64)
    row = (pid % blocks) * BM + tl.arange(0, BM)
    d = tl.arange(0, BK)
    x = x_ptr + n * stride_xn + row[:, None].to(tl.int64) * stride_xm + d[None, :].to(tl.int64) * stride_xd
    squares = tl.zeros((BM, BK), dtype=tl.float32)
    step = tl.full((), BK, tl.int64)
    for start in range(0, dim, BK):
        values = tl.load(x, mask=(row[:, None] < rows) & (d[None, :] < dim - start), other=0.0).to(tl.float32)
        squares += values * values
        x += step * stride_xd
    tl.store(inverse_ptr + n * rows + row, inverse_norm(tl.sum(squares, 1)), mask=row < rows)


@triton.jit
def topk_kernel(
    x_ptr, inverse_ptr, values_ptr, indices_ptr, rows, dim, tiles, stride_xn, stride_xm, stride_xd,
    K: tl.constexpr, SLOTS: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The K best of each of BM rows, kept unsorted in SLOTS ≥ K registers per row while the columns go by."""
    pid = tl.program_id(0)
    n = (pid // tiles).to(tl.int64)
    row = (pid % tiles) * BM + tl.arange(0, BM)
    x = x_ptr + n * stride_xn
    inverse = inverse_ptr + n * rows
    inverse_row = tl.load(inverse + row, mask=row < rows, other=0.0)
    slot = tl.arange(0, SLOTS)
    best = tl.where(slot[None, :] < K, -2.0, 4.0) + tl.zeros((BM, SLOTS), dtype=tl.float32)
    index = tl.zeros((BM, SLOTS), dtype=tl.int32)
    for j in range(0, tiles):
        col = j * BM + tl.arange(0, BM)
        acc = dot_tile(
            x, x, row, col, rows, rows, dim, stride_xm, stride_xd, stride_xm, stride_xd,
            SAME=False, BM=BM, BN=BM, BK=BK,
        )  # fmt: skip
        scores = cosine(acc, inverse_row, tl.load(inverse + col, mask=col < rows, other=0.0))
        scores = tl.where(scores == scores, scores, 3.0)  # NaN outranks all and is put back by the launcher
        scores = tl.where((col[None, :] < rows) & (row[:, None] != col[None, :]), scores, -3.0)
        candidate, local = tl.max(scores, 1, return_indices=True)
        low, where = tl.min(best, 1, return_indices=True)
        while tl.max((candidate > low).to(tl.int32), 0) > 0:  # at most K + 1 rounds, few once the list has filled
            taken = (candidate > low)[:, None] & (slot[None, :] == where[:, None])
            best = tl.where(taken, candidate[:, None], best)
            index = tl.where(taken, (j * BM + local)[:, None], index)
            scores = tl.where(tl.arange(0, BM)[None, :] == local[:, None], -3.0, scores)
            candidate, local = tl.max(scores, 1, return_indices=True)
            low, where = tl.min(best, 1, return_indices=True)
    kept = (row[:, None] < rows) & (slot[None, :] < K)
    target = (n * rows + row[:, None]) * K + slot[None, :]
    tl.store(values_ptr + target, best, mask=kept)
    tl.store(indices_ptr + target, index.to(tl.int64), mask=kept)


@triton.jit
def frame_means_kernel(
    x_ptr, means_ptr, positions, dim, blocks, stride_xt, stride_xp, stride_xd, BP: tl.constexpr, BD: tl.constexpr
):
    pid = tl.program_id(0)
    t = (pid // blocks).to(tl.int64)
    d = (pid % blocks) * BD + tl.arange(0, BD)
    p = tl.arange(0, BP)
    x = x_ptr + t * stride_xt + p[:, None].to(tl.int64) * stride_xp + d[None, :].to(tl.int64) * stride_xd
    total = tl.zeros((BP, BD), dtype=tl.float32)
    step = tl.full((), BP, tl.int64)
    for start in range(0, positions, BP):
        total += tl.load(x, mask=(p[:, None] < positions - start) & (d[None, :] < dim), other=0.0).to(tl.float32)
        x += step * stride_xp
    tl.store(means_ptr + t * dim + d, tl.sum(total, 0) / tl.maximum(positions, 1), mask=d < dim)


@triton.jit
def pack(score, index):
    """int64 that orders by score, then by lower index."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)  # -0.0 is 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def unpack_kernel(packed_ptr, scores_ptr, index_ptr, count, COSINE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    entry = tl.load(packed_ptr + at, mask=at < count, other=0)
    ordered = (entry >> 32).to(tl.int32)
    score = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    if COSINE:
        score = tl.where(score > 1, float("nan"), score)  # what stood for NaN
    tl.store(scores_ptr + at, score, mask=at < count)
    tl.store(index_ptr + at, 0x7FFFFFFF - (entry & 0x7FFFFFFF), mask=at < count)


@triton.jit
def best_match_kernel(
    a_ptr, b_ptr, inverse_a_ptr, inverse_b_ptr, best_a_ptr, best_b_ptr, rows_a, rows_b, dim, tiles_a, tiles_b,
    stride_an, stride_am, stride_ad, stride_bn, stride_bm, stride_bd,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of one pair: its row and column maxima go into the per-row results by 64-bit atomic maximum, whose
    outcome does not depend on the order of arrival."""
    pid = tl.program_id(0)
    n = (pid // (tiles_a * tiles_b)).to(tl.int64)
    tile = pid % (tiles_a * tiles_b)
    row = (tile // tiles_b) * BM + tl.arange(0, BM)
    col = (tile % tiles_b) * BN + tl.arange(0, BN)
    acc = dot_tile(
        a_ptr + n * stride_an, b_ptr + n * stride_bn, row, col, rows_a, rows_b, dim,
        stride_am, stride_ad, stride_bm, stride_bd, SAME=False, BM=BM, BN=BN, BK=BK,
    )  # fmt: skip
    inverse_row = tl.load(inverse_a_ptr + n * rows_a + row, mask=row < rows_a, other=0.0)
    inverse_col = tl.load(inverse_b_ptr + n * rows_b + col, mask=col < rows_b, other=0.0)
    scores = cosine(acc, inverse_row, inverse_col)
    scores = tl.where(scores == scores, scores, 3.0)  # NaN outranks all and is put back by the launcher
    scores = tl.where((row[:, None] < rows_a) & (col[None, :] < rows_b), scores, -3.0)
    # Value, then index: carrying both through one reduction takes more registers than a second sweep.
    across = tl.max(scores, 1)
    at_col = tl.min(tl.where(scores == across[:, None], col[None, :], 0x7FFFFFFF), 1)
    tl.atomic_max(best_a_ptr + n * rows_a + row, pack(across, at_col), mask=row < rows_a, sem="relaxed")
    down = tl.max(scores, 0)
    at_row = tl.min(tl.where(scores == down[None, :], row[:, None], 0x7FFFFFFF), 0)
    tl.atomic_max(best_b_ptr + n * rows_b + col, pack(down, at_row), mask=col < rows_b, sem="relaxed")


class Tile(NamedTuple):
    """Block sizes and launch options: a tile of bm × bn takes bk of the dimensions at a time."""

    bm: int
    bn: int
    bk: int
    num_warps: int
    num_stages: int


# Of half-precision matrices large enough to fill them; bench/tune.py times others. Right of the diagonal bm is the
# diagonal's. Two programs of 128² fit on an SM: on 8 warps 64 accumulators per thread, bk = 64 is 128 bytes, one cache
# line, per row; 4 stages of one operand take 64 KiB, 3 stages of two 96 KiB. The two sweeps of best_match need so many
# registers that 8 warps leave room for one program; 4 warps leave room for two, but spill with the warp-level matrix
# instructions of GPUs before sm_90. Lists of topk live in registers beside the accumulators.
TILES = {
    "diagonal": Tile(128, 128, 64, 8, 4),
    "upper": Tile(128, 128, 64, 8, 3),
    "best_match": Tile(128, 128, 64, 8, 3),
    "best_match sm_90": Tile(128, 128, 64, 4, 3),
    "topk": Tile(64, 64, 64, 4, 3),
    "inverse_norms": Tile(16, 1, 256, 4, 3),
    "frame_means": Tile(32, 1, 128, 4, 3),
}


UNPACKED = 1024  # entries per program


def choose_tile(kernel: str, rows: int, dtype: torch.dtype, *, few: bool = False) -> Tile:
    """The table's tile, or the smallest square that holds `rows` where that is smaller.

    float32 runs on the FMA units from registers: 64², or 32² where a `few` tiles must fill the machine.
    """
    fits = max(16, triton.next_power_of_2(rows))
    if dtype == torch.float32:
        side = min(fits, 32 if few else 64)
        return Tile(side, side, 32, 4, 2)
    tile = TILES[kernel]
    if fits < tile.bm:
        return tile._replace(bm=fits, bn=fits, num_warps=min(tile.num_warps, 4))
    return tile if fits >= 2 * tile.bn else tile._replace(bn=tile.bm)  # few wide tiles are half outside


def position_similarity(patches: Tensor, *, reduce: str | None, k: int, out: Tensor | None):
    return gram(patches.transpose(0, 1), reduce, k, out)


def intra_frame_similarity(patches: Tensor, *, reduce: str | None, k: int, out: Tensor | None):
    return gram(patches, reduce, k, out)


def frame_similarity(patches: Tensor, *, reduce: str | None, k: int, out: Tensor | None):
    means = frame_means(patches)
    result = gram(means[None], reduce, k, None if out is None else out[None])
    return out if reduce is None else only(result)


def best_match(a: Tensor, b: Tensor) -> BestMatch:
    check_dtype(a)
    pairs, rows_a, dim = a.shape
    rows_b = b.shape[1]
    hopper = a.is_cuda and torch.cuda.get_device_capability(a.device) >= (9, 0)
    tile = choose_tile("best_match sm_90" if hopper else "best_match", max(rows_a, rows_b), a.dtype)
    tiles_a, tiles_b = triton.cdiv(rows_a, tile.bm), triton.cdiv(rows_b, tile.bn)
    lowest = torch.iinfo(torch.int64).min
    sizes = pairs * rows_a, pairs * rows_b
    best = torch.full((sum(sizes),), lowest, dtype=torch.int64, device=a.device)
    if pairs:
        with torch.cuda.device_of(a):
            best_match_kernel[(pairs * tiles_a * tiles_b,)](
                a, b, inverse_norms(a), inverse_norms(b), *best.split(sizes), rows_a, rows_b, dim, tiles_a, tiles_b,
                *a.stride(), *b.stride(), BM=tile.bm, BN=tile.bn, BK=tile.bk, **options(tile),
            )  # fmt: skip
    (scores_ab, scores_ba), (index_ab, index_ba) = (part.split(sizes) for part in unpack(best, cosine=True))
    ab, ba = (pairs, rows_a), (pairs, rows_b)
    return BestMatch(scores_ab.view(ab), index_ab.view(ab), scores_ba.view(ba), index_ba.view(ba))


def unpack(packed: Tensor, *, cosine: bool = False) -> tuple[Tensor, Tensor]:
    """fp32 scores and int64 indices of contiguous packed entries, in one launch; `cosine`: scores above 1 are NaN."""
    scores, index = torch.empty_like(packed, dtype=torch.float32), torch.empty_like(packed)
    if count := packed.numel():
        with torch.cuda.device_of(packed):
            unpack_kernel[(triton.cdiv(count, UNPACKED),)](packed, scores, index, count, COSINE=cosine, BLOCK=UNPACKED)
    return scores, index


def gram(x: Tensor, reduce: str | None, k: int, out: Tensor | None):
    """x [N, M, D], any strides -> out [N, M, M], statistics [N] or the k best [N, M, k]."""
    check_dtype(x)
    matrices, rows, dim = x.shape
    if reduce == "topk":
        return gram_topk(x, k)
    few = matrices == 1
    on, right = (choose_tile(kernel, rows, x.dtype, few=few) for kernel in ("diagonal", "upper"))
    right = right._replace(bm=on.bm, bn=max(on.bm, right.bn))
    tiles = triton.cdiv(rows, on.bm)
    last, wide = triton.cdiv(rows, right.bn) - 1, right.bn // right.bm  # as in upper_tile
    pairs = wide * (last * (last - 1) // 2) + (wide - 1) * last + min(wide * (last + 1), tiles) - 1
    inverse = torch.empty(matrices, rows, dtype=torch.float32, device=x.device)
    stats, out_strides = None, (0, 0, 0)
    if reduce == "stats":
        stats = torch.empty(matrices, tiles + pairs, 4, dtype=torch.float32, device=x.device)
    else:
        out_strides = out.stride()
    for tile, diagonal, count in ((on, True, tiles), (right, False, pairs)):
        if matrices * count:
            with torch.cuda.device_of(x):
                gram_kernel[(matrices * count,)](
                    x, inverse, out, stats, rows, dim, tiles, pairs, *x.stride(), *out_strides,
                    DIAGONAL=diagonal, STATS=stats is not None, BM=tile.bm, BN=tile.bn, BK=tile.bk, **options(tile),
                )  # fmt: skip
    return out if stats is None else pool_tiles(stats.double(), rows, right.bm, right.bn)


def pool_tiles(stats: Tensor, rows: int, bm: int, bn: int) -> SimilarityStats:
    """Statistics of whole matrices from [N, tiles + pairs, (mean, squares, min, max)] in the order of `gram_kernel`."""
    top = torch.arange(0, rows, bm)
    sides = (rows - top).clamp_max(bm)
    left = torch.arange(0, rows, bn)
    stacked = ((left + bn) // bm).clamp_max(len(top)) - 1  # tiles in each column
    j = torch.arange(len(left)).repeat_interleave(stacked)
    i = torch.arange(len(j)) - (stacked.cumsum(0) - stacked)[j]
    wide = (rows - left[j]).clamp_max(bn) - (top[i] + bm - left[j]).clamp_min(0)
    count = torch.cat([sides.square(), 2 * sides[i] * wide]).double().to(stats.device)  # mirrored tiles count twice
    mean, squares, low, high = stats.unbind(-1)
    squares = torch.cat([squares[:, : len(sides)], 2 * squares[:, len(sides) :]], 1)
    low, high = (torch.where(mean.isnan(), mean, bound) for bound in (low, high))
    return SimilarityStats(*pool(mean, squares, low, high, count, 1), count=rows**2)


def gram_topk(x: Tensor, k: int) -> TopMatches:
    matrices, rows, dim = x.shape
    tile = choose_tile("topk", min(rows, 64), x.dtype)
    tiles = triton.cdiv(rows, tile.bm)
    values = torch.empty(matrices, rows, k, dtype=torch.float32, device=x.device)
    indices = torch.empty(matrices, rows, k, dtype=torch.int64, device=x.device)
    if matrices:
        with torch.cuda.device_of(x):
            topk_kernel[(matrices * tiles,)](
                x, inverse_norms(x), values, indices, rows, dim, tiles, *x.stride(),
                K=k, SLOTS=triton.next_power_of_2(max(k, 2)), BM=tile.bm, BK=tile.bk, **options(tile),
            )  # fmt: skip
    values, order = values.sort(-1, descending=True)
    return TopMatches(restore_nan(values), indices.gather(-1, order))


def inverse_norms(x: Tensor) -> Tensor:
    """[N, M] fp32 inverse norms of x [N, M, D], 0 for zero vectors: one read."""
    matrices, rows, dim = x.shape
    inverse = torch.empty(matrices, rows, dtype=torch.float32, device=x.device)
    tile = TILES["inverse_norms"]
    blocks = triton.cdiv(rows, tile.bm)
    with torch.cuda.device_of(x):
        inverse_norms_kernel[(matrices * blocks,)](
            x, inverse, rows, dim, blocks, *x.stride(), BM=tile.bm, BK=tile.bk, **options(tile)
        )
    return inverse


def frame_means(patches: Tensor) -> Tensor:
    """[T, D] fp32 means over the patches of patches [T, P, D]: one read."""
    check_dtype(patches)
    frames, positions, dim = patches.shape
    means = torch.empty(frames, dim, dtype=torch.float32, device=patches.device)
    tile = TILES["frame_means"]
    blocks = triton.cdiv(dim, tile.bk)
    if frames * blocks:
        with torch.cuda.device_of(patches):
            frame_means_kernel[(frames * blocks,)](
                patches, means, positions, dim, blocks, *patches.stride(), BP=tile.bm, BD=tile.bk, **options(tile)
            )
    return means


def restore_nan(scores: Tensor) -> Tensor:
    return scores.where(scores <= 1, torch.nan)


def check_dtype(x: Tensor) -> None:
    if x.dtype == torch.float64:
        raise TypeError("triton kernels take float16, bfloat16 or float32, got float64; use backend='reference'")


def options(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": True}


def compile_cases() -> list[CompileCase]:
    """The kernels as launched for T = 100, P = 1024, D = 1152; best match for P = 1369."""
    half, single = torch.float16, torch.float32
    cases = []

    def add(name: str, kernel, tile: Tile, pointers: str, integers: str, archs=(80, 90), **constexprs) -> None:
        """`pointers` name:type, `integers` names; both divisible by 16 unless marked with a trailing ~."""
        signature = {name: f"*{kind}:16" for name, kind in (item.split(":") for item in pointers.split())}
        signature |= {name.rstrip("~"): "i32" if name.endswith("~") else "i32:16" for name in integers.split()}
        cases.append(CompileCase(name, kernel, signature, constexprs, tile.num_warps, tile.num_stages, archs))

    for kind, dtype, rows, diagonal, stats in (
        ("fp16", half, 100, True, False), ("fp16", half, 100, True, True),
        ("fp16", half, 1024, True, False), ("fp16", half, 1024, False, False), ("fp16", half, 1024, False, True),
        ("bf16", torch.bfloat16, 1024, False, False),
        ("fp32", single, 100, True, False), ("fp32", single, 1024, False, False),
    ):  # fmt: skip
        tile = choose_tile("diagonal" if diagonal else "upper", rows, dtype)
        odd = "~" if rows % 16 else ""
        add(
            f"gram-{'diagonal' if diagonal else 'upper'}-{'stats' if stats else 'store'}-M{rows}-{kind}",
            gram_kernel, tile, f"x_ptr:{kind} inverse_ptr:fp32 out_ptr:{kind} stats_ptr:fp32",
            f"rows{odd} dim tiles~ pairs~ stride_xn stride_xm stride_on stride_om{odd}",
            stride_xd=1, stride_oc=1, DIAGONAL=diagonal, STATS=stats, BM=tile.bm, BN=tile.bn, BK=tile.bk,
        )  # fmt: skip
    for arch, kernel in ((80, "best_match"), (90, "best_match sm_90")):
        tile = choose_tile(kernel, 1369, half)
        add(
            "best_match-fp16", best_match_kernel, tile,
            "a_ptr:fp16 b_ptr:fp16 inverse_a_ptr:fp32 inverse_b_ptr:fp32 best_a_ptr:i64 best_b_ptr:i64",
            "rows_a~ rows_b~ dim tiles_a~ tiles_b~ stride_an stride_am stride_bn stride_bm",
            archs=(arch,), stride_ad=1, stride_bd=1, BM=tile.bm, BN=tile.bn, BK=tile.bk,
        )  # fmt: skip
    signature = dict(packed_ptr="*i64:16", scores_ptr="*fp32:16", index_ptr="*i64:16", count="i32")
    cases.append(CompileCase("unpack", unpack_kernel, signature, dict(COSINE=True, BLOCK=UNPACKED)))
    tile = choose_tile("topk", 64, half)
    add(
        "topk-fp16", topk_kernel, tile, "x_ptr:fp16 inverse_ptr:fp32 values_ptr:fp32 indices_ptr:i64",
        "rows dim tiles stride_xn stride_xm", stride_xd=1, K=5, SLOTS=8, BM=tile.bm, BK=tile.bk,
    )  # fmt: skip
    tile = TILES["inverse_norms"]
    add(
        "inverse_norms-fp16", inverse_norms_kernel, tile, "x_ptr:fp16 inverse_ptr:fp32",
        "rows dim blocks stride_xn stride_xm", stride_xd=1, BM=tile.bm, BK=tile.bk,
    )  # fmt: skip
    tile = TILES["frame_means"]
    add(
        "frame_means-fp16", frame_means_kernel, tile, "x_ptr:fp16 means_ptr:fp32",
        "positions dim blocks~ stride_xt stride_xp", stride_xd=1, BP=tile.bm, BD=tile.bk,
    )  # fmt: skip
    return cases
