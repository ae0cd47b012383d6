"""The loop of a run: what is to be done goes to the engine, what comes back to the writer and into the ledger."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import count
from typing import Any

import numpy as np

from vsim_fast.batch.engines import Engine
from vsim_fast.batch.jobs import Job, TaskQueue
from vsim_fast.batch.outputs import EmbeddingFiles
from vsim_fast.batch.records import BatchProgress, Snapshot, VideoResult
from vsim_fast.batch.writer import Write, Writer
from vsim_fast.errors import ChangedVideo, DecodeError, DeviceError, DoesNotFit, OpenError, VsimError
from vsim_fast.feature_store import DamagedFeatures, Done, Failed, Stamp, State, Store
from vsim_fast.inputs import path_id
from vsim_fast.pipeline import EncodedVideo, Timings
from vsim_fast.pipeline.reading import Task
from vsim_fast.remote import is_url

FATAL_STRIKES = 2
"""A file that ended so many workers is left alone."""
KEYING_THREADS = 2
PROGRESS_SECONDS = 0.25
FORGETTABLE = (ChangedVideo, DeviceError, DoesNotFit)
"""Failures that say nothing of a file's content."""


class Run:
    """One run over jobs.

    Attributes:
        results: of each job by path, once it has ended.
    """

    def __init__(
        self,
        store: Store,
        files: EmbeddingFiles,
        engine: Engine,
        identify: Callable[[Job], tuple[str, Stamp | None]],
        timings: Timings,
        *,
        max_failures: int | None = None,
        retry_failed: bool = False,
        stop: threading.Event | None = None,
        progress: BatchProgress | None = None,
    ):
        self.store, self.files, self.engine, self.identify, self.timings = store, files, engine, identify, timings
        self.max_failures, self.retry_failed = max_failures, retry_failed
        self.stop, self.progress = stop or threading.Event(), progress
        self.results: dict[str, VideoResult] = {}
        self.frames = 0
        self.failures = 0
        self.tasks = TaskQueue()
        self._numbers = count()
        self._unknown: deque[Job] = deque()  # content not known yet
        self._keying: deque[tuple[Job, Future[tuple[str, Stamp | None]]]] = deque()
        self._known: deque[Job] = deque()  # content known, nothing begun
        self._active: dict[str, Job] = {}  # by key, from its being known to its row in the ledger
        self._given: dict[int, Job] = {}  # by task number
        self._again: deque[Job] = deque()  # to be read once more, after all others
        self._copies = 0  # of URLs, held by jobs
        self._rows: list[Done | Failed] = []
        self._shown = self._started = time.perf_counter()
        self._total = self._before = 0

    @property
    def stopped(self) -> bool:
        return self.stop.is_set() or (self.max_failures is not None and self.failures > self.max_failures)

    def work(self, jobs: Iterable[Job], total: int, before: int) -> None:
        """Do all of them. `total`, `before`: videos of the whole run, and how many are done already.

        Raises: OutputError: the disk refuses. What was written before stays and is recorded.
        """
        self._total, self._before = total, before
        for job in sorted(jobs, key=lambda job: job.last):
            (self._unknown if job.key is None else self._known).append(job)
        self._started = time.perf_counter()
        self.writer = Writer(self.store, self.files)
        self._pool = ThreadPoolExecutor(KEYING_THREADS, "vsim-keys")
        try:
            self._step()
            if self._work_left():
                results = self.engine.run(self.tasks)
                with closing(results), closing(self.tasks):
                    for result in results:
                        if result is not None:
                            self._take(*result)
                        self._step()
            self.writer.close()
            self._record()
            self._show(last=True)
        finally:
            self.tasks.close()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self.writer.close()
            self._end()

    def _end(self) -> None:
        """Whatever happened: what is written is recorded, what is held is let go."""
        with suppress(VsimError):  # told already
            self._record()
        self.store.end([job.path for job in self._given.values()])
        for job in (*self._given.values(), *self._active.values()):
            job.held.close()

    def _work_left(self) -> bool:
        return bool(self._unknown or self._keying or self._known or self._given or self._again)

    def _step(self) -> None:
        """What is due between two results; quick."""
        self._record()
        if self.stopped:
            self._withdraw()
        else:
            self._identify()
            self._give()
        if not self._work_left():
            self.tasks.close()
        self._show()

    def _withdraw(self) -> None:
        """Begin nothing more."""
        for task in self.tasks.clear():
            job = self._given.pop(task.number)
            self.store.end([job.path])
            job.held.close()
        for job in (*self._known, *self._again):
            job.held.close()
        for waiting in (self._unknown, self._known, self._again, self._keying):
            waiting.clear()

    def _identify(self) -> None:
        while self._unknown and len(self._keying) < self.engine.lookahead:
            if is_url(self._unknown[0].path):
                if self._copies >= 2 * self.engine.decoders:
                    break  # each takes its file's size of disk
                self._copies += 1
                self._unknown[0].held.callback(self._copy_let_go)
            job = self._unknown.popleft()
            self._keying.append((job, self._pool.submit(self.identify, job)))
        while self._keying and self._keying[0][1].done():
            job, future = self._keying.popleft()
            try:
                job.key, stamp = future.result()
            except VsimError as error:
                self._fail(job, error)
            except OSError as error:
                self._fail(job, OpenError(job.path, error.strerror or str(error)))
            else:
                if stamp is not None:
                    self.store.note_key(job.path, job.key, stamp)
                self._known.append(job)

    def _copy_let_go(self) -> None:
        self._copies -= 1

    def _give(self) -> None:
        """Tasks to the engine, as many as it likes to have."""
        while self._known and len(self._given) < self.engine.lookahead and not self.stopped:
            self._record()
            self._show()
            job = self._known.popleft()
            if (first := self._active.get(job.key)) is not None and first is not job:
                if first.writing:
                    self._known.append(job)  # its features will be in the store in a moment
                    return
                first.followers.append(job)
                continue
            self._active[job.key] = job
            if self._is_stored(job):
                continue
            if is_url(job.path) and job.file is None:  # its content is known of an earlier run, and must be fetched
                del self._active[job.key]
                job.key = None
                self._unknown.append(job)
            else:
                self._begin(job)
        if self._again and not (self._unknown or self._keying or self._known or self._given):
            self._begin(self._again.popleft())  # alone: whatever happens now is its doing

    def _is_stored(self, job: Job) -> bool:
        """Whether the store knows the content, from another path: then only files are to be written, or nothing."""
        state = self.store.states([job.path], [job.key])[0]
        if state.status == "done":
            return self._rewrite(job, state)
        if state.status in ("failed", "quarantined") and not self.retry_failed:
            self._end_job(job, VideoResult(
                video_path=path_id(job.path), status=state.status, name=job.name, key=job.key,
                reason=f"{state.reason} (an earlier run; --retry-failed tries again)",
            ))  # fmt: skip
            return True
        return False

    def _rewrite(self, job: Job, state: State) -> bool:
        """The files of a video whose features are in the store; False if those are damaged."""
        try:
            embedding = np.array(self.store.features(job.key, ["embedding"])["embedding"])
        except DamagedFeatures as error:
            self.store.notes.append(f"{error}; made again")
            return False
        self._write(Write(job, state.facts, embedding, None, state.feature_file))
        return True

    def _begin(self, job: Job) -> None:
        number = next(self._numbers)
        self._given[number] = job
        self.store.begin([job.path])
        self.tasks.put(Task(number, job.path, job.file or job.path))

    def _take(self, number: int, video: EncodedVideo) -> None:
        job = self._given.pop(number, None)
        if job is None:
            return  # handed out twice
        self.store.end([job.path])
        if video.error is None and not self._is_still(job):
            self._fail(job, ChangedVideo(job.path, "it changed before it was read; run again once it is complete"))
        elif video.error is None:
            facts, tensors = described(video)
            self.frames += facts["frames"]
            self._write(Write(job, facts, video.embedding.numpy(), tensors, None))
        elif video.worker_died:
            strikes = self.store.add_strike(job.path, video.error.told)
            if strikes < FATAL_STRIKES:
                self._again.append(job)
            else:
                self._fail(job, video.error, status="quarantined")
        else:
            self._fail(job, video.error)

    def _is_still(self, job: Job) -> bool:
        """Whether what was read is what the key was made of: between the two any time may have passed."""
        return is_url(job.path) or self.store.known_keys([job.path]) == [job.key]

    def _write(self, write: Write) -> None:
        write.job.writing = True
        with self.timings.stage("wait_for_writer"):
            self.writer.put(write)

    def _fail(self, job: Job, error: VsimError, status: str = "failed") -> None:
        reason = error.told if isinstance(error, DecodeError) else str(error)
        remembered = job.key is not None and not isinstance(error, FORGETTABLE) and self._is_still(job)
        for each in (job, *job.followers):
            self._rows.append(Failed(each.key, each.path, status, reason, remembered))
            self.failures += 1
            self._end_job(each, VideoResult(
                video_path=path_id(each.path), status=status, name=each.name, key=each.key, reason=reason
            ))  # fmt: skip

    def _end_job(self, job: Job, result: VideoResult) -> None:
        self.results[job.path] = result
        job.held.close()
        if job.key is not None and self._active.get(job.key) is job:
            del self._active[job.key]

    def _record(self) -> None:
        """What has been written or has failed since, into the ledger.  Raises: OutputError: the disk refuses."""
        written, error = self.writer.rows()
        for job, done in written:
            self._rows.append(done)
            self._end_job(job, video_result(job.path, job.name, job.key, done.facts, "done"))
        if self._rows:
            rows, self._rows = self._rows, []
            self.store.record(rows)
        if error is not None:
            raise error

    def _show(self, *, last: bool = False) -> None:
        now = time.perf_counter()
        if self.progress is None or (now - self._shown < PROGRESS_SECONDS and not last):
            return
        self._shown = now
        self.progress.batch(self.snapshot())

    def snapshot(self) -> Snapshot:
        seconds = time.perf_counter() - self._started
        busy = self.timings.seconds()
        ended = len(self.results)
        rate = ended / seconds if seconds > 0 else 0.0
        left = self._total - self._before - ended
        decoding = sum(busy.get(stage, 0.0) for stage in ("probe", "decode", "pixels"))
        return Snapshot(
            total=self._total, done=self._before + ended - self.failures, failed=self.failures, frames=self.frames,
            seconds=seconds, videos_per_second=rate, frames_per_second=self.frames / seconds if seconds > 0 else 0.0,
            decoders_busy=min(1.0, decoding / (seconds * self.engine.decoders)) if seconds > 0 else 0.0,
            encoder_busy=min(1.0, busy.get("encode", 0.0) / (seconds * self.engine.encoders)) if seconds > 0 else 0.0,
            seconds_left=left / rate if rate > 0 else None,
        )  # fmt: skip


