"""Processes that finish pairs while the next ones are being encoded: Matplotlib and Pillow hold the interpreter."""

from __future__ import annotations

import queue
import subprocess
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection

from vsim_fast.errors import WorkerDied
from vsim_fast.frame_pairs.finish_worker import Job, finish
from vsim_fast.image_quality import Lpips
from vsim_fast.ops._threads import one_thread
from vsim_fast.pipeline.fork_server import start_python

AHEAD = 2
"""Jobs a process may be behind: what waits holds memory."""


class Finishers:
    """Runs `count` jobs at a time, those that draw in processes; a context manager.

    Args:
        processes: False draws here, too: starting a process takes longer than a few pictures.
    A process that dies costs its job, and another takes over.
    """

    def __init__(self, count: int, *, processes: bool, lpips: Lpips | None = None):
        self._processes = processes
        self._idle: queue.LifoQueue[tuple[subprocess.Popen, Connection] | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)  # started when first needed
        self._room = threading.Semaphore(count * (1 + AHEAD))
        self._threads = ThreadPoolExecutor(count, "vsim-finish")
        self._lpips = lpips

    def submit(self, job: Job) -> Future[dict[str, float | None]]:
        """Waits while too many jobs are under way. The future raises what the job raised, or WorkerDied."""
        self._room.acquire()
        future = self._threads.submit(self._run, job)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def _run(self, job: Job) -> dict[str, float | None]:
        if job.drawing is None or not self._processes:
            with one_thread():
                return finish(job, self._lpips)
        worker = self._idle.get()
        try:
            if worker is None:
                worker = start_python(
                    "vsim_fast.frame_pairs.finish_worker", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"
                )
            process, connection = worker
            try:
                connection.send(job)
                found, error = connection.recv()
            except (EOFError, OSError):
                connection.close()
                worker = None
                reason = f"the process that finished it ended with exit code {process.wait()}"
                raise WorkerDied(job.path_a, reason) from None
        finally:
            self._idle.put(worker)
        if error is not None:
            raise error
        return found

    def __enter__(self) -> Finishers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=exception[0] is not None)
        while not self._idle.empty():
            if (worker := self._idle.get()) is not None:
                process, connection = worker
                connection.close()
                process.wait()
