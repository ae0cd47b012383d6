"""Which pairs there are, which are not scored yet, and their scores."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from vsim_fast.copies import THRESHOLDS, CopyFeatures, PairScores, score_pairs
from vsim_fast.deduplication.reading import Reader
from vsim_fast.deduplication.records import DecidedVideo, Decisions, File, PairRow
from vsim_fast.feature_store import settings_hash
from vsim_fast.feature_store.pairs import PairTable
from vsim_fast.inputs import Inputs
from vsim_fast.records import Progress


class Compared:
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

    def listed(self, table: PairTable, min_score: float, top: int | None) -> np.ndarray:
        """int64 [L, 2], the pairs (query, ref) of files to list, best first.

        Args:
            top: most pairs of a query; within one set, of either of the two files.
        """
        queries, refs = (self.sets * 2)[:2]
        if self.one_set:
            contents = np.arange(len(self.keys))
            scores = table.scores(contents, contents)
            lower = np.tri(len(scores), dtype=bool)  # may hold other scores, by an earlier run between two sets
            scores = np.where(lower, scores.T, scores)[np.ix_(self.content[queries], self.content[refs])]
        else:
            contents = [np.unique(self.content[s], return_inverse=True) for s in self.sets]
            scores = table.scores(contents[0][0], contents[1][0])[np.ix_(contents[0][1], contents[1][1])]
        keep = (scores >= np.float32(min_score)) & (queries[:, None] != refs)
        if top is not None:
            best = np.zeros_like(keep)
            for row in np.flatnonzero(keep.any(1)):
                columns = np.flatnonzero(keep[row])
                best[row, columns[np.argsort(-scores[row, columns], kind="stable")[:top]]] = True
            keep = best | best.T if self.one_set else best
        if self.one_set:
            keep = np.triu(keep)
        query, ref = np.nonzero(keep)
        order = np.lexsort((ref, query, -scores[query, ref]))
        return np.stack([queries[query[order]], refs[ref[order]]], 1)

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

    def _named(self, video: DecidedVideo) -> list[int]:
        """Files with the content that a decision names; of byte-identical ones the one of that path, if it is there."""
        found = [n for n in range(len(self.members)) if self.file(n).key == video.key]
        return [n for n in found if self.file(n).path == video.path] or found


def compare_all(reader: Reader, compared: Compared, min_score: float, progress: Progress | None) -> PairTable:
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
                for row, scores in score_pairs(load, pairs):
                    table.add(*pairs[row].tolist(), scores)
                    reader.pairs_computed += 1
                    if progress and (time.perf_counter() - last > 0.1 or reader.pairs_computed == len(pairs)):
                        last = time.perf_counter()
                        progress.advance("pairs", reader.pairs_computed, len(pairs))
        finally:  # an interrupted run keeps what it has
            table.flush()
    return table


def swapped(scores: PairScores) -> PairScores:
    """The scores of a pair seen from the other side."""
    turned = {"turned 90": "turned 270", "turned 270": "turned 90"}  # everything else undoes itself
    return scores._replace(
        query_coverage=scores.ref_coverage,
        ref_coverage=scores.query_coverage,
        orientation=turned.get(scores.orientation, scores.orientation),
        matches=sorted((ref, query, similarity) for query, ref, similarity in scores.matches),
    )
