"""All pairs to a file: equal to the op, resumed where it stopped, never a half result under the final name."""

from __future__ import annotations

import errno
import os
from itertools import pairwise

import numpy as np
import pytest
import torch

from vsim_fast.all_pairs import dtw_matrix
from vsim_fast.errors import OutputError, UsageError
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


def interrupted(path):
    """What an interrupt after the second block leaves behind."""
    calls = []

    def interrupt(*_):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dtw_matrix(path, X, block=7, progress=interrupt)
    return path.with_name(path.name + ".partial"), path.with_name(path.name + ".journal")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"key": "x"}'])
def test_dtw_matrix_with_a_damaged_journal(tmp_path, text):
    _, journal = interrupted(tmp_path / "d.npy")
    journal.write_text(text)
    with pytest.raises(UsageError, match="journal is damaged; remove it"):
        dtw_matrix(tmp_path / "d.npy", X, block=7)


@pytest.mark.parametrize("size", [0, 200])
def test_dtw_matrix_begins_anew_where_the_partial_result_was_cut(tmp_path, size):
    partial, _ = interrupted(tmp_path / "d.npy")
    os.truncate(partial, size)
    np.testing.assert_array_equal(dtw_matrix(tmp_path / "d.npy", X, block=7), dtw_pairwise(X))


def test_dtw_matrix_runs_once_at_a_time(tmp_path):
    def second(*_):
        with pytest.raises(UsageError, match="being written by another run"):
            dtw_matrix(tmp_path / "d.npy", X[::-1], block=7)

    got = dtw_matrix(tmp_path / "d.npy", X, block=7, progress=second)
    np.testing.assert_array_equal(got, dtw_pairwise(X))


def test_dtw_matrix_tells_of_a_full_disk_before_it_computes(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="the disk is full"):
        dtw_matrix(tmp_path / "d.npy", X, progress=lambda *_: pytest.fail("computed"))
    assert not list(tmp_path.iterdir())


def test_dtw_matrix_does_not_replace_what_is_no_file(tmp_path):
    with pytest.raises(OutputError, match="is no file"):
        dtw_matrix(tmp_path, X)
    with pytest.raises(TypeError, match="skip is not an option"):
        dtw_matrix(tmp_path / "d.npy", X, skip=1)
    with pytest.raises(TypeError, match="x must be an array or a tensor, or a list of them, got generator"):
        dtw_matrix(tmp_path / "d.npy", (x for x in X))
    assert not list(tmp_path.iterdir())


def test_dtw_matrix_of_tensors_and_wrong_arguments(tmp_path):
    tensors = [torch.from_numpy(x) for x in X]
    np.testing.assert_array_equal(dtw_matrix(tmp_path / "d.npy", tensors, block=7), dtw_pairwise(X))
    with pytest.raises(ValueError, match="block must be an integer >= 1, got 0"):
        dtw_matrix(tmp_path / "e.npy", X, block=0)
    with pytest.raises(ValueError, match="cost must be one of"):
        dtw_matrix(tmp_path / "e.npy", X, cost="manhattan")
    assert not list(tmp_path.glob("e*"))
