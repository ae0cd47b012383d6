"""Motion fingerprints: the published numbers, what the mended scores promise, and input they must refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vsim_fast import (
    DTWTrajectoryMatcher,
    MultiScaleDerivativeFingerprint,
    TemporalDerivativeFingerprint,
    TrajectoryFingerprint,
)
from vsim_fast.encode import load_encoder
from vsim_fast.fingerprints.sequences import equal_parts, jitter
from vsim_fast.motion_study import motion_patterns
from vsim_fast.pipeline import encode_video
from vsim_fast.video import Sampling, open_video

CLEAN = motion_patterns()
DRAWN = ("linear_lr", "linear_rl", "linear_tb", "circular_cw", "circular_ccw", "zigzag", "stationary")
SHORT = {"lr": "linear_lr", "rl": "linear_rl", "tb": "linear_tb", "cw": "circular_cw", "ccw": "circular_ccw"}


def path(name: str) -> torch.Tensor:
    return CLEAN[SHORT.get(name, name)]


def walk(frames: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Embeddings that drift: unit vectors [frames, dim]."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(frames, dim, generator=generator).cumsum(0), dim=1)


# --- the published numbers, computed independently in float64 without noise ---------------------------------------

COSINES = {
    "lr-rl": 0.327, "lr-tb": 0.332, "lr-cw": 0.312, "lr-zigzag": 0.025, "lr-stationary": 0.132,
    "rl-stationary": -0.098, "cw-ccw": 1.000, "cw-zigzag": 0.648, "cw-stationary": 0.854, "zigzag-stationary": 0.889,
}  # fmt: skip
LR_VECTOR = [0.01003, 0.00048, 0.0101, 1, 0, 0, 0.00007, 0.00048, 0, 0, 0, 0.99327, 0, 0.99327]
DTW_DISTANCES = {"lr-rl": 50.505, "cw-ccw": 63.028, "lr-lr": 0.0}
DTW_SIMILARITIES = {
    "lr-rl": 0.0194, "lr-tb": 0.0139, "cw-ccw": 0.0156, "cw-stationary": 0.0276, "zigzag-stationary": 0.0302,
    "lr-lr": 1,
}  # fmt: skip


@pytest.mark.parametrize("pair", COSINES)
def test_original_trajectory_cosines(pair):
    fingerprint = TrajectoryFingerprint(compat=True)
    a, b = (fingerprint.compute(path(name)) for name in pair.split("-"))
    assert fingerprint.compare(a, b) == pytest.approx(COSINES[pair], abs=1e-3)


def test_original_trajectory_vector():
    vector = TrajectoryFingerprint(compat=True).compute(path("lr")).vector
    assert vector.tolist() == pytest.approx(LR_VECTOR, abs=1e-5)


def test_original_dtw():
    matcher = DTWTrajectoryMatcher(compat=True)
    for pair, distance in DTW_DISTANCES.items():
        assert matcher.distance(*map(path, pair.split("-"))) == pytest.approx(distance, abs=1e-3)
    for pair, similarity in DTW_SIMILARITIES.items():
        assert matcher.compare(*map(path, pair.split("-"))) == pytest.approx(similarity, abs=1e-4)


@pytest.mark.parametrize("order, window", [(1, 1), (1, 7), (2, 1), (2, 3), (3, 2)])
def test_original_derivative_vector(order, window):
    x = walk(20, 12).numpy().astype(np.float64)
    d = x
    for _ in range(order):
        d = d[window:] - d[:-window]
    size = np.linalg.norm(d, axis=1)
    u = d / size[:, None]
    change = np.linalg.norm(np.diff(u, axis=0), axis=1).mean()
    expected = [size.mean(), size.std(ddof=1), *u.mean(0), u.var(0, ddof=1).mean(), change]
    vector = TemporalDerivativeFingerprint(order, window, compat=True).compute(x).vector
    np.testing.assert_allclose(vector, expected, atol=2e-6)


def test_original_histogram_spans_the_magnitudes():
    fingerprint = TemporalDerivativeFingerprint(aggregation="histogram", compat=True).compute(walk(30, 8))
    counts, _ = np.histogram(fingerprint.magnitudes, bins=20)
    np.testing.assert_allclose(fingerprint.vector, [fingerprint.mean_direction_change, *counts / 29], atol=1e-6)


def test_original_multiscale_joins_windows_and_cuts_to_the_shorter():
    multiscale = MultiScaleDerivativeFingerprint(compat=True)
    long, short = multiscale.compute(walk(40, 1024)), multiscale.compute(walk(20, 1024))
    assert (len(long.vector), len(short.vector)) == (4 * 1028, 3 * 1028)
    assert list(short.scales) == [1, 5, 15]
    expected = F.cosine_similarity(long.vector[: 3 * 1028], short.vector, dim=0)
    assert multiscale.compare(long, short) == pytest.approx(expected.item(), abs=1e-6)
    assert multiscale.compare(long, multiscale.compute(walk(1, 1024))) == 0.0


# --- where the original crashed or gave NaN ------------------------------------------------------------------------


@pytest.mark.parametrize("compat", [True, False])
def test_derivative_without_directions(compat):
    fingerprint = TemporalDerivativeFingerprint(include_direction=False, compat=compat)
    a = fingerprint.compute(walk(9, 4))
    assert len(a.vector) == 2
    assert a.mean_direction is a.mean_direction_change is a.profile is None
    assert fingerprint.compare(a, a) == pytest.approx(1)


@pytest.mark.parametrize("compat", [True, False])
def test_one_difference_has_no_spread(compat):
    a = TemporalDerivativeFingerprint(compat=compat).compute(walk(2, 4))
    assert a.vector.isfinite().all()
    assert (a.std_magnitude, a.direction_variance, a.mean_direction_change) == (0, 0, None)
    assert MultiScaleDerivativeFingerprint(compat=compat).compute(walk(6, 4)).vector.isfinite().all()


@pytest.mark.parametrize("compat", [True, False])
def test_too_short_for_the_order(compat):
    with pytest.raises(ValueError, match=r"more than derivative_order · window_size = 6 frames, got 6"):
        TemporalDerivativeFingerprint(2, 3, compat=compat).compute(walk(6, 4))


@pytest.mark.parametrize("compat", [True, False])
def test_metrics(compat):
    fingerprint = TemporalDerivativeFingerprint(compat=compat)
    a, b = fingerprint.compute(walk(9, 4)), fingerprint.compute(walk(9, 4, seed=1))
    cosine = F.cosine_similarity(a.vector, b.vector, dim=0).item()
    distance = (a.vector - b.vector).norm().item()
    assert fingerprint.compare(a, b, "cosine") == pytest.approx(cosine if compat else (1 + cosine) / 2, abs=1e-6)
    assert fingerprint.compare(a, b, "euclidean") == pytest.approx(-distance if compat else 1 / (1 + distance))
    with pytest.raises(ValueError, match="metric must be 'cosine' or 'euclidean', got 'dtw'"):
        fingerprint.compare(a, b, "dtw")


def test_original_trajectories_of_few_frames():
    fingerprint = TrajectoryFingerprint(compat=True)
    for frames, numbers in ((1, 2), (2, 9), (3, 14)):
        vector = fingerprint.compute(path("cw")[:frames]).vector
        assert len(vector) == numbers
        assert vector.isfinite().all()


# --- mended trajectories ---------------------------------------------------------------------------------------------


def test_turns_have_a_sign_and_no_size():
    fingerprint = TrajectoryFingerprint()
    for radius in (0.3, 0.01, 1e-4):
        clockwise = fingerprint.compute(0.5 + (path("cw") - 0.5) * (radius / 0.3))
        counter = fingerprint.compute(0.5 + (path("ccw") - 0.5) * (radius / 0.3))
        assert clockwise.mean_curvature == pytest.approx(0.88, abs=0.01)  # a circle less the last of its 16 parts
        assert counter.mean_curvature == pytest.approx(-clockwise.mean_curvature, abs=1e-6)
    assert fingerprint.compute(path("lr")).mean_curvature == 0


def test_noise_turns_nothing():
    """Noise of half a step per coordinate; the original's mean curvature is in the hundreds here."""
    for seed in range(10):
        line = motion_patterns(noise=0.005, seed=seed)["linear_lr"]
        assert abs(TrajectoryFingerprint().compute(line).mean_curvature) < 0.05
        assert TrajectoryFingerprint(compat=True).compute(line).mean_curvature > 10


