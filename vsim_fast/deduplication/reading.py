"""Files to features: from the store where they are there, else read into it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vsim_fast.copies import VERSION, CopyFeatures
from vsim_fast.copy_reader import CopyVideo, Noise, noise_for, read_copy_video, read_copy_videos
from vsim_fast.deduplication.records import File
from vsim_fast.encode.base import Encoder
from vsim_fast.errors import ChangedVideo, CorruptVideo, DecodeError, DoesNotFit, UsageError
from vsim_fast.feature_store import DamagedFeatures, content_key, settings_hash
from vsim_fast.feature_store.pairs import FeatureStore
from vsim_fast.inputs import Inputs, path_id
from vsim_fast.pipeline import Timings
from vsim_fast.records import Progress
from vsim_fast.video.probe import gate


class Reader:
    """Features of files, from the store or computed into it."""

    def __init__(
        self,
        store: FeatureStore,
        encoder: Encoder,
        settings: dict[str, Any],
        noise_files: list[str],
        decoder: str,
        timings: Timings,
    ):
        self.store, self.encoder, self.settings, self.decoder, self.timings = store, encoder, settings, decoder, timings
        self.noise_keys = {_key(path): path for path in noise_files}
        identity = {"encoder": encoder.id, "dtype": str(encoder.token_dtype), "version": VERSION}
        self.hash = settings_hash(identity | settings | {"noise": sorted(self.noise_keys)})
        self.pairs_computed = 0
        self._noise: Noise | None = None

    @property
    def noise(self) -> Noise:
        """Made when something is to be computed."""
        if self._noise is None:
            with self.timings.stage("noise"):
                source = dict(decoder=self.decoder, timings=self.timings)
                videos = [
                    read_copy_video(path, self.encoder, self.settings, **source) for path in self.noise_keys.values()
                ]
                self._noise = noise_for(self.encoder, videos)
        return self._noise

    def key(self, path: str) -> str:
        """Content key of a file.  Raises: OpenError: what the gate refuses; UsageError: it is in the noise set."""
        gate(path)
        with self.timings.stage("keys"):
            key = self.store.key(path)
        if key in self.noise_keys:
            raise UsageError(
                f"noise must not be among the videos compared: {path_id(self.noise_keys[key])} has the content of "
                f"{path_id(path)}"
            )
        return key

    def facts(self, key: str) -> dict[str, Any] | None:
        return self.store.facts(key, self.hash)

    def read(self, path: str, key: str) -> dict[str, Any]:
        """Decode and encode a file into the store; returns its facts.  Raises: DecodeError."""
        ((_, outcome),) = self.read_many([(path, key)])
        if isinstance(outcome, DecodeError):
            raise outcome
        return outcome

    def read_many(self, files: Iterable[tuple[str, str]]) -> Iterator[tuple[str, dict[str, Any] | DecodeError]]:
        """Decode and encode files, given with their keys, into the store, several at a time.

        Yields:
            Path of each, as it ends, and its facts or what is wrong with it.
        """
        files = list(files)
        source = dict(decoder=self.decoder, timings=self.timings)
        paths = [path for path, _ in files]
        for n, video in read_copy_videos(paths, self.encoder, self.settings, self.noise, **source) if files else ():
            path, key = files[n]
            yield path, video if isinstance(video, DecodeError) else self._store(path, key, video)

    def _store(self, path: str, key: str, video: CopyVideo) -> dict[str, Any]:
        if self.noise_keys and self.noise.overlap(video.features):
            names = ", ".join(path_id(name) for name in self.noise_keys.values())
            raise UsageError(f"noise must not be among the videos compared: {path_id(path)} is shown in {names}")
        height, width = video.info.display_size
        facts = {
            "width": width, "height": height, "picture": _between_bars(video.features, width, height),
            "duration_seconds": round(video.info.duration_seconds, 6),
            "fps": video.info.average_fps, "codec": video.info.codec, "decoder": video.report.backend,
            "frame_seconds": video.features.frame_seconds.tolist(), "blank": video.features.blank,
            "lost": video.report.lost, "notes": list(video.notes),
        }  # fmt: skip
        with self.timings.stage("store"):
            self.store.add(key, self.hash, video.features.tensors(), video.thumbnails, facts)
        return facts

    def features(self, path: str, key: str) -> CopyFeatures:
        """From the store; what is damaged there is read again."""
        try:
            return CopyFeatures.from_tensors(self.store.features(key, self.hash))
        except DamagedFeatures as error:
            self.store.notes.append(f"{error}; made again")
            self.read(path, key)
            return CopyFeatures.from_tensors(self.store.features(key, self.hash))

    def thumbnails(self, path: str, key: str) -> list[bytes]:
        try:
            return self.store.thumbnails(key, self.hash)
        except DamagedFeatures as error:
            self.store.notes.append(f"{error}; made again")
            self.read(path, key)
            return self.store.thumbnails(key, self.hash)


def _between_bars(features: CopyFeatures, width: int, height: int) -> list[int]:
    """Width and height of the picture without its bars."""
    top, left, bottom, right = features.box.tolist()
    return [round((right - left) * width), round((bottom - top) * height)]


def _key(path: str) -> str:
    gate(path)
    return content_key(path)


def read_all(reader: Reader, found: Inputs, retry_failed: bool, progress: Progress | None) -> list[File]:
    """One record per file, in their order; features of every readable one are in the store afterwards."""
    files: dict[str, File] = {}
    waiting: dict[str, list[str]] = {}  # by content

    def told(path: str, file: File) -> None:
        files[path] = file
        if progress:
            progress.advance("videos", len(files), len(found.files))

    for path in found.files:
        name, key = path_id(path), None
        try:
            key = reader.key(path)
            if facts := reader.facts(key):
                told(path, _file(path, key, facts, computed=False))
            elif (earlier := reader.store.failure(key, reader.hash)) and not retry_failed:
                reason = f"{earlier} (an earlier run; --retry-failed reads it again)"
                told(path, File(path=name, status="failed", reason=reason))
            else:
                waiting.setdefault(key, []).append(path)
        except DecodeError as error:
            told(path, File(path=name, status="failed", reason=error.told, key=key))
        except OSError as error:
            told(path, File(path=name, status="failed", reason=error.strerror or str(error), key=key))
    keys = {paths[0]: key for key, paths in waiting.items()}
    for first, outcome in reader.read_many(keys.items()):
        key = keys[first]
        told_of_content = not isinstance(outcome, ChangedVideo | DoesNotFit) and os.path.exists(first)
        if isinstance(outcome, DecodeError) and told_of_content:
            reader.store.add_failure(key, reader.hash, outcome.told)
        for path in waiting[key]:
            if isinstance(outcome, DecodeError):
                told(path, File(path=path_id(path), status="failed", reason=outcome.told, key=key))
            else:
                told(path, _file(path, key, outcome, computed=path == first))
    return [files[path] for path in found.files]


def _file(path: str, key: str, facts: Mapping[str, Any], *, computed: bool) -> File:
    size = os.stat(path).st_size
    seconds = facts["duration_seconds"]
    picture_width, picture_height = facts["picture"]
    known = {name: facts[name] for name in ("width", "height", "duration_seconds", "fps", "codec", "decoder", "notes")}
    return File(
        path=path_id(path), key=key, computed=computed, **known, size_bytes=size,
        picture_width=picture_width, picture_height=picture_height,
        bit_rate=round(size * 8 / seconds) if seconds > 0 else None, lost_frames=facts["lost"],
        **({"status": "blank", "reason": "black or featureless throughout"} if facts["blank"] else {"status": "ok"}),
    )  # fmt: skip


def require_enough(found: Inputs, files: Sequence[File]) -> None:
    readable = [file.status != "failed" for file in files]
    enough = sum(readable) >= 2 if len(found.sets) == 1 else all(any(readable[n] for n in s) for s in found.sets)
    if not enough:
        reasons = [f"{file.path}: {file.reason}" for file in files if file.status == "failed"]
        reasons += [f"{path_id(path)}: {reason}" for path, reason in found.missing]
        reasons += [f"{path_id(a.path)} is the same file as {path_id(a.same_as)}" for a in found.aliases]
        raise CorruptVideo(
            files[0].path if len(files) == 1 else f"{len(files)} files",
            f"{sum(readable)} of {len(files)} videos can be read, nothing to compare"
            + "".join(f"; {reasons[0]}" if reasons else ""),
        )
