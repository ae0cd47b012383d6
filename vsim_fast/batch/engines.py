"""Who does the work: tasks in, videos out. An engine may hand a video out twice; whoever takes it does not mind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from vsim_fast.batch.jobs import TaskQueue
from vsim_fast.encode import load_encoder
from vsim_fast.encode.base import Encoder
from vsim_fast.pipeline import EncodedVideo, Timings
from vsim_fast.pipeline.many import gather_videos, worker_count
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

    def load(self, device: str) -> Encoder:
        return load_encoder(self.encoder, device, self.precision, self.image_size, offline=self.offline)


class Engine(Protocol):
    """
    Attributes:
        lookahead: how many tasks it is good to have ready for it.
        decoders: videos it decodes at a time.
    """

    lookahead: int
    decoders: int

    def run(self, tasks: TaskQueue) -> Iterator[Result | None]:
        """Results of tasks by number, in order of completion; None now and then, so that the caller gets to work."""

    def describe(self) -> dict[str, Any]:
        """What the summary says of it."""


class LocalEngine:
    """This process and its decode workers, one device."""

    def __init__(self, config: EngineConfig, encoder: Encoder, timings: Timings):
        self.config, self.encoder, self.timings = config, encoder, timings
        self.decoders = worker_count(encoder, config.decoder, config.workers)
        self.lookahead = 4 * self.decoders

    def run(self, tasks: TaskQueue) -> Iterator[Result | None]:
        config = self.config
        return gather_videos(
            tasks, self.encoder, config.sampling, config.keep, decoder=config.decoder, workers=config.workers,
            timeout=config.timeout, timings=self.timings,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        return {"engine": "local", "devices": [str(self.encoder.device)], "decoders": self.decoders}
