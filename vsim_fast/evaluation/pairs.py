"""The two tables: scored pairs and what is true, checked once; their CSV files in and out."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from os import PathLike
from typing import Any

import numpy as np

from vsim_fast.errors import UsageError

IDS = ("query_id", "ref_id")
TIMES = ("query_start", "query_end", "ref_start", "ref_end")
GROUPS = ("family", "severity", "base")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Rows:
    query_id: Sequence[str]
    ref_id: Sequence[str]
    times: np.ndarray | None = None
    """[N, 4] seconds: query_start, query_end, ref_start, ref_end; a pair may then have several rows."""
    source: str = "pairs"
    """What messages call these rows: the file."""
    lines: Sequence[int] | None = None
    """Line of each row in `source`."""

    def __len__(self) -> int:
        return len(self.query_id)

    def where(self, row: int) -> str:
        return f"{self.source}: " + (f"row {row}" if self.lines is None else f"line {self.lines[row]}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} rows of {self.source}{', with times' * (self.times is not None)})"

    def _check(self) -> None:
        if len(self.ref_id) != len(self):
            raise UsageError(f"{self.source}: needs a ref_id for each of {len(self)} query_id, got {len(self.ref_id)}")
        self._refuse([not query for query in self.query_id], "query_id is empty")
        has_ref = np.array([bool(ref) for ref in self.ref_id], dtype=bool)
        if isinstance(self, Pairs):
            self._refuse(~has_ref, "ref_id is empty")
        if self.times is None:
            self._refuse_duplicates()
            return
        times = np.asarray(self.times, dtype=np.float64)
        if times.shape != (len(self), 4):
            raise UsageError(f"{self.source}: times must be [{len(self)}, 4], got {times.shape}")
        object.__setattr__(self, "times", times)
        for column, name in enumerate(TIMES):
            values = times[:, column]
            self._refuse(has_ref & ~np.isfinite(values), f"{name} must be finite", values)
            self._refuse(has_ref & (values < 0), f"{name} must not be negative", values)
        for start, end in ((0, 1), (2, 3)):
            after = has_ref & (times[:, end] < times[:, start])
            self._refuse(after, f"{TIMES[end]} must not be before {TIMES[start]}", times[:, [start, end]])

    def _refuse(self, wrong: Sequence[bool], rule: str, values: np.ndarray | None = None) -> None:
        """Raises UsageError for the first row that is wrong."""
        if np.any(wrong):
            row = int(np.argmax(wrong))
            got = "" if values is None else f", got {' to '.join(f'{x:g}' for x in np.atleast_1d(values[row]))}"
            raise UsageError(f"{self.where(row)}: {rule}{got}")

    def _refuse_duplicates(self) -> None:
        if len(set(zip(self.query_id, self.ref_id, strict=True))) == len(self):
            return
        first: dict[tuple[str, str], int] = {}
        for row, pair in enumerate(zip(self.query_id, self.ref_id, strict=True)):
            if (before := first.setdefault(pair, row)) != row:
                raise UsageError(
                    f"{self.where(row)}: the pair {pair[0]!r}, {pair[1]!r} is listed twice, first "
                    f"{self.where(before).removeprefix(self.source + ': ')}; without times a pair has one row"
                )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pairs(Rows):
    """Scored candidate pairs; with `times`, scored segments.

    Raises:
        UsageError: a score is not finite, an id is empty, a pair is listed twice (without times), times are negative
            or reversed.
    """

    score: np.ndarray
    """float64 [N], higher is more certain."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", np.asarray(self.score, dtype=np.float64))
        if self.score.shape != (len(self),):
            raise UsageError(f"{self.source}: score must be [{len(self)}], got {self.score.shape}")
        self._refuse(~np.isfinite(self.score), "score must be finite", self.score)
        self._check()

    def both_ways(self) -> Pairs:
        """Each pair as (a, b) and (b, a), for videos compared among themselves."""
        rows = [row for row, (a, b) in enumerate(zip(self.query_id, self.ref_id, strict=True)) if a != b]
        return Pairs(**_exchanged(self, rows), score=np.concatenate([self.score, self.score[rows]]))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Truth(Rows):
    """The pairs that match; with `times`, where. An empty ref_id lists a query that has no copy.

    Raises:
        UsageError: as `Pairs`; or a query's rows disagree on family, severity or base.
    """

    family: Sequence[str] | None = None
    severity: Sequence[str] | None = None
    base: Sequence[str] | None = None
    """What is resampled together, such as the recording that several queries were made of."""
    source: str = "truth"

    def __post_init__(self) -> None:
        self._check()
        if not any(self.ref_id):
            raise UsageError(f"{self.source}: no true pairs; there is nothing to measure against")
        for name in GROUPS:
            self.group_of_query(name)

    def group_of_query(self, name: str) -> dict[str, str]:
        """Query -> its `family`, `severity` or `base`; without those that have none."""
        found: dict[str, str] = {}
        for row, (query, group) in enumerate(zip(self.query_id, getattr(self, name) or (), strict=False)):
            if found.setdefault(query, group) != group:
                raise UsageError(
                    f"{self.where(row)}: {name} of query {query!r} must be the same in all its rows, got {group!r} "
                    f"after {found[query]!r}"
                )
        return {query: group for query, group in found.items() if group}

    def both_ways(self) -> Truth:
        """Each pair as (a, b) and (b, a); families, severities and bases stay with the query as it was listed."""
        listed = set(zip(self.query_id, self.ref_id, strict=True))
        rows = [row for row, (a, b) in enumerate(zip(self.query_id, self.ref_id, strict=True)) if b]
        rows = [row for row in rows if (self.ref_id[row], self.query_id[row]) not in listed]
        groups = {name: self.group_of_query(name) for name in GROUPS}
        fields = _exchanged(self, rows)
        return Truth(
            **fields, **{name: [of.get(query, "") for query in fields["query_id"]] for name, of in groups.items()}
        )


