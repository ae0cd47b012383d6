"""Every backend and instruction set of `best_cosines` against the fp64 reference, and its integers bit for bit."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from compare import COSINE_ATOL, assert_matches_reference

from vsim_fast.ops import QuantizedTokens, _dispatch, best_cosines, best_match, quantize_tokens

try:
    from vsim_fast import _C
except ImportError:
    _C = None

quantization = import_module("vsim_fast.ops.best_cosines")  # the op hides its folder
SHAPES = [  # N, Ka, M, Kb, D
    (1, 1, 1, 1, 1), (1, 1, 3, 5, 7), (4, 7, 1, 1, 33), (2, 5, 3, 65, 63), (3, 6, 2, 64, 64), (1, 13, 5, 63, 65),
    (2, 144, 3, 312, 384), (3, 25, 2, 129, 768), (2, 31, 2, 50, 1152),
]  # fmt: skip
HALF = (torch.float16, torch.bfloat16)
needs_core = pytest.mark.skipif(_C is None, reason="the compiled core is not installed")
SIMD = [pytest.param(name, marks=needs_core) for name in ("portable", "avx2", "avx512")]
BACKENDS = [
    "reference",
    pytest.param("cpp", marks=needs_core),
    pytest.param("cuda", marks=pytest.mark.needs_cuda),
]


def shape_id(shape):
    return "N{}-Ka{}-M{}-Kb{}-D{}".format(*shape)


def unit_tokens(*shape, seed=0):
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def pair_of(shape, dtype=torch.float32):
    N, Ka, M, Kb, D = shape
    return unit_tokens(N, Ka, D).to(dtype), unit_tokens(M, Kb, D, seed=1).to(dtype)


def oracle(a, b):
    return best_cosines(a.double(), b.double(), backend="reference")


def assert_close(got, want, dtype, atol=None):
    for one, other in zip(got, want, strict=True):
        assert_matches_reference(one, other, dtype=dtype, atol=atol)


def random_codes(shape, seed=2):
    """Every code, -128 too, and uneven scales: what no quantisation makes, but the kernels promise to serve."""
    N, Ka, M, Kb, D = shape
    generator = torch.Generator().manual_seed(seed)
    return [
        QuantizedTokens(
            torch.randint(-128, 128, (frames, count, D), dtype=torch.int8, generator=generator),
            torch.rand(frames, count, generator=generator) / (64 * D),
        )
        for frames, count in ((N, Ka), (M, Kb))
    ]


def by_definition(a, b):
    """The definition in csrc/best_cosines.h, product by product."""
    dots = torch.einsum("nid,mjd->nmij", a.codes.double(), b.codes.double())  # exact
    cosines = (dots.float() * b.scales[:, None, :] * a.scales[:, None, :, None]).clamp(-1, 1)
    return cosines.amax(3), cosines.amax(2)


def run_core(simd, a, b, threads=1):
    if simd not in _C.simd_levels():
        pytest.skip(f"this CPU or build has no {simd}")
    from vsim_fast.ops.best_cosines import native_impl

    return native_impl.best_cosines(a, b, threads=threads, simd=simd)


# The reference.


def test_reference_by_hand():
    a = torch.tensor([[[1.0, 0], [0, 1]], [[0.6, 0.8], [-1, 0]]])
    b = torch.tensor([[[0.8, 0.6], [-0.6, -0.8], [0, 0]]])
    got = best_cosines(a, b, backend="reference")
    torch.testing.assert_close(got.a_in_b, torch.tensor([[[0.8, 0.6]], [[0.96, 0.6]]]))
    torch.testing.assert_close(got.b_in_a, torch.tensor([[[0.8, -0.6, 0]], [[0.96, 0.6, 0]]]))


def test_reference_agrees_with_best_match():
    a, b = pair_of((3, 11, 4, 9, 20))
    got = best_cosines(a, b, backend="reference")
    for n in range(3):
        want = best_match(a[n].expand(4, -1, -1), b, backend="reference")
        torch.testing.assert_close(got.a_in_b[n], want.scores_ab)
        torch.testing.assert_close(got.b_in_a[n], want.scores_ba)


def test_reference_in_small_blocks_is_the_same(monkeypatch):
    from vsim_fast.ops.best_cosines import reference

    a, b = pair_of((7, 5, 9, 6, 16), torch.float64)
    want = best_cosines(a, b, backend="reference")
    for scratch in (1, 5 * 6 * 8 * 2, 5 * 6 * 8 * 9 * 2):  # one pair; two frames of b; all of b and two frames of a
        monkeypatch.setattr(reference, "SCRATCH_BYTES", scratch)
        assert_close(best_cosines(a, b, backend="reference"), want, torch.float32, atol=1e-15)


# Every backend.


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_best_cosines_matches_reference(backend, shape, dtype):
    a, b = pair_of(shape, dtype)
    if backend == "cuda":
        got = best_cosines(a.cuda(), b.cuda())
        assert all(field.is_cuda for field in got)
    else:
        got = best_cosines(a, b, backend=backend)
    assert all(field.dtype == torch.float32 for field in got)
    atol = None
    if backend == "cpp":  # a step of int8 shrinks with the largest entry, about as 1 / sqrt(D)
        atol = COSINE_ATOL[torch.int8] * max(1, (384 / shape[4]) ** 0.5)
    assert_close(got, oracle(a, b), torch.float32 if backend == "reference" else dtype, atol)


def natural_tokens(frames, count, D, seed):
    """Alike within a frame, with a mean, and some held by one entry: what is hard for a single scale per token."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator)
    tokens = draw(frames, 1, D) + 0.7 * draw(frames, count, D) + 0.5
    tokens[:, ::3, 5] += 30
    tokens[:, ::7] = tokens[:, ::7] * 0.02 + F.one_hot(torch.tensor(11), D)
    return F.normalize(tokens, dim=-1)


