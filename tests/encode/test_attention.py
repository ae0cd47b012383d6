from __future__ import annotations

from importlib import import_module

import pytest
import torch
from compare import assert_matches_reference
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode

from vsim_fast import ops
from vsim_fast.encode.attention import AttentionTap, CoreAttention, attention_row

try:
    from vsim_fast import _C
except ImportError:
    _C = None


def full_map(q, k, scale):
    """[B, heads, M, N] in fp64, the definition."""
    k = k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return (q.double() @ k.transpose(-2, -1) * scale).softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_row_is_row_0_of_the_full_map(kv_heads, dtype):
    q, k = torch.randn(3, 4, 17, 24).to(dtype), torch.randn(3, kv_heads, 17, 24).to(dtype)
    row = attention_row(q, k)
    assert row.dtype == torch.float32
    assert_matches_reference(row, full_map(q, k, 24**-0.5)[:, :, 0].mean(1), dtype=dtype)


def test_attention_row_of_the_mean_query_with_a_given_scale():
    q, k = torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    expected = full_map(q.mean(2, keepdim=True), k, 0.7)[:, :, 0].mean(1)
    assert_matches_reference(attention_row(q, k, query="mean", scale=0.7), expected, dtype=torch.float32)


class Layer(nn.Module):
    def forward(self, x):
        if x.shape[2] == 1:
            raise torch.OutOfMemoryError("made up")
        return F.scaled_dot_product_attention(query=x, key=2 * x, value=x)


def test_tap_changes_nothing_and_forgets_the_row_it_gave():
    layer, x = Layer(), torch.randn(2, 3, 5, 8)
    plain = layer(x)
    tap = AttentionTap(layer)
    assert torch.equal(layer(x), plain)
    assert_matches_reference(tap.take(), full_map(x, 2 * x, 8**-0.5)[:, :, 0].mean(1), dtype=torch.float32)
    with pytest.raises(AssertionError, match="made no scaled_dot_product_attention call"):
        tap.take()


def test_tap_survives_running_out_of_memory_inside_the_layer():
    layer = Layer()
    tap = AttentionTap(layer)
    with pytest.raises(torch.OutOfMemoryError):
        layer(torch.randn(1, 1, 1, 8))
    assert _get_current_function_mode() is None, "the tap left its mode behind"
    layer(torch.randn(1, 1, 5, 8))
    assert tap.take().shape == (1, 5)


@pytest.fixture
def seen(monkeypatch):
    """Shapes of the queries that `ops.attention` was called with."""
    shapes, real = [], ops.attention

    def spy(q, k, v, **options):
        shapes.append(q.shape)
        return real(q, k, v, **options)

    monkeypatch.setattr(ops, "attention", spy)
    return shapes


@pytest.mark.parametrize(
    "call",
    [
        lambda q, k: F.scaled_dot_product_attention(q, k, k),
        lambda q, k: F.scaled_dot_product_attention(query=q, key=k, value=k, attn_mask=None, dropout_p=0.0),
        lambda q, k: F.scaled_dot_product_attention(q, k, k, None, 0.0, False, scale=0.3),
    ],
)
def test_plain_attention_goes_to_the_core(call, seen):
    q, k = torch.randn(2, 3, 7, 8).bfloat16(), torch.randn(2, 3, 9, 8).bfloat16()
    plain = call(q, k)
    with CoreAttention():
        assert_matches_reference(call(q, k), plain, dtype=torch.bfloat16, atol=2e-2)
    assert seen == [(2, 3, 7, 8)]


@pytest.mark.parametrize(
    "options",
    [dict(attn_mask=torch.zeros(7, 7).bfloat16()), dict(is_causal=True), dict(dropout_p=1e-9), dict(enable_gqa=True)],
    ids=lambda options: next(iter(options)),
)
def test_other_attention_stays_torch_s(options, seen):
    q = torch.randn(1, 4, 7, 8).bfloat16()
    k = torch.randn(1, 2 if "enable_gqa" in options else 4, 7, 8).bfloat16()
    plain = F.scaled_dot_product_attention(q, k, k, **options)
    with CoreAttention():
        assert torch.equal(F.scaled_dot_product_attention(q, k, k, **options), plain)
        F.scaled_dot_product_attention(q[0], q[0], q[0])  # three axes
    assert not seen


@pytest.mark.skipif(not getattr(_C, "has_bfloat16", False), reason="no compiled core, or a CPU without AVX512-BF16")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_compiled_attention_takes_the_core_for_bfloat16_alone(dtype):
    """A network in bfloat16 may turn its queries to float32 and back."""
    import_module("vsim_fast.ops.attention.native_impl")  # where the operator is made
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph

    q = torch.randn(1, 2, 7, 8).to(dtype)
    compiled = torch.compile(lambda q: F.scaled_dot_product_attention(q, q, q), backend=backend, fullgraph=True)
    with CoreAttention():
        got = compiled(q)
    assert_matches_reference(got, F.scaled_dot_product_attention(q, q, q), dtype=dtype, atol=2e-2)
    assert ("vsim_fast.attention" in graphs[0]) == (dtype == torch.bfloat16)


def test_a_tapped_layer_goes_to_the_core_too(seen):
    layer, x = Layer(), torch.randn(2, 3, 5, 8).bfloat16()
    tap = AttentionTap(layer)
    with CoreAttention():
        layer(x)
    assert len(seen) == 1 and tap.take().shape == (2, 5)
