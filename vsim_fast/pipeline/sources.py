"""Where the events of many videos come from: decode processes, or threads of this process."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import prod
from multiprocessing.connection import wait
from typing import Any, Protocol

import torch

from vsim_fast.errors import WorkerDied
from vsim_fast.pipeline.decode_worker import Ring, Sent, Waiting
from vsim_fast.pipeline.fork_server import ForkServer, Worker
from vsim_fast.pipeline.frames import Block
from vsim_fast.pipeline.reading import Event, Failed, Finished, ReadOptions, Task, read_video

RING_BYTES = 256 << 20
"""Most memory between one decode process and the encoder."""
QUEUED_TASKS = 2
"""Videos a decode process knows of: the one it reads and the next."""
WATCH_SECONDS = 0.5
STOPPED_SECONDS = 10 * WATCH_SECONDS
"""Who did not look for so long was stopped (Ctrl-Z), and those it looks after, too: their silence means nothing."""
DRAWING_SECONDS = 0.5
LONG_IDLE_SECONDS = 0.1
_END = object()


class Source(Protocol):
    """Reads the videos of its tasks, several at a time, ahead of whoever takes the events."""

    def events(self, idle_seconds: float) -> Iterator[Event | None]:
        """Of all tasks, each video's in order; None where nothing came for so long. Raises what the tasks raise."""

    def close(self) -> None:
        """End what is running, and wait for it."""


