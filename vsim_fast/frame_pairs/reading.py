"""Two videos side by side: frames of the same place in both, in the decode thread, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vsim_fast.encode.base import Preprocess
from vsim_fast.records import FrameBatch
from vsim_fast.video import VideoReader

BATCH_FRAMES = 4
"""Frames of each video decoded at a time: at full size they are what memory goes to."""


def positioned(reader: VideoReader) -> Iterator[tuple[np.ndarray, FrameBatch]]:
    """Batches with the places int64 [b] of their frames in the reader's plan; frames that were lost are left out.

    The reader must have been opened with a batch size of BATCH_FRAMES.
    """
    index, start = reader.plan.index, 0
    for frames in reader:
        while not (here := np.isin(index[start : start + BATCH_FRAMES], frames.index.numpy())).any():
            start += BATCH_FRAMES  # nothing of that batch decoded
            assert start < len(index)
        yield start + np.flatnonzero(here), frames
        start += BATCH_FRAMES


def side_by_side(a: VideoReader, b: VideoReader) -> Iterator[tuple[np.ndarray, FrameBatch, FrameBatch]]:
    """Places that both videos have frames of, and those frames, until either ends."""
    first, second = positioned(a), positioned(b)
    one, other = next(first, None), next(second, None)
    while one is not None and other is not None:
        rounds = one[0][0] // BATCH_FRAMES, other[0][0] // BATCH_FRAMES
        if rounds[0] == rounds[1]:
            places = np.intersect1d(one[0], other[0])
            if len(places):
                yield places, *(rows(frames, np.isin(had, places)) for had, frames in (one, other))
            one, other = next(first, None), next(second, None)
        elif rounds[0] < rounds[1]:
            one[1].release()
            one = next(first, None)
        else:
            other[1].release()
            other = next(second, None)


def rows(frames: FrameBatch, keep: np.ndarray) -> FrameBatch:
    """The frames for which `keep`, bool [B], is true."""
    if keep.all():
        return frames
    chosen = torch.from_numpy(np.flatnonzero(keep))
    picked = {
        name: x[chosen.to(x.device)]
        for name in ("rgb", "y", "uv", "pts_seconds", "index")
        if (x := getattr(frames, name)) is not None
    }
    return replace(frames, **picked)


def equal_frames(a: FrameBatch, b: FrameBatch) -> np.ndarray:
    """bool [B]: frames whose pixels are the same."""
    if a.info.color != b.info.color or a.info.rotation != b.info.rotation or a.info.mirrored != b.info.mirrored:
        return np.zeros(len(a), dtype=bool)
    same = np.ones(len(a), dtype=bool)
    for x, y in ((a.rgb, b.rgb), (a.y, b.y), (a.uv, b.uv)):
        if (x is None) != (y is None) or (x is not None and x.shape != y.shape):
            return np.zeros(len(a), dtype=bool)
        if x is not None:
            same &= (x == y).flatten(1).all(1).cpu().numpy()
    return same


def native_pair(a: FrameBatch, b: FrameBatch) -> tuple[Tensor, Tensor]:
    """Upright RGB [B, 3, h, w] of both in the size of b: uint8 views where nothing is to do, else float32 in 0 … 1."""
    x, y = (_native(frames, b.info.display_size) for frames in (a, b))
    if x.dtype != y.dtype:
        x, y = (z.float() / 255 if z.dtype == torch.uint8 else z for z in (x, y))
    return x, y


def _native(frames: FrameBatch, size: tuple[int, int]) -> Tensor:
    info = frames.info
    if frames.rgb is not None and info.rotation == 0 and not info.mirrored and info.display_size == size:
        return frames.rgb.movedim(-1, 1)
    device = (frames.rgb if frames.rgb is not None else frames.y).device
    return Preprocess(size, (0.0,) * 3, (1.0,) * 3).pixels(frames, device, torch.float32).clamp_(0, 1)
