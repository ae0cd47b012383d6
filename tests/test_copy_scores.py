"""What scores of pairs mean: verdicts at their thresholds, videos against edits of themselves, any order of pairs."""

from __future__ import annotations

import itertools
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from copy_clips import scene, write

from vsim_fast.copies import ORIENTATIONS, SIGNALS, THRESHOLDS, VERDICTS, score_pairs, scores
from vsim_fast.copies.scores import STILL_CONTENT, judge
from vsim_fast.copy_reader import copy_settings, noise_for, read_copy_video
from vsim_fast.encode import load_encoder


@pytest.fixture(scope="module", autouse=True)
def one_thread_for_all():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def videos(one_thread_for_all, tmp_path_factory):
    """Features by name."""
    frames = scene(0)
    clips = {
        "scene": frames, "reversed": frames[::-1], "other": scene(1), "still": frames[:1] * 36,
        "long": [*scene(2, 36), *frames, *scene(3, 48)], "part": frames[12:36],
        "black": [np.zeros_like(frames[0])] * 24, "one": frames[:1], "one other": scene(1, 1),
    }  # fmt: skip
    folder, encoder = tmp_path_factory.mktemp("copies"), load_encoder("builtin", device="cpu")
    noise = noise_for(encoder)
    return {
        name: read_copy_video(write(folder / f"{name}.mp4", clip), encoder, copy_settings(), noise).features
        for name, clip in clips.items()
    }


@pytest.fixture(scope="module")
def table(videos):
    """Scores of all pairs, both ways, and of each with itself, by names."""
    names = list(videos)
    pairs = np.array(list(itertools.product(range(len(names)), repeat=2)))
    found = dict(score_pairs(lambda n: videos[names[n]], pairs))
    return {(names[a], names[b]): found[row] for row, (a, b) in enumerate(pairs.tolist())}


LIMITS = THRESHOLDS
FULL, HALF = (1.0, 1.0), (1.0, 0.2)
E = 1e-6


@pytest.mark.parametrize(
    "score, content, order, coverage, verdict",
    [
        (0.9, 0.9, 0.9, FULL, "duplicate"),
        (LIMITS["score"], LIMITS["content"], LIMITS["order"], (LIMITS["coverage"],) * 2, "duplicate"),
        (0.9, LIMITS["content"] - E, 0.9, FULL, "different"),
        (0.9, 0.9, 0.9, (LIMITS["coverage"] - E, 1.0), "contains"),
        (0.9, 0.9, 0.9, HALF, "contains"),
        (0.9, 0.9, 0.9, (0.3, LIMITS["coverage"]), "contains"),
        (0.9, 0.9, 0.9, (0.3, LIMITS["coverage"] - E), "shares a part"),
        (0.3, 0.9, 0.1, FULL, "same content, other order"),
        (0.3, 0.9, 1 - LIMITS["order"] - E, FULL, "same content, other order"),
        (0.3, LIMITS["content"], 0.1, FULL, "same content, other order"),
        (0.3, 0.9, 1 - LIMITS["order"] + E, FULL, "same scene, other time"),
        (0.9, 0.9, LIMITS["order"] - E, FULL, "same scene, other time"),
        (LIMITS["score"] - E, 0.9, 0.9, FULL, "same scene, other time"),
        (0.3, STILL_CONTENT, 0.5, FULL, "same scene, other time"),
        (0.3, STILL_CONTENT - E, 0.5, FULL, "different"),
        (0.9, STILL_CONTENT, None, FULL, "duplicate"),
        (0.9, STILL_CONTENT - E, None, FULL, "different"),
        (0.9, 0.9, None, HALF, "contains"),
        (0.9, 0.9, None, (0.3, 0.3), "shares a part"),
    ],
)  # fmt: skip
def test_verdicts_at_their_thresholds(score, content, order, coverage, verdict):
    found, duplicate, reason = judge(score, content, order, coverage, 1.0)
    assert found == verdict and found in VERDICTS and duplicate == (verdict == "duplicate")
    assert f"content {content:.2f}" in reason and "\n" not in reason
    assert judge(score, content, order, coverage[::-1], 1.0)[0] == verdict


def test_a_video_is_a_copy_of_itself(table, videos):
    for name in ("scene", "reversed", "other", "long", "part"):
        found = table[name, name]
        assert found.verdict == "duplicate" and found.orientation == "as it is"
        assert found.order > 0.95 and found.content > 0.95 and found.score > 0.9, name
        assert min(found.query_coverage, found.ref_coverage) > 0.95
        frames = range(len(videos[name].frame_seconds))
        assert [match[:2] for match in found.matches] == [(n, n) for n in frames]
        assert min(match[2] for match in found.matches) > 0.99
        assert found.signals["match"] > 0.99 and found.signals["trajectory_dtw"] > 0.99


def test_backwards_is_the_same_content_in_another_order(table):
    found = table["scene", "reversed"]
    assert found.verdict == "same content, other order" and not found.duplicate
    assert found.content > 0.9 and found.order < 0.1 and found.score < 0.4
    assert [g for _, g, _ in found.matches] == sorted((g for _, g, _ in found.matches), reverse=True)


def test_a_part_is_contained(table):
    for whole in ("scene", "long"):
        found = table["part", whole]
        assert found.query_coverage > 0.9 and found.coverage == found.query_coverage
    found = table["scene", "long"]
    assert found.verdict == "contains" and found.query_coverage > 0.9
    assert found.ref_coverage == pytest.approx(48 / 132, abs=0.06)
    for name in ("scene", "part"):  # found 3 s into the long one, the part 4 s
        first, target, _ = table[name, "long"].matches[0]
        assert first == 0 and target == pytest.approx(3 if name == "scene" else 4, abs=1)


