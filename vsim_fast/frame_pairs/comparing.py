"""Frames of a video compared as they are decoded: with the same frames of a reference, or with those around them."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsim_fast.encode.base import Encoder
from vsim_fast.errors import EncoderError
from vsim_fast.frame_pairs.curves import (
    flicker_index,
    largest,
    like_a_blend,
    neighbour_flicker,
    standing_out,
    sticking_out,
)
from vsim_fast.frame_pairs.images import frame_embeddings
from vsim_fast.frame_pairs.metrics import METRICS, SMALLEST_LPIPS, SMALLEST_SSIM
from vsim_fast.frame_pairs.reading import equal_frames, native_pair, positioned, rows, side_by_side
from vsim_fast.frame_pairs.video_records import Kind
from vsim_fast.image_quality import Lpips, psnr, ssim
from vsim_fast.ops._threads import one_thread
from vsim_fast.pairs import Pooling, cosine_distance, pooled_patch_distance
from vsim_fast.pipeline import EncodedFrames, Timings
from vsim_fast.pipeline.encoding import encode_blocks
from vsim_fast.pipeline.frames import Block, InputFormat, prepare
from vsim_fast.pipeline.one import prefetch
from vsim_fast.records import FrameBatch
from vsim_fast.report import thumbnail
from vsim_fast.video import VideoReader

SHOWN_FRAMES = 48
"""Frames over the whole video whose pictures the page has, worst ones apart."""
PICTURE_SIDE, PICTURE_QUALITY = 640, 90
"""Pixels of the longer side of the pictures kept, as JPEG."""
RECENT_FRAMES = 31
"""Frames whose median is what a frame is held against while it is not known what comes."""
CANDIDATES = 2
"""Times the worst frames that get a picture: of so many it is kept until it is known which are the worst."""
LARGEST = 5
"""Frames named where none sticks out."""
Names = tuple[str, ...]


class PixelMetrics:
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
            x, y = native_pair(a, b)
            if "psnr" in self.values:
                found = psnr(x, y).cpu().numpy()
                self.values["psnr"][places] = np.where(np.isinf(found), np.nan, found)  # equal once resized
            if "ssim" in self.values and min(size) >= SMALLEST_SSIM:
                self.values["ssim"][places] = ssim(x, y).cpu().numpy()
            if "lpips" in self.values and min(b.info.display_size) >= SMALLEST_LPIPS:
                self.values["lpips"][places] = self._lpips(x, y).cpu().numpy()

    def equal(self, places: np.ndarray) -> None:
        """Frames there have no difference to measure: their PSNR, infinite, stays NaN."""
        for name, value in (("ssim", 1.0), ("lpips", 0.0)):
            if name in self.values:
                self.values[name][places] = value


class Kept(NamedTuple):
    """Pictures of a row that the page or a PNG may show."""

    pictures: dict[str, bytes]
    """JPEG by name, the longer side PICTURE_SIDE."""
    distances: np.ndarray
    """float32 [P] at each patch."""


class Judged(NamedTuple):
    """Frames that stick out."""

    rows: np.ndarray
    """int64, what sticks out most first."""
    expected: np.ndarray
    """float64 [T], the local level of the judged curve."""
    kinds: list[Kind]
    """Of each of `rows`."""


@dataclass
class Tokens:
    """Encoded frames whose partners have not come."""

    patches: Tensor
    """[b, P, D]"""
    embeddings: Tensor
    """float32 [b, D]"""
    pixels: Tensor
    """[b, 3, S, S], what the encoder saw."""
    places: np.ndarray
    """int64 [b]"""

    def pick(self, rows: slice | np.ndarray) -> Tokens:
        """Some of the frames; a slice copies nothing."""
        here = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(self.patches.device)
        return Tokens(self.patches[here], self.embeddings[here], self.pixels[here], self.places[rows])


class Comparing(ABC):
    """Decodes, encodes and compares; subclasses say what with what."""

    judged: ClassVar[str]
    """Curve on which worst frames go."""
    picture_names: ClassVar[Names]
    labels: ClassVar[dict[str, str]]

    def __init__(
        self, encoder: Encoder, readers: list[VideoReader], frames: int, worst: int, pooling: Pooling,
        pixels: PixelMetrics, timings: Timings,
    ):  # fmt: skip
        self.encoder, self.readers, self.frames, self.worst = encoder, readers, frames, worst
        self.pooling, self.pixels, self.timings = pooling, pixels, timings
        self.curves: dict[str, np.ndarray] = {}
        self.identical = np.zeros(frames, dtype=bool)
        """Equal in every pixel to the frame it is compared with; set by the decode thread before the frame is sent."""
        self.number = np.full(frames, -1)
        self.seconds = np.full(frames, np.nan)
        self.blank = 0
        self.shown: dict[int, Kept] = {}
        self._even = set(np.linspace(0, frames - 1, min(frames, SHOWN_FRAMES)).astype(int).tolist())
        self._recent: deque[float] = deque(maxlen=RECENT_FRAMES)
        self._worst: list[tuple[float, int]] = []  # heap of (distance from what came before, place)
        height, width = readers[0].info.display_size
        scale = PICTURE_SIDE / max(height, width)
        self._size = max(8, round(height * scale)), max(8, round(width * scale))

    @abstractmethod
    def batches(self) -> Iterator[tuple[int, np.ndarray, FrameBatch]]:
        """(side, places, frames) in the order they are to be encoded; runs in the decode thread."""

    @abstractmethod
    def take(self, side: int, tokens: Tokens) -> int:
        """Compare what can be. Returns the number of frames that are done."""

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
            done = self.finish()
        yield done

    def finish(self) -> int:
        return self.frames

    @abstractmethod
    def flicker(self) -> dict[str, float]:
        """By the names of `VideoComparison`."""

    def _tokens(self, encoded: EncodedFrames, side: int) -> Tokens:
        features = encoded.features
        places = encoded.index.numpy()
        if side == 0:
            self.seconds[places] = features.pts_seconds.numpy()
            self.blank += int(encoded.featureless.sum())
        embeddings = frame_embeddings(self.encoder, features.patches, features.cls, self.pooling)
        return Tokens(features.patches, embeddings, encoded.pixels, places)

    def distances(self, a: Tokens, b: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(pooled [b], patch [b], at each patch [b, P]) distances of rows of a and b."""
        local = cosine_distance(a.patches, b.patches)
        found = cosine_distance(a.embeddings, b.embeddings), pooled_patch_distance(local), local
        return tuple(x.float().cpu().numpy() for x in found)

    def consider(self, place: int, value: float, keep: Any) -> None:
        """Keep the pictures of a frame, which `keep()` makes, if it is among those shown or among the worst so far."""
        weight = abs(value - float(np.median(self._recent))) if self._recent else value
        self._recent.append(value)
        entry = (weight, place)
        dropped = entry
        if weight > 0 and len(self._worst) < CANDIDATES * self.worst:
            heapq.heappush(self._worst, entry)
            dropped = None
        elif weight > 0 and self._worst:
            dropped = heapq.heappushpop(self._worst, entry)
        if place in self._even or dropped is not entry:
            self.shown[place] = keep()
        if dropped is not None and dropped[1] not in self._even:
            self.shown.pop(dropped[1], None)

    def picture(self, tokens: Tokens, row: int) -> bytes:
        picture = self.encoder.picture(tokens.pixels[row], self._size)
        return thumbnail(picture, width=self._size[1], quality=PICTURE_QUALITY)

    def columns(self) -> dict[str, np.ndarray]:
        """What frames.csv tells of each row before the curves."""
        return {"frame": self.number, "time_seconds": self.seconds}

    def judge(self) -> Judged:
        """Which frames stick out of the judged curve."""
        curve = self.curves[self.judged]
        sticking, level = sticking_out(curve)
        if not len(sticking):
            sticking = largest(curve, LARGEST)
            return Judged(sticking, level, ["largest"] * len(sticking))
        return Judged(sticking, level, ["differs"] * len(sticking))


