"""`vsim compare`: do two videos show the same motion? Every fingerprint score, their fusion, which second is which."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor

from vsim_fast import __version__
from vsim_fast.alignment import Alignment, Motion, align, frame_descriptors, motion, thumbnail_descriptors
from vsim_fast.encode import load_encoder
from vsim_fast.encode.base import Encoder
from vsim_fast.errors import CorruptVideo, DecodeError, UnsupportedVideo, UsageError
from vsim_fast.fingerprints import (
    DerivativeFingerprint,
    DTWTrajectoryMatcher,
    MotionFingerprint,
    MultiScaleDerivativeFingerprint,
    MultiScaleFingerprint,
    TemporalDerivativeFingerprint,
    TrajectoryFingerprint,
)
from vsim_fast.frame_encoder import frame_centroids, frame_embeddings
from vsim_fast.inputs import VIDEO_SUFFIXES
from vsim_fast.pipeline import Timings, encode_video
from vsim_fast.records import Progress, VideoInfo
from vsim_fast.report import Second, write_alignment
from vsim_fast.store import OutputFolder, output_errors
from vsim_fast.video import DecodeReport, Sampling, open_video, plan, probe

DERIVATIVE = TemporalDerivativeFingerprint()
MULTISCALE = MultiScaleDerivativeFingerprint(window_sizes=(1, 5, 15))
TRAJECTORY, COURSE = TrajectoryFingerprint(), DTWTrajectoryMatcher()
ALPHA = 0.3
"""Weight of the semantic score in the fusion."""
MOTION_THRESHOLD = 0.65
"""Fusion from which two videos show the same motion."""
CONTENT_THRESHOLD = 0.6
"""Semantic score from which two videos show the same content."""
STILL = 0.02
"""Motion under which a video has no order to compare: compression noise stays below 0.013, slow motion above 0.035."""
CLEAR_ORDER = 0.35
"""Distance of `order` from 0.5 that noise does not reach; where motion is not steady, order must speak for itself."""
THUMBNAILS, THUMBNAIL_HEIGHT = 512, 72

Verdict = Literal[
    "same motion", "same content, different motion or order", "same content, no motion to judge", "different"
]


class Video(BaseModel):
    """What was read of one video."""

    path: str
    frames: int
    duration_seconds: float
    average_fps: float
    pts_seconds: list[float]
    motion: Motion
    """How far it is from its own reverse: steadily, and in all; see STILL."""
    featureless_frames: list[int]
    decoder: dict[str, Any]
    notes: list[str]


class Comparison(BaseModel):
    """What comparison.json holds."""

    schema_version: int = 1
    vsim_fast: str = __version__
    status: Literal["complete", "partial"]
    """partial: frames that were planned could not be decoded; see the videos' `decoder`."""
    video1: Video
    video2: Video
    scores: dict[str, float]
    """temporal_derivative, multiscale_derivative, trajectory_stats, trajectory_dtw, semantic_baseline, order, match."""
    order_judged: bool
    """False: neither video moves, or both look the same backwards; the fusion is then the semantic score alone."""
    nonsemantic: float | None
    """2 · order - 1, at least 0: the part of the fusion that knows about time."""
    alpha: float
    fusion: float
    threshold: float
    content_threshold: float
    verdict: Verdict
    rule: str
    """The verdict's reason, with its thresholds."""
    path: list[tuple[int, int]]
    """Sampled frames of video 1 and video 2 that belong together; their times are the videos' `pts_seconds`."""
    seconds: list[dict[str, Any]]
    """For each second of video 1 what it is matched to, fields of `report.Second`."""
    settings: dict[str, Any]
    encoder: dict[str, Any]
    notes: list[str]
    output_dir: str | None = None
    outputs: dict[str, int] = {}
    """File name -> bytes."""
    timings: dict[str, float] = {}


class Failure(BaseModel):
    """A video that could not be read."""

    path: str
    error: str


class Pair(BaseModel):
    """Two videos of a folder; fields as in `Comparison`."""

    video1: str
    """Path, as in `FolderComparison.videos`."""
    video2: str
    scores: dict[str, float]
    order_judged: bool
    nonsemantic: float | None
    fusion: float
    verdict: Verdict
    rule: str


