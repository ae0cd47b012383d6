"""The synthetic study asserts its hypotheses, and says so when they do not hold."""

from __future__ import annotations

import json

import pytest
import torch

from vsim_fast import run_motion_study
from vsim_fast.motion_study import HYPOTHESES, PATTERNS, REQUIRED, MotionStudy, motion_patterns, path_embeddings

ORIGINAL = {("linear_lr", "linear_rl"): 0.327, ("circular_cw", "circular_ccw"): 1.0, ("zigzag", "stationary"): 0.889}


@pytest.fixture(scope="module")
def study() -> MotionStudy:
    return run_motion_study()


def test_every_claim_holds(study):
    """Noise 0.005 (half a step), 100 seeds: the margins hold in every one of them."""
    assert study.ok, study.failures()
    assert (study.noise, study.seeds, study.compat) == (0.005, 100, False)
    claims = [(s.score, s.hypothesis) for s in study.separations if s.required is not None]
    assert claims and set(claims) == {(score, h) for score, required in REQUIRED.items() for h in required}


@pytest.mark.parametrize("hypothesis", HYPOTHESES)
@pytest.mark.parametrize("score", ["trajectory_stats", "trajectory_dtw"])
def test_trajectory_scores_make_every_claim(study, score, hypothesis):
    (s,) = (s for s in study.separations if (s.score, s.hypothesis) == (score, hypothesis))
    assert s.required >= 0.25
    assert s.margin_min > s.required
    assert s.cross_median < 0.2 < 0.7 < s.same_median


def test_study_is_json_and_repeats(study):
    again = run_motion_study(seeds=2)
    assert again == run_motion_study(seeds=2)
    assert again.similarity == study.similarity
    read = json.loads(study.model_dump_json())
    assert read["ok"] is True
    assert len(read["separations"]) == 12
    assert len(read["similarity"]["trajectory_dtw"]) == len(read["patterns"]) == 8


def test_the_originals_fail_and_say_which():
    """Without noise compat gives the published similarities, by which a circle is its own reverse."""
    study = run_motion_study(noise=0, seeds=1, compat=True)
    for (a, b), expected in ORIGINAL.items():
        found = study.similarity["trajectory_stats"][PATTERNS.index(a)][PATTERNS.index(b)]
        assert found == pytest.approx(expected, abs=1e-3)
    assert not study.ok
    failures = [line for line in study.failures() if "trajectory_stats" in line]
    assert any(line.startswith("H2 (clockwise and counter-clockwise are dissimilar) fails") for line in failures)
    assert any(line.startswith("H3 (a zigzag and a point at rest") for line in failures)


def test_too_much_noise_is_reported():
    study = run_motion_study(noise=0.5, seeds=2)
    assert not study.ok
    assert any("is required" in line for line in study.failures())


def test_threads_are_left_as_they_were():
    before = torch.get_num_threads()
    run_motion_study(seeds=1)
    assert torch.get_num_threads() == before


def test_patterns():
    clean, noisy = motion_patterns(50), motion_patterns(50, noise=0.01, seed=3)
    assert tuple(clean) == tuple(noisy) == PATTERNS
    assert all(path.shape == (50, 2) for path in clean.values())
    assert all(path.min() >= 0 and path.max() <= 1 for path in clean.values())
    assert torch.equal(noisy["zigzag"], motion_patterns(50, noise=0.01, seed=3)["zigzag"])
    assert not torch.equal(noisy["zigzag"], motion_patterns(50, noise=0.01, seed=3, draw=1)["zigzag"])
    assert (noisy["zigzag"] - clean["zigzag"]).std() == pytest.approx(0.01, rel=0.2)
    walks = [motion_patterns(50, seed=3, draw=draw)["random_walk"] for draw in (0, 1)]
    assert torch.equal(*walks)  # one walk, drawn twice


def test_embeddings_are_corners_at_the_corners():
    corners = torch.eye(4)
    path = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5]])
    embeddings = path_embeddings(path, 0.0, torch.Generator(), corners)
    assert torch.equal(embeddings[:4], corners)
    torch.testing.assert_close(embeddings[4], torch.full((4,), 0.5))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"noise": -1}, "noise must be finite and >= 0, got -1"),
        ({"noise": float("nan")}, "noise must be finite"),
        ({"embedding_noise": float("inf")}, "embedding_noise must be finite"),
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        run_motion_study(**arguments)
