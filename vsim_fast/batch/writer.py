"""The last stage: features, embeddings and the ledger to disk, in a thread, many videos per commit."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vsim_fast.batch.jobs import Job
from vsim_fast.batch.outputs import EmbeddingFiles
from vsim_fast.feature_store import Done, FeatureFile, Store
from vsim_fast.inputs import path_id
from vsim_fast.store import sync

COMMIT_VIDEOS, COMMIT_SECONDS = 64, 1.0
QUEUED = 8


class Write(NamedTuple):
    """Something to write of a video."""

    job: Job
    facts: dict[str, Any]
    embedding: np.ndarray
    tensors: dict[str, Any] | None
    """Features to store, or None where the store has them."""
    feature_file: FeatureFile | None


class Writer:
    """Writes in a thread of its own; rows for the ledger, which belongs to the thread that opened it, are handed back.

    Files are whole and on the disk before their rows are handed out, so that a row never speaks of a file that a
    power failure could take.
    """

    def __init__(self, store: Store, files: EmbeddingFiles):
        self._store, self._files = store, files
        self._todo: queue.Queue[Write | None] = queue.Queue(QUEUED)
        self._rows: queue.SimpleQueue[list[tuple[Job, Done]] | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="vsim-write", daemon=True)
        self._thread.start()

    def put(self, write: Write) -> None:
        """Blocks while QUEUED videos wait."""
        while self._thread.is_alive():
            try:
                return self._todo.put(write, timeout=0.2)
            except queue.Full:
                continue

    def rows(self) -> tuple[list[tuple[Job, Done]], BaseException | None]:
        """What has been written since, and what ended the writing, if anything did: OutputError where the disk
        refuses."""
        rows: list[tuple[Job, Done]] = []
        while not self._rows.empty():
            part = self._rows.get()
            if isinstance(part, BaseException):
                return rows, part
            rows += part
        return rows, None

    def close(self) -> None:
        """Write what waits; `rows` then gives the rest."""
        while self._thread.is_alive():
            try:
                self._todo.put(None, timeout=0.2)
                break
            except queue.Full:
                continue
        self._thread.join()

    def _run(self) -> None:
        rows: list[tuple[Job, Done]] = []
        try:
            open_ = True
            while open_:
                rows = []
                end = time.monotonic() + COMMIT_SECONDS
                while len(rows) < COMMIT_VIDEOS and (left := end - time.monotonic()) > 0:
                    try:
                        write = self._todo.get(timeout=left)
                    except queue.Empty:
                        break
                    if write is None:
                        open_ = False
                        break
                    rows += self._written(write)
                if rows:
                    self._sync_folders(rows)
                    self._rows.put(rows)
        except BaseException as error:
            self._rows.put(rows)  # whole, and flushed one by one
            self._rows.put(error)

    def _written(self, write: Write) -> list[tuple[Job, Done]]:
        file, key = write.feature_file, write.job.key
        if write.tensors is not None:
            file = self._store.write_features(key, write.tensors, write.facts)
        rows = []
        for job in (write.job, *write.job.followers):
            outputs = self._files.write(job.name, path_id(job.path), write.embedding, write.facts)
            rows.append((job, Done(key, job.path, write.facts, file, outputs)))
        return rows

    def _sync_folders(self, rows: list[tuple[Job, Done]]) -> None:
        folders = {(self._store.folder / done.feature_file.file).parent for _, done in rows}
        for folder in {self._files.folder, *folders, *(f.parent for f in folders)}:
            sync(Path(folder))