class FolderComparison(BaseModel):
    """All pairs of a folder; what comparison.json then holds."""

    schema_version: int = 1
    vsim_fast: str = __version__
    status: Literal["complete", "partial"]
    """partial: a video could not be read, or frames of one that were planned."""
    videos: list[Video]
    pairs: list[Pair]
    failed: list[Failure]
    alpha: float
    threshold: float
    content_threshold: float
    settings: dict[str, Any]
    encoder: dict[str, Any]
    notes: list[str]
    output_dir: str | None = None
    timings: dict[str, float] = {}


@dataclass(frozen=True)
class Clip:
    """Everything that comparing needs of one video."""

    info: VideoInfo
    report: DecodeReport
    pts_seconds: list[float]
    embeddings: Tensor
    """float32 [T, D], of length 1, on the CPU."""
    centroids: Tensor
    """float32 [T, 2], x and y in 0..1, on the CPU."""
    descriptors: Tensor
    """float32 [T, D'], see `frame_descriptors`, on the encoder's device."""
    motion: Motion
    derivative: DerivativeFingerprint
    multiscale: MultiScaleFingerprint
    trajectory: MotionFingerprint
    featureless: list[int]
    thumbnails: list[np.ndarray]
    """uint8 [h, w, 3] of every `thumbnail_step`-th frame, or none."""
    thumbnail_step: int

    @property
    def shown(self) -> list[int]:
        """Frames that show something: all that are not featureless, or all where none is."""
        return _shown(len(self.pts_seconds), self.featureless)

    @property
    def times(self) -> np.ndarray:
        """Seconds of the shown frames after the first frame of all."""
        return np.asarray(self.pts_seconds)[self.shown] - self.pts_seconds[0]

    def thumbnail(self, frame: int) -> np.ndarray:
        return self.thumbnails[min(round(frame / self.thumbnail_step), len(self.thumbnails) - 1)]


