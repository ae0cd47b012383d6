"""A video file to the features that finding copies needs: decoded once, every frame encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.copies.content import background
from vsim_fast.copies.features import (
    QUERY_SCALES,
    SCALES,
    TURNS,
    CopyFeatures,
    cut,
    mosaic_tokens,
    mosaics,
    patch_energy,
    patch_places,
    picture_box,
    query_frames,
    scaled_grid,
    select_tokens,
    small_pictures,
    turn,
)
from vsim_fast.copies.noise import noise_pictures
from vsim_fast.encode.base import Encoder
from vsim_fast.errors import CorruptVideo, DecodeError, UsageError
from vsim_fast.frame_encoder import attention_centroids, frame_embeddings
from vsim_fast.ops import QuantizedTokens, best_cosines, quantize_tokens
from vsim_fast.ops._threads import one_thread
from vsim_fast.pipeline import EncodedFrames, Timings, encode_video, stream_videos
from vsim_fast.pipeline.many import Frames
from vsim_fast.pipeline.reading import Failed, Finished, Opened, Task
from vsim_fast.records import Progress, VideoInfo, frames_in_memory
from vsim_fast.report import thumbnail
from vsim_fast.video import DecodeReport, Sampling, open_video

FPS, MAX_PICTURES = 6.0, 1800
"""Pictures are taken on a grid of 1 / FPS seconds; of a video of more than five minutes, evenly spaced ones."""
LEAST_FRAMES, MOST_FRAMES = 8, 60
"""Content frames of a video: one a second, but no fewer and no more than these, evenly spaced."""
THUMBNAIL_WIDTH = 160
NOISE_TOKENS = 96
SAME = 0.8
"""Mean best cosine of a frame's patches in one picture from which that picture shows the frame itself."""


@dataclass(frozen=True)
class CopyVideo:
    """One video, read."""

    features: CopyFeatures
    info: VideoInfo
    report: DecodeReport
    thumbnails: list[bytes]
    """JPEG of each content frame."""
    notes: list[str]


@dataclass(frozen=True)
class Noise:
    """What patches match by chance, with one encoder."""

    tokens: QuantizedTokens
    """[N, K, D'], of N pictures."""

    def overlap(self, features: CopyFeatures) -> bool:
        """Whether one of the pictures shows a frame of the video: its patches match there almost exactly."""
        tokens, weights = _strongest(features)
        best = best_cosines(tokens, self.tokens).a_in_b  # [F, N, K]
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-6)  # a featureless frame is shown by none
        return bool(((best * weights[:, None]).sum(2) > SAME).any())


def copy_settings(orientations: str = "mirror") -> dict[str, Any]:
    """Checked arguments that change features.

    Args:
        orientations: "none", "mirror" (each video also mirrored), or "all" (also turned by quarters).
    """
    if orientations not in TURNS:
        raise UsageError(f"orientations must be one of {', '.join(TURNS)}, got {orientations!r}")
    frames = [LEAST_FRAMES, MOST_FRAMES]
    return {"orientations": orientations, "fps": FPS, "max_pictures": MAX_PICTURES, "frames": frames}


def noise_for(encoder: Encoder, videos: Sequence[CopyVideo] = ()) -> Noise:
    """The noise set: generated pictures, or frames of the given videos, which must not be among those compared."""
    if videos:
        columns = zip(*(_strongest(video.features)[0] for video in videos), strict=True)
        return Noise(QuantizedTokens(*(torch.cat(column) for column in columns)))
    with torch.inference_mode():
        pixels = encoder.pixels(frames_in_memory(noise_pictures()))
        patches = encoder.forward_in_batches(pixels).patches
        energy = patch_energy(shown_pixels(encoder, pixels), encoder.grid)
        tokens, _, _ = select_tokens(patches, energy, patch_places(encoder.grid), NOISE_TOKENS)
    return Noise(quantize_tokens(tokens.cpu()))


def _strongest(features: CopyFeatures) -> tuple[QuantizedTokens, Tensor]:
    """What the noise set keeps of a video: the first tokens of whole frames, [F, K, D'], and their weights [F, K]."""
    count = min(NOISE_TOKENS, int((features.scales == 0).sum()))
    return QuantizedTokens(*(x[:, :count] for x in features.tokens)), features.weights[:, :count].float()


def content_frames(pictures: int, seconds: float) -> Tensor:
    """int64 [F], which of the pictures are content frames."""
    count = min(pictures, max(LEAST_FRAMES, min(MOST_FRAMES, round(seconds))))
    return ((torch.arange(count) + 0.5) * pictures / count).long()


