"""Every backend and instruction set of `top_k` and `pairs_above` against the fp64 reference."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from compare import assert_matches_reference

from vsim_fast.ops import _dispatch, pairs_above, top_k

try:
    from vsim_fast import _C
except ImportError:
    _C = None

reference = import_module("vsim_fast.ops.top_k.reference")
needs_core = pytest.mark.skipif(_C is None, reason="the compiled core is not installed")
SIMD = [pytest.param(name, marks=needs_core) for name in ("portable", "avx2", "avx512")]
CPP = pytest.param("cpp", marks=needs_core)
BACKENDS = ["reference", CPP, "triton"]
JOINS = ["reference", CPP]
DTYPES = [torch.float32, torch.float16]
SHAPES = [  # Q, N, D, k: around the tiles of 6 vectors and 16, 32, 64 queries, and the few queries that take no codes
    (1, 1, 1, 1), (4, 50, 7, 3), (5, 200, 33, 10), (8, 7, 5, 7), (17, 300, 63, 10), (33, 131, 64, 5),
    (65, 301, 100, 40), (100, 600, 48, 10), (130, 70, 65, 30),
]  # fmt: skip
CODE_BOUND = 2e-6
"""What sums of up to a few hundred float32 products of unit vectors round off."""


def ids(shape):
    return "Q{}-N{}-D{}-k{}".format(*shape)


def unit(*shape, seed=0, dtype=torch.float32):
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1).to(dtype)


def run(backend, queries, vectors, k):
    if backend == "triton" and torch.cuda.is_available():
        result = top_k(queries.cuda(), vectors.cuda(), k, backend="triton")
        return type(result)(*(part.cpu() for part in result))
    return top_k(queries, vectors, k, backend=backend)


def core(op, simd, *arguments, threads=1):
    if simd not in _C.simd_levels():
        pytest.skip(f"this CPU or build has no {simd}")
    return getattr(import_module("vsim_fast.ops.top_k.native_impl"), op)(*arguments, threads=threads, simd=simd)


def assert_best(got, queries, vectors, k, atol=CODE_BOUND):
    """Scores as the oracle's, and the vectors named have them: near ties may change places."""
    truth = top_k(queries.double(), vectors.double(), k, backend="reference")
    assert_matches_reference(got.scores, truth.scores, dtype=torch.float32, atol=atol)
    named = (queries.double() @ vectors.double().mT).gather(1, got.index)
    assert_matches_reference(got.scores, named, dtype=torch.float32, atol=atol)
    assert all(len(set(row)) == len(row) for row in got.index.tolist())
    assert (got.scores.diff(dim=1) <= 0).all()


def whole_numbers(rows, D, seed, dtype=torch.float32):
    """Products are exact, and most scores tie."""
    return torch.randint(-2, 3, (rows, D), generator=torch.Generator().manual_seed(seed)).to(dtype)


# The reference.


def test_reference_by_hand():
    queries = torch.tensor([[1.0, 0], [0, -1]])
    vectors = torch.tensor([[0.5, 0.5], [1, 0], [0, 0], [0.5, -3], [-1, 0]])
    scores, index = top_k(queries, vectors, 3, backend="reference")
    assert scores.tolist() == [[1, 0.5, 0.5], [3, 0, 0]] and index.tolist() == [[1, 0, 3], [3, 1, 2]]
    pairs = pairs_above(vectors, 0.5, backend="reference")
    assert pairs.index.tolist() == [[0, 1], [1, 3]] and pairs.scores.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("size", [40, 400, 4000])
def test_reference_in_small_blocks_is_the_same(monkeypatch, size):
    queries, vectors = whole_numbers(5, 3, 0), whole_numbers(200, 3, 1)
    want, joined = top_k(queries, vectors, 20, backend="reference"), pairs_above(vectors, 8, backend="reference")
    order = (queries @ vectors.mT).sort(dim=1, descending=True, stable=True)
    assert torch.equal(want.index, order.indices[:, :20])
    monkeypatch.setattr(reference, "BLOCK_BYTES", size)
    assert all(map(torch.equal, top_k(queries, vectors, 20, backend="reference"), want))
    monkeypatch.setattr(reference, "BLOCK_BYTES", size * 4096)
    assert all(map(torch.equal, pairs_above(vectors, 8, backend="reference"), joined))


