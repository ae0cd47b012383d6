"""`vsim dedup`: which videos of a folder are copies of each other, in groups, with what to keep and why."""

from __future__ import annotations

import csv
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vsim_fast import __version__
from vsim_fast.copies import SIGNALS, THRESHOLDS, VERSION, CopyFeatures, PairScores, score_pairs
from vsim_fast.copy_reader import Noise, copy_settings, noise_for, read_copy_video
from vsim_fast.encode import load_encoder
from vsim_fast.encode.base import Encoder
from vsim_fast.errors import CorruptVideo, DecodeError, UsageError
from vsim_fast.feature_store import DamagedFeatures, FeatureStore, PairTable, content_key, settings_hash
from vsim_fast.grouping import Quality, groups, keep_order
from vsim_fast.inputs import Inputs, find_videos, path_id
from vsim_fast.pipeline import Timings
from vsim_fast.report.duplicates import ReviewGroup, ReviewMember, ReviewPage, ReviewVideo, write_review_page
from vsim_fast.store import OutputFolder, output_errors
from vsim_fast.video.probe import gate

MIN_SCORE = 0.2
RELATED = 50
"""Most pairs on the page that are alike but no duplicates."""
COLUMNS = ("score", "content", "order", "coverage", "query_coverage", "ref_coverage")
STORE, DECISIONS, SUMMARY = "features", "decisions.json", "summary.json"


