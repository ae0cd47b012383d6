"""What is left to do of pairs once their tokens have been compared, done while the next ones are encoded: pixel metrics
in threads, pictures in processes, since drawing holds the interpreter."""

from __future__ import annotations

import queue
import subprocess
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from vsim_fast.errors import WorkerDied
from vsim_fast.frame_pairs.drawing import Folder, write_folder
from vsim_fast.frame_pairs.metrics import pixel_metrics
from vsim_fast.image_quality import Lpips
from vsim_fast.pipeline.fork_server import start_python
from vsim_fast.video import read_image

AHEAD = 2
"""Jobs a thread may be behind: what waits holds memory."""


class Job(NamedTuple):
    """A pair to finish."""

    path_a: str
    path_b: str
    metrics: tuple[str, ...]
    folder: Folder | None = None
    """Of its pictures; the metrics are added to its summary."""


class Finishers:
    """Runs `count` jobs at a time; a context manager.

    Args:
        processes: False draws in threads, too: starting a process takes longer than a few pictures.
        lpips: for jobs that ask for that metric.
    A process that dies costs its job, and another takes over.
    """

    def __init__(self, count: int, *, processes: bool, lpips: Lpips | None = None):
        self._processes, self._lpips = processes, lpips
        self._idle: queue.LifoQueue[tuple[subprocess.Popen, Connection] | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)  # started when first needed
        self._room = threading.Semaphore(count * (1 + AHEAD))
        self._torch_threads = torch.get_num_threads()
        self._threads = ThreadPoolExecutor(count, "vsim-finish", initializer=torch.set_num_threads, initargs=(1,))

    def submit(self, job: Job) -> Future[dict[str, float | None]]:
        """Waits while too many jobs are under way. The future gives the metrics by name, or raises what went wrong:
        an image that cannot be read (any more), a folder that cannot be written, WorkerDied."""
        self._room.acquire()
        future = self._threads.submit(self._run, job)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def _run(self, job: Job) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        if job.metrics:
            found = pixel_metrics(read_image(job.path_a), read_image(job.path_b), job.metrics, self._lpips)
        if job.folder is not None:
            folder = job.folder._replace(summary=job.folder.summary | found)
            (self._draw_elsewhere if self._processes else write_folder)(folder)
        return found

    def _draw_elsewhere(self, folder: Folder) -> None:
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