@needs_core
def test_quantised_error_of_uneven_tokens():
    a, b = natural_tokens(4, 60, 384, 3), natural_tokens(5, 70, 384, 4)
    b[:2, :20] = F.normalize(a[:2, :20] + 0.02 * unit_tokens(2, 20, 384, seed=5), dim=-1)  # near copies
    assert_close(best_cosines(a, b, backend="cpp"), oracle(a, b), torch.int8)


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_zero_tokens_score_zero(backend):
    a, b = pair_of((3, 8, 4, 70, 96))
    a[1, 3:] = 0
    b[2] = 0
    b[0, 69] = 0
    a_in_b, b_in_a = best_cosines(a, b, backend=backend)
    assert not a_in_b[1, :, 3:].any() and not a_in_b[:, 2].any()
    assert not b_in_a[:, 2].any() and not b_in_a[:, 0, 69].any()
    assert_close((a_in_b, b_in_a), oracle(a, b), torch.int8, 8e-3)


@pytest.mark.parametrize("counts", [(1, 1), (5, 63), (7, 65), (144, 20)])
@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_best_may_be_negative(backend, counts):
    """What fills the tiles up must not win with a zero."""
    axis = unit_tokens(1, 1, 384)
    a = F.normalize(axis + 0.01 * unit_tokens(2, counts[0], 384, seed=1), dim=-1)
    b = F.normalize(-axis + 0.01 * unit_tokens(3, counts[1], 384, seed=2), dim=-1)
    got = best_cosines(a, b, backend=backend)
    assert all(field.max() < -0.9 for field in got)
    assert_close(got, oracle(a, b), torch.int8)


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_no_frames(backend):
    a, b = pair_of((0, 4, 3, 5, 64))
    for got, shapes in (
        (best_cosines(a, b, backend=backend), [(0, 3, 4), (0, 3, 5)]),
        (best_cosines(b, a, backend=backend), [(3, 0, 5), (3, 0, 4)]),
    ):
        assert [tuple(field.shape) for field in got] == shapes


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_strided_views(backend):
    a, b = pair_of((6, 10, 4, 66, 80))
    views = a[::2, 1:9], b.transpose(0, 1)[:40].transpose(0, 1)
    got = best_cosines(*views, backend=backend)
    assert all(map(torch.equal, got, best_cosines(*(view.contiguous() for view in views), backend=backend)))
    whole = QuantizedTokens(*quantize_tokens(a))
    view = QuantizedTokens(whole.codes[::2, 1:9], whole.scales[::2, 1:9])
    got = best_cosines(view, quantize_tokens(views[1]), backend=backend)
    assert_close(got, oracle(*views), torch.int8, 8e-3)


# The integers.


