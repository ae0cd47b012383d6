"""Every backend and instruction set of dynamic time warping against the fp64 reference, and the reference by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from vsim_fast.ops import _dispatch, dtw, dtw_knn, dtw_pairwise, dtw_path, soft_dtw

pytestmark = pytest.mark.usefixtures("one_thread")  # more of them have a test of their own
OPS = ("dtw", "dtw_path", "dtw_pairwise", "dtw_knn")
RTOL = 1e-5  # what the docstring promises
NAN, INF = math.nan, math.inf


class Way(NamedTuple):
    """One backend, at one instruction set."""

    backend: str
    device: str

    def cast(self, value: Any) -> Any:
        """On the device, and in the dtype in which this backend must meet the promised error."""
        if isinstance(value, (list, tuple)):
            return [self.cast(item) for item in value]
        return value.to(self.device, torch.float64 if self.backend == "reference" else torch.float32)


NO_CORE = _dispatch.why_not("cpp", "cpu")
needs_core = pytest.mark.skipif(NO_CORE is not None, reason=str(NO_CORE))


KERNELS = ["portable", "avx2", "avx512", pytest.param("cuda", marks=pytest.mark.needs_cuda)]


def _way(name, monkeypatch):
    if name == "reference":
        return Way("reference", "cpu")
    if name == "cuda":
        return Way("cuda", "cuda")
    if NO_CORE:
        pytest.skip(NO_CORE)
    from vsim_fast import _C
    from vsim_fast.ops.dtw import native_impl

    if name not in _C.simd_levels():
        pytest.skip(f"this CPU or build has no {name}")
    for op in OPS:
        monkeypatch.setattr(native_impl, op, partial(getattr(native_impl, op), simd=name))
    return Way("cpp", "cpu")


@pytest.fixture(params=["reference", *KERNELS])
def way(request, monkeypatch):
    """Every backend and instruction set."""
    return _way(request.param, monkeypatch)


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    """The same without the reference: where it is the oracle itself, or slow."""
    return _way(request.param, monkeypatch)


def series(lengths, dim, seed=0, scale=1.0):
    """Random walks in fp32, one per length."""
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(n, dim, generator=generator).cumsum(0) / math.sqrt(dim) for n in lengths]


def doubles(value):
    return [item.double() for item in value] if isinstance(value, list) else value.double()


def exact(xs, ys, radius=None, cost="sqeuclidean", root=True):
    """All distances in float64, batched: soft-DTW where its minimum is hard."""
    rows = [
        soft_dtw([x.double()] * len(ys), doubles(ys), 1e-300, cost=cost, sakoe_chiba_radius=radius) for x in doubles(xs)
    ]
    totals = torch.stack(rows).clamp_min(0)  # such a minimum of zeros is -1e-300
    return totals.sqrt() if root else totals


def assert_close(got, want, rtol=RTOL, atol=0.0):
    """Within the promised error; infinite exactly where the oracle is; never NaN."""
    got, want = (torch.as_tensor(value).double().cpu() for value in (got, want))
    assert got.shape == want.shape
    assert torch.equal(got == INF, want == INF), (got, want)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


# The reference, cell by cell.


def inside(options, n, m):
    radius, slope = options.get("sakoe_chiba_radius"), options.get("itakura_max_slope")
    if isinstance(radius, float):
        radius = math.ceil(Fraction(str(radius)) * min(n, m))

    def allowed(i, j):
        if radius is not None:
            a, b = (i, j) if n <= m else (j, i)  # a on the shorter
            return -radius <= b - a <= radius + abs(n - m)
        if slope is not None and min(n, m) > 1:
            s, u, v = Fraction(str(slope)), Fraction(i, n - 1), Fraction(j, m - 1)
            return v <= s * u and u <= s * v and 1 - v <= s * (1 - u) and 1 - u <= s * (1 - v)
        return True

    return allowed


def by_definition(costs, options):
    """(total, cells) of the cheapest path, the shortest of equals."""
    n, m = len(costs), len(costs[0])
    begin, end = (options.get(key) or options.get("subsequence") for key in ("open_begin", "open_end"))
    allowed, best = inside(options, n, m), {}
    for i in range(n):
        for j in range(m):
            before = [best[cell] for cell in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if cell in best]
            if i == 0 and (j == 0 or begin):
                before.append((0.0, 0))
            if before and allowed(i, j) and costs[i][j] < INF:
                total, cells = min(before)
                best[i, j] = (total + costs[i][j], cells + 1)
    return min(best.get((n - 1, j), (INF, 1)) for j in (range(m) if end else [m - 1]))


OPTIONS = [
    {}, dict(root=False), dict(normalize="path"), dict(normalize="length"), dict(normalize="path", root=False),
    dict(sakoe_chiba_radius=0), dict(sakoe_chiba_radius=1), dict(sakoe_chiba_radius=5), dict(sakoe_chiba_radius=10**9),
    dict(sakoe_chiba_radius=0.0), dict(sakoe_chiba_radius=0.1), dict(sakoe_chiba_radius=0.35),
    dict(sakoe_chiba_radius=1.0), dict(sakoe_chiba_radius=2, normalize="path"),
    dict(itakura_max_slope=1), dict(itakura_max_slope=1.5), dict(itakura_max_slope=2.0), dict(itakura_max_slope=3.7),
    dict(itakura_max_slope=2.0, normalize="path"),
    dict(open_begin=True), dict(open_end=True), dict(subsequence=True),
    dict(open_begin=True, open_end=True, root=False),
    dict(subsequence=True, normalize="path"), dict(open_end=True, sakoe_chiba_radius=3),
    dict(open_begin=True, sakoe_chiba_radius=2, normalize="path"), dict(subsequence=True, sakoe_chiba_radius=0.2),
    dict(cost="euclidean"), dict(cost="euclidean", normalize="path", sakoe_chiba_radius=4),
    dict(cost="euclidean", subsequence=True), dict(cost="cosine"), dict(cost="cosine", normalize="path"),
    dict(cost="cosine", open_end=True), dict(cost="cosine", root=True, sakoe_chiba_radius=1),
]  # fmt: skip


OPEN = {"open_begin", "open_end", "subsequence"}
TIE_OPTIONS = [{}, dict(normalize="path"), dict(subsequence=True, normalize="path"), dict(sakoe_chiba_radius=9)]
BATCH_OPTIONS = [{}, dict(sakoe_chiba_radius=4), dict(normalize="path"), dict(subsequence=True)]


def option_id(options):
    named = (f"{key.rpartition('_')[2]}{value}" for key, value in options.items())
    return "-".join(named) or "plain"


over_options = pytest.mark.parametrize("options", OPTIONS, ids=option_id)


@over_options
def test_reference_is_the_definition(options):
    for seed, (n, m) in enumerate([(1, 1), (1, 5), (6, 1), (4, 4), (5, 9), (9, 5), (10, 7), (7, 13)]):
        for whole in (False, True):  # whole numbers tie often
            a, b = (one.round() if whole else one for one in series((n, m), 2, seed))
            a, b = a.double(), b.double()
            costs = (a[:, None] - b).square().sum(-1)
            if options.get("cost") == "euclidean":
                costs = costs.sqrt()
            if options.get("cost") == "cosine":
                norms = a.norm(dim=1)[:, None] * b.norm(dim=1)
                costs = 1 - torch.where(norms == 0, 0, a @ b.mT / norms.masked_fill(norms == 0, 1))
                if whole:
                    continue  # rounding decides there which of equally cheap paths is taken
            total, cells = by_definition(costs.tolist(), options)
            total /= {"path": cells, "length": n + m}.get(options.get("normalize"), 1)
            root = options.get("root", options.get("cost", "sqeuclidean") == "sqeuclidean")
            want = math.sqrt(max(total, 0)) if root else total
            got = dtw(a, b, **options, backend="reference")
            assert got.item() == pytest.approx(want, rel=1e-12, abs=1e-7 if options.get("cost") == "cosine" else 1e-14)


# Every backend against the reference.

RAGGED = ((1, 2, 3, 7, 16, 33, 50, 1, 41, 20), (1, 3, 2, 9, 16, 31, 61, 40, 1, 70))


@cache
def ragged(cost, dim):
    xs, ys = series(RAGGED[0], dim, 1), series(RAGGED[1], dim, 2)
    want = dtw(doubles(xs), doubles(ys), cost=cost, root=False, backend="reference")
    return xs, ys, want


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 8, 17, 64, 300])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
def test_dtw_matches_reference(kernel, cost, dim):
    xs, ys, want = ragged(cost, dim)
    got = dtw(kernel.cast(xs), kernel.cast(ys), cost=cost, root=False, backend=kernel.backend)
    assert got.device.type == kernel.device
    assert got.dtype == (torch.float64 if kernel.backend == "reference" else torch.float32)
    atol = 1e-6 if cost == "cosine" else 0  # a cosine is rounded at 1
    assert_close(got, want, atol=atol)
    alone = dtw(kernel.cast(xs[6]), kernel.cast(ys[6]), cost=cost, root=False, backend=kernel.backend)
    assert alone.shape == () and torch.equal(alone, got[6])


@cache
def options_case(index):
    xs, ys = series(RAGGED[0], 2, 3), series(RAGGED[1], 2, 4)
    options = OPTIONS[index]
    return xs, ys, dtw(doubles(xs), doubles(ys), **options, backend="reference")


@pytest.mark.parametrize("index", range(len(OPTIONS)), ids=[option_id(options) for options in OPTIONS])
def test_dtw_options_match_reference(kernel, index):
    xs, ys, want = options_case(index)
    options = OPTIONS[index]
    got = dtw(kernel.cast(xs), kernel.cast(ys), **options, backend=kernel.backend)
    assert_close(got, want, atol=0 if options.get("cost") != "cosine" else 1e-3 if options.get("root") else 1e-6)
    matrix = dtw_pairwise(kernel.cast(xs), kernel.cast(ys), **options, backend=kernel.backend)
    assert torch.equal(matrix.diagonal(), got)  # the same bits, whichever kernel a pair is reached
    one, other = kernel.cast(xs[6]), kernel.cast(ys[6])
    distance, path = dtw_path(one, other, **options, backend=kernel.backend)
    assert_close(distance, want[6], atol=1e-6)
    check_path(path, one, other, distance, options)


def check_path(path, x, y, distance, options):
    """It starts and ends where it may, moves by single steps, stays inside, and costs what it says."""
    path, n, m = path.cpu(), len(x), len(y)
    if distance == INF:
        assert path.shape == (0, 2)
        return
    assert path.dtype == torch.int64 and path[0, 0] == 0 and path[-1, 0] == n - 1
    assert path[0, 1] == 0 or options.get("open_begin") or options.get("subsequence")
    assert path[-1, 1] == m - 1 or options.get("open_end") or options.get("subsequence")
    steps = path.diff(dim=0)
    assert ((steps >= 0) & (steps <= 1)).all() and (steps.sum(1) >= 1).all()
    allowed = inside(options, n, m)
    assert all(allowed(i, j) for i, j in path.tolist())
    a, b = x.double().cpu()[path[:, 0]], y.double().cpu()[path[:, 1]]
    if (cost := options.get("cost", "sqeuclidean")) == "cosine":
        costs = 1 - torch.nn.functional.cosine_similarity(a, b)
    else:
        costs = (a - b).square().sum(1) if cost == "sqeuclidean" else (a - b).norm(dim=1)
    total = costs.sum() / {"path": len(path), "length": n + m}.get(options.get("normalize"), 1)
    total = total.sqrt() if options.get("root", cost == "sqeuclidean") else total
    assert_close(distance, total, atol=1e-6 if cost == "cosine" else 0)


TILED = [  # frames; a tile has 384
    (383, 384), (384, 384), (385, 385), (384, 385), (769, 769), (769, 1), (1, 769), (769, 385), (2, 768), (400, 800),
]  # fmt: skip


@cache
def tiled(index):
    options = TILE_OPTIONS[index]
    dim = options.get("dim", 2)
    xs, ys = series([n for n, _ in TILED], dim, 5), series([m for _, m in TILED], dim, 6)
    want = torch.stack(
        [dtw(a.double(), b.double(), **without_dim(options), backend="reference") for a, b in zip(xs, ys, strict=True)]
    )
    return xs, ys, want


TILE_OPTIONS = [
    {}, dict(dim=1, sakoe_chiba_radius=3), dict(sakoe_chiba_radius=30), dict(normalize="path"),
    dict(dim=20, subsequence=True), dict(itakura_max_slope=2.0), dict(open_end=True, sakoe_chiba_radius=0.1, dim=5),
]  # fmt: skip


def without_dim(options):
    return {key: value for key, value in options.items() if key != "dim"}


@pytest.mark.parametrize("index", range(len(TILE_OPTIONS)), ids=[option_id(options) for options in TILE_OPTIONS])
def test_dtw_across_tiles(kernel, index):
    xs, ys, want = tiled(index)
    options = without_dim(TILE_OPTIONS[index])
    got = dtw(kernel.cast(xs), kernel.cast(ys), **options, backend=kernel.backend)
    assert_close(got, want)
    for k in (3, 7, 9):
        alone = dtw(kernel.cast(xs[k]), kernel.cast(ys[k]), **options, backend=kernel.backend)
        assert torch.equal(alone, got[k])
        distance, path = dtw_path(kernel.cast(xs[k]), kernel.cast(ys[k]), **options, backend=kernel.backend)
        assert_close(distance, want[k])
        check_path(path, xs[k], ys[k], distance, options)


@cache
def whole_numbers(index):
    xs = [x.round() for x in series((30, 47, 5, 390, 33, 64), 1, 7, 0.3)]
    ys = [y.round() for y in series((35, 40, 9, 400, 33, 100), 1, 8, 0.3)]
    options = dict(root=False, **TIE_OPTIONS[index], backend="reference")
    return xs, ys, [dtw_path(x.double(), y.double(), **options) for x, y in zip(xs, ys, strict=True)]


@pytest.mark.parametrize("index", range(len(TIE_OPTIONS)), ids=[option_id(options) for options in TIE_OPTIONS])
def test_whole_numbers_are_exact(kernel, index):
    """Sums of small whole numbers are exact in fp32, so that ties between paths are ties in every backend."""
    xs, ys, want = whole_numbers(index)
    options = dict(root=False, **TIE_OPTIONS[index], backend=kernel.backend)
    got = dtw(kernel.cast(xs), kernel.cast(ys), **options)
    for x, y, distance, oracle in zip(xs, ys, got, want, strict=True):
        assert distance == oracle.distance.float()
        assert torch.equal(dtw_path(kernel.cast(x), kernel.cast(y), **options).path.cpu(), oracle.path)


@cache
def long_pairs(dim):
    x, y = series((4000, 4000), dim, 9)
    pairs = {
        "biased": (x, x + 0.1), "far apart": (x, y + 1000), "random walk": (x, y), "unlike lengths": (x[:2501], y),
    }  # fmt: skip
    return {name: (a, b, hard(a.double().numpy(), b.double().numpy())) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize("dim", [1, 2, 32])
def test_dtw_at_length_4000(kernel, dim):
    for name, (a, b, want) in long_pairs(dim).items():
        got = dtw(kernel.cast(a), kernel.cast(b), root=False, backend=kernel.backend)
        assert abs(got.item() / want - 1) <= RTOL, (name, got.item(), want)


def hard(x, y):
    """Distance of one long pair in float64, O(T) memory."""
    n, m = len(x), len(y)
    one, two = np.full(n + 1, INF), np.full(n + 1, INF)  # totals of the last two anti-diagonals; index 0 is the border
    two[0] = 0
    for k in range(n + m - 1):
        low, high = max(0, k - m + 1), min(n, k + 1)
        costs = np.square(x[low:high] - y[k - high + 1 : k - low + 1][::-1]).sum(1)
        new = np.full(n + 1, INF)
        least = np.minimum(np.minimum(two[low:high], one[low:high]), one[low + 1 : high + 1])
        new[low + 1 : high + 1] = costs + least
        one, two = new, one
    return one[n]


def test_one_frame_against_a_million(kernel):
    x, y = torch.rand(1_000_000, 1) + 0.5, torch.zeros(1, 1)
    want = x.double().square().sum()
    for a, b in ((x, y), (y, x)):
        assert_close(dtw(kernel.cast(a), kernel.cast(b), root=False, backend=kernel.backend), want)


# Invariances, bit for bit.


@pytest.mark.parametrize("options", [o for o in OPTIONS if not o.keys() & OPEN], ids=option_id)
def test_dtw_is_symmetric_bit_for_bit(kernel, options):
    dim = 2 if "cost" not in options else 19
    xs, ys = series((*RAGGED[0], 400, 390), dim, 10), series((*RAGGED[1], 385, 391), dim, 11)
    call = partial(dtw, **options, backend=kernel.backend)
    assert torch.equal(call(kernel.cast(xs), kernel.cast(ys)), call(kernel.cast(ys), kernel.cast(xs)))
    pairwise = partial(dtw_pairwise, **options, backend=kernel.backend)
    matrix = pairwise(kernel.cast(xs))
    assert torch.equal(matrix, matrix.mT) and not matrix.diagonal().any()
    off = ~torch.eye(len(xs), dtype=torch.bool)
    full = pairwise(kernel.cast(xs), kernel.cast(xs))
    assert torch.equal(matrix.cpu()[off], full.cpu()[off])
    assert torch.equal(pairwise(kernel.cast(xs), kernel.cast(ys)), pairwise(kernel.cast(ys), kernel.cast(xs)).mT)


@pytest.mark.parametrize("options", BATCH_OPTIONS, ids=option_id)
@pytest.mark.parametrize("dim", [1, 2, 40])
def test_a_pair_does_not_depend_on_its_batch(kernel, dim, options):
    xs, ys = series([30 + k % 7 for k in range(40)], dim, 12), series([33 - k % 5 for k in range(40)], dim, 13)
    call = partial(dtw, **options, backend=kernel.backend)
    together = call(kernel.cast(xs), kernel.cast(ys))
    assert torch.equal(call(kernel.cast(xs[::-1]), kernel.cast(ys[::-1])), together.flip(0))
    for k in (0, 1, 15, 16, 17, 39):
        assert torch.equal(call(kernel.cast(xs[k]), kernel.cast(ys[k])), together[k])
    assert torch.equal(call(kernel.cast(xs[3:20]), kernel.cast(ys[3:20])), together[3:20])


@pytest.mark.parametrize("dim", [1, 2, 3, 7])
def test_short_pairs_are_the_same_bits_everywhere(kernel, dim):
    """One or two cells leave nothing to hide an instruction fused in one kernel and not in another."""
    xs, ys = series([1, 2, 1] * 30, dim, 38), series([1, 1, 2] * 30, dim, 39)
    for options in (
        {},
        dict(normalize="path"),
        dict(open_end=True),
        dict(sakoe_chiba_radius=0),
        dict(cost="euclidean"),
    ):
        call = partial(dtw, root=False, **options, backend=kernel.backend)
        got = call(kernel.cast(xs), kernel.cast(ys))
        matrix = dtw_pairwise(kernel.cast(xs), kernel.cast(ys), root=False, **options, backend=kernel.backend)
        assert torch.equal(matrix.diagonal(), got)
        if "open_end" not in options:
            assert torch.equal(call(kernel.cast(ys), kernel.cast(xs)), got)


def test_a_pair_does_not_depend_on_longer_neighbours(kernel):
    x, y = series((800, 30), 2, 40)
    near, far = series((700,), 2, 41, 0.01), series((390,), 2, 42, 9.0)
    want = dtw(kernel.cast(x), kernel.cast(y), backend=kernel.backend)
    for others in (near, far, [*near, *far]):
        ys = [y, *(others * 16)][:16]
        assert dtw_pairwise(kernel.cast([x] * 3), kernel.cast(ys), backend=kernel.backend)[1, 0] == want
        assert dtw_pairwise(kernel.cast(ys), kernel.cast([x]), backend=kernel.backend)[0, 0] == want


def test_a_row_does_not_depend_on_its_neighbours(kernel):
    xs = series([int(n) for n in torch.randint(1, 60, (37,), generator=torch.Generator().manual_seed(0))], 3, 14)
    matrix = dtw_pairwise(kernel.cast(xs), backend=kernel.backend)
    for i, j in ((0, 36), (5, 17), (36, 20), (30, 31)):
        assert torch.equal(dtw(kernel.cast(xs[i]), kernel.cast(xs[j]), backend=kernel.backend), matrix[i, j])
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    shuffled = dtw_pairwise(kernel.cast([xs[k] for k in order]), backend=kernel.backend)
    assert torch.equal(shuffled, matrix[order.to(matrix.device)][:, order.to(matrix.device)])


@needs_core
@pytest.mark.parametrize("op", ["dtw", "dtw_pairwise", "dtw_knn"])
def test_dtw_does_not_depend_on_threads(op, monkeypatch):
    from vsim_fast.ops.dtw import native_impl

    xs, ys = series([40 + k for k in range(40)], 2, 15), series([60 - k for k in range(40)], 2, 16)
    call = {
        "dtw": lambda: dtw(xs, ys, backend="cpp"),
        "dtw_pairwise": lambda: (dtw_pairwise(xs, backend="cpp"), dtw_pairwise(xs, ys, backend="cpp")),
        "dtw_knn": lambda: dtw_knn(xs, ys, 3, sakoe_chiba_radius=5, backend="cpp"),
    }[op]
    implementation = getattr(native_impl, op)
    results = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(native_impl, op, partial(implementation, threads=threads))
        result = call()
        results.append(result if isinstance(result, tuple) else (result,))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


# Forms of input.


def test_padded_series_equal_a_list(way):
    lengths = [5, 1, 33, 12]
    xs, ys = series(lengths, 3, 17), series(lengths[::-1], 3, 18)
    x, y = (torch.nn.utils.rnn.pad_sequence(way.cast(s), batch_first=True, padding_value=NAN) for s in (xs, ys))
    x[0, 6:] = INF  # whatever is in the padding
    arguments = dict(lengths_x=lengths, lengths_y=torch.tensor(lengths[::-1]), backend=way.backend)
    assert torch.equal(dtw(x, y, **arguments), dtw(way.cast(xs), way.cast(ys), backend=way.backend))
    want = dtw_pairwise(way.cast(xs), way.cast(ys), backend=way.backend)
    assert torch.equal(dtw_pairwise(x, y, **arguments), want)
    want = dtw_pairwise(way.cast(xs), backend=way.backend)
    assert torch.equal(dtw_pairwise(x, lengths_x=lengths, backend=way.backend), want)


def test_one_dimension_with_and_without_its_axis(way):
    x, y = (way.cast(one) for one in series((20, 31), 1, 19))
    want = dtw(x, y, backend=way.backend)
    assert torch.equal(dtw(x[:, 0], y[:, 0], backend=way.backend), want)
    assert torch.equal(dtw([x[:, 0]], [y[:, 0]], backend=way.backend)[0], want)
    both = torch.stack((x[:, 0], y[:20, 0]))  # [N, T]
    listed = dtw_pairwise([x, y[:20]], backend=way.backend)
    assert torch.equal(dtw_pairwise(both, backend=way.backend), listed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_views(way, dtype):
    base = torch.randn(9, 2, 60).to(dtype).to(way.device)
    x, y = base[:, 0, ::3], base[:, 1, ::2][:, :20]  # strided [9, 20] views
    got = dtw(x.mT[::2], y.mT, backend=way.backend)
    assert got.dtype == (torch.float64 if way.backend == "reference" and dtype == torch.float64 else torch.float32)
    want = dtw(x.mT[::2].double().cpu(), y.mT.double().cpu(), backend="reference")
    assert_close(got, want, rtol=1e-5)


def test_numpy_in_numpy_out():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12, 3))
    want = dtw(torch.from_numpy(x), torch.from_numpy(y))
    frozen = x.copy()
    frozen.flags.writeable = False
    for a in (x, frozen, x[::-1][::-1], np.asfortranarray(x), x.astype(np.float32)):
        got = dtw(a, y)
        assert isinstance(got, np.float32) and got == want
    assert dtw(x[::-1], y) == dtw(np.ascontiguousarray(x[::-1]), y)
    batch = dtw([x, y], [y, y])
    assert isinstance(batch, np.ndarray) and batch.dtype == np.float32 and batch[0] == want and batch[1] == 0
    distance, path = dtw_path(x, y)
    assert isinstance(distance, np.float32) and isinstance(path, np.ndarray) and path.dtype == np.int64
    matrix = dtw_pairwise(np.stack((x, y)))
    assert isinstance(matrix, np.ndarray) and matrix.tolist() == [[0, got.item()], [got.item(), 0]]
    near = dtw_knn([x], [y, x])
    assert isinstance(near.distances, np.ndarray) and near.indices.tolist() == [[1]] and near.indices.dtype == np.int64


def test_gradients_are_cut(way):
    x, y = (way.cast(one).requires_grad_() for one in series((5, 6), 2))
    assert not dtw(x, y, backend=way.backend).requires_grad
    assert not dtw_pairwise([x, y], backend=way.backend).requires_grad


def test_nothing_in_nothing_out(way):
    x = way.cast(torch.randn(4, 2))
    assert dtw([], [], backend="reference").shape == (0,)
    none = x.new_zeros(0, 5, 2)
    assert dtw(none, none, backend=way.backend).shape == (0,)
    assert dtw_pairwise(none, backend=way.backend).shape == (0, 0)
    assert dtw_pairwise(none, [x], backend=way.backend).shape == (0, 1)
    assert dtw_pairwise([x], none, backend=way.backend).shape == (1, 0)
    assert dtw_pairwise([x], backend=way.backend).tolist() == [[0]]
    near = dtw_knn(none, [x], backend=way.backend)
    assert near.distances.shape == near.indices.shape == (0, 1)


def test_equal_series_are_at_zero(way):
    for dim in (1, 2, 30):
        xs = series((1, 17, 40 if way.backend == "reference" else 400), dim, 20)
        for cost in ("sqeuclidean", "euclidean"):
            assert not dtw(way.cast(xs), way.cast(xs), cost=cost, backend=way.backend).any()


def test_large_and_small_magnitudes(way):
    x, y = series((50, 60), 2, 21)
    for scale in (1e-12, 1e12):
        got = dtw(way.cast(x * scale), way.cast(y * scale), backend=way.backend)
        assert_close(got, dtw((x * scale).double(), (y * scale).double(), backend="reference"))


def test_zero_frames_have_cosine_zero(way):
    x, y = torch.randn(6, 3), torch.randn(7, 3)
    x[2], y[4], y[5] = 0, 0, 0
    want = dtw(x.double(), y.double(), cost="cosine", backend="reference")
    assert_close(dtw(way.cast(x), way.cast(y), cost="cosine", backend=way.backend), want, atol=1e-6)
    zero = way.cast(torch.zeros(4, 3))
    assert dtw(zero, zero, cost="cosine", backend=way.backend).item() == 4
    matrix = dtw_pairwise([zero, zero, way.cast(x)], cost="cosine", backend=way.backend)
    assert matrix.diagonal().tolist() == [0, 0, 0] and matrix[0, 1] == 4
    assert_close(matrix[0, 2], 6.0)


# Given costs.

GIVEN = [
    {}, dict(normalize="path"), dict(sakoe_chiba_radius=2), dict(subsequence=True), dict(open_begin=True),
    dict(root=True, open_end=True), dict(itakura_max_slope=2.0), dict(normalize="length"),
]  # fmt: skip


@pytest.mark.parametrize("options", GIVEN, ids=option_id)
def test_precomputed_costs(way, options):
    rows, columns = [20, 1, 33, 7, 40], [25, 30, 1, 7, 45]
    costs = torch.rand(5, 40, 45)
    costs[0, 5:9, 3:20] = INF
    costs[4, 17] = INF  # no path
    for b, (n, m) in enumerate(zip(rows, columns, strict=True)):
        costs[b, n:] = NAN
        costs[b, :, m:] = -1  # padding may hold anything
    call = partial(dtw, cost="precomputed", **options)
    got = call(way.cast(costs), lengths_x=rows, lengths_y=columns, backend=way.backend)
    want = call(costs.double(), lengths_x=rows, lengths_y=columns, backend="reference")
    assert_close(got, want)
    assert got[4] == INF
    for b, (n, m) in enumerate(zip(rows, columns, strict=True)):
        matrix = costs[b, :n, :m]
        total, cells = by_definition(matrix.double().tolist(), options)
        total /= {"path": cells, "length": n + m}.get(options.get("normalize"), 1)
        assert_close(got[b], math.sqrt(total) if options.get("root") else total)
        distance, path = dtw_path(way.cast(matrix), cost="precomputed", **options, backend=way.backend)
        assert_close(distance, got[b])
        assert len(path) == (cells if total < INF else 0)


def test_precomputed_equals_computed(way):
    x, y = series((390, 401), 2, 22)
    costs = (x.double()[:, None] - y.double()).square().sum(-1)
    got = dtw(way.cast(costs), cost="precomputed", backend=way.backend)
    assert_close(got, dtw(x.double(), y.double(), root=False, backend="reference"))
    assert_close(got.sqrt(), dtw(way.cast(x), way.cast(y), backend=way.backend))


def test_no_path_between_slopes(way):
    x, y = series((50, 3), 2, 23)
    got = dtw(way.cast(x), way.cast(y), itakura_max_slope=1.0, backend=way.backend)
    assert got == dtw(x, y, itakura_max_slope=1.0, backend="reference") == INF
    distance, path = dtw_path(way.cast(x), way.cast(y), itakura_max_slope=1.0, backend=way.backend)
    assert distance == INF and path.shape == (0, 2)
    assert dtw_pairwise(way.cast([x, y]), itakura_max_slope=1.0, backend=way.backend)[0, 1] == INF


@pytest.mark.parametrize("rows, longer", [(3, 100), (3, 30), (11, 60)])
def test_a_pair_without_a_path_is_far_among_pairs_with_one(way, rows, longer):
    x, *candidates = (one.round() for one in series((rows, 2, longer, longer), 1, 24))
    want = torch.stack([dtw(x, y, itakura_max_slope=3.0, backend="reference") for y in candidates])
    assert want[0] == INF
    options = dict(itakura_max_slope=3.0, backend=way.backend)
    assert_close(dtw_pairwise(way.cast([x]), way.cast(candidates), **options)[0], want)
    assert_close(dtw_pairwise(way.cast(candidates), way.cast([x]), **options)[:, 0], want)
    assert_close(dtw_knn(way.cast([x]), way.cast(candidates), 3, **options).distances[0], want.sort().values)


def test_slopes_between_short_lengths(kernel):
    """Whole rows that no path may touch: there is no kernel across them."""
    lengths = range(1, 9)
    xs, ys = series(lengths, 2, 36), series(lengths, 2, 37)
    for slope in (1, 1.3, 2.0, 3.0):
        call = partial(dtw_pairwise, itakura_max_slope=slope)
        costs = [[(a[:, None] - b).square().sum(-1).tolist() for b in doubles(ys)] for a in doubles(xs)]
        want = torch.tensor([[by_definition(c, dict(itakura_max_slope=slope))[0] for c in row] for row in costs]).sqrt()
        assert_close(call(kernel.cast(xs), kernel.cast(ys), backend=kernel.backend), want)
        for k in range(0, len(xs), 2):
            for other in (ys[max(0, k - 1)], ys[k]):
                got = dtw_path(kernel.cast(xs[k]), kernel.cast(other), itakura_max_slope=slope, backend=kernel.backend)
                assert_close(got.distance, want[k, len(other) - 1])
                check_path(got.path, xs[k], other, got.distance, dict(itakura_max_slope=slope))


# Nearest neighbours.


def smooth(count, dim, seed):
    """Slow waves with drift and a little noise, of uneven length: what tracks of motion look like."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length = int(torch.randint(40, 90, (), generator=generator))
        t = torch.linspace(0, 1, length)[:, None]
        rates, phases = 1 + 3 * torch.rand(dim, generator=generator), 6 * torch.rand(dim, generator=generator)
        wave = (6.3 * rates * t + phases).sin() + t * torch.randn(dim, generator=generator)
        found.append(wave + 0.02 * torch.randn(length, dim, generator=generator))
    return found


