"""Measures by hand, by brute force and by scikit-learn where it is there; the files; the command without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from math import sqrt

import numpy as np
import pytest

from vsim_fast.cli import main
from vsim_fast.errors import UsageError
from vsim_fast.evaluation import (
    Pairs,
    Truth,
    evaluate,
    mean_average_precision,
    micro_average_precision,
    read_pairs,
    read_truth,
    recall_at_false_share,
    recall_at_precision,
    resampling,
    roc_auc,
    segment_ap,
    write_vsc,
)


def make_pairs(*rows):
    """Rows (query, ref, score), or with four times in between."""
    query, ref, *times, score = zip(*rows, strict=True)
    return Pairs(query_id=query, ref_id=ref, score=score, times=np.array(times, float).T if times else None)


def make_truth(*rows, **groups):
    query, ref, *times = zip(*rows, strict=True)
    return Truth(query_id=query, ref_id=ref, times=np.array(times, float).T if times else None, **groups)


TRUTH = make_truth(("a", "A"), ("b", "B"))


# --- pairs: by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a", "A", 3), ("b", "B", 2), ("x", "A", 1)], 1),
        ([("a", "A", 3), ("x", "A", 2), ("b", "B", 1)], (1 + 2 / 3) / 2),
        ([("a", "A", 3), ("b", "A", 2)], 1 / 2),  # one of two true pairs is never listed
        ([("b", "A", 3), ("a", "A", 2)], (1 / 2) / 2),
        ([("b", "A", 2), ("a", "B", 1)], 0),
        ([("a", "A", 3), ("b", "A", 2), ("b", "B", 2), ("x", "A", 2)], (1 + 2 / 4) / 2),  # the tie passes whole
        ([("a", "A", 1), ("b", "B", 1), ("x", "A", 1)], 2 / 3),
    ],
)
def test_micro_average_precision_by_hand(rows, expected):
    for order in (rows, rows[::-1]):
        assert micro_average_precision(make_pairs(*order), TRUTH) == pytest.approx(expected, abs=1e-15)


def test_a_query_of_its_own_scale_hurts_micro_but_not_macro():
    pairs = make_pairs(("a", "A", 0.3), ("a", "B", 0.2), ("b", "A", 0.8), ("b", "B", 0.9))
    assert mean_average_precision(pairs, TRUTH) == 1
    assert micro_average_precision(pairs, TRUTH) == pytest.approx((1 + 2 / 3) / 2)
    tied = make_pairs(("a", "A", 0.3), ("a", "B", 0.3), ("b", "A", 0.9), ("x", "A", 1), ("b", "B", 0.5))
    assert mean_average_precision(tied, TRUTH) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert mean_average_precision(make_pairs(("a", "A", 1)), TRUTH) == 1 / 2  # a query never listed counts 0


def test_recall_at_precision_by_hand():
    truth = make_truth(*((f"q{i}", "r") for i in range(4)))
    pairs = make_pairs(
        ("x1", "r", 9), ("q0", "r", 8), ("q1", "r", 7), ("q2", "r", 6), ("x2", "r", 5), ("x3", "r", 4), ("q3", "r", 3)
    )
    assert recall_at_precision(pairs, truth, 0.75) == 3 / 4  # 3 of 4: the first, false pair does not end it
    assert recall_at_precision(pairs, truth, 0.76) == 0
    assert recall_at_precision(pairs, truth, 4 / 7) == 1
    assert evaluate(pairs, truth, precision=0.75, bootstrap=0).thresholds["recall_at_precision"] == 6


def test_recall_at_false_share_by_hand():
    truth = make_truth(("q0", "r"), ("q1", "r"), ("q2", "r"), ("q3", "r"))
    false = [(f"x{i}", "r", score) for i, score in enumerate([8, 6, *[1] * 98])]
    pairs = make_pairs(("q0", "r", 9), ("q1", "r", 7), ("q2", "r", 6), *false)
    assert recall_at_false_share(pairs, truth, 0) == 1 / 4
    assert recall_at_false_share(pairs, truth, 0.01) == 2 / 4  # one of 100 passes at 7; at 6 the tie brings a second
    assert recall_at_false_share(pairs, truth, 0.02) == 3 / 4
    assert recall_at_false_share(make_pairs(("q0", "r", 9)), truth) == 1 / 4  # no false pairs: all that is listed
    for count in range(1, 101):  # decimal fractions times counts are not cut by rounding
        line = make_pairs(*((f"x{i}", "r", 200 - i) for i in range(count)), ("q0", "r", 100.5), ("x", "r", 0))
        assert recall_at_false_share(line, truth, count / (count + 1)) == 1 / 4
    assert evaluate(pairs, truth, bootstrap=0).thresholds["recall_at_false_share"] == 7


def test_roc_auc_counts_ties_half():
    assert roc_auc([1, 2], [0, 0.5]) == 1 and roc_auc([0], [1, 2]) == 0 and roc_auc([1, 1], [1]) == 0.5
    assert roc_auc([3, 1], [1, 2]) == (1 + 1 + 0.5 + 0) / 4
    for positive, negative in (([], [1]), ([1], []), ([np.nan], [1])):
        with pytest.raises(UsageError, match="must hold numbers"):
            roc_auc(positive, negative)
    pairs = make_pairs(("a", "A", 2), ("a", "B", 1))  # the true pair that is not listed lies below all others
    assert evaluate(pairs, TRUTH, bootstrap=0).totals["roc_auc"].value == 0.5


# --- segments: by hand ------------------------------------------------------------------------------------------------

SEGMENTS = make_truth(("q1", "r1", 0, 10, 0, 10), ("q2", "r2", 0, 10, 0, 10))


def test_segment_ap_by_hand():
    pairs = make_pairs(
        ("q1", "r1", 5, 15, 5, 10, 0.5),
        ("q1", "r1", 0, 10, 0, 5, 0.9),
        ("q3", "r1", 0, 5, 0, 5, 0.5),
        ("q2", "r2", 0, 10, 20, 30, 0.1),  # overlaps the truth on one axis only
    )
    # at 0.9: 10 of 10 s on the query's axis, 5 of 5 s on the ref's; of 20 s each.  P = 1, R = sqrt(1/2 · 1/4)
    # at 0.5: 10 of 15 + 5 s and 10 of 10 + 5 s.  P = sqrt(1/2 · 2/3), R = sqrt(1/2 · 1/2)
    first = sqrt(1 / 8)
    assert segment_ap(pairs, SEGMENTS) == pytest.approx(first + sqrt(1 / 3) * (1 / 2 - first), abs=1e-15)
    found = evaluate(pairs, SEGMENTS, bootstrap=0)
    assert found.totals["segment_ap"].value == pytest.approx(segment_ap(pairs, SEGMENTS), abs=1e-15)
    assert found.totals["uAP"].value == pytest.approx((1 + 2 / 3) / 2)  # of pairs: (q1, r1) scores as its best


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("q1", "r1", 0, 10, 0, 10, 1), ("q2", "r2", 0, 10, 0, 10, 1)], 1),
        ([("q1", "r1", 0, 4, 0, 4, 1), ("q1", "r1", 4, 10, 4, 10, 2), ("q1", "r1", 2, 8, 2, 8, 3)], 1 / 2),  # in parts
        ([("q1", "r1", 10, 12, 0, 10, 1)], 0),  # touches
        ([("q1", "r1", 3, 3, 3, 3, 2), ("q2", "r2", 0, 10, 0, 10, 1)], 1 / 2),  # nothing is predicted at 2
        ([("q1", "r2", 0, 10, 0, 10, 2), ("q1", "r1", 0, 10, 0, 10, 1)], 1 / 2 * 1 / 2),
    ],
)
def test_segment_ap_of_simple_lists(rows, expected):
    assert segment_ap(make_pairs(*rows), SEGMENTS) == pytest.approx(expected, abs=1e-15)


def test_true_segments_count_once_a_prediction_overlaps_them_in_both_axes():
    truth = make_truth(("q", "r", 0, 10, 0, 10), ("q", "r", 20, 30, 20, 30))
    crossed = make_pairs(("q", "r", 0, 10, 20, 30, 1), ("q", "r", 20, 30, 0, 10, 1))
    assert segment_ap(crossed, truth) == 0
    assert segment_ap(make_pairs(("q", "r", 0, 30, 0, 30, 1)), truth) == pytest.approx(2 / 3)


def test_segment_ap_needs_times():
    with pytest.raises(UsageError, match=r"pairs: segment AP needs the columns query_start"):
        segment_ap(make_pairs(("q1", "r1", 1)), SEGMENTS)
    found = evaluate(make_pairs(("a", "A", 0, 1, 0, 1, 1)), TRUTH, bootstrap=0)
    assert "segment_ap" not in found.totals and "truth has no times: no segment_ap" in found.notes


# --- by brute force ---------------------------------------------------------------------------------------------------


def brute_force(rows, truth, precision, share):
    """Every threshold in turn, from the definitions. `rows`: (query, ref, score); `truth`: set of pairs."""
    labels = [(score, (query, ref) in truth) for query, ref, score in rows]
    false = [score for score, right in labels if not right]
    uap, before, at_precision, at_share = 0.0, 0, 0, 0
    for threshold in sorted({score for score, _ in labels}, reverse=True):
        found = sum(right for score, right in labels if score >= threshold)
        listed = sum(score >= threshold for score, _ in labels)
        uap += (found - before) / len(truth) * found / listed
        before = found
        if found / listed >= precision - 1e-12:
            at_precision = found / len(truth)
        if listed - found <= share * len(false) + 1e-12:
            at_share = found / len(truth)
    own = []
    for query in dict.fromkeys(query for query, _ in sorted(truth)):
        mine = [row for row in rows if row[0] == query]
        own.append(brute_force_ap(mine, {pair for pair in truth if pair[0] == query}))
    wins = sum((t > f) + (t == f) / 2 for t, right in labels if right for f in false)
    auc = wins / (len(truth) * len(false)) if false else np.nan
    return {"uAP": uap, "mAP": np.mean(own), "recall_at_precision": at_precision, "recall_at_false_share": at_share,
            "roc_auc": auc}  # fmt: skip


def brute_force_ap(rows, truth):
    total, before = 0.0, 0
    for threshold in sorted({score for *_, score in rows}, reverse=True):
        kept = [(query, ref) in truth for query, ref, score in rows if score >= threshold]
        total += (sum(kept) - before) / len(truth) * sum(kept) / len(kept)
        before = sum(kept)
    return total


def brute_force_segment_ap(rows, truth):
    """On a grid of 1/4 s, in which all times lie: sets of cells instead of intervals."""

    def cells(start, end):
        return set(range(round(start * 4), round(end * 4)))

    def overlaps(a, b):
        return all(cells(*a[k : k + 2]) & cells(*b[k : k + 2]) for k in (0, 2))

    def lengths(threshold):
        common, predicted = np.zeros(2), np.zeros(2)
        for pair in {row[:2] for row in rows}:
            mine = [row[2:6] for row in rows if row[:2] == pair and row[6] >= threshold]
            true = [row[2:6] for row in truth if row[:2] == pair]
            hit = [t for t in true if any(overlaps(t, m) for m in mine)]
            for axis, k in enumerate((0, 2)):
                covered = set().union(*(cells(*m[k : k + 2]) for m in mine))
                common[axis] += len(covered & set().union(*(cells(*t[k : k + 2]) for t in hit)))
                predicted[axis] += len(covered)
        return common, predicted

    total = np.zeros(2)
    for pair in {row[:2] for row in truth}:
        for axis, k in enumerate((2, 4)):
            total[axis] += len(set().union(*(cells(*row[k : k + 2]) for row in truth if row[:2] == pair)))
    ap, before = 0.0, 0.0
    for threshold in sorted({row[6] for row in rows}, reverse=True):
        common, predicted = lengths(threshold)
        recall = sqrt((common / total).prod())
        ap += (sqrt((common / predicted).prod()) if predicted.all() else 0) * (recall - before)
        before = recall
    return ap


def random_case(seed, queries=12, refs=5, levels=15):
    """Scores with many ties, some true pairs unlisted, some queries without truth, two true refs for some."""
    rng = np.random.default_rng(seed)
    true = {(f"q{i}", f"r{rng.integers(refs)}") for i in range(queries - 3) for _ in range(rng.integers(1, 3))}
    rows = [(f"q{i}", f"r{j}") for i in range(queries) for j in range(refs) if rng.random() < 0.8]
    rows = [(*pair, round(float(rng.normal() + (pair in true)) * levels / 6) / levels) for pair in rows]
    return rows, true


@pytest.mark.parametrize("seed", range(8))
def test_measures_match_brute_force(seed):
    rows, true = random_case(seed, levels=[15, 10**9][seed % 2])
    pairs, truth = make_pairs(*rows), make_truth(*sorted(true))
    found = evaluate(pairs, truth, precision=0.6, false_share=0.1, bootstrap=0).totals
    expected = brute_force(rows, true, 0.6, 0.1)
    assert {name: measure.value for name, measure in found.items()} == pytest.approx(expected, abs=1e-12)
    functions = {
        "uAP": micro_average_precision(pairs, truth), "mAP": mean_average_precision(pairs, truth),
        "recall_at_precision": recall_at_precision(pairs, truth, 0.6),
        "recall_at_false_share": recall_at_false_share(pairs, truth, 0.1),
    }  # fmt: skip
    assert all(functions[name] == found[name].value for name in functions)


@pytest.mark.parametrize("seed", range(4))
def test_micro_average_precision_is_scikit_learns_rescaled(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rows, true = random_case(seed, levels=[15, 10**9][seed % 2])
    right = [(query, ref) in true for query, ref, _ in rows]
    expected = metrics.average_precision_score(right, [score for *_, score in rows]) * sum(right) / len(true)
    assert micro_average_precision(make_pairs(*rows), make_truth(*sorted(true))) == pytest.approx(expected, abs=1e-14)


def random_segments(seed, count=40):
    rng = np.random.default_rng(seed)

    def segment():
        start, length = rng.integers(0, 40, 2) / 4, rng.integers(1, 40, 2) / 4
        return [x for axis in range(2) for x in (start[axis], start[axis] + length[axis])]

    truth = [(f"q{i % 6}", f"r{i % 3}", *segment()) for i in range(9)]
    rows = [(f"q{rng.integers(8)}", f"r{rng.integers(3)}", *segment()) for _ in range(count)]
    true = {row[:2] for row in truth}
    return [(*row, rng.integers(12) / 4 + 0.25 * (row[:2] in true)) for row in rows], truth


@pytest.mark.parametrize("seed", range(4))
def test_segment_ap_matches_brute_force(seed):
    rows, truth = random_segments(seed)
    expected = brute_force_segment_ap(rows, truth)
    assert segment_ap(make_pairs(*rows), make_truth(*truth)) == pytest.approx(expected, abs=1e-12)
    best = {}
    for row in rows:  # pairs of several segments score as their best
        best[row[:2]] = max(row[6], best.get(row[:2], -np.inf))
    listed = [(*pair, score) for pair, score in best.items()]
    uap = micro_average_precision(make_pairs(*rows), make_truth(*truth))
    assert uap == pytest.approx(brute_force_ap(listed, {row[:2] for row in truth}), abs=1e-12)


# --- groups and intervals ---------------------------------------------------------------------------------------------


def grouped_case():
    rows, true = random_segments(7, count=60)
    groups = {f"q{i}": ("crop" if i < 3 else "flip", "mild" if i % 2 else "hard", f"base {i // 2}") for i in range(7)}
    truth = [*true, ("q6", "", *[np.nan] * 4)]  # a query that has no copy
    columns = zip(*(groups[row[0]] for row in truth), strict=True)
    return rows, true, groups, make_truth(*truth, **dict(zip(("family", "severity", "base"), columns, strict=True)))


def test_groups_measure_their_own_queries_at_the_thresholds_of_all():
    rows, true, groups, truth = grouped_case()
    found = evaluate(make_pairs(*rows), truth, precision=0.5, false_share=0.3, bootstrap=0)
    assert [(group.family, group.severity) for group in found.groups] == [
        ("crop", None), ("crop", "hard"), ("crop", "mild"), ("flip", None), ("flip", "hard"), ("flip", "mild"),
        (None, "hard"), (None, "mild"),
    ]  # fmt: skip
    best = {}
    for row in rows:
        best[row[:2]] = max(row[6], best.get(row[:2], -np.inf))
    for group in found.groups:
        queries = {q for q, (f, s, _) in groups.items() if group.family in (None, f) and group.severity in (None, s)}
        own = {pair: score for pair, score in best.items() if pair[0] in queries}
        pairs = {row[:2] for row in true if row[0] in queries}
        values = {name: measure.value for name, measure in group.measures.items()}
        expected = brute_force([(*pair, score) for pair, score in own.items()], pairs, 0.5, 0.3)
        threshold = found.thresholds["recall_at_false_share"]
        assert values["uAP"] == pytest.approx(expected["uAP"]) and values["mAP"] == pytest.approx(expected["mAP"])
        assert values["roc_auc"] == pytest.approx(expected["roc_auc"])
        passing = [pair for pair, score in own.items() if score >= threshold]
        assert values["recall_at_false_share"] == pytest.approx(len(pairs & set(passing)) / len(pairs))
        assert values["false_passing"] == pytest.approx(len(set(passing) - pairs) / len(own.keys() - pairs))
        segments = [row for row in rows if row[0] in queries], [row for row in true if row[0] in queries]
        assert values["segment_ap"] == pytest.approx(brute_force_segment_ap(*segments), abs=1e-12)
        counts = (len(queries), len(pairs), len(pairs & own.keys()), len(own.keys() - pairs))
        assert (group.queries, group.true_pairs, group.found, group.false_pairs) == counts


def test_intervals_are_percentiles_of_lists_with_bases_repeated(monkeypatch):
    rows, true, groups, truth = grouped_case()
    draws, seed = 40, 3
    found = evaluate(make_pairs(*rows), truth, precision=0.6, false_share=0.25, bootstrap=draws, seed=seed)
    queries = dict.fromkeys([*truth.query_id, *(row[0] for row in rows)])
    base_of = {query: groups[query][2] if query in groups else query for query in queries}
    bases = list(dict.fromkeys(base_of.values()))
    assert found.bases == len(bases) == 5
    counts = np.random.default_rng(seed).multinomial(len(bases), np.full(len(bases), 1 / len(bases)), size=draws)
    replicates = []
    for draw in counts:
        copies = {query: [f"{query}#{k}" for k in range(draw[bases.index(base)])] for query, base in base_of.items()}
        repeated = [[(name, *row[1:]) for row in table for name in copies[row[0]]] for table in (rows, true)]
        result = evaluate(
            make_pairs(*repeated[0]), make_truth(*repeated[1]), precision=0.6, false_share=0.25, bootstrap=0
        )
        replicates.append({name: measure.value for name, measure in result.totals.items()})
    for name, measure in found.totals.items():
        expected = np.percentile([replicate[name] for replicate in replicates], [2.5, 97.5])
        assert (measure.low, measure.high) == pytest.approx(tuple(expected), abs=1e-12), name
        assert measure.low < measure.high, name
    monkeypatch.setattr(resampling, "CHUNK", 1)  # one replicate at a time
    again = evaluate(make_pairs(*rows), truth, precision=0.6, false_share=0.25, bootstrap=draws, seed=seed)
    assert again.totals == pytest.approx(found.totals)


def test_one_base_has_no_interval():
    truth = make_truth(("a", "A"), ("b", "B"), base=["x", "x"])
    found = evaluate(make_pairs(("a", "A", 1), ("b", "A", 0)), truth)
    assert found.bases == 1 and found.totals["uAP"].low is None
    assert "no intervals: there is one base, nothing to resample" in found.notes


def test_ids_that_do_not_meet():
    with pytest.raises(UsageError, match=r"no query_id of it is in truth \(it has 'x/a', the truth 'a'\)"):
        evaluate(make_pairs(("x/a", "A", 1)), TRUTH)
    found = evaluate(make_pairs(("a", "r/A", 1), ("z", "r/B", 1)), TRUTH, bootstrap=0)
    assert found.totals["uAP"].value == 0
    assert "1 of 3 queries are not in truth: all their pairs count as false" in found.notes
    assert "no ref_id of truth is in pairs ('A' and 'r/A')" in found.notes


def test_a_list_without_pairs_has_found_nothing(tmp_path):
    (tmp_path / "pairs.csv").write_text(HEADER)
    found = evaluate(read_pairs(tmp_path / "pairs.csv"), TRUTH)
    values = {name: measure.value for name, measure in found.totals.items()}
    assert values.pop("roc_auc") is None and set(values.values()) == {0}
    assert found.notes == [f"{tmp_path / 'pairs.csv'} lists no pairs"]


def test_pairs_of_one_set_may_be_listed_in_either_order():
    truth = make_truth(("a", "b"), ("c", "d"), ("d", "c"))
    pairs = make_pairs(("b", "a", 4), ("a", "c", 3), ("d", "c", 2), ("a", "a", 1))
    plain = evaluate(pairs, truth, bootstrap=0)
    assert "1 pairs count as false that are true the other way round; --either-order takes both as one" in plain.notes
    found = evaluate(pairs.both_ways(), truth.both_ways(), bootstrap=0)
    assert found.totals["uAP"].value == pytest.approx((1 + 2 / 3) / 2)
    with pytest.raises(UsageError, match="row 2: the pair 'a', 'b' is listed twice, first row 1"):
        make_pairs(("b", "a", 1), ("a", "b", 1)).both_ways()
    turned = make_pairs(("a", "b", 0, 1, 2, 3, 1)).both_ways()
    assert turned.times.tolist() == [[0, 1, 2, 3], [2, 3, 0, 1]]


# --- files ------------------------------------------------------------------------------------------------------------

HEADER = "query_id,ref_id,score\n"
TIMED = "query_id,ref_id,query_start,query_end,ref_start,ref_end,score\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; it needs a header with query_id, ref_id, score"),
        ("query_id,score\na,1\n", "line 1: the column 'ref_id' is missing; it has 'query_id', 'score'"),
        ("query_id,ref_id,score,score\n", "line 1: the column 'score' is there twice"),
        (HEADER + "a,A,1\n\na,B\n", "line 4: has 2 fields, the header 3"),
        (HEADER + "a,A,1\nb,A,0,5\n", "line 3: has 4 fields, the header 3"),
        (HEADER + "a,A,1\nb,B,2\na,A,3\n", "line 4: the pair 'a', 'A' is listed twice, first line 2; without times"),
        (HEADER + "a,A,nan\n", "line 2: score must be a finite number, got 'nan'"),
        (HEADER + "a,A,1\nb,A,-inf\n", "line 3: score must be a finite number, got '-inf'"),
        (HEADER + "a,A,\n", "line 2: score must be a finite number, got ''"),
        (HEADER + "a,A,high\n", "line 2: score must be a finite number, got 'high'"),
        (HEADER + ",A,1\n", "line 2: query_id is empty"),
        (HEADER + "a,,1\n", "line 2: ref_id is empty"),
        (HEADER + 'a,"A\n', "is not CSV: unexpected end of data"),
        (
            "query_id,ref_id,query_start,query_end,score\n",
            "the column 'ref_start' is missing; times need all of",
        ),
        (TIMED + "a,A,-1,2,0,3,1\n", "line 2: query_start must not be negative, got -1"),
        (TIMED + "a,A,0,2,4,3,1\n", "line 2: ref_end must not be before ref_start, got 4 to 3"),
        (TIMED + "a,A,0,2,inf,3,1\n", "line 2: ref_start must be a finite number, got 'inf'"),
        (TIMED + "a,A,0,2,,3,1\n", "line 2: ref_start must be a finite number, got ''"),
    ],
)
def test_a_file_of_pairs_is_refused_by_line(tmp_path, text, message):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_pairs(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query_id,ref_id\n", "no true pairs; there is nothing to measure against"),
        ("query_id,ref_id\na,\n", "no true pairs; there is nothing to measure against"),
        ("query_id,ref_id\na,A\na,A\n", "line 3: the pair 'a', 'A' is listed twice, first line 2"),
        (
            "query_id,ref_id,family\na,A,crop\na,B,flip\n",
            "line 3: family of query 'a' must be the same in all",
        ),
        ("query_id,ref_id,query_start,query_end,ref_start,ref_end\na,A,,,,\n", "line 2: query_start must be a finite"),
    ],
)
def test_a_file_of_truth_is_refused_by_line(tmp_path, text, message):
    path = tmp_path / "truth.csv"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_truth(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_unreadable_files_are_named(tmp_path):
    for path, message in ((tmp_path / "none.csv", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=message):
            read_pairs(path)


def test_files_survive_the_round_trip(tmp_path):
    odd = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")
    ids = [odd, 'a,b\r\n"c".mp4', "日本\r.mp4"]
    pairs = Pairs(query_id=ids, ref_id=["r"] * 3, score=[0.1, 1 / 3, 5e-324])
    write_vsc(tmp_path / "candidates.csv", pairs)
    back = read_pairs(tmp_path / "candidates.csv")
    assert back.query_id == [ids[1], ids[0], ids[2]] and back.score.tolist() == [1 / 3, 0.1, 5e-324]  # best first
    assert b"caf\xe9.mp4" in (tmp_path / "candidates.csv").read_bytes()
    matches = make_pairs(("Q1", "R1", 0, 1.5, 2, 3.1, 2), ("Q1", "R1", 4, 5, 6, 7, 3))
    write_vsc(tmp_path / "matches.csv", matches)
    assert (tmp_path / "matches.csv").read_text().splitlines() == [
        TIMED.strip(), "Q1,R1,4.0,5.0,6.0,7.0,3.0", "Q1,R1,0.0,1.5,2.0,3.1,2.0",
    ]  # fmt: skip
    assert read_pairs(tmp_path / "matches.csv").times.tolist() == [[4, 5, 6, 7], [0, 1.5, 2, 3.1]]
    write_vsc(tmp_path / "truth.csv", make_truth(("Q1", "R1", 0, 1, 2, 3), ("Q2", "", *[np.nan] * 4)))
    assert read_truth(tmp_path / "truth.csv").times.tolist() == [[0, 1, 2, 3]]


def test_columns_in_any_order_a_byte_order_mark_and_blank_lines(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_bytes(b"\xef\xbb\xbfcontent, ref_id ,query_id,score\r\n\r\n.25,R,q,1\r\n")
    for column, score in (("score", 1), ("content", 0.25)):
        pairs = read_pairs(path, column=column)
        assert (pairs.query_id, pairs.ref_id, pairs.score.tolist(), pairs.lines) == (["q"], ["R"], [score], [3])


# --- the command ------------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["eval", *map(str, arguments)])
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


@pytest.fixture
def files(tmp_path):
    pairs, truth = tmp_path / "pairs.csv", tmp_path / "truth.csv"
    pairs.write_text("query_id,ref_id,score,content\na,A,.9,.1\na,B,.1,.2\nb,A,.8,.3\nb,B,.7,.4\nz,A,.2,.1\n")
    truth.write_text("query_id,ref_id,family,severity\na,A,[crop],mild\nb,B,flip,hard\nz,,later part,\n")
    return pairs, truth


def test_command_prints_totals_and_families(capsys, files, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, stdout, stderr = run(capsys, *files)
    lines = [" ".join(line.split()) for line in stdout.splitlines()]
    assert code == 0 and stderr == ""
    assert any(line.startswith("uAP 0.8333 ") for line in lines)
    assert any(line.startswith("recall at 1 % false pairs 0.5000 ") for line in lines)
    assert any(line.startswith("[crop] all 1 1 1.000 1.000") for line in lines)
    assert any(line.startswith("later part all 0 0 - - - - - 0.000") for line in lines)
    assert lines[-1] == "3 queries, 2 of 2 true pairs and 3 false ones listed; 1000 resamples of 3 bases, seed 0"


def test_command_writes_json_and_vsc_files(capsys, files, tmp_path):
    out, vsc = tmp_path / "o.json", tmp_path / "v.csv"
    code, stdout, _ = run(
        capsys, *files, "--column", "content", "--precision", "0.5", "--false_share", "0", "--bootstrap", "50",
        "--json", "--output", out, "--vsc-out", vsc,
    )  # fmt: skip
    found = json.loads(stdout)
    assert code == 0 and found == json.loads(out.read_text())
    assert found["totals"]["recall_at_false_share"]["value"] == 0.5 and found["schema_version"] == 1
    assert found["settings"] == {
        "precision": 0.5, "false_share": 0, "bootstrap": 50, "seed": 0, "pairs": str(files[0]), "truth": str(files[1]),
        "column": "content", "either_order": False,
    }  # fmt: skip
    assert found["groups"][0]["family"] == "[crop]" and found["groups"][0]["measures"]["uAP"]["low"] is None
    assert vsc.read_text().splitlines()[:2] == ["query_id,ref_id,score", "b,B,0.4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "0"], "precision must be in (0, 1], got 0"),
        (["--precision", "nan"], "precision must be in (0, 1], got nan"),
        (["--false-share", "1"], "false_share must be in [0, 1), got 1"),
        (["--bootstrap", "-1"], "bootstrap must not be negative, got -1"),
        (["--column", "order"], "the column 'order' is missing; it has 'query_id', 'ref_id', 'score', 'content'"),
        (["--output", "none/o.json"], "none/o.json: cannot be written"),
        (["--bootstrap", "many"], "Invalid value for '--bootstrap'"),
    ],
)
def test_command_wrong_usage_is_one_line(capsys, files, arguments, message):
    code, stdout, stderr = run(capsys, *files, "--json", *arguments)
    assert code == 1 and message in stderr and stderr.count("\n") == 1
    assert message in json.loads(stdout)["error"]["message"]


def test_command_imports_no_torch(files):
    code = (
        "import sys\nfrom vsim_fast.cli import main\n"
        "try: main(['eval', *sys.argv[1:]])\nexcept SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'av', 'matplotlib', 'PIL', 'scipy') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, check=True)
    assert ended.stdout.strip().endswith("[]")
