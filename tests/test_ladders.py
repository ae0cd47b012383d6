from __future__ import annotations

import json
import math
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from video.clips import damage

from vsim_fast.encode import load_encoder
from vsim_fast.errors import CorruptVideo, OpenError, UsageError
from vsim_fast.frame_pairs.ladders import (
    DISTORTIONS,
    STRENGTHS,
    LadderStudy,
    Triple,
    Unreadable,
    distort,
    ladder_study,
    read_triples,
    spearman,
)
from vsim_fast.frame_pairs.validation import validate_metrics
from vsim_fast.image_quality import psnr, ssim
from vsim_fast.records import frames_in_memory
from vsim_fast.video import open_video
from vsim_fast.video.demo import demo_frames

pytestmark = pytest.mark.usefixtures("one_thread")  # small pictures


@pytest.fixture(scope="module")
def scene():
    """Three frames of a drifting scene with a moving disc, uint8 [180, 320, 3]."""
    return [picture[::2, ::2].copy() for picture in islice(demo_frames(), 10, 22, 4)]


def triple(scene, name="a"):
    return Triple(name, *scene)


def ladder(kind, scene):
    before, frame, after = scene
    return [distort(kind, strength, frame, before, after) for strength in DISTORTIONS[kind]]


def pixels(pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def pixel_metrics(frame, copies):
    truth, worse = pixels([frame] * len(copies)), pixels(copies)
    return [dict(psnr=p, ssim=s) for p, s in zip(psnr(truth, worse).tolist(), ssim(truth, worse).tolist(), strict=True)]


def feature_metrics(encoder):
    def measure(frame, copies):
        patches = F.normalize(encoder.encode(frames_in_memory(np.stack([frame, *copies]))).patches.float(), dim=-1)
        distances = (patches[1:] - patches[:1]).square().sum(-1) / 2  # [5, P]
        rms = distances.square().mean(1).sqrt().tolist()
        return [{**row, "patch_distance": d} for row, d in zip(pixel_metrics(frame, copies), rms, strict=True)]

    return measure


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_a_ladder_is_repeatable_and_every_step_differs_more(kind, scene):
    frame = scene[1]
    kept = [picture.copy() for picture in scene]
    copies = ladder(kind, scene)
    assert len(copies) == 5 and kind in STRENGTHS and sorted(DISTORTIONS[kind]) == list(DISTORTIONS[kind])
    assert all(copy.dtype == np.uint8 and copy.shape == frame.shape for copy in copies)
    assert all(map(np.array_equal, copies, ladder(kind, scene)))
    errors = [np.abs(copy.astype(int) - frame).mean() for copy in copies]
    assert errors[0] > 0 and all(np.diff(errors) > 0)
    assert all(map(np.array_equal, kept, scene)), "the frames are left as they were"


def test_blur_is_the_gaussian(scene):
    ndimage = pytest.importorskip("scipy.ndimage")
    for strength, copy in zip(DISTORTIONS["blur"], ladder("blur", scene), strict=True):
        exact = ndimage.gaussian_filter(scene[1].astype(float), (strength, strength, 0), mode="nearest")
        assert np.abs(copy - exact).max() <= 0.51


def test_noise_has_its_deviation():
    grey = np.full((200, 200, 3), 128, np.uint8)
    for strength in DISTORTIONS["noise"][:3]:  # stronger noise is cut at black and white
        error = distort("noise", strength, grey, grey, grey) - 128.0
        assert error.std() == pytest.approx(strength, rel=0.02) and abs(error.mean()) < 0.3


def test_shift_moves_right_and_repeats_the_edge(scene):
    frame = scene[1]
    copy = distort("shift", 16, frame, *scene[::2])
    assert np.array_equal(copy[:, 16:], frame[:, :-16])
    assert (copy[:, :16] == frame[:, :1]).all()
    assert (distort("shift", 999, frame, *scene[::2]) == frame[:, :1]).all()


def test_ghost_ends_at_the_mean_of_the_neighbours(scene):
    before, frame, after = scene
    blend = (before.astype(float) + after) / 2
    assert np.abs(distort("ghost", 1, frame, before, after) - blend).max() <= 0.5
    assert np.abs(distort("ghost", 0.4, frame, before, after) - (0.6 * frame + 0.4 * blend)).max() <= 0.51


def test_tear_shows_the_frame_before_below_a_line(scene):
    before, frame, after = scene
    copy = distort("tear", 0.3, frame, before, after)
    assert np.array_equal(copy[:126], frame[:126]) and np.array_equal(copy[126:], before[126:])


def test_block_loss_takes_whole_blocks_and_only_adds():
    rng = np.random.default_rng(3)
    frame = rng.integers(0, 256, (100, 150, 3), np.uint8)  # not whole blocks: 7 x 10
    lost = []
    for strength in DISTORTIONS["block_loss"]:
        copy = distort("block_loss", strength, frame, frame, frame)
        blocks = {(y // 16, x // 16) for y, x in np.argwhere((copy != frame).any(2)).tolist()}
        for y, x in blocks:
            part = np.s_[16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
            assert np.array_equal(copy[part], np.roll(frame, 16, 1)[part])
        assert len(blocks) == max(1, round(strength * 70))
        lost.append(blocks)
    assert all(a <= b for a, b in pairwise(lost))


def test_darken_takes_its_share_of_every_level(scene):
    frame = scene[1]
    for strength in DISTORTIONS["darken"]:
        assert np.abs(distort("darken", strength, frame, *scene[::2]) - (1 - strength) * frame).max() <= 0.501
    assert not distort("darken", 1, frame, *scene[::2]).any()


def test_distort_rejects(scene):
    before, frame, after = scene
    with pytest.raises(ValueError, match="one of blur, noise, shift, ghost, tear, block_loss, darken, got 'fog'"):
        distort("fog", 1, frame, before, after)
    with pytest.raises(ValueError, match=r"of one size, got uint8 \(180, 320, 3\), uint8 \(90, 320, 3\)"):
        distort("blur", 1, frame, before[::2], after)
    with pytest.raises(ValueError, match="float64"):
        distort("blur", 1, frame / 255, before, after)


@pytest.mark.parametrize("seed", range(8))
def test_spearman_equals_scipy(seed):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 4 + 4 * seed, (2, 12)).astype(float)  # many ties at first
    y[seed] = math.inf
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_spearman_by_hand():
    assert spearman((1, 2, 3), (5, 6, 900)) == 1
    assert spearman((1, 2, 3), (3, 2, 1)) == -1
    assert spearman((1, 2, 3, 4), (1, 1, 2, 2)) == pytest.approx(4 / math.sqrt(20))
    assert spearman((1, 2, 3), (4, 4, 4)) == 0
    assert spearman((1, 2, 3), (3, 2, math.inf)) == 0.5


def test_study_signs_ranks_and_counts(scene):
    """Measures whose ranks are known."""
    calls, told = [], []

    def measure(frame, copies):
        error = [float(np.abs(copy.astype(int) - frame).mean()) for copy in copies]
        calls.append(len(copies))
        return [dict(rising=e, psnr=-e, backwards=-e, blind=1.0) for e in error]

    class Told:
        def advance(self, stage, done, total):
            told.append((stage, done, total))

    frames = [triple(scene, "a"), triple(scene[::-1], "b")]
    study = ladder_study(frames, measure, Told())
    assert study.frames == ["a", "b"] and [one.distortion for one in study.ladders] == list(DISTORTIONS)
    assert calls == [5] * 14 and told == [("ladders", n, 14) for n in range(1, 15)]
    for one in study.ladders:
        assert one.frames == 2 and not one.left_out and one.strengths == list(DISTORTIONS[one.distortion])
        assert {name: (m.mean, m.least) for name, m in one.metrics.items()} == {
            "rising": (1, 1), "psnr": (1, 1), "backwards": (-1, -1), "blind": (0, 0)
        }  # fmt: skip
        assert all(np.diff(one.metrics["rising"].medians) > 0)
        assert 0.5 < one.metrics["rising"].pooled <= 1
    assert LadderStudy.model_validate_json(study.model_dump_json()) == study
    assert json.loads(study.model_dump_json())["schema_version"] == 1


def test_the_least_frame_is_named(scene):
    def measure(frame, copies):
        by_step = range(5) if frame is scene[1] else (0, 1, 2, 4, 3)
        return [{"steps": step} for step in by_step]

    study = ladder_study([triple(scene, "good"), Triple("bad", scene[0], scene[2], scene[1])], measure)
    for one in study.ladders:
        steps = one.metrics["steps"]
        assert (steps.least, steps.least_frame, steps.mean) == (pytest.approx(0.9), "bad", pytest.approx(0.95))
        assert steps.medians == [0, 1, 2, 3.5, 3.5]


def test_a_frame_that_stays_as_it_is_gets_no_rank(scene):
    still = Triple("still", *[scene[1]] * 3)
    study = ladder_study([still, triple(scene, "moving")], pixel_metrics)
    by_kind = {one.distortion: one for one in study.ladders}
    for kind in ("ghost", "tear"):
        assert (by_kind[kind].frames, by_kind[kind].left_out) == (1, ["still"])
    assert all(by_kind[kind].frames == 2 for kind in ("blur", "noise", "shift", "block_loss", "darken"))
    alone = {one.distortion: one for one in ladder_study([still], pixel_metrics).ladders}
    assert alone["ghost"].metrics == {} and alone["ghost"].frames == 0 and alone["blur"].metrics["psnr"].mean == 1


def test_steps_without_effect_share_a_rank(scene):
    """Only the stronger tears reach what has moved; until then PSNR is infinite, or None as a table shows it."""
    before, frame, after = scene
    partly = np.concatenate((before[:130], frame[130:]))  # at rest below
    for infinite in (math.inf, None):

        def measure(frame, copies, infinite=infinite):
            return [{"psnr": infinite if math.isinf(m["psnr"]) else m["psnr"]} for m in pixel_metrics(frame, copies)]

        study = ladder_study([Triple("partly", partly, frame, after)], measure)
        tear = study.ladders[list(DISTORTIONS).index("tear")].metrics["psnr"]
        assert tear.medians[:2] == [None, None] and tear.medians[2] > tear.medians[3] > tear.medians[4]
        assert tear.mean == tear.pooled == pytest.approx(spearman(range(5), (0, 0, 1, 2, 3)))


def test_a_metric_that_a_frame_does_not_have_is_absent(scene):
    def measure(frame, copies):
        small = frame is scene[1]
        return [dict(psnr=None, ssim=None if small else 1 / step, lpips=None) for step in range(1, 6)]

    found = ladder_study([triple(scene, "small"), Triple("large", scene[0], scene[2], scene[1])], measure)
    for one in found.ladders:
        assert set(one.metrics) == {"psnr", "ssim"} and one.frames == 2
        ssim, psnr = one.metrics["ssim"], one.metrics["psnr"]
        assert (ssim.frames, ssim.mean, ssim.least_frame, ssim.pooled, ssim.medians[0]) == (1, 1, "large", 1, 1)
        assert (psnr.frames, psnr.mean, psnr.medians) == (2, 0, [None] * 5), "infinite"
    alone = ladder_study([triple(scene, "small")], measure)
    assert all(set(one.metrics) == {"psnr"} for one in alone.ladders)


def test_unreadable_frames_are_skipped_by_name(scene):
    bad = [Unreadable(name, CorruptVideo("v.mp4", reason)) for name, reason in (("x", "torn"), ("y", "gone"))]
    study = ladder_study([bad[0], triple(scene, "a"), bad[1]], pixel_metrics)
    assert study.frames == ["a"] and all(one.frames == 1 for one in study.ladders)
    assert [(one.name, one.reason) for one in study.skipped] == [("x", "v.mp4: torn"), ("y", "v.mp4: gone")]
    assert LadderStudy.model_validate_json(study.model_dump_json()) == study
    with pytest.raises(CorruptVideo, match="torn"):
        ladder_study(bad, pixel_metrics)


def test_study_rejects(scene):
    with pytest.raises(UsageError, match="at least one frame"):
        ladder_study([], pixel_metrics)
    with pytest.raises(ValueError, match="a, blur: m must be a number, got"):
        ladder_study([triple(scene)], lambda frame, copies: [{"m": math.nan}] * 5)


def test_pixels_and_builtin_rank_every_ladder(scene):
    encoder = load_encoder("builtin", device="cpu", precision="float32", image_size=224)
    study = ladder_study([triple(scene)], feature_metrics(encoder))
    ranks = {(one.distortion, name): m.mean for one in study.ladders for name, m in one.metrics.items()}
    assert len(ranks) == 7 * 3
    assert {key: rank for key, rank in ranks.items() if rank < 0.99} == {}


def test_validation_encodes_a_frame_once(tmp_path, scene):
    """The copies of every ladder are still held against the frame they were made from."""
    encoder = load_encoder("builtin", device="cpu", precision="float32", image_size=56)
    encoded, pixels = [], encoder.pixels
    encoder.pixels = lambda frames: encoded.append(len(frames)) or pixels(frames)
    before, frame, after = scene
    partly = np.concatenate((before[:130], frame[130:]))  # two tears change nothing
    save(tmp_path / "a", I0=partly, It=frame, I1=after)
    save(tmp_path / "b", I0=frame, It=after, I1=before)
    found = validate_metrics(tmp_path, encoder, metrics=())
    assert encoded == [1, 5, 5, 5, 5, 3, 5, 5, 1, *[5] * 7] and found.run.status == "complete"
    for one in found.study.ladders:
        ranks = []
        for triple in read_triples(tmp_path):
            copies = [distort(one.distortion, s, triple.frame, triple.before, triple.after) for s in one.strengths]
            rows = feature_metrics(encoder)(triple.frame, copies)
            ranks.append(spearman(one.strengths, [row["patch_distance"] for row in rows]))
        assert one.metrics["patch_distance"].mean == pytest.approx(np.mean(ranks))
    alone = validate_metrics(tmp_path / "a", encoder, metrics=()).study
    medians = {one.distortion: one.metrics["patch_distance"].medians for one in alone.ladders}
    assert medians["tear"][:2] == [0, 0] and medians["tear"][2] > 0


def test_validation_leaves_out_what_cannot_be_read(tmp_path, scene, clip):
    options = dict(metrics=("psnr", "ssim"), image_size=56, device="cpu", output_dir=tmp_path / "out")
    small = {f"im{n}": picture[:10, :10] for n, picture in enumerate(scene)}
    save(tmp_path / "in" / "1", **small)
    save(tmp_path / "in" / "2", I0=scene[0], It=scene[1])
    save(tmp_path / "in" / "3", **small)
    (tmp_path / "in" / "3" / "im1.png").write_bytes(b"no image")
    found = validate_metrics(tmp_path / "in", **options)
    assert found.study.frames == ["1"] and found.run.status == "partial"
    reasons = {one.name: one.reason for one in found.study.skipped}
    assert "needs at least 3 frames, got 2" in reasons["2"] and "im1.png" in reasons["3"]
    assert "ssim: too small for it are 1 of 1 frames" in found.run.notes
    assert not any("ssim" in one.metrics for one in found.study.ladders)
    written = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert written["run"]["status"] == "partial" and [one["name"] for one in written["run"]["skipped"]] == ["2", "3"]
    with pytest.raises(UsageError, match="needs at least 3 frames"):
        validate_metrics(tmp_path / "in" / "2", **options)


def test_a_damaged_stretch_costs_its_frames(tmp_path, clip):
    triples = list(read_triples(damage(clip, tmp_path / "damaged.mp4", 72), 4))
    bad = [one for one in triples if isinstance(one, Unreadable)]
    assert [one.name for one in bad] == ["damaged.mp4, frame 72"] and isinstance(bad[0].error, CorruptVideo)
    assert [one.name for one in triples if isinstance(one, Triple)] == [
        f"damaged.mp4, frame {middle}" for middle in (24, 119, 167)
    ]


@pytest.mark.real_media
def test_ladders_of_real_triplets(media):
    """Patches at the same place rank every distortion of every frame, as pixels do."""
    encoder = load_encoder("builtin", device="cpu", precision="float32", image_size=518)
    triples = read_triples(media / "vfi")
    assert len(triples) == 6
    study = ladder_study(triples, feature_metrics(encoder))
    assert study.frames == ["bunny_pan", "city_pan", "dog", "highway", "juggle", "walk_path"]
    ranks = {(one.distortion, name): m.least for one in study.ladders for name, m in one.metrics.items()}
    assert {key: rank for key, rank in ranks.items() if rank < 0.95} == {}


def save(folder, **pictures):
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png")


def flat(level, size=(20, 30)):
    return np.full((*size, 3), level, np.uint8)


def levels(triple):
    return [int(picture[0, 0, 0]) for picture in triple[1:]]


def test_triples_of_a_folder_of_folders(tmp_path):
    save(tmp_path / "1", I0=flat(0), I1=flat(2), It=flat(1), flow=flat(99, (5, 5)))  # of another size, not asked for
    save(tmp_path / "2", im1=flat(3), im2=flat(4), im3=flat(5))
    save(tmp_path / "3", shot9=flat(6), shot10=flat(7), shot11=flat(8))
    save(tmp_path / "4", **{f"im{i}": flat(10 + i) for i in range(1, 8)})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.txt").write_text("no image")
    triples = read_triples(tmp_path)
    assert len(triples) == 4
    for _ in range(2):  # it can be read again
        assert [(t.name, levels(t)) for t in triples] == [
            ("1", [0, 1, 2]), ("2", [3, 4, 5]), ("3", [6, 7, 8]), ("4", [13, 14, 15])
        ]  # fmt: skip
    assert [t.name for t in read_triples(tmp_path, 2)] == ["2", "4"]
    assert [(t.name, levels(t)) for t in read_triples(tmp_path / "1")] == [("1", [0, 1, 2])]


def test_triples_of_consecutive_images(tmp_path):
    save(tmp_path / "frames", **{f"{i}": flat(i) for i in range(12)})
    assert [levels(t) for t in read_triples(tmp_path / "frames", 100)] == [[i - 1, i, i + 1] for i in range(1, 11)]
    few = list(read_triples(tmp_path / "frames", 2))
    assert [(t.name, levels(t)) for t in few] == [("frames, frame 3", [2, 3, 4]), ("frames, frame 8", [7, 8, 9])]


def test_triples_of_a_video_are_its_frames(clip):
    triples = list(read_triples(clip, 4))
    assert [t.name for t in triples] == [f"demo.mp4, frame {i}" for i in (24, 72, 119, 167)]
    wanted = {middle + d: picture for middle, t in zip((24, 72, 119, 167), triples, strict=True)
              for d, picture in zip((-1, 0, 1), t[1:], strict=True)}  # fmt: skip
    with open_video(clip, output="rgb") as reader:
        for batch in reader:
            for index, picture in zip(batch.index.tolist(), batch.rgb.numpy(), strict=True):
                if index in wanted:
                    assert np.array_equal(wanted.pop(index), picture)
    assert not wanted


@pytest.mark.real_media
@pytest.mark.parametrize(
    ("name", "shape"),
    [("hangar_rotated.mp4", (480, 270, 3)), ("face_rotate_reflect.mp4", (1080, 720, 3)),
     ("skyline_vfr_slowmo.mp4", (720, 1280, 3))],
)  # fmt: skip
def test_triples_are_upright(media, name, shape):
    triples = list(read_triples(media / "videos" / name, 2))
    assert len(triples) == 2
    assert {picture.shape for t in triples for picture in t[1:]} == {shape}
    assert all(picture.flags.c_contiguous for t in triples for picture in t[1:])


def test_read_triples_rejects(tmp_path, clip):
    with pytest.raises(UsageError, match="count must be at least 1, got 0"):
        read_triples(clip, 0)
    with pytest.raises(OpenError, match="No such file"):
        read_triples(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OpenError, match="neither images nor folders of images"):
        read_triples(tmp_path / "empty")
    save(tmp_path / "two", a=flat(0), b=flat(1))
    with pytest.raises(UsageError, match="needs at least 3 frames, got 2"):
        read_triples(tmp_path / "two")
    save(tmp_path / "sizes" / "odd", I0=flat(0), It=flat(1, (20, 31)), I1=flat(2))
    (odd,) = read_triples(tmp_path / "sizes")
    assert odd.name == "odd" and "one size, got I0.png 30x20, It.png 31x20, I1.png 30x20" in str(odd.error)