def test_direction_is_circular():
    """Leftward motion has angles at both ends of the range, whose arithmetic mean points right."""
    noisy = motion_patterns(noise=0.005)["linear_rl"]
    left = TrajectoryFingerprint().compute(noisy)
    assert math.cos(left.mean_direction) < -0.99
    assert left.direction_variance < 0.02
    assert math.cos(TrajectoryFingerprint(compat=True).compute(noisy).mean_direction) > 0
    circle = TrajectoryFingerprint().compute(path("cw"))
    assert circle.direction_variance > 0.9


def test_units():
    line = TrajectoryFingerprint().compute(path("tb"))
    assert line.mean_speed == pytest.approx(1 / 99, rel=0.01)
    assert line.std_speed < 1e-3
    assert line.mean_direction == pytest.approx(math.pi / 2)
    assert line.extent == pytest.approx((0, 0.95), abs=0.01)
    assert line.path_length == pytest.approx(line.extent[1])


def turned(path, degrees):
    turn = math.radians(degrees)
    matrix = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    return path @ matrix


def test_one_aspect_off_by_its_unit_halves_the_score():
    fingerprint = TrajectoryFingerprint()
    t = torch.linspace(0, 1, 100, dtype=torch.float64)
    line, diagonal = torch.stack((t, torch.zeros_like(t)), 1), torch.stack((t, t), 1)
    arc, more = (0.3 * torch.stack(((turns * t).cos(), (turns * t).sin()), 1) for turns in (2 * math.pi, 3 * math.pi))
    for one, other, score in (
        (line / 4, line / 2, 0.57),
        (arc, more, 0.47),
        (diagonal, turned(diagonal, 30), 0.42),
        (line, turned(line, 15), 0.26),
        (line, -line, 0.06),
    ):
        assert fingerprint.compare(fingerprint.compute(one), fingerprint.compute(other)) == pytest.approx(
            score, abs=0.01
        )


