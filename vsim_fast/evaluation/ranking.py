"""Pairs by falling score against the truth, and every measure of that list as a function of the bases' weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vsim_fast.errors import UsageError
from vsim_fast.evaluation.pairs import Pairs, Truth, keys_of, numbered
from vsim_fast.evaluation.resampling import Sums, ratio
from vsim_fast.evaluation.segments import SegmentCurve, Segments


@dataclass(frozen=True)
class Ranking:
    """Pairs by falling score, queries as numbers."""

    queries: dict[str, int]
    query: np.ndarray  # int64 [N]
    score: np.ndarray  # float64 [N], falling
    right: np.ndarray  # bool [N]
    true_query: np.ndarray  # int64 [M], query of each true pair, listed or not
    base: np.ndarray  # int64 [Q], base of each query
    notes: tuple[str, ...] = ()
    segments: Segments | None = None
    members: np.ndarray | None = None  # bool [Q], queries kept; None: all

    def of(self, members: np.ndarray) -> Ranking:
        """Only these queries (bool [Q]) and their pairs."""
        rows = members[self.query]
        return Ranking(
            self.queries, self.query[rows], self.score[rows], self.right[rows],
            self.true_query[members[self.true_query]], self.base,
            segments=self.segments and self.segments.of(members), members=members,
        )  # fmt: skip


def rank(pairs: Pairs, truth: Truth) -> Ranking:
    """Raises UsageError where no query of `pairs` is in `truth`: then the ids are not written alike."""
    queries, refs = numbered(truth.query_id, pairs.query_id), numbered(truth.ref_id, pairs.ref_id)
    query, key = keys_of(pairs, queries, refs)
    true_query, true_key = keys_of(truth, queries, refs)
    listed = np.zeros(len(queries), dtype=bool)
    listed[true_query] = True
    if len(query) and not listed[query].any():
        raise UsageError(
            f"{pairs.source}: no query_id of it is in {truth.source} (it has {pairs.query_id[0]!r}, the truth "
            f"{truth.query_id[0]!r}); ids must be written alike"
        )
    notes = _notes(pairs, truth, queries, refs, listed)
    has_ref = np.array([bool(ref) for ref in truth.ref_id], dtype=bool)
    true_key, first = np.unique(true_key[has_ref], return_index=True)
    true_query = true_query[has_ref][first]

    order = np.argsort(-pairs.score, kind="stable")
    if pairs.times is not None:  # a pair scores as its best segment
        order = order[np.sort(np.unique(key[order], return_index=True)[1])]
    base_of = truth.group_of_query("base")
    names = [base_of.get(query, query) for query in queries]
    base = np.fromiter(map(numbered(names).__getitem__, names), np.int64, len(names))
    right = np.isin(key[order], true_key)
    return Ranking(queries, query[order], pairs.score[order], right, true_query, base, tuple(notes))


def _notes(
    pairs: Pairs, truth: Truth, queries: dict[str, int], refs: dict[str, int], listed: np.ndarray
) -> Iterator[str]:
    """What the reader of the figures should know about the ids."""
    if not len(pairs):
        yield f"{pairs.source} lists no pairs"
    if unknown := int((~listed).sum()):
        yield f"{unknown} of {len(queries)} queries are not in {truth.source}: all their pairs count as false"
    if len(pairs) and not set(filter(None, truth.ref_id)) & set(pairs.ref_id):
        yield f"no ref_id of {truth.source} is in {pairs.source} ({truth.ref_id[0]!r} and {pairs.ref_id[0]!r})"
    true = {pair for pair in zip(truth.query_id, truth.ref_id, strict=True) if pair[1]}
    turned = {(a, b) for b, a in true} - true
    turned = {(a, b) for a, b in turned if a in queries and b in refs}
    if turned and (count := len(turned.intersection(zip(pairs.query_id, pairs.ref_id, strict=True)))):
        yield f"{count} pairs count as false that are true the other way round; --either-order takes both as one"


def groups_of(truth: Truth, queries: dict[str, int]) -> Iterator[tuple[str | None, str | None, np.ndarray]]:
    """Families, each with its severities, then severities of all families; as first listed. With bool [Q]."""
    family, severity = truth.group_of_query("family"), truth.group_of_query("severity")
    severities = list(dict.fromkeys(severity.values()))

    def members(of: str | None, at: str | None) -> np.ndarray:
        kept = ((of is None or family.get(q) == of) and (at is None or severity.get(q) == at) for q in queries)
        return np.fromiter(kept, bool, len(queries))

    for of in dict.fromkeys(family.values()):
        yield of, None, members(of, None)
        for at in severities:
            if (both := members(of, at)).any():
                yield of, at, both
    for at in severities:
        yield None, at, members(None, at)


class Curve:
    """Every measure of a ranking as a function of the bases' weights: all ones is the value itself, the counts of a
    resample give one replicate. Only scores of true pairs ("levels") can change a recall, so false pairs are counted
    per stretch between them."""

    def __init__(
        self,
        ranking: Ranking,
        precision: float = 0.9,
        false_share: float = 0.01,
        thresholds: dict[str, float | None] | None = None,
    ):
        members = ranking.members if ranking.members is not None else np.ones(len(ranking.base), dtype=bool)
        present = np.unique(ranking.base[members])
        base_of = np.searchsorted(present, ranking.base)  # of members; others are not looked up
        self.bases, self.precision, self.false_share = len(present), precision, false_share
        base, right, score = base_of[ranking.query], ranking.right, ranking.score

        self.levels = -np.unique(-score[right])
        above = np.searchsorted(-self.levels, -score, "left")  # levels above each score
        tied = np.append(self.levels, np.nan)[above] == score
        self.true = Sums(above[right], base[right], len(self.levels), self.bases)
        self.false = Sums((2 * above + tied)[~right], base[~right], 2 * len(self.levels) + 1, self.bases)
        self.per_base = {
            "true_pairs": np.bincount(base_of[ranking.true_query], minlength=self.bases),
            "false_pairs": np.bincount(base[~right], minlength=self.bases),
        }
        query, ap = _ap_per_query(ranking)
        self.per_base["ap"] = np.bincount(base_of[query], ap, self.bases)
        self.per_base["queries"] = np.bincount(base_of[query], minlength=self.bases)
        self.fixed = thresholds is not None
        for name, threshold in (thresholds or {}).items():
            passing = score >= (np.inf if threshold is None else threshold)
            self.per_base[name] = np.bincount(base[passing & right], minlength=self.bases)
            if name == "recall_at_false_share":
                self.per_base["false_passing"] = np.bincount(base[passing & ~right], minlength=self.bases)
        self.segments = ranking.segments and SegmentCurve(ranking.segments, base_of, self.bases)
        self.cost = sum(sums.values.size + sums.slots for sums in self._sums())
        """Numbers held per replicate."""

    def _sums(self) -> list[Sums]:
        return [self.true, self.false, *([self.segments.sums] if self.segments else [])]

    def _counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At each level [K, R]: true pairs on it, true pairs at or above it; false pairs of the stretches [2K+1, R]
        (above level 0, tied with it, between it and level 1, …) and all before."""
        true = self.true.weighted(weights)[:, 0]
        return true, true.cumsum(axis=0), self.false.weighted(weights)[:, 0].cumsum(axis=0)

    def _allowed(self, found: np.ndarray, false: np.ndarray) -> dict[str, np.ndarray]:
        """Levels [K, R] where each recall's condition holds; the slack is for products of decimal fractions."""
        passing = false[1::2]
        return {
            "recall_at_precision": (found > 0) & (found >= self.precision * (found + passing) * (1 - 1e-12)),
            "recall_at_false_share": passing <= self.false_share * false[-1] * (1 + 1e-12),
        }

    def measures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Name -> [R] for weights [bases, R]; NaN where not defined."""
        true, found, false = self._counts(weights)
        total = {name: counts @ weights for name, counts in self.per_base.items()}
        true_pairs, false_pairs = total["true_pairs"], total["false_pairs"]
        outscored = (true * (false_pairs - (false[:-1:2] + false[1::2]) / 2)).sum(axis=0)  # ties count half
        measures = {
            "uAP": ratio((true * ratio(found, found + false[1::2], 0.0)).sum(axis=0), true_pairs),
            "mAP": ratio(total["ap"], total["queries"]),
        }
        if self.fixed:
            for name in ("recall_at_precision", "recall_at_false_share"):
                measures[name] = ratio(total[name], true_pairs)
            measures["false_passing"] = ratio(total["false_passing"], false_pairs)
        else:
            for name, allowed in self._allowed(found, false).items():
                measures[name] = ratio(np.where(allowed, found, 0).max(axis=0, initial=0), true_pairs)
        measures["roc_auc"] = ratio(outscored, true_pairs * false_pairs)
        if self.segments:
            measures["segment_ap"] = self.segments.ap(weights)
        return measures

    def thresholds(self) -> dict[str, float | None]:
        """Lowest level where each recall's condition holds."""
        _, found, false = self._counts(np.ones((self.bases, 1)))
        levels = {name: np.flatnonzero(allowed[:, 0]) for name, allowed in self._allowed(found, false).items()}
        return {name: float(self.levels[held[-1]]) if len(held) else None for name, held in levels.items()}


def _ap_per_query(ranking: Ranking) -> tuple[np.ndarray, np.ndarray]:
    """Queries that have true pairs, and the average precision of each one's own list."""
    truths = np.bincount(ranking.true_query, minlength=len(ranking.base))
    order = np.argsort(ranking.query, kind="stable")
    query, score = ranking.query[order], ranking.score[order]
    found = np.cumsum(ranking.right[order])
    last = np.append(np.flatnonzero((np.diff(query) != 0) | (np.diff(score) != 0)), len(query) - 1)[: len(query)]
    query, found = query[last], found[last]  # at the end of each tie
    start = np.searchsorted(query, query)
    before = np.where(start > 0, found[start - 1], 0)
    rank = last + 1 - np.where(start > 0, last[start - 1] + 1, 0)
    gained = np.diff(found, prepend=0)
    sums = np.bincount(query, gained * (found - before) / rank, len(truths))
    having = np.flatnonzero(truths)
    return having, sums[having] / truths[having]
