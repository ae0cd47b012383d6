"""Who does the work: tasks in, videos out. An engine may hand a video out twice; whoever takes it does not mind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from vsim_fast.batch.jobs import TaskQueue
from vsim_fast.encode import load_encoder
from vsim_fast.encode.base import Encoder
from vsim_fast.errors import UsageError
from vsim_fast.pipeline import EncodedVideo, Timings
from vsim_fast.pipeline.many import early_server, gather_videos, worker_count
from vsim_fast.pipeline.reading import Task
from vsim_fast.video import Sampling

Result = tuple[int, EncodedVideo]


@dataclass(frozen=True)
class EngineConfig:
    """All that an engine needs, wherever it runs. Goes to other processes and machines."""

    encoder: str
    """Spec."""
    precision: str
    image_size: int | None
    offline: bool
    sampling: Sampling
    keep: tuple[str, ...]
    decoder: str
    workers: int | None
    timeout: float
    isolate: bool | None = None
    execution: str = "eager"

    def load(self, device: str) -> Encoder:
        return load_encoder(
            self.encoder, device, self.precision, self.image_size, execution=self.execution, offline=self.offline
        )


class Engine(Protocol):
    """A context manager, ready to run within.

    Attributes:
        lookahead: how many tasks it is good to have ready for it.
        decoders: videos it decodes at a time.  encoders: devices that encode.
        encoder: `Encoder.describe()` of the encoder it uses.
    """

    lookahead: int
    decoders: int
    encoders: int
    encoder: dict[str, Any]

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exception: object) -> None: ...

    def run(self, tasks: TaskQueue) -> Iterator[Result | None]:
        """Results of tasks by number, in order of completion; None now and then, so that the caller gets to work."""

    def describe(self) -> dict[str, Any]:
        """What the summary says of it."""


Kind = Literal["local", "ray"]


def make_engine(
    config: EngineConfig, device: str, timings: Timings, kind: Kind = "local", address: str | None = None
) -> Engine:
    """The engine for `device`: "auto" is every GPU there is, else the CPU; several are separated by commas.

    Each GPU gets a process of its own, so that a decoder that crashes there costs the videos being read and not the
    run, and so does each of several devices. With the kind "ray" see `RayEngine`.
    """
    if kind not in ("local", "ray"):
        raise UsageError(f"engine must be local or ray, got {kind!r}")
    if kind == "ray":
        try:
            from vsim_fast.batch.ray_engine import RayEngine
        except ModuleNotFoundError as error:
            raise UsageError(f"engine ray: {error.name} is missing: pip install 'vsim_fast[ray]'") from error
        return RayEngine(config, device, address, timings)
    if address is not None:
        raise UsageError("address is that of a Ray cluster: use it with engine ray")
    devices = [name.strip() for name in device.split(",")]
    if devices == ["auto"]:
        devices = [f"cuda:{n}" for n in range(torch.cuda.device_count())] or ["cpu"]
    if len(devices) == 1 and not devices[0].startswith("cuda"):
        return LocalEngine(config, devices[0], timings)
    from vsim_fast.batch.device_engine import DeviceEngine

    return DeviceEngine(config, devices, timings)


class LocalEngine:
    """This process and its decode workers, one device."""

    encoders = 1

    def __init__(self, config: EngineConfig, device: str, timings: Timings):
        self.config, self.timings = config, timings
        self._server = early_server(device, config.decoder, config.isolate)
        try:
            self._model = config.load(device)
        except BaseException:
            self.__exit__()
            raise
        self.encoder = self._model.describe()
        self.decoders = worker_count(self._model, config.decoder, config.workers)
        # Of short videos, many are between decoder and encoder at a time: they must not be the only ones it knows.
        self.lookahead = 4 * (self.decoders + self._model.batch_size)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._server is not None:
            self._server.close()

    def run(self, tasks: Iterable[Task]) -> Iterator[Result | None]:
        config = self.config
        return gather_videos(
            tasks, self._model, config.sampling, config.keep, decoder=config.decoder, workers=config.workers,
            isolate=config.isolate, timeout=config.timeout, server=self._server, timings=self.timings,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        return {"engine": "local", "devices": [self.encoder["device"]], "decoders": self.decoders}
