"""The process of one device: loads the encoder, then does what `LocalEngine` does with the tasks it is sent.

from the user: EngineConfig and device, then Task ..., None at the end
to the user:   Ready or an error; then Began, Ended ..., "alive"
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from vsim_fast.batch.engines import LocalEngine
from vsim_fast.batch.jobs import TaskQueue
from vsim_fast.errors import VsimError
from vsim_fast.pipeline import EncodedVideo, Timings
from vsim_fast.pipeline.reading import Task

ALIVE_SECONDS = 1.0


class Ready(NamedTuple):
    encoder: dict[str, Any]
    decoders: int
    lookahead: int


class Began(NamedTuple):
    """A task is being read."""

    number: int


class Ended(NamedTuple):
    number: int
    video: EncodedVideo
    seconds: dict[str, float]
    """Busy time per stage since the process began."""


class Channel:
    """Plain pickles both ways. torch's own way of sending tensors between processes needs files or servers."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self._sending = threading.Lock()

    def send(self, message: Any) -> None:
        data = pickle.dumps(message, protocol=5)
        with self._sending:
            self.connection.send_bytes(data)

    def receive(self) -> Any:
        return pickle.loads(self.connection.recv_bytes())


def main() -> None:
    channel = Channel(Connection(int(sys.argv[1])))
    try:
        config, device = channel.receive()
    except (EOFError, OSError):
        os._exit(0)  # the user is gone
    timings = Timings()
    try:
        engine = LocalEngine(config, device, timings)
        channel.send(Ready(engine.encoder, engine.decoders, engine.lookahead))
        work(channel, engine, timings)
    except VsimError as error:
        channel.send(error)
    except (BrokenPipeError, ConnectionResetError):
        pass
    os._exit(0)  # threads that hang, libraries that take long to go


def work(channel: Channel, engine: LocalEngine, timings: Timings) -> None:
    tasks = TaskQueue()
    threading.Thread(target=_receive, args=(channel, tasks), daemon=True).start()

    def begun() -> Iterator[Task]:
        for task in tasks:
            channel.send(Began(task.number))
            yield task

    told = time.monotonic()
    for result in engine.run(begun()):
        if result is not None:
            number, video = result
            channel.send(Ended(number, on_cpu(video), timings.seconds()))
        elif time.monotonic() - told > ALIVE_SECONDS:
            channel.send("alive")
        else:
            continue
        told = time.monotonic()


def _receive(channel: Channel, tasks: TaskQueue) -> None:
    try:
        while (task := channel.receive()) is not None:
            tasks.put(task)
    except (EOFError, OSError):
        os._exit(0)  # the user is gone
    tasks.close()


def on_cpu(video: EncodedVideo) -> EncodedVideo:
    def moved(x: Any) -> Any:
        return x.cpu() if isinstance(x, torch.Tensor) else x

    features = video.features
    if features is not None:
        columns = {name: moved(getattr(features, name)) for name in ("patches", "cls", "attention")}
        features = replace(features, **columns)
    return replace(video, features=features, pooled=moved(video.pooled))
