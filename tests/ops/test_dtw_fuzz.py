"""Random shapes, dtypes and options: a clear error, or what the reference gives in float64. Never a crash or a hang."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from vsim_fast.ops import dtw, dtw_knn, dtw_pairwise, dtw_path, soft_dtw

pytestmark = pytest.mark.usefixtures("one_thread")
bounded = settings(max_examples=120, deadline=None, derandomize=True, database=None)

LONG = st.sampled_from([33, 64, 130, 385, 400])  # strips and tiles of the kernels; rare, for the reference is slow
LENGTHS = st.integers(0, 14).flatmap(lambda k: st.integers(1, 20) if k else LONG)
DIMS = st.sampled_from([1, 1, 2, 2, 3, 4, 9, 47, 48, 70])
RADII = st.one_of(st.none(), st.integers(0, 30), st.floats(0, 1), st.sampled_from([2**31, 2**70]))
SLOPES = st.one_of(st.floats(1, 6), st.sampled_from([1, 1e300]))
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


@st.composite
def options(draw):
    """Valid ones."""
    found = dict(cost=draw(st.sampled_from(["sqeuclidean", "euclidean", "cosine"])))
    found["root"] = draw(st.sampled_from([None, True, False]))
    shape = draw(st.sampled_from(["free", "band", "slope"]))
    if shape == "band":
        found["sakoe_chiba_radius"] = draw(RADII)
    if shape == "slope":
        found["itakura_max_slope"] = draw(SLOPES)
    else:
        found |= {key: draw(st.booleans()) for key in ("open_begin", "open_end")}
    ends = found.get("open_begin") or found.get("open_end")
    found["normalize"] = draw(st.sampled_from([None, "path"] if ends else [None, "path", "length"]))
    return found


@st.composite
def sequences(draw, dim, count=None):
    """A list of them; whole numbers (many ties) or not."""
    lengths = draw(st.lists(LENGTHS, min_size=count or 1, max_size=count or 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    whole, dtype = draw(st.booleans()), draw(DTYPES)
    values = [torch.randn(n, dim, generator=generator) * 2 for n in lengths]
    return [(v.round() if whole else v).to(dtype) for v in values]


def form(draw, items):
    """The same as a list, strided, or padded with what must not be read: (value, lengths)."""
    kind = draw(st.sampled_from(["list", "strided", "padded"]))
    if kind == "list":
        return items, None
    if kind == "strided":
        return [item.repeat_interleave(2, dim=0)[::2] for item in items], None
    return torch.nn.utils.rnn.pad_sequence(items, batch_first=True, padding_value=math.nan), [len(i) for i in items]


def rounded(items):
    """What float32 arithmetic starts from, for the oracle."""
    return [item.float().double() for item in items]


def assert_equal(got, want, options):
    got, want = torch.as_tensor(got).double(), torch.as_tensor(want).double()
    root = options["cost"] == "sqeuclidean" if options["root"] is None else options["root"]
    atol = 0 if options["cost"] != "cosine" else 1e-2 if root else 1e-5  # a cosine is rounded at 1
    assert got.shape == want.shape and torch.equal(got == math.inf, want == math.inf)
    torch.testing.assert_close(got, want, rtol=2e-5, atol=max(atol, 1e-12))


@bounded
@given(st.data())
def test_valid_input_equals_the_reference(data):
    draw, dim = data.draw, data.draw(DIMS)
    chosen = draw(options())
    if chosen["normalize"] == "path" and chosen["cost"] == "cosine":
        chosen["normalize"] = None  # rounding decides there between paths of unlike lengths
    op = draw(st.sampled_from([dtw, dtw_pairwise, dtw_path, dtw_knn]))
    xs = draw(sequences(dim))
    ys = draw(sequences(dim, len(xs) if op is dtw else None))
    if op is dtw_path:
        want = dtw_path(*rounded([xs[0], ys[0]]), **chosen, backend="reference")
        got = dtw_path(xs[0], ys[0], **chosen)
        assert_equal(got.distance, want.distance, chosen)
        assert len(got.path) == 0 or got.path[-1, 0] == len(xs[0]) - 1
    elif op is dtw_knn:
        chosen = {key: chosen[key] for key in chosen.keys() - {"normalize", "open_begin", "open_end"}}
        k = draw(st.integers(1, len(ys)))
        want = dtw_pairwise(rounded(xs), rounded(ys), **chosen, backend="reference")
        got = dtw_knn(xs, ys, k, **chosen)
        assert_equal(got.distances, want.sort(dim=1).values[:, :k], chosen)
        assert_equal(got.distances, want.gather(1, got.indices), chosen)
    else:
        (x, lengths_x), (y, lengths_y) = form(draw, xs), form(draw, ys)
        want = op(rounded(xs), rounded(ys), **chosen, backend="reference")
        assert_equal(op(x, y, **chosen, lengths_x=lengths_x, lengths_y=lengths_y), want, chosen)


@bounded
@given(st.data())
def test_given_costs_equal_the_reference(data):
    draw = data.draw
    chosen = draw(options()) | dict(cost="precomputed")
    shape = [draw(st.integers(1, 3)), draw(LENGTHS), draw(LENGTHS)]
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    costs = rng.integers(0, 4, shape).astype(draw(st.sampled_from([np.float32, np.float64])))
    costs[rng.random(shape) < draw(st.sampled_from([0, 0.1, 0.5]))] = math.inf
    lengths = [rng.integers(1, size, shape[0], endpoint=True) for size in shape[1:]]
    for matrix, n, m in zip(costs, *lengths, strict=True):
        matrix[n:], matrix[:, m:] = math.nan, -1
    arguments = dict(lengths_x=lengths[0], lengths_y=lengths[1], **chosen)
    want = dtw(costs.astype(np.float64), **arguments, backend="reference")
    assert_equal(dtw(costs, **arguments), want, chosen)
    cut = costs[0, : lengths[0][0], : lengths[1][0]]
    distance, path = dtw_path(cut, **chosen)
    assert_equal(distance, want[0], chosen)
    oracle = dtw_path(cut.astype(np.float64), **chosen, backend="reference").path
    assert path.tolist() == oracle.tolist()  # sums of small whole numbers: the same ties


WILD_NUMBER = st.one_of(
    st.none(), st.integers(-3, 40), st.floats(), st.booleans(), st.sampled_from([2**70, -(2**70), "3", (), 1j, b"1"])
)
WILD_VALUE = st.one_of(
    st.sampled_from([None, 0, "x", [], (), [[]], [None], [1.0, 2.0], object()]),
    st.builds(
        lambda shape, dtype, value, numpy: (lambda t: t.numpy() if numpy and dtype != torch.bfloat16 else t)(
            torch.full(shape, value).to(dtype)
        ),
        st.lists(st.integers(0, 4), max_size=4),
        st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]),
        st.sampled_from([0.0, 1.0, -2.5, math.nan, math.inf, -math.inf, 1e15, 1e16, 1e-40, 3e38]),
        st.booleans(),
    ),
)
WILD_OPTIONS = st.fixed_dictionaries(
    {},
    optional=dict(
        cost=st.sampled_from(["sqeuclidean", "euclidean", "cosine", "precomputed", "l1", None, 3]),
        root=st.sampled_from([None, True, False, 0]),
        sakoe_chiba_radius=WILD_NUMBER,
        itakura_max_slope=WILD_NUMBER,
        open_begin=st.booleans(),
        subsequence=st.booleans(),
        normalize=st.sampled_from([None, "path", "length", "mean", 1]),
        lengths_x=st.one_of(st.none(), st.lists(st.integers(-1, 5), max_size=4), WILD_NUMBER),
        lengths_y=st.one_of(st.none(), st.lists(st.integers(-1, 5), max_size=4), WILD_NUMBER),
    ),
)
KNOWN = dict.fromkeys(("cost", "root", "sakoe_chiba_radius", "itakura_max_slope"))


def outcome(call):
    try:
        return call()
    except (TypeError, ValueError) as error:
        assert str(error)
        return type(error)


@settings(bounded, max_examples=600)
@given(st.data())
def test_anything_is_an_answer_or_a_clear_error(data):
    draw = data.draw
    wild = draw(WILD_OPTIONS)
    op = draw(st.sampled_from([dtw, dtw_pairwise, dtw_path, dtw_knn, soft_dtw]))
    value = WILD_VALUE if draw(st.booleans()) else st.lists(WILD_VALUE, max_size=3)
    x, y = draw(value), draw(value)
    if op is soft_dtw:
        wild = {key: wild[key] for key in wild.keys() & {"cost", "sakoe_chiba_radius", "lengths_x", "lengths_y"}}
        outcome(lambda: soft_dtw(x, y, draw(WILD_NUMBER), **wild))
        return
    if op is dtw_path:
        wild = {key: wild[key] for key in wild.keys() - {"lengths_x", "lengths_y"}}
    if op is dtw_knn:
        wild = {key: wild[key] for key in wild.keys() & KNOWN.keys()} | dict(k=draw(WILD_NUMBER))
    got, want = outcome(lambda: op(x, y, **wild)), outcome(lambda: op(x, y, **wild, backend="reference"))
    if isinstance(want, type):
        assert got is want
    else:
        assert not isinstance(got, type)
