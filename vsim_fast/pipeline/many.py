"""Many videos: decoded side by side, encoded in batches that are filled across videos, handed back one by one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.encode import load_encoder
from vsim_fast.encode.base import Encoder
from vsim_fast.errors import EncoderError, UsageError, VsimError
from vsim_fast.ops._threads import one_thread
from vsim_fast.pipeline.encoding import encode_blocks
from vsim_fast.pipeline.fork_server import ForkServer
from vsim_fast.pipeline.frames import Block, EncodedFrames, InputFormat
from vsim_fast.pipeline.reading import Failed, Finished, Opened, ReadOptions, Task
from vsim_fast.pipeline.sources import DecodeProcesses, DecodeThreads, Source
from vsim_fast.pipeline.timings import Timings
from vsim_fast.processor import available_memory, usable_cores
from vsim_fast.records import FrameFeatures, VideoInfo
from vsim_fast.video import DecodeReport, Sampling

BLOCK_FRAMES = 16
IDLE_SECONDS = 0.02
"""Frames that wait for a full batch wait no longer than this for the next."""
CPU_DECODERS, CUDA_DECODERS = 4, 8
"""Videos read at a time: one NVDEC engine serves one video, an H200 has seven."""
MEMORY_SHARE = 0.25
"""Of what is free at the start, for features that wait for the rest of their video."""
TIMEOUT_SECONDS = 120.0
KEPT = ("patches", "cls", "attention", "pooled")


class Frames(NamedTuple):
    """Encoded frames of a video; its frames come in order, in one or more of these."""

    video: int
    encoded: EncodedFrames


def stream_videos(
    tasks: Iterable[Task],
    encoder: Encoder,
    sampling: Sampling,
    *,
    decoder: Literal["auto", "pyav", "nvdec"] = "auto",
    workers: int | None = None,
    isolate: bool | None = None,
    timeout: float = TIMEOUT_SECONDS,
    max_frames: int | None = None,
    image_fps: float | None = None,
    server: ForkServer | None = None,
    timings: Timings | None = None,
) -> Iterator[Opened | Frames | Finished | Failed | None]:
    """What comes of videos, as it comes; those of different videos mix.

    Args:
        tasks: numbers are unique; drawn from in another thread, as workers become free.
        workers: videos decoded at a time; default 8 on CUDA, else the usable cores, at most 4.
        isolate: decode in processes of their own, so that a decoder that crashes costs one video; default wherever
            frames do not stay on the GPU.
        timeout: seconds without progress after which a process is ended, or a thread left behind.
        max_frames: videos of which more frames would be taken fail.
        server: of decode processes, started before the encoder was loaded, so that it is ready by now; ended here.
    Yields:
        For each task Opened, Frames, ..., Finished, or Failed after any of these; None where nothing comes.
        EncoderError in a Failed: features were NaN or infinite.
    """
    timings = timings or Timings()
    require_timeout(timeout)
    if isolate is None:
        isolate = not _stays_on_gpu(encoder, decoder)
    workers = worker_count(encoder, decoder, workers)
    options = ReadOptions(
        sampling, InputFormat(encoder.preprocess, encoder.dtype, encoder.device), decoder=decoder,
        block_frames=min(encoder.batch_size, BLOCK_FRAMES), threads=max(1, usable_cores() // workers),
        max_frames=max_frames, image_fps=image_fps,
    )  # fmt: skip
    queued = dict(workers=workers, queue_frames=2 * encoder.batch_size, timeout=timeout)
    source: Source
    if isolate:
        source = DecodeProcesses(tasks, options, **queued, server=server)
    else:
        source = DecodeThreads(tasks, options, **queued)
    try:
        yield from _Stream(source, encoder, timings)
    finally:
        source.close()


def worker_count(encoder: Encoder, decoder: str, workers: int | None = None) -> int:
    """Videos to decode at a time.  Raises: UsageError."""
    if workers is None:
        return CUDA_DECODERS if _stays_on_gpu(encoder, decoder) else min(usable_cores(), CPU_DECODERS)
    if workers < 1:
        raise UsageError(f"workers must be 1 or more, got {workers}")
    return workers


def early_server(device: str, decoder: str, isolate: bool | None) -> ForkServer | None:
    """The fork server that videos on `device` will need; None if threads decode them, or that is not known yet."""
    known = device == "cpu" or decoder == "pyav" or not torch.cuda.is_available()
    return ForkServer() if isolate or (isolate is None and known) else None


def require_timeout(seconds: float) -> None:
    """Raises: UsageError."""
    if not seconds > 0:
        raise UsageError(f"timeout must be more than 0 seconds, got {seconds}")


def _stays_on_gpu(encoder: Encoder, decoder: str) -> bool:
    return encoder.device.type == "cuda" and decoder != "pyav"


@dataclass
class _Live:
    """A video that has been opened and whose reader has not ended it."""

    pending: int = 0
    """Frames between its reader and the consumer."""
    end: Finished | None = None
    """Told when no frame is pending any more."""
    failed: bool = False
    """Told already; what is still on its way is dropped."""


class _Stream:
    """Puts the end of each video behind its last frames, which wait for a full batch when it is heard of."""

    def __init__(self, source: Source, encoder: Encoder, timings: Timings):
        self.source, self.encoder, self.timings = source, encoder, timings
        self.live: dict[int, _Live] = {}
        self.told: list[Opened | Finished | Failed] = []

    def __iter__(self) -> Iterator[Opened | Frames | Finished | Failed | None]:
        for item in encode_blocks(self._blocks(), self.encoder, self.timings, pack=True):
            yield from self._tell()
            if item is None:
                yield None
                continue
            block, encoded = item
            video, live = block.video, self.live.get(block.video)
            if live is None or live.failed:
                continue
            if isinstance(encoded, EncoderError):
                live.failed = True
                yield Failed(video, encoded)
                continue
            live.pending -= len(encoded.index)
            yield Frames(video, encoded)
            if live.end is not None and not live.pending:
                del self.live[video]
                yield live.end
        yield from self._tell()

    def _tell(self) -> Iterator[Opened | Finished | Failed]:
        told, self.told = self.told, []
        yield from told

    def _blocks(self) -> Iterator[Block | None]:
        for event in self.source.events(IDLE_SECONDS):
            if event is None:
                yield None
            elif isinstance(event, Block):
                self.live[event.video].pending += len(event)
                yield event
            elif isinstance(event, Opened):
                self.live[event.video] = _Live()
                self.told.append(event)
            else:
                self._ended(event)

    def _ended(self, event: Finished | Failed) -> None:
        live = self.live.get(event.video)
        for stage, seconds in event.seconds.items() if isinstance(event, Finished) else ():
            self.timings.add(stage, seconds)
        if isinstance(event, Finished) and live is not None and live.pending and not live.failed:
            live.end = event
            return
        self.live.pop(event.video, None)
        if live is None or not live.failed:
            self.told.append(event)


@dataclass(frozen=True)
class EncodedVideo:
    """All of one video, or why there is nothing."""

    path: str
    features: FrameFeatures | None = None
    """On the encoder's device; what was not to be kept is None."""
    pooled: Tensor | None = None
    """[T, D] mean patch token of each frame, if kept."""
    embedding: Tensor | None = None
    """float32 [D] on the CPU, of length 1: mean of the normalised embeddings of the frames that are not featureless."""
    featureless: Tensor | None = None
    """bool [T] on the CPU."""
    info: VideoInfo | None = None
    report: DecodeReport | None = None
    error: VsimError | None = None
    worker_died: bool = False
    """The process that read it crashed or hung; it may do so again."""


