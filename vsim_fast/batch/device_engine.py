"""One process per device. A crash of its decoder, its driver or its libraries costs the videos that were being read."""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from vsim_fast.batch.device_worker import Began, Channel, Ended, Ready
from vsim_fast.batch.engines import EngineConfig, Result
from vsim_fast.batch.jobs import TaskQueue
from vsim_fast.errors import DeviceError, VsimError, WorkerDied
from vsim_fast.pipeline import EncodedVideo, Timings
from vsim_fast.pipeline.fork_server import start_python
from vsim_fast.pipeline.reading import Task
from vsim_fast.pipeline.sources import STOPPED_SECONDS

TICK_SECONDS = 0.05


class DeviceEngine:
    """An `Engine` over several devices, or over one that had better have a process of its own."""

    def __init__(self, config: EngineConfig, devices: list[str], timings: Timings):
        self.config, self.devices, self.timings = config, devices, timings
        self.encoders = len(devices)
        self._processes: list[_Device] = []
        self._back: deque[Task] = deque()  # of a process that died before it read them

    def __enter__(self) -> DeviceEngine:
        try:
            for device in self.devices:  # all load at the same time
                self._processes.append(_Device(self.config, device))
            ready = [process.ready() for process in self._processes]
        except BaseException:
            self.__exit__()
            raise
        self.encoder = ready[0].encoder
        if others := {each.encoder["id"] for each in ready} - {self.encoder["id"]}:
            self.__exit__()
            raise DeviceError(
                f"devices {', '.join(self.devices)} would make features that cannot be compared: encoder "
                f"{self.encoder['id']} and {others.pop()}; name a --precision that all of them have"
            )
        self.decoders = sum(each.decoders for each in ready)
        self._ahead = ready[0].lookahead
        self.lookahead = sum(each.lookahead for each in ready)
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.end()

    def run(self, tasks: TaskQueue) -> Iterator[Result | None]:
        looked = time.monotonic()
        while True:
            self._hand_out(tasks)
            if tasks.ended and not self._back and not any(process.given for process in self._processes):
                return
            by_connection = {process.channel.connection: process for process in self._processes}
            for connection in wait(list(by_connection), TICK_SECONDS):
                yield from self._taken_in(by_connection[connection])
            stopped, looked = time.monotonic() - looked > STOPPED_SECONDS, time.monotonic()
            for process in self._processes:
                process.watch(self.config.timeout, stopped)
            yield None

    def describe(self) -> dict[str, Any]:
        return {"engine": "processes", "devices": self.devices, "decoders": self.decoders}

    def _hand_out(self, tasks: TaskQueue) -> None:
        for process in sorted(self._processes, key=lambda process: len(process.given)):
            while len(process.given) < self._ahead:
                task = self._back.popleft() if self._back else tasks.take(0)
                if task is None:
                    return
                process.give(task)

    def _taken_in(self, process: _Device) -> Iterator[Result]:
        try:
            message = process.receive()
        except (EOFError, OSError):
            yield from self._replace(process)
            return
        if isinstance(message, Ended):
            for stage, seconds in process.newly_busy(message.seconds):
                self.timings.add(stage, seconds)
            yield message.number, message.video
        elif isinstance(message, VsimError):
            raise message

    def _replace(self, process: _Device) -> Iterator[Result]:
        how = process.end()
        for number, task in process.given.items():
            if number in process.begun:
                error = WorkerDied(task.file, f"{how} while it was read, perhaps with others")
                yield number, EncodedVideo(task.path, error=error, worker_died=True)
            else:
                self._back.append(task)
        new = _Device(self.config, process.device)
        self._processes[self._processes.index(process)] = new
        new.ready()


class _Device:
    def __init__(self, config: EngineConfig, device: str):
        self.device = device
        kind, _, number = device.partition(":")
        environment = {}
        if kind == "cuda":
            # A process sees its own GPU alone: PyNvVideoCodec's frames always claim to be on the first.
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            index = int(number or 0)
            environment["CUDA_VISIBLE_DEVICES"] = visible[index] if index < len(visible) and visible[0] else str(index)
        self._process, connection = start_python("vsim_fast.batch.device_worker", **environment)
        self.channel = Channel(connection)
        self.given: dict[int, Task] = {}
        self.begun: set[int] = set()
        self._busy: dict[str, float] = {}
        self._hung_after: float | None = None
        self._heard = time.monotonic()
        self.channel.send((config, kind if kind == "cuda" else device))

    def ready(self) -> Ready:
        """Raises: EncoderError, DeviceError, UsageError: what the process says; DeviceError: it died."""
        try:
            message = self.channel.receive()
        except (EOFError, OSError):
            raise DeviceError(f"device {self.device}: {self.end()} while the encoder was loaded") from None
        if isinstance(message, VsimError):
            raise message
        self._heard = time.monotonic()
        return message

    def give(self, task: Task) -> None:
        self.given[task.number] = task
        with suppress(OSError):  # its end is found out when it is listened to
            self.channel.send(task)

    def receive(self) -> Any:
        message = self.channel.receive()
        self._heard = time.monotonic()
        if isinstance(message, Began):
            self.begun.add(message.number)
        elif isinstance(message, Ended):
            self.given.pop(message.number, None)
            self.begun.discard(message.number)
        return message

    def newly_busy(self, seconds: dict[str, float]) -> list[tuple[str, float]]:
        newly = [(stage, value - self._busy.get(stage, 0.0)) for stage, value in seconds.items()]
        self._busy = seconds
        return newly

    def watch(self, timeout: float, stopped: bool) -> None:
        """End it if it says nothing; its own watch over decoders answers within `timeout`. `stopped`: nobody has
        listened for a while."""
        if stopped:
            self._heard = time.monotonic()
        if self.begun and time.monotonic() - self._heard > 2 * timeout:
            self._hung_after = 2 * timeout
            self._process.kill()

    def end(self) -> str:
        """End the process, say how it ended."""
        self.channel.connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        code = self._process.wait()
        if self._hung_after is not None:
            return f"no progress for {self._hung_after:g} s"
        return f"the process died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