@cache
def neighbourhood(kind, dim, radius):
    queries, candidates = (
        (smooth(8, dim, 24), smooth(50, dim, 25))
        if kind == "smooth"
        else (series(range(20, 60, 5), dim, 26), series([70 - k for k in range(50)], dim, 27))
    )
    return queries, candidates, exact(queries, candidates, radius)


@pytest.mark.parametrize("radius", [None, 0, 3, 0.1])
@pytest.mark.parametrize("dim", [1, 2, 8])
@pytest.mark.parametrize("kind", ["smooth", "random"])
def test_knn_is_exact(kernel, kind, dim, radius):
    queries, candidates, distances = neighbourhood(kind, dim, radius)
    want = distances.sort(dim=1, stable=True)
    for k in (1, 5, len(candidates)):
        got = dtw_knn(
            kernel.cast(queries), kernel.cast(candidates), k, sakoe_chiba_radius=radius, backend=kernel.backend
        )
        assert torch.equal(got.indices.cpu(), want.indices[:, :k])
        assert_close(got.distances, want.values[:, :k])


@pytest.mark.parametrize("radius", [None, 1, 6])
def test_knn_breaks_ties_by_index(kernel, radius):
    queries = [x.round() for x in series([12] * 6, 1, 28, 0.4)]
    candidates = [x.round() for x in series([10 + k % 5 for k in range(60)], 1, 29, 0.4)]
    candidates[40:50] = candidates[:10]
    distances = exact(queries, candidates, radius)
    assert len(distances[0].unique()) < 0.7 * len(candidates)  # many ties
    want = distances.sort(dim=1, stable=True).indices
    for k in (1, 7, len(candidates)):
        got = dtw_knn(
            kernel.cast(queries), kernel.cast(candidates), k, sakoe_chiba_radius=radius, backend=kernel.backend
        )
        assert got.indices.tolist() == want[:, :k].tolist()


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
@pytest.mark.parametrize("options", [dict(root=False), dict(root=True), dict(itakura_max_slope=3.0)], ids=option_id)
def test_knn_costs_and_options(kernel, cost, options):
    queries, candidates = smooth(3, 4, 30), smooth(20, 4, 31)
    call = partial(dtw_knn, k=4, cost=cost, **options)
    got = call(kernel.cast(queries), kernel.cast(candidates), backend=kernel.backend)
    want = dtw_pairwise(kernel.cast(queries), kernel.cast(candidates), cost=cost, **options, backend=kernel.backend)
    order = want.sort(dim=1, stable=True)
    assert torch.equal(got.indices, order.indices[:, :4]) and torch.equal(got.distances, order.values[:, :4])


