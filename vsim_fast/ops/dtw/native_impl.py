"""The compiled core on CPU tensors. Outputs are allocated here."""

from __future__ import annotations

import torch
from torch import Tensor

from vsim_fast import _C
from vsim_fast.ops.dtw._series import Costs, Options, Series


def dtw(x: Series | Costs, y: Series | None, options: Options, *, threads: int | None = None, simd: str = "") -> Tensor:
    """As reference.dtw. `threads`: None: torch's, 0: all. `simd`: "" takes the fastest here."""
    out = torch.empty(len(x))
    if isinstance(x, Costs):
        if options.normalize == "path":  # the cells are counted along the path itself
            paths = (_path(None, None, cost[:n, :m], options, simd) for cost, n, m in _matrices(x))
            return torch.tensor([distance for distance, _ in paths], dtype=torch.float32)
        arrays = (x.values.numpy(), x.rows.numpy(), x.columns.numpy())
        _C.dtw_costs(*arrays, _core(options, 1), out.numpy(), threads=_threads(threads), simd=simd)
    elif len(x):
        core = _core(options, x.values.shape[1])
        _C.dtw_aligned(*_arrays(x), *_arrays(y), core, out.numpy(), threads=_threads(threads), simd=simd)
    return out


def dtw_path(x: Series | Costs, y: Series | None, options: Options, *, simd: str = "") -> tuple[Tensor, Tensor]:
    """As reference.dtw_path; totals in float64."""
    if isinstance(x, Costs):
        cost, n, m = next(_matrices(x))
        distance, path = _path(None, None, cost[:n, :m], options, simd)
    else:
        a, b = (one.values[int(one.starts[0]) :][: int(one.lengths[0])] for one in (x, y))
        distance, path = _path(a, b, None, options, simd)
    return torch.tensor(distance, dtype=torch.float32), path


def dtw_pairwise(
    x: Series, y: Series | None, options: Options, *, threads: int | None = None, simd: str = ""
) -> Tensor:
    """As reference.dtw_pairwise."""
    columns = len(x) if y is None else len(y)
    out = torch.empty(len(x), columns)
    if not out.numel():
        return out
    core, (xs, ys) = (
        _core(options, x.values.shape[1]),
        (_arrays(x), (None, *_arrays(x)[1:]) if y is None else _arrays(y)),
    )
    _C.dtw_pairwise(*xs, *ys, core, out.numpy(), threads=_threads(threads), simd=simd)
    return out


def dtw_knn(
    queries: Series, candidates: Series, k: int, options: Options, *, threads: int | None = None, simd: str = ""
) -> tuple[Tensor, Tensor]:
    """As reference.dtw_knn."""
    distances, indices = torch.empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64)
    if len(queries):
        core, arrays = _core(options, queries.values.shape[1]), (*_arrays(queries), *_arrays(candidates))
        _C.dtw_knn(*arrays, core, distances.numpy(), indices.numpy(), threads=_threads(threads), simd=simd)
    return distances, indices


def _core(options: Options, dim: int) -> _C.DtwOptions:
    return _C.DtwOptions(D=dim, **vars(options))


def _threads(threads: int | None) -> int:
    return torch.get_num_threads() if threads is None else threads


def _arrays(one: Series) -> tuple:
    return one.values.numpy(), one.starts.numpy(), one.lengths.numpy()


def _matrices(costs: Costs):
    return zip(costs.values, costs.rows.tolist(), costs.columns.tolist(), strict=True)


def _path(
    x: Tensor | None, y: Tensor | None, costs: Tensor | None, options: Options, simd: str
) -> tuple[float, Tensor]:
    n, m = costs.shape if x is None else (len(x), len(y))
    cells = torch.empty(n + m - 1, 2, dtype=torch.int64)
    arrays = (None if one is None else one.contiguous().numpy() for one in (x, y, costs))
    count, distance = _C.dtw_path(*arrays, _core(options, 1 if x is None else x.shape[1]), cells.numpy(), simd=simd)
    return distance, cells[:count].flip(0)
