"""Features of copies and how patches are compared: pictures turned, cut and tiled; content; placement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vsim_fast.copies import ORIENTATIONS, CopyFeatures
from vsim_fast.copies.content import background, content_scores, frame_matches
from vsim_fast.copies.features import (
    FLAT,
    PICTURE,
    TURNS,
    cut,
    mosaic_tokens,
    mosaics,
    patch_energy,
    patch_places,
    picture_box,
    query_frames,
    scaled_grid,
    select_tokens,
    small_pictures,
    turn,
    turned_box,
)
from vsim_fast.copies.geometry import STRETCH, TOLERANCE, place
from vsim_fast.ops import quantize_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
WHOLE = [0.0, 0.0, 1.0, 1.0]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---- features


@pytest.mark.parametrize("orientation", range(8))
def test_a_box_turns_with_its_picture(orientation):
    picture = torch.zeros(3, 40, 60)
    picture[:, 4:10, 12:48] = 1  # top, left, bottom, right = 0.1, 0.2, 0.25, 0.8
    turned = turn(picture, orientation)
    height, width = turned.shape[-2:]
    top, left, bottom, right = turned_box(torch.tensor([0.1, 0.2, 0.25, 0.8]), orientation).tolist()
    inside = turned[:, round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
    assert inside.numel() == picture.sum() and bool((inside == 1).all())


def test_orientations_are_what_their_names_say():
    picture = torch.tensor([[1, 2], [3, 4]])
    turned = {name: turn(picture, k).flatten().tolist() for k, name in enumerate(ORIENTATIONS)}
    assert turned["turned 90"] == [2, 4, 1, 3]  # counter-clockwise
    assert turned["mirrored"] == [2, 1, 4, 3] and turned["upside down"] == [3, 4, 1, 2]
    assert len({tuple(values) for values in turned.values()}) == 8
    assert [ORIENTATIONS[k] for k in TURNS["mirror"]] == ["as it is", "mirrored"] and TURNS["all"] == tuple(range(8))


def barred(top: int, bottom: int, left: int, right: int, level: float = 0.0) -> torch.Tensor:
    frames = torch.full((4, 3, 112, 112), level)
    frames[:, :, top : 112 - bottom, left : 112 - right] = noise(4, 3, 112 - top - bottom, 112 - left - right)
    return frames


@pytest.mark.parametrize("bars", [(14, 14, 0, 0), (0, 0, 28, 28), (10, 20, 0, 0), (7, 0, 14, 3), (0, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("level", [0.0, 0.7])
def test_picture_box_leaves_out_constant_bars(bars, level):
    top, bottom, left, right = bars
    box = picture_box(barred(*bars, level))
    torch.testing.assert_close(box, torch.tensor([top, left, 112 - bottom, 112 - right]) / 112)


def test_picture_box_is_the_whole_where_there_are_no_bars_for_sure():
    changing = barred(20, 20, 0, 0)
    changing[2, :, :20] = 0.5  # the upper one changes
    assert picture_box(changing).tolist() == pytest.approx([0, 0, 92 / 112, 1])
    assert picture_box(barred(1, 0, 0, 1)).tolist() == WHOLE  # too narrow to be bars
    assert picture_box(torch.zeros(3, 3, 64, 64)).tolist() == WHOLE
    assert picture_box(barred(50, 50, 0, 0)).tolist() == WHOLE  # 12 lines of 112 left: a dark frame


def test_cut_takes_the_part_inside_to_full_size():
    frames = barred(28, 28, 0, 0)
    inside = cut(frames, torch.tensor([0.25, 0.0, 0.75, 1.0]))
    assert inside.shape == frames.shape
    torch.testing.assert_close(inside.mean((2, 3)), frames[:, :, 28:84].mean((2, 3)), atol=0.02, rtol=0)
    assert cut(frames, torch.tensor(WHOLE)) is frames


@pytest.mark.parametrize("grid", [(16, 16), (14, 14), (7, 9), (2, 2)], ids=str)
@pytest.mark.parametrize("scale", [0.69, 0.5, 0.31])
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_mosaic_tokens_are_those_of_each_frame_alone(grid, scale, frames):
    pixels = noise(frames, 3, grid[0] * 4, grid[1] * 4)
    side = scaled_grid(grid, scale)
    view = mosaics(pixels, grid, scale)
    assert view.shape[1:] == pixels.shape[1:] and len(view) <= frames
    means = F.adaptive_avg_pool2d(view, grid).flatten(2).mT  # what an encoder of mean colours makes of it
    small = F.interpolate(pixels, (side[0] * 4, side[1] * 4), mode="bilinear", antialias=True)
    expected = F.adaptive_avg_pool2d(small, side).flatten(2).mT
    torch.testing.assert_close(mosaic_tokens(means, grid, scale, frames), expected, atol=1e-5, rtol=0)


def test_as_many_frames_share_a_picture_as_fit():
    pixels = noise(9, 3, 64, 64)
    assert [len(mosaics(pixels, (16, 16), scale)) for scale in (0.69, 0.5, 0.31)] == [9, 3, 1]


def test_patches_are_where_they_are_said_to_be():
    pixels = torch.zeros(1, 3, 56, 72)
    pixels[..., 16:24, 40:48] = noise(8, 8)  # row 2 and column 5 of 7 × 9
    energy = patch_energy(pixels, (7, 9))
    assert energy.shape == (1, 63) and int(energy.argmax()) == 2 * 9 + 5
    x, y = patch_places((7, 9))[2 * 9 + 5].tolist()
    assert (x, y) == (round(256 * 5.5 / 9), round(256 * 2.5 / 7))


def test_energy_is_the_gradient_over_two_pixels():
    ramp = (torch.arange(64) * 0.01).expand(1, 3, 64, 64)
    assert patch_energy(ramp, (4, 4))[0, 5].item() == pytest.approx(0.02)  # a patch without an edge of the frame


def test_select_tokens_takes_the_energetic_ones_and_trusts_flat_frames_less():
    patches, places = noise(2, 6, 4) - 0.5, patch_places((2, 3))
    energy = torch.tensor([[1, 5, 2, 4, 3, 0], [1, 1, 1, 1, 1, 1]]) * torch.tensor([[0.1], [FLAT / 4]])
    tokens, where, weights = select_tokens(patches, energy, places, 3)
    expected = [1, 3, 4]
    torch.testing.assert_close(tokens[0], F.normalize(patches[0, expected], dim=1))
    assert torch.equal(where[0], places[expected])
    torch.testing.assert_close(weights[0].float(), torch.tensor([5, 4, 3]) / 12, atol=1e-3, rtol=0)
    torch.testing.assert_close(weights[1].float(), torch.full((3,), 1 / 12), atol=1e-3, rtol=0)
    assert select_tokens(patches, energy, places, 99)[0].shape == (2, 6, 4)
    assert select_tokens(patches, energy * 0, places, 3)[2].tolist() == [[0.0] * 3] * 2


def test_small_pictures_are_luma():
    pixels = torch.zeros(1, 3, 112, 112)
    pixels[:, 1, :, :56] = 1
    picture = small_pictures(pixels)
    assert picture.shape == (1, PICTURE, PICTURE) and picture.dtype == torch.uint8
    assert picture[0, 30, [0, -1]].tolist() == [round(0.587 * 255), 0]


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 12, 60])
def test_query_frames_are_five_of_eight_evenly(frames):
    picks = query_frames(frames)
    assert len(picks) == min(frames, max(5, round(frames * 5 / 8)))
    gaps = picks.diff()
    assert picks[0] >= 0 and picks[-1] < frames and bool((gaps >= 1).all())
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


SIZES, QUERY_SIZES = (20, 10, 6, 3), (12, 6)  # tokens of each size: an eighth of what 16 × 16 patches keep


def made(seed: int, *, frames: int = 8, orientations: tuple[int, ...] = (0,), like: tuple = ()) -> tuple:
    """Features of random tokens, and these as float64: (features, tokens, turned tokens); `like` mixes others in."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(*shape):
        return F.normalize(torch.randn(*shape, 48, generator=draw), dim=-1)

    def weights(leading, sizes):
        return torch.cat([torch.rand(*leading, n, generator=draw).softmax(-1) for n in sizes], -1).half()

    picks, others = len(query_frames(frames)), len(orientations) - 1
    straight, turned = tokens(frames, sum(SIZES)), tokens(others, picks, sum(QUERY_SIZES))
    for other in like:  # half of the patches are found again
        straight[:, ::2] = F.normalize(straight[:, ::2] * 0.3 + other[: len(straight), : straight.shape[1] : 2], dim=-1)
    (codes, scales), (turned_codes, turned_scales) = quantize_tokens(straight), quantize_tokens(turned)
    features = CopyFeatures(
        frame_seconds=torch.arange(frames).double(), codes=codes, code_scales=scales,
        places=torch.zeros(*straight.shape[:2], 2, dtype=torch.uint8), weights=weights((frames,), SIZES),
        background=torch.rand(straight.shape[:2], generator=draw).half() * 0.3,
        scales=torch.arange(4).repeat_interleave(torch.tensor(SIZES)).byte(),
        orientations=torch.tensor(orientations), turned_codes=turned_codes, turned_code_scales=turned_scales,
        turned_places=torch.zeros(*turned.shape[:3], 2, dtype=torch.uint8),
        turned_weights=weights((others, picks), QUERY_SIZES),
        turned_background=torch.rand(turned.shape[:3], generator=draw).half() * 0.3,
        turned_scales=torch.tensor([0] * 12 + [2] * 6).byte()[: 18 if others else 0], box=torch.tensor(WHOLE),
        picture_seconds=torch.arange(4).double(), pictures=torch.zeros(4, PICTURE, PICTURE, dtype=torch.uint8),
        embeddings=torch.zeros(4, 48).half(), centroids=torch.full((4, 2), math.nan),
        featureless=torch.zeros(4, dtype=torch.bool),
    )  # fmt: skip
    return features, straight.double(), turned.double()


