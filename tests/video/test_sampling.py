"""The sampling rules over tables of times: the worked example, other implementations, and properties."""

from __future__ import annotations

from fractions import Fraction

import av
import av.filter
import numpy as np
import pytest

from vsim_fast.errors import UsageError
from vsim_fast.records import ColorSpec, VideoInfo
from vsim_fast.video import RULES, Sampling, plan, sample
from vsim_fast.video.sampling import SEEK_COST, plan_indices

NTSC = Fraction(30000, 1001)


def table(pts, time_base, *, last=None, fps=None, keys=50, seekable=True):
    pts = np.asarray(pts, dtype=np.int64)
    last = last or (int(np.median(np.diff(pts))) if len(pts) > 1 else 1)
    seconds = float((int(pts[-1] - pts[0]) + last) * time_base)
    is_key = np.arange(len(pts)) % keys == 0
    return VideoInfo(
        "clip", "h264", 16, 16, "yuv420p", ColorSpec(), time_base, pts, is_key, seconds,
        float(fps or len(pts) / seconds), seekable=seekable,
    )  # fmt: skip


EXAMPLE = table(np.arange(300) * 1001, Fraction(1, 30000), fps=NTSC)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling("time_grid", fps=1), [0, 29, 59, 89, 119, 149, 179, 209, 239, 269, 299]),
        (Sampling("closest", fps=1), [0, 30, 60, 90, 120, 150, 180, 210, 240, 270, 299]),
        (Sampling("ffmpeg_fps", fps=1), [29, 59, 89, 119, 149, 179, 209, 239, 269, 299]),
        (Sampling("segment_mid", fps=1), [14, 43, 72, 101, 130, 159, 188, 217, 246, 275]),
        (Sampling("floor_n", fps=1), [0, 30, 60, 90, 120, 150, 180, 210, 240, 270]),
        (Sampling("floor_n", count=7), [0, 42, 85, 128, 171, 214, 257]),
        (Sampling("per_second_int", fps=1), [0, 29, 58, 87, 116, 145, 174, 203, 232, 261, 290]),
        (Sampling("per_second_int", fps=2, end_seconds=2), [0, 14, 29, 43, 58]),
        (Sampling("linspace", count=10), [0, 33, 66, 99, 132, 166, 199, 232, 265, 299]),
        (Sampling("stride", stride=100), [0, 100, 200]),
        (Sampling("keyframes"), [0, 50, 100, 150, 200, 250]),
        (Sampling("all", max_frames=4), [0, 99, 199, 299]),
        (Sampling("time_grid", fps=1, max_frames=3), [0, 149, 299]),
        (Sampling("time_grid", fps=1, start_seconds=2.5, end_seconds=5), [74, 104, 134]),
    ],
    ids=lambda v: v.rule if isinstance(v, Sampling) else None,
)
def test_worked_example(sampling, expected):
    assert sample(EXAMPLE, sampling).tolist() == expected