@pytest.mark.parametrize("name", DRAWN)
def test_backwards(name):
    """Turns and directions change sign, lengths and speeds do not."""
    fingerprint = TrajectoryFingerprint(smoothing_window=1)
    forth, back = fingerprint.compute(CLEAN[name]), fingerprint.compute(CLEAN[name].flip(0))
    assert back.mean_curvature == pytest.approx(-forth.mean_curvature, abs=1e-6)
    sign = torch.ones(14)
    sign[[3, 4, 8]] = -1
    torch.testing.assert_close(back.vector, sign * forth.vector, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DRAWN)
def test_place_does_not_count(name):
    moved = CLEAN[name] + torch.tensor([0.21, -0.13], dtype=torch.float64)
    fingerprint = TrajectoryFingerprint()
    assert fingerprint.compare(*map(fingerprint.compute, (CLEAN[name], moved))) == pytest.approx(1, abs=1e-5)
    assert DTWTrajectoryMatcher().compare(CLEAN[name], moved) == pytest.approx(1, abs=1e-3)
    assert DTWTrajectoryMatcher(normalize_trajectory=False).compare(CLEAN[name], moved) < 0.9


@pytest.mark.parametrize("frames", [24, 50, 67, 150, 1000])
@pytest.mark.parametrize("score", ["statistics", "dtw"])
def test_tempo_and_length_do_not_count(score, frames):
    """Each noisy motion is closer to itself at another tempo than to any other motion at that tempo."""
    slow, fast = motion_patterns(noise=0.005), motion_patterns(frames, noise=0.005, draw=1)
    if score == "dtw":
        compare = DTWTrajectoryMatcher().compare
    else:
        fingerprint = TrajectoryFingerprint()
        slow, fast = ({name: fingerprint.compute(p) for name, p in paths.items()} for paths in (slow, fast))
        compare = fingerprint.compare
    for name in DRAWN:
        same = compare(slow[name], fast[name])
        others = max(compare(slow[name], fast[other]) for other in DRAWN if other != name)
        assert same > others + 0.15
        assert name == "stationary" or same > 0.65


