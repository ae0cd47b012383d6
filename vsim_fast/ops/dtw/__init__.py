"""Dynamic time warping: exact, batched, ragged, of any dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsim_fast.ops._dispatch import choose
from vsim_fast.ops.dtw._series import (
    Costs,
    Options,
    Series,
    given_costs,
    is_numpy,
    on_one_thread,
    parse_options,
    series,
    unit_frames,
)


class WarpingPath(NamedTuple):
    distance: Any
    """As `dtw` gives it, to within rounding: totals are float64 here."""
    path: Any
    """int64 [L, 2], cells (frame of x, frame of y) from the first to the last; [0, 2] where no path exists."""


class Neighbors(NamedTuple):
    distances: Any
    """float32 [Q, k], nearest first; equally near ones by index."""
    indices: Any
    """int64 [Q, k], into the candidates."""


def dtw(
    x: Any,
    y: Any = None,
    *,
    cost: str = "sqeuclidean",
    root: bool | None = None,
    sakoe_chiba_radius: int | float | None = None,
    itakura_max_slope: float | None = None,
    open_begin: bool = False,
    open_end: bool = False,
    subsequence: bool = False,
    normalize: str | None = None,
    lengths_x: Any = None,
    lengths_y: Any = None,
    backend: str | None = None,
) -> Any:
    """Dynamic time warping distance of one pair, or of B aligned pairs.

    D[i, j] = c(x[i], y[j]) + min(D[i-1, j-1], D[i-1, j], D[i, j-1]); the distance is D at the last cell, divided as
    `normalize` says, then square-rooted if `root`.

    Args:
        x, y: one pair: [T, D], or [T] for one dimension. Aligned pairs: two equally long lists of such sequences, or
            padded [B, T, D] with `lengths_x`, `lengths_y`. NumPy or torch, floating-point; computed in float32, without
            gradient (`soft_dtw` has one).
        cost: local cost c of two frames: "sqeuclidean" (sum of squared differences), "euclidean" (its root), "cosine"
            (1 - cosine; 1 where a frame is zero), or "precomputed": x is the cost matrix [Ta, Tb] or [B, Ta, Tb], >= 0,
            infinite where no path may pass, and y is None.
        root: square root of the total; None: True for "sqeuclidean", else False. With it the default agrees with
            dtaidistance and tslearn, without it with aeon. The root of a sum is not the sum of roots: "euclidean" is
            another distance.
        sakoe_chiba_radius: band around the diagonal, an int in steps or a float as a fraction of the shorter length,
            rounded up. With i on the shorter sequence, cell (i, j) is inside iff
            -radius <= j - i <= radius + |Ta - Tb|, so that a path always exists.
        itakura_max_slope: s >= 1; a path keeps between slopes 1/s and s of the diagonal from both of its ends. Between
            different lengths a small s may leave no path.
        open_begin, open_end: y may start before, or end after, the part that x is matched to. `subsequence` is both:
            the best place of x within y.
        normalize: None; "path": divide by the number of cells of the optimal path, the shortest of equally cheap ones;
            "length": by Ta + Tb. Normalising after minimising is not the minimum of the normalised cost.
        lengths_x, lengths_y: frames of each padded sequence, [B]; what lies behind is never read.
        backend: "cpp", "cuda" or "reference"; None picks the fastest that runs on the device.
            "cpp" takes `torch.get_num_threads()` threads; results do not depend on their number.
    Returns:
        float32 (float64 where the reference computes float64 input): a scalar, or [B]. NumPy if NumPy came in, else a
        tensor on the device of x. Infinite where no path exists. Symmetric bit for bit unless an end is open, and
        independent of what else is in the batch.
    Raises:
        ValueError: NaN, infinity, an empty sequence, differing D, an option out of range; named with its place.
        TypeError: not floating-point, or NumPy mixed with torch.  RuntimeError: the named backend cannot run.
    Error: below 1e-5 relative to float64 at any length: sums restart from zero every few hundred frames. Differences
        below about 1e-18 are lost, since their squares leave the range of float32.
    Memory: O(Ta + Tb) per thread, whatever the length; "reference" holds the whole matrix.
    Source: Sakoe & Chiba 1978; Itakura 1975.
    """
    numpy = is_numpy(x, y)
    options = parse_options(
        cost=cost, root=root, sakoe_chiba_radius=sakoe_chiba_radius, itakura_max_slope=itakura_max_slope,
        open_begin=open_begin, open_end=open_end, subsequence=subsequence, normalize=normalize,
    )  # fmt: skip
    batch = isinstance(x, (list, tuple)) or getattr(x, "ndim", 0) == 3
    a, b = _operands(x, y, cost, lengths_x, lengths_y, batch=batch)
    device = a.values.device
    a, b = _prepared(a, b, cost, backend)
    out = choose("dtw", device.type, backend)(a, b, options)
    return _returned(out if batch else out[0], numpy)


def dtw_path(
    x: Any,
    y: Any = None,
    *,
    cost: str = "sqeuclidean",
    root: bool | None = None,
    sakoe_chiba_radius: int | float | None = None,
    itakura_max_slope: float | None = None,
    open_begin: bool = False,
    open_end: bool = False,
    subsequence: bool = False,
    normalize: str | None = None,
    backend: str | None = None,
) -> WarpingPath:
    """The optimal warping path of one pair and its distance. Arguments and errors as in `dtw`.

    Of equally cheap paths the shortest is taken, a diagonal step before one in x, that before one in y.
    Memory: Ta·Tb/4 bytes for the directions ("cpp"). "cuda" computes it on the CPU and brings it back to the device.
    """
    numpy = is_numpy(x, y)
    options = parse_options(
        cost=cost, root=root, sakoe_chiba_radius=sakoe_chiba_radius, itakura_max_slope=itakura_max_slope,
        open_begin=open_begin, open_end=open_end, subsequence=subsequence, normalize=normalize,
    )  # fmt: skip
    if isinstance(x, (list, tuple)):
        raise TypeError("x must be one sequence, got a list; a path is taken of one pair at a time")
    a, b = _operands(x, y, cost, None, None, batch=False)
    device = a.values.device
    a, b = _prepared(a, b, cost, backend)
    distance, path = choose("dtw_path", device.type, backend)(a, b, options)
    return WarpingPath(_returned(distance, numpy), path.numpy() if numpy else path)


def dtw_pairwise(
    x: Any,
    y: Any = None,
    *,
    cost: str = "sqeuclidean",
    root: bool | None = None,
    sakoe_chiba_radius: int | float | None = None,
    itakura_max_slope: float | None = None,
    open_begin: bool = False,
    open_end: bool = False,
    subsequence: bool = False,
    normalize: str | None = None,
    lengths_x: Any = None,
    lengths_y: Any = None,
    backend: str | None = None,
) -> Any:
    """Distances of every sequence of x to every sequence of y, or of x to one another. Options as in `dtw`.

    Args:
        x, y: a list of [T, D] or [T] sequences, padded [N, T, D], or [N, T] for one dimension.
    Returns:
        [N, M]; without y [N, N], computed once per pair, symmetric bit for bit (unless an end is open), its diagonal 0.
    Memory: the output and O(T) per thread. An interrupt gets through about every second.
    """
    options = parse_options(
        cost=cost, root=root, sakoe_chiba_radius=sakoe_chiba_radius, itakura_max_slope=itakura_max_slope,
        open_begin=open_begin, open_end=open_end, subsequence=subsequence, normalize=normalize,
    )  # fmt: skip
    problem = _all_pairs(x, y, lengths_x, lengths_y, cost, options, backend)
    rows, columns = problem.shape
    most = CELLS_PER_CALL["cuda" if problem.a.values.is_cuda else "cpu"]
    if problem.cells <= most:
        return _returned(problem.block(slice(0, rows), slice(0, columns)), problem.numpy)
    out = problem.a.values.new_empty(rows, columns)
    side = max(16, int(math.sqrt(rows * columns * most / problem.cells)))
    for at, over in pair_blocks(rows, columns, side, problem.mirrored):
        block = problem.block(at, over)
        out[at, over] = block
        if problem.mirrored and at != over:
            out[over, at] = block.mT
    return _returned(out, problem.numpy)


def dtw_pairwise_blocks(
    x: Any,
    y: Any = None,
    *,
    block: int = 512,
    skip: int = 0,
    cost: str = "sqeuclidean",
    root: bool | None = None,
    sakoe_chiba_radius: int | float | None = None,
    itakura_max_slope: float | None = None,
    open_begin: bool = False,
    open_end: bool = False,
    subsequence: bool = False,
    normalize: str | None = None,
    lengths_x: Any = None,
    lengths_y: Any = None,
    backend: str | None = None,
) -> Iterator[tuple[slice, slice, Any]]:
    """As `dtw_pairwise`, a block at a time: for results larger than memory, progress, and going on after a stop.

    Without y only blocks on and above the diagonal are given; the others are their transposes (with an open end: all).

    Args:
        block: rows and columns of a block, at most.
        skip: blocks to leave out at the beginning: as many as an earlier run has yielded.
    Yields:
        (rows, columns, distances [<= block, <= block]), always in the same order.
    """
    options = parse_options(
        cost=cost, root=root, sakoe_chiba_radius=sakoe_chiba_radius, itakura_max_slope=itakura_max_slope,
        open_begin=open_begin, open_end=open_end, subsequence=subsequence, normalize=normalize,
    )  # fmt: skip
    for key, value, least in (("block", block, 1), ("skip", skip, 0)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{key} must be an integer >= {least}, got {value!r}")
    problem = _all_pairs(x, y, lengths_x, lengths_y, cost, options, backend)

    def run() -> Iterator[tuple[slice, slice, Any]]:  # so that wrong arguments raise at the call
        for rows, columns in islice(pair_blocks(*problem.shape, block, problem.mirrored), skip, None):
            yield rows, columns, _returned(problem.block(rows, columns), problem.numpy)

    return run()


def pair_blocks(rows: int, columns: int, side: int, mirrored: bool) -> Iterator[tuple[slice, slice]]:
    """The blocks of `dtw_pairwise_blocks` in their order; mirrored: on and above the diagonal."""
    for i in range(0, rows, side):
        for j in range(i if mirrored else 0, columns, side):
            yield slice(i, min(i + side, rows)), slice(j, min(j + side, columns))


CELLS_PER_CALL = {"cpu": 2e10, "cuda": 2e12}
"""About a second, in which no interrupt reaches the core."""


@dataclass(frozen=True)
class _AllPairs:
    a: Series
    b: Series | None
    """None: `a` against itself, each pair once."""
    zero_diagonal: bool
    """No y was given."""
    mirrored: bool
    """The lower triangle is the upper one, transposed."""
    options: Options
    run: Callable[..., Tensor]
    numpy: bool

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.a), len(self.a if self.b is None else self.b)

    @property
    def cells(self) -> float:
        return float(self.a.lengths.sum()) * float((self.a if self.b is None else self.b).lengths.sum())

    def block(self, rows: slice, columns: slice) -> Tensor:
        a, b = _part(self.a, rows), _part(self.a if self.b is None else self.b, columns)
        if self.b is None and rows == columns:
            return self.run(a, None, self.options)
        out = self.run(a, b, self.options)
        return out.fill_diagonal_(0) if self.zero_diagonal and rows == columns else out


def _part(one: Series, index: slice) -> Series:
    return Series(one.values, one.starts[index], one.lengths[index])


def _all_pairs(
    x: Any, y: Any, lengths_x: Any, lengths_y: Any, cost: str, options: Options, backend: str | None
) -> _AllPairs:
    if cost == "precomputed":
        raise ValueError("cost='precomputed' needs one matrix per pair: use dtw with x [B, Ta, Tb]")
    if y is None and lengths_y is not None:
        raise ValueError("lengths_y needs y")
    numpy = is_numpy(x, y)
    a = series("x", x, lengths_x, batch=True)
    b = None if y is None else series("y", y, lengths_y, batch=True)
    if b is not None:
        _check_alike(a, b)
    if cost == "cosine":
        left, right = unit_frames(a, a if b is None else b)
        # Zero frames have another form on either side, so that they are far even from one another.
        a, b = left, right if b is not None or left.values.shape[1] != a.values.shape[1] else None
    run = choose("dtw_pairwise", a.values.device.type, backend)
    mirrored = y is None and not (options.open_begin or options.open_end)
    return _AllPairs(*_computed(a, b, backend), y is None, mirrored, options, run, numpy)


def dtw_knn(
    queries: Any,
    candidates: Any,
    k: int = 1,
    *,
    cost: str = "sqeuclidean",
    root: bool | None = None,
    sakoe_chiba_radius: int | float | None = None,
    itakura_max_slope: float | None = None,
    backend: str | None = None,
) -> Neighbors:
    """The k nearest candidates of each query, exactly, without computing most distances. Options as in `dtw`.

    "cpp" orders the candidates of a query by the larger of two lower bounds (LB_Kim: first and last frames; LB_Keogh:
    distance to the envelope of the query, per dimension), and stops where the bound, or a partial distance, exceeds
    the k-th best found. A narrow band makes the bounds tight. "cuda" computes all distances, in blocks, and sorts.

    Args:
        queries, candidates: as x and y of `dtw_pairwise`.
        k: how many, 1..number of candidates.
    Source: Keogh & Ratanamahatana 2005; Rakthanmanon et al. 2012 (UCR suite).
    """
    if cost == "precomputed":
        raise ValueError("cost='precomputed' has no lower bounds: use dtw with x [B, Ta, Tb] and sort")
    numpy = is_numpy(queries, candidates)
    options = parse_options(
        cost=cost, root=root, sakoe_chiba_radius=sakoe_chiba_radius, itakura_max_slope=itakura_max_slope,
        open_begin=False, open_end=False, subsequence=False, normalize=None,
    )  # fmt: skip
    a, b = series("queries", queries, batch=True), series("candidates", candidates, batch=True)
    _check_alike(a, b, "queries and candidates")
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= len(b):
        raise ValueError(f"k must be in 1..{len(b)} (the candidates), got {k!r}")
    device = a.values.device
    a, b = _prepared(a, b, cost, backend)
    distances, indices = choose("dtw_knn", device.type, backend)(a, b, int(k), options)
    return Neighbors(_returned(distances, numpy), indices.numpy() if numpy else indices)


def _operands(
    x: Any, y: Any, cost: str, lengths_x: Any, lengths_y: Any, *, batch: bool
) -> tuple[Series | Costs, Series | None]:
    if not batch and (lengths_x is not None or lengths_y is not None):
        raise ValueError("lengths go with padded [B, ...] arrays; cut a single one instead")
    if cost == "precomputed":
        if y is not None:
            raise ValueError("y must be None with cost='precomputed': x is the cost matrix")
        return given_costs(x, lengths_x, lengths_y, batch=batch), None
    if y is None:
        raise TypeError("y is missing: dtw takes two sequences (dtw_pairwise compares all of one list)")
    if batch != (isinstance(y, (list, tuple)) or getattr(y, "ndim", 0) == 3):
        raise ValueError("x and y must both be one sequence or both a batch")
    a, b = series("x", x, lengths_x, batch=batch), series("y", y, lengths_y, batch=batch)
    if len(a) != len(b):
        raise ValueError(f"x and y must hold as many sequences, got {len(a)} and {len(b)}; see dtw_pairwise")
    _check_alike(a, b)
    return a, b


def _check_alike(a: Series, b: Series, names: str = "x and y") -> None:
    if len(a) and len(b) and a.values.shape[1] != b.values.shape[1]:
        raise ValueError(f"{names} must share D, got {a.values.shape[1]} and {b.values.shape[1]}")
    if a.values.device != b.values.device:
        raise ValueError(f"{names} must be on one device, got {a.values.device} and {b.values.device}")


def _prepared(
    a: Series | Costs, b: Series | None, cost: str, backend: str | None
) -> tuple[Series | Costs, Series | None]:
    if cost == "cosine":
        a, b = unit_frames(a, b)
    return _computed(a, b, backend)


def _computed(a: Any, b: Any, backend: str | None) -> tuple[Any, Any]:
    """Both in one computing dtype: float32, but float64 for a float64 oracle."""
    exact = backend == "reference" and torch.float64 in (a.values.dtype, None if b is None else b.values.dtype)
    dtype = torch.float64 if exact else torch.float32

    def computed(one: Any) -> Any:
        if one is None or (one.values.dtype == dtype and one.values.is_contiguous()):
            return one
        if on_one_thread(one.values):
            values = np.ascontiguousarray(one.values.numpy(), dtype=np.float64 if exact else np.float32)
            return replace(one, values=torch.from_numpy(values))
        return replace(one, values=one.values.to(dtype).contiguous())

    return computed(a), computed(b)


def _returned(value: Tensor, numpy: bool) -> Any:
    if not numpy:
        return value
    array = value.numpy()
    return array[()] if array.ndim == 0 else array