def fps_filter(pts, time_base, rate, rounding, last):
    """Numbers of the frames that FFmpeg's own filter puts out."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=16, height=16, format=av.VideoFormat("gray"), time_base=time_base)
    fps, sink = graph.add("fps", f"fps={rate}:round={rounding}"), graph.add("buffersink")
    source.link_to(fps)
    fps.link_to(sink)
    graph.configure()
    out = []

    def pull():
        while True:
            try:
                pixels = bytes(graph.vpull().planes[0])
            except (BlockingIOError, EOFError):
                return
            out.append(pixels[0] + 256 * pixels[1])

    for n, t in enumerate(pts):
        frame = av.VideoFrame(16, 16, "gray")
        frame.planes[0].update(bytes([n % 256, n // 256]) + bytes(frame.planes[0].buffer_size - 2))
        frame.pts, frame.time_base, frame.duration = int(t), time_base, last
        graph.vpush(frame)
        pull()
    graph.vpush(None)
    pull()
    return out


CLOCKS = {
    "ntsc": (np.arange(120) * 1001, Fraction(1, 30000), 1001),
    "milliseconds": (np.round(np.arange(90) * 1000 / 24).astype(int), Fraction(1, 1000), 42),
    "variable": (np.cumsum(np.random.default_rng(0).integers(1, 4000, 80)), Fraction(1, 15360), 900),
    "late-start": (132_000 + np.arange(60) * 3600, Fraction(1, 90000), 3600),
}


@pytest.mark.parametrize("rate", ["1", "3", "7/2", "24", "60", "30000/1001"])
@pytest.mark.parametrize("clock", CLOCKS)
def test_time_rules_equal_the_fps_filter(clock, rate):
    """ffmpeg_fps is the filter with round=down; time_grid is it with round=up on times that start at 0."""
    pts, time_base, last = CLOCKS[clock]
    info = table(pts, time_base, last=last)
    fps = Fraction(rate)
    down = fps_filter(pts, time_base, rate, "down", last)
    assert sample(info, Sampling("ffmpeg_fps", fps=fps)).tolist() == down
    zero = pts - pts[0]
    up = fps_filter(zero, time_base, rate, "up", last)
    assert sample(info, Sampling("time_grid", fps=fps)).tolist() == up


def every_rule(rng):
    fps = float(rng.choice([0.3, 1, 2.5, 12, 29.97, 75]))
    numbers = dict(fps=fps, stride=int(rng.integers(1, 40)), count=int(rng.integers(1, 90)))
    for rule, (_, needs) in RULES.items():
        chosen = {name: numbers[name] for name in needs[:1]}
        yield Sampling("per_second_int", fps=int(fps) + 1) if rule == "per_second_int" else Sampling(rule, **chosen)


@pytest.mark.parametrize("seed", range(8))
def test_properties(seed):
    """Sorted, in range, time_grid shows the frame on screen, closest is nearest, max_frames caps and keeps the ends."""
    rng = np.random.default_rng(seed)
    frames = int(rng.integers(1, 200))
    pts = int(rng.integers(-500, 50_000)) + np.cumsum(rng.integers(1, 3000, frames))
    info = table(pts, Fraction(1, int(rng.choice([1000, 15360, 90000]))), keys=int(rng.integers(1, 60)))
    for sampling in every_rule(rng):
        try:
            index = sample(info, sampling)
        except UsageError as error:
            assert "picks no frame" in str(error) and sampling.rule in ("ffmpeg_fps", "segment_mid")
            continue
        assert index.dtype == np.int64 and (np.diff(index) >= 0).all()
        assert index[0] >= 0 and index[-1] < frames
        if sampling.rule not in ("time_grid", "closest", "ffmpeg_fps"):
            assert (np.diff(index) > 0).all(), "only rules over time repeat a frame"
        if sampling.rule in ("time_grid", "closest"):
            for k, i in list(enumerate(index))[:: 1 + len(index) // 50]:
                t = int(pts[0]) + k / Fraction(str(sampling.fps)) / info.time_base
                if sampling.rule == "time_grid":
                    assert pts[i] <= t and (i + 1 == frames or pts[i + 1] > t)
                else:
                    assert abs(int(pts[i]) - t) == min(abs(int(p) - t) for p in pts)
        capped = sample(info, Sampling(**(vars(sampling) | {"max_frames": 5})))
        assert len(capped) == min(5, len(index))
        assert capped[0] == index[0] and capped[-1] == index[-1]


@pytest.mark.parametrize("seed", range(8))
def test_plan_covers_targets_once(seed):
    rng = np.random.default_rng(seed)
    info = table(np.arange(400) * 512, Fraction(1, 15360), keys=int(rng.integers(1, 120)))
    index = np.sort(rng.integers(0, 400, int(rng.integers(1, 60))))
    result = plan_indices(info, index)
    covered = np.concatenate([index[(index >= run.first) & (index <= run.last)] for run in result.runs])
    assert covered.tolist() == index.tolist()
    for run in result.runs:
        assert info.is_key[run.key] and run.key <= run.first <= run.last
        assert not info.is_key[run.key + 1 : run.first + 1].any(), (
            "starts at the last key frame before its first target"
        )
    for before, after in zip(result.runs, result.runs[1:], strict=False):
        assert after.key - before.last > SEEK_COST, "a seek skips more than it costs"
    assert result.cost <= index[-1] + 1


def test_plan_without_seeking_starts_at_the_beginning():
    info = table(np.arange(400) * 512, Fraction(1, 15360), keys=10, seekable=False)
    result = plan(info, Sampling("keyframes"))
    assert [run.key for run in result.runs] == [0] and not result.keys_only


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(rule="every"), "'every'"),
        (dict(), "'time_grid' needs fps"),
        (dict(rule="linspace", fps=2), "'linspace' needs count"),
        (dict(fps=0), "fps must be a finite number above 0, got 0"),
        (dict(fps=float("nan")), "fps"),
        (dict(fps=1, max_frames=0), "max_frames must be a finite number above 0, got 0"),
        (dict(rule="stride", stride=1.5), "stride must be a whole number, got 1.5"),
        (dict(rule="per_second_int", fps=1.5), "whole-number fps"),
        (dict(fps=1, start_seconds=-1), "start_seconds"),
        (dict(fps=1, start_seconds=3, end_seconds=3), "end_seconds must be above start_seconds"),
    ],
)
def test_sampling_rejects(arguments, words):
    with pytest.raises(UsageError, match=words):
        Sampling(**arguments)


def test_sample_rejects_what_only_the_video_shows():
    with pytest.raises(UsageError, match="start_seconds must be before the end of clip"):
        sample(EXAMPLE, Sampling(fps=1, start_seconds=11))
    with pytest.raises(UsageError, match="more than the 10000000 allowed"):
        sample(EXAMPLE, Sampling(fps=1e8))