def test_a_point_at_rest_is_not_magnified():
    """The original stretches jitter to the whole picture; here noise stays noise."""
    rest = [torch.full((100, 2), 0.5) + 0.005 * torch.randn(100, 2) for _ in range(2)]
    assert DTWTrajectoryMatcher().compare(*rest) > 0.6
    assert DTWTrajectoryMatcher(compat=True).compare(*rest) < 0.1


def test_matched_frames():
    matcher = DTWTrajectoryMatcher()
    slow, fast = path("zigzag"), path("zigzag")[::2]
    distance, matched = matcher.path(slow, fast)
    assert float(distance) == pytest.approx(matcher.distance(slow, fast))
    assert matched.dtype == torch.int64
    assert (matched.diff(dim=0) >= 0).all()
    assert matched.amax(0).tolist() == [99, 49]
    assert (matched[:, 0] - 2 * matched[:, 1]).abs().max() <= 4  # in frames of the slower
    assert DTWTrajectoryMatcher(compat=True).path(slow, fast).path[-1].tolist() == [99, 49]


def test_pairs_in_one_call_equal_pairs_alone():
    matcher = DTWTrajectoryMatcher()
    first, second = [path("lr"), path("cw"), path("zigzag")[:30]], [path("rl")[::3], path("ccw"), path("tb")]
    together = matcher.distances(first, second)
    assert together.tolist() == [matcher.distance(a, b) for a, b in zip(first, second, strict=True)]
    with pytest.raises(ValueError, match="must pair up, got 3 and 2"):
        matcher.distances(first, second[:2])


def test_switches_leave_numbers_out():
    full = TrajectoryFingerprint().compute(path("cw")).vector
    assert len(full) == 14
    for off, kept in (
        ({"use_curvature": False}, [*range(8), 11, 12, 13]),
        ({"use_acceleration": False}, [*range(6), 11, 12, 13]),
        ({"use_velocity": False}, [11, 12]),
    ):
        for compat in (True, False):
            whole = TrajectoryFingerprint(compat=compat).compute(path("cw")).vector
            assert torch.equal(TrajectoryFingerprint(**off, compat=compat).compute(path("cw")).vector, whole[kept])


@pytest.mark.parametrize("aggregation, mended, original", [("sequence", 32, 3), ("histogram", 8, 3)])
def test_trajectory_aggregations(aggregation, mended, original):
    fingerprint = TrajectoryFingerprint(aggregation=aggregation)
    left, right = fingerprint.compute(path("rl")), fingerprint.compute(path("lr"))
    assert len(left.vector) == mended
    assert fingerprint.compare(left, left) == 1
    assert fingerprint.compare(left, right) < 0.5
    assert len(TrajectoryFingerprint(aggregation=aggregation, compat=True).compute(path("lr")).vector) == original