def _exchanged(rows: Rows, added: list[int]) -> dict[str, Any]:
    """The fields all rows have, followed by those of `added` with query and ref exchanged."""
    lines = range(len(rows)) if rows.lines is None else rows.lines
    return {
        "query_id": [*rows.query_id, *(rows.ref_id[row] for row in added)],
        "ref_id": [*rows.ref_id, *(rows.query_id[row] for row in added)],
        "times": None if rows.times is None else np.concatenate([rows.times, rows.times[added][:, [2, 3, 0, 1]]]),
        "source": rows.source,
        "lines": None if rows.lines is None else [*lines, *(lines[row] for row in added)],
    }


def read_pairs(path: str | PathLike[str], *, column: str = "score") -> Pairs:
    """Candidate pairs: `pairs.csv` of dedup, VSC candidates (query_id, ref_id, score), or VSC matching predictions
    (with query_start, query_end, ref_start, ref_end), columns in any order.

    Args:
        path: CSV with a header, UTF-8; bytes that are not (of file names) are kept as surrogate escapes.
        column: which column is the score.
    Raises:
        UsageError: names the file, the line, the rule and the value.
    """
    columns, lines = _read_table(path, (*IDS, column), TIMES)
    return Pairs(
        query_id=columns["query_id"], ref_id=columns["ref_id"], score=_numbers(path, lines, column, columns[column]),
        times=_read_times(path, lines, columns), source=str(path), lines=lines,
    )  # fmt: skip


def read_truth(path: str | PathLike[str]) -> Truth:
    """True pairs: VSC ground truth, or just query_id and ref_id; columns `family`, `severity`, `base` where present.
    A row with an empty ref_id lists a query that has no copy. Raises UsageError as `read_pairs`."""
    columns, lines = _read_table(path, IDS, (*TIMES, *GROUPS))
    return Truth(
        query_id=columns["query_id"], ref_id=columns["ref_id"], times=_read_times(path, lines, columns),
        source=str(path), lines=lines, **{name: columns.get(name) for name in GROUPS},
    )  # fmt: skip


