"""Distances over the frames of a video: what alternates, and which frames stick out. NumPy in, NumPy out."""

from __future__ import annotations

import numpy as np

LOCAL_FRAMES = 31
"""Frames whose median is the level to expect of the middle one: content changes, and the distance with it."""
STICKS_OUT = 8.0
"""Times the usual spread around the local level by which a frame must exceed it."""
LEAST_EXCESS = 1e-5
"""And at least this much, so that rounding does not count: among frames that are equal, any other one sticks out."""
LEAST_SHARE = 0.25
"""And this share of the local level."""
ECHO_FRAMES, ECHO_SHARE = 8, 0.1
"""And this share of the excess of each of so many frames before it: coders predict frames from a bad one."""
LEAST_SKIP = 0.01
"""Motion below which nothing looks like a blend."""
BLEND_NEARER, BLEND_SHARE = 5.0, 3.0
"""See `like_a_blend`. Of 31 blends among 315 frames of a walk 25 are found; of 1,100 frames of nine other clips 9, of
which 3 are of a dissolve."""


def local_level(curve: np.ndarray, frames: int = LOCAL_FRAMES) -> np.ndarray:
    """float64 [T] running median of `curve` [T], over `frames` values around each; NaN are left out."""
    padded = np.pad(curve.astype(float), frames // 2, constant_values=np.nan)
    level = np.empty(len(curve))
    for start in range(0, len(curve), 65536):  # the windows are views, nanmedian copies them
        part = padded[start : start + 65536 + frames - 1]
        view = np.lib.stride_tricks.sliding_window_view(part, frames)
        known = ~np.isnan(view).all(1)
        level[start : start + len(view)] = np.nan
        level[start : start + len(view)][known] = np.nanmedian(view[known], axis=1)
    return level


def sticking_out(curve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames whose distance exceeds what is usual around them.

    A frame sticks out where its value is above the running median by more than 8 times the median absolute excess of
    all frames (in units of a standard deviation), by 0.00001, and by a quarter of the median. NaN never does; nor
    does what is under a tenth of one of the eight frames before it, an echo of which coders leave in what they predict.

    Returns:
        rows, int64, largest excess first; and the running median, float64 [T].
    """
    level = local_level(curve)
    excess = curve - level
    known = excess[~np.isnan(excess)]
    spread = 1.4826 * np.median(np.abs(known)) if len(known) else 0.0
    bound = np.maximum(max(STICKS_OUT * spread, LEAST_EXCESS), LEAST_SHARE * level)
    before = np.pad(np.nan_to_num(excess), (ECHO_FRAMES, 0))[:-1]
    echo = ECHO_SHARE * np.lib.stride_tricks.sliding_window_view(before, ECHO_FRAMES).max(1, initial=0)
    rows = np.flatnonzero((excess > bound) & (excess > echo))  # False for NaN
    return rows[np.argsort(-excess[rows], kind="stable")], level


def like_a_blend(step: np.ndarray, skip: np.ndarray) -> np.ndarray:
    """int64 rows of frames that are nearer to both neighbours than motion around them allows, most so first.

    A blend shows what both neighbours show, and is near to both; a true frame between them is as far from either as
    half the motion. `skip` less the mean of both steps must exceed its running median by 5 times its usual spread, and,
    so that cuts do not count, 1 - the larger step / skip by 3 times.

    Args: step, skip: [T], as in `standing_out`.
    """
    after = np.append(step[1:], np.nan)
    nearer = skip - (step + after) / 2
    share = 1 - np.fmax(step, after) / np.maximum(skip, 1e-3)
    found = (_deviations(nearer) > BLEND_NEARER) & (_deviations(share) > BLEND_SHARE)
    rows = np.flatnonzero(found & (skip > LEAST_SKIP))
    return rows[np.argsort(-(nearer - local_level(nearer))[rows], kind="stable")]


def _deviations(curve: np.ndarray) -> np.ndarray:
    """[T] distance above the running median, in usual ones."""
    excess = curve - local_level(curve)
    known = excess[~np.isnan(excess)]
    spread = 1.4826 * np.median(np.abs(known)) if len(known) else 0.0
    return excess / max(spread, 1e-3)


def flicker_index(curve: np.ndarray) -> float:
    """How much of a curve alternates from frame to frame: 0 … 1, of a level of 1 whose frames alternate by ± 1.

    The median, over the frames t, of the amplitude a_t by which the curve goes up and down around t, divided by the
    mean of the curve. With h_t = c_t - (c_{t-1} + c_{t+1}) / 2, a_t = (|h_t| + |h_{t+1}|) / 4 where h_t and h_{t+1}
    have opposite signs, else 0. Videos of which every other frame is made up alternate so; a smooth curve and single
    bad frames do not. 0 for fewer than 4 values, or a curve of zeros.
    """
    curve = curve[~np.isnan(curve)].astype(float)
    if len(curve) < 4 or not curve.mean() > 1e-9:
        return 0.0
    bend = curve[1:-1] - (curve[:-2] + curve[2:]) / 2
    swing = np.where(bend[:-1] * bend[1:] < 0, (np.abs(bend[:-1]) + np.abs(bend[1:])) / 4, 0.0)
    return float(min(1.0, np.median(swing) / curve.mean()))


def standing_out(step: np.ndarray, skip: np.ndarray) -> np.ndarray:
    """float64 [T]: how much nearer the neighbours of a frame are to each other than to it; NaN at both ends.

    Args:
        step: [T] distance of frame t to t - 1; NaN at 0.  skip: [T] distance of frame t - 1 to t + 1; NaN at both ends.
    """
    after = np.append(step[1:], np.nan)
    return (step + after) / 2 - skip