# --- mended derivatives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 5, 30])
@pytest.mark.parametrize("compat", [True, False])
def test_reversal_negates_the_mean_direction(window, compat):
    x = walk(60, 96)
    fingerprint = TemporalDerivativeFingerprint(window_size=window, compat=compat)
    forth, back = fingerprint.compute(x), fingerprint.compute(x.flip(0))
    torch.testing.assert_close(back.mean_direction, -forth.mean_direction, atol=1e-6, rtol=0)
    torch.testing.assert_close(back.magnitudes, forth.magnitudes.flip(0), atol=1e-6, rtol=0)
    assert back.direction_variance == pytest.approx(forth.direction_variance, abs=1e-6)
    assert back.mean_direction_change == pytest.approx(forth.mean_direction_change, abs=1e-6)


def test_reversal_keeps_accelerations():
    x = walk(60, 96)
    forth, back = (TemporalDerivativeFingerprint(2, 3).compute(value) for value in (x, x.flip(0)))
    torch.testing.assert_close(back.mean_direction, forth.mean_direction, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [TemporalDerivativeFingerprint, MultiScaleDerivativeFingerprint])
def test_order_counts_and_tempo_does_not(kind):
    fingerprint = kind()
    for seed in range(5):
        x = walk(120, 96, seed)
        whole = fingerprint.compute(x)
        assert fingerprint.compare(whole, whole) == pytest.approx(1, abs=1e-6)
        assert fingerprint.compare(whole, fingerprint.compute(x.flip(0))) < 0.45
        assert fingerprint.compare(whole, fingerprint.compute(walk(120, 96, seed + 100))) < 0.65
        for speed in (1.5, 2):
            faster = x[torch.arange(0, 120, speed).long()]
            assert fingerprint.compare(whole, fingerprint.compute(faster)) > 0.85


def test_a_straight_change_is_the_opposite_of_its_reverse():
    x = torch.randn(32) + torch.linspace(0, 0.1, 40)[:, None] * torch.randn(32)
    fingerprint = TemporalDerivativeFingerprint()
    assert fingerprint.compare(fingerprint.compute(x), fingerprint.compute(x.flip(0))) < 0.01


def test_one_scale_is_the_single_window():
    x = walk(50, 16)
    scales = MultiScaleDerivativeFingerprint([3, 10]).compute(x).scales
    for window in (3, 10):
        assert torch.equal(scales[window].vector, TemporalDerivativeFingerprint(window_size=window).compute(x).vector)


@pytest.mark.real_media
def test_real_clips(media):
    """Reversed is told from itself, faster and re-encoded is not."""
    encoder = load_encoder("builtin", "cpu")

    def embeddings(name: str) -> torch.Tensor:
        sampling = Sampling("time_grid", fps=8, end_seconds=3)
        with open_video(media / "videos" / name, sampling, batch_size=encoder.batch_size) as reader:
            return torch.cat([batch.features.cls for batch in encode_video(reader, encoder)])

    clips = {name: embeddings(name) for name in ("sign_again.mkv", "flower.mp4", "flower.webm")}
    fingerprint = MultiScaleDerivativeFingerprint()
    known = {name: fingerprint.compute(x) for name, x in clips.items()}
    for name, x in clips.items():
        assert fingerprint.compare(known[name], fingerprint.compute(x.flip(0))) < 0.5
        assert fingerprint.compare(known[name], fingerprint.compute(x[torch.arange(0, len(x), 1.5).long()])) > 0.8
        assert fingerprint.compare(known[name], fingerprint.compute(x[::2])) > 0.8
    assert fingerprint.compare(known["flower.mp4"], known["flower.webm"]) > 0.9
    assert 0.4 < fingerprint.compare(known["flower.mp4"], known["sign_again.mkv"]) < 0.6


def test_loudness_does_not_count():
    x = walk(30, 16)
    a, b = (TemporalDerivativeFingerprint().compute(value).vector for value in (x, 40 * x))
    torch.testing.assert_close(a, b)