def test_features_survive_as_tensors():
    features = made(0, orientations=(0, 4))[0]
    again = CopyFeatures.from_tensors(features.tensors() | {"unknown": torch.zeros(1)})
    for name, value in features.tensors().items():
        kept = again.tensors()[name]
        assert kept.is_contiguous() and kept.dtype == value.dtype
        torch.testing.assert_close(kept, value, atol=0, rtol=0, equal_nan=True)
    with pytest.raises(KeyError, match="weights"):
        CopyFeatures.from_tensors({k: v for k, v in features.tensors().items() if k != "weights"})
    assert features.duration_seconds == 4 and not features.blank


# ---- content


def plain_matches(query: tuple, ref: tuple) -> np.ndarray:
    """`frame_matches` as its definition says, one pair of frames and one size after the other."""
    video, straight, turned = query
    picks = query_frames(len(straight)).tolist()
    own = [*range(12), *range(30, 36)]  # the strongest at the first and at the third size
    sides = [(straight[picks][:, own], video.weights[picks][:, own], video.background[picks][:, own])]
    sides += list(zip(turned, video.turned_weights, video.turned_background, strict=True))
    other, others, weights, chance = ref[1], len(ref[1]), ref[0].weights.double(), ref[0].background.double()
    result = np.zeros((len(sides), len(picks), others))
    for o, (tokens, own_weights, own_chance) in enumerate(sides):
        for f in range(len(picks)):
            for g in range(others):
                cosines = tokens[f] @ other[g].T
                there = own_weights[f].double() * (cosines.amax(1) - own_chance[f].double())
                back = weights[g] * (cosines.amax(0) - chance[g])
                parts = [*there.split(QUERY_SIZES), *back.split(SIZES)]
                result[o, f, g] = max(float(part.sum()) for part in parts)
    return result