def encode_videos(
    paths: Iterable[str | os.PathLike],
    encoder: str | Encoder = "builtin",
    sampling: Sampling | None = None,
    *,
    keep: Sequence[str] = ("patches", "cls", "attention"),
    device: str = "auto",
    precision: str = "auto",
    execution: str = "eager",
    decoder: Literal["auto", "pyav", "nvdec"] = "auto",
    workers: int | None = None,
    isolate: bool | None = None,
    timeout: float = TIMEOUT_SECONDS,
    memory_bytes: int | None = None,
    timings: Timings | None = None,
) -> Iterator[EncodedVideo]:
    """Features of many videos at the speed of the slower of decoder and encoder, in order of completion.

    Args:
        paths: video files or folders of images; an iterator is drawn from as workers become free.
        encoder: spec, or an encoder made by `load_encoder` (device, precision and execution are then its own).
        sampling: which frames; default one a second, at most 100.
        keep: of "patches", "cls", "attention", "pooled": what each result holds.
        decoder, workers, isolate, timeout: see `stream_videos`.
        memory_bytes: for what is kept of unfinished videos; default a quarter of what is free. A video that would not
            fit into its share fails.
    Yields:
        For each path its features, or its error as a value: OpenError, CorruptVideo, ... (see `open_video`),
        UnsupportedVideo where it does not fit, WorkerDied, EncoderError.
    Raises:
        UsageError, EncoderError, DeviceError: for all of it.
    """
    names: dict[int, str] = {}

    def tasks() -> Iterator[Task]:
        for number, path in enumerate(paths):
            names[number] = os.fspath(path)
            yield Task(number, names[number], names[number])

    sampling = sampling or Sampling(fps=1.0, max_frames=100)
    options = dict(decoder=decoder, workers=workers, isolate=isolate, timeout=timeout, timings=timings)
    with ExitStack() as stack:
        if isinstance(encoder, str):
            if (server := early_server(device, decoder, isolate)) is not None:
                stack.callback(server.close)
            options["server"] = server
            encoder = load_encoder(encoder, device=device, precision=precision, execution=execution)
        for item in gather_videos(tasks(), encoder, sampling, keep, memory_bytes=memory_bytes, **options):
            if item is not None:
                yield item[1]