def read_clip(
    path: str | Path,
    encoder: Encoder,
    settings: dict[str, Any],
    *,
    decoder: Literal["auto", "pyav", "nvdec"] = "auto",
    with_thumbnails: bool = False,
    label: str = "frames",
    progress: Progress | None = None,
    timings: Timings | None = None,
) -> Clip:
    """Decode and encode one video once.

    Raises:
        UnsupportedVideo: fewer than two frames are sampled, so that nothing can move.  DecodeError as the reader's.
    """
    timings = timings or Timings()
    sampling = _sampling(settings)
    with timings.stage("probe"):
        info, planned = _planned(path, sampling)
    rows: dict[str, list[Tensor]] = {"embeddings": [], "centroids": [], "descriptors": []}
    pictures: list[Tensor] = []
    pts, featureless, thumbnails = [], [], []
    step = -(-planned // THUMBNAILS)
    height, width = info.display_size
    thumbnail_size = (THUMBNAIL_HEIGHT, round(THUMBNAIL_HEIGHT * width / height))
    source = dict(decoder=decoder, device=encoder.device, batch_size=encoder.batch_size)
    with open_video(path, sampling, **source) as reader, closing(encode_video(reader, encoder, timings)) as batches:
        for batch in batches:
            features, first = batch.features, len(pts)
            with timings.stage("descriptors"), torch.inference_mode():
                rows["embeddings"].append(F.normalize(frame_embeddings(features), dim=1).cpu())
                rows["centroids"].append(frame_centroids(features).cpu())
                rows["descriptors"].append(frame_descriptors(features))
                pictures.append(thumbnail_descriptors(batch.pixels))
                for row in range(-first % step, len(features.pts_seconds) if with_thumbnails else 0, step):
                    thumbnails.append(encoder.picture(batch.pixels[row], thumbnail_size))
            pts += features.pts_seconds.tolist()
            featureless += [first + i for i, flag in enumerate(batch.featureless.tolist()) if flag]
            if progress:
                progress.advance(label, len(pts), planned)
    if not pts:
        raise CorruptVideo(info.path, f"none of the {planned} planned frames decodes")
    _require_two(info, len(pts), sampling)
    tensors = {name: torch.cat(parts) for name, parts in rows.items()}
    with timings.stage("align"):
        moved = motion(torch.cat(pictures)[_shown(len(pts), featureless)])
    with timings.stage("scores"):
        derivative, multiscale = (kind.compute(tensors["embeddings"]) for kind in (DERIVATIVE, MULTISCALE))
        trajectory = TRAJECTORY.compute(tensors["centroids"])
    return Clip(
        info, reader.report, pts, **tensors, motion=moved, derivative=derivative, multiscale=multiscale,
        trajectory=trajectory, featureless=featureless, thumbnails=thumbnails, thumbnail_step=step,
    )  # fmt: skip


def scores(a: Clip, b: Clip, alignment: Alignment) -> dict[str, float]:
    """Every score of two clips. The first four and the last two lie in 0..1, the semantic one in -1..1.

    temporal_derivative, multiscale_derivative: how the embedding changes from frame to frame, at one and at several
        distances.  trajectory_stats, trajectory_dtw: statistics, and the course, of the path that the centre of
        attention takes.  semantic_baseline: cosine of the mean embeddings, blind to order.  order, match: see
        `Alignment`.
    """
    means = [clip.embeddings.mean(0) for clip in (a, b)]
    return {
        "temporal_derivative": DERIVATIVE.compare(a.derivative, b.derivative),
        "multiscale_derivative": MULTISCALE.compare(a.multiscale, b.multiscale),
        "trajectory_stats": TRAJECTORY.compare(a.trajectory, b.trajectory),
        "trajectory_dtw": COURSE.compare(a.centroids, b.centroids),
        "semantic_baseline": float(F.cosine_similarity(*means, dim=0)),
        "order": alignment.order,
        "match": alignment.match,
    }


@dataclass(frozen=True)
class Judgement:
    """Scores to a verdict."""

    order_judged: bool
    nonsemantic: float | None
    fusion: float
    verdict: Verdict
    rule: str


def judge(
    semantic: float,
    order: float,
    *,
    order_judged: bool,
    alpha: float = ALPHA,
    threshold: float = MOTION_THRESHOLD,
    content_threshold: float = CONTENT_THRESHOLD,
) -> Judgement:
    """Fusion α · semantic + (1 - α) · nonsemantic, and what it means.

    nonsemantic = 2 · order - 1, at least 0: reversed and unrelated motion both count as none in common. Where neither
    video has an order to compare, the semantic score decides alone and the verdict says so.
    """
    semantic = min(1.0, max(0.0, semantic))
    same_content = semantic >= content_threshold
    content = f"semantic {semantic:.2f} {'>=' if same_content else '<'} {content_threshold:g}"
    if not order_judged:
        verdict: Verdict = "same content, no motion to judge" if same_content else "different"
        return Judgement(False, None, semantic, verdict, f"{content}; neither video has an order that could be told")
    nonsemantic = max(0.0, 2 * order - 1)
    fusion = alpha * semantic + (1 - alpha) * nonsemantic
    if fusion >= threshold:
        return Judgement(True, nonsemantic, fusion, "same motion", f"fusion {fusion:.2f} >= {threshold:g}")
    verdict = "same content, different motion or order" if same_content else "different"
    return Judgement(True, nonsemantic, fusion, verdict, f"fusion {fusion:.2f} < {threshold:g}, {content}")


def compare(
    video1: str | Path,
    video2: str | Path,
    encoder: str | Encoder = "builtin",
    *,
    output_dir: str | Path | None = None,
    fps: float = 10.0,
    sample_rate: int | None = None,
    max_frames: int = 300,
    image_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    execution: str = "eager",
    decoder: Literal["auto", "pyav", "nvdec"] = "auto",
    alpha: float = ALPHA,
    threshold: float = MOTION_THRESHOLD,
    offline: bool = False,
    progress: Progress | None = None,
    timings: Timings | None = None,
    started: float | None = None,
) -> Comparison:
    """Do two videos show the same motion, in the same order?

    Args:
        video1, video2: files.
        encoder: spec, or an encoder made by `load_encoder` (size, device, precision and execution are then its own).
        output_dir: where comparison.json and alignment.png go; None writes nothing.
        fps, max_frames: frames on a grid of 1/fps seconds; if more than `max_frames`, evenly spaced ones of them. A
            time grid makes different frame rates comparable; a difference in speed is taken up by the alignment.
        sample_rate: every n-th frame instead of the grid.
        image_size: pixels per side of the encoder's input; None takes the model's own.
        alpha: weight of the semantic score in the fusion, 0..1.
        threshold: fusion from which the verdict is "same motion".
        progress: called as work is done.  timings, started: account for what the caller did before.
    Returns:
        The comparison. "same motion" says that both videos show the same changes at the same places in the same order;
        it is a statement about one recording and its copies, not about two performances of one gesture.
    Raises:
        UsageError, DeviceError, EncoderError, OutputError, and DecodeError for a video that cannot be read or gives
        fewer than two frames.
    """
    started = time.perf_counter() if started is None else started
    timings = timings or Timings()
    settings = compare_settings(fps, sample_rate, max_frames, alpha, threshold)
    with timings.stage("probe"):
        for path in (video1, video2):  # a bad second video is told before the first is read
            _planned(path, _sampling(settings))
    encoder = _loaded(
        encoder, timings, device=device, precision=precision, execution=execution, image_size=image_size,
        offline=offline,
    )  # fmt: skip
    options: dict[str, Any] = dict(decoder=decoder, with_thumbnails=output_dir is not None, progress=progress)
    clips = [
        read_clip(path, encoder, settings, label=label, timings=timings, **options)
        for path, label in ((video1, "video 1"), (video2, "video 2"))
    ]
    comparison, alignment = compare_clips(*clips, encoder, settings, timings)
    if output_dir is None:
        return _timed(comparison, timings, started)
    with OutputFolder(Path(output_dir)) as out:
        with timings.stage("pictures"):
            _draw(out.file("alignment.png"), comparison, clips, alignment)
        comparison.output_dir = printable(out.path)
        comparison.outputs = {name: (out.partial / name).stat().st_size for name in out.names}
        _write_json(out, _timed(comparison, timings, started))
    return comparison


def compare_folder(
    folder: str | Path,
    encoder: str | Encoder = "builtin",
    *,
    output_dir: str | Path | None = None,
    fps: float = 10.0,
    sample_rate: int | None = None,
    max_frames: int = 300,
    image_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    execution: str = "eager",
    decoder: Literal["auto", "pyav", "nvdec"] = "auto",
    alpha: float = ALPHA,
    threshold: float = MOTION_THRESHOLD,
    offline: bool = False,
    progress: Progress | None = None,
    timings: Timings | None = None,
    started: float | None = None,
) -> FolderComparison:
    """`compare` for every pair of the videos in a folder (by the suffixes of `inputs.VIDEO_SUFFIXES`), each read once.

    A video that cannot be read is recorded in `failed`, and the others are compared.

    Raises:
        UsageError: not a folder, or fewer than two such files.  CorruptVideo: fewer than two of them can be read.
    """
    started = time.perf_counter() if started is None else started
    timings = timings or Timings()
    settings = compare_settings(fps, sample_rate, max_frames, alpha, threshold)
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    if len(paths) < 2:
        what = f"{len(paths)} of them" if folder.is_dir() else "no such folder"
        kinds = ", ".join(f"*{suffix}" for suffix in VIDEO_SUFFIXES)
        raise UsageError(f"video_dir must hold at least 2 videos ({kinds}), got {printable(folder)!r}: {what}")
    encoder = _loaded(
        encoder, timings, device=device, precision=precision, execution=execution, image_size=image_size,
        offline=offline,
    )  # fmt: skip
    clips, failed = [], []
    for n, path in enumerate(paths, 1):
        label = f"video {n} of {len(paths)}"
        try:
            clips.append(
                read_clip(path, encoder, settings, decoder=decoder, label=label, progress=progress, timings=timings)
            )
        except DecodeError as error:
            failed.append(Failure(path=printable(path), error=str(error)))
    if len(clips) < 2:
        raise CorruptVideo(folder, f"{len(clips)} of {len(paths)} videos can be read; {failed[0].error}")
    pairs = []
    for a, b in combinations(clips, 2):
        values, judgement, _ = _judged(a, b, settings, timings)
        names = {"video1": printable(a.info.path), "video2": printable(b.info.path)}
        pairs.append(Pair(**names, scores=values, **asdict(judgement)))
        if progress:
            progress.advance("pairs", len(pairs), len(clips) * (len(clips) - 1) // 2)
    whole = not failed and not any(clip.report.lost for clip in clips)
    result = FolderComparison(
        status="complete" if whole else "partial", videos=[_described(clip) for clip in clips], pairs=pairs,
        failed=failed, **_thresholds(settings), settings=settings, encoder=encoder.describe(),
        notes=encoder.threshold_warnings(),
    )  # fmt: skip
    if output_dir is not None:
        with OutputFolder(Path(output_dir)) as out:
            result.output_dir = printable(out.path)
            _write_json(out, _timed(result, timings, started))
        return result
    return _timed(result, timings, started)


def compare_clips(
    a: Clip, b: Clip, encoder: Encoder, settings: dict[str, Any], timings: Timings
) -> tuple[Comparison, Alignment]:
    """Two clips read with one encoder."""
    values, judgement, alignment = _judged(a, b, settings, timings)
    comparison = Comparison(
        status="partial" if a.report.lost or b.report.lost else "complete",
        video1=_described(a),
        video2=_described(b),
        scores=values,
        **asdict(judgement),
        **_thresholds(settings),
        path=[(a.shown[i], b.shown[j]) for i, j in alignment.path.tolist()],
        seconds=[row._asdict() for row in seconds(alignment, a.times, b.times)],
        settings=settings,
        encoder=encoder.describe(),
        notes=encoder.threshold_warnings()
        + [f"video {n}: {note}" for n, clip in enumerate((a, b), 1) for note in _notes(clip)],
    )
    return comparison, alignment


def _judged(
    a: Clip, b: Clip, settings: dict[str, Any], timings: Timings
) -> tuple[dict[str, float], Judgement, Alignment]:
    with timings.stage("align"):
        alignment = align(a.descriptors[a.shown], b.descriptors[b.shown])
    with timings.stage("scores"):
        values = {name: round(value, 6) for name, value in scores(a, b, alignment).items()}
    judgement = judge(
        values["semantic_baseline"], alignment.order, order_judged=_has_order(a, b, alignment), **_thresholds(settings)
    )
    return values, judgement, alignment


def _thresholds(settings: dict[str, Any]) -> dict[str, float]:
    return {name: settings[name] for name in ("alpha", "threshold", "content_threshold")}


def _has_order(a: Clip, b: Clip, alignment: Alignment) -> bool:
    if max(a.motion.steady, b.motion.steady) >= STILL:
        return True
    return max(a.motion.total, b.motion.total) >= STILL and abs(alignment.order - 0.5) >= CLEAR_ORDER


def seconds(alignment: Alignment, times1: np.ndarray, times2: np.ndarray) -> list[Second]:
    """Which part of video 2 each second of video 1 is matched to; seconds without an aligned frame are left out."""
    i, j = alignment.path.numpy().T
    second, matched, costs = np.floor(times1[i] + 1e-6).astype(int), times2[j], alignment.cost.numpy()[i, j]
    rows = []
    for n in np.unique(second).tolist():
        part, cost = matched[second == n], float(costs[second == n].mean())
        rows.append(Second(n, round(float(part.min()), 3), round(float(part.max()), 3), round(cost, 4)))
    return rows


def _shown(frames: int, featureless: list[int]) -> list[int]:
    """What is aligned: black and featureless frames match everything."""
    left = sorted(set(range(frames)) - set(featureless))
    return left if len(left) >= 2 else list(range(frames))


def printable(path: str | Path) -> str:
    """A file name may hold bytes that are no text; JSON takes text."""
    return os.fsencode(path).decode(errors="replace")


def compare_settings(
    fps: float = 10.0,
    sample_rate: int | None = None,
    max_frames: int = 300,
    alpha: float = ALPHA,
    threshold: float = MOTION_THRESHOLD,
) -> dict[str, Any]:
    """Checked arguments of `compare`, as its result records them."""
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha must be in 0..1, got {alpha}")
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold must be in 0..1, got {threshold}")
    if max_frames < 2:
        raise UsageError(f"max_frames must be 2 or more, got {max_frames}")
    if sample_rate is not None and not sample_rate >= 1:
        raise UsageError(f"sample_rate must be 1 or more, got {sample_rate}")
    settings = {
        "fps": None if sample_rate else fps, "sample_rate": sample_rate, "max_frames": max_frames, "alpha": alpha,
        "threshold": threshold, "content_threshold": CONTENT_THRESHOLD,
    }  # fmt: skip
    _sampling(settings)
    return settings


def _sampling(settings: dict[str, Any]) -> Sampling:
    if settings["sample_rate"] is not None:
        return Sampling("stride", stride=settings["sample_rate"], max_frames=settings["max_frames"])
    return Sampling(fps=settings["fps"], max_frames=settings["max_frames"])


def _loaded(encoder: str | Encoder, timings: Timings, **options: Any) -> Encoder:
    if not isinstance(encoder, str):
        return encoder
    with timings.stage("load_encoder"):
        return load_encoder(encoder, **options)


def _planned(path: str | Path, sampling: Sampling) -> tuple[VideoInfo, int]:
    """The video, and how many frames will be taken of it."""
    info = probe(path)
    count = len(plan(info, sampling))
    _require_two(info, count, sampling)
    return info, count


def _require_two(info: VideoInfo, frames: int, sampling: Sampling) -> None:
    if frames < 2:
        how = f"{sampling.fps:g} fps" if sampling.fps else f"every {sampling.stride}th frame"
        cure = "nothing can move in one frame" if len(info.pts) < 2 else "take more of them"
        raise UnsupportedVideo(
            info.path, f"compare needs at least 2 sampled frames, got {frames} of {len(info.pts)} ({how}); {cure}"
        )


def _described(clip: Clip) -> Video:
    info = clip.info
    return Video(
        path=printable(info.path), frames=len(clip.pts_seconds), duration_seconds=round(info.duration_seconds, 6),
        average_fps=info.average_fps, pts_seconds=clip.pts_seconds, motion=clip.motion,
        featureless_frames=clip.featureless, decoder=asdict(clip.report), notes=_notes(clip),
    )  # fmt: skip


def _notes(clip: Clip) -> list[str]:
    notes = [*clip.info.notes, *clip.report.notes()]
    if clip.featureless:
        notes.append(f"{len(clip.featureless)} of {len(clip.pts_seconds)} frames are black or featureless, not aligned")
    if clip.motion.steady < STILL:
        steady = f"{clip.motion.steady:.3f} < {STILL}"
        notes.append(f"no steady motion, or the same backwards ({steady}): its order cannot be judged")
    return notes


def _draw(path: Path, comparison: Comparison, clips: Sequence[Clip], alignment: Alignment) -> None:
    write_alignment(
        path,
        cost=alignment.cost.numpy(),
        path_cells=alignment.path.numpy(),
        times=[clip.times for clip in clips],
        seconds=[Second(**row) for row in comparison.seconds],
        names=[Path(video.path).name for video in (comparison.video1, comparison.video2)],
        title=f"{comparison.verdict}: {comparison.rule}",
        thumbnails=[lambda frame, clip=clip: clip.thumbnail(clip.shown[frame]) for clip in clips],
    )


def _timed(result: Any, timings: Timings, started: float) -> Any:
    result.timings = timings.summary(started)
    return result


def _write_json(out: OutputFolder, result: BaseModel) -> None:
    path = out.file("comparison.json")
    with output_errors(path):
        path.write_text(result.model_dump_json(indent=2), encoding="utf-8")