def test_knn_where_no_path_exists(way):
    """Candidates out of reach come last, at infinity, by index."""
    query, candidates = series((10,), 2, 32), series((10, 60, 11, 70), 2, 33)
    got = dtw_knn(way.cast(query), way.cast(candidates), 4, itakura_max_slope=1.5, backend=way.backend)
    assert got.indices[0, 2:].tolist() == [1, 3] and (got.distances[0] == INF).tolist() == [False, False, True, True]


def test_knn_of_long_series(kernel):
    queries, candidates = series((500,), 2, 34), series((500, 400, 385, 800, 450), 2, 35)
    for radius in (None, 20):
        distances = exact(queries, candidates, radius)
        got = dtw_knn(
            kernel.cast(queries), kernel.cast(candidates), 5, sakoe_chiba_radius=radius, backend=kernel.backend
        )
        assert torch.equal(got.indices.cpu(), distances.sort(dim=1).indices)
        assert_close(got.distances, distances.sort(dim=1).values)


# What is refused, by every function that takes it.

X = torch.zeros(4, 2)
P = torch.zeros(3, 4, 2)


def poisoned(value, frame=2):
    x = X.clone()
    x[frame, 1] = value
    return x


SERIES_ERRORS = [  # x -> error, what it says
    (poisoned(NAN), ValueError, "x must be finite, got nan at frame 2"),
    (poisoned(INF), ValueError, "x must be finite, got inf at frame 2"),
    (poisoned(-INF, 0), ValueError, "x must be finite, got -inf at frame 0"),
    (poisoned(1e16, 3), ValueError, r"x must lie within ±1e\+15, got 1e\+16 at frame 3"),
    (X.double() + 1e300, ValueError, r"x must lie within ±1e\+15, got 1e\+300 at frame 0"),
    (X[:0], ValueError, "x must have at least one frame, got none"),
    (X[:, :0], ValueError, r"x must have D >= 1, got shape \(4, 0\)"),
    (X.int(), TypeError, "x must be floating-point, got int32; convert it first"),
    (X.bool(), TypeError, "x must be floating-point, got bool"),
    (X.to(torch.complex64), TypeError, "x must be floating-point, got complex64"),
    (torch.tensor(1.0), ValueError, r"x must be \[T, D\] or \[T\], got shape \(\)"),
    (torch.zeros(1, 2, 3, 4), ValueError, r"x must be \[T, D\] or \[T\], got shape \(1, 2, 3, 4\)"),
    ("abc", TypeError, "x must be an array or a tensor, or a list of them, got str"),
    (None, TypeError, "x must be an array or a tensor, or a list of them, got NoneType"),
    (X[:, :1], ValueError, "x and y must share D, got 1 and 2"),
    (X.numpy(), TypeError, "give NumPy arrays or tensors, not both"),
]


