"""What runs in Ray's actors, and the tables that go from one to the next.

    rows of tasks ─► Decode ─► rows of frames: pixels ─► Encode ─► rows of frames: features to keep

A row is a frame of a video, or an event (index -1), pickled: `Ended`, `Spent`, or an error that ends the run. Tensors
are columns of plain bytes, which Arrow and Ray's object store hand on without looking into them, whatever their type.
"""

from __future__ import annotations

import pickle
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from vsim_fast.batch.engines import EngineConfig
from vsim_fast.encode.base import Encoder, Preprocess
from vsim_fast.errors import EncoderError, VsimError
from vsim_fast.pipeline import Timings
from vsim_fast.pipeline.encoding import encode_blocks
from vsim_fast.pipeline.frames import Block
from vsim_fast.pipeline.many import kept_rows
from vsim_fast.pipeline.reading import Event, Failed, Finished, Opened, ReadOptions, Task
from vsim_fast.pipeline.sources import DecodeProcesses
from vsim_fast.records import VideoInfo

NO_VIDEO = -1
IDLE_SECONDS = 1.0


class Ended(NamedTuple):
    """Event: all frames of a video have gone before it, or some that nobody needs any more."""

    frames: int
    info: VideoInfo | None
    event: Finished | Failed


class Spent(NamedTuple):
    """Event: busy seconds per stage of an encode actor."""

    seconds: dict[str, float]


@dataclass(frozen=True)
class Table:
    """The columns of a table of frames.

    tensors: name -> (dtype, shape of a row); beside them there are video, index, pts_seconds, featureless and event.
    """

    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]

    @property
    def schema(self) -> pa.Schema:
        common = {
            "video": pa.int64(), "index": pa.int64(), "pts_seconds": pa.float64(), "featureless": pa.bool_(),
            "event": pa.binary(),
        }  # fmt: skip
        return pa.schema(common | {name: pa.binary(prod(s) * d.itemsize) for name, (d, s) in self.tensors.items()})

    def of_frames(self, video: int, rows: dict[str, Tensor]) -> pa.Table:
        """`rows`: index, pts_seconds, featureless, and tensors, all [B, ...] and of any device."""
        count, columns = len(rows["index"]), []
        for field in self.schema:
            if field.name == "video":
                columns.append(pa.array(np.full(count, video), field.type))
            elif field.name not in rows:  # no event; an encoder without CLS
                columns.append(pa.nulls(count, field.type))
            elif field.name in self.tensors:
                data = rows[field.name].cpu().contiguous().flatten(1).view(torch.uint8).numpy()
                assert data.nbytes == count * field.type.byte_width, (field, rows[field.name].shape)
                columns.append(pa.FixedSizeBinaryArray.from_buffers(field.type, count, [None, pa.py_buffer(data)]))
            else:
                columns.append(pa.array(rows[field.name].numpy(), field.type))
        return pa.Table.from_arrays(columns, schema=self.schema)

    def of_event(self, video: int, event: Any) -> pa.Table:
        values = {"video": video, "index": -1, "event": pickle.dumps(event)}
        columns = [pa.array([values.get(field.name)], field.type) for field in self.schema]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def rows(self, table: pa.Table) -> dict[str, Tensor]:
        """Of a table of frames: what `of_frames` was given, in memory of its own."""
        rows = {name: torch.tensor(table[name].to_numpy()) for name in ("index", "pts_seconds", "featureless")}
        for name, (dtype, shape) in self.tensors.items():
            if table[name].null_count == 0:
                rows[name] = _joined(table[name], dtype, shape)
        return rows