def test_a_still_video_is_like_another_and_unlike_none():
    fingerprint = MultiScaleDerivativeFingerprint()
    still = [fingerprint.compute(torch.randn(1, 33).repeat(40, 1)) for _ in range(2)]
    moving = fingerprint.compute(walk(40, 33))
    assert fingerprint.compare(*still) == 1
    assert fingerprint.compare(still[0], moving) == 0.5


@pytest.mark.parametrize(
    "aggregation, mended, original", [("mean", 12, 12), ("std", 3, 1), ("histogram", 21, 21), ("sequence", 21, 1)]
)
def test_derivative_aggregations(aggregation, mended, original):
    x = walk(30, 8)
    fingerprint = TemporalDerivativeFingerprint(aggregation=aggregation)
    a = fingerprint.compute(x)
    assert len(a.vector) == mended
    assert a.vector.abs().max() <= 1
    assert fingerprint.compare(a, a, "euclidean") == 1
    assert len(TemporalDerivativeFingerprint(aggregation=aggregation, compat=True).compute(x).vector) == original
    with pytest.raises(ValueError, match="needs include_direction"):
        TemporalDerivativeFingerprint(aggregation="std", include_direction=False, compat=True).compute(x)


# --- all scores ------------------------------------------------------------------------------------------------------


def test_scores_stay_in_range():
    """Any length, size and offset, standing still, one axis only: in [0, 1], symmetric, 1 with itself."""
    generator = torch.Generator().manual_seed(0)
    scores = [TrajectoryFingerprint(), TrajectoryFingerprint(use_velocity=False)]
    scores += [TrajectoryFingerprint(aggregation=name) for name in ("sequence", "histogram")]
    matchers = [DTWTrajectoryMatcher(), DTWTrajectoryMatcher(normalize_trajectory=False)]
    derivative = [
        MultiScaleDerivativeFingerprint([1]),
        TemporalDerivativeFingerprint(2, 1),
        TemporalDerivativeFingerprint(include_direction=False),
        TemporalDerivativeFingerprint(aggregation="histogram", include_direction=False),
    ]

    def sequence(dim: int) -> torch.Tensor:
        frames, kind = (int(torch.randint(*span, (), generator=generator)) for span in ((3, 90), (0, 4)))
        size = 10.0 ** float(torch.randint(-9, 9, (), generator=generator))
        x = torch.randn(frames, dim, generator=generator)
        x = (x, x.cumsum(0), x[:1].repeat(frames, 1), x * torch.eye(dim)[0])[kind]
        return size * (x + torch.randn(dim, generator=generator))

    for _ in range(60):
        a, b = sequence(2), sequence(2)
        x, y = sequence(5), sequence(5)
        found = [
            [f.compare(f.compute(p), f.compute(q)) for p, q in pairs]
            for kinds, pairs in ((scores, ((a, b), (b, a), (a, a))), (derivative, ((x, y), (y, x), (x, x))))
            for f in kinds
        ]
        found += [[m.compare(p, q) for p, q in ((a, b), (b, a), (a, a))] for m in matchers]
        for forth, back, self in found:
            assert 0 <= forth <= 1
            assert back == pytest.approx(forth, abs=1e-5)
            assert self == pytest.approx(1, abs=1e-5)


def test_numpy_and_other_dtypes():
    lr, x = path("lr"), walk(20, 8)
    assert DTWTrajectoryMatcher().compare(lr.numpy(), lr.float()) == pytest.approx(1, abs=1e-4)
    a, b = (TrajectoryFingerprint().compute(value).vector for value in (lr.numpy(), lr))
    assert torch.equal(a, b)
    assert a.dtype == torch.float32
    backwards = x.flip(0).numpy().astype(np.float64)[::-1]
    for value in (x.numpy(), x.double(), backwards, np.asfortranarray(x), x.numpy().astype(">f4")):
        assert torch.equal(
            TemporalDerivativeFingerprint().compute(value).vector, TemporalDerivativeFingerprint().compute(x).vector
        )
    half = TemporalDerivativeFingerprint().compute(x.half())
    assert TemporalDerivativeFingerprint().compare(half, TemporalDerivativeFingerprint().compute(x)) > 0.999


