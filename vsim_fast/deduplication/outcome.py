"""Scores to groups, what to keep, and the files that say so."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vsim_fast.copies import SIGNALS, PairScores
from vsim_fast.deduplication.pairing import Compared
from vsim_fast.deduplication.reading import Reader
from vsim_fast.deduplication.records import COLUMNS, DedupResult, DuplicateGroup, File, Match, Member, PairRow
from vsim_fast.feature_store.pairs import PairTable
from vsim_fast.grouping import Quality, groups, keep_order
from vsim_fast.pipeline import Timings
from vsim_fast.report.duplicates import ReviewGroup, ReviewMember, ReviewPage, ReviewVideo
from vsim_fast.store import output_errors

RELATED = 50
"""Most pairs on the page that are alike but no duplicates."""


class Found(NamedTuple):
    """A medoid (or reference) and its copies, best first, as positions."""

    medoid: int
    members: list[int]


def find_groups(compared: Compared, table: PairTable, apart: set[tuple[int, int]]) -> list[Found]:
    pairs = [(a, b, scores.score) for a, b, scores in compared.alike(table) if scores.duplicate]
    edges = np.array([pair[:2] for pair in pairs if pair[:2] not in apart], np.int64).reshape(-1, 2)
    scores = np.array([pair[2] for pair in pairs if pair[:2] not in apart])
    return [Found(group.medoid, group.members) for group in groups(len(compared.members), edges, scores, apart)]


def find_matches(compared: Compared, table: PairTable, apart: set[tuple[int, int]]) -> list[Found]:
    """Of each reference the queries that are copies of it."""
    by_ref: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for query, ref, scores in compared.alike(table):
        if scores.duplicate and (query, ref) not in apart:
            by_ref[ref].append((-scores.score, query))
    return [Found(ref, [query for _, query in sorted(found)]) for ref, found in sorted(by_ref.items())]


class Described(NamedTuple):
    position: int
    file: File
    keep: bool
    reason: str
    scores: PairScores | None
    """Against the medoid; None for the medoid, which comes first."""


def describe(compared: Compared, table: PairTable, group: Found, kept: set[int], *, keeping: bool) -> list[Described]:
    """The members with what to keep; of copies of references (`keeping` False) nothing is suggested."""
    everyone = sorted([group.medoid, *group.members])  # of equals the first file is kept
    best, reasons = keep_order([_quality(compared.file(n), n in kept) for n in everyone])
    for i, n in enumerate(everyone):
        if i != best and compared.file(n).key == compared.file(everyone[best]).key:
            reasons[i] = "the same bytes as the one to keep"
    about = {n: (n == everyone[best] or n in kept, reasons[i]) for i, n in enumerate(everyone)}
    out = []
    for n in (group.medoid, *group.members):
        scores = None if n == group.medoid else compared.scores(table, n, group.medoid)
        keep, reason = about[n] if keeping else (True, "")
        out.append(Described(n, compared.file(n), keep, reason, scores))
    return out


def _quality(file: File, kept: bool) -> Quality:
    return Quality(
        file.picture_width, file.picture_height, file.codec, file.bit_rate or 0, file.duration_seconds,
        file.size_bytes, kept,
    )  # fmt: skip


def as_group(members: Sequence[Described]) -> DuplicateGroup:
    rows = [
        Member(
            path=m.file.path, score=1.0 if m.scores is None else round(m.scores.score, 6), keep=m.keep, reason=m.reason
        )
        for m in members
    ]
    return DuplicateGroup(medoid=rows[0].path, members=rows)


def as_matches(members: Sequence[Described]) -> list[Match]:
    return [
        Match(
            query=m.file.path, ref=members[0].file.path, score=round(m.scores.score, 6), verdict=m.scores.verdict,
            orientation=m.scores.orientation, reason=m.scores.reason,
        )
        for m in members[1:]
    ]  # fmt: skip


def find_related(
    compared: Compared, table: PairTable, apart: set[tuple[int, int]], found: Sequence[Found]
) -> list[tuple[int, int, PairScores]]:
    """The best pairs that are alike and not shown together: no duplicates, or of a member and not of the medoid."""
    group_of = {n: g for g, group in enumerate(found) for n in (group.medoid, *group.members)}

    def together(query: int, ref: int, scores: PairScores) -> bool:
        return group_of.get(query, -1) == group_of.get(ref, -2) if compared.one_set else scores.duplicate

    pairs = [pair for pair in compared.alike(table) if pair[:2] not in apart and not together(*pair)]
    return sorted(pairs, key=lambda pair: (-pair[2].score, *pair[:2]))[:RELATED]


def review_page(
    result: DedupResult,
    reader: Reader,
    compared: Compared,
    described: Sequence[Sequence[Described]],
    related: Sequence[tuple[int, int, PairScores]],
    timings: Timings,
) -> ReviewPage:
    videos: dict[int, ReviewVideo] = {}

    def video(position: int) -> ReviewVideo:
        if position not in videos:
            videos[position] = _review_video(reader, compared, position)
        return videos[position]

    def member(of: Described) -> ReviewMember:
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


def _review_video(reader: Reader, compared: Compared, position: int) -> ReviewVideo:
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


def write_pairs(path: Path, rows: Iterator[PairRow]) -> None:
    with output_errors(path), open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["query_id", "ref_id", *COLUMNS, "orientation", "verdict", *SIGNALS])
        for query, ref, scores in rows:
            numbers = (f"{getattr(scores, name):.6f}" for name in COLUMNS)
            signals = ("" if np.isnan(scores.signals[name]) else f"{scores.signals[name]:.6f}" for name in SIGNALS)
            writer.writerow([query, ref, *numbers, scores.orientation, scores.verdict, *signals])


def write_text(path: Path, text: str) -> None:
    with output_errors(path):
        path.write_text(text, encoding="utf-8")
