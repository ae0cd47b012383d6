"""The stages of a run as actors of Ray Data, on this machine or on a cluster whose nodes see the same files."""

from __future__ import annotations

import logging
import os
import pickle
import queue
import socket
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch
from ray.data.exceptions import SystemException
from ray.exceptions import RayError, RayTaskError, UserCodeException

import vsim_fast
from vsim_fast.batch.engines import EngineConfig, Result
from vsim_fast.batch.jobs import TaskQueue
from vsim_fast.batch.ray_stages import (
    Decode,
    Encode,
    Ended,
    Spent,
    Table,
    encoder_facts,
    events_of,
    runs_of_frames,
)
from vsim_fast.errors import DeviceError, UsageError, VsimError, WorkerDied
from vsim_fast.pipeline import EncodedVideo, Timings
from vsim_fast.pipeline.frames import InputFormat
from vsim_fast.pipeline.many import BLOCK_FRAMES, MEMORY_SHARE, Gathered, bytes_per_frame
from vsim_fast.pipeline.reading import Failed, ReadOptions, Task
from vsim_fast.processor import available_memory, usable_cores

ROUND_VIDEOS = 256
"""Least videos of a round, where there are so many: each starts its actors anew, which takes seconds."""
ROUND_VIDEOS_PER_DECODER = 64
ROUND_TRIES = 3
"""Rounds that a video may take part in."""
PACKED_BATCHES = 4
"""Frames given to an encode actor at a time, in batches: only the last of them is not full."""
BLOCK_BYTES = 32 << 20
"""A Ray object with frames."""
STORE_BYTES_PER_ACTOR = 256 << 20
"""Of Ray's object store; decoding waits when that is used."""
TICK_SECONDS, QUIET_SECONDS, LEAVE_SECONDS, CONNECT_SECONDS = 0.05, 0.5, 2.0, 10.0
_ROOT = str(Path(vsim_fast.__file__).parents[1])
_END = object()


