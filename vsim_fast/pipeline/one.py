"""One open video: a thread decodes ahead while the calling thread runs the encoder."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

from vsim_fast.encode.base import Encoder
from vsim_fast.errors import EncoderError
from vsim_fast.pipeline.encoding import encode_blocks
from vsim_fast.pipeline.frames import EncodedFrames, InputFormat, prepare
from vsim_fast.pipeline.timings import Timings
from vsim_fast.video import VideoReader

QUEUED_BATCHES = 2
Item = TypeVar("Item")


def encode_video(reader: VideoReader, encoder: Encoder, timings: Timings | None = None) -> Iterator[EncodedFrames]:
    """Features of the planned frames of an open video, in order of presentation, one decoded batch at a time.

    Open the reader with `batch_size=encoder.batch_size` and `device=encoder.device`.

    Raises:
        DecodeError: as the reader's policy says.
        EncoderError: a feature is NaN or infinite.
    """
    timings = timings or Timings()
    form = InputFormat(encoder.preprocess, encoder.dtype, encoder.device)

    def blocks():
        info = getattr(reader, "info", None)
        return prepare(reader, form, timings, path=info.path if info else "")

    with closing(prefetch(blocks)) as ahead:
        for _, encoded in encode_blocks(ahead, encoder, timings, pack=False):
            if isinstance(encoded, EncoderError):
                raise encoded
            yield encoded


def prefetch(make: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    """Items of an iterator that runs in a thread of its own, at most QUEUED_BATCHES ahead; its error is raised here."""
    ahead: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(QUEUED_BATCHES)
    stopped = threading.Event()

    def put(item: Item | None, error: BaseException | None = None) -> bool:
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