def read_copy_video(
    path: str | Path,
    encoder: Encoder,
    settings: dict[str, Any],
    noise: Noise | None = None,
    *,
    decoder: Literal["auto", "pyav", "nvdec"] = "auto",
    progress: Progress | None = None,
    label: str = "frames",
    timings: Timings | None = None,
) -> CopyVideo:
    """Decode and encode one video once.

    Args:
        settings: of `copy_settings`.  noise: of `noise_for`; None only for videos that will be the noise set.
    Raises:
        DecodeError as the reader's.  EncoderError.
    """
    timings = timings or Timings()
    source = dict(decoder=decoder, device=encoder.device, batch_size=encoder.batch_size)
    with timings.stage("probe"):
        reader = open_video(path, copy_sampling(settings), **source)
    with reader, closing(encode_video(reader, encoder, timings)) as batches:
        reading = CopyReading(encoder, settings, noise, reader.info, len(reader.plan), timings)
        for batch in batches:
            reading.add(batch)
            if progress:
                progress.advance(label, reading.count, len(reader.plan))
    return reading.finish(reader.report)


def read_copy_videos(
    paths: Sequence[str],
    encoder: Encoder,
    settings: dict[str, Any],
    noise: Noise | None = None,
    *,
    decoder: Literal["auto", "pyav", "nvdec"] = "auto",
    timings: Timings | None = None,
) -> Iterator[tuple[int, CopyVideo | DecodeError]]:
    """`read_copy_video` of many, several at a time, in order of completion: the number of each and what came of it.

    A video over which its decode process died is read again, after all others and alone.  Raises: EncoderError.
    """
    timings = timings or Timings()
    readings: dict[int, CopyReading] = {}
    died: list[int] = []

    def ended(event: Finished | Failed) -> CopyVideo | DecodeError:
        reading = readings.pop(event.video, None)
        if isinstance(event, Failed):
            if not isinstance(event.error, DecodeError):
                raise event.error
            return event.error
        try:
            with one_thread():
                return reading.finish(event.report)
        except DecodeError as error:
            return error

    def read(numbers: Sequence[int], *, again: bool = False) -> Iterator[tuple[int, CopyVideo | DecodeError]]:
        tasks = [Task(n, paths[n], paths[n]) for n in numbers]
        stream = stream_videos(tasks, encoder, copy_sampling(settings), decoder=decoder, timings=timings)
        with closing(stream):
            for event in stream:  # what is done with it in between is done on one thread: decoders have the others
                if isinstance(event, Opened):
                    about = (encoder, settings, noise, event.info, event.planned, timings)
                    readings[event.video] = CopyReading(*about)
                elif isinstance(event, Frames):
                    with one_thread():
                        readings[event.video].add(event.encoded)
                elif isinstance(event, Failed) and event.worker_died and not again:
                    readings.pop(event.video, None)
                    died.append(event.video)
                elif event is not None:
                    yield event.video, ended(event)

    yield from read(range(len(paths)))
    for number in died:
        yield from read([number], again=True)


def copy_sampling(settings: dict[str, Any]) -> Sampling:
    """The pictures to take of a video."""
    return Sampling(fps=settings["fps"], max_frames=settings["max_pictures"])


