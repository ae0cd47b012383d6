"""Distances over the frames of a video: what alternates, and which frames stick out. NumPy in, NumPy out.

A frame that was lost, or has nothing to be compared with, is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

REACH = 20
"""Frames on either side that say what is usual at a frame: content changes, and the distance with it."""
PERIODS = (2, 3, 4)
"""In which made-up frames come: of 2× interpolation every other, of 4× three of four."""
STICKS_OUT = 8.0
"""Times the usual deviation around a frame by which it must exceed what is usual there."""
LEAST_EXCESS = 1e-5
"""And at least this much, so that rounding does not count: among frames that are equal, any other one sticks out."""
LEAST_SHARE = 0.25
"""And this share of what is usual."""
ECHO_FRAMES, ECHO_SHARE = 8, 0.1
"""And this share of the excess of each of so many frames before it: coders predict frames from a bad one."""
LEAST_SKIP = 0.01
"""Motion below which nothing looks like a blend."""
BLEND_NEARER, BLEND_SHARE = 5.0, 3.0
"""See `like_a_blend`. Of 31 blends among 315 frames of a walk 25 are found; of 1,100 frames of nine other clips 9, of
which 3 are of a dissolve."""
LEAST_LEVEL = 2e-3
"""Mean distance below which nobody sees flicker."""
APART = 15
"""Frames between two of the `largest`."""


def running_median(curve: np.ndarray, reach: int = REACH) -> np.ndarray:
    """float64 [T] median over `reach` frames on either side, itself included."""
    return _running(curve, np.arange(-reach, reach + 1))


def usual_level(curve: np.ndarray) -> np.ndarray:
    """float64 [T] what is usual of frames like this one: the largest, over the periods 2, 3 and 4, of the lower median
    of the frames a multiple of the period away. So the true frames between made-up ones do not make those stick out,
    and a bad frame every tenth time does not become usual."""
    levels = []
    for period in PERIODS:
        multiples = np.arange(period, REACH + 1, period)
        levels.append(_running(curve, np.concatenate([-multiples, multiples])))
    return np.fmax.reduce(levels)


def _running(curve: np.ndarray, offsets: Sequence[int] | np.ndarray) -> np.ndarray:
    """float64 [T] lower median of curve[t + offsets]; NaN where all of those are."""
    curve, level = curve.astype(float), np.full(len(curve), np.nan)
    padded = np.pad(curve, REACH, constant_values=np.nan)
    for start in range(0, len(curve), 65536):  # bounds the memory
        at = np.arange(start, min(start + 65536, len(curve)))
        values = np.sort(padded[at[:, None] + np.asarray(offsets) + REACH], axis=1)  # NaN last
        known = (~np.isnan(values)).sum(1)
        middle = values[np.arange(len(at)), np.maximum(known - 1, 0) // 2]
        level[at] = np.where(known > 0, middle, np.nan)
    return level


def sticking_out(curve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames whose distance exceeds what is usual for them.

    A frame sticks out where its value exceeds `usual_level` by more than 8 times the median deviation from that level
    around it (in units of a standard deviation), by 0.00001, and by a quarter of the level. NaN never does; nor does
    what is under a tenth of one of the eight frames before it, an echo of which coders leave in what they predict.

    Returns:
        rows, int64, largest excess first; and the usual level, float64 [T].
    """
    level = usual_level(curve)
    excess = curve - level
    spread = 1.4826 * running_median(np.abs(excess - running_median(excess)))
    bound = np.maximum(np.maximum(STICKS_OUT * spread, LEAST_EXCESS), LEAST_SHARE * level)
    before = np.pad(np.nan_to_num(excess), (ECHO_FRAMES, 0))[:-1]
    echo = ECHO_SHARE * np.lib.stride_tricks.sliding_window_view(before, ECHO_FRAMES).max(1, initial=0)
    rows = np.flatnonzero((excess > bound) & (excess > echo))  # False for NaN
    return rows[np.argsort(-excess[rows], kind="stable")], level


def largest(curve: np.ndarray, count: int) -> np.ndarray:
    """int64 rows of the `count` largest values above 0 that are apart from each other, the largest first: the worst of
    a video that is bad all along, in which no frame sticks out."""
    chosen: list[int] = []
    for row in np.argsort(-np.nan_to_num(curve), kind="stable").tolist():
        if len(chosen) == count or not curve[row] > 0:
            break
        if all(abs(row - other) >= APART for other in chosen):
            chosen.append(row)
    return np.array(chosen, dtype=np.int64)


def standing_out(step: np.ndarray, skip: np.ndarray) -> np.ndarray:
    """float64 [T]: how much nearer the neighbours of a frame are to each other than to it; NaN at both ends.

    Args:
        step: [T] distance of frame t to t - 1; NaN at 0.  skip: [T] distance of frame t - 1 to t + 1; NaN at both ends.
    """
    after = np.append(step[1:], np.nan)
    return (step + after) / 2 - skip


def like_a_blend(step: np.ndarray, skip: np.ndarray) -> np.ndarray:
    """int64 rows of frames that are nearer to both neighbours than motion around them allows, most so first.

    A blend shows what both neighbours show, and is near to both; a true frame between them is as far from either as
    half the motion. `skip` less the mean of both steps must exceed its running median by 5 times its usual deviation,
    and, so that cuts do not count, 1 - the larger step / skip by 3 times.

    Args: step, skip: [T], as in `standing_out`.
    """
    after = np.append(step[1:], np.nan)
    nearer = -standing_out(step, skip)
    share = 1 - np.fmax(step, after) / np.maximum(skip, 1e-3)
    found = (_deviations(nearer) > BLEND_NEARER) & (_deviations(share) > BLEND_SHARE)
    rows = np.flatnonzero(found & (skip > LEAST_SKIP))
    return rows[np.argsort(-(nearer - running_median(nearer))[rows], kind="stable")]


def _deviations(curve: np.ndarray) -> np.ndarray:
    """[T] distance above the running median, in usual ones."""
    excess = curve - running_median(curve, APART)
    known = excess[~np.isnan(excess)]
    spread = 1.4826 * np.median(np.abs(known)) if len(known) else 0.0
    return excess / max(spread, 1e-3)


def flicker_index(curve: np.ndarray) -> float:
    """How much of a curve goes up and down from frame to frame, 0 … 1: of a level of 1 that alternates by ± a it is a.

    The mean over t of the running median of |h_t| / 2, where h_t = c_t - (c_{t-1} + c_{t+1}) / 2, divided by the mean
    of the curve (at least 0.002: below that nobody sees any). Videos of which every other frame is made up alternate,
    and of which two or three frames between true ones are; a smooth curve and single bad frames do not.
    """
    if len(curve) < 4:
        return 0.0
    bend = np.abs(curve[1:-1] - (curve[:-2] + curve[2:]) / 2)
    return _share(running_median(bend, APART) / 2, curve)


def neighbour_flicker(step: np.ndarray, skip: np.ndarray) -> float:
    """Flicker of a video without its truth, 0 … 1: how much nearer frames are to the one after next than to the next,
    as where two looks take turns. Blends of neighbours do not show so.

    The mean over t of the running median of `standing_out`, where that is above 0, divided by the mean step.
    """
    return _share(np.fmax(running_median(standing_out(step, skip), APART), 0), step)


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    part, whole = part[~np.isnan(part)], whole[~np.isnan(whole)]
    if not len(part) or not len(whole):
        return 0.0
    return float(min(1.0, part.mean() / max(whole.mean(), LEAST_LEVEL)))