def runs_of_frames(table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """The frames of a table: video, and its rows as far as they follow each other."""
    video, index = table["video"].to_numpy(), table["index"].to_numpy()
    key = np.where(index < 0, NO_VIDEO, video)
    edges = [0, *(np.flatnonzero(np.diff(key)) + 1).tolist(), len(key)]
    for start, stop in pairwise(edges):
        if start < stop and key[start] != NO_VIDEO:
            yield int(key[start]), table.slice(start, stop - start)


def events_of(table: pa.Table) -> Iterator[tuple[int, Ended | Spent | VsimError]]:
    for row in np.flatnonzero(table["index"].to_numpy() < 0):
        yield table["video"][row].as_py(), pickle.loads(table["event"][row].as_py())


def _joined(column: pa.ChunkedArray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """[len(column), *shape]; one copy."""
    width = prod(shape) * dtype.itemsize
    data, start = np.empty((len(column), width), np.uint8), 0
    for chunk in column.chunks:
        source = np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width : (chunk.offset + len(chunk)) * width]
        data[start : start + len(chunk)] = source.reshape(-1, width)
        start += len(chunk)
    return torch.from_numpy(data).view(dtype).view(-1, *shape)


class EncoderFacts(NamedTuple):
    """What has to be known of an encoder that is loaded elsewhere."""

    description: dict[str, Any]
    preprocess: Preprocess
    dtype: torch.dtype
    token_dtype: torch.dtype
    grid: tuple[int, int]
    dim: int
    batch_size: int

    def pixels(self) -> Table:
        """What goes to it."""
        return Table({"pixels": (self.dtype, (3, *self.preprocess.size))})

    def features(self, keep: tuple[str, ...]) -> Table:
        """What comes of it."""
        patches, dim = self.grid[0] * self.grid[1], self.dim
        kinds = {
            "patches": (self.token_dtype, (patches, dim)), "cls": (self.token_dtype, (dim,)),
            "attention": (torch.float32, (patches,)), "pooled": (torch.float32, (dim,)),
        }  # fmt: skip
        return Table({name: kinds[name] for name in keep} | {"frames": (torch.float32, (dim,))})


def encoder_facts(config: EngineConfig, device: str) -> EncoderFacts:
    """Loads the encoder."""
    encoder = config.load(device)
    return EncoderFacts(
        encoder.describe(), encoder.preprocess, encoder.dtype, encoder.token_dtype, encoder.grid, encoder.dim,
        encoder.batch_size,
    )  # fmt: skip


def _told(errors: Table, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """What ends the run as an event: Ray adds to the errors that it passes on, and hides those of constructors."""
    try:
        yield from tables
    except VsimError as error:
        yield errors.of_event(NO_VIDEO, error)


class Decode:
    """Actor: a row per task to rows of frames, read by a process of its own. A crash there is a `Failed`."""

    def __init__(self, options: ReadOptions, queue_frames: int, timeout: float, table: Table):
        self.options, self.queue_frames, self.timeout, self.table = options, queue_frames, timeout, table
        self.tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()

    @cached_property
    def source(self) -> DecodeProcesses:
        tasks = iter(self.tasks.get, None)
        options = dict(workers=1, queue_frames=self.queue_frames, timeout=self.timeout)
        return DecodeProcesses(tasks, self.options, **options)

    @cached_property
    def events(self) -> Iterator[Event | None]:
        return self.source.events(IDLE_SECONDS)

    def __call__(self, tasks: pa.Table) -> Iterator[pa.Table]:
        for task in map(pickle.loads, tasks["task"].to_pylist()):
            self.tasks.put(task)
            yield from _told(self.table, self._read(task.number))

    def _read(self, number: int) -> Iterator[pa.Table]:
        """In the same pieces each time, so that Ray can make a lost one again."""
        info, frames = None, 0
        for event in self.events:
            if isinstance(event, Block):
                if event.video == number:
                    frames += len(event)
                    rows = {name: getattr(event, name) for name in ("index", "pts_seconds", "featureless")}
                    yield self.table.of_frames(number, rows | {"pixels": event.pixels.clone()})
                event.release()
            elif event is None or event.video != number:  # what is left of a task that was given up
                continue
            elif isinstance(event, Opened):
                info = event.info
            else:
                yield self.table.of_event(number, Ended(frames, info, event))
                return


class Encode:
    """Actor: frames of any videos to the features to keep, packed into full batches."""

    def __init__(self, config: EngineConfig, device: str, pixels: Table, features: Table):
        self.config, self.device, self.pixels, self.features = config, device, pixels, features

    @cached_property
    def encoder(self) -> Encoder:
        return self.config.load(self.device)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        yield from _told(self.features, self._encode(table))
        for video, event in events_of(table):
            yield self.features.of_event(video, event)

    def _encode(self, table: pa.Table) -> Iterator[pa.Table]:
        timings = Timings()
        for block, encoded in encode_blocks(self._blocks(table), self.encoder, timings, pack=True):
            if isinstance(encoded, EncoderError):
                yield self.features.of_event(block.video, Ended(0, None, Failed(block.video, encoded)))
            else:
                yield self.features.of_frames(block.video, kept_rows(encoded, self.config.keep))
        yield self.features.of_event(NO_VIDEO, Spent(timings.seconds()))

    def _blocks(self, table: pa.Table) -> Iterator[Block]:
        for video, frames in runs_of_frames(table):
            yield Block(video, "", **self.pixels.rows(frames))