def _read_table(path: Any, required: Sequence[str], optional: Sequence[str]) -> tuple[dict[str, list[str]], list[int]]:
    """The named columns as text, and each row's line."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if not header:
                raise UsageError(f"{path}: is empty; it needs a header with {', '.join(required)}")
            for name in (*required, *optional):
                if header.count(name) > 1:
                    raise UsageError(f"{path}: line 1: the column {name!r} is there twice")
            for name in required:
                if name not in header:
                    has = ", ".join(map(repr, header))
                    raise UsageError(f"{path}: line 1: the column {name!r} is missing; it has {has}")
            names = [name for name in dict.fromkeys((*required, *optional)) if name in header]
            pick = itemgetter(*map(header.index, names))
            known: dict[str, str] = {}  # one string per id, however many rows repeat it
            rows, lines = [], []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UsageError(f"{path}: line {reader.line_num}: has {len(row)} fields, the header {len(header)}")
                rows.append(tuple(known.setdefault(text, text) for text in pick(row)))
                lines.append(reader.line_num)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num}: is not CSV: {error}") from error
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    return dict(zip(names, map(list, columns), strict=True)), lines


def _read_times(path: Any, lines: list[int], columns: dict[str, list[str]]) -> np.ndarray | None:
    present = [name for name in TIMES if name in columns]
    if not present:
        return None
    if len(present) < len(TIMES):
        missing = next(name for name in TIMES if name not in columns)
        raise UsageError(f"{path}: line 1: the column {missing!r} is missing; times need all of {', '.join(TIMES)}")
    return np.stack([_numbers(path, lines, name, columns[name], columns["ref_id"]) for name in TIMES], axis=1)


def _numbers(
    path: Any, lines: list[int], name: str, texts: list[str], needed: Sequence[str] | None = None
) -> np.ndarray:
    """float64 [N], finite; NaN for an empty text where `needed` is empty too."""
    try:
        values = np.array(list(map(float, texts)), dtype=np.float64)
    except ValueError:
        values = np.full(len(texts), math.nan)
    for row in np.flatnonzero(~np.isfinite(values)):
        text = texts[row]
        if text or needed is None or needed[row]:
            with suppress(ValueError):
                values[row] = float(text)
            if not math.isfinite(values[row]):
                raise UsageError(f"{path}: line {lines[row]}: {name} must be a finite number, got {text!r}")
    return values


def write_vsc(path: str | PathLike[str], rows: Pairs | Truth) -> None:
    """VSC's files: candidates (query_id, ref_id, score), with times matching predictions, best first; or ground truth.
    VSC's own tools also want query ids to begin with Q and ref ids with R; ids are written as they are."""
    scored = isinstance(rows, Pairs)
    order = np.argsort(-rows.score, kind="stable") if scored else range(len(rows))
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*IDS, *(TIMES if rows.times is not None else ()), *(["score"] if scored else [])])
        for row in order:
            times = () if rows.times is None else rows.times[row].tolist()
            if rows.ref_id[row]:
                score = [float(rows.score[row])] if scored else []
                writer.writerow([rows.query_id[row], rows.ref_id[row], *times, *score])


def numbered(*columns: Iterable[str]) -> dict[str, int]:
    """Each value's number, counting in the order of first appearance."""
    return {value: number for number, value in enumerate(dict.fromkeys(chain(*columns)))}


def keys_of(rows: Rows, queries: dict[str, int], refs: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Number of the query, and of the pair, of each row."""
    query = np.fromiter(map(queries.__getitem__, rows.query_id), np.int64, len(rows))
    return query, query * len(refs) + np.fromiter(map(refs.__getitem__, rows.ref_id), np.int64, len(rows))