class WithReference(Comparing):
    judged = "patch_distance"
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
        self.reference_number = np.full(self.frames, -1)
        self.reference_seconds = np.full(self.frames, np.nan)
        self._waiting: deque[Tokens] = deque()

    def batches(self) -> Iterator[tuple[int, np.ndarray, FrameBatch]]:
        for places, a, b in side_by_side(*self.readers):
            same = equal_frames(a, b)
            self.identical[places] = same
            self.number[places], self.reference_number[places] = a.index.numpy(), b.index.numpy()
            self.reference_seconds[places] = b.pts_seconds.numpy()
            if not same.all():
                with self.timings.stage("metrics"):
                    self.pixels.measure(places[~same], rows(a, ~same), rows(b, ~same))
            self.pixels.equal(places[same])
            yield 0, places, a
            if same.all():
                b.release()
            else:
                yield 1, places[~same], rows(b, ~same)

    def take(self, side: int, tokens: Tokens) -> int:
        if side == 0:
            same = self.identical[tokens.places]
            if same.any():
                self._compared(*[tokens.pick(same)] * 2)
            if not same.all():
                self._waiting.append(tokens.pick(~same) if same.any() else tokens)
            return int(tokens.places[-1])
        while len(tokens.places):  # parts of either side may end anywhere
            first = self._waiting[0]
            count = min(len(first.places), len(tokens.places))
            assert (first.places[:count] == tokens.places[:count]).all()
            self._compared(first.pick(slice(count)), tokens.pick(slice(count)))
            self._waiting.popleft()
            if count < len(first.places):
                self._waiting.appendleft(first.pick(slice(count, None)))
            tokens = tokens.pick(slice(count, None))
        return int(first.places[-1])

    def columns(self) -> dict[str, np.ndarray]:
        reference = {"reference_frame": self.reference_number, "reference_time_seconds": self.reference_seconds}
        return super().columns() | reference

    def flicker(self) -> dict[str, float]:
        return {"flicker_index": flicker_index(self.curves["patch_distance"])}

    def shifted(self) -> np.ndarray:
        """float64 [T] seconds by which a frame comes later after the start of its video than that of the reference."""
        starts = (reader.info.pts_seconds[0] for reader in self.readers)
        return (self.seconds - next(starts)) - (self.reference_seconds - next(starts))

    def _compared(self, a: Tokens, b: Tokens) -> None:
        pooled, patch, local = self.distances(a, b)
        self.curves["cosine_distance"][a.places], self.curves["patch_distance"][a.places] = pooled, patch
        for row, place in enumerate(a.places.tolist()):
            self.consider(
                place, float(patch[row]),
                lambda row=row: Kept({"video": self.picture(a, row), "reference": self.picture(b, row)}, local[row]),
            )  # fmt: skip


