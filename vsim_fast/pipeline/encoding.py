"""Blocks of frames, of one video or of many, to features: packed into full batches, forwarded, handed back by block."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vsim_fast.encode.base import Encoder, Tokens
from vsim_fast.errors import EncoderError
from vsim_fast.ops._threads import one_thread
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
    On CUDA the forward pass runs on a stream of its own, and the next one runs while the caller looks at the last. On
    the CPU packed batches run side by side, one per thread that torch may use: threads that share a batch wait for each
    other at every step, all the longer when decoders want the cores, too.
    """
    lanes: _Lanes | _Stream | _Here = _Here()
    if encoder.device.type == "cuda":
        lanes = _Stream(encoder.device)
    elif encoder.device.type == "cpu" and pack:
        lanes = _Lanes(torch.get_num_threads())
    waiting: deque[_Part] = deque()
    ahead: deque[_Forwarded] = deque()

    def forward(count: int) -> None:
        parts = _take(waiting, count) if pack else [waiting.popleft()]
        ahead.append(lanes.forward(parts, encoder, timings))

    def share() -> int:
        """Frames for each lane of those that wait for no more."""
        return min(encoder.batch_size, -(-sum(map(len, waiting)) // lanes.width))

    with lanes:
        for block in blocks:
            if block is not None:
                waiting.append(_Part(block, 0, len(block)))
            last = block is None or not pack
            count = share() if last else encoder.batch_size
            while sum(map(len, waiting)) >= (1 if last else count):
                forward(count)
                while len(ahead) > lanes.ahead:
                    yield from _scatter(ahead.popleft(), encoder)
            if block is None:
                while ahead:
                    yield from _scatter(ahead.popleft(), encoder)
                yield None
        count = share()
        while waiting:
            forward(count)
        while ahead:
            yield from _scatter(ahead.popleft(), encoder)


class _Here(AbstractContextManager):
    """Forward passes one by one, in the calling thread."""

    ahead = 0
    """Forward passes that may be under way while the caller looks at an earlier one."""
    width = 1
    """Forward passes that run side by side."""

    def forward(self, parts: list[_Part], encoder: Encoder, timings: Timings) -> _Forwarded:
        pixels = _joined(parts, encoder.device, None)
        with timings.stage("encode"):
            return _Forwarded(parts, pixels, *_encoded(encoder, pixels))

    def __exit__(self, *exception: object) -> None:
        pass


class _Lanes(_Here):
    """Forward passes side by side, each in one thread."""

    def __init__(self, threads: int):
        self.ahead = self.width = self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "vsim-encode", initializer=torch.set_num_threads, initargs=(1,))

    def forward(self, parts: list[_Part], encoder: Encoder, timings: Timings) -> _Forwarded:
        with one_thread():
            pixels = _joined(parts, encoder.device, None)
        return _Forwarded(parts, pixels, done=self._pool.submit(self._run, encoder, pixels, timings))

    def _run(self, encoder: Encoder, pixels: Tensor, timings: Timings) -> tuple[Tokens, Tensor]:
        start = time.perf_counter()
        encoded = _encoded(encoder, pixels)
        timings.add("encode", (time.perf_counter() - start) / self._threads)
        return encoded

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)  # the pool's own setting is also what later threads begin with


class _Stream(_Here):
    """Forward passes on a CUDA stream."""

    ahead = 1

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # on which the weights were made

    def forward(self, parts: list[_Part], encoder: Encoder, timings: Timings) -> _Forwarded:
        with torch.cuda.stream(self._stream):
            pixels = _joined(parts, encoder.device, self._stream)
            with timings.stage("encode", encoder.device):
                encoded = _encoded(encoder, pixels)
            return _Forwarded(parts, pixels, *encoded, done=self._stream.record_event())


def _encoded(encoder: Encoder, pixels: Tensor) -> tuple[Tokens, Tensor]:
    """Tokens, and of each frame whether all of them are finite, bool [B] on the CPU."""
    tokens = encoder.forward_in_batches(pixels)
    finite = torch.isfinite(tokens.patches).flatten(1).all(1)
    return tokens, finite.to("cpu", non_blocking=encoder.device.type == "cuda")


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
    tokens: Tokens | None = None
    finite: Tensor | None = None
    done: Any = None
    """CUDA event behind the forward pass, or the future of tokens and finite; None where they are here."""


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
    pixels, tokens, finite = forwarded.pixels, forwarded.tokens, forwarded.finite
    if isinstance(forwarded.done, Future):
        tokens, finite = forwarded.done.result()
    elif forwarded.done is not None:
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
        if not finite[rows].all():
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
