"""One video read for the encoder, as a sequence of events; runs in a decode thread or a decode process."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vsim_fast.errors import ChangedVideo, CorruptVideo, DoesNotFit, VsimError
from vsim_fast.pipeline.frames import Block, InputFormat, prepare
from vsim_fast.pipeline.timings import Timings
from vsim_fast.records import VideoInfo
from vsim_fast.video import DecodeReport, Sampling, open_video


class Task(NamedTuple):
    """A video to read."""

    number: int
    path: str
    """What it is called."""
    file: str
    """What is opened: `path`, or a local copy of it."""


@dataclass(frozen=True)
class ReadOptions:
    """How all videos of a run are read."""

    sampling: Sampling
    form: InputFormat
    decoder: str = "auto"
    block_frames: int = 16
    """Most frames per block."""
    threads: int = 1
    """Of PyAV, per video."""
    max_frames: int | None = None
    """Videos of which more frames would be taken are refused: their features would not fit into the memory."""
    image_fps: float | None = None


class Opened(NamedTuple):
    video: int
    info: VideoInfo
    planned: int
    """Frames to come, if all decode."""
    report: DecodeReport
    """Live in the process that reads."""


class Finished(NamedTuple):
    video: int
    report: DecodeReport
    seconds: dict[str, float]
    """Busy time per stage."""


class Failed(NamedTuple):
    video: int
    error: VsimError
    worker_died: bool = False
    """The reader did not say so itself: it crashed or hung."""


Event = Opened | Block | Finished | Failed


def read_video(task: Task, options: ReadOptions) -> Iterator[Event]:
    """Opened, blocks, then Finished; or Failed, at any point. Raises nothing."""
    timings = Timings()
    device = options.form.device
    try:
        before = _stamp(task.file)
        with timings.stage("probe"):
            reader = open_video(
                task.file, options.sampling, decoder=options.decoder, device=device, batch_size=options.block_frames,
                threads=options.threads, image_fps=options.image_fps,
            )  # fmt: skip
        with reader:
            planned = len(reader.plan)
            if options.max_frames is not None and planned > options.max_frames:
                raise DoesNotFit(
                    task.file,
                    f"{planned} frames would be taken, the memory holds what is kept of {options.max_frames}; "
                    "keep less, or take fewer frames",
                )
            yield Opened(task.number, reader.info, planned, reader.report)
            count = 0
            for block in prepare(reader, options.form, timings, video=task.number, path=task.path):
                count += len(block)
                yield block
        if before != _stamp(task.file):
            raise ChangedVideo(task.file, "it changed while it was read; run again once it is complete")
        if not count:
            raise CorruptVideo(task.file, f"none of the {planned} planned frames decodes")
        yield Finished(task.number, reader.report, timings.seconds())
    except VsimError as error:
        yield Failed(task.number, error)
    except Exception as error:  # one file must not stop the others, whatever a library makes of it
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"unexpected {type(error).__name__} at {os.path.basename(where.filename)}:{where.lineno}: {error}"
        yield Failed(task.number, CorruptVideo(task.file, reason))


def _stamp(path: str) -> tuple[int, int] | None:
    """What changes when a file does; None where there is none, which opening it tells better."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
