"""A video against the true one, or against itself from frame to frame: a distance per frame, and what sticks out.

video ─┐
       ├─ frames side by side ─► pixel metrics ─► encoder input ─► encoder ─► distances ─► curves, worst frames, page
truth ─┘   (decode thread, a few frames at a time)                           (pictures of shown frames alone are kept)
"""

from __future__ import annotations

import csv
import heapq
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from vsim_fast import __version__
from vsim_fast.encode.base import Encoder
from vsim_fast.errors import CorruptVideo, EncoderError, UsageError
from vsim_fast.frame_pairs.curves import flicker_index, standing_out, sticking_out
from vsim_fast.frame_pairs.finish_worker import METRICS, check_metrics
from vsim_fast.frame_pairs.images import DEFAULT_METRICS, encoder_notes, load_pair_encoder
from vsim_fast.frame_pairs.reading import BATCH_FRAMES, equal_frames, native_rgb, positioned, rows, side_by_side
from vsim_fast.image_quality import Lpips, psnr, ssim
from vsim_fast.ops._threads import one_thread
from vsim_fast.pairs import Pooling, cosine_distance, pooled_embedding, pooled_patch_distance
from vsim_fast.pipeline import EncodedFrames, Timings
from vsim_fast.pipeline.encoding import encode_blocks
from vsim_fast.pipeline.frames import Block, InputFormat, prepare
from vsim_fast.pipeline.one import prefetch
from vsim_fast.records import FrameBatch, Progress
from vsim_fast.report import PairPage, thumbnail, write_overlay, write_pair_page
from vsim_fast.store import OutputFolder, output_errors
from vsim_fast.video import Sampling, VideoReader, open_video

SHOWN_FRAMES = 48
"""Frames over the whole video whose pictures the page has, worst ones apart."""
PICTURE_SIDE = 640
"""Pixels of the longer side of the pictures kept."""
SMALLEST_SSIM = 11
"""Pixels a side that SSIM's window needs."""
OnLength = Literal["shortest", "error"]
Names = tuple[str, ...]


class WorstFrame(BaseModel):
    """A frame that sticks out."""

    frame: int
    """Number in the video, from 0."""
    time_seconds: float
    patch_distance: float | None
    cosine_distance: float | None
    expected: float
    """Local level of the curve that was judged."""
    excess: float
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    picture: str | None = None
    """File name; the largest have one."""


class VideoComparison(BaseModel):
    """The entry of results.json."""

    video: str
    reference: str | None
    frames: int
    """Compared with the reference; without one, of the video."""
    judged: str
    """Curve on which flicker and worst frames go."""
    cosine_distance: float
    """Mean over the frames, as everything below but for the worst frames."""
    patch_distance: float
    psnr: float | None = None
    """Mean over the frames that differ; null where none does."""
    ssim: float | None = None
    lpips: float | None = None
    flicker_index: float
    """0 … 1: see `curves.flicker_index`."""
    identical_frames: int
    """Equal in every pixel: to the reference, or to the frame before."""
    worst_frames: list[WorstFrame]
    statistics: dict[str, dict[str, float]]
    """Of each curve: mean, median, p95, max."""
    notes: list[str]


class VideoRun(BaseModel):
    """What summary.json holds."""

    schema_version: int = 1
    vsim_fast: str = __version__
    status: Literal["complete", "partial"]
    """partial: frames could not be decoded."""
    settings: dict[str, Any]
    encoder: dict[str, Any]
    decoder: dict[str, dict[str, Any]]
    notes: list[str]
    output_dir: str
    outputs: list[str] = []
    timings: dict[str, float] = {}