@pytest.mark.parametrize("op", [dtw, dtw_path])
@pytest.mark.parametrize(("x", "error", "message"), SERIES_ERRORS, ids=[str(k) for k in range(len(SERIES_ERRORS))])
def test_dtw_rejects_series(op, x, error, message):
    with pytest.raises(error, match=message):
        op(x, X)
    if x is not None and message.startswith("x must"):
        with pytest.raises(error, match="y" + message[1:]):
            op(X, x)


def test_rejects_arrays_of_numpy():
    with pytest.raises(TypeError, match="x must be floating-point, got int64; convert it first"):
        dtw(np.zeros((3, 2), int), np.zeros((3, 2)))
    with pytest.raises(TypeError, match="y must be floating-point, got object"):
        dtw(np.zeros(3), np.array([None, 1.0, 2.0]))
    with pytest.raises(TypeError, match="x must be floating-point, got complex128"):
        dtw(np.zeros(3, complex), np.zeros(3))
    with pytest.raises(TypeError, match="x must be floating-point, got float128"):
        dtw(np.zeros(3, np.longdouble), np.zeros(3))
    swapped = np.arange(3.0).astype(">f8")  # another byte order is still floating-point
    assert dtw(swapped, np.arange(3.0)) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(sakoe_chiba_radius=-1), ValueError, "sakoe_chiba_radius must be >= 0 steps, got -1"),
        (dict(sakoe_chiba_radius=1.5), ValueError, r"sakoe_chiba_radius must be in 0\.\.1 as a fraction .* got 1\.5"),
        (dict(sakoe_chiba_radius=-0.1), ValueError, r"sakoe_chiba_radius must be in 0\.\.1"),
        (dict(sakoe_chiba_radius=NAN), ValueError, r"sakoe_chiba_radius must be in 0\.\.1 .* got nan"),
        (dict(sakoe_chiba_radius="3"), TypeError, "sakoe_chiba_radius must be an int of steps or a float .* got str"),
        (dict(sakoe_chiba_radius=True), TypeError, "sakoe_chiba_radius must be .* got bool"),
        (dict(itakura_max_slope=0.5), ValueError, r"itakura_max_slope must be a number >= 1, got 0\.5"),
        (dict(itakura_max_slope=NAN), ValueError, "itakura_max_slope must be a number >= 1, got nan"),
        (dict(itakura_max_slope=INF), ValueError, "itakura_max_slope must be a number >= 1, got inf"),
        (dict(itakura_max_slope="2"), TypeError, "itakura_max_slope must be a number >= 1, got str"),
        (dict(itakura_max_slope=2.0, sakoe_chiba_radius=1), ValueError, "not both"),
        (dict(root="yes"), TypeError, "root must be True or False, got 'yes'"),
        (dict(cost="manhattan"), ValueError, "cost must be one of sqeuclidean, .*, got 'manhattan'"),
        (dict(backend="gpu"), ValueError, "backend must be one of .*, got 'gpu'"),
    ],
    ids=lambda v: "-".join(f"{k}{w}" for k, w in v.items()) if isinstance(v, dict) else "",
)
def test_every_op_rejects_options(change, error, message):
    for call in (dtw, dtw_path):
        with pytest.raises(error, match=message):
            call(X, X, **change)
    for call in (dtw_pairwise, dtw_knn):
        with pytest.raises(error, match=message):
            call([X], [X], **change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(normalize="mean"), ValueError, "normalize must be None, 'path' or 'length', got 'mean'"),
        (dict(normalize="length", open_end=True), ValueError, "normalize='length' needs both ends matched"),
        (dict(itakura_max_slope=2.0, subsequence=True), ValueError, "itakura_max_slope needs both ends matched"),
        (dict(subsequence=None), TypeError, "subsequence must be True or False, got None"),
        (dict(x=X.to("meta")), TypeError, "x must be a dense tensor with data"),
        (dict(x=X.to_sparse()), TypeError, "x must be a dense tensor with data"),
        (dict(y=None), TypeError, "y is missing"),
        (dict(y=[X]), ValueError, "both be one sequence or both a batch"),
        (dict(x=[X], y=P), ValueError, "must hold as many sequences, got 1 and 3; see dtw_pairwise"),
        (dict(x=[X, X.numpy()], y=[X, X]), TypeError, "not both"),
        (dict(x=[X, X[:, 0]], y=[X, X]), ValueError, r"x\[1\] must be \[T, D\] or \[T\] like the others"),
        (dict(x=[X, X[:, :1]], y=[X, X]), ValueError, r"x\[1\] must have D = 2 like x\[0\], got 1"),
        (dict(x=[X, X[:0]], y=[X, X]), ValueError, r"x\[1\] must have at least one frame"),
        (dict(x=[X, poisoned(NAN)], y=[X, X]), ValueError, r"x\[1\] must be finite, got nan at frame 2"),
        (dict(x=[X, [1.0]], y=[X, X]), TypeError, r"x\[1\] must be an array or a tensor"),
        (dict(x=[X], y=[X], lengths_x=[4]), ValueError, "lengths_x goes with a padded array"),
        (dict(lengths_x=[4]), ValueError, "lengths go with padded"),
        (dict(x=P, y=P, lengths_x=[4, 4]), ValueError, r"lengths_x must be \[3\], got shape \(2,\)"),
        (dict(x=P, y=P, lengths_y=[4, 4, 5]), ValueError, r"lengths_y must be in 1\.\.4, got 4\.\.5"),
        (dict(x=P, y=P, lengths_y=[4, 4, -1]), ValueError, r"lengths_y must be in 1\.\.4, got -1\.\.4"),
        (dict(x=P, y=P, lengths_y=[4, 0, 4]), ValueError, r"y\[1\] must have at least one frame"),
        (dict(x=P, y=P, lengths_y=[4.0, 4, 4]), TypeError, "lengths_y must be integers, got float32"),
        (dict(x=P, y=P, lengths_y="444"), TypeError, "lengths_y must be integers"),
        (dict(x=P[..., 0, None] * NAN, y=P), ValueError, r"x\[0\] must be finite, got nan at frame 0"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_dtw_rejects(change, error, message):
    with pytest.raises(error, match=message):
        dtw(**(dict(x=X, y=X) | change))


def blocked(value):
    costs = torch.ones(3, 4)
    costs[1, 1] = value
    return costs


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(y=X), ValueError, "y must be None with cost='precomputed'"),
        (dict(x=blocked(-1)), ValueError, r"x must hold costs >= 0 \(inf forbids a cell\), got -1\.\.1"),
        (dict(x=blocked(NAN)), ValueError, "x must hold costs >= 0 .* got nan"),
        (dict(x=blocked(-INF)), ValueError, "x must hold costs >= 0 .* got -inf"),
        (dict(x=blocked(1e31)), ValueError, "x must hold costs"),
        (dict(x=X[0]), ValueError, r"x must be a cost matrix \[Ta, Tb\] or \[B, Ta, Tb\], got shape \(2,\)"),
        (dict(x=[blocked(1)]), TypeError, "x must be one cost array"),
        (dict(x=X[:0]), ValueError, "x must have at least one row and column"),
        (dict(x=X.long()), TypeError, "x must be floating-point, got int64"),
        (dict(x=P, lengths_x=[4, 4, 9]), ValueError, r"lengths_x must be in 1\.\.4"),
        (dict(lengths_x=[3]), ValueError, "lengths"),
    ],
    ids=[str(k) for k in range(11)],
)
def test_precomputed_rejects(change, error, message):
    with pytest.raises(error, match=message):
        dtw(**(dict(x=blocked(1.0), cost="precomputed") | change))