def described(video: EncodedVideo) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts (the same for the same content and settings) and tensors to store of a video."""
    info, report, features = video.info, video.report, video.features
    height, width = info.display_size
    notes = [*info.notes, *report.notes()]
    blank = int(video.featureless.sum())
    if blank:
        notes.append(f"{blank} of {len(video.featureless)} frames are black or featureless")
    facts = {
        "frames": len(video.featureless), "width": width, "height": height, "codec": info.codec,
        "duration_seconds": round(info.duration_seconds, 6), "fps": info.average_fps, "decoder": report.backend,
        "lost_frames": report.lost, "featureless_frames": blank, "encoder": features.encoder,
        "grid": list(features.grid), "notes": notes,
    }  # fmt: skip
    tensors = {
        "embedding": video.embedding, "pts_seconds": features.pts_seconds, "featureless": video.featureless,
        "patches": features.patches, "cls": features.cls, "attention": features.attention, "pooled": video.pooled,
    }  # fmt: skip
    return facts, {name: tensor for name, tensor in tensors.items() if tensor is not None}


def video_result(path: str, name: str, key: str | None, facts: dict[str, Any], status: str) -> VideoResult:
    return {
        "video_path": path_id(path), "status": status, "name": name, "key": key, "frames": facts["frames"],
        "duration_seconds": facts["duration_seconds"], "decoder": facts["decoder"],
        "lost_frames": facts["lost_frames"], "notes": facts["notes"],
    }  # fmt: skip