class RayEngine:
    """An `Engine` of Ray Data actors: those that decode take a CPU each, those that encode a GPU, or a CPU where the
    cluster has no GPU.

    Tasks go in rounds, a data set each. Ray Data replaces actors that die and repeats their work, always, and lets
    decoding wait while its share of the object store is full. What a round ends without is put into the next.

    Args:
        address: of a running cluster: "auto", HOST:PORT or ray://HOST:PORT; default the one this process is connected
            to already, or else one that lasts as long as this engine.
    Raises: UsageError, DeviceError, EncoderError.
    """

    def __init__(self, config: EngineConfig, device: str, address: str | None, timings: Timings):
        if config.decoder == "nvdec":
            raise UsageError("engine ray decodes on CPUs: decoder must be auto or pyav, got 'nvdec'")
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"engine ray: device must be auto, cpu or cuda, got {device!r}")
        self.config, self.device, self.address, self.timings = config, device, address, timings

    def __enter__(self) -> RayEngine:
        with ExitStack() as stack:
            stack.enter_context(_quiet())
            if self.address is not None or not ray.is_initialized():
                _connect(self.address)
                stack.callback(ray.shutdown)
            self._plan(ray.cluster_resources())
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    def _plan(self, resources: dict[str, float]) -> None:
        """Who gets what, and what the encoder is like where it will run."""
        cpus, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
        if self.device == "cuda" and not gpus:
            raise DeviceError("device cuda: no node of the Ray cluster has a GPU")
        on_gpu = gpus > 0 and self.device != "cpu"
        if (workers := self.config.workers) is not None and workers < 1:
            raise UsageError(f"workers must be 1 or more, got {workers}")
        self.decoders = workers or max(1, cpus - gpus if on_gpu else cpus // 2)
        self.encoders = gpus if on_gpu else max(1, cpus - self.decoders)
        share = min(1.0, cpus / (self.decoders + self.encoders))  # or some of the actors would wait for ever
        self._decode_resources = {"num_cpus": share}
        self._encode_resources = {"num_cpus": share} | ({"num_gpus": 1} if on_gpu else {})
        self._kind = "cuda" if on_gpu else "cpu"
        self._round_videos = max(ROUND_VIDEOS, ROUND_VIDEOS_PER_DECODER * self.decoders)
        self.lookahead = 2 * self._round_videos
        facts = ray.remote(encoder_facts).options(**self._encode_resources).remote(self.config, self._kind)
        try:
            with _errors():
                self._facts = ray.get(facts)
        except RayError as error:
            reason = str(error).partition("\n")[0]
            raise DeviceError(
                f"no node of the Ray cluster can load the encoder ({reason}); is this package there?"
            ) from error
        self.encoder = self._facts.description

    def describe(self) -> dict[str, Any]:
        devices = [self._kind] * self.encoders
        return {"engine": "ray", "devices": devices, "decoders": self.decoders, "encoders": self.encoders}

    def run(self, tasks: TaskQueue) -> Iterator[Result | None]:
        again: list[Task] = []
        tries: Counter[int] = Counter()
        while True:
            chosen = again
            yield from self._choose(tasks, chosen)
            if not chosen:
                return
            videos = {task.number: _Video(task) for task in chosen}
            broken = yield from self._round(videos)
            again = []
            tries.update(list(videos))
            for number, video in videos.items():
                if tries[number] < ROUND_TRIES:
                    again.append(video.task)
                elif broken is not None:
                    raise DeviceError(f"Ray failed {ROUND_TRIES} times, the last time with: {broken}") from broken
                else:
                    error = WorkerDied(video.task.file, f"Ray lost frames of it {ROUND_TRIES} times")
                    yield number, EncodedVideo(video.task.path, error=error, worker_died=True)

    def _choose(self, tasks: TaskQueue, chosen: list[Task]) -> Iterator[None]:
        """Adds what there is to do: a full round, or all that comes before nothing more does for a moment."""
        last = time.monotonic()
        while len(chosen) < self._round_videos and not tasks.ended:
            task = tasks.take(TICK_SECONDS)
            if task is not None:
                chosen.append(task)
                last = time.monotonic()
                continue
            yield None
            if chosen and time.monotonic() - last > QUIET_SECONDS:
                return

    def _round(self, videos: dict[int, _Video]) -> Iterator[Result | None]:
        """Results of `videos`, which are taken out of it. Returns the error that ended the round early, if one did."""
        features = self._facts.features(self.config.keep)
        with closing(_in_thread(self._tables([video.task for video in videos.values()]))) as tables:
            try:
                with _errors():
                    for table in tables:
                        for number in self._take_in(table, videos, features) if table is not None else ():
                            yield number, videos.pop(number).result(self.encoder)
                        yield None
            except RayError as error:  # of Ray, not of what runs in it: work that was lost
                return error
        return None

    def _take_in(self, table: pa.Table, videos: dict[int, _Video], features: Table) -> list[int]:
        """The videos that have all they need now."""
        touched: dict[int, _Video] = {}
        for number, event in events_of(table):
            if isinstance(event, VsimError):
                raise event
            self._account(event.seconds if isinstance(event, Spent) else getattr(event.event, "seconds", {}))
            if number in videos:
                touched[number] = videos[number]
                touched[number].hear(event)
        for number, frames in runs_of_frames(table):
            if number in videos:
                touched[number] = videos[number]
                touched[number].gathered.add(features.rows(frames))
        return [number for number, video in touched.items() if video.complete]

    def _account(self, seconds: dict[str, float]) -> None:
        for stage, value in seconds.items():
            self.timings.add(stage, value)

    def _reading(self) -> ReadOptions:
        facts, keep = self._facts, self.config.keep
        room = MEMORY_SHARE * available_memory() / (2 * self.decoders + 1)  # of this process, which gathers them all
        return ReadOptions(
            self.config.sampling, InputFormat(facts.preprocess, facts.dtype, torch.device("cpu")), decoder="pyav",
            block_frames=min(facts.batch_size, BLOCK_FRAMES),
            max_frames=max(1, int(room // bytes_per_frame(keep, facts.grid, facts.dim, facts.token_dtype))),
        )  # fmt: skip

    def _tables(self, tasks: list[Task]) -> Iterator[pa.Table]:
        """Features of the frames of all tasks, as `EncoderFacts.features` has them."""
        facts, config = self._facts, self.config
        data = ray.data.from_items([{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
        context = data.context
        context.enable_progress_bars = context.print_on_execution_start = False
        context.target_max_block_size = BLOCK_BYTES
        limits = context.execution_options.resource_limits
        bound = STORE_BYTES_PER_ACTOR * (self.decoders + self.encoders)
        context.execution_options.resource_limits = limits.copy(object_store_memory=bound)
        pixels, packed = facts.pixels(), PACKED_BATCHES * facts.batch_size
        frames = data.map_batches(
            Decode, batch_size=1, batch_format="pyarrow", **self._decode_resources,
            compute=_pool(self.decoders, len(tasks)),
            fn_constructor_args=(self._reading(), 2 * facts.batch_size, config.timeout, pixels),
        )  # fmt: skip
        features = frames.map_batches(
            Encode, batch_size=packed, batch_format="pyarrow", compute=_pool(self.encoders, len(tasks) // packed),
            fn_constructor_args=(config, self._kind, pixels, facts.features(config.keep)), **self._encode_resources,
        )  # fmt: skip
        yield from features.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


@dataclass
class _Video:
    """What has come of a video."""

    task: Task
    gathered: Gathered = field(default_factory=Gathered)
    end: Ended | None = None

    def hear(self, end: Ended) -> None:
        if not self.failed:
            self.end = end

    @property
    def failed(self) -> bool:
        return self.end is not None and isinstance(self.end.event, Failed)

    @property
    def complete(self) -> bool:
        """Failed, or every frame is there, once. Work that Ray repeated must not show."""
        if self.end is None or self.failed:
            return self.failed
        index = self.gathered.indices()
        return len(index) == self.end.frames == len(index.unique())

    def result(self, encoder: dict[str, Any]) -> EncodedVideo:
        event = self.end.event
        if isinstance(event, Failed):
            return EncodedVideo(self.task.path, error=event.error, worker_died=event.worker_died)
        return self.gathered.result(self.task.path, self.end.info, event.report, tuple(encoder["grid"]), encoder["id"])


def _pool(most: int, inputs: int) -> ray.data.ActorPoolStrategy:
    """All actors at once, or as few as there are inputs; then Ray Data adds those that it finds work for."""
    least = max(1, min(most, inputs))
    return ray.data.ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=2)


def _in_thread(tables: Iterator[pa.Table]) -> Iterator[pa.Table | None]:
    """`tables`, drawn in a thread; None where nothing comes."""
    ready: queue.Queue[Any] = queue.Queue(1)
    left = threading.Event()

    def put(item: Any) -> None:
        while not left.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def draw() -> None:
        try:
            with closing(tables):
                for table in tables:
                    put(table)
                    if left.is_set():
                        return
            put(_END)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=draw, name="vsim-ray", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = ready.get(timeout=TICK_SECONDS)
            except queue.Empty:
                yield None
                continue
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
        thread.join(LEAVE_SECONDS)  # it may wait for Ray, which nobody can interrupt but by leaving it


def _connect(address: str | None) -> None:
    """Raises: DeviceError."""
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"include_dashboard": False, "num_cpus": usable_cores()}
    else:
        options["address"] = address
        if _ROOT not in map(str, (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
            options["runtime_env"] = {"env_vars": {"PYTHONPATH": _ROOT + os.pathsep + "${PYTHONPATH}"}}
        host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if address is not None and port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        with _environment():
            ray.init(**options)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise DeviceError(f"Ray {where}: {error}") from error


@contextmanager
def _environment() -> Iterator[None]:
    """What the processes of a Ray started here inherit: where this package is, and to tell their logs, not us."""
    new = {
        "PYTHONPATH": os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")])),
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }
    old = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data says when it starts, how it ends, and what it raises; a run says that itself."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _errors() -> Iterator[None]:
    """What an actor raised, as it raised it, where the user can act on it; what Ray did not manage as a RayError."""
    try:
        yield
    except RayTaskError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, (VsimError, RayError)) and not isinstance(cause, (RayTaskError, UserCodeException)):
                raise cause from None
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise RuntimeError(f"an actor of Ray failed: {error}") from error
    except SystemException as error:
        raise DeviceError(f"Ray Data cannot go on: {error}") from error
