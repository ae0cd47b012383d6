"""`vsim embed`: embeddings and features of many videos, resumed where an earlier run ended."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from vsim_fast.batch.engines import EngineConfig, Kind, make_engine
from vsim_fast.batch.identity import Identity
from vsim_fast.batch.jobs import Job
from vsim_fast.batch.outputs import (
    CONSOLIDATED,
    STORE,
    SUFFIXES,
    SUMMARY,
    EmbeddingFiles,
    SaveFormat,
    write_consolidated,
    write_json,
)
from vsim_fast.batch.records import BatchProgress, EmbedResult, Snapshot, VideoResult
from vsim_fast.batch.run import Run, video_result
from vsim_fast.errors import UsageError
from vsim_fast.feature_store import Problem, Sizes, State, Store, collection_paused, parse_all, path_text, wrong_size
from vsim_fast.inputs import Inputs, find_videos, path_id
from vsim_fast.pipeline import Timings
from vsim_fast.pipeline.many import KEPT, TIMEOUT_SECONDS, require_timeout
from vsim_fast.remote import file_name, is_url
from vsim_fast.store import output_errors
from vsim_fast.video import Sampling

__all__ = ["BatchProgress", "EmbedResult", "Snapshot", "VideoResult", "embed"]


VERSION = 1
"""Of what is computed; part of the settings."""
CONSOLIDATE_UP_TO = 10_000
CACHE, CACHE_BYTES = "cache", 10 << 30


def embed(
    paths: Sequence[str | Path],
    *,
    output_dir: str | Path,
    encoder: str = "builtin",
    image_size: int | None = None,
    fps: float = 1.0,
    max_frames: int = 100,
    keep: Sequence[str] = ("pooled",),
    save_format: SaveFormat = "both",
    consolidated: bool | None = None,
    summary: bool = True,
    layout: Literal["safetensors", "npy"] = "safetensors",
    device: str = "auto",
    precision: str = "auto",
    execution: str = "eager",
    decoder: Literal["auto", "pyav", "nvdec"] = "auto",
    workers: int | None = None,
    timeout: float = TIMEOUT_SECONDS,
    isolate: bool | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    images: bool = False,
    cache_dir: str | Path | None = None,
    cache_bytes: int = CACHE_BYTES,
    allow_private: bool = False,
    shard: tuple[int, int] | None = None,
    retry_failed: bool = False,
    max_failures: int | None = None,
    offline: bool = False,
    engine: Kind = "local",
    address: str | None = None,
    stop: threading.Event | None = None,
    progress: BatchProgress | None = None,
    timings: Timings | None = None,
    started: float | None = None,
) -> EmbedResult:
    """Embeddings of many videos, and the features they come from, on disk. What is there already is left alone.

    Args:
        paths: folders, patterns, list files, files; see `find_videos`.
        output_dir: gets NAME_embedding.npy and .json per video, consolidated_embeddings.json, summary.json and store/.
            NAME is the file's stem; where that is taken, NAME~ and 8 characters that stand for its path.
        encoder, image_size, device, precision, execution, offline: see `load_encoder`.
        fps, max_frames: frames taken per second, and most; more are thinned out evenly.
        keep: features to store, of "patches", "cls", "attention", "pooled"; the embedding always is.
        save_format: of the files per video: "numpy", "json" or "both".
        consolidated: write consolidated_embeddings.json; default only up to 10,000 videos.
        summary: write summary.json.
        layout: of the store's files, "safetensors" or "npy".
        decoder, workers, timeout, isolate: see `stream_videos`.
        include, exclude, images: which files below folders, patterns and lists count; see `find_videos`.
        cache_dir, cache_bytes: local copies of URLs, and how much they may take together; default a folder in the
            output folder that goes at the end. allow_private: fetch http(s) from addresses that are not public, too.
        shard: (i, n): of the videos, in order, only each n-th from the i-th on. Each shard needs an output folder.
        retry_failed: read files again that could not be read by an earlier run and have not changed since.
        max_failures: end the run, in good order, when more videos than this have failed.
        engine: "local", or "ray" for the nodes of a Ray cluster, which need this package and see the videos, and
            `cache_dir` where there are URLs, under the same paths; device is then "auto", "cpu" or "cuda".
        address: of the Ray cluster; default one on this machine, for this run.
        stop: set it from elsewhere, and the run finishes what it has begun, then returns.
        progress: told of it a few times a second.  timings, started: account for what the caller did before.
    Returns:
        The result, also written as summary.json.
    Raises:
        UsageError: an argument; no videos; results of other settings in the folder.
        OutputError: another run works there; the disk refuses. What was done by then stays.
        EncoderError, DeviceError.
    """
    started = time.perf_counter() if started is None else started
    timings = timings or Timings()
    _check(keep, save_format, shard, max_failures)
    require_timeout(timeout)
    folder = Path(output_dir)
    with timings.stage("find"), collection_paused():
        skipped = [folder / STORE, folder / CACHE] if _is_among(folder, paths) else [folder]
        found = find_videos(paths, include=include, exclude=exclude, skip_folders=skipped, images=images)
    config = EngineConfig(
        encoder, precision, image_size, offline, Sampling(fps=float(fps), max_frames=max_frames),
        tuple(sorted(set(keep))), decoder, workers, timeout, isolate, execution,
    )  # fmt: skip
    with timings.stage("load_encoder"):
        working = make_engine(config, device, timings, engine, address)
    with ExitStack() as stack:
        with timings.stage("load_encoder"):
            stack.enter_context(working)
        settings = batch_settings(working.encoder, config)
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        store = stack.enter_context(Store(folder / STORE, write=True, settings=settings, layout=layout))
        with timings.stage("plan"), collection_paused():
            files = EmbeddingFiles(folder, save_format)
            identity = Identity(Path(cache_dir or folder / CACHE), cache_bytes, allow_private=allow_private)
            plan = Plan(store, files, found, identity, images, shard, retry_failed)
        run = Run(
            store, files, working, identity, timings, max_failures=max_failures, retry_failed=retry_failed, stop=stop,
            progress=progress,
        )  # fmt: skip
        run.work(plan.jobs, len(plan.paths), len(plan.results))
        with timings.stage("summary"), collection_paused():
            result = _result(plan, run, found, folder, settings)
            changed = any(video["status"] == "done" for video in run.results.values())
            if consolidated is None:
                consolidated = len(plan.paths) <= CONSOLIDATE_UP_TO
                if not consolidated:
                    result.notes.append(f"{CONSOLIDATED} is left out for more than {CONSOLIDATE_UP_TO:,} videos")
            if consolidated:
                good = {video["video_path"]: video["key"] for video in result.results}
                keys = [good.get(path_id(path)) for path in plan.paths]
                with _rewritten(store, folder / CONSOLIDATED, [plan.names, keys], changed) as path:
                    if path:
                        _consolidate(store, plan, keys, path)
            result.timings = timings.summary(started)
            if summary:
                videos = [[video["video_path"] for video in part] for part in (result.results, result.failed_videos)]
                with _rewritten(store, folder / SUMMARY, [result.status, *videos], changed) as path:
                    if path:
                        write_json(path, result.model_dump())
            store.set_meta("last_run", _last_run(result))
        if cache_dir is None:
            shutil.rmtree(folder / CACHE, ignore_errors=True)
    return result


def batch_settings(encoder: dict[str, Any], config: EngineConfig) -> dict[str, Any]:
    """What the features depend on besides the content of a file. `encoder`: `Encoder.describe()`."""
    return {
        "version": VERSION,
        "encoder": {name: encoder[name] for name in ("spec", "id", "dtype")}
        | {"image_size": encoder["preprocess"]["size"][0]},
        "sampling": asdict(config.sampling),
        "keep": list(config.keep),
    }  # fmt: skip


class Plan:
    """What is there, and what is to be done.

    Attributes:
        paths: videos of this run, in order.
        names: NAME of each.
        jobs: of those not done.
        results: of those done, or given up, by an earlier run.
    """

    def __init__(
        self,
        store: Store,
        files: EmbeddingFiles,
        found: Inputs,
        identity: Identity,
        images: bool,
        shard: tuple[int, int] | None,
        retry_failed: bool,
    ):
        self.notes: list[str] = []
        names = store.names(found.files, [_stem(path, images) for path in found.files])
        first, step = (shard[0] - 1, shard[1]) if shard else (0, 1)
        self.paths, self.names = found.files[first::step], names[first::step]
        identity.ask(self.paths)
        keys = store.known_keys(self.paths, identity.stamp)
        states = store.states(self.paths, keys)
        damaged = list(_of_other_sizes(store, files, self.paths, keys, states))
        if damaged:
            store.forget(damaged)
            self.notes.append(_made_again(damaged))
            states = store.states(self.paths, keys)
        facts = iter(parse_all(state.facts_json for state in states if state.status == "done"))
        suspects = set(store.abandoned())
        self.jobs: list[Job] = []
        self.results: dict[str, VideoResult] = {}
        for path, name, key, state in zip(self.paths, self.names, keys, states, strict=True):
            known = next(facts) if state.status == "done" else None
            if known and state.outputs.keys() >= set(files.names(name)):
                self.results[path] = video_result(path, name, key, known, "skipped")
            elif state.status in ("failed", "quarantined") and not retry_failed:
                reason = f"{state.reason} (an earlier run; --retry-failed tries again)"
                self.results[path] = VideoResult(
                    video_path=path_id(path), status=state.status, name=name, key=key, reason=reason
                )
            else:
                self.jobs.append(Job(path, name, key, last=path_text(path) in suspects))


def _of_other_sizes(
    store: Store, files: EmbeddingFiles, paths: Sequence[str], keys: Sequence[str | None], states: Sequence[State]
) -> Iterator[Problem]:
    """Files of videos that are done which have not the size with which they were written."""
    features, outputs = Sizes(store.folder), files.sizes()
    for path, key, state in zip(paths, keys, states, strict=True):
        if state.status == "done":
            file = state.feature_file
            if reason := wrong_size(features[file.file], file.size):
                yield Problem("features", key, None, file.file, reason)
            for name, (size, _) in state.outputs.items():
                if reason := wrong_size(outputs[name], size):
                    yield Problem("output", key, path_text(path), name, reason)


def _made_again(damaged: Sequence[Problem]) -> str:
    first = damaged[0]
    more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    return f"{first.file}: {first.reason}{more}; made again"


def _check(keep: Sequence[str], save_format: str, shard: tuple[int, int] | None, max_failures: int | None) -> None:
    for name in keep:
        if name not in KEPT:
            raise UsageError(f"keep must be of {', '.join(KEPT)}, got {name!r}")
    if save_format not in SUFFIXES:
        raise UsageError(f"save_format must be one of {', '.join(SUFFIXES)}, got {save_format!r}")
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise UsageError(f"shard must be (i, n) with 1 <= i <= n, got {shard}")
    if max_failures is not None and max_failures < 0:
        raise UsageError(f"max_failures must be 0 or more, got {max_failures}")


def _is_among(folder: Path, paths: Sequence[str | Path]) -> bool:
    """Whether videos are looked for in the output folder itself."""
    return os.path.realpath(folder) in {os.path.realpath(path) for path in paths if not is_url(path)}


def _stem(path: str, images: bool) -> str:
    """Of a file's name; a folder of images has no suffix."""
    if is_url(path):
        return os.path.splitext(file_name(path))[0] or "video"
    if images and os.path.isdir(path):
        return os.path.basename(os.path.abspath(path))
    return os.path.splitext(os.path.basename(path))[0]


