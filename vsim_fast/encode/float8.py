"""Linear layers that multiply in float8_e4m3fn, with one scale per row of the input and per output channel."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max  # 448
MULTIPLE = 16  # of both sides of a weight that torch._scaled_mm takes


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """(float8 [..., K], float32 scales [..., 1]) of x [..., K], whose product is near x; NaN and infinity give NaN."""
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (x / scale).to(FLOAT8), scale


class Float8Linear(nn.Module):
    """`linear` with its weight in float8, for inputs [..., in_features] of `dtype`, which it quantises row by row.

    The product accumulates in float32 and comes out in `dtype`, bias added.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        weight, scale = quantised(linear.weight)  # [out, in], [out, 1]
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())  # [1, out]
        self.register_buffer("bias", None if linear.bias is None else linear.bias.to(dtype))
        self.in_features, self.out_features, self.dtype = linear.in_features, linear.out_features, dtype

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantised(x.reshape(-1, self.in_features).contiguous())  # the product takes whole rows only
        out = torch._scaled_mm(
            rows, self.weight.t(), scale_a=scale, scale_b=self.scale, bias=self.bias, out_dtype=self.dtype,
            use_fast_accum=True,
        )  # fmt: skip
        return out.view(*x.shape[:-1], self.out_features)


def quantise_linears(blocks: Iterable[nn.Module], dtype: torch.dtype) -> int:
    """Replace the linear layers within `blocks` whose sides are multiples of 16; how many.

    Subclasses of `nn.Linear` stay: their owners reach into them. So does timm's `qkv` beside biases of its own, whose
    weight is read from outside.
    """
    replaced = 0
    for block in blocks:
        for parent in list(block.modules()):
            for name, child in parent.named_children():
                fits = type(child) is nn.Linear and not (child.in_features % MULTIPLE or child.out_features % MULTIPLE)
                if fits and not (name == "qkv" and getattr(parent, "q_bias", None) is not None):
                    setattr(parent, name, Float8Linear(child, dtype))
                    replaced += 1
    return replaced