class VideoPair(BaseModel):
    """The comparison and the run that made it."""

    results: list[VideoComparison]
    run: VideoRun

    def as_dict(self) -> dict[str, Any]:
        """{"results": what results.json holds, "run": what summary.json holds}."""
        return self.model_dump(mode="json")


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
        fps: take frames on a grid of 1/fps seconds of both; None takes every frame, by number.
        on_length: "shortest" compares until the shorter one ends and says so; "error" refuses.
        worst: most worst frames that get a picture; all are listed.
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
        with timings.stage("probe"):
            readers = [
                stack.enter_context(open_video(path, sampling, **source))
                for path in (video, reference)
                if path is not None
            ]
        notes = _alignment_notes(readers, fps, on_length)
        frames = min(len(reader.plan) for reader in readers)
        pixels = _PixelMetrics(tuple(metrics), lpips, frames)
        compared = _WithReference if reference is not None else _Alone
        comparing = compared(encoder, readers, frames, worst, pooling, pixels, timings)
        for done in comparing.run():
            if progress:
                progress.advance("frames", done, frames)
        pair = _concluded(comparing, readers, encoder, notes, out)
        pair.run.settings = {
            "fps": fps, "on_length": on_length, "image_size": list(encoder.preprocess.size), "pooling": pooling,
            "metrics": list(metrics), "worst": worst,
        }  # fmt: skip
        with timings.stage("report"):
            _write(out, comparing, pair, timings, started)
    return pair


class _PixelMetrics:
    """PSNR, SSIM, LPIPS of frames in their own size, by place; written by the decode thread."""

    def __init__(self, metrics: Names, lpips: Lpips | None, frames: int):
        self.values = {name: np.full(frames, np.nan) for name in METRICS if name in metrics}
        self._lpips = lpips

    def measure(self, places: np.ndarray, a: FrameBatch, b: FrameBatch) -> None:
        """Of a and b, whose pixels differ; a is resized to the size of b, the truth."""
        if not self.values:
            return
        size = b.info.display_size
        with one_thread():
            x, y = native_rgb(a, size), native_rgb(b, size)
            if "psnr" in self.values:
                found = psnr(x, y).cpu().numpy()
                self.values["psnr"][places] = np.where(np.isinf(found), np.nan, found)  # equal once resized
            if "ssim" in self.values and min(size) >= SMALLEST_SSIM:
                self.values["ssim"][places] = ssim(x, y).cpu().numpy()
            if "lpips" in self.values:
                self.values["lpips"][places] = self._lpips(x, y).cpu().numpy()

    def equal(self, places: np.ndarray) -> None:
        """Frames there have no difference to measure: their PSNR, infinite, stays NaN."""
        for name, value in (("ssim", 1.0), ("lpips", 0.0)):
            if name in self.values:
                self.values[name][places] = value


class _Kept(NamedTuple):
    """Pictures of a row that the page or a PNG may show."""

    pictures: dict[str, np.ndarray]
    """uint8 [h, w, 3] by name."""
    distances: np.ndarray
    """float32 [P] at each patch."""


@dataclass
class _Tokens:
    """Encoded frames whose partners have not come."""

    patches: Tensor
    """[b, P, D]"""
    embeddings: Tensor
    """float32 [b, D]"""
    pixels: Tensor
    """[b, 3, S, S], what the encoder saw."""
    places: np.ndarray
    """int64 [b]"""

    def take(self, index: Sequence[int] | np.ndarray) -> _Tokens:
        chosen = torch.as_tensor(np.asarray(index, dtype=np.int64))
        here = chosen.to(self.patches.device)
        return _Tokens(self.patches[here], self.embeddings[here], self.pixels[here], self.places[chosen.numpy()])

    @classmethod
    def join(cls, parts: Sequence[_Tokens]) -> _Tokens:
        tensors = (torch.cat([getattr(p, name) for p in parts]) for name in ("patches", "embeddings", "pixels"))
        return cls(*tensors, np.concatenate([p.places for p in parts]))