class Alone(Comparing):
    judged = "stands_out"
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
        self._tail: list[Tokens] = []  # the last frames, at most two
        self._local: dict[int, np.ndarray] = {}

    def judge(self) -> Judged:
        """Frames that are not between their neighbours, and frames that look like a blend of them. A repeated frame
        does, too, and is told by being equal."""
        curve = self.curves[self.judged]
        above, level = sticking_out(curve)
        below = like_a_blend(self.curves["step"], self.curves["skip"])
        repeated = self.identical | np.append(self.identical[1:], False)
        above, below = above[curve[above] > 0], below[~repeated[below]]
        found = np.concatenate([above, below])
        if not len(found):
            found = largest(curve, LARGEST)
            return Judged(found, level, ["largest"] * len(found))
        order = np.argsort(-np.abs(curve[found] - level[found]), kind="stable")
        kinds: list[Kind] = ["stands out"] * len(above) + ["like a blend"] * len(below)
        return Judged(found[order], level, [kinds[at] for at in order])

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

    def take(self, side: int, tokens: Tokens) -> int:
        for row in range(len(tokens.places)):
            self._next(tokens.pick(slice(row, row + 1)))
        return int(tokens.places[-1])

    def _next(self, frame: Tokens) -> None:
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

    def flicker(self) -> dict[str, float]:
        step, skip = self.curves["step"], self.curves["skip"]
        return {"flicker_index": neighbour_flicker(step, skip), "judder_index": flicker_index(step)}

    def _append(self, frame: Tokens) -> None:
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
                lambda: Kept({name: self.picture(tokens, 0) for name, tokens in trio.items()}, local),
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
