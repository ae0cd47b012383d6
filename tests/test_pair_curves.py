"""What alternates and what sticks out of a curve, on curves whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from vsim_fast.frame_pairs.curves import flicker_index, like_a_blend, local_level, standing_out, sticking_out

SMOOTH = 0.2 + 0.1 * np.sin(np.linspace(0, 6, 300))
NOISE = np.random.default_rng(0).normal(0, 0.003, 300)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_flicker_index_is_the_share_that_alternates(share):
    curve = 0.3 * (1 + share * np.where(np.arange(100) % 2, 1.0, -1.0))
    assert flicker_index(curve) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(
    "curve", [SMOOTH, np.linspace(0, 1, 50), np.zeros(40), np.full(40, 0.2), np.array([0.1, 0.9, 0.1])],
    ids=["sine", "ramp", "zeros", "constant", "short"],
)  # fmt: skip
def test_smooth_curves_do_not_flicker(curve):
    assert flicker_index(curve) < 0.01


def test_single_bad_frames_do_not_flicker():
    curve = SMOOTH.copy()
    curve[5::10] += 0.5
    assert flicker_index(curve) < 0.01
    curve[::2] += 0.5
    assert flicker_index(curve) > 0.3


def test_flicker_leaves_out_what_is_not_known():
    curve = np.where(np.arange(100) % 2, 0.4, 0.0)
    assert flicker_index(np.r_[np.nan, curve, np.nan]) == pytest.approx(1)


def test_local_level_is_the_running_median():
    curve = SMOOTH + NOISE
    curve[100] = np.nan
    level = local_level(curve)
    for at in (0, 3, 100, 150, 299):
        expected = np.nanmedian(curve[max(0, at - 15) : at + 16])
        assert level[at] == pytest.approx(expected)
    assert np.isnan(local_level(np.full(5, np.nan))).all()


def test_local_level_of_long_curves():
    curve = np.random.default_rng(0).random(70_000)
    level = local_level(curve)
    assert level[65_600] == np.median(curve[65_585:65_616]) and level[65_535] == np.median(curve[65_520:65_551])


def test_every_tenth_frame_sticks_out():
    curve = SMOOTH + NOISE
    curve[5::10] += np.linspace(0.1, 0.4, 30)
    rows, level = sticking_out(curve)
    assert rows.tolist() == list(range(295, 0, -10))  # the largest first
    assert np.abs(level - SMOOTH).max() < 0.05


@pytest.mark.parametrize("curve", [SMOOTH + NOISE, np.zeros(100), NOISE, np.full(9, np.nan), np.zeros(1)])
def test_nothing_sticks_out(curve):
    assert not len(sticking_out(curve)[0])


def test_among_zeros_what_is_not_zero_sticks_out():
    curve = np.zeros(100)
    curve[[7, 50]] = 0.02, 0.3
    assert sticking_out(curve)[0].tolist() == [50, 7]
    curve[20] = 5e-6  # rounding
    assert sticking_out(curve)[0].tolist() == [50, 7]


def test_what_a_coder_leaves_of_a_bad_frame_does_not_stick_out():
    curve = np.zeros(100)
    curve[30:34] = 0.5, 0.04, 0.02, 0.01
    curve[60:62] = 0.5, 0.4
    assert sorted(sticking_out(curve)[0].tolist()) == [30, 60, 61]


def test_standing_out_of_the_neighbours():
    step, skip = np.array([np.nan, 0.3, 0.5, 0.1]), np.array([np.nan, 0.2, 0.4, np.nan])
    assert standing_out(step, skip)[1:3] == pytest.approx([0.2, -0.1])
    assert np.isnan(standing_out(step, skip)[[0, 3]]).all()


def test_like_a_blend_is_near_to_both():
    rng = np.random.default_rng(0)
    step, skip = 0.3 + rng.normal(0, 0.01, 100), 0.45 + rng.normal(0, 0.01, 100)
    step[0] = skip[[0, -1]] = np.nan
    assert not len(like_a_blend(step, skip))
    step[[40, 41]] = 0.22  # frame 40 blends 39 and 41
    step[70], skip[[69, 70]] = 1.0, 1.0  # a cut between 69 and 70
    assert like_a_blend(step, skip).tolist() == [40]
