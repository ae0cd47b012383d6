"""What alternates and what sticks out of a curve, on curves whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from vsim_fast.frame_pairs.curves import (
    flicker_index,
    largest,
    like_a_blend,
    neighbour_flicker,
    running_median,
    standing_out,
    sticking_out,
    usual_level,
)

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
    curve[50] = np.nan
    assert flicker_index(curve) == pytest.approx(1, abs=0.02)


def test_running_median():
    curve = SMOOTH + NOISE
    curve[100] = np.nan
    level = running_median(curve, 15)
    for at in (0, 3, 99, 150, 299):
        window = curve[max(0, at - 15) : at + 16]
        known = np.sort(window[~np.isnan(window)])
        assert level[at] == known[(len(known) - 1) // 2]
    assert np.isnan(running_median(np.full(5, np.nan))).all()


def test_running_median_of_long_curves():
    curve = np.random.default_rng(0).random(70_000)
    level = running_median(curve)
    for at in (65_535, 65_536, 69_970):
        window = np.sort(curve[at - 20 : at + 21])
        assert level[at] == window[(len(window) - 1) // 2]


@pytest.mark.parametrize("period", [2, 3, 4])
def test_usual_level_is_that_of_the_same_place_in_the_period(period):
    curve = np.where(np.arange(120) % period, 0.1, 0.0)
    made = np.flatnonzero(np.arange(120) % period)
    assert usual_level(curve)[made] == pytest.approx(0.1)
    assert not len(sticking_out(curve)[0])
    curve[61 + (61 % period == 0)] = 0.6  # one of those made up is ruined
    assert sticking_out(curve)[0].tolist() == [61 + (61 % period == 0)]


def test_every_tenth_frame_sticks_out():
    curve = SMOOTH + NOISE
    curve[5::10] += np.linspace(0.2, 0.6, 30)
    rows, level = sticking_out(curve)
    assert sorted(rows.tolist()) == list(range(5, 300, 10))
    assert rows[0] == 295 and rows[-1] < 60  # the largest first
    assert np.abs(level - SMOOTH)[10:-10].max() < 0.05


@pytest.mark.parametrize("curve", [SMOOTH + NOISE, np.zeros(100), np.abs(NOISE), np.full(9, np.nan), np.zeros(1)])
def test_nothing_sticks_out(curve):
    assert not len(sticking_out(curve)[0])


def test_noise_in_a_part_does_not_stick_out():
    noisy = 0.05 + 0.02 * np.random.default_rng(0).standard_normal(200)
    assert len(sticking_out(np.r_[np.zeros(400), noisy])[0]) < 10  # at the border


def test_the_largest_are_apart():
    curve = np.r_[np.zeros(80), np.full(40, 0.25)]  # bad all along: nothing sticks out of it
    curve[100] = 0.26
    assert sticking_out(np.full(100, 0.2))[0].tolist() == []
    assert largest(curve, 3).tolist() == [100, 80, 115]
    assert not len(largest(np.zeros(9), 3)) and not len(largest(np.full(9, np.nan), 3))


def test_neighbour_flicker_is_of_two_looks_in_turn():
    step, skip = np.r_[np.nan, np.full(99, 0.2)], np.r_[np.nan, np.zeros(98), np.nan]
    assert neighbour_flicker(step, skip) == pytest.approx(1)  # A B A B
    assert flicker_index(step) == 0
    motion = np.r_[np.nan, np.full(98, 0.3), np.nan]
    assert neighbour_flicker(step, motion) == 0
    twice = np.where(np.arange(100) % 2, 0.0, 0.2)  # every frame shown twice: judder, no flicker
    assert neighbour_flicker(twice, np.full(100, 0.2)) == 0 and flicker_index(twice) == pytest.approx(1)


@pytest.mark.parametrize(("pattern", "least"), [((0, 1), 0.99), ((0, 1, 1), 0.3), ((0, 1, 1.2, 1), 0.2)])
def test_interpolation_by_2_3_and_4_flickers(pattern, least):
    curve = 0.1 * np.tile(pattern, 30)
    assert least < flicker_index(curve) <= 1
    half = np.r_[np.full(len(curve), curve.mean()), curve]
    assert flicker_index(half) == pytest.approx(flicker_index(curve) / 2, rel=0.2)


def test_flicker_nobody_sees_is_none():
    assert flicker_index(np.tile([0, 1e-5], 50)) < 0.01


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
