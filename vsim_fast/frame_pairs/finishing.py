"""What is done of pairs while the next ones are encoded: side by side in threads, and pictures in processes, since
drawing holds the interpreter."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from vsim_fast.errors import WorkerDied
from vsim_fast.frame_pairs.drawing import Folder, write_folder
from vsim_fast.pipeline.fork_server import start_python

AHEAD = 2
"""Calls a thread may be behind: what waits holds memory."""
Result = TypeVar("Result")


class Finishers:
    """Runs `count` calls at a time, each with one thread of torch; a context manager.

    Args:
        processes: False draws in the threads, too: starting a process takes longer than a few pictures.
    """

    def __init__(self, count: int, *, processes: bool):
        self._processes = processes
        self._idle: queue.LifoQueue[tuple[subprocess.Popen, Connection] | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)  # started when first needed
        self._room = threading.Semaphore(count * (1 + AHEAD))
        self._torch_threads = torch.get_num_threads()
        self._threads = ThreadPoolExecutor(count, "vsim-finish", initializer=torch.set_num_threads, initargs=(1,))

    def submit(self, call: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Waits while too many calls are under way."""
        self._room.acquire()
        future = self._threads.submit(call, *arguments)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def draw(self, folder: Folder) -> None:
        """Write a folder of pictures; from one of the calls.  Raises: OutputError.  WorkerDied: the process that drew
        it; another takes over."""
        if not self._processes:
            write_folder(folder)
            return
        worker = self._idle.get()
        try:
            if worker is None:
                worker = start_python("vsim_fast.frame_pairs.drawing", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
            process, connection = worker
            try:
                connection.send(folder)
                error = connection.recv()
            except (EOFError, OSError):
                connection.close()
                worker = None
                reason = f"the process that drew it ended with exit code {process.wait()}"
                raise WorkerDied(folder.path, reason) from None
        finally:
            self._idle.put(worker)
        if error is not None:
            raise error

    def __enter__(self) -> Finishers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=exception[0] is not None)
        torch.set_num_threads(self._torch_threads)  # the pool's own setting is also what later threads begin with
        while not self._idle.empty():
            if (worker := self._idle.get()) is not None:
                process, connection = worker
                connection.close()
                process.wait()
