"""Soft-DTW: values, gradients, ragged batches, limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vsim_fast.ops import dtw, soft_dtw

pytestmark = pytest.mark.usefixtures("one_thread")


def by_recursion(x, y, gamma, cost="sqeuclidean", radius=None):
    """The definition, one cell at a time, for autograd to differentiate."""
    n, m = len(x), len(y)
    square = (x[:, None] - y[None]).square().sum(-1)
    costs = square if cost == "sqeuclidean" else square.sqrt()
    inf = x.new_full((), math.inf)
    total = {(-1, j): inf for j in range(m)} | {(i, -1): inf for i in range(n)} | {(-1, -1): x.new_zeros(())}
    for i in range(n):
        for j in range(m):
            if radius is not None and not (i - j <= radius + max(0, n - m) and j - i <= radius + max(0, m - n)):
                total[i, j] = inf
                continue
            before = [total[cell] for cell in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if total[cell] < math.inf]
            total[i, j] = costs[i, j] - gamma * torch.logsumexp(-torch.stack(before) / gamma, 0)
    return total[n - 1, m - 1]


def pair(n, m, d=2, dtype=torch.float64):
    return tuple(torch.randn(t, d, dtype=dtype, requires_grad=True) for t in (n, m))


@pytest.mark.parametrize("radius", [None, 0, 2])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("gamma", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 6), (7, 7), (9, 5), (4, 12)])
def test_soft_dtw_is_its_recursion(n, m, gamma, cost, radius):
    x, y = pair(n, m)
    got, want = soft_dtw(x, y, gamma, cost=cost, sakoe_chiba_radius=radius), by_recursion(x, y, gamma, cost, radius)
    torch.testing.assert_close(got, want)
    for mine, theirs in zip(torch.autograd.grad(got, (x, y)), torch.autograd.grad(want, (x, y)), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
def test_soft_dtw_gradcheck(cost, normalize):
    x = torch.randn(3, 6, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 5, 3, dtype=torch.float64, requires_grad=True)

    def value(x, y):
        options = dict(lengths_x=[6, 1, 4], lengths_y=[2, 5, 5], sakoe_chiba_radius=2)
        return soft_dtw(x, y, 0.7, cost=cost, normalize=normalize, **options)

    assert torch.autograd.gradcheck(value, (x, y))


def test_expected_alignment_is_the_gradient_of_given_costs():
    costs = torch.rand(2, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: soft_dtw(c, gamma=0.5, cost="precomputed"), (costs,))
    (share,) = torch.autograd.grad(soft_dtw(costs, gamma=0.1, cost="precomputed").sum(), costs)
    assert (share >= 0).all() and (share <= 1 + 1e-12).all()
    torch.testing.assert_close(share[:, [0, -1], [0, -1]], torch.ones(2, 2, dtype=torch.float64))  # the ends
    anti = torch.stack([share.flip(2).diagonal(k, 1, 2).sum(1) for k in range(-4, 7)], 1)
    assert (anti <= 1 + 1e-12).all()  # a path meets an anti-diagonal at most once


def test_soft_dtw_where_no_path_exists():
    costs = torch.rand(2, 4, 4, requires_grad=True)
    blocked = costs.detach().clone()
    blocked[1, 2] = math.inf
    blocked.requires_grad_()
    value = soft_dtw(blocked, cost="precomputed")
    assert value[0].isfinite() and value[1] == math.inf
    value.sum().backward()
    assert blocked.grad[0].any() and not blocked.grad[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_dtw_nears_dtw(dtype):
    x, y = (torch.randn(40, 3, dtype=dtype) for _ in range(2))
    hard = dtw(x.double(), y.double(), root=False, backend="reference")
    for gamma in (1e-300, 1e-9, 1e-4):
        got = soft_dtw(x, y, gamma)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), hard, rtol=2e-6 if dtype == torch.float32 else 1e-5, atol=0)
    values = [float(soft_dtw(x, y, gamma)) for gamma in (0.01, 0.1, 1, 10)]
    assert float(hard) * (1 + 1e-6) >= values[0] and values == sorted(values, reverse=True)


def test_small_gamma_keeps_its_gradient_in_float32():
    x, y = (torch.randn(200, 2).cumsum(0) + 50 for _ in range(2))
    grads = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).detach().clone().requires_grad_()
        soft_dtw(leaf, y.to(dtype), 0.01).backward()
        grads.append(leaf.grad.double())
    scale = grads[1].abs().max()
    assert (grads[0] - grads[1]).abs().max() < 2e-3 * scale


def test_soft_dtw_ragged_padded_and_lists_agree():
    xs, ys = [torch.randn(n, 3) for n in (4, 1, 9)], [torch.randn(m, 3) for m in (6, 5, 2)]
    nan = float("nan")
    x, y = (torch.nn.utils.rnn.pad_sequence(s, batch_first=True, padding_value=nan).requires_grad_() for s in (xs, ys))
    value = soft_dtw(x, y, lengths_x=[4, 1, 9], lengths_y=[6, 5, 2], sakoe_chiba_radius=0.5)
    alone = torch.stack([soft_dtw(a, b, sakoe_chiba_radius=0.5) for a, b in zip(xs, ys, strict=True)])
    torch.testing.assert_close(value, alone)
    leaves = [a.clone().requires_grad_() for a in xs]
    listed = soft_dtw(leaves, ys, sakoe_chiba_radius=0.5)
    assert torch.equal(value, listed)
    value.sum().backward()
    listed.sum().backward()
    for b, leaf in enumerate(leaves):
        torch.testing.assert_close(x.grad[b, : len(leaf)], leaf.grad)
        assert not x.grad[b, len(leaf) :].any()  # zero, not NaN


def test_soft_dtw_divergence():
    x, y = (torch.randn(5, 20, 2, dtype=torch.float64) for _ in range(2))
    assert (soft_dtw(x, x) < 0).all()
    torch.testing.assert_close(soft_dtw(x, x, normalize=True), torch.zeros(5, dtype=torch.float64))
    got = soft_dtw(x, y, 0.3, normalize=True)
    torch.testing.assert_close(got, soft_dtw(x, y, 0.3) - (soft_dtw(x, x, 0.3) + soft_dtw(y, y, 0.3)) / 2)
    assert (got > 0).all()


def test_soft_dtw_at_equal_and_zero_frames():
    x = torch.zeros(4, 2, requires_grad=True)
    for cost, want in (("euclidean", 0.0), ("sqeuclidean", 0.0), ("cosine", 4.0)):
        (grad,) = torch.autograd.grad(soft_dtw(x, torch.zeros(4, 2), 1e-6, cost=cost), x)
        assert grad.isfinite().all()
        assert soft_dtw(x, torch.zeros(4, 2), 1e-6, cost=cost).item() == pytest.approx(want, abs=1e-4)


def test_soft_dtw_numpy_and_one_dimension():
    x, y = np.random.default_rng(0).normal(size=(2, 9)).astype(np.float32)
    got = soft_dtw(x, y, 0.5)
    assert isinstance(got, np.float32)
    assert got == soft_dtw(torch.from_numpy(x)[:, None], torch.from_numpy(y)[:, None], 0.5)
    batch = soft_dtw(np.stack((x, y))[..., None], np.stack((y, y))[..., None], 0.5)
    assert isinstance(batch, np.ndarray) and batch[0] == pytest.approx(got)
    half = soft_dtw(torch.from_numpy(x).half(), torch.from_numpy(y).half())
    assert half.dtype == torch.float32
    assert soft_dtw([], []).shape == (0,)


def test_soft_dtw_learns():
    """A few steps of gradient descent bring a series to its target."""
    target = torch.linspace(0, 6, 30).sin()[:, None]
    x = torch.zeros(20, 1, requires_grad=True)
    first = soft_dtw(x, target, 0.1, normalize=True).item()
    for _ in range(40):
        (grad,) = torch.autograd.grad(soft_dtw(x, target, 0.1, normalize=True), x)
        x = (x - 0.1 * grad).detach().requires_grad_()
    assert soft_dtw(x, target, 0.1, normalize=True).item() < 0.05 * first


X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(gamma=0), ValueError, "gamma must be finite and > 0, got 0"),
        (dict(gamma=-1.0), ValueError, "gamma must be .* got -1"),
        (dict(gamma=math.nan), ValueError, "gamma must be .* got nan"),
        (dict(gamma=math.inf), ValueError, "gamma must be .* got inf"),
        (dict(gamma="1"), TypeError, "gamma must be a number, got str"),
        (dict(cost="l1"), ValueError, "cost must be one of"),
        (dict(sakoe_chiba_radius=-1), ValueError, "sakoe_chiba_radius must be >= 0 steps, got -1"),
        (dict(x=X.long()), TypeError, "x must be floating-point, got int64"),
        (dict(x=X[:0]), ValueError, "x must have at least one frame"),
        (dict(x=X * math.nan), ValueError, "x must be finite, got nan at frame 0"),
        (dict(y=X[:, :1]), ValueError, "x and y must share D, got 2 and 1"),
        (dict(y=None), TypeError, "y is missing"),
        (dict(y=X.numpy()), TypeError, "NumPy arrays or tensors, not both"),
        (dict(x=X[None], y=torch.zeros(2, 4, 2)), ValueError, "must hold as many sequences, got 1 and 2"),
        (dict(y=None, cost="precomputed", normalize=True), ValueError, "normalize needs the sequences"),
        (dict(cost="precomputed"), ValueError, "y must be None with cost='precomputed'"),
        (dict(lengths_x=[3]), ValueError, "lengths go with padded"),
        (dict(x=X[None], y=X[None], lengths_x=[5]), ValueError, r"lengths_x must be in 1\.\.4, got 5\.\.5"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_soft_dtw_rejects(change, error, message):
    with pytest.raises(error, match=message):
        soft_dtw(**(dict(x=X, y=X) | change))