# Every backend.


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
@pytest.mark.parametrize("backend", BACKENDS)
def test_top_k_matches_reference(backend, shape, dtype):
    Q, N, D, k = shape
    queries, vectors = unit(Q, D, dtype=dtype), unit(N, D, seed=1, dtype=dtype)
    got = run(backend, queries, vectors, k)
    assert got.scores.dtype == torch.float32 and got.index.dtype == torch.int64
    assert_best(got, queries, vectors, k)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float16"])
@pytest.mark.parametrize("Q", [2, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_smaller_index(backend, Q, dtype):
    queries, vectors = whole_numbers(Q, 6, 0, dtype), whole_numbers(500, 6, 1, dtype)
    order = (queries.float() @ vectors.float().mT).sort(dim=1, descending=True, stable=True)
    got = run(backend, queries, vectors, 30)
    assert torch.equal(got.index, order.indices[:, :30]) and torch.equal(got.scores, order.values[:, :30])


@pytest.mark.needs_cuda  # the interpreter gets bf16 dot products wrong
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_triton_on_bfloat16_matches_reference(shape):
    Q, N, D, k = shape
    queries, vectors = unit(Q, D, dtype=torch.bfloat16), unit(N, D, seed=1, dtype=torch.bfloat16)
    assert_best(run("triton", queries, vectors, k), queries, vectors, k)


@pytest.mark.parametrize("Q", [1, 9])
@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_vectors_score_zero(backend, Q):
    queries, vectors = unit(Q, 40), unit(20, 40, seed=1)
    queries[0] = 0
    vectors[3:12] = 0
    scores, index = run(backend, queries, vectors, 20)
    assert not scores[0].any() and index[0].tolist() == list(range(20))
    assert_best(run(backend, queries, vectors, 20), queries, vectors, 20)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_asked_for_than_there_is(backend):
    queries, vectors = unit(9, 16), unit(5, 16, seed=1)
    got = run(backend, queries, vectors, 8)
    assert got.index.shape == (9, 5) and (got.index.sort(1).values == torch.arange(5)).all()
    assert run(backend, queries, vectors[:0], 3).scores.shape == (9, 0)
    assert run(backend, queries[:0], vectors, 3).index.shape == (0, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views(backend):
    queries, vectors = unit(30, 24).mT[:20], unit(90, 60, seed=1)[::3, ::2]
    got = run(backend, queries, vectors, 4)
    assert all(map(torch.equal, got, run(backend, queries.contiguous(), vectors.contiguous(), 4)))


@pytest.mark.parametrize("backend", ["reference", CPP])
def test_other_dtypes(backend):
    queries, vectors = unit(9, 30, dtype=torch.bfloat16), unit(80, 30, seed=1, dtype=torch.bfloat16)
    assert_best(run(backend, queries, vectors, 4), queries, vectors, 4)
    double = top_k(queries.double(), vectors.double(), 4, backend="reference")
    assert double.scores.dtype == torch.float64


# The bounds: what the core leaves out it must leave out rightly.


def hard_vectors(kind, N, D, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator)
    if kind == "cone":  # a mean that outweighs all else, as embeddings have
        return F.normalize(draw(1, D).expand(N, -1) + 0.05 * draw(N, D), dim=-1)
    if kind == "spikes":  # one entry takes all codes
        vectors = F.normalize(draw(N, D), dim=-1)
        vectors[torch.arange(N), torch.randint(D, (N,), generator=generator)] += 3
        return vectors
    if kind == "frames":  # runs of near copies
        return F.normalize(draw(N // 20 + 1, D).repeat_interleave(20, 0)[:N] + 0.02 * draw(N, D), dim=-1)
    if kind == "sizes":
        return draw(N, D) * torch.logspace(-12, 12, N)[torch.randperm(N, generator=generator), None]
    return torch.where(draw(N, D) > 2.5, draw(N, D), 0)  # sparse


@pytest.mark.parametrize("kind", ["cone", "spikes", "frames", "sizes", "sparse"])
@pytest.mark.parametrize("simd", SIMD)
def test_hard_vectors(simd, kind):
    vectors = hard_vectors(kind, 700, 72, 0)
    queries = torch.cat([vectors[::30] + 0.001 * unit(24, 72, seed=3), unit(16, 72, seed=4)])
    got = core("top_k", simd, queries, vectors, 12)
    truth = top_k(queries.double(), vectors.double(), 12, backend="reference")
    size = queries.double().norm(dim=1, keepdim=True) * vectors.double()[truth.index].norm(dim=2)
    assert ((got.scores - truth.scores).abs() <= CODE_BOUND * size).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
@pytest.mark.parametrize("simd", SIMD)
def test_every_instruction_set(simd, shape, dtype):
    Q, N, D, k = shape
    queries, vectors = unit(Q, D, dtype=dtype), unit(N, D, seed=1, dtype=dtype)
    assert_best(core("top_k", simd, queries, vectors, k), queries, vectors, k)


@pytest.mark.parametrize("simd", SIMD)
def test_every_half_is_read_as_it_is(simd):
    """All finite float16, denormals too, each against a 1; in vectors short and long of lanes."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    values = bits[bits.isfinite()][:, None]
    got = core("top_k", simd, torch.ones(1, 1).half(), values, len(values)).scores[0]
    assert torch.equal(got, values[:, 0].float().sort(descending=True).values)
    rows = values[: len(values) // 31 * 31].view(-1, 31)
    got = core("top_k", simd, torch.eye(31).half(), rows, len(rows)).scores
    assert torch.equal(got, rows.float().mT.sort(1, descending=True).values)


@needs_core
def test_threads_agree():
    queries, vectors = unit(70, 64), hard_vectors("frames", 20_000, 64, 1)
    vectors[15_000:] = vectors[:5_000]  # ties far apart
    want = core("top_k", _C.simd(), queries, vectors, 9)
    assert_best(want, queries, vectors, 9)
    for threads in (0, 2, 5):
        assert all(map(torch.equal, core("top_k", _C.simd(), queries, vectors, 9, threads=threads), want))


@needs_core
def test_many_queries_take_several_blocks():
    queries, vectors = unit(900, 384, seed=2), unit(100, 384, seed=3)
    assert_best(top_k(queries, vectors, 3, backend="cpp"), queries, vectors, 3)


@pytest.mark.parametrize("simd", SIMD)
def test_longest_vectors_do_not_overflow(simd):
    vectors = torch.ones(7, 1 << 16).cumsum(0) / 7
    vectors[:, ::2] *= -1
    queries = vectors[6:].expand(8, -1).clone()
    got = core("top_k", simd, queries, vectors, 7)
    assert (got.index == torch.arange(6, -1, -1)).all()
    assert (core("top_k", simd, -queries, vectors, 7).index == torch.arange(7)).all()


# The self-join.


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float16"])
@pytest.mark.parametrize("count", [1, 5, 64, 300])
@pytest.mark.parametrize("backend", JOINS)
def test_pairs_above_matches_reference(backend, count, dtype):
    vectors = hard_vectors("frames", count, 40, 5).to(dtype)
    products = vectors.double() @ vectors.double().mT
    assert (products - 0.97).abs().min() > CODE_BOUND  # no pair so near the threshold that rounding decides
    want = (products >= 0.97).triu(1).nonzero()
    index, scores = pairs_above(vectors, 0.97, backend=backend)
    assert torch.equal(index, want)
    assert_matches_reference(scores, products[want[:, 0], want[:, 1]], dtype=torch.float32, atol=CODE_BOUND)


@pytest.mark.parametrize("simd", SIMD)
def test_pairs_above_on_every_instruction_set(simd):
    vectors = whole_numbers(500, 9, 7)
    want = pairs_above(vectors, 14, backend="reference")
    assert len(want.scores) > 100
    for threads in (1, 3):
        assert all(map(torch.equal, core("pairs_above", simd, vectors, 14.0, 10**6, threads=threads), want))


@pytest.mark.parametrize("backend", JOINS)
def test_pairs_above_on_edges(backend):
    index, scores = pairs_above(torch.zeros(0, 4), 0.5, backend=backend)
    assert index.shape == (0, 2) and index.dtype == torch.int64 and scores.shape == (0,)
    zeros = torch.zeros(3, 4)
    assert pairs_above(zeros, 0.0, backend=backend).index.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert pairs_above(zeros, 0.0, most=3, backend=backend).index.shape == (3, 2)
    with pytest.raises(ValueError, match="more than most=2 pairs reach the threshold"):
        pairs_above(zeros, 0.0, most=2, backend=backend)


# What is refused.


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # Triton's interpreter is numpy
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("Q", [1, 12])
@pytest.mark.parametrize("backend", BACKENDS)
def test_not_finite_vectors_are_named(backend, Q, value):
    vectors = unit(50, 12)
    vectors[37, 5] = vectors[44, 0] = value
    with pytest.raises(ValueError, match="vectors must be finite and shorter than 1e\\+18, row 37 is not"):
        run(backend, unit(Q, 12, seed=1), vectors, 50)
    if backend != "triton":
        with pytest.raises(ValueError, match="row 37 is not"):
            pairs_above(vectors, 0.5, backend=backend)
        vectors[37:45] = 1e18
        with pytest.raises(ValueError, match="row 37 is not"):
            run(backend, unit(Q, 12, seed=1), vectors, 1)


X = torch.zeros(3, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], X, 1), ValueError, r"queries must be \[Q, D\], got shape \(8,\)"),
        ((X, X[0], 1), ValueError, r"vectors must be \[N, D\], got shape \(8,\)"),
        ((X, X.numpy(), 1), TypeError, r"vectors must be a tensor \[N, D\], got ndarray"),
        ((X, X.int(), 1), TypeError, "vectors must be one of float16, .*, got int32"),
        ((X, X.half(), 1), TypeError, "queries and vectors must share a dtype, got float32 and float16"),
        ((X, X.to("meta"), 1), ValueError, "queries and vectors must be on one device, got cpu and meta"),
        ((X[:, :7], X, 1), ValueError, r"queries and vectors must agree in D, got shapes \(3, 7\) and \(3, 8\)"),
        ((X[:, :0], X[:, :0], 1), ValueError, r"vectors must have D in 1 … 65536, got shape \(3, 0\)"),
        ((X, X, 0), ValueError, "k must be a whole number of at least 1, got 0"),
        ((X, X, 1.5), ValueError, "k must be a whole number of at least 1, got 1.5"),
        ((X / 0, X, 1), ValueError, "queries must be finite and shorter than 1e\\+18, row 0 is not"),
    ],
    ids=[str(n) for n in range(11)],
)
def test_top_k_rejects(arguments, error, message):
    with pytest.raises(error, match=message):
        top_k(*arguments)


def test_pairs_above_rejects():
    with pytest.raises(ValueError, match="threshold must be finite, got nan"):
        pairs_above(X, float("nan"))
    with pytest.raises(ValueError, match=r"vectors must be \[N, D\]"):
        pairs_above(X[0], 0.5)


@needs_core
def test_core_rejects():
    """What the Python side never sends."""

    def call(queries=(2, 8), vectors=(3, 8), mean=(8,), scores=(2, 1), index=(2, 1), simd=""):
        arrays = [torch.zeros(shape).numpy() for shape in (queries, vectors, mean, scores)]
        _C.top_k(*arrays, torch.zeros(index, dtype=torch.int64).numpy(), simd=simd)

    call()
    for change, message in [
        (dict(queries=(2, 7)), r"queries must be \[rows, D\] with D in 1..65536"),
        (dict(vectors=(3, 7)), r"vectors must be \[rows, D\]"),
        (dict(mean=(0,)), r"queries must be \[rows, D\]"),
        (dict(scores=(2, 4)), "k must be at most 3, got 4"),
        (dict(scores=(3, 1)), r"scores must have shape \(2, 1\), got \(3, 1\)"),
        (dict(index=(1, 2)), r"index must have shape \(2, 1\)"),
        (dict(simd="mmx"), "simd must be one of portable, avx2, avx512, got 'mmx'"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**change)


def test_triton_keeps_short_lists_only():
    with pytest.raises(ValueError, match="k must be at most 128 for backend 'triton', got 129"):
        run("triton", torch.zeros(1, 4), torch.zeros(200, 4), 129)


def test_named_backend_never_falls_back(monkeypatch):
    monkeypatch.setattr(_dispatch, "why_not", lambda backend, device: "no core" if backend == "cpp" else None)
    with pytest.raises(RuntimeError, match="top_k: backend 'cpp' cannot run: no core"):
        top_k(X, X, 1, backend="cpp")
    assert not top_k(X, X, 1).scores.any()  # unset: the reference serves
    with pytest.raises(ValueError, match=r"backend must be one of .*, got 'triton'"):
        pairs_above(X, 0.5, backend="triton")