@pytest.mark.parametrize("shape", [(*shape[:4], -(-shape[4] // 64) * 64) for shape in SHAPES], ids=shape_id)
@pytest.mark.parametrize("simd", SIMD)
def test_every_instruction_set_gives_the_same_bits(simd, shape):
    a, b = random_codes(shape)
    a.scales[0, 0] = b.scales[-1, -1] = 0
    assert all(map(torch.equal, run_core(simd, a, b), by_definition(a, b)))


@pytest.mark.parametrize("code", [-128, 127])
@pytest.mark.parametrize("simd", SIMD)
def test_longest_tokens_do_not_overflow(simd, code):
    D = 1 << 16
    a, b = (QuantizedTokens(torch.full((1, 1, D), code, dtype=torch.int8), torch.full((1, 1), 2.0**-15)) for _ in "ab")
    want = min(1.0, D * code * code * 2.0**-30)
    assert all(field.item() == want for field in run_core(simd, a, b))
    opposite = QuantizedTokens(torch.full((1, 1, D), -1 - code, dtype=torch.int8), b.scales)
    assert all(field.item() == D * code * (-1 - code) * 2.0**-30 for field in run_core(simd, a, opposite))


@needs_core
@pytest.mark.parametrize("shape", [(1, 40, 1, 70, 384), (9, 144, 1, 100, 384), (2, 60, 11, 130, 384)], ids=shape_id)
def test_threads_agree(shape):
    a, b = random_codes(shape)
    want = run_core("portable", a, b)
    for threads in (0, 1, 2, 3, 7):
        assert all(map(torch.equal, run_core(_C.simd(), a, b, threads), want))


# Quantisation.


def test_codes_are_within_half_a_scale_of_the_rotated_tokens():
    tokens = natural_tokens(2, 50, 200, 6) * torch.logspace(-30, 3, 50)[:, None]
    codes, scales = quantize_tokens(tokens)
    assert codes.shape == (2, 50, 256) and codes.dtype == torch.int8 and scales.shape == (2, 50)
    assert (codes.abs().amax(-1) == 127).all()
    rotation = quantization._rotation(tokens.device).double()
    assert torch.equal(rotation @ rotation.T, torch.eye(64).double())  # keeps cosines
    rotated = (F.pad(tokens.double(), (0, 56)).unflatten(-1, (4, 64)) @ rotation).flatten(-2)
    steps = (codes * scales[..., None].double() - rotated) / scales[..., None]
    assert 0.49 < steps.abs().max() < 0.5 + 1e-4


def test_quantised_tokens_are_reused():
    a, b = pair_of((3, 20, 4, 70, 130))
    codes = quantize_tokens(a), quantize_tokens(b)
    for backend in ("reference", *(["cpp"] if _C else [])):
        got = best_cosines(*codes, backend=backend)
        assert_close(got, oracle(a, b), torch.int8, 8e-3)
        part = QuantizedTokens(*(field[1:3] for field in codes[1]))
        again = best_cosines(codes[0], part, backend=backend)
        for whole, piece in zip(got, again, strict=True):
            torch.testing.assert_close(piece, whole[:, 1:3], atol=1e-6, rtol=0)
    if _C:
        assert all(map(torch.equal, best_cosines(*codes), best_cosines(a, b, backend="cpp")))


def test_quantise_any_axes_and_long_inputs(monkeypatch):
    tokens = unit_tokens(3, 4, 5, 70).half()
    codes, scales = quantize_tokens(tokens)
    assert codes.shape == (3, 4, 5, 128) and scales.shape == (3, 4, 5)
    monkeypatch.setattr(quantization, "BLOCK_ROWS", 7)
    again = quantize_tokens(tokens.transpose(0, 2))
    assert torch.equal(again.codes.transpose(0, 2), codes) and torch.equal(again.scales.transpose(0, 2), scales)
    single = quantize_tokens(tokens[0, 0])
    assert torch.equal(single.codes, codes[0, 0])
    assert quantize_tokens(tokens[:0]).codes.shape == (0, 4, 5, 128)


def test_quantise_extremes():
    tokens = torch.tensor([[0.0, 0.0], [1e-45, 0.0], [1e-34, -1e-34], [3e37, 1e37]])
    codes, scales = quantize_tokens(tokens)
    assert (codes[:2] == 0).all() and (scales[:2] == 0).all()
    assert (codes[2:].abs().amax(-1) == 127).all() and scales.isfinite().all()


# What is refused.

A = torch.zeros(2, 3, 64)
Q = quantize_tokens(A)


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (A[0], A, ValueError, r"a must be \[N, Ka, D\], got shape \(3, 64\)"),
        (A, A[0], ValueError, r"b must be \[M, Kb, D\], got shape \(3, 64\)"),
        (A.numpy(), A, TypeError, r"a must be a tensor \[N, Ka, D\], got ndarray"),
        (A, None, TypeError, r"b must be a tensor \[M, Kb, D\], got NoneType"),
        (A.int(), A.int(), TypeError, "a must be one of float16, .*, got int32"),
        (A, A.half(), TypeError, "a and b must share a dtype, got float32 and float16"),
        (A, A.to("meta"), ValueError, "a and b must be on one device, got cpu and meta"),
        (A, A[..., :63], ValueError, r"a and b must agree in D, got shapes \(2, 3, 64\) and \(2, 3, 63\)"),
        (A[:, :0], A, ValueError, r"a and b must have at least one token per frame .* \(2, 0, 64\) and \(2, 3, 64\)"),
        (A[..., :0], A[..., :0], ValueError, "D >= 1"),
        (Q, A, TypeError, "a and b must both be quantised or neither; see quantize_tokens"),
        (A, Q, TypeError, "a and b must both be quantised or neither"),
        (Q, QuantizedTokens(A, Q.scales), TypeError, "b.codes must be one of int8, got float32"),
        (Q._replace(codes=Q.codes[0]), Q, ValueError, r"a.codes must be \[frames, K, D'\], got shape \(3, 64\)"),
        (Q, Q._replace(scales=Q.scales.half()), TypeError, "b.scales must be one of float32, got float16"),
        (Q, Q._replace(scales=Q.scales[:1]), ValueError, r"b.scales must be \(2, 3\) on cpu, got \(1, 3\) on cpu"),
        (Q, Q._replace(codes=Q.codes[..., :63]), ValueError, r"b.codes must have D' a multiple of 64 .*\(2, 3, 63\)"),
    ],
    ids=[str(k) for k in range(17)],
)
def test_best_cosines_rejects(a, b, error, message):
    with pytest.raises(error, match=message):
        best_cosines(a, b)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (A.numpy(), TypeError, r"tokens must be a tensor \[K, D\], got ndarray"),
        (A[0, 0], ValueError, r"tokens must be \[K, D\], got shape \(64,\)"),
        (A.int(), TypeError, "tokens must be one of float16, .*, got int32"),
        (A[..., :0], ValueError, r"tokens must have D in 1 … 65536, got shape \(2, 3, 0\)"),
        (torch.zeros(1, (1 << 16) + 1), ValueError, "tokens must have D in 1 … 65536"),
        (torch.tensor([[1.0, 2], [3, float("nan")]]), ValueError, "tokens must be finite .* got nan"),
        (torch.tensor([[1.0, 2], [3, -float("inf")]]), ValueError, "tokens must be finite .* got inf"),
    ],
    ids=[str(k) for k in range(7)],
)
def test_quantise_rejects(tokens, error, message):
    with pytest.raises(error, match=message):
        quantize_tokens(tokens)


