"""A video against the true one, or against itself from frame to frame: a distance per frame, and what sticks out.

video ─┐
       ├─ frames side by side ─► pixel metrics ─► encoder input ─► encoder ─► distances ─► curves, worst frames, page
truth ─┘   (decode thread, a few frames at a time)                           (pictures of shown frames alone are kept)
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np

from vsim_fast.encode.base import Encoder
from vsim_fast.errors import CorruptVideo, UsageError
from vsim_fast.frame_pairs.comparing import Alone, Comparing, Judged, PixelMetrics, WithReference
from vsim_fast.frame_pairs.images import encoder_notes, load_pair_encoder
from vsim_fast.frame_pairs.metrics import DEFAULT_METRICS, check_metrics
from vsim_fast.frame_pairs.reading import BATCH_FRAMES
from vsim_fast.frame_pairs.video_outputs import number, overlay_name, write_outputs
from vsim_fast.frame_pairs.video_records import VideoComparison, VideoPair, VideoRun, WorstFrame
from vsim_fast.image_quality import Lpips
from vsim_fast.pairs import Pooling
from vsim_fast.pipeline import Timings
from vsim_fast.records import Progress, VideoInfo
from vsim_fast.store import OutputFolder, earlier_outputs
from vsim_fast.video import Sampling, VideoReader, open_video

OnLength = Literal["shortest", "error"]


def pair_video(
    video: str | os.PathLike,
    reference: str | os.PathLike | None = None,
    encoder: str | Encoder = "builtin",
    *,
    output_dir: str | os.PathLike,
    fps: float | None = None,
    on_length: OnLength = "shortest",
    worst: int = 24,
    pooling: Pooling = "all",
    metrics: Sequence[str] = DEFAULT_METRICS,
    image_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    decoder: Literal["auto", "pyav", "nvdec"] = "auto",
    offline: bool = False,
    progress: Progress | None = None,
    timings: Timings | None = None,
    started: float | None = None,
) -> VideoPair:
    """The distance of every frame of a video to the true one, or to the frames around it; worst frames; a page.

    With a reference, frame t is compared with frame t. Without, frame t with t - 1 (step), and t - 1 with t + 1 (skip):
    a frame stands out where its neighbours are nearer to each other than to it. Neighbours alone cannot expose
    ghosting, since a blend of both is near to both.

    Args:
        video, reference: files, or folders of images.
        fps: take the frames shown every 1/fps seconds after the first frame of each; None takes every frame, by number.
        on_length: "shortest" compares until the shorter one ends and says so; "error" refuses.
        worst: most worst frames that get a PNG of their own, worst first; all are listed.
        encoder, pooling, metrics, image_size, device, precision: as `pair_images`.
    Writes: frames.csv, frames.json, results.json, summary.json, report.html, worst_*.png.
    Raises:
        UsageError, DeviceError, EncoderError, OpenError, NoVideoStream, UnsupportedVideo, CorruptVideo, OutputError.
    Memory: a few frames of each video, the kept pictures, and a few numbers per frame.
    """
    started = time.perf_counter() if started is None else started
    timings = timings or Timings()
    _check(on_length, worst, metrics)
    lpips = Lpips() if "lpips" in metrics else None
    if isinstance(encoder, str):
        with timings.stage("load_encoder"):
            encoder = load_pair_encoder(encoder, image_size, device=device, precision=precision, offline=offline)
    sampling = Sampling("all") if fps is None else Sampling(fps=fps)
    source = dict(decoder=decoder, device=encoder.device, batch_size=BATCH_FRAMES)
    with OutputFolder(Path(output_dir)) as out, ExitStack() as stack:
        out.replaces(earlier_outputs(out.path / "summary.json", "frames.*", "worst_*.png"))
        with timings.stage("probe"):
            readers = [
                stack.enter_context(open_video(path, sampling, **source))
                for path in (video, reference)
                if path is not None
            ]
        notes = _alignment_notes(readers, fps, on_length)
        frames = min(len(reader.plan) for reader in readers)
        pixels = PixelMetrics(tuple(metrics), lpips, frames)
        compared = WithReference if reference is not None else Alone
        comparing = compared(encoder, readers, frames, worst, pooling, pixels, timings)
        for done in comparing.run():
            if progress:
                progress.advance("frames", done, frames)
        judged = comparing.judge()
        pair = _concluded(comparing, judged, readers, encoder, notes, out)
        pair.run.settings = {
            "fps": fps, "on_length": on_length, "image_size": list(encoder.preprocess.size), "pooling": pooling,
            "metrics": list(metrics), "worst": worst,
        }  # fmt: skip
        with timings.stage("report"):
            write_outputs(out, comparing, judged, pair, timings, started)
    return pair


def _check(on_length: str, worst: int, metrics: Sequence[str]) -> None:
    if on_length not in ("shortest", "error"):
        raise UsageError(f"on_length must be shortest or error, got {on_length!r}")
    if worst < 0:
        raise UsageError(f"worst must be 0 or more, got {worst}")
    check_metrics(metrics)


def _alignment_notes(readers: list[VideoReader], fps: float | None, on_length: str) -> list[str]:
    if len(readers) == 1:
        if len(readers[0].plan) < 2:
            raise UsageError(f"{readers[0].info.path}: holds one frame; without a reference two are needed")
        return []
    notes = []
    (one, other), (n, m) = (reader.info for reader in readers), (len(reader.plan) for reader in readers)
    if n != m:
        lengths = f"{one.path} has {n} frames, {other.path} {m}"
        if on_length == "error":
            raise UsageError(f"lengths must be equal: {lengths}; --on-length shortest compares the first {min(n, m)}")
        notes.append(f"{lengths}: the first {min(n, m)} were compared")
    if fps is None and not same_rate(one, other):
        notes.append(
            f"frame rates differ ({one.average_fps:.3f} and {other.average_fps:.3f}/s) and frames are compared by "
            "number; --fps compares them by time"
        )
    if one.display_size != other.display_size:
        sizes = ["{1}x{0}".format(*info.display_size) for info in (one, other)]
        notes.append(
            f"sizes differ ({sizes[0]}, {sizes[1]}): each was resized to the encoder's input, and the video to the "
            "reference for pixel metrics"
        )
    return notes


def usual_interval(info: VideoInfo) -> float:
    """Seconds from frame to frame, the median: gaps do not count."""
    return float(np.median(np.diff(info.pts_seconds))) if len(info.pts) > 1 else 1 / info.average_fps


def same_rate(a: VideoInfo, b: VideoInfo) -> bool:
    """To within 1 %: of the average, or of the usual interval where frames are missing; some containers round times."""
    average = a.average_fps / b.average_fps
    return min(abs(average - 1), abs(usual_interval(a) / usual_interval(b) - 1)) < 0.01


def _time_notes(comparing: WithReference) -> list[str]:
    """Frames compared with each other that the containers show at different times."""
    video, reference = (reader.info for reader in comparing.readers)
    half = min(usual_interval(video), usual_interval(reference)) / 2
    shifted = comparing.shifted()
    late = np.flatnonzero(np.abs(shifted) > half + 1e-6)
    notes = []
    if len(late) and same_rate(video, reference):
        row = late[0]
        notes.append(
            f"from frame {comparing.number[row]} on the containers show frames that were compared at times up to "
            f"{np.nanmax(np.abs(shifted)):.3f} s apart: frames may be missing from one of the videos; --fps compares "
            "by time"
        )
    starts = video.pts_seconds[0], reference.pts_seconds[0]
    if abs(starts[0] - starts[1]) > half:
        notes.append(
            f"the first frames, shown at {starts[0]:.3f} s and {starts[1]:.3f} s, were compared with each other"
        )
    return notes


def _concluded(
    comparing: Comparing,
    judged: Judged,
    readers: list[VideoReader],
    encoder: Encoder,
    notes: list[str],
    out: OutputFolder,
) -> VideoPair:
    curves = comparing.curves | comparing.pixels.values
    compared = int((comparing.number >= 0).sum())
    if not np.isfinite(comparing.curves["cosine_distance"]).any():
        raise CorruptVideo(readers[0].info.path, "no two frames that could be compared decode")
    for reader in readers:
        said = [*reader.info.notes]
        if reason := reader.report.fallback_reason:
            said.append(f"decoded with {reader.report.backend}: {reason}")
        notes += [f"{os.path.basename(reader.info.path)}: {note}" for note in said]
    if isinstance(comparing, WithReference):
        notes += _time_notes(comparing)
    if lost := comparing.frames - compared:
        notes.append(f"{lost} of {comparing.frames} frames could not be decoded and were not compared")
    if comparing.blank:
        notes.append(f"{comparing.blank} frames are black or without texture: their distances mean little")
    notes += encoder_notes(encoder)
    pictured = set([row for row in judged.rows.tolist() if row in comparing.shown][: comparing.worst])
    statistics = {name: stats for name, curve in curves.items() if (stats := _statistics(curve))}
    means = {name: stats["mean"] for name, stats in statistics.items() if name in ("psnr", "ssim", "lpips")}
    patch = "patch_distance" if "patch_distance" in curves else "step"
    result = VideoComparison(
        video=readers[0].info.path, reference=readers[1].info.path if len(readers) > 1 else None, frames=compared,
        judged=comparing.judged, cosine_distance=statistics["cosine_distance"]["mean"],
        patch_distance=statistics[patch]["mean"], **means, **comparing.flicker(),
        identical_frames=int(comparing.identical.sum()), statistics=statistics, notes=notes,
        worst_frames=[
            WorstFrame(
                frame=int(comparing.number[row]), time_seconds=float(comparing.seconds[row]),
                patch_distance=number(curves[patch][row]), cosine_distance=number(curves["cosine_distance"][row]),
                kind=kind,
                expected=float(judged.expected[row]),
                excess=float(curves[comparing.judged][row] - judged.expected[row]),
                **{name: number(values[row]) for name, values in comparing.pixels.values.items()},
                picture=overlay_name(rank, comparing.number[row]) if row in pictured else None,
            )
            for rank, (row, kind) in enumerate(zip(judged.rows.tolist(), judged.kinds, strict=True), 1)
        ],
    )  # fmt: skip
    names = ("video", "reference")
    run = VideoRun(
        status="partial" if lost else "complete",
        settings={}, encoder=encoder.describe(), notes=notes, output_dir=str(out.path),
        decoder={
            name: {"backend": reader.report.backend, "delivered": reader.report.delivered,
                   "expected": reader.report.expected, "corrupt": reader.report.corrupt,
                   "fallback_reason": reader.report.fallback_reason}
            for name, reader in zip(names, readers, strict=False)
        },
    )  # fmt: skip
    return VideoPair(results=[result], run=run)


def _statistics(curve: np.ndarray) -> dict[str, float]:
    known = curve[np.isfinite(curve)].astype(float)
    if not len(known):
        return {}
    p95 = float(np.percentile(known, 95))
    return {"mean": float(known.mean()), "median": float(np.median(known)), "p95": p95, "max": float(known.max())}
