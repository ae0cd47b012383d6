"""The user's side of `decode_worker`: starts the fork server, asks it for workers, hears how they ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import Any

from torch import Tensor

from vsim_fast.errors import DeviceError
from vsim_fast.pipeline.decode_worker import Ring
from vsim_fast.pipeline.reading import Task

START = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[2]); importlib.import_module(sys.argv[3]).main()"
)


def start_python(module: str, **environment: str) -> tuple[subprocess.Popen, Connection]:
    """A Python process that calls `module.main()`, and the connection to it, whose descriptor it finds in sys.argv[1].

    The importing program is not imported there, nor anything from the working directory (-P), and what libraries print
    does not reach this process's output. Ctrl-C is for this process: that one never hears of it, and is to end when
    its connection does.
    """
    ours, theirs = socket.socketpair()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited, so from before its first instruction
    try:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", START, str(theirs.fileno()), json.dumps(sys.path), module],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                env=os.environ | environment,
            )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return process, Connection(ours.detach())


class Worker:
    """A decode process as its user sees it."""

    def __init__(self, pid: int, connection: Connection, pixels: Tensor):
        self.pid, self.connection, self.pixels = pid, connection, pixels
        self.tasks: deque[Task] = deque()
        """What it was given and has not finished; the first is being read."""
        self.hung = False
        self.waits_after: int | None = None
        """How many blocks had come back when it said that it lacks memory; None once it went on."""
        self._given_back = 0
        self._sending = threading.Lock()
        self.heard()

    def heard(self) -> None:
        self._last = time.monotonic()

    @property
    def waiting(self) -> bool:
        """It lacks memory, and nothing has come back since it said so."""
        return self.waits_after == self._given_back

    @property
    def silent_seconds(self) -> float:
        return time.monotonic() - self._last

    def give(self, task: Task) -> None:
        if not self.tasks:
            self.heard()
        self.tasks.append(task)
        self._send(task)

    def give_back(self) -> None:
        """The oldest block it lent; any thread."""
        self._given_back += 1
        self.heard()
        self._send(None)

    def _send(self, message: Any) -> None:
        with self._sending, suppress(OSError):  # its end is found out by who receives
            self.connection.send(message)


class ForkServer:
    """Raises: DeviceError: processes cannot be started."""

    def __init__(self) -> None:
        self._process, self._control = start_python(
            "vsim_fast.pipeline.decode_worker", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"
        )

    def start(self, ring: Ring, config: bytes) -> Worker:
        """A new worker. `config`: the pickled (Ring, ReadOptions)."""
        memory = anonymous_memory(ring.nbytes)
        ours, theirs = socket.socketpair()
        try:
            self._control.send(("start", config))
            for descriptor in (theirs.fileno(), memory):
                send_handle(self._control, descriptor, self._process.pid)
            pid = self._control.recv()
            return Worker(pid, Connection(ours.detach()), ring.map(memory))
        except (OSError, EOFError, RuntimeError) as error:
            raise DeviceError("decode processes cannot be started; what they said is above") from error
        finally:
            ours.close()
            theirs.close()
            os.close(memory)

    def reap(self, worker: Worker) -> int:
        """Exit code of a worker that has ended or is about to; negative: the signal."""
        try:
            self._control.send(("reap", worker.pid))
            return self._control.recv()
        except (OSError, EOFError):
            return 0

    def close(self) -> None:
        """Its workers end with it; may be called again."""
        self._control.close()
        self._process.wait()


def anonymous_memory(size: int) -> int:
    """Descriptor of `size` bytes that go when nobody holds them; not in /dev/shm, which containers keep small."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("vsim-pixels")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