class DecodeProcesses:
    """A `Source` of worker processes. A crash or a hang costs one video, `Failed(worker_died=True)`; its worker is
    replaced.

    Args:
        tasks: drawn from in a thread of its own; may block.
        queue_frames: about how many frames may lie between all workers and the encoder.
        timeout: seconds without a sign of progress after which a worker is ended.
        server: started earlier, which takes seconds; it is ended with this.
    Raises: DeviceError: processes cannot be started.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        options: ReadOptions,
        *,
        workers: int,
        queue_frames: int,
        timeout: float,
        server: ForkServer | None = None,
    ):
        shape = (3, *options.form.preprocess.size)
        fitting = max(2, RING_BYTES // (prod(shape) * options.form.dtype.itemsize))
        block = min(options.block_frames, fitting // 2)
        self._ring = Ring(min(fitting, max(2 * block, -(-queue_frames // workers))), shape, options.form.dtype)
        form = replace(options.form, device=torch.device("cpu"))
        self._config = pickle.dumps((self._ring, replace(options, block_frames=block, form=form)))
        self._timeout, self._closing, self._fed = timeout, threading.Event(), False
        self._looked = time.monotonic()
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ready: deque[Task] = deque()
        self._room = threading.Semaphore(workers * QUEUED_TASKS)
        self._wake_up, self._wake = os.pipe()
        self._server = server or ForkServer()
        try:
            self.workers = [self._start() for _ in range(workers)]
        except BaseException:
            self._server.close()
            raise
        targets = {"vsim-tasks": partial(self._feed, tasks), "vsim-intake": self._serve}
        self._threads = [threading.Thread(target=f, name=name, daemon=True) for name, f in targets.items()]
        for thread in self._threads:
            thread.start()

    def events(self, idle_seconds: float) -> Iterator[Event | None]:
        return _taken(self._events, idle_seconds)

    def close(self) -> None:
        self._closing.set()
        self._room.release()
        self._awake()
        feeding, serving = self._threads
        serving.join()
        feeding.join(DRAWING_SECONDS)  # it may wait for a task that never comes
        self._server.close()
        for worker in self.workers:
            worker.connection.close()
        os.close(self._wake)
        os.close(self._wake_up)

    def _start(self) -> Worker:
        return self._server.start(self._ring, self._config)

    def _awake(self) -> None:
        os.write(self._wake, b".")

    def _feed(self, tasks: Iterable[Task]) -> None:
        """Tasks to where `_serve` finds them; drawing one may take long."""
        try:
            for task in tasks:
                if self._closing.is_set():
                    return
                self._ready.append(task)
                self._awake()
                self._room.acquire()
                if self._closing.is_set():
                    return
        except BaseException as error:
            self._events.put(error)
        finally:
            self._fed = True
            if not self._closing.is_set():
                self._awake()

    def _serve(self) -> None:
        """Hands out tasks, takes in what workers send, replaces the dead."""
        try:
            while not self._closing.is_set():
                self._hand_out()
                if self._fed and not self._ready and not any(worker.tasks for worker in self.workers):
                    break
                sources = {worker.connection: worker for worker in self.workers}
                for source in wait([*sources, self._wake_up], WATCH_SECONDS):
                    if source == self._wake_up:
                        os.read(self._wake_up, 4096)
                        continue
                    worker = sources[source]
                    try:
                        message = source.recv()
                    except (EOFError, OSError):
                        self._replace(worker)
                    else:
                        self._take_in(worker, message)
                self._watch()
            self._events.put(_END)
        except BaseException as error:
            self._events.put(error)

    def _hand_out(self) -> None:
        for queued in range(QUEUED_TASKS):
            for worker in self.workers:
                if self._ready and len(worker.tasks) == queued:
                    worker.give(self._ready.popleft())
                    self._room.release()

    def _take_in(self, worker: Worker, message: Any) -> None:
        worker.heard()
        if isinstance(message, Waiting):
            worker.waits_after = message.given_back
            return
        if isinstance(message, str):  # it goes on decoding, or waits still
            return
        worker.waits_after = None
        if isinstance(message, Sent):
            pixels = worker.pixels[message.start : message.start + len(message.index)]
            arrays = (torch.from_numpy(x) for x in (message.pts_seconds, message.index, message.featureless))
            path = worker.tasks[0].path
            self._events.put(Block(message.video, path, pixels, *arrays, on_release=worker.give_back))
            return
        if isinstance(message, (Finished, Failed)):
            worker.tasks.popleft()
        self._events.put(message)

    def _watch(self) -> None:
        now = time.monotonic()
        stopped, self._looked = now - self._looked > STOPPED_SECONDS, now
        for worker in self.workers:
            if stopped:
                worker.heard()
            if worker.tasks and not worker.waiting and worker.silent_seconds > self._timeout:
                worker.hung = True
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)

    def _replace(self, worker: Worker) -> None:
        code = self._server.reap(worker)
        worker.connection.close()
        if self._closing.is_set():
            return
        if worker.tasks:
            task = worker.tasks.popleft()
            how = f"no progress for {self._timeout:g} s" if worker.hung else f"the process died of {_name(code)}"
            self._events.put(Failed(task.number, WorkerDied(task.file, f"{how} while it was read"), worker_died=True))
        self._ready.extendleft(reversed(worker.tasks))
        self.workers[self.workers.index(worker)] = self._start()


class DecodeThreads:
    """A `Source` of threads, for decoders that deliver to a GPU. A crash ends this process; a thread that hangs is
    left behind, `Failed(worker_died=True)`, and another takes its place."""

    def __init__(self, tasks: Iterable[Task], options: ReadOptions, *, workers: int, queue_frames: int, timeout: float):
        self._tasks, self._options, self._timeout = iter(tasks), options, timeout
        self._drawing, self._closing = threading.Lock(), threading.Event()
        self._events: queue.Queue[Any] = queue.Queue(max(workers, queue_frames // options.block_frames))
        self._running, self._counting = workers, threading.Lock()
        self._drawer: threading.Thread | None = None
        self._waited_for: dict[int, tuple[float, threading.Thread]] = {}
        """Videos being read: when they last gave something, and to whom."""
        self._threads = [self._start() for _ in range(workers)]

    def events(self, idle_seconds: float) -> Iterator[Event | None]:
        looked = time.monotonic()
        for event in _taken(self._events, idle_seconds):
            yield event
            if (now := time.monotonic()) - looked > WATCH_SECONDS:
                looked = now
                yield from self._leave_behind(now)

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            while thread.is_alive() and thread is not self._drawer:  # who may wait for a task that never comes
                thread.join(0.1)

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="vsim-decode", daemon=True)
        thread.start()
        return thread

    def _leave_behind(self, now: float) -> Iterator[Failed]:
        for number, (since, thread) in list(self._waited_for.items()):
            if now - since > self._timeout and self._waited_for.pop(number, None) is not None:
                self._threads.remove(thread)
                self._threads.append(self._start())
                reason = f"no progress for {self._timeout:g} s while it was read"
                yield Failed(number, WorkerDied("", reason), worker_died=True)

    def _run(self) -> None:
        try:
            while (task := self._next()) is not None:
                if not self._read(task):
                    return
        except BaseException as error:
            self._put(error)
        with self._counting:
            self._running -= 1
            last = not self._running
        if last:
            self._put(_END)

    def _read(self, task: Task) -> bool:
        """False where this thread is not needed any more."""
        self._waited_for[task.number] = time.monotonic(), threading.current_thread()
        events = read_video(task, self._options)
        for event in events:
            if self._waited_for.pop(task.number, None) is None or not self._put(event):
                events.close()
                return False
            self._waited_for[task.number] = time.monotonic(), threading.current_thread()
        return self._waited_for.pop(task.number, None) is not None

    def _next(self) -> Task | None:
        while not self._closing.is_set():
            if self._drawing.acquire(timeout=0.1):
                self._drawer = threading.current_thread()
                try:
                    return next(self._tasks, None)
                finally:
                    self._drawer = None
                    self._drawing.release()
        return None

    def _put(self, event: Any) -> bool:
        while not self._closing.is_set():
            try:
                self._events.put(event, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


def _taken(events: Any, idle_seconds: float) -> Iterator[Event | None]:
    pause = idle_seconds
    while True:
        try:
            event = events.get(timeout=pause)
        except queue.Empty:
            pause = LONG_IDLE_SECONDS  # whatever waited for a full batch has gone
            yield None
            continue
        pause = idle_seconds
        if event is _END:
            return
        if isinstance(event, BaseException):
            raise event
        yield event


def _name(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"
