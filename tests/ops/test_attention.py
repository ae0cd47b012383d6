"""`attention` of every backend against softmax(q kᵀ) v written out in float64."""

from __future__ import annotations

import pytest
import torch

from vsim_fast.ops import attention
from vsim_fast.ops.attention import core_is_faster

try:
    from vsim_fast import _C
except ImportError:
    _C = None

needs_bfloat16 = pytest.mark.skipif(
    not getattr(_C, "has_bfloat16", False), reason="no compiled core, or a CPU without AVX512-BF16"
)
CPP = pytest.param("cpp", marks=needs_bfloat16)
SHAPES = [  # B, H, N, M, d: around the blocks of 6 and 24 queries, 16, 64 and 128 keys, and 16 and 64 of d
    (1, 1, 1, 1, 1), (2, 3, 7, 5, 3), (1, 2, 24, 16, 16), (2, 2, 25, 65, 72), (1, 3, 95, 129, 17), (1, 1, 50, 200, 130),
    (1, 2, 257, 257, 64),
]  # fmt: skip


def draw(shape, dtype=torch.bfloat16, seed=0):
    B, H, N, M, d = shape
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, H, count, d, generator=generator).to(dtype) for count in (N, M, M)]


def exact(q, k, v, scale=None):
    q, k, v = (x.double() for x in (q, k, v))
    return (q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1) @ v


def assert_close(got, want, v):
    """Weights and result are rounded to 8 bits: half a step each, of the largest value."""
    bound = 2**-8 * v.abs().max().item() if got.dtype == torch.bfloat16 else 1e-5
    assert got.shape == want.shape and (got.double() - want).abs().max().item() <= bound


@pytest.mark.parametrize("backend", ["reference", CPP])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("shape", SHAPES, ids="B{0[0]}-H{0[1]}-N{0[2]}-M{0[3]}-d{0[4]}".format)
def test_matches_the_formula(shape, scale, backend):
    q, k, v = draw(shape)
    assert_close(attention(q, k, v, scale=scale, backend=backend), exact(q, k, v, scale), v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_dtypes_are_served_by_torch(dtype):
    q, k, v = draw((1, 2, 30, 40, 8), dtype)
    assert_close(attention(q, k, v), exact(q, k, v), v)
    assert not core_is_faster(q.device, dtype)


@pytest.mark.parametrize("backend", ["reference", CPP])
def test_any_layout(backend):
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(2, 33, 3, 4, 16, generator=generator).bfloat16()
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # as transformers lay them out
    assert_close(attention(q, k, v, backend=backend), exact(q, k, v), v)
    columns = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    assert_close(attention(*columns, backend=backend), exact(q, k, v), v)
    one = k[:, :1].expand(-1, 4, -1, -1)
    assert_close(attention(q, one, one, backend=backend), exact(q, one, one), v)


@pytest.mark.parametrize("backend", [CPP])
def test_heads_are_joined_without_a_copy(backend):
    out = attention(*draw((2, 3, 10, 10, 8)), backend=backend).transpose(1, 2)
    assert out.is_contiguous()


@pytest.mark.parametrize("backend", [CPP])
def test_threads_change_nothing(backend):
    from vsim_fast.ops.attention import native_impl

    for shape in ((1, 1, 500, 300, 32), (2, 3, 100, 100, 16)):
        q, k, v = draw(shape)
        one, *more = (native_impl.attention(q, k, v, scale=0.2, threads=count) for count in (1, 2, 3, 8))
        assert all(torch.equal(one, other) for other in more)


@pytest.mark.parametrize("backend", ["reference", CPP])
def test_large_scores_do_not_overflow(backend):
    q, k, v = draw((1, 1, 20, 70, 16))
    assert_close(attention(q * 300, k, v, backend=backend), exact(q * 300, k, v), v)
    assert_close(attention(q * 0, k, v, backend=backend), v.double().mean(2, keepdim=True).expand(-1, -1, 20, -1), v)


@pytest.mark.parametrize("backend", ["reference", CPP])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value, backend):
    q, k, v = draw((1, 2, 30, 70, 16))
    q[0, 1, 3, 5] = value
    out = attention(q, k, v, backend=backend)
    assert out[0, 1, 3].isnan().all()
    out[0, 1, 3] = 0
    assert out.isfinite().all()
    q, k, v = draw((1, 2, 30, 70, 16))
    v[0, 0, 69, 7] = value
    out = attention(q, k, v, backend=backend)
    assert not out[0, 0, :, 7].isfinite().any() and out[0, 1].isfinite().all()


def test_inputs_that_require_a_gradient_are_served_by_torch():
    q, k, v = draw((1, 2, 5, 6, 8))
    q.requires_grad_()
    attention(q, k, v).sum().backward()
    assert q.grad.isfinite().all()
    with torch.no_grad():
        assert_close(attention(q, k, v), exact(q, k, v), v)


@pytest.mark.parametrize("backend", [CPP])
def test_the_core_has_no_gradient(backend):
    q, k, v = draw((1, 2, 5, 6, 8))
    with pytest.raises(RuntimeError, match="backend 'cpp' has no gradient"):
        attention(q, k.requires_grad_(), v, backend=backend)


def test_no_queries():
    q, k, v = draw((2, 2, 0, 3, 8))
    assert attention(q, k, v).shape == (2, 2, 0, 8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda q, k, v: (q[0], k, v), ValueError, r"q must be \[B, H, N, d\], got shape \(2, 4, 8\)"),
        (lambda q, k, v: (q, k[..., :7], v[..., :7]), ValueError, "q, k and v must be"),
        (lambda q, k, v: (q, k, v[:, :, 1:]), ValueError, "q, k and v must be"),
        (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]), ValueError, "k must have at least one token"),
        (lambda q, k, v: (q, k.float(), v), TypeError, "q and k must share a dtype"),
    ],
)
def test_wrong_shapes_and_dtypes(change, error, message):
    with pytest.raises(error, match=message):
        attention(*change(*draw((2, 2, 4, 5, 8))))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_scale(scale):
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        attention(*draw((1, 1, 2, 2, 8)), scale=scale)


@pytest.mark.skipif(_C is None, reason="the compiled core is not installed")
def test_the_core_takes_bfloat16_only():
    with pytest.raises(TypeError, match="backend 'cpp' takes bfloat16, got float32"):
        attention(*draw((1, 1, 2, 2, 8), torch.float32), backend="cpp")


@needs_bfloat16
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_knows_its_layout():
    q, k, v = draw((2, 3, 30, 40, 16))
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    torch.library.opcheck(torch.ops.vsim_fast.attention, (q, k, v, 0.25), test_utils=("test_schema", "test_faketensor"))
    want = attention(q, k, v, scale=0.25, backend="cpp")
    assert torch.equal(torch.ops.vsim_fast.attention(q, k, v, 0.25), want)
