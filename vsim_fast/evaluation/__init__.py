"""How good is a list of scored pairs? Average precision, recall at a stated cost and segment AP, with intervals.

Every measure here lets a threshold fall only *between* distinct scores: equal scores pass together or not at all, so
nothing depends on the order of the rows. Without ties this is the textbook value; with ties it is what scikit-learn's
`average_precision_score` computes. Conventions of micro AP, segment AP and the files: VSC2022
(facebookresearch/vsc2022, `vsc/metrics.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vsim_fast.errors import UsageError
from vsim_fast.evaluation.pairs import TIMES, Pairs, Truth, read_pairs, read_truth, write_vsc
from vsim_fast.evaluation.ranking import Curve, groups_of, rank
from vsim_fast.evaluation.resampling import Measure, with_intervals
from vsim_fast.evaluation.segments import SegmentCurve, Segments

__all__ = [
    "MEASURES", "Evaluation", "Group", "Measure", "Pairs", "Truth", "evaluate", "mean_average_precision",
    "micro_average_precision", "read_pairs", "read_truth", "recall_at_false_share", "recall_at_precision", "roc_auc",
    "segment_ap", "write_vsc",
]  # fmt: skip

MEASURES = {  # name -> what it is, as printed
    "uAP": "average precision of one list of all queries' pairs",
    "mAP": "mean over queries of each one's own average precision",
    "recall_at_precision": "true pairs found where the stated precision holds",
    "recall_at_false_share": "true pairs found where the stated share of the false pairs passes",
    "roc_auc": "chance that a true pair scores above a false one",
    "segment_ap": "average precision of the times, not only of the pairs",
}


@dataclass(frozen=True)
class Group:
    """The measures of the queries of one family, one severity, or one of each."""

    family: str | None
    """None: of all families."""
    severity: str | None
    queries: int
    true_pairs: int
    found: int
    """True pairs that are listed at all."""
    false_pairs: int
    measures: dict[str, Measure]
    """uAP, mAP, roc_auc among the pairs of these queries. The two recalls are at the thresholds of *all* queries:
    whoever uses the scores sets one. `false_passing`: share of these false pairs at or above the threshold of
    recall_at_false_share."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""

    totals: dict[str, Measure]
    """By the names of `MEASURES`; without segment_ap where one side has no times."""
    thresholds: dict[str, float | None]
    """Lowest score of a true pair at or above which the recall of that name is reached; None where none is."""
    queries: int
    """In either file."""
    true_pairs: int
    found: int
    false_pairs: int
    bases: int
    """What is resampled: columns `base`, else queries."""
    groups: list[Group]
    settings: dict[str, Any]
    notes: list[str]
    schema_version: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers, text and None only."""
        return asdict(self)


def evaluate(
    pairs: Pairs,
    truth: Truth,
    *,
    precision: float = 0.9,
    false_share: float = 0.01,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """All measures, in all and per family and severity, with 95 % percentile intervals.

    Args:
        pairs: candidates; those of queries that the truth does not name are false.
        truth: what matches. True pairs that `pairs` does not list count as never found.
        precision: of recall_at_precision, in (0, 1].
        false_share: of recall_at_false_share, in [0, 1): of the false pairs *listed*, so list them all.
        bootstrap: resamples of the bases (with replacement, as many as there are) behind each interval; 0: none.
        seed: of the resampling.
    Raises:
        UsageError: an argument is out of range, or no query of `pairs` is in `truth`.
    """
    _require_share("precision", precision, precision > 0, "(0, 1]")
    _require_share("false_share", false_share, false_share < 1, "[0, 1)")
    for name, value in (("bootstrap", bootstrap), ("seed", seed)):
        if value < 0:
            raise UsageError(f"{name} must not be negative, got {value}")
    ranking = rank(pairs, truth)
    notes = list(ranking.notes)
    if pairs.times is not None and truth.times is not None:
        ranking = replace(ranking, segments=Segments.build(pairs, truth, ranking.queries))
    elif pairs.times is not None:
        notes.append(f"{truth.source} has no times: no segment_ap")

    curve = Curve(ranking, precision, false_share)
    totals = with_intervals(curve.measures, curve.bases, curve.cost, bootstrap, seed)
    thresholds = curve.thresholds()
    if bootstrap and curve.bases == 1:
        notes.append("no intervals: there is one base, nothing to resample")
    groups = []
    for family, severity, members in groups_of(truth, ranking.queries):
        part = ranking.of(members)
        own = Curve(part, precision, false_share, thresholds)
        measures = with_intervals(own.measures, own.bases, own.cost, bootstrap, seed)
        counts = int(members.sum()), len(part.true_query), int(part.right.sum()), int((~part.right).sum())
        groups.append(Group(family, severity, *counts, measures))
    found = int(ranking.right.sum())
    return Evaluation(
        totals=totals, thresholds=thresholds, queries=len(ranking.queries), true_pairs=len(ranking.true_query),
        found=found, false_pairs=len(ranking.right) - found, bases=curve.bases, groups=groups,
        settings={"precision": precision, "false_share": false_share, "bootstrap": bootstrap, "seed": seed},
        notes=notes,
    )  # fmt: skip


def micro_average_precision(pairs: Pairs, truth: Truth) -> float:
    """uAP of VSC2022: the pairs of all queries in one list, sum over distinct scores of (recall gained) times
    (precision among all pairs at or above that score), recall counted against *all* true pairs.

    This is scikit-learn's `average_precision_score` times (true pairs listed) / (true pairs), ties included. A pair
    with several segments scores as its best one (VSC's helper for those also lifts scores below 0 to 0).
    """
    return _value(pairs, truth, "uAP")


def mean_average_precision(pairs: Pairs, truth: Truth) -> float:
    """mAP: the average precision of each query's own pairs, mean over the queries that have a true pair."""
    return _value(pairs, truth, "mAP")


def recall_at_precision(pairs: Pairs, truth: Truth, precision: float = 0.9) -> float:
    """Largest share of all true pairs that lie at or above a score where at least `precision` of the pairs match."""
    _require_share("precision", precision, precision > 0, "(0, 1]")
    return _value(pairs, truth, "recall_at_precision", precision=precision)


def recall_at_false_share(pairs: Pairs, truth: Truth, share: float = 0.01) -> float:
    """Largest share of all true pairs at or above a score that at most `share` of the listed false pairs reach."""
    _require_share("share", share, share < 1, "[0, 1)")
    return _value(pairs, truth, "recall_at_false_share", false_share=share)


def segment_ap(pairs: Pairs, truth: Truth) -> float:
    """Segment AP of VSC2022's matching track.

    Predictions are taken by falling score, equal ones together. On each axis (query, ref) of each pair: the union of
    the predicted intervals, and of those true intervals whose rectangle a prediction of the pair overlaps. Lengths
    summed over pairs give precision (both / predicted) and recall (both / all true) per axis; with P = sqrt(Pq·Pr)
    and R = sqrt(Rq·Rr), AP is the sum of P times the rise of R.

    Raises:
        UsageError: `pairs` or `truth` has no times.
    """
    for rows in (pairs, truth):
        if rows.times is None:
            raise UsageError(f"{rows.source}: segment AP needs the columns {', '.join(TIMES)}")
    queries = rank(pairs, truth).queries
    segments = Segments.build(pairs, truth, queries)
    curve = SegmentCurve(segments, np.zeros(len(queries), dtype=np.int64), 1)
    return float(curve.ap(np.ones((1, 1)))[0])


def roc_auc(positive_scores: Iterable[float], negative_scores: Iterable[float]) -> float:
    """Chance that a positive scores above a negative; ties count half.

    Raises:
        UsageError: a side is empty or holds NaN.
    """
    sides = []
    for name, values in (("positive_scores", positive_scores), ("negative_scores", negative_scores)):
        sides.append(np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64).ravel())
        if not len(sides[-1]) or np.isnan(sides[-1]).any():
            raise UsageError(f"{name} must hold numbers, got {'NaN among them' if len(sides[-1]) else 'none'}")
    positive, negative = sides[0], np.sort(sides[1])
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.mean() / 2 / len(negative))


def _require_share(name: str, value: float, extra: bool, allowed: str) -> None:
    if not (0 <= value <= 1 and extra):
        raise UsageError(f"{name} must be in {allowed}, got {value:g}")


def _value(pairs: Pairs, truth: Truth, name: str, **settings: float) -> float:
    curve = Curve(rank(pairs, truth), **settings)
    return float(curve.measures(np.ones((curve.bases, 1)))[name][0])