def test_frame_matches_are_what_they_are_defined_to_be():
    first, second = made(1, orientations=(0, 4)), made(2, orientations=(0, 4), frames=10)
    similar = made(3, frames=8, like=(first[1],))
    refs = [second, similar, first]
    rows = frame_matches([first[0], second[0]], [video[0] for video in refs])
    for query, row in zip((first, second), rows, strict=True):
        for ref, matches in zip(refs, row, strict=True):
            expected = plain_matches(query, ref)
            assert matches.shape == expected.shape
            np.testing.assert_allclose(matches.numpy(), expected, atol=0.02)
            alone = frame_matches([query[0]], [ref[0]])[0][0]
            torch.testing.assert_close(alone, matches, atol=0, rtol=0)
    own, alike, unlike = (float(content_scores(rows[0][k]).max()) for k in (2, 1, 0))
    assert own > alike > unlike + 0.1


def test_the_orientation_that_fits_matches_best():
    query, _, turned = made(4, orientations=(0, 4, 5))
    picks, sizes = query_frames(8), [*range(12), *range(30, 36)]
    ref, tokens, _ = made(5)
    tokens[picks[:, None], torch.tensor(sizes)] = turned[1]
    codes, scales = quantize_tokens(tokens)
    ref = CopyFeatures.from_tensors(ref.tensors() | {"codes": codes, "code_scales": scales})
    assert content_scores(frame_matches([query], [ref])[0][0]).argmax() == 2


