"""Where the time of a job goes."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Timings:
    """Busy seconds per stage, from any thread. Stages overlap, so they may sum to more than the wall time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def stage(self, name: str, device: torch.device | None = None) -> Iterator[None]:
        """Time the block; on a CUDA device the work it enqueues on the current stream, not the enqueueing."""
        if device is not None and device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            first = stream.record_event(torch.cuda.Event(enable_timing=True))
            yield
            last = stream.record_event(torch.cuda.Event(enable_timing=True))
            self._events.append((name, first, last))
            return
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self._seconds[name] += seconds

    def summary(self, started: float) -> dict[str, float]:
        """`seconds`, rounded, and as "total" what has passed since `started` (of time.perf_counter)."""
        total = time.perf_counter() - started
        return {name: round(value, 4) for name, value in (self.seconds() | {"total": total}).items()}

    def seconds(self) -> dict[str, float]:
        while self._events:
            name, first, last = self._events.pop()
            last.synchronize()
            self.add(name, first.elapsed_time(last) / 1000)
        with self._lock:
            return dict(self._seconds)
