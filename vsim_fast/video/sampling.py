"""Which frames to take: pure functions over a table of presentation times, and the plan to decode them. No I/O.

Every rule is named, because they all differ: at 1 fps a 300-frame clip of 30000/1001 fps gives

    time_grid       0, 29, 59, ..., 269, 299   the frame on screen at k/fps
    closest         0, 30, 60, ..., 270, 299   the frame whose start is nearest to k/fps
    ffmpeg_fps      29, 59, ..., 269, 299      FFmpeg's `fps` filter with round=down
    segment_mid     14, 43, ..., 275           middles of equal runs (VideoLLaMA3)
    floor_n         0, 30, ..., 270            arange(n)·N // n (transformers)
    per_second_int  0, 29, 58, ..., 290        whole-number rate, drifts (CLIP4Clip)
    linspace        0, 33, 66, ..., 299        count evenly spaced indices, truncated (count=10)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from vsim_fast.errors import UsageError
from vsim_fast.records import VideoInfo

MAX_SAMPLES = 10_000_000
SEEK_COST = 8
"""Frames whose decoding costs about as much as one seek (drain, index search, refill of the frame threads)."""


@dataclass(frozen=True)
class Sampling:
    """A sampling rule and its numbers. Times are seconds after the first frame.

    Args:
        rule: one of `RULES`.
        fps: samples per second, for time_grid, closest, ffmpeg_fps, segment_mid, per_second_int and floor_n.
        stride: every stride-th frame, for stride.
        count: number of frames, for linspace and floor_n.
        max_frames: where a rule picks more, linspace(0, n - 1, max_frames), truncated, of its picks are kept.
        start_seconds, end_seconds: only this part, [start, end); None means to the end.
    Raises:
        UsageError: an unknown rule, a number missing for the rule, or out of range.
    """

    rule: str = "time_grid"
    fps: float | Fraction | None = None
    stride: int | None = None
    count: int | None = None
    max_frames: int | None = None
    start_seconds: float = 0
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UsageError(f"sampling rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        needs = RULES[self.rule][1]
        if needs and all(getattr(self, name) is None for name in needs):
            raise UsageError(f"sampling rule {self.rule!r} needs {' or '.join(needs)}")
        for name in ("fps", "stride", "count", "max_frames"):
            value = getattr(self, name)
            if value is None:
                continue
            if not 0 < value < float("inf"):
                raise UsageError(f"{name} must be a finite number above 0, got {value}")
            if name != "fps" and value != int(value):
                raise UsageError(f"{name} must be a whole number, got {value}")
        if self.rule == "per_second_int" and self.fps != int(self.fps):
            raise UsageError(f"sampling rule 'per_second_int' needs a whole-number fps, got {self.fps}")
        if not 0 <= self.start_seconds < float("inf"):
            raise UsageError(f"start_seconds must be finite and not negative, got {self.start_seconds}")
        if self.end_seconds is not None and not self.end_seconds > self.start_seconds:
            raise UsageError(f"end_seconds must be above start_seconds ({self.start_seconds}), got {self.end_seconds}")


@dataclass(frozen=True)
class Run:
    """A stretch decoded without a seek: from the key frame that governs its first target to its last target."""

    key: int
    """Index in `info.pts` of the frame decoding starts at; 0 means the beginning of the file."""
    first: int
    last: int
    """First and last target, indices in `info.pts`."""

    @property
    def cost(self) -> int:
        """Frames to decode."""
        return self.last - self.key + 1


@dataclass(frozen=True)
class DecodePlan:
    """The frames to deliver and the way to decode them."""

    index: np.ndarray
    """int64 [M], positions in `info.pts`, not decreasing; a repeated frame is listed again."""
    pts: np.ndarray
    """int64 [M], `info.pts[index]`."""
    runs: tuple[Run, ...]
    cost: int
    """Frames to decode, an estimate: reordered frames and pipeline delay come on top."""
    keys_only: bool
    """True when every target is a key frame, so that nothing else needs decoding."""

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Table:
    """What the rules see: frame times in exact arithmetic and the part asked for."""

    pts: np.ndarray
    is_key: np.ndarray
    time_base: Fraction
    fps: float
    """Average rate of the file."""
    start: Fraction
    end: Fraction
    """The part asked for, in ticks of `time_base`."""

    @property
    def frames(self) -> slice:
        """Frames that start inside the part."""
        low, high = np.searchsorted(self.pts, [-(-self.start // 1), -(-self.end // 1)])
        return slice(int(low), int(high))

    def grid(self, fps: float | Fraction) -> list[Fraction]:
        """Times start + k/fps before the end, in ticks."""
        step = 1 / (exact(fps) * self.time_base)
        count = max(0, -(-(self.end - self.start) // step))
        check_count(count, fps)
        return [self.start + k * step for k in range(count)]


def exact(number: float | Fraction) -> Fraction:
    """The fraction a user means: 29.97 is 2997/100, not the nearest binary float."""
    return number if isinstance(number, Fraction) else Fraction(str(number))


def check_count(count: int, fps: float | Fraction) -> None:
    if count > MAX_SAMPLES:
        raise UsageError(f"fps {fps} gives {count} samples, more than the {MAX_SAMPLES} allowed")


def displayed_at(table: Table, ticks: list[int]) -> np.ndarray:
    """Index of the frame on screen at each time: the last that starts at or before it."""
    return np.maximum(np.searchsorted(table.pts, np.asarray(ticks, dtype=np.int64), side="right") - 1, 0)


def time_grid(table: Table, sampling: Sampling) -> np.ndarray:
    """The frame on screen at start + k/fps while that is before the end. Equals FFmpeg's `fps` filter, round=up."""
    return displayed_at(table, [t // 1 for t in table.grid(sampling.fps)])


def closest(table: Table, sampling: Sampling) -> np.ndarray:
    """On the same grid, the frame whose start is nearest; the earlier one on a tie."""
    grid = table.grid(sampling.fps)
    before = displayed_at(table, [t // 1 for t in grid])
    after = np.minimum(before + 1, len(table.pts) - 1)
    nearer = [
        int(table.pts[a]) - t < t - int(table.pts[b]) if a != b else False
        for a, b, t in zip(after, before, grid, strict=True)
    ]
    return np.where(np.asarray(nearer, dtype=bool), after, before)


def ffmpeg_fps(table: Table, sampling: Sampling) -> np.ndarray:
    """FFmpeg's `fps=F:round=down`: frame times become floor(t·F) and each slot shows the last frame at or before it.

    The grid is anchored at time 0 of the file, not at its first frame, and each slot takes the *last* frame that
    starts inside it, up to 1/F later than `time_grid` does.
    """
    rate = exact(sampling.fps) * table.time_base
    first, end = int(table.start * rate // 1), int(table.end * rate // 1)
    check_count(end - first, sampling.fps)
    # floor(p·rate) <= n  <=>  p < (n + 1) / rate  <=>  p <= ceil((n + 1) / rate) - 1
    return displayed_at(table, [-(-(n + 1) // rate) - 1 for n in range(first, end)])


def segment_mid(table: Table, sampling: Sampling) -> np.ndarray:
    """arange(stride // 2, N, stride) with stride = rate // fps in floats, at least 1 and at most N (VideoLLaMA3)."""
    frames = table.frames
    count = frames.stop - frames.start
    stride = max(1, min(table.fps // float(sampling.fps), count))
    return frames.start + np.arange(stride // 2, count, stride, dtype=int)


def linspace(table: Table, sampling: Sampling) -> np.ndarray:
    """linspace(0, N - 1, count) truncated to int; every frame where N <= count."""
    frames = table.frames
    return frames.start + spread(frames.stop - frames.start, sampling.count)


def spread(total: int, count: int) -> np.ndarray:
    """`count` of `total` positions, ends included, truncated; all of them where there are not more."""
    return np.arange(total) if total <= count else np.linspace(0, total - 1, int(count)).astype(np.int64)


def floor_n(table: Table, sampling: Sampling) -> np.ndarray:
    """arange(n)·N // n, where n is `count` or else max(1, int(N / rate · fps)), at most N (transformers)."""
    frames = table.frames
    total = frames.stop - frames.start
    n = sampling.count or max(1, int(total / table.fps * float(sampling.fps)))
    n = int(min(n, total))
    return frames.start + np.arange(n) * total // max(n, 1)


def per_second_int(table: Table, sampling: Sampling) -> np.ndarray:
    """sec·int(rate) + offsets 0, step, 2·step, … with step = int(rate) // fps: drifts off whole seconds (CLIP4Clip)."""
    frames = table.frames
    total = frames.stop - frames.start
    rate, per_second = max(1, int(table.fps)), int(sampling.fps)
    offsets = np.arange(0, rate, max(1, rate // per_second))[:per_second]
    picks = (np.arange(0, total, rate)[:, None] + offsets).ravel()
    return frames.start + picks[picks < total]


def stride(table: Table, sampling: Sampling) -> np.ndarray:
    """Every stride-th frame from the first."""
    frames = table.frames
    return np.arange(frames.start, frames.stop, int(sampling.stride))


def every(table: Table, sampling: Sampling) -> np.ndarray:
    """Every frame."""
    return np.arange(table.frames.start, table.frames.stop)


def keyframes(table: Table, sampling: Sampling) -> np.ndarray:
    """Key frames only: the cheapest decode, at times the encoder chose."""
    return table.frames.start + np.flatnonzero(table.is_key[table.frames])


RULES: dict[str, tuple[Callable[[Table, Sampling], np.ndarray], tuple[str, ...]]] = {  # name -> rule, numbers it needs
    "time_grid": (time_grid, ("fps",)),
    "closest": (closest, ("fps",)),
    "ffmpeg_fps": (ffmpeg_fps, ("fps",)),
    "segment_mid": (segment_mid, ("fps",)),
    "linspace": (linspace, ("count",)),
    "floor_n": (floor_n, ("count", "fps")),
    "per_second_int": (per_second_int, ("fps",)),
    "stride": (stride, ("stride",)),
    "all": (every, ()),
    "keyframes": (keyframes, ()),
}


def sample(info: VideoInfo, sampling: Sampling) -> np.ndarray:
    """int64 [M] indices into `info.pts` that `sampling` picks, sorted, in range, with repeats.

    Raises:
        UsageError: the part asked for starts after the video, or holds no frame by this rule.
    """
    seconds = exact(1) / info.time_base
    first = int(info.pts[0])
    # duration_seconds is an exact number of ticks, rounded to a float; this recovers it
    last_end = first + round(info.duration_seconds / float(info.time_base))
    start = first + exact(sampling.start_seconds) * seconds
    end = Fraction(last_end)
    if start >= end:
        raise UsageError(
            f"start_seconds must be before the end of {info.path} ({info.duration_seconds:.3f} s), "
            f"got {sampling.start_seconds}"
        )
    if sampling.end_seconds is not None:
        end = min(end, first + exact(sampling.end_seconds) * seconds)
    table = Table(info.pts, info.is_key, info.time_base, info.average_fps, Fraction(start), end)
    index = np.asarray(RULES[sampling.rule][0](table, sampling), dtype=np.int64)
    if sampling.max_frames is not None:
        index = index[spread(len(index), sampling.max_frames)]
    if not len(index):
        raise UsageError(f"sampling rule {sampling.rule!r} picks no frame of {info.path} in the part asked for")
    return index


def plan(info: VideoInfo, sampling: Sampling) -> DecodePlan:
    """Targets of `sampling` grouped by the key frame that governs them, forward seeks only."""
    return plan_indices(info, sample(info, sampling))


def plan_indices(info: VideoInfo, index: np.ndarray) -> DecodePlan:
    """The plan that delivers `index` (int64 [M], sorted) of `info.pts`."""
    keys = np.flatnonzero(info.is_key) if info.seekable else np.zeros(0, dtype=np.int64)
    governing = np.searchsorted(keys, index, side="right") - 1
    governing = np.where(governing >= 0, np.append(keys, 0)[governing], 0)
    # A seek pays when decoding on from one target to the key frame of the next would cost more.
    cuts = np.flatnonzero(governing[1:] - index[:-1] > SEEK_COST) + 1
    bounds = [0, *cuts.tolist(), len(index)]
    runs = tuple(Run(int(governing[a]), int(index[a]), int(index[b - 1])) for a, b in pairwise(bounds))
    keys_only = bool(info.seekable and info.is_key[index].all())
    cost = len(np.unique(index)) if keys_only else sum(run.cost for run in runs)
    return DecodePlan(index, info.pts[index], runs, cost, keys_only)
