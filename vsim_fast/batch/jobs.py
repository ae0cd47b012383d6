"""What there is to do: a job per video, and what its file is known by."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from vsim_fast.pipeline.reading import Task


@dataclass
class Job:
    """A video of the run."""

    path: str
    """As given; a URL, perhaps."""
    name: str
    """Base of its output files."""
    key: str | None = None
    """Content key, once known."""
    file: str | None = None
    """What is opened: `path`, or a local copy."""
    last: bool = False
    """An earlier run died while it was read: after all others."""
    writing: bool = False
    """Handed to the writer: nobody can follow it any more."""
    followers: list[Job] = field(default_factory=list)
    """Other jobs with the same content."""
    held: ExitStack = field(default_factory=ExitStack)
    """What keeps a local copy where it is."""


class TaskQueue:
    """Tasks for an engine, filled as they become known; iterating blocks until the next one, or `close`."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._closed = threading.Event()

    def put(self, task: Task) -> None:
        self._queue.put(task)

    def close(self) -> None:
        """No more come; what is in it is still handed out."""
        if not self._closed.is_set():
            self._closed.set()
            self._queue.put(None)

    def clear(self) -> list[Task]:
        """Take back what nobody has taken."""
        tasks = []
        with suppress(queue.Empty):
            while True:  # not until it is empty: another thread may take the last one first
                if (task := self._queue.get_nowait()) is not None:
                    tasks.append(task)
        if self._closed.is_set():
            self._queue.put(None)
        return tasks

    def take(self, timeout: float) -> Task | None:
        """The next task, or None after so many seconds or at the end (`ended` tells)."""
        try:
            task = self._queue.get(timeout=timeout)
        except queue.Empty:
            return None
        if task is None:
            self._queue.put(None)
        return task

    @property
    def ended(self) -> bool:
        """Closed, and nothing left."""
        return self._closed.is_set() and self._queue.qsize() <= 1

    def __iter__(self) -> Iterator[Task]:
        while (task := self._queue.get()) is not None:
            yield task
        self._queue.put(None)  # for whoever iterates next