def test_content_is_of_one_video_in_the_other_whichever_way():
    whole = torch.zeros(1, 5, 8)
    whole[0, :, 3] = 0.8  # the query is found in one frame of the reference
    part = torch.zeros(1, 5, 2)
    part[0, [0, 1], [0, 1]] = 0.6  # all of the reference is found in two frames of the query
    assert content_scores(whole).item() == pytest.approx(0.8) and content_scores(part).item() == pytest.approx(0.6)
    assert content_scores(torch.cat([whole, whole / 2])).tolist() == pytest.approx([0.8, 0.4])


@pytest.mark.parametrize("pictures", [3, 9])
def test_background_is_the_mean_of_the_best_pictures(pictures):
    tokens = F.normalize(torch.randn(2, 7, 48), dim=-1)
    others = F.normalize(torch.randn(pictures, 11, 48), dim=-1)
    best = torch.einsum("fkd,nld->fnkl", tokens, others).amax(3)
    expected = best.sort(1, descending=True).values[:, :5].mean(1)
    found = background(quantize_tokens(tokens), quantize_tokens(others))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, atol=0.01, rtol=0)


# ---- geometry


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("stretch, shift", [((1, 1), (0, 0)), ((0.5, 0.6), (0.3, 0.1)), ((2, 1.6), (-0.6, -0.2))])
def test_place_finds_stretch_and_shift_among_as_many_outliers(stretch, shift):
    stretch, shift = torch.tensor(stretch, dtype=torch.float32), torch.tensor(shift, dtype=torch.float32)
    low, high = (-shift / stretch).clamp(0, 1), ((1 - shift) / stretch).clamp(0, 1)
    query = low + (high - low) * noise(120, 2)
    ref = query * stretch + shift + (noise(120, 2, seed=1) - 0.5) * 0.02
    ref[::2] = noise(60, 2, seed=2)
    found = place(query, ref, torch.ones(120), seeded())
    torch.testing.assert_close(found.stretch, stretch, atol=0.08, rtol=0)  # any within TOLERANCE of the points will do
    torch.testing.assert_close(found.apply(query[1::2]), ref[1::2], atol=TOLERANCE, rtol=0)
    assert 0.45 < found.agreement < 0.65
    corners = found.common()
    torch.testing.assert_close(torch.stack(corners), torch.stack([low, high]), atol=0.05, rtol=0)
    again = place(query, ref, torch.ones(120), seeded())
    assert torch.equal(again.stretch, found.stretch) and torch.equal(again.shift, found.shift)
    assert again.agreement == found.agreement


def test_place_follows_the_weights():
    query = noise(40, 2)
    ref = torch.cat([query[:20] * 0.5, query[20:] * 0.5 + 0.5])
    for heavy, shift in ((slice(20), 0.0), (slice(20, 40), 0.5)):
        weights = torch.full((40,), 0.1)
        weights[heavy] = 1
        found = place(query, ref, weights, seeded())
        assert found.shift.tolist() == pytest.approx([shift, shift], abs=0.02)
        assert found.agreement == pytest.approx(1 / 1.1, abs=0.05)


@pytest.mark.parametrize("points, weight", [(0, 1.0), (3, 1.0), (20, 0.0)])
def test_place_says_nothing_of_nothing(points, weight):
    found = place(noise(points, 2), noise(points, 2), torch.full((points,), weight), seeded())
    assert found.agreement == 0 and found.stretch.tolist() == [1, 1] and found.shift.tolist() == [0, 0]


def test_place_keeps_to_possible_stretches():
    query = noise(60, 2)
    for stretch in (torch.tensor([0.2, 0.2]), torch.tensor([1.0, 0.35])):  # too small; too skewed
        found = place(query, query * stretch, torch.ones(60), seeded())
        assert bool(((found.stretch >= STRETCH[0]) & (found.stretch <= STRETCH[1])).all())
        assert found.agreement < 0.9 and math.isfinite(found.agreement)
    line = torch.stack([torch.full((30,), 0.5), noise(30)], 1)  # says nothing about the stretch along x
    assert place(line, line, torch.ones(30), seeded()).stretch.tolist() == [1, 1]
