"""What comparing all videos with each other keeps: features per content, scores per pair.

    FOLDER/<content key>.<settings>.safetensors     features and thumbnails of one video, its facts in the header
    FOLDER/ledger.sqlite                            which file has which content, what failed, the scores of pairs
    FOLDER/lock                                     held by the run that uses the folder

Nothing here is precious: what is missing or damaged is computed again.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load
from torch import Tensor

from vsim_fast.copies import SIGNALS, PairScores
from vsim_fast.errors import OutputError
from vsim_fast.feature_store.files import DamagedFeatures, FeatureReader, write_tensors
from vsim_fast.feature_store.keys import Stamp, content_key, stamp
from vsim_fast.feature_store.ledger import Ledger, Lock, connect, database_errors, is_whole, kind
from vsim_fast.store import output_errors

SCHEMA = 1
KEEP_FROM = 0.2
"""Score from which a pair's numbers are kept whole, and not the score alone."""
FLUSH_PAIRS, FLUSH_SECONDS = 50_000, 20.0
TABLES = """
create table files (path blob primary key, size int, mtime_ns int, inode int, key text) without rowid;
create table failures (key text, settings text, reason text, primary key (key, settings)) without rowid;
create table videos (id integer primary key, key text unique);
create table contexts (id integer primary key, name text unique);
create table done (context int, newer int, is_query int, scores blob, primary key (context, newer, is_query));
create table pairs (context int, query int, ref int, numbers blob, orientation text, verdict text, duplicate int,
                    reason text, matches blob, primary key (context, query, ref)) without rowid;
create index alike on pairs (context) where verdict != 'different';
"""
MATCH = np.dtype([("query", "<u2"), ("ref", "<u2"), ("similarity", "<f4")])


