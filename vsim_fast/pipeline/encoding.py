"""Blocks of frames, of one video or of many, to features: packed into full batches, forwarded, handed back by block."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vsim_fast.encode.base import Encoder, Tokens
from vsim_fast.errors import EncoderError
from vsim_fast.pipeline.frames import Block, EncodedFrames
from vsim_fast.pipeline.timings import Timings
from vsim_fast.records import FrameFeatures


def encode_blocks(
    blocks: Iterable[Block | None], encoder: Encoder, timings: Timings, *, pack: bool
) -> Iterator[tuple[Block, EncodedFrames | EncoderError] | None]:
    """What the encoder makes of blocks, in their order.

    Args:
        blocks: None among them means that nothing comes for the moment: what waits for a full batch waits no longer.
        pack: True fills batches of `encoder.batch_size` with blocks of any videos, and may split a block; False
            forwards each block by itself.
    Yields:
        Each block, or part of one, with its features, or with the error that they are NaN or infinite; and None for
        each None.
    On CUDA the forward pass runs on a stream of its own, and the next one runs while the caller looks at the last.
    """
    stream = None
    if encoder.device.type == "cuda":
        stream = torch.cuda.Stream(encoder.device)
        stream.wait_stream(torch.cuda.current_stream(encoder.device))  # on which the weights were made
    waiting: deque[_Part] = deque()
    ahead: deque[_Forwarded] = deque()

    def forward() -> None:
        parts = _take(waiting, encoder.batch_size) if pack else [waiting.popleft()]
        with torch.cuda.stream(stream) if stream else nullcontext():
            pixels = _joined(parts, encoder.device, stream)
            with timings.stage("encode", encoder.device):
                tokens = encoder.forward_in_batches(pixels)
                finite = torch.isfinite(tokens.patches).flatten(1).all(1).to("cpu", non_blocking=stream is not None)
            ahead.append(_Forwarded(parts, pixels, tokens, finite, stream.record_event() if stream else None))

    for block in blocks:
        if block is not None:
            waiting.append(_Part(block, 0, len(block)))
        least = 1 if block is None or not pack else encoder.batch_size
        while sum(map(len, waiting)) >= least:
            forward()
            while len(ahead) > (stream is not None):
                yield from _scatter(ahead.popleft(), encoder)
        if block is None:
            while ahead:
                yield from _scatter(ahead.popleft(), encoder)
            yield None
    while waiting:
        forward()
    while ahead:
        yield from _scatter(ahead.popleft(), encoder)


@dataclass(frozen=True)
class _Part:
    block: Block
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def of(self, x: Tensor) -> Tensor:
        return x if len(self) == len(self.block) else x[self.start : self.stop]


@dataclass(frozen=True)
class _Forwarded:
    parts: list[_Part]
    pixels: Tensor
    tokens: Tokens
    finite: Tensor
    """bool [B] on the CPU, valid once `done` has passed."""
    done: Any
    """CUDA event behind the forward pass, or None."""


def _take(waiting: deque[_Part], count: int) -> list[_Part]:
    """The first `count` frames, or all if there are fewer."""
    parts = []
    while waiting and count:
        part = waiting.popleft()
        if len(part) > count:
            middle = part.start + count
            waiting.appendleft(_Part(part.block, middle, part.stop))
            part = _Part(part.block, part.start, middle)
        parts.append(part)
        count -= len(part)
    return parts


def _joined(parts: list[_Part], device: torch.device, stream: Any) -> Tensor:
    """The pixels of the parts on the device, in memory of their own if a block wants its memory back; such blocks are
    released."""
    for part in parts if stream else ():
        if part.block.ready is not None:
            stream.wait_event(part.block.ready)
            part.block.pixels.record_stream(stream)
    pixels = [part.of(part.block.pixels) for part in parts]
    lent = any(part.block.on_release is not None for part in parts)
    if pixels[0].device != device and stream:  # through pinned memory, so that the copy does not wait
        count = sum(map(len, parts))
        host = torch.empty(count, *pixels[0].shape[1:], dtype=pixels[0].dtype, pin_memory=True)
        joined = torch.cat(pixels, out=host).to(device, non_blocking=True)
    else:
        joined = (torch.cat(pixels) if len(pixels) > 1 or lent else pixels[0]).to(device)
    for part in parts:
        if part.stop == len(part.block):
            part.block.release()
    return joined


def _scatter(forwarded: _Forwarded, encoder: Encoder) -> Iterator[tuple[Block, EncodedFrames | EncoderError]]:
    pixels, tokens = forwarded.pixels, forwarded.tokens
    if forwarded.done is not None:
        forwarded.done.synchronize()  # not the stream: the next forward pass is behind it
        caller = torch.cuda.current_stream(encoder.device)
        for tensor in (pixels, *tokens):
            if tensor is not None:
                tensor.record_stream(caller)
    start = 0
    for part in forwarded.parts:
        rows = slice(start, start + len(part))
        whole = len(forwarded.parts) == 1
        start += len(part)
        times = part.of(part.block.pts_seconds)
        if not forwarded.finite[rows].all():
            yield part.block, _not_finite(part.block.path, times, encoder)
            continue
        patches, cls, attention = (x if whole or x is None else x[rows] for x in tokens)
        features = FrameFeatures(patches, cls, attention, times, encoder.grid, encoder.id)
        seen = pixels if whole else pixels[rows]
        yield part.block, EncodedFrames(features, seen, part.of(part.block.index), part.of(part.block.featureless))


def _not_finite(path: str, times: Tensor, encoder: Encoder) -> EncoderError:
    cure = "its weights are broken" if encoder.dtype == torch.float32 else "use --precision float32"
    return EncoderError(
        f"{path}: {encoder.spec} in {encoder.dtype} made NaN or infinite features between "
        f"{times[0]:.3f} s and {times[-1]:.3f} s; {cure}"
    )