@pytest.mark.parametrize("pair", [("scene", "other"), ("one", "one other"), ("other", "reversed"), ("long", "other")])
def test_what_is_unrelated_is_different(table, pair):
    for found in (table[pair], table[pair[::-1]]):
        assert found.verdict == "different" and not found.duplicate and found.score < 0.2 and found.content < 0.2


def test_nothing_is_a_copy_of_a_blank_video(table, videos):
    assert [name for name in videos if videos[name].blank] == ["black"]
    for name in videos:
        for found in (table["black", name], table[name, "black"]):
            assert found.verdict == "different" and found.score < 0.05 and found.matches == []


def test_a_video_without_weights_is_blank_whatever_its_patches(videos):
    whole = videos["scene"]
    faint = replace(whole, weights=whole.weights * 0, turned_weights=whole.turned_weights * 0)
    for pair in ([0, 1], [1, 0]):
        ((_, found),) = score_pairs([whole, faint].__getitem__, np.array([pair]))
        assert found.verdict == "different" and found.content < THRESHOLDS["content"] and found.coverage == 0


@pytest.mark.parametrize("name", ["still", "one"])
def test_where_nothing_moves_content_alone_counts(table, name):
    found = table[name, name]
    assert found.verdict == "duplicate" and "nothing moves" in found.reason
    assert found.order == 0.5 and found.score == found.content > 0.9
    assert table["one", "still"].verdict == "duplicate" and table["one", "scene"].verdict == "contains"


def test_signals_of_one_frame_are_not_made_up(table):
    signals = table["one", "scene"].signals
    assert tuple(signals) == SIGNALS and signals["semantic_baseline"] > 0.7
    assert all(math.isnan(signals[name]) for name in SIGNALS[2:])


def test_scores_are_finite_and_in_range(table, videos):
    for (query, ref), found in table.items():
        numbers = found[:6]
        assert all(0 <= value <= 1 for value in numbers), (query, ref, numbers)
        assert found.coverage == max(found.query_coverage, found.ref_coverage)
        assert found.verdict in VERDICTS and found.orientation in ORIENTATIONS and tuple(found.signals) == SIGNALS
        assert all(math.isnan(v) or -1 <= v <= 1 + 1e-6 for v in found.signals.values()), found.signals
        frames = [f for f, _, _ in found.matches]
        assert frames == sorted(set(frames)) and set(frames) <= set(range(len(videos[query].frame_seconds)))
        assert all(0 <= g < len(videos[ref].frame_seconds) and 0 <= value <= 1 for _, g, value in found.matches)


def test_the_verdict_does_not_depend_on_who_asks(table, videos):
    for a, b in itertools.combinations(videos, 2):
        there, back = table[a, b], table[b, a]
        assert there.verdict == back.verdict, (a, b, there.reason, back.reason)
        assert there.score == pytest.approx(back.score, abs=0.1)


def test_pairs_in_any_order_and_blocks_give_the_same(table, videos, monkeypatch):
    monkeypatch.setattr(scores, "BLOCK", 2)
    monkeypatch.setattr(scores, "HELD", 3)
    names, rng = list(videos), np.random.default_rng(0)
    pairs = rng.permutation(np.array(list(itertools.product(range(len(names)), repeat=2))))[:40]
    pairs = np.concatenate([pairs, pairs[:3]])  # a pair may be asked for twice
    loads, alive, most = [], weakref.WeakSet(), 0

    def load(number):
        nonlocal most
        features = replace(videos[names[number]])
        loads.append(number)
        alive.add(features)
        most = max(most, len(alive))
        return features

    told = []
    progress = type("Progress", (), {"advance": lambda self, *args: told.append(args)})()
    found = list(score_pairs(load, pairs, progress=progress))
    assert sorted(row for row, _ in found) == list(range(len(pairs)))
    for row, result in found:
        np.testing.assert_equal(result._asdict(), table[tuple(names[n] for n in pairs[row])]._asdict())
    blocks = [pairs[pairs[:, 1] // 2 == block] for block in np.unique(pairs[:, 1] // 2)]
    assert len(loads) <= sum(2 * len(np.unique(block[:, 0])) + 2 for block in blocks)
    assert most <= 3 + 2 + 1  # held; one query's references; the one that is loaded
    done = [args[1] for args in told]
    assert done == sorted(done) and told[-1] == ("pairs", len(pairs), len(pairs))


def test_a_first_look_leaves_out_what_is_different_only(table, videos, monkeypatch):
    names = ["scene", "other", "black", "part", "long"]
    pairs = np.array(list(itertools.product(range(len(names)), repeat=2)))[::-1]
    told = []
    for tile, rows in ((1000, 64), (2, 1)):
        monkeypatch.setattr(scores, "LOOKED", tile)
        monkeypatch.setattr(scores, "LOOK_ROWS", rows)
        found = dict(score_pairs(lambda n: videos[names[n]], pairs, look_first=True))
        assert sorted(found) == list(range(len(pairs)))
        for row, result in found.items():
            full = table[tuple(names[n] for n in pairs[row])]
            assert result.verdict == full.verdict and (full.verdict == "different" or result.score == full.score)
        told.append([found[row].reason for row in sorted(found)])
    assert told[0] == told[1]


@pytest.mark.parametrize("look_first", [None, True])
def test_no_pairs_give_nothing(videos, look_first):
    load = list(videos.values()).__getitem__
    assert list(score_pairs(load, np.zeros((0, 2), int), look_first=look_first)) == []