def test_pairwise_and_knn_reject():
    with pytest.raises(ValueError, match="cost='precomputed' needs one matrix per pair"):
        dtw_pairwise(P, cost="precomputed")
    with pytest.raises(ValueError, match="cost='precomputed' has no lower bounds"):
        dtw_knn(P, P, cost="precomputed")
    with pytest.raises(ValueError, match="lengths_y needs y"):
        dtw_pairwise(P, lengths_y=[1, 2, 3])
    with pytest.raises(ValueError, match=r"x must be \[N, T, D\] or \[N, T\], got shape \(4,\)"):
        dtw_pairwise(X[:, 0])
    with pytest.raises(ValueError, match="x and y must share D, got 2 and 1"):
        dtw_pairwise(P, P[..., :1])
    with pytest.raises(ValueError, match="queries and candidates must share D"):
        dtw_knn(P, P[..., :1])
    with pytest.raises(ValueError, match=r"candidates\[2\] must be finite, got nan at frame 2"):
        dtw_knn(P, [X, X, poisoned(NAN)])
    with pytest.raises(TypeError, match=r"queries\[0\] must be floating-point"):
        dtw_knn([X.long()], P)
    for k in (0, 4, -1, 1.0, True, "1", None):
        with pytest.raises(ValueError, match=rf"k must be in 1\.\.3 \(the candidates\), got {k!r}"):
            dtw_knn(P, P, k)
    with pytest.raises(TypeError, match="x must be one sequence, got a list"):
        dtw_path([X], [X])


def test_largest_magnitude_stays_finite(way):
    x = torch.full((20, 3), 1e15)
    distance = dtw(way.cast(x), way.cast(-x), root=False, backend=way.backend)
    assert_close(distance, 20 * 3 * 4e30)


def test_named_backend_never_falls_back(monkeypatch):
    monkeypatch.setattr(_dispatch, "why_not", lambda backend, device: "no core" if backend == "cpp" else None)
    monkeypatch.setitem(_dispatch.IMPLS, "dtw", {"cpp": "dtw.native_impl", "reference": "dtw.reference"})
    with pytest.raises(RuntimeError, match="dtw: backend 'cpp' cannot run: no core"):
        dtw(X, X, backend="cpp")
    assert dtw(X, X) == 0  # unset: the reference serves


def test_masked_arrays_are_refused():
    x = np.ma.masked_greater(np.arange(4.0), 2)
    with pytest.raises(TypeError, match="x must not be a masked array"):
        dtw(x, x)