@pytest.mark.needs_cuda
@pytest.mark.parametrize("compat", [True, False])
def test_on_the_gpu(compat):
    for dim, fingerprint in (
        (2, TrajectoryFingerprint(compat=compat)),
        (64, MultiScaleDerivativeFingerprint(compat=compat)),
    ):
        x, y = walk(80, dim), walk(50, dim, seed=1)
        there = [fingerprint.compute(value.cuda()) for value in (x, y)]
        here = [fingerprint.compute(value) for value in (x, y)]
        torch.testing.assert_close(there[0].vector.cpu(), here[0].vector, atol=1e-5, rtol=1e-5)
        assert fingerprint.compare(*there) == pytest.approx(fingerprint.compare(*here), abs=1e-5)
    x, y = walk(80, 2), walk(50, 2, seed=1)
    matcher = DTWTrajectoryMatcher(compat=compat)
    assert matcher.distance(x.cuda(), y.cuda()) == pytest.approx(matcher.distance(x, y), rel=1e-5)
    assert torch.equal(matcher.path(x.cuda(), y.cuda()).path.cpu(), matcher.path(x, y).path)


ON_PATHS = {
    "TrajectoryFingerprint": lambda compat: TrajectoryFingerprint(compat=compat).compute,
    "first": lambda compat: lambda bad: DTWTrajectoryMatcher(compat=compat).compare(bad, path("lr")),
    "second": lambda compat: lambda bad: DTWTrajectoryMatcher(compat=compat).path(path("lr"), bad),
}
ON_EMBEDDINGS = {
    "TemporalDerivativeFingerprint": lambda compat: TemporalDerivativeFingerprint(compat=compat).compute,
    "MultiScaleDerivativeFingerprint": lambda compat: MultiScaleDerivativeFingerprint(compat=compat).compute,
}
NAN, INF = torch.rand(5, 2), torch.rand(5, 2).numpy()
NAN[3, 1], INF[2, 0] = math.nan, -math.inf
BAD = {
    "nan": (NAN, ValueError, r"must be finite .* got nan in frame 3"),
    "inf": (INF, ValueError, r"must be finite .* got -inf in frame 2"),
    "huge": (torch.full((5, 2), 1e200, dtype=torch.float64), ValueError, r"at most 1e\+18 in size"),
    "empty": (torch.zeros(0, 2), ValueError, r"at least \d frames?, got 0"),
    "no dimension": (torch.zeros(5, 0), ValueError, r"must be \[T, .\], got shape \(5, 0\)"),
    "batch": (torch.zeros(2, 5, 2), ValueError, r"got shape \(2, 5, 2\)"),
    "flat": (np.zeros(5), ValueError, r"got shape \(5,\)"),
    "integers": (np.zeros((5, 2), dtype=np.int64), TypeError, "must be floating-point, got int64"),
    "list": ([[0.0, 1.0], [1.0, 1.0]], TypeError, "must be a NumPy array or a tensor, got list"),
}


@pytest.mark.parametrize("compat", [True, False])
@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", [*ON_PATHS, *ON_EMBEDDINGS])
def test_bad_input(name, case, compat):
    value, error, message = BAD[case]
    with pytest.raises(error, match=message):
        (ON_PATHS | ON_EMBEDDINGS)[name](compat)(value)


@pytest.mark.parametrize("name", [*ON_PATHS, *ON_EMBEDDINGS])
def test_one_frame_does_not_move(name):
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        (ON_PATHS | ON_EMBEDDINGS)[name](False)(torch.rand(1, 2))


