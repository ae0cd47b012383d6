"""CUDA kernels: one launch for all pairs. Outputs and scratch are allocated here, pointers cross here."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vsim_fast import _C
from vsim_fast.ops.dtw._series import Costs, Options, Series

SCRATCH = 256 << 20  # bytes for the rows between strips; very long sequences get fewer warps instead of more
BLOCK = 1 << 24  # distances of one block of queries in dtw_knn


def dtw(x: Series | Costs, y: Series | None, options: Options) -> Tensor:
    """As reference.dtw."""
    out = torch.empty(len(x), dtype=torch.float32, device=x.values.device)
    if y is None:
        order = _longest_first(x.rows * x.columns)
        first = torch.zeros_like(order)
        a, b = _table(first, x.rows, order), _table(first, x.columns, order)
    else:
        order = _longest_first(x.lengths * y.lengths)
        a, b = _table(x.starts, x.lengths, order), _table(y.starts, y.lengths, order)
    _run("aligned", x, a, y, b, options, out)
    return out


def dtw_path(x: Series | Costs, y: Series | None, options: Options) -> tuple[Tensor, Tensor]:
    """As reference.dtw_path; computed on the CPU: one path has too little work for a GPU and needs the whole matrix."""
    from vsim_fast.ops.dtw import native_impl

    device = x.values.device
    x, y = (None if part is None else replace(part, values=part.values.cpu()) for part in (x, y))
    distance, path = native_impl.dtw_path(x, y, options)
    return distance.to(device), path.to(device)


def dtw_pairwise(x: Series, y: Series | None, options: Options) -> Tensor:
    """As reference.dtw_pairwise."""
    if y is None and (options.open_begin or options.open_end):
        return dtw_pairwise(x, x, options).fill_diagonal_(0)  # not symmetric
    out = torch.empty(len(x), len(x if y is None else y), dtype=torch.float32, device=x.values.device)
    a, b = (_table(one.starts, one.lengths, _longest_first(one.lengths)) for one in (x, x if y is None else y))
    if y is None:
        _run("triangle", x, a, x, b, options, out.fill_diagonal_(0))
    else:
        _run("rectangle", x, a, y, b, options, out)
    return out


def dtw_knn(queries: Series, candidates: Series, k: int, options: Options) -> tuple[Tensor, Tensor]:
    """As reference.dtw_knn: all distances of a block of queries, then sorted; memory of BLOCK distances."""
    block = max(1, BLOCK // len(candidates))
    nearest = []
    for first in range(0, len(queries), block):
        rows = slice(first, first + block)
        part = Series(queries.values, queries.starts[rows], queries.lengths[rows])
        order = dtw_pairwise(part, candidates, options).sort(dim=1, stable=True)
        nearest.append((order.values[:, :k].clone(), order.indices[:, :k].clone()))  # a view would keep the block
    if not nearest:
        empty = torch.empty(0, k, device=queries.values.device)
        return empty, empty.long()
    distances, indices = zip(*nearest, strict=True)
    return torch.cat(distances), torch.cat(indices)


def _longest_first(size: Tensor) -> Tensor:
    """The order of work: nothing long is left for the end."""
    return size.argsort(descending=True, stable=True)


def _table(starts: Tensor, lengths: Tensor, order: Tensor) -> Tensor:
    """int64 [3, N]: first row, rows and number of each sequence in the order of work."""
    return torch.stack((starts[order], lengths[order], order))


def _run(pairs: str, x: Series | Costs, a: Tensor, y: Series | None, b: Tensor, options: Options, out: Tensor) -> None:
    """`pairs` of the sequences in tables a and b into `out`: "aligned" [B], "rectangle" [N, M] or "triangle" [N, N]."""
    count = {"aligned": len(x), "rectangle": out.numel(), "triangle": len(x) * (len(x) - 1) // 2}[pairs]
    if count == 0:
        return
    device, costs = out.device, isinstance(x, Costs)
    assert x.values.is_contiguous() and x.values.dtype == torch.float32 and x.values.device == device
    assert y is None or (y.values.is_contiguous() and y.values.dtype == torch.float32 and y.values.device == device)
    frames = [None if part is None or costs else _aligned(part.values) for part in (x, y)]
    dim = 0 if costs else x.values.shape[1]
    longest = int(max(a[1].max(), b[1].max()))
    assert longest < 2**30
    # As dtw_cuda chooses: warps of their own for few dimensions, else blocks that share a tile of costs.
    warps = _C.DTW_WARPS if 1 <= dim <= 4 and options.slope == 0 else 1
    blocks = torch.cuda.get_device_properties(device).multi_processor_count * _C.DTW_BLOCKS_PER_SM
    blocks = max(1, min(blocks, count, SCRATCH // (12 * longest * warps)))
    chunk = min(max(count // (8 * blocks * warps), 1), 16) if warps > 1 else 1
    tables = torch.cat((a, b), 1).to(device)  # [3, N + M]
    border = torch.empty(blocks * warps * longest, dtype=torch.float64, device=device)
    cells = torch.empty_like(border, dtype=torch.int32) if options.normalize == "path" else None
    taken = torch.zeros(1, dtype=torch.int64, device=device)
    with torch.cuda.device(device):
        _C.dtw_cuda(
            _C.DtwOptions(D=dim, **vars(options)), pairs=pairs, x=_address(frames[0]), y=_address(frames[1]),
            tables=_address(tables), x_count=a.shape[1], y_count=b.shape[1],
            costs=_address(x.values if costs else None), cost_size=x.values[0].numel() if costs else 0,
            cost_columns=x.values.shape[2] if costs else 0, count=count, chunk=chunk, next=_address(taken),
            border=_address(border), border_cells=_address(cells), longest=longest, blocks=blocks, out=_address(out),
            stream=torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip


def _aligned(values: Tensor) -> Tensor:
    """Frames are read as one load of up to 16 bytes."""
    return values if values.data_ptr() % 16 == 0 else values.clone()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