def _result(plan: Plan, run: Run, found: Inputs, folder: Path, settings: dict[str, Any]) -> EmbedResult:
    videos = [result for path in plan.paths if (result := plan.results.get(path) or run.results.get(path))]
    failed = [video for video in videos if video["status"] in ("failed", "quarantined")]
    failed += [VideoResult(video_path=path_id(m.path), status="failed", reason=m.reason) for m in found.missing]
    good = [video for video in videos if video["status"] in ("done", "skipped")]
    counts = Counter(video["status"] for video in good)
    if run.stop.is_set():
        status = "interrupted"
    elif run.stopped:
        status = "stopped"
    elif not good:
        status = "nothing"
    else:
        status = "partial" if failed or any(video["lost_frames"] for video in good) else "complete"
    notes = run.store.notes + plan.notes
    encoder = run.engine.encoder
    if encoder["random_weights"]:
        notes.append(f"{encoder['spec']}: random weights; the embeddings mean nothing")
    return EmbedResult(
        status=status, total_videos=len(plan.paths) + len(found.missing), processed=len(good), failed=len(failed),
        results=good, failed_videos=failed, aliases=[alias._asdict() for alias in found.aliases],
        computed=counts["done"], skipped=counts["skipped"], frames=run.frames, output_dir=path_id(folder),
        settings=settings, encoder=encoder, engine=run.engine.describe(), notes=notes,
    )  # fmt: skip


@contextmanager
def _rewritten(store: Store, path: Path, told: Any, changed: bool) -> Iterator[Path | None]:
    """Where to write a file again; None where it is whole and tells the same already."""
    digest = hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()
    try:
        same = not changed and store.meta(path.name) == [path.stat().st_size, digest]
    except OSError:
        same = False
    yield None if same else path
    if not same:
        store.set_meta(path.name, [path.stat().st_size, digest])


def _consolidate(store: Store, plan: Plan, keys: Sequence[str | None], path: Path) -> None:
    videos, embeddings = store.embeddings()
    row_of = {video.key: n for n, video in enumerate(videos)}

    def rows():
        for video, name, key in zip(plan.paths, plan.names, keys, strict=True):
            if (n := row_of.get(key)) is not None:
                yield name, path_id(video), embeddings[n], videos[n].facts

    write_consolidated(path, rows())


def _last_run(result: EmbedResult) -> dict[str, Any]:
    counts = result.model_dump(include={"status", "total_videos", "processed", "failed", "computed", "skipped"})
    return counts | {"seconds": result.timings["total"], "ended": time.time(), "notes": result.notes}
