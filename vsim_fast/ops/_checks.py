"""Checks shared by all ops: each raises TypeError or ValueError naming the argument, the rule and the value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tensor(name: str, value: object, axes: str, dtypes: Sequence[torch.dtype] = FLOATS) -> None:
    """`value` is a tensor with as many dimensions as `axes` names ("[T, P, D]") and one of `dtypes`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {axes}, got {type(value).__name__}")
    if value.ndim != axes.count(",") + 1:
        raise ValueError(f"{name} must be {axes}, got shape {tuple(value.shape)}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must be one of {', '.join(map(dtype_name, dtypes))}, got {dtype_name(value.dtype)}")


def check_same(names: str, a: Tensor, b: Tensor) -> None:
    """Both tensors live on one device in one dtype."""
    if a.device != b.device:
        raise ValueError(f"{names} must be on one device, got {a.device} and {b.device}")
    if a.dtype != b.dtype:
        raise TypeError(f"{names} must share a dtype, got {dtype_name(a.dtype)} and {dtype_name(b.dtype)}")


def check_out(out: object, shape: Sequence[int], like: Tensor) -> None:
    """`out` is a floating tensor of `shape` on the device of `like`; its dtype and strides are the caller's choice."""
    check_tensor("out", out, "[" + ", ".join("?" * len(shape)) + "]")
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"out must have shape {tuple(shape)}, got {tuple(out.shape)}")
    if out.device != like.device:
        raise ValueError(f"out must be on {like.device}, got {out.device}")
