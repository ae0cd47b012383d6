"""Equality with the libraries of the field, where the semantics are shared. Each is optional: extra `bench`."""

from __future__ import annotations

import os

import numpy as np
import pytest

from vsim_fast.ops import dtw, dtw_pairwise, dtw_path, soft_dtw

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # before it is imported: compiling takes longer than all these cases

pytestmark = pytest.mark.filterwarnings("default")  # their advice is no failure of ours
RTOL = 1e-5
LENGTHS = ((1, 1), (1, 7), (12, 12), (20, 33), (33, 20), (60, 61))


def walks(*lengths, dim=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, dim)).cumsum(0) for n in lengths]


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("radius", [None, 0, 3, 100])
def test_equals_dtaidistance(dim, radius):
    peer = pytest.importorskip("dtaidistance.dtw_ndim")
    for n, m in LENGTHS:
        x, y = walks(n, m, dim=dim, seed=n)
        want = peer.distance(x, y, window=None if radius is None else radius + 1)  # it counts the diagonal
        assert dtw(x, y, sakoe_chiba_radius=radius) == pytest.approx(want, rel=RTOL)


@pytest.mark.parametrize(
    ("options", "psi"),
    [
        (dict(open_begin=True), (0, 0, -1, 0)),
        (dict(open_end=True), (0, 0, 0, -1)),
        (dict(subsequence=True), (0, 0, -1, -1)),
    ],
    ids=["open_begin", "open_end", "subsequence"],
)
def test_open_ends_equal_dtaidistance(options, psi):
    peer = pytest.importorskip("dtaidistance.dtw_ndim")
    for n, m in LENGTHS:
        x, y = walks(n, m, seed=n)
        want = peer.distance(x, y, psi=tuple(m if relaxed else 0 for relaxed in psi))
        assert dtw(x, y, **options) == pytest.approx(want, rel=RTOL)


def test_all_pairs_equal_dtaidistance():
    peer = pytest.importorskip("dtaidistance.dtw_ndim")
    series = walks(*range(5, 45, 2), dim=3)
    want = peer.distance_matrix(series, parallel=False, use_c=True)
    want = np.array(want)
    np.fill_diagonal(want, 0)
    np.testing.assert_allclose(dtw_pairwise(series), want, rtol=RTOL)


def test_path_equals_dtaidistance():
    peer = pytest.importorskip("dtaidistance.dtw_ndim")
    x, y = walks(30, 41)
    assert dtw_path(x, y).path.tolist() == [list(cell) for cell in peer.warping_path(x, y)]


def test_equals_aeon():
    peer = pytest.importorskip("aeon.distances")
    for dim in (1, 2, 5):
        for n, m in LENGTHS:
            x, y = walks(n, m, dim=dim, seed=n)
            want = peer.dtw_distance(np.ascontiguousarray(x.T), np.ascontiguousarray(y.T))
            assert dtw(x, y, root=False) == pytest.approx(want, rel=RTOL)


def test_equals_tslearn():
    peer = pytest.importorskip("tslearn.metrics")
    for n, m in LENGTHS:
        x, y = walks(n, m, dim=3, seed=n)
        assert dtw(x, y) == pytest.approx(peer.dtw(x, y), rel=RTOL)
        for radius in (1, 4):
            want = peer.dtw(x, y, sakoe_chiba_radius=radius)
            assert dtw(x, y, sakoe_chiba_radius=radius) == pytest.approx(want, rel=RTOL)
        if n == m > 1:
            for slope in (1.5, 2.0, 4.0):
                want = peer.dtw(x, y, itakura_max_slope=slope)
                assert dtw(x, y, itakura_max_slope=slope) == pytest.approx(want, rel=RTOL)
        if n <= m:
            path, want = peer.dtw_subsequence_path(x, y)
            assert dtw(x, y, subsequence=True) == pytest.approx(want, rel=RTOL)
            assert dtw_path(x, y, subsequence=True).path.tolist() == [list(cell) for cell in path]
        for gamma in (0.1, 2.0):
            assert soft_dtw(x, y, gamma) == pytest.approx(peer.soft_dtw(x, y, gamma=gamma), rel=1e-10)
