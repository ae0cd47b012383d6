"""Frames into batches: each plan position has its slot, frames may arrive in any order, none is waited for for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vsim_fast.records import FrameBatch, VideoInfo
from vsim_fast.video.sampling import DecodePlan

REORDER = 16
"""Decoded frames by which one may come after its place in time: the deepest picture buffer of H.264 and HEVC."""


@dataclass
class DecodeReport:
    """What decoding cost and lost. Live while frames are read, final after the last."""

    backend: str
    expected: int
    delivered: int = 0
    """Frames handed over, repeats counted."""
    corrupt: int = 0
    """Packets that failed plus frames the decoder flagged as damaged (those are still delivered)."""
    fallback_reason: str | None = None
    """Why the backend is not the one a CUDA device would get; None where it is, or where nobody asked for CUDA."""
    decoded_frames: int = 0
    """Frames the decoder put out, wanted or not."""
    seconds: float = 0.0
    """Wall time spent in the reader, the consumer's own time left out."""

    @property
    def lost(self) -> int:
        return self.expected - self.delivered

    def notes(self) -> list[str]:
        """What whoever reads a result must know."""
        notes = []
        if self.lost:
            notes.append(f"{self.lost} of {self.expected} planned frames could not be decoded")
        if self.fallback_reason:
            notes.append(f"decoded with {self.backend}: {self.fallback_reason}")
        return notes


@dataclass
class _Open:
    buffers: tuple[Tensor, ...]
    filled: np.ndarray  # bool [B]


class Assembler:
    """Batches of a plan under construction.

    Args:
        allocate: number of frames -> buffers of one batch, a tuple of tensors [B, ...].
        on_lost: called with the index of a frame that never came, before its batch goes without it; may raise.
        finish: buffers, FrameBatch fields -> FrameBatch.
    """

    def __init__(
        self,
        info: VideoInfo,
        plan: DecodePlan,
        batch_size: int,
        report: DecodeReport,
        *,
        on_lost: Callable[[int], None],
        allocate: Callable[[int], tuple[Tensor, ...]],
        finish: Callable[..., FrameBatch],
    ):
        self.info, self.plan, self.size, self.report = info, plan, batch_size, report
        self.on_lost, self.allocate, self.finish = on_lost, allocate, finish
        self.open: dict[int, _Open] = {}
        self.next = 0  # batch to hand over next
        self.count = -(-len(plan) // batch_size)
        self.beyond = 0  # decoded frames later than the last target of that batch

    def positions(self, index: int) -> range:
        """Positions in the plan that frame `index` fills."""
        return range(*np.searchsorted(self.plan.index, [index, index + 1]).tolist())

    def slots(self, index: int) -> Iterator[tuple[tuple[Tensor, ...], int]]:
        """(buffers, slot) of each place to write frame `index`, which has arrived; none where nobody wants it."""
        for position in self.positions(index):
            number, slot = divmod(position, self.size)
            if number < self.next:
                continue  # too late: its batch has been handed over without it
            batch = self.open.get(number)
            if batch is None:
                length = min(self.size, len(self.plan) - number * self.size)
                batch = self.open[number] = _Open(self.allocate(length), np.zeros(length, dtype=bool))
            batch.filled[slot] = True
            yield batch.buffers, slot

    def ready(self, index: int) -> Iterator[FrameBatch]:
        """After frame `index` came out of the decoder: the batches that are complete or waited for long enough."""
        while self.next < self.count:
            batch = self.open.get(self.next)
            if batch is None or not batch.filled.all():
                last = min((self.next + 1) * self.size, len(self.plan)) - 1
                self.beyond += index > self.plan.index[last]
                if self.beyond < REORDER:
                    return
            yield from self._close()

    def missing(self) -> np.ndarray:
        """int64 indices of frames that no slot has got yet, batches handed over left out."""
        first = min(self.next * self.size, len(self.plan))
        filled = np.zeros(len(self.plan) - first, dtype=bool)
        for number, batch in self.open.items():
            start = number * self.size - first
            filled[start : start + len(batch.filled)] = batch.filled
        return np.unique(self.plan.index[first:][~filled])

    def rest(self) -> Iterator[FrameBatch]:
        """At the end of the video: what is left, complete or not."""
        while self.next < self.count:
            yield from self._close()

    def _close(self) -> Iterator[FrameBatch]:
        number, self.next, self.beyond = self.next, self.next + 1, 0
        batch = self.open.pop(number, None)
        index = self.plan.index[number * self.size : (number + 1) * self.size]
        filled = np.zeros(len(index), dtype=bool) if batch is None else batch.filled
        if not filled.all():
            self.on_lost(int(index[np.argmin(filled)]))
        if batch is None or not filled.any():
            return
        buffers = batch.buffers
        if not filled.all():
            keep = torch.from_numpy(filled.nonzero()[0])
            buffers = tuple(buffer[keep.to(buffer.device)] for buffer in buffers)
            index = index[filled]
        self.report.delivered += len(index)
        yield self.finish(
            buffers,
            info=self.info,
            pts_seconds=torch.from_numpy(self.info.pts_seconds[index]),
            index=torch.from_numpy(index.copy()),
        )