class CopyReading:
    """A video being read: takes its encoded frames in order, ends with its features.

    Args:
        info, planned: of the open video, with `copy_sampling`.
        settings, noise: as in `read_copy_video`.
    Attributes:
        count: frames taken so far.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: dict[str, Any],
        noise: Noise | None,
        info: VideoInfo,
        planned: int,
        timings: Timings,
    ):
        self.encoder, self.settings, self.noise, self.info, self.timings = encoder, settings, noise, info, timings
        self.count, self._planned = 0, planned
        self._wanted = set(content_frames(planned, info.duration_seconds).tolist())
        columns = ("pictures", "embeddings", "centroids", "featureless", "times")
        self._rows: dict[str, list[Tensor]] = {name: [] for name in columns}
        self._kept: list[Tensor] = []
        self._frames: list[int] = []

    def add(self, batch: EncodedFrames) -> None:
        rows, encoder = self._rows, self.encoder
        with self.timings.stage("descriptors"), torch.inference_mode():
            features = batch.features
            pixels = shown_pixels(encoder, batch.pixels)
            rows["pictures"].append(small_pictures(pixels).cpu())
            rows["embeddings"].append(F.normalize(frame_embeddings(features), dim=1).half().cpu())
            if features.attention is not None:
                rows["centroids"].append(attention_centroids(features.attention, features.grid).cpu())
            rows["featureless"].append(batch.featureless)
            rows["times"].append(features.pts_seconds)
            picked = [i for i in range(len(pixels)) if self.count + i in self._wanted]
            self._kept.append(pixels[picked])
            self._frames += [self.count + i for i in picked]
        self.count += len(batch.pixels)

    def finish(self, report: DecodeReport) -> CopyVideo:
        """Raises: CorruptVideo: none of the frames to compare has come."""
        encoder, frames, count, info = self.encoder, self._frames, self.count, self.info
        if not count:
            raise CorruptVideo(info.path, f"none of the {self._planned} planned frames decodes")
        joined = {name: torch.cat(parts) if parts else None for name, parts in self._rows.items()}
        if not frames:  # only frames between the planned ones decoded
            raise CorruptVideo(
                info.path, f"none of the {len(self._wanted)} frames to compare decodes, {count} others do"
            )
        pixels = torch.cat(self._kept)
        seconds = joined["times"] - joined["times"][0]
        with self.timings.stage("tokens", encoder.device), torch.inference_mode():
            box = picture_box(pixels)
            pixels_inside = cut(pixels, box)
            straight = _tokens(encoder, pixels_inside, [(k, count) for k, (_, count) in enumerate(SCALES)])
            picks = query_frames(len(frames))
            turns = TURNS[self.settings["orientations"]]
            turned = [_tokens(encoder, turn(pixels_inside[picks], turn_), QUERY_SCALES) for turn_ in turns[1:]]
            blank = joined["featureless"][frames]
            straight["weights"][blank] = 0
            for part in turned:
                part["weights"][blank[picks]] = 0
            for part in (straight, *turned):
                nothing = torch.zeros_like(part["weights"])
                tokens = QuantizedTokens(part["codes"], part["code_scales"])
                part["background"] = nothing if self.noise is None else background(tokens, self.noise.tokens)
        height, width = info.display_size
        size = (max(8, round(THUMBNAIL_WIDTH * height / width)), THUMBNAIL_WIDTH)
        with self.timings.stage("thumbnails"):
            small = F.interpolate(pixels, size, mode="bilinear", antialias=True)
            small = (small * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
            jpegs = [thumbnail(picture) for picture in small]
        if joined["centroids"] is None:
            joined["centroids"] = torch.full((count, 2), torch.nan)
        del joined["times"]
        features = CopyFeatures(
            frame_seconds=seconds[frames], picture_seconds=seconds, orientations=torch.tensor(turns), box=box.cpu(),
            **straight, **_stacked(turned, straight), **joined,
        )  # fmt: skip
        return CopyVideo(features, info, report, jpegs, _notes(info, report, joined["featureless"], box))


def shown_pixels(encoder: Encoder, pixels: Tensor) -> Tensor:
    """RGB [B, 3, H, W] in 0..1, float32, of an encoder's normalised input."""
    return encoder.denormalise(pixels).clamp(0, 1)


def _tokens(encoder: Encoder, pixels: Tensor, scales: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """codes, code_scales, places, weights, scales of content frames [F, 3, H, W] in 0..1; see `CopyFeatures`.

    Args:
        scales: number in SCALES, and tokens to keep on a grid of 16 × 16 patches.
    """
    grid, pixels = encoder.grid, pixels.contiguous()
    columns: dict[str, list[Tensor]] = {
        "codes": [], "code_scales": [], "places": [], "weights": [], "scales": [],
    }  # fmt: skip
    for number, count in scales:
        scale = SCALES[number][0]
        view = pixels if scale == 1 else mosaics(pixels, grid, scale)
        patches = encoder.forward_in_batches(encoder.normalise(view)).patches
        small = scaled_grid(grid, scale)
        if scale < 1:
            patches = mosaic_tokens(patches, grid, scale, len(pixels))
        count = max(1, round(count * grid[0] * grid[1] / 256))
        tokens, where, weights = select_tokens(patches, patch_energy(pixels, small), patch_places(small), count)
        which = torch.full(weights.shape[1:], number, dtype=torch.uint8)
        for name, part in zip(columns, (*quantize_tokens(tokens), where, weights, which), strict=True):
            columns[name].append(part.cpu())
    return {name: torch.cat(parts, 0 if name == "scales" else 1) for name, parts in columns.items()}


def _stacked(turned: Sequence[dict[str, Tensor]], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The `turned_` fields of `CopyFeatures`; without other orientations they are empty."""
    if not turned:
        return {f"turned_{name}": part[:0, None] if name != "scales" else part[:0] for name, part in like.items()}
    stacked = {name: torch.stack([part[name] for part in turned]) for name in like if name != "scales"}
    return {f"turned_{name}": part for name, part in (stacked | {"scales": turned[0]["scales"]}).items()}


def _notes(info: VideoInfo, report: DecodeReport, featureless: Tensor, box: Tensor) -> list[str]:
    notes = [*info.notes, *report.notes()]
    if featureless.any():
        notes.append(f"{int(featureless.sum())} of {len(featureless)} frames are black or featureless, not compared")
    top, left, bottom, right = box.tolist()
    if (top, left, bottom, right) != (0, 0, 1, 1):
        notes.append(f"bars cut off: top {top:.0%}, bottom {1 - bottom:.0%}, left {left:.0%}, right {1 - right:.0%}")
    return notes