class Progress(Protocol):
    """Told what is going on."""

    def advance(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` "videos" or "pairs"."""


class File(BaseModel):
    """What became of one file."""

    path: str
    status: Literal["ok", "blank", "failed", "alias"]
    """blank: black or featureless throughout, compared with nothing.  alias: another name of a file that is read."""
    reason: str = ""
    key: str | None = None
    """Of its content; byte-identical files share it."""
    computed: bool = False
    """False: its features were there already."""
    width: int | None = None
    """As displayed."""
    height: int | None = None
    duration_seconds: float | None = None
    fps: float | None = None
    codec: str | None = None
    bit_rate: int | None = None
    """Bits per second of the whole file, sound included."""
    size_bytes: int | None = None
    decoder: str | None = None
    notes: list[str] = []


class Member(BaseModel):
    """A video of a group, with its score against the medoid (1 for the medoid itself)."""

    path: str
    score: float
    keep: bool
    reason: str


class DuplicateGroup(BaseModel):
    """Each member passes against the medoid, which is a member too."""

    medoid: str
    members: list[Member]


class Match(BaseModel):
    """A query that is a copy of a reference."""

    query: str
    ref: str
    score: float
    verdict: str
    orientation: str
    reason: str


class PairRow(NamedTuple):
    """A row of pairs.csv."""

    query_id: str
    ref_id: str
    scores: PairScores


class DedupResult(BaseModel):
    """What summary.json holds."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    schema_version: int = 1
    vsim_fast: str = __version__
    status: Literal["complete", "partial"]
    """partial: a file could not be read, or frames of one that were planned."""
    files: list[File]
    groups: list[DuplicateGroup]
    """Empty where two sets are compared."""
    matches: list[Match]
    """Empty where one set is compared with itself."""
    counts: dict[str, int]
    """videos, pairs, pairs_computed, features_computed, and files by status."""
    settings: dict[str, Any]
    encoder: dict[str, Any]
    thresholds: dict[str, float]
    decisions: dict[str, Any]
    """In force; in the form of decisions.json."""
    notes: list[str]
    output_dir: str | None = None
    outputs: dict[str, int] = {}
    """File name -> bytes."""
    timings: dict[str, float] = {}
    pairs: list[PairRow] = Field(default=[], exclude=True)
    """The rows of pairs.csv, where no file was written."""


class _Video(BaseModel, extra="forbid"):
    key: str
    path: str = ""


class _Apart(BaseModel, extra="forbid"):
    a: _Video
    b: _Video


class Decisions(BaseModel, extra="forbid"):
    """What a person decided on the page; the key names the content, the path is for people."""

    schema_version: Literal[1] = 1
    not_duplicates: list[_Apart] = []
    keep: list[_Video] = []


def dedup(
    paths: Sequence[str | Path],
    *,
    against: Sequence[str | Path] | None = None,
    output_dir: str | Path | None = None,
    encoder: str | Encoder = "builtin",
    orientations: str = "mirror",
    noise: Sequence[str | Path] = (),
    top: int | None = None,
    min_score: float = MIN_SCORE,
    decisions: str | Path | None = None,
    retry_failed: bool = False,
    device: str = "auto",
    precision: str = "auto",
    decoder: Literal["auto", "pyav", "nvdec"] = "auto",
    offline: bool = False,
    progress: Progress | None = None,
    timings: Timings | None = None,
    started: float | None = None,
) -> DedupResult:
    """The copies among videos: re-encoded, cropped, padded, mirrored, sped up, trimmed; look-alikes are left alone.

    Args:
        paths: folders, patterns, list files, files; see `find_videos`.
        against: compare `paths` with these instead of with each other; then no groups are made, but matches.
        output_dir: where pairs.csv, groups.json, summary.json, report.html and features/ go. What features/ holds is
            not computed again. None writes nothing.
        encoder: spec, or an encoder made by `load_encoder` (device and precision are then its own).
        orientations: in which each video is tried: "none" as it is, "mirror", or "all" (quarter turns too).
        noise: videos that have nothing to do with `paths`, to measure what is alike by chance; default generated
            pictures.
        top: of each video only its best pairs are listed.  min_score: least score listed.
        decisions: file saved by the page; default decisions.json in `output_dir`, if there is one.
        retry_failed: read files again that could not be read before and have not changed since.
        progress: called as work is done.  timings, started: account for what the caller did before.
    Returns:
        The result, also written as summary.json. Nothing is ever deleted.
    Raises:
        UsageError: an argument; no videos; a decisions file that is none; a noise video that is among the data.
        CorruptVideo: fewer than two videos can be read.  DeviceError, EncoderError, OutputError.
    A video that cannot be read is recorded in `files`, and the others are compared.
    """
    started = time.perf_counter() if started is None else started
    timings = timings or Timings()
    if top is not None and top < 1:
        raise UsageError(f"top must be 1 or more, got {top}")
    if not 0 <= min_score <= 1:
        raise UsageError(f"min_score must be in 0..1, got {min_score}")
    settings = copy_settings(orientations)
    decided = read_decisions(decisions, output_dir)
    with timings.stage("find"):
        sets = [paths] if against is None else [paths, against]
        found = find_videos(*sets, exclude=[] if output_dir is None else [output_dir])
        noise_files = find_videos(noise).files if noise else []
    if isinstance(encoder, str):
        with timings.stage("load_encoder"):
            encoder = load_encoder(encoder, device=device, precision=precision, offline=offline)
    with ExitStack() as stack:
        folder = Path(output_dir or stack.enter_context(TemporaryDirectory(prefix="vsim-")))
        store = stack.enter_context(FeatureStore(folder / STORE))
        reader = _Reader(store, encoder, settings, noise_files, decoder, timings)
        files = _read_all(reader, found, retry_failed, progress)
        _require_enough(found, files)
        compared = _Compared(found, files)
        table = _compare_all(reader, compared, min_score, progress)
        listed = compared.listed(table.scores(), min_score, top)
        apart, kept = compared.decided(decided)
        groups_found = _groups(compared, table, apart) if against is None else _matches(compared, table, apart)
        described = [_described(compared, table, group, kept, keeping=against is None) for group in groups_found]
        aliases = [
            File(path=path_id(a.path), status="alias", reason=f"the same file as {path_id(a.same_as)}")
            for a in found.aliases
        ]
        gone = [File(path=path_id(path), status="failed", reason=reason) for path, reason in found.missing]
        failed = gone + [file for file in files if file.status == "failed"]
        lossy = any("planned frames could not be decoded" in note for file in files for note in file.notes)
        result = DedupResult(
            status="partial" if failed or lossy else "complete",
            files=files + gone + aliases,
            groups=[_group(members) for members in described] if against is None else [],
            matches=[] if against is None else [match for members in described for match in _match(members)],
            counts={
                "videos": len(compared.members), "pairs": compared.pair_count, "pairs_computed": reader.pairs_computed,
                "pairs_listed": len(listed), "features_computed": sum(file.computed for file in files),
            } | dict(Counter(file.status for file in files + gone + aliases)),
            settings=settings | {"top": top, "min_score": min_score, "noise": [path_id(path) for path in noise_files]},
            encoder=encoder.describe(),
            thresholds=dict(THRESHOLDS),
            decisions=decided.model_dump(),
            notes=_warnings(encoder) + compared.unused(decided) + store.notes,
        )  # fmt: skip
        if output_dir is None:
            result.pairs = list(compared.rows(table, listed))
        else:
            with OutputFolder(folder) as out:
                with timings.stage("write"):
                    out.replaces(_earlier_outputs(folder / SUMMARY))
                    _write_pairs(out.file("pairs.csv"), compared.rows(table, listed))
                    if against is None:
                        content = {"groups": [group.model_dump() for group in result.groups]}
                        _write_text(out.file("groups.json"), json.dumps(content, indent=2))
                with timings.stage("report"):
                    related = _related(compared, table, apart, groups_found)
                    page = _page(result, reader, compared, described, related, timings)
                    write_review_page(out.file("report.html"), page)
                result.output_dir = path_id(folder)
                result.outputs = {name: (out.partial / name).stat().st_size for name in out.names}
                result = _timed(result, timings, started)
                _write_text(out.file(SUMMARY), result.model_dump_json(indent=2))
    return _timed(result, timings, started)


def read_decisions(path: str | Path | None, output_dir: str | Path | None = None) -> Decisions:
    """The decisions in `path`, or in decisions.json of `output_dir`, or none.  Raises: UsageError naming the field."""
    if path is None:
        if output_dir is None or not (Path(output_dir) / DECISIONS).exists():
            return Decisions()
        path = Path(output_dir) / DECISIONS
    try:
        return Decisions.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"decisions {path_id(path)}: cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"decisions {path_id(path)}: {where}: {first['msg']}") from None


def swapped(scores: PairScores) -> PairScores:
    """The scores of a pair seen from the other side."""
    turned = {"turned 90": "turned 270", "turned 270": "turned 90"}  # everything else undoes itself
    return scores._replace(
        query_coverage=scores.ref_coverage,
        ref_coverage=scores.query_coverage,
        orientation=turned.get(scores.orientation, scores.orientation),
        matches=sorted((ref, query, similarity) for query, ref, similarity in scores.matches),
    )


# --- reading ---------------------------------------------------------------------------------------------------------


class _Reader:
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
        before = os.stat(path)
        source = dict(decoder=self.decoder, timings=self.timings)
        video = read_copy_video(path, self.encoder, self.settings, self.noise, **source)
        after = os.stat(path)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise _Changed(path, "it changed while it was read; run again once it is complete")
        if self.noise_keys and self.noise.overlap(video.features):
            names = ", ".join(path_id(name) for name in self.noise_keys.values())
            raise UsageError(f"noise must not be among the videos compared: {path_id(path)} is shown in {names}")
        height, width = video.info.display_size
        facts = {
            "width": width, "height": height, "duration_seconds": round(video.info.duration_seconds, 6),
            "fps": video.info.average_fps, "codec": video.info.codec, "decoder": video.report.backend,
            "frame_seconds": video.features.frame_seconds.tolist(), "blank": video.features.blank,
            "notes": list(video.notes),
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


class _Changed(CorruptVideo):
    """Not worth remembering."""


def _key(path: str) -> str:
    gate(path)
    return content_key(path)


def _read_all(reader: _Reader, found: Inputs, retry_failed: bool, progress: Progress | None) -> list[File]:
    """One record per file, in their order; features of every readable one are in the store afterwards."""
    files = []
    for n, path in enumerate(found.files):
        files.append(_read_one(reader, path, retry_failed))
        if progress:
            progress.advance("videos", n + 1, len(found.files))
    return files


def _read_one(reader: _Reader, path: str, retry_failed: bool) -> File:
    name, key = path_id(path), None
    try:
        key = reader.key(path)
        if facts := reader.facts(key):
            return _file(path, key, facts, computed=False)
        if (earlier := reader.store.failure(key, reader.hash)) and not retry_failed:
            return File(path=name, status="failed", reason=f"{earlier} (an earlier run; --retry-failed reads it again)")
        return _file(path, key, reader.read(path, key), computed=True)
    except DecodeError as error:
        at = "" if error.pts_seconds is None else f" at {error.pts_seconds:.3f} s"
        if key and not isinstance(error, _Changed):
            reader.store.add_failure(key, reader.hash, error.reason + at)
        return File(path=name, status="failed", reason=error.reason + at, key=key)
    except OSError as error:
        return File(path=name, status="failed", reason=error.strerror or str(error), key=key)


def _file(path: str, key: str, facts: Mapping[str, Any], *, computed: bool) -> File:
    size = os.stat(path).st_size
    seconds = facts["duration_seconds"]
    known = {name: facts[name] for name in ("width", "height", "duration_seconds", "fps", "codec", "decoder", "notes")}
    return File(
        path=path_id(path), key=key, computed=computed, **known, size_bytes=size,
        bit_rate=round(size * 8 / seconds) if seconds > 0 else None,
        **({"status": "blank", "reason": "black or featureless throughout"} if facts["blank"] else {"status": "ok"}),
    )  # fmt: skip


def _require_enough(found: Inputs, files: Sequence[File]) -> None:
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


# --- comparing -------------------------------------------------------------------------------------------------------


class _Compared:
    """The files that are compared, as positions 0..N-1, and their contents, as positions in `keys`.

    A pair is scored from the content with the smaller key to the other, so that it is scored once whatever the files
    are called; between two sets, from query to reference.
    """

    def __init__(self, found: Inputs, files: Sequence[File]):
        self.files, self.paths = files, found.files
        self.members = [n for n, file in enumerate(files) if file.status == "ok"]
        """Positions -> indices of `files`."""
        self.keys = sorted({files[n].key for n in self.members})
        where = {key: n for n, key in enumerate(self.keys)}
        self.content = np.array([where[files[n].key] for n in self.members], np.int64)
        position = {n: p for p, n in enumerate(self.members)}
        self.sets = [np.array([position[n] for n in s if n in position], np.int64) for s in found.sets]
        self.one_set = len(self.sets) == 1
        self.holder = {files[n].key: found.files[n] for n in reversed(self.members)}
        """Key -> a file with that content."""
        if self.one_set:
            self.pair_count = len(self.members) * (len(self.members) - 1) // 2
        else:
            self.pair_count = len(self.sets[0]) * len(self.sets[1]) - len(np.intersect1d(*self.sets))

    def content_pairs(self) -> np.ndarray:
        """int64 [M, 2], (query, ref) contents to be scored, each once; those of one reference lie together."""
        count = len(self.keys)
        if self.one_set:
            ref, query = np.tril_indices(count, -1)
            same = np.flatnonzero(np.bincount(self.content, minlength=count) > 1)  # byte-identical files
            return np.concatenate([np.stack([query, ref], 1), np.stack([same, same], 1)])
        queries, refs = (np.unique(self.content[s]) for s in self.sets)
        pairs = np.stack([np.tile(queries, len(refs)), np.repeat(refs, len(queries))], 1)
        files = [np.bincount(self.content[s], minlength=count) for s in self.sets]
        shared = np.bincount(self.content[np.intersect1d(*self.sets)], minlength=count)
        only = files[0] * files[1] == shared  # the one file of this content is in both sets: no pair
        return pairs[(pairs[:, 0] != pairs[:, 1]) | ~only[pairs[:, 0]]]

    def listed(self, scores: np.ndarray, min_score: float, top: int | None) -> np.ndarray:
        """int64 [L, 2], the pairs (query, ref) of files to list, best first.

        Args:
            scores: [K, K] of the contents.  top: most pairs of a query; within one set, of either of the two files.
        """
        if self.one_set:  # the other triangle may hold what was scored between two sets, by an earlier run
            scores = np.where(np.tri(len(scores), dtype=bool), scores.T, scores)
        table = scores[np.ix_(self.content, self.content)]
        keep = table >= np.float32(min_score)
        if self.one_set:
            np.fill_diagonal(keep, False)
        else:
            inside = np.zeros_like(keep)
            inside[np.ix_(*self.sets)] = True
            keep &= inside & ~np.eye(len(keep), dtype=bool)
        if top is not None:
            best = np.zeros_like(keep)
            for row in np.flatnonzero(keep.any(1)):
                columns = np.flatnonzero(keep[row])
                best[row, columns[np.argsort(-table[row, columns], kind="stable")[:top]]] = True
            keep = best | best.T if self.one_set else best
        if self.one_set:
            keep = np.triu(keep)
        query, ref = np.nonzero(keep)
        order = np.lexsort((ref, query, -table[query, ref]))
        return np.stack([query[order], ref[order]], 1)

    def scores(self, table: PairTable, query: int, ref: int) -> PairScores:
        """Of two files, as from query to ref, whichever way their contents were scored."""
        a, b = int(self.content[query]), int(self.content[ref])
        if self.one_set and a > b:
            return swapped(table[b, a])
        return table[a, b]

    def rows(self, table: PairTable, listed: np.ndarray) -> Iterator[PairRow]:
        for query, ref in listed.tolist():
            yield PairRow(self.file(query).path, self.file(ref).path, self.scores(table, query, ref))

    def alike(self, table: PairTable) -> Iterator[tuple[int, int, PairScores]]:
        """The pairs of files (query, ref) of this run that are not "different"; the scores are of their contents."""
        by_content = defaultdict(list)
        for position, content in enumerate(self.content.tolist()):
            by_content[content].append(position)
        queries, refs = (set(s.tolist()) for s in (self.sets * 2)[:2])
        for a, b, scores in table.alike():
            if self.one_set and a > b:
                continue  # scored between two sets, by an earlier run
            pairs = [
                (query, ref) for query in by_content[a] for ref in by_content[b] if query in queries and ref in refs
            ]
            for query, ref in pairs:
                if query < ref or (query > ref and not (self.one_set and a == b)):
                    yield query, ref, scores

    def file(self, position: int) -> File:
        return self.files[self.members[position]]

    def path(self, position: int) -> str:
        return self.paths[self.members[position]]

    def decided(self, decisions: Decisions) -> tuple[set[tuple[int, int]], set[int]]:
        """Pairs of files that are no duplicates, in both orders, and files to keep."""
        apart = set()
        for pair in decisions.not_duplicates:
            for a in self._named(pair.a):
                apart |= {(x, y) for b in self._named(pair.b) if a != b for x, y in ((a, b), (b, a))}
        return apart, {n for video in decisions.keep for n in self._named(video)}

    def unused(self, decisions: Decisions) -> list[str]:
        """A note, if decisions name videos that are not here."""
        named = [video for pair in decisions.not_duplicates for video in (pair.a, pair.b)] + decisions.keep
        gone = sum(not self._named(video) for video in named)
        return [f"{gone} of {len(named)} videos named in the decisions are not among these"] if gone else []

    def _named(self, video: _Video) -> list[int]:
        """Files with the content that a decision names; of byte-identical ones the one of that path, if it is there."""
        found = [n for n in range(len(self.members)) if self.file(n).key == video.key]
        return [n for n in found if self.file(n).path == video.path] or found


def _compare_all(reader: _Reader, compared: _Compared, min_score: float, progress: Progress | None) -> PairTable:
    """Every pair that is not known yet, in one call."""
    context = settings_hash({"features": reader.hash, "thresholds": dict(THRESHOLDS)})
    table = reader.store.pairs(context, compared.keys)
    with reader.timings.stage("known"):
        pairs = table.to_compute(compared.content_pairs(), min_score)

    def load(content: int) -> CopyFeatures:
        key = compared.keys[content]
        return reader.features(compared.holder[key], key)

    last = time.perf_counter()
    if len(pairs):
        try:
            with reader.timings.stage("pairs"):
                for row, scores in score_pairs(load, pairs, noise=reader.noise):
                    table.add(*pairs[row].tolist(), scores)
                    reader.pairs_computed += 1
                    if progress and (time.perf_counter() - last > 0.1 or reader.pairs_computed == len(pairs)):
                        last = time.perf_counter()
                        progress.advance("pairs", reader.pairs_computed, len(pairs))
        finally:  # an interrupted run keeps what it has
            table.flush()
    return table


# --- groups ----------------------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A medoid (or reference) and its copies, best first, as positions."""

    medoid: int
    members: list[int]


def _groups(compared: _Compared, table: PairTable, apart: set[tuple[int, int]]) -> list[_Found]:
    pairs = [(a, b, scores.score) for a, b, scores in compared.alike(table) if scores.duplicate]
    edges = np.array([pair[:2] for pair in pairs if pair[:2] not in apart], np.int64).reshape(-1, 2)
    scores = np.array([pair[2] for pair in pairs if pair[:2] not in apart])
    return [_Found(group.medoid, group.members) for group in groups(len(compared.members), edges, scores, apart)]


def _matches(compared: _Compared, table: PairTable, apart: set[tuple[int, int]]) -> list[_Found]:
    """Of each reference the queries that are copies of it."""
    by_ref: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for query, ref, scores in compared.alike(table):
        if scores.duplicate and (query, ref) not in apart:
            by_ref[ref].append((-scores.score, query))
    return [_Found(ref, [query for _, query in sorted(found)]) for ref, found in sorted(by_ref.items())]


class _Described(NamedTuple):
    position: int
    file: File
    keep: bool
    reason: str
    scores: PairScores | None
    """Against the medoid; None for the medoid, which comes first."""


def _described(
    compared: _Compared, table: PairTable, group: _Found, kept: set[int], *, keeping: bool
) -> list[_Described]:
    """The members with what to keep; of copies of references (`keeping` False) nothing is suggested."""
    everyone = sorted([group.medoid, *group.members])  # of equals the first file is kept
    best, reasons = keep_order([_quality(compared.file(n), n in kept) for n in everyone])
    about = {n: (n == everyone[best] or n in kept, reasons[i]) for i, n in enumerate(everyone)}
    out = []
    for n in (group.medoid, *group.members):
        scores = None if n == group.medoid else compared.scores(table, n, group.medoid)
        keep, reason = about[n] if keeping else (True, "")
        out.append(_Described(n, compared.file(n), keep, reason, scores))
    return out


def _quality(file: File, kept: bool) -> Quality:
    return Quality(
        file.width, file.height, file.codec, file.bit_rate or 0, file.duration_seconds, file.size_bytes, kept
    )


def _group(members: Sequence[_Described]) -> DuplicateGroup:
    rows = [
        Member(
            path=m.file.path, score=1.0 if m.scores is None else round(m.scores.score, 6), keep=m.keep, reason=m.reason
        )
        for m in members
    ]
    return DuplicateGroup(medoid=rows[0].path, members=rows)


def _match(members: Sequence[_Described]) -> list[Match]:
    return [
        Match(
            query=m.file.path, ref=members[0].file.path, score=round(m.scores.score, 6), verdict=m.scores.verdict,
            orientation=m.scores.orientation, reason=m.scores.reason,
        )
        for m in members[1:]
    ]  # fmt: skip


def _related(
    compared: _Compared, table: PairTable, apart: set[tuple[int, int]], found: Sequence[_Found]
) -> list[tuple[int, int, PairScores]]:
    """The best pairs that are alike, but no duplicates and not in one group."""
    group_of = {n: g for g, group in enumerate(found) for n in (group.medoid, *group.members)}
    pairs = [
        (query, ref, scores)
        for query, ref, scores in compared.alike(table)
        if not scores.duplicate
        and (query, ref) not in apart
        and (not compared.one_set or query not in group_of or group_of[query] != group_of.get(ref))
    ]
    return sorted(pairs, key=lambda pair: (-pair[2].score, *pair[:2]))[:RELATED]


# --- writing ---------------------------------------------------------------------------------------------------------


def _page(
    result: DedupResult,
    reader: _Reader,
    compared: _Compared,
    described: Sequence[Sequence[_Described]],
    related: Sequence[tuple[int, int, PairScores]],
    timings: Timings,
) -> ReviewPage:
    videos: dict[int, ReviewVideo] = {}

    def video(position: int) -> ReviewVideo:
        if position not in videos:
            videos[position] = _review_video(reader, compared, position)
        return videos[position]

    def member(of: _Described) -> ReviewMember:
        return ReviewMember(video(of.position), of.keep, of.reason, **_review_scores(of.scores))

    files = result.files
    return ReviewPage(
        title="Duplicate videos" if compared.one_set else "Copies of the references",
        groups=[
            ReviewGroup(member(first), [member(m) for m in rest], min(m.scores.score for m in rest))
            for first, *rest in described
        ],
        related=[
            (video(ref), ReviewMember(video(query), True, "", **_review_scores(scores)))
            for query, ref, scores in related
        ],
        failed=[(file.path, file.reason) for file in files if file.status == "failed"],
        skipped=[(file.path, file.reason) for file in files if file.status in ("alias", "blank")],
        thresholds=result.thresholds, settings=result.settings, encoder=result.encoder, notes=result.notes,
        decisions=result.decisions, timings=timings.seconds(), video_count=len(compared.members),
    )  # fmt: skip


def _review_video(reader: _Reader, compared: _Compared, position: int) -> ReviewVideo:
    file, path = compared.file(position), compared.path(position)
    pictures = reader.thumbnails(path, file.key)
    return ReviewVideo(
        key=file.key, path=file.path, width=file.width, height=file.height, duration_seconds=file.duration_seconds,
        fps=file.fps, codec=file.codec, bit_rate=file.bit_rate, size_bytes=file.size_bytes, notes=file.notes,
        frame_seconds=reader.facts(file.key)["frame_seconds"], thumbnails=pictures,
    )  # fmt: skip


def _review_scores(scores: PairScores | None) -> dict[str, Any]:
    if scores is None:
        return {}
    numbers = {name: getattr(scores, name) for name in (*COLUMNS, "orientation", "verdict", "matches")}
    return numbers | {"why": scores.reason}


def _write_pairs(path: Path, rows: Iterator[PairRow]) -> None:
    with output_errors(path), open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["query_id", "ref_id", *COLUMNS, "orientation", "verdict", *SIGNALS])
        for query, ref, scores in rows:
            numbers = (f"{getattr(scores, name):.6f}" for name in COLUMNS)
            signals = ("" if np.isnan(scores.signals[name]) else f"{scores.signals[name]:.6f}" for name in SIGNALS)
            writer.writerow([query, ref, *numbers, scores.orientation, scores.verdict, *signals])


def _write_text(path: Path, text: str) -> None:
    with output_errors(path):
        path.write_text(text, encoding="utf-8")


def _earlier_outputs(summary: Path) -> list[str]:
    """What an earlier run wrote here."""
    try:
        outputs = json.loads(summary.read_bytes())["outputs"]
        return [name for name in outputs if name in ("pairs.csv", "groups.json", "report.html")]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _warnings(encoder: Encoder) -> list[str]:
    if encoder.random_weights:
        return [f"{encoder.spec}: random weights; the numbers mean nothing"]
    if encoder.spec != "builtin":
        return [f"{encoder.spec}: the thresholds were chosen with builtin, they may not fit"]
    return []


def _timed(result: DedupResult, timings: Timings, started: float) -> DedupResult:
    result.timings = {name: round(value, 4) for name, value in timings.seconds().items()}
    result.timings["total"] = round(time.perf_counter() - started, 4)
    return result
