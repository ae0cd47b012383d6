"""All pairs to a file: equal to the op, resumed where it stopped, never a half result under the final name."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from vsim_fast.all_pairs import dtw_matrix
from vsim_fast.errors import UsageError
from vsim_fast.ops import dtw_pairwise

rng = np.random.default_rng(0)
X = [rng.normal(size=(length, 2)).astype(np.float32) for length in rng.integers(3, 20, 23)]
Y = rng.normal(size=(9, 12, 2)).astype(np.float32)


@pytest.mark.parametrize("options", [{}, dict(sakoe_chiba_radius=0.2), dict(subsequence=True), dict(cost="cosine")])
@pytest.mark.parametrize("y", [None, Y], ids=["self", "other"])
def test_dtw_matrix_equals_dtw_pairwise(tmp_path, y, options):
    seen = []
    got = dtw_matrix(tmp_path / "d.npy", X, y, block=7, progress=lambda *now: seen.append(now), **options)
    np.testing.assert_array_equal(got, dtw_pairwise(X, y, **options))
    assert seen[-1][0] == seen[-1][1] and seen[-1][2] == 0 and all(a[0] < b[0] for a, b in pairwise(seen))
    assert [path.name for path in tmp_path.iterdir()] == ["d.npy"]


@pytest.mark.parametrize("stop_after", [1, 4])
def test_dtw_matrix_goes_on_after_an_interrupt(tmp_path, stop_after):
    calls = []

    def interrupt(done, total, seconds_left):
        calls.append(done)
        if len(calls) == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dtw_matrix(tmp_path / "d.npy", X, block=7, progress=interrupt)
    assert not (tmp_path / "d.npy").exists()
    resumed = []
    got = dtw_matrix(tmp_path / "d.npy", X, block=7, progress=lambda done, *_: resumed.append(done))
    assert len(resumed) == 10 - stop_after and resumed[0] > calls[-1]
    np.testing.assert_array_equal(got, dtw_pairwise(X))


def test_dtw_matrix_takes_up_nothing_of_another_job(tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dtw_matrix(tmp_path / "d.npy", X, block=7, progress=interrupt)
    for change in (dict(x=X[:-1]), dict(root=False), dict(block=8)):
        with pytest.raises(UsageError, match="belongs to other sequences or options"):
            dtw_matrix(**dict(path=tmp_path / "d.npy", x=X, block=7) | change)


def test_dtw_matrix_of_tensors_and_wrong_arguments(tmp_path):
    tensors = [torch.from_numpy(x) for x in X]
    np.testing.assert_array_equal(dtw_matrix(tmp_path / "d.npy", tensors, block=7), dtw_pairwise(X))
    with pytest.raises(ValueError, match="block must be an integer >= 1, got 0"):
        dtw_matrix(tmp_path / "e.npy", X, block=0)
    with pytest.raises(ValueError, match="cost must be one of"):
        dtw_matrix(tmp_path / "e.npy", X, cost="manhattan")
    assert not list(tmp_path.glob("e*"))
