"""Which stretch of one video runs like which of the other: speeds, offsets, backwards, inserted, still, very short."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vsim_fast.copies.features import PICTURE
from vsim_fast.copies.order import SAME_PICTURE, SPEEDS, Stretch, _Lines, best_stretch, shared_pictures

pytestmark = pytest.mark.usefixtures("one_thread")
STEP = 1 / 6


def pictures(times, scene: int = 0) -> torch.Tensor:
    """uint8 [T, PICTURE, PICTURE]: a bright disc on a path that never returns, over a texture of its own."""
    rng = np.random.default_rng(scene)
    texture = np.kron(rng.uniform(60, 160, (7, 7)), np.ones((8, 8)))
    y, x = np.mgrid[:PICTURE, :PICTURE]
    t = np.asarray(times, float)[:, None, None]
    row, column = 28 + 18 * np.sin(0.9 * t + 2 * scene), 28 + 18 * np.sin(1.31 * t + 0.4 * np.sin(2.3 * t) + scene)
    disc = np.exp(-(((y - row) ** 2 + (x - column) ** 2) / 90))
    return torch.from_numpy((texture * (1 - disc) + 250 * disc).round()).byte()


def shared(stack: torch.Tensor) -> torch.Tensor:
    return shared_pictures(stack, torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.zeros(2), torch.ones(2))


def found(query: torch.Tensor, ref: torch.Tensor, steps=(STEP, STEP)) -> Stretch | None:
    return best_stretch(shared(query), shared(ref), *steps)


def close(span: tuple[int, int], expected: tuple[int, int], by: int = 2) -> bool:
    return all(abs(a - b) <= by for a, b in zip(span, expected, strict=True))


GRID = np.arange(48) * STEP


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.0, 1.5, 2.0])
def test_speeds_are_told(speed):
    shown = int(48 / max(1, speed))
    stretch = found(pictures(GRID[:shown] * speed), pictures(GRID))
    assert stretch.speed == pytest.approx(speed, abs=0.06) and stretch.motion > 0.9 and stretch.likeness > 0.95
    assert close(stretch.query, (0, shown)) and close(stretch.ref, (0, round(shown * speed)))
    assert len(stretch.likenesses) == stretch.query[1] - stretch.query[0]


def test_speed_is_of_time_not_of_pictures():
    stretch = found(pictures(GRID), pictures(np.arange(24) * 2 * STEP), steps=(STEP, 2 * STEP))
    assert stretch.speed == 1 and close(stretch.query, (0, 48), 1) and stretch.ref == (0, 24)


@pytest.mark.parametrize("start, end", [(0, 20), (11, 31), (28, 48)])
def test_a_part_is_found_where_it_is(start, end):
    part = found(pictures(GRID[start:end]), pictures(GRID))
    assert part.query == (0, end - start) and part.ref == (start, end) and part.motion > 0.99
    whole = found(pictures(GRID), pictures(GRID[start:end]))
    assert whole.query == (start, end) and whole.ref == (0, end - start)


def test_what_was_inserted_elsewhere_is_found_to_a_picture_or_two():
    query = torch.cat([pictures(GRID[:12], 1), pictures(GRID[6:30]), pictures(GRID[:16], 2)])
    stretch = found(query, pictures(GRID))
    assert close(stretch.query, (12, 36)) and close(stretch.ref, (6, 30)) and stretch.motion > 0.9


def test_backwards_fits_the_reversed_reference_only():
    x, y = pictures(GRID), pictures(GRID).flip(0)
    forward, backward = found(x, y), found(x, y.flip(0))
    assert backward.motion > 0.99 and backward.query == (0, 48) == backward.ref
    assert forward is None or forward.motion < 0.5


def test_nothing_moves_in_a_still_video():
    still = pictures(np.zeros(30))
    stretch = found(still, still)
    assert stretch.query == (0, 30) == stretch.ref and stretch.likeness == pytest.approx(1)
    assert max(stretch.energies) < 1e-3
    moving = found(pictures(GRID), still)
    assert moving is None or (moving.energies[1] < 1e-3 < moving.energies[0] and moving.motion < 0.2)


def test_one_picture_is_alike_or_not():
    one = pictures([2.0])
    assert found(one, one)[1:3] == ((0, 1), (0, 1))
    stretch = found(one, pictures(GRID), steps=(1.0, STEP))
    assert stretch.query == (0, 1) and close(stretch.ref, (12, 13)) and stretch.likeness > 0.99
    assert found(one, pictures([2.0], 5), steps=(1.0, 1.0)) is None


def test_unrelated_noise_has_no_stretch():
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, 256, (n, PICTURE, PICTURE), generator=draw).byte() for n in (30, 40))
    assert found(x, y) is None


@pytest.mark.parametrize("start", [5, 385])
def test_a_short_one_is_found_in_a_long_one(start):
    times = np.arange(400) * STEP
    part = pictures(times[start : start + 12])
    for stretch, long, short in (
        (found(part, pictures(times)), "ref", "query"),
        (found(pictures(times), part), "query", "ref"),
    ):
        assert close(getattr(stretch, long), (start, start + 12)) and close(getattr(stretch, short), (0, 12))


def test_ranges_lie_inside_whatever_the_lengths():
    rng = np.random.default_rng(0)
    for _ in range(40):
        rows, columns = rng.integers(1, 7, 2)
        step = STEP * (1 + rng.choice([0, 1e-9, -1e-9, 1e-7]))
        stretch = found(pictures(GRID[:rows]), pictures(GRID[:columns]), steps=(step, STEP))
        assert stretch is not None
        for (first, last), length in ((stretch.query, rows), (stretch.ref, columns)):
            assert 0 <= first < last <= length


@pytest.mark.parametrize("rows, columns", [(1, 1), (2, 3), (3, 2), (7, 5), (5, 40)])
def test_every_cell_lies_on_one_line_of_each_slope(rows, columns):
    for slope in [*SPEEDS, 0.5 + 1e-9, 1.5 - 1e-9]:
        lines = _Lines(torch.zeros(rows, columns), slope)
        cells = [
            (i, int(lines.index[i, k])) for k in range(len(lines.offsets)) for i in range(rows) if lines.inside[i, k]
        ]
        assert sorted(cells) == [(i, j) for i in range(rows) for j in range(columns)]
        assert bool(lines.inside.any(0).all())


@pytest.mark.parametrize("rows, columns, slope", [(9, 7, 1.0), (6, 13, 2.0), (12, 5, 0.57), (1200, 3, 0.5)])
def test_segments_and_sums_are_those_of_brute_force(rows, columns, slope):
    gain = torch.rand(rows, columns, generator=torch.Generator().manual_seed(rows)) * 1.2 - 0.7
    lines = _Lines(gain, slope)
    first, last, support = lines.segments(gain)
    sums = lines.sums(gain, first, last)
    for k in range(0, len(lines.offsets), 1 + len(lines.offsets) // 60):
        values = [float(gain[i, lines.index[i, k]]) for i in range(rows) if lines.inside[i, k]]
        best, running = -2.0, 0.0
        for value in values:
            running = max(running, 0.0) + value
            best = max(best, running)
        assert support[k].item() == pytest.approx(best, abs=2e-3)
        assert sums[k].item() == pytest.approx(best, abs=2e-3)
        assert bool(lines.inside[first[k] : last[k], k].all())


def test_shared_pictures_shows_the_part_asked_for():
    whole = pictures(GRID[:4])
    inset = torch.full((4, PICTURE, PICTURE), 7, dtype=torch.uint8)
    inset[:, 14:42, 7:49] = torch.nn.functional.interpolate(whole[None].float(), (28, 42), mode="area")[0].byte()
    box = torch.tensor([0.25, 0.125, 0.75, 0.875])
    x = shared_pictures(inset, box, torch.zeros(2), torch.ones(2))
    assert x.shape == (4, 256)
    assert x.square().mean().item() == pytest.approx(1, abs=1e-5) and x.mean(1).abs().max() < 1e-5
    corner = shared_pictures(inset, box, torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.5]))
    cosine = torch.nn.functional.cosine_similarity
    right = whole[:, :28, 28:].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert cosine(x, shared(whole)).min() > 0.95 and cosine(corner, shared(right)).min() > 0.9
    assert cosine(x, corner).max() < SAME_PICTURE
