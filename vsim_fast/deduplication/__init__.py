"""`vsim dedup`: which videos of a folder are copies of each other, in groups, with what to keep and why."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from vsim_fast.copies import THRESHOLDS
from vsim_fast.copy_reader import copy_settings
from vsim_fast.deduplication.outcome import (
    as_group,
    as_matches,
    describe,
    find_groups,
    find_matches,
    find_related,
    review_page,
    write_pairs,
    write_text,
)
from vsim_fast.deduplication.pairing import Compared, compare_all
from vsim_fast.deduplication.reading import Reader, read_all, require_enough
from vsim_fast.deduplication.records import (
    Decisions,
    DedupResult,
    DuplicateGroup,
    File,
    Match,
    Member,
    PairRow,
    read_decisions,
)
from vsim_fast.encode import load_encoder
from vsim_fast.encode.base import Encoder
from vsim_fast.errors import UsageError
from vsim_fast.feature_store.pairs import FeatureStore
from vsim_fast.inputs import Inputs, find_videos, path_id
from vsim_fast.pipeline import Timings
from vsim_fast.records import Progress
from vsim_fast.report.duplicates import write_review_page
from vsim_fast.store import OutputFolder, earlier_outputs

__all__ = ["Decisions", "DedupResult", "DuplicateGroup", "File", "Match", "Member", "PairRow", "Progress", "dedup"]

MIN_SCORE = 0.2
STORE, SUMMARY = "features", "summary.json"


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
    execution: str = "eager",
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
        encoder: spec, or an encoder made by `load_encoder` (device, precision and execution are then its own).
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
    _require_apart([*paths, *(against or ())], output_dir)
    with timings.stage("find"):
        sets = [paths] if against is None else [paths, against]
        found = find_videos(*sets, skip_folders=[] if output_dir is None else [output_dir])
        noise_found = find_videos(noise) if noise else Inputs([], [])
        if noise_found.missing:
            raise UsageError("noise: {}: {}".format(*noise_found.missing[0]))
    if isinstance(encoder, str):
        with timings.stage("load_encoder"):
            encoder = load_encoder(encoder, device=device, precision=precision, execution=execution, offline=offline)
    with ExitStack() as stack:
        folder = Path(output_dir or stack.enter_context(TemporaryDirectory(prefix="vsim-")))
        store = stack.enter_context(FeatureStore(folder / STORE))
        reader = Reader(store, encoder, settings, noise_found.files, decoder, timings)
        files = read_all(reader, found, retry_failed, progress)
        require_enough(found, files)
        compared = Compared(found, files)
        table = compare_all(reader, compared, min_score, progress)
        listed = compared.listed(table, min_score, top)
        apart, kept = compared.decided(decided)
        groups_found = find_groups(compared, table, apart) if against is None else find_matches(compared, table, apart)
        described = [describe(compared, table, group, kept, keeping=against is None) for group in groups_found]
        others = _not_read(found)
        counts = {
            "videos": len(compared.members), "pairs": compared.pair_count, "pairs_computed": reader.pairs_computed,
            "pairs_listed": len(listed), "features_computed": sum(file.computed for file in files),
        }  # fmt: skip
        counts |= dict.fromkeys(("ok", "blank", "failed", "alias"), 0) | Counter(file.status for file in files + others)
        result = DedupResult(
            status="partial" if counts["failed"] or any(file.lost_frames for file in files) else "complete",
            files=files + others,
            groups=[as_group(members) for members in described] if against is None else [],
            matches=[] if against is None else [match for members in described for match in as_matches(members)],
            counts=counts,
            settings=settings | {"top": top, "min_score": min_score, "noise": list(map(path_id, noise_found.files))},
            encoder=encoder.describe(),
            thresholds=dict(THRESHOLDS),
            decisions=decided.model_dump(),
            notes=encoder.threshold_warnings() + compared.unused(decided) + store.notes,
        )
        if output_dir is None:
            result.pairs = list(compared.rows(table, listed))
        else:
            with OutputFolder(folder) as out:
                with timings.stage("write"):
                    out.replaces(earlier_outputs(folder / SUMMARY, "pairs.csv", "groups.json", "report.html"))
                    write_pairs(out.file("pairs.csv"), compared.rows(table, listed))
                    if against is None:
                        content = {"groups": [group.model_dump() for group in result.groups]}
                        write_text(out.file("groups.json"), json.dumps(content, indent=2))
                with timings.stage("report"):
                    related = find_related(compared, table, apart, groups_found)
                    page = review_page(result, reader, compared, described, related, timings)
                    write_review_page(out.file("report.html"), page)
                result.output_dir = path_id(folder)
                result.outputs = {name: (out.partial / name).stat().st_size for name in out.names}
                result = _timed(result, timings, started)
                write_text(out.file(SUMMARY), result.model_dump_json(indent=2))
    return _timed(result, timings, started)


def _require_apart(paths: Sequence[str | Path], output_dir: str | Path | None) -> None:
    """The output folder is not searched for videos, so that no folder to search may be it or lie below it."""
    for path in map(Path, paths) if output_dir is not None else ():
        if path.is_dir() and Path(output_dir).resolve() in (path.resolve(), *path.resolve().parents):
            raise UsageError(
                f"output_dir {path_id(output_dir)} holds videos to compare, and the output folder is not searched: "
                f"choose another, such as {path_id(Path(output_dir) / 'results')}"
            )


def _not_read(found: Inputs) -> list[File]:
    """What was named and is not there, and further names of files that are read."""
    gone = [File(path=path_id(path), status="failed", reason=reason) for path, reason in found.missing]
    return gone + [
        File(path=path_id(path), status="alias", reason=f"the same file as {path_id(same_as)}")
        for path, same_as in found.aliases
    ]


def _timed(result: DedupResult, timings: Timings, started: float) -> DedupResult:
    result.timings = timings.summary(started)
    return result