def gather_videos(
    tasks: Iterable[Task],
    encoder: Encoder,
    sampling: Sampling,
    keep: Sequence[str],
    *,
    memory_bytes: int | None = None,
    workers: int | None = None,
    **options: Any,
) -> Iterator[tuple[int, EncodedVideo] | None]:
    """`encode_videos` of tasks: each result with the number of its task, and None now and then while nothing ends."""
    gathering = _Gathering(encoder, keep)
    budget = memory_bytes if memory_bytes is not None else int(MEMORY_SHARE * free_memory(encoder.device))
    workers = worker_count(encoder, options.get("decoder", "auto"), workers)
    limit = max(1, budget // (workers + 1) // bytes_per_frame(keep, encoder.grid, encoder.dim, encoder.token_dtype))
    stream = stream_videos(gathering.note(tasks), encoder, sampling, workers=workers, max_frames=limit, **options)
    with closing(stream):
        for event in stream:
            with one_thread():
                result = gathering.add(event)
            yield result


class _Gathering:
    """Collects the events of videos to one result each.

    Raises: UsageError: `keep`.
    """

    def __init__(self, encoder: Encoder, keep: Sequence[str]):
        for name in keep:
            if name not in KEPT:
                raise UsageError(f"keep must be of {', '.join(KEPT)}, got {name!r}")
        self.encoder, self.keep = encoder, frozenset(keep)
        self._paths: dict[int, str] = {}
        self._open: dict[int, tuple[VideoInfo, Gathered]] = {}

    def note(self, tasks: Iterable[Task]) -> Iterator[Task]:
        for task in tasks:
            self._paths[task.number] = task.path
            yield task

    def add(self, event: Opened | Frames | Finished | Failed | None) -> tuple[int, EncodedVideo] | None:
        """The video that `event` ends, if it ends one."""
        if isinstance(event, Opened):
            self._open[event.video] = (event.info, Gathered())
        elif isinstance(event, Frames):
            self._open[event.video][1].add(kept_rows(event.encoded, self.keep))
        elif event is not None:
            path, opened = self._paths.pop(event.video), self._open.pop(event.video, None)
            if isinstance(event, Failed):
                return event.video, EncodedVideo(path, error=event.error, worker_died=event.worker_died)
            info, gathered = opened
            return event.video, gathered.result(path, info, event.report, self.encoder.grid, self.encoder.id)
        return None


def bytes_per_frame(keep: Iterable[str], grid: tuple[int, int], dim: int, token_dtype: torch.dtype) -> int:
    """What is kept of a frame."""
    patches = grid[0] * grid[1]
    sizes = {"patches": patches * dim * token_dtype.itemsize, "attention": 4 * patches}
    return 64 + 4 * dim + sum(sizes.get(name, 4 * dim) for name in set(keep))


def kept_rows(encoded: EncodedFrames, keep: Iterable[str]) -> dict[str, Tensor]:
    """What is kept of frames, a row per frame: those of `keep` that there are, and what every result needs: "frames"
    float32 [B, D], their normalised embeddings, "pts_seconds", "index" and "featureless"."""
    features = encoded.features
    pooled = features.patches.float().mean(1)
    kept = {"pooled": pooled, "cls": features.cls, "attention": features.attention, "patches": features.patches}
    rows = {name: kept[name] for name in keep if kept[name] is not None}
    rows["frames"] = F.normalize(pooled if features.cls is None else features.cls.float(), dim=1)
    return rows | {"pts_seconds": features.pts_seconds, "index": encoded.index, "featureless": encoded.featureless}


class Gathered:
    """The rows of one video, which may come in any order."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Tensor]] = {}

    def add(self, rows: dict[str, Tensor]) -> None:
        for name, x in rows.items():
            # Rows of a batch are shared with other videos, which would be kept alive with them.
            shared = x.untyped_storage().nbytes() > x.nbytes
            self._columns.setdefault(name, []).append(x.clone() if shared else x)

    def indices(self) -> Tensor:
        """int64 [T]: of the frames that have come."""
        return torch.cat([torch.empty(0, dtype=torch.int64), *self._columns.get("index", ())])

    def result(
        self, path: str, info: VideoInfo, report: DecodeReport, grid: tuple[int, int], encoder_id: str
    ) -> EncodedVideo:
        rows = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in self._columns.items()}
        index = rows["index"]
        if (index[1:] < index[:-1]).any():
            order = index.argsort()
            rows = {name: x[order.to(x.device)] for name, x in rows.items()}
        blank, frames = rows["featureless"], rows["frames"]
        shown = frames if blank.all() else frames[~blank.to(frames.device)]
        embedding = F.normalize(shown.mean(0), dim=0).cpu()
        features = FrameFeatures(
            rows.get("patches"), rows.get("cls"), rows.get("attention"), rows["pts_seconds"], grid, encoder_id
        )
        return EncodedVideo(path, features, rows.get("pooled"), embedding, blank, info, report)


def free_memory(device: torch.device) -> int:
    """Bytes free on the device, or of this machine."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