@needs_core
def test_core_rejects():
    """What the Python side never sends."""

    def call(a=(2, 3, 64), b=(4, 5, 64), a_scales=(2, 3), b_scales=(4, 5), out=((2, 4, 3), (2, 4, 5)), simd=""):
        codes = [torch.zeros(shape, dtype=torch.int8).numpy() for shape in (a, b)]
        scales, outputs = ([torch.zeros(shape).numpy() for shape in part] for part in ((a_scales, b_scales), out))
        _C.best_cosines(codes[0], scales[0], codes[1], scales[1], *outputs, simd=simd)

    call()
    for change, message in [
        (dict(a=(2, 64)), r"a and b must be \[frames, tokens, D\]"),
        (dict(a=(2, 0, 64), a_scales=(2, 0)), "at least one token per frame"),
        (dict(a=(2, 3, 63)), "D must be a multiple of 64 up to 65536, got 63"),
        (dict(b=(4, 5, 128)), r"b must have shape \(4, 5, 64\), got \(4, 5, 128\)"),
        (dict(a_scales=(3, 2)), r"a_scales must have shape \(2, 3\)"),
        (dict(b_scales=(4, 4)), r"b_scales must have shape \(4, 5\)"),
        (dict(out=((2, 4, 5), (2, 4, 5))), r"a_in_b must have shape \(2, 4, 3\)"),
        (dict(out=((2, 4, 3), (4, 2, 5))), r"b_in_a must have shape \(2, 4, 5\)"),
        (dict(simd="mmx"), "simd must be one of portable, avx2, avx512, got 'mmx'"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**change)


def test_named_backend_never_falls_back(monkeypatch):
    monkeypatch.setattr(_dispatch, "why_not", lambda backend, device: "no core" if backend == "cpp" else None)
    with pytest.raises(RuntimeError, match="best_cosines: backend 'cpp' cannot run: no core"):
        best_cosines(A, A, backend="cpp")
    assert not best_cosines(A, A).a_in_b.any()  # unset: the reference serves
    with pytest.raises(ValueError, match=r"backend must be one of .*, got 'gpu'"):
        best_cosines(A, A, backend="gpu")