@pytest.mark.parametrize("name", ON_PATHS)
def test_trajectories_are_planar(name):
    with pytest.raises(ValueError, match=r"must be \[T, 2\], got shape \(5, 3\)"):
        ON_PATHS[name](False)(torch.rand(5, 3))


def test_bad_windows():
    with pytest.raises(ValueError, match="more frames than the smallest window, 5, got 5"):
        MultiScaleDerivativeFingerprint([9, 5]).compute(walk(5, 3))
    one, other = (MultiScaleDerivativeFingerprint([window]).compute(walk(9, 3)) for window in (1, 2))
    with pytest.raises(ValueError, match=r"share no window: \[1\] and \[2\]"):
        MultiScaleDerivativeFingerprint([1, 2]).compare(one, other)
    for fingerprint, other in (
        (TemporalDerivativeFingerprint(), TemporalDerivativeFingerprint(compat=True).compute(walk(9, 3))),
        (TemporalDerivativeFingerprint(), TemporalDerivativeFingerprint(include_direction=False).compute(walk(9, 3))),
        (TemporalDerivativeFingerprint(), TemporalDerivativeFingerprint().compute(walk(9, 4))),
        (MultiScaleDerivativeFingerprint(), MultiScaleDerivativeFingerprint().compute(walk(9, 4))),
    ):
        with pytest.raises(ValueError, match="must come from one configuration"):
            fingerprint.compare(fingerprint.compute(walk(9, 3)), other)
    with pytest.raises(ValueError, match="one configuration, got vectors of 14 and 11"):
        fingerprint = TrajectoryFingerprint()
        other = TrajectoryFingerprint(use_curvature=False)
        fingerprint.compare(fingerprint.compute(path("lr")), other.compute(path("lr")))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TemporalDerivativeFingerprint(0), "derivative_order must be an integer >= 1, got 0"),
        (lambda: TemporalDerivativeFingerprint(window_size=1.5), "window_size must be an integer >= 1, got 1.5"),
        (lambda: TemporalDerivativeFingerprint(aggregation="max"), "aggregation must be 'mean', .* got 'max'"),
        (lambda: TemporalDerivativeFingerprint(include_magnitude=False, include_direction=False), "must not both be"),
        (lambda: MultiScaleDerivativeFingerprint([]), r"one or more distinct integers, got \[\]"),
        (lambda: MultiScaleDerivativeFingerprint([2, 2]), r"one or more distinct integers, got \[2, 2\]"),
        (lambda: MultiScaleDerivativeFingerprint([0]), "window_sizes must be an integer >= 1, got 0"),
        (lambda: TrajectoryFingerprint(smoothing_window=0), "smoothing_window must be an integer >= 1, got 0"),
        (lambda: TrajectoryFingerprint(aggregation="mean"), "aggregation must be 'statistics', .* got 'mean'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- the parts they share --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames, parts", [(7, 7), (100, 16), (17, 16), (5, 16), (1, 4), (64, 1)])
def test_equal_parts(frames, parts):
    x = torch.randn(frames, 3, dtype=torch.float64)
    out = equal_parts(x, parts)
    assert out.shape == (parts, 3)
    if frames >= parts:  # every frame repeated, so that parts end between frames
        fine = x.repeat_interleave(parts, dim=0).reshape(parts, frames, 3).mean(1)
        torch.testing.assert_close(out, fine)
    else:
        expected = [np.interp(np.linspace(0, frames - 1, parts), np.arange(frames), x[:, d]) for d in range(3)]
        np.testing.assert_allclose(out.T, expected, atol=1e-12)


def test_jitter_is_the_noise_of_a_moving_point():
    noisy = motion_patterns(2000, noise=0.005)
    assert [jitter(noisy[name]) for name in DRAWN] == pytest.approx([0.005] * len(DRAWN), rel=0.1)
    assert jitter(path("cw")) < 1e-4
    assert jitter(path("cw")[:3]) == 0
