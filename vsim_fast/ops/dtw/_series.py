"""What callers pass, checked once and brought into the one form that every backend takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vsim_fast.ops._checks import FLOATS, dtype_name

Cost = Literal["sqeuclidean", "euclidean", "cosine", "precomputed"]
COSTS = ("sqeuclidean", "euclidean", "cosine", "precomputed")
_FIRST = torch.zeros(1, dtype=torch.int64)
LARGEST = 1e15
"""Largest magnitude accepted: the square of a difference, added up along any path, stays finite in fp32."""


@dataclass(frozen=True)
class Series:
    """N sequences of D-dimensional frames, one behind the other or padded."""

    values: Tensor
    """float32 (float64 for the oracle) [rows, D], contiguous."""
    starts: Tensor
    """int64 [N] on the CPU, first row of each."""
    lengths: Tensor
    """int64 [N] on the CPU, rows of each, >= 1."""

    def __len__(self) -> int:
        return self.lengths.shape[0]

    def padded(self, index: Sequence[int] | slice = slice(None)) -> Tensor:
        """[n, longest, D] of the chosen sequences; the last frame fills up."""
        starts, lengths = self.starts[index], self.lengths[index]
        step = torch.arange(int(lengths.max()) if len(lengths) else 0)
        rows = starts[:, None] + torch.minimum(step, lengths[:, None] - 1)
        return self.values[rows.to(self.values.device)]


@dataclass(frozen=True)
class Costs:
    """B given cost matrices, in place of two series."""

    values: Tensor
    """float32 or float64 [B, Ta, Tb], contiguous."""
    rows: Tensor
    """int64 [B] on the CPU."""
    columns: Tensor

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Options:
    """What a path may do and what becomes of its cost; `csrc/dtw.h` has the same."""

    euclidean: bool
    """The local cost is the root of the sum of squares."""
    scale: float
    """Of the total: half a squared distance of unit vectors is their cosine distance."""
    root: bool
    radius: int
    """Sakoe–Chiba radius in steps, -1: none, or given by `fraction`."""
    fraction: float
    """The same as a share of the shorter length, -1: none."""
    slope: float
    """Itakura's largest slope, 0: none."""
    open_begin: bool
    open_end: bool
    normalize: Literal["none", "path", "length"]

    def region(self, rows: int, columns: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Which cells (i, j) a path between `rows` and `columns` frames may touch."""
        n, m = rows, columns
        radius = self.radius if self.fraction < 0 else math.ceil(self.fraction * min(n, m) - 1e-9)

        def inside(i: Tensor, j: Tensor) -> Tensor:
            allowed = torch.ones(torch.broadcast_shapes(i.shape, j.shape), dtype=torch.bool, device=i.device)
            if radius >= 0:
                allowed &= (j - i <= radius + max(0, m - n)) & (i - j <= radius + max(0, n - m))
            if self.slope > 0 and min(n, m) > 1:
                u, v = i.double() * (m - 1), j.double() * (n - 1)  # both ends of the diagonal at (n - 1)(m - 1)
                end, eps = (n - 1) * (m - 1), 1e-9 * n * m
                allowed &= (v <= self.slope * u + eps) & (u <= self.slope * v + eps)
                allowed &= (end - v <= self.slope * (end - u) + eps) & (end - u <= self.slope * (end - v) + eps)
            return allowed

        return inside


def parse_options(
    *, cost: str, root: bool | None, sakoe_chiba_radius: int | float | None, itakura_max_slope: float | None,
    open_begin: bool, open_end: bool, subsequence: bool, normalize: str | None,
) -> Options:  # fmt: skip
    if cost not in COSTS:
        raise ValueError(f"cost must be one of {', '.join(COSTS)}, got {cost!r}")
    flags = {"root": root, "open_begin": open_begin, "open_end": open_end, "subsequence": subsequence}
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)) and not (name == "root" and value is None):
            raise TypeError(f"{name} must be True or False, got {value!r}")
    radius, fraction = -1, -1.0
    if isinstance(sakoe_chiba_radius, bool) or not isinstance(sakoe_chiba_radius, (int, float, np.number, type(None))):
        kind = type(sakoe_chiba_radius).__name__
        raise TypeError(f"sakoe_chiba_radius must be an int of steps or a float fraction, got {kind}")
    if isinstance(sakoe_chiba_radius, (int, np.integer)):
        radius = int(sakoe_chiba_radius)
        if radius < 0:
            raise ValueError(f"sakoe_chiba_radius must be >= 0 steps, got {radius}")
    elif sakoe_chiba_radius is not None:
        fraction = float(sakoe_chiba_radius)
        if not 0 <= fraction <= 1:
            raise ValueError(f"sakoe_chiba_radius must be in 0..1 as a fraction (int: steps), got {fraction}")
    if isinstance(itakura_max_slope, bool) or not isinstance(itakura_max_slope, (Real, type(None))):
        raise TypeError(f"itakura_max_slope must be a number >= 1, got {type(itakura_max_slope).__name__}")
    if itakura_max_slope is not None and not 1 <= itakura_max_slope < math.inf:
        raise ValueError(f"itakura_max_slope must be a number >= 1, got {itakura_max_slope}")
    if itakura_max_slope is not None and sakoe_chiba_radius is not None:
        raise ValueError("give sakoe_chiba_radius or itakura_max_slope, not both")
    if normalize not in (None, "path", "length"):
        raise ValueError(f"normalize must be None, 'path' or 'length', got {normalize!r}")
    open_begin, open_end = bool(open_begin or subsequence), bool(open_end or subsequence)
    if normalize == "length" and (open_begin or open_end):
        raise ValueError("normalize='length' needs both ends matched; with open ends use normalize='path'")
    if itakura_max_slope is not None and (open_begin or open_end):
        raise ValueError("itakura_max_slope needs both ends matched, got open ends")
    return Options(
        euclidean=cost == "euclidean", scale=0.5 if cost == "cosine" else 1.0,
        root=cost == "sqeuclidean" if root is None else bool(root),
        radius=min(radius, 2**30), fraction=fraction, slope=min(float(itakura_max_slope or 0), 2.0**30),
        open_begin=open_begin, open_end=open_end, normalize=normalize or "none",
    )  # fmt: skip


def to_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array; cut out what is masked, or fill it")
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f" or value.dtype.itemsize > 8:
            raise TypeError(f"{name} must be floating-point, got {value.dtype}; convert it first")
        value = value.astype(value.dtype.newbyteorder("="), copy=False)
        value = torch.from_numpy(
            value if value.flags.writeable and min(value.strides, default=0) >= 0 else value.copy()
        )
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be an array or a tensor, or a list of them, got {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must be floating-point, got {dtype_name(value.dtype)}; convert it first")
    if value.layout != torch.strided or value.is_meta:
        raise TypeError(f"{name} must be a dense tensor with data, got one of {value.layout} on {value.device}")
    return value.detach()


def is_numpy(*values: Any) -> bool:
    """Whether arrays came as NumPy, from the first that shows it; mixing is an error."""
    kinds = {
        isinstance(part, np.ndarray)
        for value in values
        for part in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(part, (np.ndarray, Tensor))
    }
    if len(kinds) > 1:
        raise TypeError("give NumPy arrays or tensors, not both")
    return kinds == {True}


def series(name: str, value: Any, lengths: Any = None, *, batch: bool) -> Series:
    """The one form of one sequence (`batch` False: [T, D] or [T]) or of many (list, [N, T, D] or [N, T])."""
    if isinstance(value, (list, tuple)):
        if lengths is not None:
            raise ValueError(f"lengths_{name} goes with a padded array; {name} is a list of {len(value)} sequences")
        found = _listed(name, value)
    elif batch:
        found = _padded(name, value, lengths)
    else:
        found = _single(name, value)
    if found.values.shape[1] == 0:
        raise ValueError(f"{name} must have D >= 1, got shape {tuple(found.values.shape)}")
    if len(found) and int(found.lengths.min()) < 1:
        which = f"{name}[{int(found.lengths.argmin())}]" if batch else name
        raise ValueError(f"{which} must have at least one frame, got none")
    _check_finite(name, found, batch)
    return found


def _single(name: str, value: Any) -> Series:
    rows = to_tensor(name, value)
    if rows.ndim not in (1, 2):
        raise ValueError(f"{name} must be [T, D] or [T], got shape {tuple(rows.shape)}")
    rows = rows[:, None] if rows.ndim == 1 else rows
    return Series(rows, _FIRST, torch.tensor([rows.shape[0]]))


def _padded(name: str, value: Any, lengths: Any) -> Series:
    padded = to_tensor(name, value)
    if padded.ndim not in (2, 3):
        raise ValueError(f"{name} must be [N, T, D] or [N, T], got shape {tuple(padded.shape)}")
    padded = padded[..., None] if padded.ndim == 2 else padded
    count, longest, dim = padded.shape
    counts = _lengths(f"lengths_{name}", lengths, count, longest)
    return Series(padded.reshape(count * longest, dim), torch.arange(count) * longest, counts)


def _listed(name: str, values: Sequence[Any]) -> Series:
    items = [to_tensor(f"{name}[{k}]", item) for k, item in enumerate(values)]
    if not items:
        return Series(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    for k, item in enumerate(items):
        if item.ndim not in (1, 2) or item.ndim != items[0].ndim:
            raise ValueError(f"{name}[{k}] must be [T, D] or [T] like the others, got shape {tuple(item.shape)}")
        if item.ndim == 2 and item.shape[1] != items[0].shape[1]:
            raise ValueError(f"{name}[{k}] must have D = {items[0].shape[1]} like {name}[0], got {item.shape[1]}")
        if item.device != items[0].device:
            raise ValueError(f"{name}[{k}] must be on {items[0].device} like {name}[0], got {item.device}")
    counts = torch.tensor([item.shape[0] for item in items])
    rows = torch.cat([item[:, None] if item.ndim == 1 else item for item in items])
    return Series(rows, counts.cumsum(0) - counts, counts)


def _lengths(name: str, value: Any, count: int, longest: int) -> Tensor:
    if value is None:
        return torch.full((count,), longest)
    try:
        lengths = torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be integers [{count}], got {value!r}") from None
    if lengths.numel() and lengths.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be integers, got {dtype_name(lengths.dtype)}")
    if lengths.shape != (count,):
        raise ValueError(f"{name} must be [{count}], got shape {tuple(lengths.shape)}")
    if count and not 0 <= int(lengths.min()) <= int(lengths.max()) <= longest:
        raise ValueError(f"{name} must be in 1..{longest}, got {int(lengths.min())}..{int(lengths.max())}")
    return lengths.long()


def on_one_thread(values: Tensor) -> bool:
    """Whether NumPy is to do what torch would do in parallel: after a parallel loop torch's threads spin for
    milliseconds, on the cores that the compiled core is about to use."""
    return values.device.type == "cpu" and values.numel() > 1 << 14 and values.dtype in (torch.float32, torch.float64)


def _extremes(values: Tensor) -> tuple[float, float]:
    """Least and greatest value, or NaN."""
    if on_one_thread(values):
        array = values.numpy()
        return float(array.min()), float(array.max())
    low, high = torch.aminmax(values)
    return low.item(), high.item()


def _check_finite(name: str, found: Series, many: bool) -> None:
    if not found.values.numel() or not len(found):
        return
    low, high = _extremes(found.values)
    if -low <= LARGEST and high <= LARGEST:  # False for NaN
        return
    for k, (start, count) in enumerate(zip(found.starts.tolist(), found.lengths.tolist(), strict=True)):
        rows = found.values[start : start + count].double()
        bad = (~(rows.abs() <= LARGEST)).any(1).nonzero()  # padding may hold anything
        if len(bad):
            value = rows[bad[0, 0]]
            value = float(value[~(value.abs() <= LARGEST)][0])
            which = f"{name}[{k}]" if many else name
            rule = "be finite" if not math.isfinite(value) else f"lie within ±{LARGEST:g}"
            raise ValueError(f"{which} must {rule}, got {value:g} at frame {int(bad[0, 0])}")


def given_costs(value: Any, rows: Any, columns: Any, *, batch: bool) -> Costs:
    if isinstance(value, (list, tuple)):
        raise TypeError("x must be one cost array with cost='precomputed', padded with lengths_x and lengths_y")
    costs = to_tensor("x", value)
    if costs.ndim != 2 + batch:
        raise ValueError(f"x must be a cost matrix [Ta, Tb] or [B, Ta, Tb], got shape {tuple(costs.shape)}")
    costs = costs if batch else costs[None]
    n = _lengths("lengths_x", rows, len(costs), costs.shape[1])
    m = _lengths("lengths_y", columns, len(costs), costs.shape[2])
    if len(costs) and min(int(n.min()), int(m.min())) < 1:
        raise ValueError(f"x must have at least one row and column, got shape {tuple(costs.shape)}")
    for k in range(len(costs)):
        part = costs[k, : int(n[k]), : int(m[k])]
        low, high = (float(v) for v in torch.aminmax(part))
        if not low >= 0 or (
            LARGEST**2 < high < math.inf
        ):  # infinity forbids a cell, NaN and negative costs mean nothing
            raise ValueError(f"x must hold costs >= 0 (inf forbids a cell), got {low:g}..{high:g}")
    return Costs(costs, n, m)


def unit_frames(rows: Series, other: Series) -> tuple[Series, Series]:
    """Frames whose squared distance is twice their cosine distance; a zero frame has cosine 0 with everything.

    Zero frames of either side get a dimension of their own, so that even two of them are at distance 1.
    """

    def unit(one: Series) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(one.values.dtype, torch.float32)  # units in half precision would lose the angle
        norm = torch.linalg.vector_norm(one.values.double(), dim=1, keepdim=True)
        zero = norm == 0
        return (one.values.double() / norm.masked_fill(zero, 1)).to(dtype), zero.to(dtype)

    (a, a_zero), (b, b_zero) = unit(rows), unit(other)
    if a_zero.any() or b_zero.any():
        a = torch.cat((a, a_zero, torch.zeros_like(a_zero)), 1)
        b = torch.cat((b, torch.zeros_like(b_zero), b_zero), 1)
    return replace(rows, values=a), replace(other, values=b)
