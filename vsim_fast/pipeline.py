"""Path to features: where decoding and encoding meet.

A decode thread turns packets into encoder input (decode, colour, resize, normalise) while the calling thread runs the
encoder. The queue between them is bounded. On a GPU both work on streams of their own and hand over events, so that
frames stay on the device, and the next forward pass runs while the caller looks at the last one on its own stream.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vsim_fast.encode.base import Encoder, Tokens
from vsim_fast.errors import EncoderError
from vsim_fast.records import FrameBatch, FrameFeatures
from vsim_fast.video import VideoReader

QUEUED_BATCHES = 2
FEATURELESS_STD = 3.0
"""A frame whose 8-bit values vary by less than this (standard deviation per channel) has nothing to compare."""


class Timings:
    """Busy seconds per stage, from any thread. Stages overlap, so they may sum to more than the wall time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def stage(self, name: str, device: torch.device | None = None) -> Iterator[None]:
        """Time the block; on a CUDA device the work it enqueues on the current stream, not the enqueueing."""
        if device is not None and device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            first = stream.record_event(torch.cuda.Event(enable_timing=True))
            yield
            last = stream.record_event(torch.cuda.Event(enable_timing=True))
            self._events.append((name, first, last))
            return
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self._seconds[name] += seconds

    def summary(self, started: float) -> dict[str, float]:
        """`seconds`, rounded, and as "total" what has passed since `started` (of time.perf_counter)."""
        total = time.perf_counter() - started
        return {name: round(value, 4) for name, value in (self.seconds() | {"total": total}).items()}

    def seconds(self) -> dict[str, float]:
        while self._events:
            name, first, last = self._events.pop()
            last.synchronize()
            self.add(name, first.elapsed_time(last) / 1000)
        with self._lock:
            return dict(self._seconds)


@dataclass(frozen=True)
class EncodedFrames:
    """One encoder batch of a video."""

    features: FrameFeatures
    pixels: Tensor
    """[B, 3, H, W], normalised: what the encoder saw."""
    index: Tensor
    """int64 [B] on the CPU, positions in the video's table of frames."""
    featureless: Tensor
    """bool [B] on the CPU: black or without texture; such frames match everything."""


def encode_video(reader: VideoReader, encoder: Encoder, timings: Timings | None = None) -> Iterator[EncodedFrames]:
    """Features of the planned frames of an open video, in order of presentation, one decoded batch at a time.

    Open the reader with `batch_size=encoder.batch_size` and `device=encoder.device`.

    Raises:
        DecodeError: as the reader's policy says.
        EncoderError: a feature is NaN or infinite.
    """
    timings = timings or Timings()
    stream = None
    if encoder.device.type == "cuda":
        stream = torch.cuda.Stream(encoder.device)
        stream.wait_stream(torch.cuda.current_stream(encoder.device))  # on which the weights were made
    ahead: deque[_Encoded] = deque()
    with closing(_prefetch(lambda: _prepare(reader, encoder, timings))) as prepared:
        for item in prepared:
            with torch.cuda.stream(stream) if stream else nullcontext():
                if stream:
                    stream.wait_event(item.ready)
                    item.pixels.record_stream(stream)
                with timings.stage("encode", encoder.device):
                    tokens = encoder.forward_in_batches(item.pixels)
                    finite = torch.isfinite(tokens.patches).all().to("cpu", non_blocking=stream is not None)
                ahead.append(_Encoded(item, tokens, finite, stream.record_event() if stream else None))
            if len(ahead) > (stream is not None):
                yield _checked(ahead.popleft(), reader, encoder)
        while ahead:
            yield _checked(ahead.popleft(), reader, encoder)


@dataclass(frozen=True)
class _Prepared:
    frames: FrameBatch
    """Its planes or pixels are released; only times and indices are read."""
    pixels: Tensor
    featureless: Tensor
    """On the CPU, valid once `ready` has passed."""
    ready: Any
    """CUDA event behind the work that makes the tensors, or None."""


@dataclass(frozen=True)
class _Encoded:
    item: _Prepared
    tokens: Tokens
    finite: Tensor
    """bool [] on the CPU, valid once `done` has passed."""
    done: Any
    """CUDA event behind the forward pass, or None."""


def _prepare(reader: VideoReader, encoder: Encoder, timings: Timings) -> Iterator[_Prepared]:
    """Decoded batches as encoder input; runs in the decode thread."""
    cuda = encoder.device.type == "cuda"
    stream = torch.cuda.Stream(encoder.device) if cuda else None
    to_levels = torch.tensor([255 * std for std in encoder.preprocess.std], device=encoder.device)
    batches = iter(reader)
    while True:
        with torch.cuda.stream(stream) if cuda else nullcontext(), torch.inference_mode():
            with timings.stage("decode"):
                frames = next(batches, None)
            if frames is None:
                return
            with timings.stage("pixels", encoder.device):
                pixels = encoder.pixels(frames)
                levels = pixels[:, :, ::4, ::4].flatten(2).float().std(2, correction=0) * to_levels
                featureless = (levels.amax(1) < FEATURELESS_STD).to("cpu", non_blocking=cuda)
            ready = stream.record_event() if stream else None
            frames.release()
        yield _Prepared(frames, pixels, featureless, ready)


def _checked(encoded: _Encoded, reader: VideoReader, encoder: Encoder) -> EncodedFrames:
    item, tokens = encoded.item, encoded.tokens
    if encoded.done is not None:
        encoded.done.synchronize()  # not the stream: the next forward pass is behind it
        caller = torch.cuda.current_stream(encoder.device)
        for tensor in (item.pixels, *tokens):
            if tensor is not None:
                tensor.record_stream(caller)
    times = item.frames.pts_seconds
    if not encoded.finite:
        cure = "its weights are broken" if encoder.dtype == torch.float32 else "use --precision float32"
        raise EncoderError(
            f"{reader.info.path}: {encoder.spec} in {encoder.dtype} made NaN or infinite features between "
            f"{times[0]:.3f} s and {times[-1]:.3f} s; {cure}"
        )
    features = FrameFeatures(tokens.patches, tokens.cls, tokens.attention, times, encoder.grid, encoder.id)
    return EncodedFrames(features, item.pixels, item.frames.index, item.featureless)


def _prefetch(make: Callable[[], Iterator[_Prepared]]) -> Iterator[_Prepared]:
    """Items of an iterator that runs in a thread of its own, at most QUEUED_BATCHES ahead; its error is raised here."""
    ahead: queue.Queue[tuple[_Prepared | None, BaseException | None]] = queue.Queue(QUEUED_BATCHES)
    stopped = threading.Event()

    def put(item: _Prepared | None, error: BaseException | None = None) -> bool:
        while not stopped.is_set():
            try:
                ahead.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in make():
                if not put(item):
                    return
            put(None)
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=produce, name="vsim-decode", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ahead.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