class _Comparing:
    """Decodes, encodes and compares; subclasses say what with what."""

    judged: ClassVar[str]
    """Curve on which worst frames go."""
    flickers: ClassVar[str]
    """Curve on which flicker goes."""
    picture_names: ClassVar[Names]
    labels: ClassVar[dict[str, str]]

    def __init__(
        self, encoder: Encoder, readers: list[VideoReader], frames: int, worst: int, pooling: Pooling,
        pixels: _PixelMetrics, timings: Timings,
    ):  # fmt: skip
        self.encoder, self.readers, self.frames, self.worst = encoder, readers, frames, worst
        self.pooling, self.pixels, self.timings = pooling, pixels, timings
        self.curves: dict[str, np.ndarray] = {}
        self.identical = np.zeros(frames, dtype=bool)
        """Equal in every pixel to the frame it is compared with; set by the decode thread before the frame is sent."""
        self.number = np.full(frames, -1)
        self.seconds = np.full(frames, np.nan)
        self.blank = 0
        self.shown: dict[int, _Kept] = {}
        self._even = set(np.linspace(0, frames - 1, min(frames, SHOWN_FRAMES)).astype(int).tolist())
        self._recent: deque[float] = deque(maxlen=31)
        self._largest: list[tuple[float, int]] = []  # heap of (excess over what came before, place)
        height, width = readers[0].info.display_size
        scale = PICTURE_SIDE / max(height, width)
        self._size = max(8, round(height * scale)), max(8, round(width * scale))

    def batches(self) -> Iterator[tuple[int, np.ndarray, FrameBatch]]:
        """(side, places, frames) in the order they are to be encoded; runs in the decode thread."""
        raise NotImplementedError

    def take(self, side: int, tokens: _Tokens) -> int:
        """Compare what can be. Returns the number of frames that are done."""
        raise NotImplementedError

    def run(self) -> Iterator[int]:
        encoder = self.encoder
        form = InputFormat(encoder.preprocess, encoder.dtype, encoder.device)

        def blocks() -> Iterator[Block]:
            sent: deque[tuple[int, np.ndarray]] = deque()

            def frames() -> Iterator[FrameBatch]:
                for side, places, batch in self.batches():
                    sent.append((side, places))
                    yield batch

            path = self.readers[0].info.path
            for block in prepare(frames(), form, self.timings, path=path):
                side, places = sent.popleft()
                yield replace(block, video=side, index=torch.from_numpy(places))

        with closing(prefetch(blocks)) as ahead:
            for block, encoded in encode_blocks(ahead, encoder, self.timings, pack=True):
                if isinstance(encoded, EncoderError):
                    raise encoded
                with self.timings.stage("compare"), one_thread(), torch.inference_mode():
                    done = self.take(block.video, self._tokens(encoded, block.video))
                yield done
        with one_thread(), torch.inference_mode():
            yield self.finish()

    def finish(self) -> int:
        return self.frames

    def _tokens(self, encoded: EncodedFrames, side: int) -> _Tokens:
        features = encoded.features
        places = encoded.index.numpy()
        if side == 0:
            self.seconds[places] = features.pts_seconds.numpy()
            self.blank += int(encoded.featureless.sum())
        token = features.cls if self.encoder.has_cls_token else None
        embeddings = pooled_embedding(features.patches, token, pooling=self.pooling)
        return _Tokens(features.patches, embeddings, encoded.pixels, places)

    def distances(self, a: _Tokens, b: _Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(pooled [b], patch [b], at each patch [b, P]) distances of rows of a and b."""
        local = cosine_distance(a.patches, b.patches)
        found = cosine_distance(a.embeddings, b.embeddings), pooled_patch_distance(local), local
        return tuple(x.float().cpu().numpy() for x in found)

    def consider(self, place: int, value: float, keep: Any) -> None:
        """Keep the pictures of a frame, which `keep()` makes, if it is among those shown or the worst so far."""
        usual = float(np.median(self._recent)) if self._recent else value
        self._recent.append(value)
        if self.worst and value > usual:
            if len(self._largest) < self.worst:
                heapq.heappush(self._largest, (value - usual, place))
            elif value - usual > self._largest[0][0]:
                dropped = heapq.heapreplace(self._largest, (value - usual, place))[1]
                if dropped not in self._even:
                    del self.shown[dropped]
            else:
                usual = np.inf
        if place in self._even or (self.worst and value > usual):
            self.shown[place] = keep()

    def picture(self, tokens: _Tokens, row: int) -> np.ndarray:
        return self.encoder.picture(tokens.pixels[row], self._size)

    @property
    def judged_curve(self) -> np.ndarray:
        return self.curves[self.judged]


class _WithReference(_Comparing):
    judged = flickers = "patch_distance"
    picture_names = ("video", "reference")
    labels: ClassVar[dict[str, str]] = {
        "patch_distance": "to the reference: quadratic mean over the patches at the same position",
        "cosine_distance": "to the reference: of the pooled embeddings",
        "psnr": "to the reference, dB, in its size; none where the pixels are equal",
        "ssim": "to the reference, in its size",
        "lpips": "to the reference, in its size",
    }

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.curves = {name: np.full(self.frames, np.nan) for name in ("patch_distance", "cosine_distance")}
        self._waiting: deque[_Tokens] = deque()

    def batches(self) -> Iterator[tuple[int, np.ndarray, FrameBatch]]:
        for places, a, b in side_by_side(*self.readers):
            same = equal_frames(a, b)
            self.identical[places] = same
            self.number[places] = a.index.numpy()
            if not same.all():
                with self.timings.stage("metrics"):
                    self.pixels.measure(places[~same], rows(a, ~same), rows(b, ~same))
            self.pixels.equal(places[same])
            yield 0, places, a
            if same.all():
                b.release()
            else:
                yield 1, places[~same], rows(b, ~same)

    def take(self, side: int, tokens: _Tokens) -> int:
        if side == 0:
            same = self.identical[tokens.places]
            if same.any():
                self._compared(*[tokens.take(np.flatnonzero(same))] * 2)
            if not same.all():
                self._waiting.append(tokens.take(np.flatnonzero(~same)))
            return int(tokens.places[-1])
        while len(tokens.places):  # parts of either side may end anywhere
            first = self._waiting[0]
            count = min(len(first.places), len(tokens.places))
            assert (first.places[:count] == tokens.places[:count]).all()
            self._compared(first.take(range(count)), tokens.take(range(count)))
            self._waiting.popleft()
            if count < len(first.places):
                self._waiting.appendleft(first.take(range(count, len(first.places))))
            tokens = tokens.take(range(count, len(tokens.places)))
        return int(first.places[-1])

    def _compared(self, a: _Tokens, b: _Tokens) -> None:
        pooled, patch, local = self.distances(a, b)
        self.curves["cosine_distance"][a.places], self.curves["patch_distance"][a.places] = pooled, patch
        for row, place in enumerate(a.places.tolist()):
            self.consider(
                place, float(patch[row]),
                lambda row=row: _Kept({"video": self.picture(a, row), "reference": self.picture(b, row)}, local[row]),
            )  # fmt: skip


class _Alone(_Comparing):
    judged, flickers = "stands_out", "step"
    picture_names = ("before", "frame", "after")
    labels: ClassVar[dict[str, str]] = {
        "stands_out": "how much nearer the frames before and after are to each other than to this one",
        "step": "patch distance to the frame before",
        "skip": "patch distance between the frames before and after",
        "cosine_distance": "to the frame before: of the pooled embeddings",
        "psnr": "to the frame before, dB; none where the pixels are equal",
        "ssim": "to the frame before",
        "lpips": "to the frame before",
    }

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        names = ("stands_out", "step", "skip", "cosine_distance")
        self.curves = {name: np.full(self.frames, np.nan) for name in names}
        self._tail: list[_Tokens] = []  # the last frames, at most two
        self._local: dict[int, np.ndarray] = {}

    def batches(self) -> Iterator[tuple[int, np.ndarray, FrameBatch]]:
        last: FrameBatch | None = None  # one frame
        last_place = -1
        for places, frames in positioned(self.readers[0]):
            self.number[places] = frames.index.numpy()
            self.seconds[places] = frames.pts_seconds.numpy()
            before = _before(last, frames)
            follows = np.diff(places, prepend=last_place) == 1  # not where frames were lost
            follows[0] &= last is not None
            same = follows & equal_frames(before, frames)
            if (differ := follows & ~same).any():
                with self.timings.stage("metrics"):
                    self.pixels.measure(places[differ], rows(frames, differ), rows(before, differ))
            self.pixels.equal(places[same])
            self.identical[places] = same
            last, last_place = _copied(rows(frames, _only(len(frames), -1))), places[-1]
            if same.all():
                frames.release()
            else:
                yield 0, places[~same], rows(frames, ~same)

    def take(self, side: int, tokens: _Tokens) -> int:
        for row in range(len(tokens.places)):
            self._next(tokens.take([row]))
        return int(tokens.places[-1])

    def _next(self, frame: _Tokens) -> None:
        """The next frame that is new; those between the last and it repeat the last."""
        while self._tail and self._tail[-1].places[0] + 1 < frame.places[0]:
            place = self._tail[-1].places[0] + 1
            if not self.identical[place]:
                break  # lost
            self._append(replace(self._tail[-1], places=np.array([place])))
        self._append(frame)

    def finish(self) -> int:
        while self._tail and (place := self._tail[-1].places[0] + 1) < self.frames and self.identical[place]:
            self._append(replace(self._tail[-1], places=np.array([place])))
        self.curves["stands_out"][:] = standing_out(self.curves["step"], self.curves["skip"])
        return self.frames

    def _append(self, frame: _Tokens) -> None:
        place = int(frame.places[0])
        if self._tail and self._tail[-1].places[0] + 1 == place:
            pooled, patch, local = self.distances(frame, self._tail[-1])
            self.curves["cosine_distance"][place], self.curves["step"][place] = pooled[0], patch[0]
            self._local[place] = local[0]
        else:
            self._tail.clear()  # frames were lost
        if len(self._tail) == 2:
            before, middle = self._tail
            skip = self.distances(before, frame)[1][0]
            step, after = self.curves["step"][place - 1], self.curves["step"][place]
            self.curves["skip"][place - 1] = skip
            trio = dict(zip(self.picture_names, (before, middle, frame), strict=True))
            local = self._local[place - 1]
            self.consider(
                place - 1, float((step + after) / 2 - skip),
                lambda: _Kept({name: self.picture(tokens, 0) for name, tokens in trio.items()}, local),
            )  # fmt: skip
        self._local = {key: value for key, value in self._local.items() if key >= place}
        self._tail = [*self._tail[-1:], frame]


def _only(count: int, row: int) -> np.ndarray:
    keep = np.zeros(count, dtype=bool)
    keep[row] = True
    return keep


def _copied(frame: FrameBatch) -> FrameBatch:
    """In memory of its own: the decoder's buffers are about to be handed back."""
    planes = {name: x.clone() for name in ("rgb", "y", "uv") if (x := getattr(frame, name)) is not None}
    return replace(frame, **planes, on_release=None)


def _before(last: FrameBatch | None, frames: FrameBatch) -> FrameBatch:
    """For each of `frames` the one before it, `last` before the first; without `last` the first is before itself."""
    first = rows(frames, _only(len(frames), 0)) if last is None else last
    names = [name for name in ("rgb", "y", "uv", "pts_seconds", "index") if getattr(frames, name) is not None]
    return replace(frames, **{name: torch.cat([getattr(first, name), getattr(frames, name)[:-1]]) for name in names})


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
    rates = one.average_fps, other.average_fps
    if fps is None and abs(rates[0] - rates[1]) > 0.01 * max(rates):
        notes.append(
            f"frame rates differ ({rates[0]:.3f} and {rates[1]:.3f}/s) and frames are compared by number; "
            f"--fps compares them by time"
        )
    if one.display_size != other.display_size:
        sizes = ["{1}x{0}".format(*info.display_size) for info in (one, other)]
        notes.append(
            f"sizes differ ({sizes[0]}, {sizes[1]}): each was resized to the encoder's input, and the video to the "
            "reference for pixel metrics"
        )
    return notes


def _concluded(
    comparing: _Comparing, readers: list[VideoReader], encoder: Encoder, notes: list[str], out: OutputFolder
) -> VideoPair:
    curves = comparing.curves | comparing.pixels.values
    compared = int((comparing.number >= 0).sum())
    if not np.isfinite(comparing.curves["cosine_distance"]).any():
        raise CorruptVideo(readers[0].info.path, "no two frames that could be compared decode")
    worst, level = sticking_out(comparing.judged_curve)
    for reader in readers:
        notes += [
            f"{os.path.basename(reader.info.path)}: {note}" for note in (*reader.info.notes, *reader.report.notes())
        ]
    if comparing.blank:
        notes.append(f"{comparing.blank} frames are black or without texture: their distances mean little")
    notes += encoder_notes(encoder)
    statistics = {name: stats for name, curve in curves.items() if (stats := _statistics(curve))}
    means = {name: stats["mean"] for name, stats in statistics.items() if name in ("psnr", "ssim", "lpips")}
    patch = "patch_distance" if "patch_distance" in curves else "step"
    result = VideoComparison(
        video=readers[0].info.path, reference=readers[1].info.path if len(readers) > 1 else None, frames=compared,
        judged=comparing.judged, cosine_distance=statistics["cosine_distance"]["mean"],
        patch_distance=statistics[patch]["mean"], **means, flicker_index=flicker_index(curves[comparing.flickers]),
        identical_frames=int(comparing.identical.sum()), statistics=statistics, notes=notes,
        worst_frames=[
            WorstFrame(
                frame=int(comparing.number[row]), time_seconds=float(comparing.seconds[row]),
                patch_distance=_number(curves[patch][row]), cosine_distance=_number(curves["cosine_distance"][row]),
                expected=float(level[row]), excess=float(comparing.judged_curve[row] - level[row]),
                **{name: _number(values[row]) for name, values in comparing.pixels.values.items()},
                picture=_overlay_name(rank, comparing.number[row]) if row in comparing.shown else None,
            )
            for rank, row in enumerate(worst.tolist(), 1)
        ],
    )  # fmt: skip
    names = ("video", "reference")
    run = VideoRun(
        status="partial" if any(reader.report.lost for reader in readers) else "complete",
        settings={}, encoder=encoder.describe(), notes=notes, output_dir=str(out.path),
        decoder={
            name: {"backend": reader.report.backend, "delivered": reader.report.delivered,
                   "expected": reader.report.expected, "corrupt": reader.report.corrupt,
                   "fallback_reason": reader.report.fallback_reason}
            for name, reader in zip(names, readers, strict=False)
        },
    )  # fmt: skip
    return VideoPair(results=[result], run=run)


def _write(out: OutputFolder, comparing: _Comparing, pair: VideoPair, timings: Timings, started: float) -> None:
    (result,), curves = pair.results, comparing.curves | comparing.pixels.values
    worst, level = sticking_out(comparing.judged_curve)
    rates = comparing.seconds
    table = {"frame": comparing.number, "time_seconds": rates, **curves, "expected": level}
    stick_out = np.isin(np.arange(comparing.frames), worst)
    with output_errors(out.path):
        with open(out.file("frames.csv"), "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*table, "sticks_out"])
            for row in np.flatnonzero(comparing.number >= 0).tolist():
                writer.writerow([*(_cell(column[row]) for column in table.values()), int(stick_out[row])])
        known = comparing.number >= 0
        columns = {name: [_number(value) for value in column[known]] for name, column in table.items()}
        columns["frame"] = comparing.number[known].tolist()
        out.file("frames.json").write_text(
            json.dumps(columns | {"sticks_out": stick_out[known].tolist()}, allow_nan=False), encoding="utf-8"
        )
        content = [result.model_dump(mode="json") for result in pair.results]
        out.file("results.json").write_text(json.dumps(content, indent=2, allow_nan=False), encoding="utf-8")
    grid = comparing.encoder.grid
    for rank, row in enumerate(worst.tolist(), 1):
        if (kept := comparing.shown.get(row)) is not None:
            frame = kept.pictures["video" if "video" in kept.pictures else "frame"]
            distance = result.worst_frames[rank - 1].patch_distance
            title = f"frame {comparing.number[row]}, {rates[row]:.2f} s: patch distance {distance:.3f}"
            write_overlay(
                out.file(_overlay_name(rank, comparing.number[row])), frame, kept.distances.reshape(grid),
                vmax=1.0, title=title, reference=kept.pictures.get("reference", kept.pictures.get("before")),
            )  # fmt: skip
    shown = sorted(comparing.shown)
    pair.run.timings = timings.summary(started)
    facts: dict[str, Any] = {
        name: {"path": reader.info.path, "size": "{1} x {0}".format(*reader.info.display_size),
               "codec": reader.info.codec, "frames": len(reader.info.pts), "frames per second": reader.info.average_fps}
        for name, reader in zip(("video", "reference"), comparing.readers, strict=False)
    }  # fmt: skip
    page = PairPage(
        title=os.path.basename(comparing.readers[0].info.path), verdict=verdict(result),
        notes=[note for note in pair.run.notes if "random weights" not in note],
        random_weights=comparing.encoder.random_weights,
        facts=facts | {"settings": pair.run.settings, "encoder": pair.run.encoder, "decoder": pair.run.decoder,
                       "seconds": pair.run.timings},
        frames=comparing.number, times=rates, curves=_ordered(curves, comparing.judged),
        labels=comparing.labels, worst=worst.tolist(), expected=level, shown=shown,
        pictures={
            name: [thumbnail(comparing.shown[row].pictures[name]) for row in shown] for name in comparing.picture_names
        },
        maps=np.stack([comparing.shown[row].distances.reshape(grid) for row in shown]) if shown else None,
    )  # fmt: skip
    write_pair_page(out.file("report.html"), page)
    path = out.file("summary.json")
    pair.run.outputs = out.names.copy()
    with output_errors(path):
        path.write_text(pair.run.model_dump_json(indent=2), encoding="utf-8")


def verdict(result: VideoComparison) -> str:
    """What was found, in a sentence or two."""
    against = f" compared with {os.path.basename(result.reference)}" if result.reference else ""
    if result.reference and result.identical_frames == result.frames:
        return f"{result.frames} frames{against}: all equal in every pixel."
    curve = result.statistics["patch_distance" if result.reference else "step"]
    what = "Patch distance" if result.reference else "Patch distance from frame to frame"
    count = len(result.worst_frames)
    stand = "no frame sticks out"
    if count:
        first = result.worst_frames[0]
        stand = f"{count} {'frame sticks' if count == 1 else 'frames stick'} out, most of all {first.frame}"
        stand += f" at {first.time_seconds:.2f} s"
    return (
        f"{result.frames} frames{against}. {what} {curve['mean']:.4f} on average, at most {curve['max']:.4f}; "
        f"{stand}; flicker index {result.flicker_index:.2f}."
    )


def _ordered(curves: dict[str, np.ndarray], first: str) -> dict[str, np.ndarray]:
    return {first: curves[first]} | {name: curve for name, curve in curves.items() if np.isfinite(curve).any()}


def _overlay_name(rank: int, frame: int) -> str:
    return f"worst_{rank:03d}_frame_{frame:06d}.png"


def _statistics(curve: np.ndarray) -> dict[str, float]:
    known = curve[np.isfinite(curve)].astype(float)
    if not len(known):
        return {}
    p95 = float(np.percentile(known, 95))
    return {"mean": float(known.mean()), "median": float(np.median(known)), "p95": p95, "max": float(known.max())}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _cell(value: float) -> str | int:
    return int(value) if isinstance(value, np.integer) else f"{value:.6g}" if np.isfinite(value) else ""
