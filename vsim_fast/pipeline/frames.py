"""Decoded batches as encoder input, and what comes out of the encoder: the records of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vsim_fast.encode.base import Preprocess
from vsim_fast.pipeline.timings import Timings
from vsim_fast.records import FrameBatch, FrameFeatures

FEATURELESS_STD = 3.0
"""A frame whose 8-bit values vary by less than this (standard deviation per channel) has nothing to compare."""


@dataclass(frozen=True)
class InputFormat:
    """What an encoder takes: all that preparing frames for it needs to know. Goes to worker processes."""

    preprocess: Preprocess
    dtype: torch.dtype
    device: torch.device
    """Where the pixels are made; a worker process makes them on the CPU."""


@dataclass(frozen=True)
class Block:
    """Consecutive sampled frames of one video, ready for the encoder."""

    video: int
    """Number of the video in this run."""
    path: str
    pixels: Tensor
    """[B, 3, H, W], normalised. Valid until `release()`, if there is one."""
    pts_seconds: Tensor
    """float64 [B] on the CPU."""
    index: Tensor
    """int64 [B] on the CPU, positions in the video's table of frames."""
    featureless: Tensor
    """bool [B] on the CPU, valid once `ready` has passed."""
    ready: Any = None
    """CUDA event behind the work that makes the tensors, or None."""
    on_release: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def release(self) -> None:
        """Hand the memory of `pixels` back to who made it."""
        if self.on_release is not None:
            self.on_release()


@dataclass(frozen=True)
class EncodedFrames:
    """Frames of one video that went through the encoder together."""

    features: FrameFeatures
    pixels: Tensor
    """[B, 3, H, W], normalised: what the encoder saw."""
    index: Tensor
    """int64 [B] on the CPU, positions in the video's table of frames."""
    featureless: Tensor
    """bool [B] on the CPU: black or without texture; such frames match everything."""


def prepare(
    batches: Iterable[FrameBatch], form: InputFormat, timings: Timings, *, video: int = 0, path: str = ""
) -> Iterator[Block]:
    """Decoded batches as encoder input. On CUDA all work is put on a stream of its own."""
    cuda = form.device.type == "cuda"
    stream = torch.cuda.Stream(form.device) if cuda else None
    to_levels = torch.tensor([255 * std for std in form.preprocess.std], device=form.device)
    batches = iter(batches)
    while True:
        with torch.cuda.stream(stream) if cuda else nullcontext(), torch.inference_mode():
            with timings.stage("decode"):
                frames = next(batches, None)
            if frames is None:
                return
            with timings.stage("pixels", form.device):
                pixels = form.preprocess.pixels(frames, form.device, form.dtype)
                levels = pixels[:, :, ::4, ::4].flatten(2).float().std(2, correction=0) * to_levels
                featureless = (levels.amax(1) < FEATURELESS_STD).to("cpu", non_blocking=cuda)
            ready = stream.record_event() if stream else None
            frames.release()
        yield Block(video, path, pixels, frames.pts_seconds, frames.index, featureless, ready)
