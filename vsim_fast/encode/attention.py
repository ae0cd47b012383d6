"""What is done to the fused attention of a network: one row of one layer is kept, and the core takes its place."""

from __future__ import annotations

import threading
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from vsim_fast import ops

CLS_ROW = "CLS-row attention of the last layer, mean over heads"
PROBE_ROW = "attention of the pooling head's probe over the patches, mean over heads"
POOLED_ROW = "attention of the mean patch query in the last layer, mean over heads (the model has no CLS token)"


def attention_row(
    q: Tensor, k: Tensor, *, query: Literal["first", "mean"] = "first", scale: float | None = None
) -> Tensor:
    """Softmax attention of one query over all keys, averaged over heads; the N×N map is never formed.

    Args:
        q: [B, heads, M, d] queries, rotated and normalised as the layer attends with them.
        k: [B, kv_heads, N, d]; kv_heads divides heads (grouped-query attention).
        query: "first" takes token 0 (CLS, or a pooling head's probe), "mean" the mean of all queries.
        scale: factor on the logits; None is d ** -0.5.
    Returns:
        float32 [B, N], rows sum to 1.
    """
    row = q[:, :, :1] if query == "first" else q.float().mean(dim=2, keepdim=True).to(q.dtype)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1) if k.shape[1] != q.shape[1] else k
    logits = (row @ k.transpose(-2, -1)).float() * (q.shape[-1] ** -0.5 if scale is None else scale)
    return logits.softmax(dim=-1).mean(dim=1)[:, 0]


class _Kept(threading.local):
    """A row between the hook and whoever takes it: of each thread, several may run the model at the same time."""

    row: Tensor | None = None


class AttentionTap:
    """Hooks on `layer` that keep `attention_row` of the attention call made inside it.

    While the layer runs, calls of `scaled_dot_product_attention` are seen on their way through, so q and k come after
    biases, q/k normalisation and rotary embedding, whatever the library does with them, and nothing is projected twice.
    """

    def __init__(self, layer: nn.Module, *, query: Literal["first", "mean"] = "first"):
        for module in layer.modules():
            if hasattr(module, "fused_attn"):  # timm's switch between fused and hand-written attention
                module.fused_attn = True
        self._mode = _SeeAttention(query)
        layer.register_forward_pre_hook(self._enter)
        layer.register_forward_hook(self._leave, always_call=True)  # also when memory runs out inside the layer

    def _enter(self, layer: nn.Module, args: tuple) -> None:
        self._mode.kept.row = None
        self._mode.__enter__()

    def _leave(self, layer: nn.Module, args: tuple, output: object) -> None:
        self._mode.__exit__(None, None, None)

    def take(self) -> Tensor:
        """float32 [B, N] of the forward pass that just ended; drops it here."""
        row, self._mode.kept.row = self._mode.kept.row, None
        assert row is not None, "the tapped layer made no scaled_dot_product_attention call"
        return row


class _SeeAttention(TorchFunctionMode):
    def __init__(self, query: Literal["first", "mean"]):
        super().__init__()
        self.query, self.kept = query, _Kept()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            assert kwargs.get("attn_mask") is None, "a masked layer has no single CLS row"
            q, k = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("query", "key")))
            self.kept.row = attention_row(q, k, query=self.query, scale=kwargs.get("scale"))
        return func(*args, **kwargs)


class CoreAttention(TorchFunctionMode):
    """While it is entered, bfloat16 attention without a mask is that of `vsim_fast.ops`."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        plain = _plain(*args, **kwargs) if func is scaled_dot_product_attention else None
        if plain is None:
            return func(*args, **kwargs)
        q, k, v, scale = plain
        if torch.compiler.is_compiling():
            return torch.ops.vsim_fast.attention(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)
        return ops.attention(q, k, v, scale=scale)


def _plain(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> tuple[Tensor, Tensor, Tensor, float | None] | None:  # fmt: skip
    """(q, k, v, scale) of a call that the core serves, else None."""
    if attn_mask is not None or dropout_p or is_causal or query.dtype != torch.bfloat16:
        return None
    same = query.ndim == 4 and query.shape[:2] == key.shape[:2] and key.shape == value.shape
    return (query, key, value, scale) if same else None


class ProbeTap:
    """Hook on a pooling head's `nn.MultiheadAttention`, which returns its head-averaged weights [B, 1, N] anyway."""

    def __init__(self, attention: nn.MultiheadAttention):
        self._kept = _Kept()
        attention.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple, output: tuple[Tensor, Tensor | None]) -> None:
        assert output[1] is not None, "the pooling head was called without weights"
        self._kept.row = output[1][:, 0].float()

    def take(self) -> Tensor:
        """float32 [B, N] of the forward pass that just ended; drops it here."""
        row, self._kept.row = self._kept.row, None
        assert row is not None, "the pooling head was not called"
        return row
