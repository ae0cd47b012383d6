"""Soft-DTW: dynamic time warping with a smooth minimum, differentiable."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from vsim_fast.ops.dtw import _operands, _returned
from vsim_fast.ops.dtw._series import Costs, Options, Series, is_numpy, parse_options


def soft_dtw(
    x: Any,
    y: Any = None,
    gamma: float = 1.0,
    *,
    cost: str = "sqeuclidean",
    sakoe_chiba_radius: int | float | None = None,
    normalize: bool = False,
    lengths_x: Any = None,
    lengths_y: Any = None,
) -> Any:
    """Soft dynamic time warping of one pair, or of B aligned pairs, with its gradient.

    R[i, j] = c(x[i], y[j]) + softmin(R[i-1, j-1], R[i-1, j], R[i, j-1]), softmin(a) = -gamma·log(sum(exp(-a/gamma)));
    the value is R at the last cell. It is at most `dtw(..., root=False)`, nears it as gamma goes to 0, and may be
    negative.

    Args:
        x, y, cost, sakoe_chiba_radius, lengths_x, lengths_y: as in `dtw`. Tensors may require gradients; the gradient
            at equal frames is 0 for "euclidean". With "precomputed" the gradient is the expected alignment.
        gamma: smoothing, > 0, in units of the cost.
        normalize: the divergence s(x, y) - (s(x, x) + s(y, y)) / 2 instead of s(x, y), 0 for x = y and >= 0 for
            "sqeuclidean" up to rounding; it needs x and y.
    Returns:
        A scalar or [B], float64 if an input is, else float32; a tensor on the device of x. NumPy in, NumPy out,
        without gradient. Infinite, with a zero gradient, where no path exists.
    Raises:
        ValueError, TypeError: as in `dtw`.
    Error: costs in the dtype of the result, the recursion in float64, so that small gammas keep their gradient.
    Memory: about 45 bytes per cell of [B, Ta, Tb] forward and 60 backward in float32; three times that to keep the
        graph of `normalize`.
    Source: Cuturi & Blondel 2017; the divergence: Blondel, Mensch & Vert 2021.
    """
    numpy = is_numpy(x, y)
    options = parse_options(
        cost=cost, root=False, sakoe_chiba_radius=sakoe_chiba_radius, itakura_max_slope=None,
        open_begin=False, open_end=False, subsequence=False, normalize=None,
    )  # fmt: skip
    if isinstance(gamma, bool) or not isinstance(gamma, Real):
        raise TypeError(f"gamma must be a number, got {type(gamma).__name__}")
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be finite and > 0, got {gamma}")
    if normalize and cost == "precomputed":
        raise ValueError("normalize needs the sequences themselves, not cost='precomputed'")
    batch = isinstance(x, (list, tuple)) or getattr(x, "ndim", 0) == 3
    a, b = _operands(x, y, cost, lengths_x, lengths_y, batch=batch)
    if isinstance(a, Costs):
        costs = x if isinstance(x, Tensor) and batch else x[None] if isinstance(x, Tensor) else a.values
        value = _soft(costs, a.rows, a.columns, float(gamma), options)
    else:
        dtype = torch.float64 if torch.float64 in (a.values.dtype, b.values.dtype) else torch.float32
        a, b = _live(a, x, dtype), _live(b, y, dtype)

        def between(one: Series, other: Series) -> Tensor:
            costs = _local(one.padded(), other.padded(), cost)
            return _soft(costs, one.lengths, other.lengths, float(gamma), options)

        value = between(a, b)
        if normalize:
            value = value - (between(a, a) + between(b, b)) / 2
    return _returned(value if batch else value[0], numpy)


def _live(checked: Series, value: Any, dtype: torch.dtype) -> Series:
    """What was checked, in the computing dtype and attached to the graph of `value`."""
    parts = [part for part in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(part, Tensor)]
    dim = checked.values.shape[1]
    rows = torch.cat([part.reshape(-1, dim) for part in parts]) if parts else checked.values
    return replace(checked, values=rows.to(dtype))


def _local(a: Tensor, b: Tensor, cost: str) -> Tensor:
    """[B, n, m] cost of every two frames of a [B, n, D] and b [B, m, D]."""
    if cost == "cosine":
        norms = (torch.linalg.vector_norm(one, dim=-1, keepdim=True) for one in (a, b))
        a, b = (one / norm.masked_fill(norm == 0, 1) for one, norm in zip((a, b), norms, strict=True))
        return 1 - a @ b.mT
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")  # differences: exact near 0
    return distance if cost == "euclidean" else distance.square()


def _soft(costs: Tensor, rows: Tensor, columns: Tensor, gamma: float, options: Options) -> Tensor:
    """[B] values of costs [B, n, m], of which the first `rows` and `columns` count."""
    if not len(costs):
        return costs.sum((1, 2))
    if costs.dtype not in (torch.float32, torch.float64):
        costs = costs.float()
    i = torch.arange(costs.shape[1], device=costs.device)[:, None]
    j = torch.arange(costs.shape[2], device=costs.device)
    sizes = list(zip(rows.tolist(), columns.tolist(), strict=True))
    outside = torch.stack([~options.region(n, m)(i, j) | (i >= n) | (j >= m) for n, m in sizes])
    costs = costs.masked_fill(outside, math.inf)
    if costs.shape[1] > costs.shape[2]:  # the shorter side counts within a diagonal
        return _SoftDtw.apply(costs.mT, columns.to(costs.device), rows.to(costs.device), gamma)
    return _SoftDtw.apply(costs, rows.to(costs.device), columns.to(costs.device), gamma)


class _SoftDtw(torch.autograd.Function):
    """Both passes run over anti-diagonals: row k, column i of a skewed [n + m - 1, B, n] is cell (i, k - i)."""

    @staticmethod
    def forward(ctx: Any, costs: Tensor, rows: Tensor, columns: Tensor, gamma: float) -> Tensor:
        count, n, m = costs.shape
        i = torch.arange(n, device=costs.device)
        j = torch.arange(n + m - 1, device=costs.device)[:, None] - i
        skewed = costs[:, i, j.clamp(0, m - 1)].masked_fill((j < 0) | (j >= m), math.inf).transpose(0, 1)
        before = torch.zeros(len(skewed), count, n, dtype=torch.float64, device=costs.device)  # softmin of each cell
        one = before.new_full((count, n + 1), math.inf)  # totals one diagonal back; column 0 is the border
        two = pad(torch.zeros_like(one[:, :1]), (0, n), value=math.inf)  # two back: the border's corner is 0
        largest = torch.finfo(torch.float64).max
        for k in range(len(skewed)):
            totals = torch.stack((two[:, :-1], one[:, :-1], one[:, 1:]))
            least = totals.amin(0).clamp_max(largest)  # all infinite: the sum is 0 and the result infinite, never NaN
            before[k] = least - gamma * ((least - totals) / gamma).exp().sum(0).log()
            one, two = pad(before[k] + skewed[k], (1, 0), value=math.inf), one
        end = (rows + columns - 2, torch.arange(count, device=costs.device), rows - 1)
        ctx.save_for_backward(skewed, before, *end)
        ctx.gamma = gamma
        return (before[end] + skewed[end]).to(costs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Expected alignment: each cell's share in the cells after it, back from the end."""
        skewed, before, *end = ctx.saved_tensors
        diagonals, _, n = skewed.shape
        shares = torch.zeros_like(before)
        shares[tuple(end)] = grad.double()
        one = two = shares.new_zeros(shares.shape[1], n + 1)  # shares one and two diagonals on; last column: border
        reach_one = reach_two = torch.full_like(one, -math.inf)  # softmin there
        for k in reversed(range(diagonals)):
            total = before[k] + skewed[k]
            reach = torch.stack((reach_two[:, 1:], reach_one[:, 1:], reach_one[:, :-1]))
            after = torch.stack((two[:, 1:], one[:, 1:], one[:, :-1]))
            shares[k] += (after * ((reach - total) / ctx.gamma).exp()).sum(0)
            shares[k].masked_fill_(total == math.inf, 0)  # no path leads there
            one, two = pad(shares[k], (0, 1)), one
            reach_one, reach_two = pad(before[k], (0, 1), value=-math.inf), reach_one
        i = torch.arange(n, device=grad.device)[:, None]
        j = torch.arange(diagonals - n + 1, device=grad.device)
        return shares[i + j, :, i].permute(2, 0, 1).to(skewed.dtype), None, None, None