class FeatureStore:
    """The folder, for one run at a time; a context manager.

    Attributes:
        notes: what was found damaged and is made again.
    Raises:
        OutputError: another run uses the folder, or it cannot be written.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.notes = Path(folder), []
        with output_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.folder / "lock")
        try:
            self.ledger = self._opened(self.folder / "ledger.sqlite")
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.ledger.close()
        self._lock.release()

    def key(self, path: str | os.PathLike) -> str:
        """`content_key` of a file, without reading one that has the stamp it had."""
        name, found = os.fsencode(os.path.abspath(path)), stamp(path)
        rows = self.ledger.read("select size, mtime_ns, inode, key from files where path = ?", (name,))
        for *noted, key in rows:
            if Stamp(*noted) == found:
                return key
        key = content_key(path)
        with self.ledger.writing() as database:
            database.execute("replace into files values (?, ?, ?, ?, ?)", (name, *found, key))
        return key

    def failure(self, key: str, settings: str) -> str | None:
        """Why a file of this content could not be read, if that is known."""
        rows = self.ledger.read("select reason from failures where key = ? and settings = ?", (key, settings))
        return rows[0][0] if rows else None

    def add_failure(self, key: str, settings: str, reason: str) -> None:
        with self.ledger.writing() as database:
            database.execute("replace into failures values (?, ?, ?)", (key, settings, reason))

    def add(
        self, key: str, settings: str, features: Mapping[str, Tensor], thumbnails: Sequence[bytes], facts: Any
    ) -> None:
        """Features of one video (tensors of any device), JPEG pictures, and facts (JSON)."""
        tensors: dict[str, Tensor | np.ndarray] = {f"features.{name}": tensor for name, tensor in features.items()}
        tensors["thumbnails"] = np.frombuffer(b"".join(thumbnails), np.uint8)
        tensors["thumbnail_ends"] = np.cumsum([len(data) for data in thumbnails], dtype=np.int64)
        write_tensors(self._path(key, settings), tensors, {"facts": facts})
        with self.ledger.writing() as database:
            database.execute("delete from failures where key = ? and settings = ?", (key, settings))

    def facts(self, key: str, settings: str) -> Any | None:
        """Facts of a video whose features are here, else None; a file that was cut off counts as not here."""
        if not self._path(key, settings).exists():
            return None
        try:
            return FeatureReader(self._path(key, settings)).metadata["facts"]
        except DamagedFeatures as error:
            self.notes.append(f"{error}; made again")
            return None

    def features(self, key: str, settings: str) -> dict[str, Tensor]:
        """Raises: DamagedFeatures: missing, cut off, or not the bytes that were written."""
        path = self._path(key, settings)
        FeatureReader(path).check()
        tensors = load(path.read_bytes())
        return {
            name.removeprefix("features."): tensor for name, tensor in tensors.items() if name.startswith("features.")
        }

    def thumbnails(self, key: str, settings: str) -> list[bytes]:
        """The JPEG pictures, as given.  Raises: DamagedFeatures."""
        found = FeatureReader(self._path(key, settings)).arrays(["thumbnails", "thumbnail_ends"])
        data, ends = found["thumbnails"].tobytes(), found["thumbnail_ends"].tolist()
        return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def pairs(self, context: str, keys: Sequence[str]) -> PairTable:
        """Scores between the contents `keys` (each once) under the settings that `context` stands for."""
        return PairTable(self, context, keys)

    def _path(self, key: str, settings: str) -> Path:
        return self.folder / f"{key}.{settings}.safetensors"

    def _opened(self, path: Path) -> Ledger:
        if path.exists():
            database = connect(path, write=True)
            try:
                application, version = kind(database)
                if application:
                    raise OutputError(f"{path}: this is the ledger of another kind of store; take another folder")
                if version == SCHEMA and is_whole(database, path):
                    return Ledger(database, path)
                reason = "damaged" if version == SCHEMA else f"of another version ({version}, not {SCHEMA})"
            except sqlite3.OperationalError as error:  # cannot be opened: not ours to remove
                raise OutputError(f"{path}: {error}") from error
            except sqlite3.DatabaseError as error:
                reason = f"damaged ({error})"
            database.close()
            self.notes.append(f"{path.name}: {reason}; begun anew, all pairs are compared again")
            path.unlink()
            path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        with database_errors(path):
            database = connect(path, write=True)
            database.executescript(f"begin; {TABLES} pragma user_version = {SCHEMA}; commit;")
        return Ledger(database, path)


class PairTable:
    """Scores of pairs of contents, each pair (query, ref) computed once; both are given as positions in `keys`.

    5,000 videos are 12.5 million pairs, nearly all of them different. So of every pair only the score is kept, in
    one row of float32 per video (its scores with the videos that came before it, 50 MB in all), and the other numbers
    of those pairs alone that score `keep_from` or more or are not "different".
    """

    def __init__(self, store: FeatureStore, context: str, keys: Sequence[str]):
        self._store, self.keep_from = store, KEEP_FROM
        with store.ledger.writing() as database:
            database.execute("insert or ignore into contexts (name) values (?)", (context,))
            database.executemany("insert or ignore into videos (key) values (?)", ((key,) for key in keys))
        read = store.ledger.read
        ((self._context,),) = read("select id from contexts where name = ?", (context,))
        ids = dict(read("select key, id from videos"))
        self._ids = np.array([ids[key] for key in keys], np.int64)
        self._position = np.full(max(ids.values(), default=0) + 1, -1)
        self._position[self._ids] = np.arange(len(keys))
        self._waiting: list[tuple[int, int, PairScores]] = []
        self._flushed = time.monotonic()

    def scores(self, queries: np.ndarray, refs: np.ndarray) -> np.ndarray:
        """float32 [Q, R] of positions int64 [Q] and [R] (each position once), nan where not computed yet."""
        table = np.full((len(queries), len(refs)), np.nan, np.float32)
        row_of, column_of = (self._place(positions) for positions in (queries, refs))
        rows = self._store.ledger.database.execute(
            "select newer, is_query, scores from done where context = ?", (self._context,)
        )
        for newer, is_query, blob in rows:
            own, others = (row_of, column_of) if is_query else (column_of, row_of)
            if newer < len(own) and (place := own[newer]) >= 0:
                values = np.frombuffer(blob, "<f4")
                older = others[: len(values)]
                side = table[place] if is_query else table[:, place]
                side[older[older >= 0]] = values[older >= 0]
        return table

    def _place(self, positions: np.ndarray) -> np.ndarray:
        """Id of a video -> where it is in `positions`, -1 where it is not."""
        place = np.full(len(self._position), -1)
        place[self._ids[positions]] = np.arange(len(positions))
        return place

    def to_compute(self, pairs: np.ndarray, min_score: float) -> np.ndarray:
        """Of pairs int64 [M, 2] those not computed yet, or kept as a score alone though that is `min_score` or more."""
        self.keep_from, min_score = min(self.keep_from, min_score), np.float32(min_score)
        queries, refs = np.unique(pairs[:, 0]), np.unique(pairs[:, 1])
        rows, columns = np.searchsorted(queries, pairs[:, 0]), np.searchsorted(refs, pairs[:, 1])
        scores = self.scores(queries, refs)[rows, columns]
        wanted = np.isnan(scores)
        if min_score < np.float32(KEEP_FROM) and (scores >= min_score).any():
            kept = np.zeros((len(queries), len(refs)), bool)
            found = self._store.ledger.database.execute(
                "select query, ref from pairs where context = ?", (self._context,)
            ).fetchall()
            ids = np.array(found, np.int64).reshape(-1, 2)
            ids = ids[(ids < len(self._position)).all(1)]
            place = np.stack([self._place(queries)[ids[:, 0]], self._place(refs)[ids[:, 1]]])
            place = place[:, (place >= 0).all(0)]
            kept[place[0], place[1]] = True
            wanted |= (scores >= min_score) & ~kept[rows, columns]
        return pairs[wanted]

    def add(self, query: int, ref: int, scores: PairScores) -> None:
        """The scores of one pair; written with others in one go, at the latest by `flush`."""
        self._waiting.append((int(self._ids[query]), int(self._ids[ref]), scores))
        if len(self._waiting) >= FLUSH_PAIRS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        done: dict[tuple[int, int], np.ndarray] = {}
        with self._store.ledger.writing() as database:
            for query, ref, scores in self._waiting:
                newer, older, is_query = max(query, ref), min(query, ref), int(query >= ref)
                if (newer, is_query) not in done:
                    done[newer, is_query] = self._row(newer, is_query)
                done[newer, is_query][older] = score = np.float32(scores.score)
                if score >= np.float32(self.keep_from) or scores.verdict != "different":
                    values = (self._context, query, ref, *_packed(scores))
                    database.execute("replace into pairs values (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            database.executemany(
                "replace into done values (?, ?, ?, ?)",
                ((self._context, newer, is_query, row.tobytes()) for (newer, is_query), row in done.items()),
            )
        self._waiting.clear()
        self._flushed = time.monotonic()

    def _row(self, newer: int, is_query: int) -> np.ndarray:
        found = self._store.ledger.database.execute(
            "select scores from done where context = ? and newer = ? and is_query = ?",
            (self._context, newer, is_query),
        ).fetchone()
        return np.frombuffer(found[0], "<f4").copy() if found else np.full(newer + 1, np.nan, "<f4")

    def __getitem__(self, pair: tuple[int, int]) -> PairScores:
        """All scores of a pair.  Raises: KeyError: it is not kept whole."""
        query, ref = (int(self._ids[n]) for n in pair)
        row = self._store.ledger.database.execute(
            "select numbers, orientation, verdict, duplicate, reason, matches from pairs "
            "where context = ? and query = ? and ref = ?",
            (self._context, query, ref),
        ).fetchone()
        if row is None:
            raise KeyError(pair)
        return _unpacked(*row)

    def alike(self) -> Iterator[tuple[int, int, PairScores]]:
        """The pairs that are not "different", as (query, ref, scores)."""
        rows = self._store.ledger.database.execute(
            "select query, ref, numbers, orientation, verdict, duplicate, reason, matches from pairs "
            "where context = ? and verdict != 'different' order by query, ref",
            (self._context,),
        )
        for query, ref, *values in rows:
            if max(query, ref) < len(self._position):
                a, b = self._position[query], self._position[ref]
                if a >= 0 and b >= 0:
                    yield int(a), int(b), _unpacked(*values)


def _packed(scores: PairScores) -> tuple[Any, ...]:
    """The columns of `pairs` after the first three; what explains a pair is kept only where it is alike."""
    numbers = [*scores[:6], *(scores.signals[name] for name in SIGNALS)]
    alike = scores.verdict != "different"
    return (
        np.array(numbers, "<f4").tobytes(),
        scores.orientation,
        scores.verdict,
        int(scores.duplicate),
        scores.reason if alike else "",
        np.array(scores.matches, MATCH).tobytes() if alike else b"",
    )


def _unpacked(
    numbers: bytes, orientation: str, verdict: str, duplicate: int, reason: str, matches: bytes
) -> PairScores:
    values = np.frombuffer(numbers, "<f4").astype(float).tolist()
    return PairScores(
        *values[:6], orientation, verdict, bool(duplicate), reason, dict(zip(SIGNALS, values[6:], strict=True)),
        np.frombuffer(matches, MATCH).tolist(),
    )  # fmt: skip
