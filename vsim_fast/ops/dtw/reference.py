"""The oracle: whole cost matrices, anti-diagonals in plain torch, in the dtype of the input."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vsim_fast.ops.dtw._series import Costs, Options, Series


def dtw(x: Series | Costs, y: Series | None, options: Options) -> Tensor:
    """[B] distances of aligned pairs, or of given costs."""
    costs, rows, columns = _costs(x, y, options)
    return torch.stack([_warp(c, options)[0] for c in _cut(costs, rows, columns)]) if len(costs) else costs.new_zeros(0)


def dtw_path(x: Series | Costs, y: Series | None, options: Options) -> tuple[Tensor, Tensor]:
    """(distance [], path int64 [L, 2]) of one pair."""
    distance, total, steps, end = _warp(next(_cut(*_costs(x, y, options))), options)
    return distance, _trace(total, steps, end, options)


def dtw_pairwise(x: Series, y: Series | None, options: Options) -> Tensor:
    """[N, M] distances, or [N, N] with a zero diagonal."""
    targets = x if y is None else y
    out = x.values.new_zeros(len(x), len(targets))
    for i in range(len(x)):
        for j in range(i + 1 if y is None else 0, len(targets)):
            a, b = x.padded([i]), targets.padded([j])
            out[i, j] = _warp(_local(a, b, options)[0], options)[0]
            if y is None:
                mirrored = options.open_begin or options.open_end
                out[j, i] = _warp(_local(b, a, options)[0], options)[0] if mirrored else out[i, j]
    return out


def dtw_knn(queries: Series, candidates: Series, k: int, options: Options) -> tuple[Tensor, Tensor]:
    """(distances [Q, k], indices int64 [Q, k]), nearest first, ties by index."""
    distances = dtw_pairwise(queries, candidates, options)
    order = distances.sort(dim=1, stable=True)
    return order.values[:, :k], order.indices[:, :k]


def _costs(x: Series | Costs, y: Series | None, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(x, Costs):
        return x.values, x.rows, x.columns
    return _local(x.padded(), y.padded(), options), x.lengths, y.lengths


def _cut(costs: Tensor, rows: Tensor, columns: Tensor):
    return (c[: int(n), : int(m)] for c, n, m in zip(costs, rows, columns, strict=True))


def _local(a: Tensor, b: Tensor, options: Options) -> Tensor:
    """[B, n, m] cost of every two frames of a [B, n, D] and b [B, m, D]."""
    square = (a[:, :, None] - b[:, None]).square().sum(-1)
    return square.sqrt() if options.euclidean else square


def _warp(costs: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """(distance, total [n, m], steps [n, m], last cell) of costs [n, m]; of equally cheap paths the shortest counts.

    total[i, j] = costs[i, j] + min(total[i-1, j-1], total[i-1, j], total[i, j-1]).
    """
    n, m = costs.shape
    i, j = torch.arange(n, device=costs.device)[:, None], torch.arange(m, device=costs.device)
    costs = costs.masked_fill(~options.region(n, m)(i, j), math.inf)
    inf = costs.new_full((), math.inf)
    total, steps = inf.repeat(n + 1, m + 1), costs.new_zeros(n + 1, m + 1)  # one row and column of borders
    total[0, : m + 1 if options.open_begin else 1] = 0
    for k in range(n + m - 1):
        i = torch.arange(max(0, k - m + 1), min(n, k + 1), device=costs.device)
        j = k - i
        before = torch.stack((total[i, j], total[i, j + 1], total[i + 1, j]))
        least = before.amin(0)  # min(0) starts threads for any size
        length = torch.stack((steps[i, j], steps[i, j + 1], steps[i + 1, j])).masked_fill(before != least, math.inf)
        total[i + 1, j + 1] = least + costs[i, j]
        steps[i + 1, j + 1] = length.amin(0) + 1
    total, steps = total[1:, 1:], steps[1:, 1:]
    column = m - 1
    if options.open_end:
        column = int((total[-1] + 0.0).argmin())
        least = total[-1] == total[-1, column]
        column = int(steps[-1].masked_fill(~least, math.inf).argmin())
    distance = total[-1, column] * options.scale
    if options.normalize == "path":
        distance = distance / steps[-1, column]
    elif options.normalize == "length":
        distance = distance / (n + m)
    return distance.sqrt() if options.root else distance, total, steps, (n - 1, column)


def _trace(total: Tensor, steps: Tensor, end: tuple[int, int], options: Options) -> Tensor:
    """Back along the cheapest, then shortest predecessors; a diagonal step first, then one in x."""
    if not math.isfinite(total[end]):
        return torch.zeros(0, 2, dtype=torch.int64, device=total.device)
    values, counts = total.tolist(), steps.tolist()
    i, j = end
    path = [(i, j)]
    while i > 0 or (j > 0 and not options.open_begin):
        before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min(
            (cell for cell in before if min(cell) >= 0),
            key=lambda cell: (values[cell[0]][cell[1]], counts[cell[0]][cell[1]]),
        )
        path.append((i, j))
    return torch.tensor(path[::-1], device=total.device)
