"""Processes that decode: one parent that has imported what decoding needs, and a child forked from it per worker.

A child that crashes takes one video with it, and another is forked in milliseconds. Nothing of the program that uses
the package is imported or copied here, so that scripts need no main guard. All of them end with their user, whatever
ends it.

    user process ◄─ control ─► fork server         "start" with two descriptors -> pid; "reap" -> how it ended
         ▲ └── events, tasks ──► worker ...        pixels in memory both have mapped, as a ring
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import signal
import sys
import threading
from collections import deque
from contextlib import suppress
from math import prod
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, NamedTuple

import torch
from torch import Tensor

import vsim_fast.ops
import vsim_fast.video._images
import vsim_fast.video._pyav  # noqa: F401 - what a worker needs is here before the first fork
from vsim_fast.pipeline.frames import Block
from vsim_fast.pipeline.reading import Opened, ReadOptions, Task, read_video

USER_IS_GONE = (EOFError, BrokenPipeError, ConnectionResetError)
"""What a connection raises then."""
HEARTBEAT_SECONDS = 2.0
NICENESS = 5
"""Workers give way to the encoder, which they would otherwise slow down by more than they get done."""


class Ring(NamedTuple):
    """Shape of the memory that a worker puts pixels into."""

    frames: int
    shape: tuple[int, int, int]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return max(1, self.frames * prod(self.shape) * self.dtype.itemsize)

    def map(self, descriptor: int) -> Tensor:
        """[frames, 3, H, W] in the shared memory."""
        memory = mmap.mmap(descriptor, self.nbytes)
        return torch.frombuffer(memory, dtype=self.dtype).view(self.frames, *self.shape)


class Sent(NamedTuple):
    """A block whose pixels lie in the ring."""

    video: int
    start: int
    pts_seconds: Any
    index: Any
    featureless: Any


class Waiting(NamedTuple):
    """The ring is full."""

    given_back: int
    """Blocks that had come back by then."""


class Worker:
    """The child's side: reads the videos it is told to, and waits for memory to be given back."""

    def __init__(self, connection: Connection, pixels: Tensor, options: ReadOptions):
        self.connection, self.pixels, self.options = connection, pixels, options
        self.tasks: deque[Task] = deque()
        self.lent: deque[tuple[int, int]] = deque()  # start and end of each block the user has not given back
        self.given_back = 0
        self.sending = threading.Lock()
        self.report: Any = None

    def run(self) -> None:
        threading.Thread(target=self._beat, daemon=True).start()
        while True:
            while not self.tasks:
                self._receive()
            self._read(self.tasks.popleft())
            return_memory()

    def _read(self, task: Task) -> None:
        for event in read_video(task, self.options):
            if isinstance(event, Opened):
                self.report = event.report
            if isinstance(event, Block):
                start = self._place(len(event))
                self.pixels[start : start + len(event)] = event.pixels
                arrays = (event.pts_seconds.numpy(), event.index.numpy(), event.featureless.numpy())
                self._send(Sent(event.video, start, *arrays))
            else:
                self._send(event)

    def _place(self, count: int) -> int:
        """Start of `count` frames of the ring that nobody uses, taken."""
        while (start := self._free(count)) is None:
            self._send(Waiting(self.given_back))
            self._receive()
        self.lent.append((start, start + count))
        return start

    def _free(self, count: int) -> int | None:
        if not self.lent:
            return 0
        first, head = self.lent[0][0], self.lent[-1][1]
        if head > first:
            if head + count <= len(self.pixels):
                return head
            return 0 if count < first else None  # less, or a full ring would look empty
        return head if head + count < first else None

    def _receive(self) -> None:
        message = self.connection.recv()  # EOFError: the user is gone
        if message is None:
            self.lent.popleft()
            self.given_back += 1
        else:
            self.tasks.append(message)

    def _send(self, message: Any) -> None:
        with self.sending:
            self.connection.send(message)

    def _beat(self) -> None:
        """Tells the user while frames come out of the decoder that nobody wants, as before the first wanted one."""
        last, pause = -1, threading.Event()
        while not pause.wait(HEARTBEAT_SECONDS):
            decoded = self.report.decoded_frames if self.report else 0
            if decoded != last:
                last = decoded
                try:
                    self._send("alive")
                except OSError:
                    return


def serve(control: Connection) -> None:
    """The fork server: until the user closes `control`, which raises one of USER_IS_GONE."""
    while True:
        message = control.recv()
        if message[0] == "start":
            ring, options = pickle.loads(message[1])
            channel, memory = recv_handle(control), recv_handle(control)
            pid = os.fork()
            if pid == 0:
                control.close()
                work(Connection(channel), ring.map(memory), options)
            os.close(channel)
            os.close(memory)
            control.send(pid)
        else:
            _, status = os.waitpid(message[1], 0)
            control.send(os.waitstatus_to_exitcode(status))


def work(connection: Connection, pixels: Tensor, options: ReadOptions) -> None:
    """The life of a worker; never returns."""
    code = 1
    try:
        die_with_parent()
        os.nice(NICENESS)
        Worker(connection, pixels, options).run()
    except USER_IS_GONE:
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def return_memory() -> None:
    """What freed frames leave behind in the allocator, to the system; glibc alone needs telling."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def die_with_parent() -> None:
    """End this process with its parent, even where that is killed; Linux only, elsewhere the next message fails."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    torch.set_num_threads(1)
    with suppress(*USER_IS_GONE):
        serve(Connection(int(sys.argv[1])))
    os._exit(0)  # taking libraries down takes a second
