"""One comparison, one tolerance table."""

from __future__ import annotations

import torch
from torch import Tensor

COSINE_ATOL = {
    torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3,
    torch.int8: 4e-3,  # measured at D = 384: 3.6e-3 at most over 13 clips' patch tokens of `builtin`, 0.7e-3 rms
}  # fmt: skip


def assert_matches_reference(got: Tensor, oracle: Tensor, *, dtype: torch.dtype, atol: float | None = None) -> None:
    """`got` equals the fp64 `oracle` within the table's absolute bound for inputs of `dtype`; NaN never passes."""
    bound = COSINE_ATOL[dtype] if atol is None else atol
    assert got.shape == oracle.shape, f"shape {list(got.shape)}, oracle {list(oracle.shape)}"
    assert torch.isfinite(got).all(), "result has NaN or infinity"
    if got.numel():
        error = (got.double().cpu() - oracle.double().cpu()).abs().max().item()
        assert error <= bound, f"max abs error {error:.3g} over the bound {bound:.3g}"
