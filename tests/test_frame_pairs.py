"""Batches of image pairs: equal to one by one, each image encoded once, bad items named and the rest done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vsim_fast.encode import load_encoder
from vsim_fast.errors import EncoderError, OpenError, OutputError, UsageError, WorkerDied
from vsim_fast.frame_pairs import (
    Failure,
    Item,
    compute_cosine_distance,
    load_model,
    pair_images,
    pick_device,
    read_config,
    run_visualization,
)
from vsim_fast.frame_pairs import images as module
from vsim_fast.frame_pairs.finishing import Finishers
from vsim_fast.frame_pairs.images import windows
from vsim_fast.image_quality import psnr, ssim
from vsim_fast.pairs import correspondence, cosine_distance, mismatch, pooled_patch_distance
from vsim_fast.records import frames_in_memory
from vsim_fast.video import read_image

SIDE = 56  # 4×4 patches
PICTURES = {
    "similarity_A2B.png", "similarity_B2A.png", "mismatch_A.png", "mismatch_B.png", "vector_field.png",
    "pca_features.png", "summary.json",
}  # fmt: skip
ORIGINAL_KEYS = ["image_a", "image_b", "cosine_similarity", "cosine_distance", "embedding_dim"]
ORIGINAL_SUMMARY = {
    "image_a", "image_b", "grid_size", "num_patches", "embedding_dim", "mean_similarity_a2b", "mean_similarity_b2a",
    "mean_mismatch_a", "mean_mismatch_b", "output_dir",
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("builtin", device="cpu", image_size=SIDE)


def picture(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """uint8 [H, W, 3]: blobs of colour."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path) -> Path:
    for n in range(5):
        Image.fromarray(picture(n)).save(tmp_path / f"{n}.png")
    return tmp_path


def pairs_of(folder: Path, *numbers: tuple[int, ...]) -> list[list[str]]:
    return [[str(folder / f"{n}.png") for n in pair] for pair in numbers]


def test_pair_is_what_its_parts_say(folder, encoder):
    (result,) = pair_images(pairs_of(folder, (0, 1)), encoder).results
    a, b = (encoder.encode(frames_in_memory(read_image(folder / f"{n}.png")[None])) for n in (0, 1))
    assert result.cosine_distance == pytest.approx(cosine_distance(a.patches.mean(1), b.patches.mean(1)).item())
    local = pooled_patch_distance(cosine_distance(a.patches, b.patches)).item()
    assert result.patch_distance == pytest.approx(local, abs=1e-6)
    x, y = (torch.from_numpy(picture(n)).movedim(-1, 0)[None] for n in (0, 1))
    assert result.psnr == pytest.approx(psnr(x, y).item(), abs=1e-3)
    assert result.ssim == pytest.approx(ssim(x, y).item(), abs=1e-5)
    assert result.cosine_similarity == 1 - result.cosine_distance and result.embedding_dim == encoder.dim


@pytest.mark.parametrize("spec", ["builtin", "timm:vit_tiny_patch16_224@random"])
def test_distances_are_symmetric_and_zero_to_themselves(folder, spec):
    encoder = load_encoder(spec, device="cpu", precision="float32", image_size=112)
    Image.fromarray(picture(0)).save(folder / "copy.png")
    items = [*pairs_of(folder, (0, 1), (1, 0), (2, 2)), [str(folder / "0.png"), str(folder / "copy.png")]]
    there, back, same, copy = pair_images(items, encoder).results
    for name in ("cosine_distance", "patch_distance", "psnr", "ssim"):
        assert getattr(there, name) == pytest.approx(getattr(back, name), abs=1e-6)
    assert (same.cosine_distance, same.patch_distance, same.psnr, same.ssim) == (0, 0, None, 1)
    assert copy.cosine_distance <= 1e-6 and copy.patch_distance <= 1e-3 and copy.psnr is None


def test_every_image_is_encoded_once(folder, encoder, monkeypatch):
    seen = []
    forward = type(encoder).forward

    def counted(self, pixels):
        seen.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(type(encoder), "forward", counted)
    run = pair_images(pairs_of(folder, (0, 1), (1, 2), (2, 3), (3, 4), (0, 4)), encoder, metrics=()).run
    assert sum(seen) == run.images == 5 and run.compared == 5


@pytest.mark.parametrize("many", [2, 100], ids=["processes", "threads"])
def test_batch_equals_one_by_one(folder, encoder, tmp_path, monkeypatch, many):
    monkeypatch.setattr(module, "MANY", many)
    items = pairs_of(folder, (0, 1), (1, 2), (4, 0), (3, 3))
    options = dict(visualize=True)
    batch = pair_images(items, encoder, output_dir=tmp_path / "all", **options)
    assert [result.number for result in batch.results] == [1, 2, 3, 4]
    for number, item in enumerate(items, 1):
        alone = pair_images([item], encoder, output_dir=tmp_path / str(number), **options).results[0]
        together = batch.results[number - 1]
        for name in ("cosine_distance", "patch_distance", "mean_mismatch_a", "mutual_matches", "psnr", "ssim"):
            assert getattr(together, name) == pytest.approx(getattr(alone, name), abs=1e-5), name
        here, there = tmp_path / "all" / f"pair_{number:03d}", tmp_path / str(number) / "pair_001"
        assert {path.name for path in here.iterdir()} == PICTURES == {path.name for path in there.iterdir()}
    again = tmp_path / "again"
    pair_images(items, encoder, output_dir=again, **options)
    for path in (tmp_path / "all").rglob("*.png"):
        assert path.read_bytes() == (again / path.relative_to(tmp_path / "all")).read_bytes()


def test_rounds_give_the_same(folder, encoder, monkeypatch):
    items = pairs_of(folder, (0, 1), (2, 3), (0, 4), (1, 3))
    whole = pair_images(items, encoder)
    monkeypatch.setattr(module, "_images_at_a_time", lambda encoder: 2)
    rounds = pair_images(items, encoder)
    assert rounds.run.images == 8 and whole.run.images == 5
    for one, other in zip(whole.results, rounds.results, strict=True):
        assert one.cosine_distance == pytest.approx(other.cosine_distance, abs=1e-6)


def test_windows_hold_no_more_images_than_fit():
    items = [Item(n, images) for n, images in enumerate(["ab", "bc", "ca", "de", "abc", "fa"], 1)]
    cut = list(windows([Item(item.number, tuple(item.images)) for item in items], 3))
    assert [[item.number for item in window] for window in cut] == [[1, 2, 3], [4], [5], [6]]
    assert len(list(windows([Item(1, ("a", "b", "c"))], 2))) == 1  # an item always fits


def test_triplets_sum_both_neighbours(folder, encoder, tmp_path):
    items = pairs_of(folder, (0, 1, 2), (0, 1), (1, 2), (0, 2))
    batch = pair_images(items, encoder, output_dir=tmp_path / "out", visualize=True)
    triplet, first, second, ends = batch.results
    assert triplet.cosine_distance == pytest.approx(first.cosine_distance + second.cosine_distance)
    assert triplet.patch_distance == pytest.approx(first.patch_distance + second.patch_distance)
    mean = (first.patch_distance + second.patch_distance) / 2
    assert triplet.stands_out == pytest.approx(mean - ends.patch_distance)
    folders = tmp_path / "out" / "pair_001"
    assert {path.name for path in folders.iterdir()} == {"I0_It", "It_I1", "I0_I1"}
    assert {path.name for path in (folders / "I0_It").iterdir()} == PICTURES


def test_results_file_is_the_originals(folder, encoder, tmp_path):
    items = [Item(1, tuple(pairs_of(folder, (0, 1))[0]), label={"any": 1}), *pairs_of(folder, (1, 2))]
    items[1] = Item(2, tuple(items[1]))
    batch = pair_images(items, encoder, output_dir=tmp_path / "out", visualize=True, pca=False)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == batch.as_dict()["results"]
    assert list(written[0])[:5] == ORIGINAL_KEYS and set(written[0]) >= ORIGINAL_SUMMARY
    assert written[0]["label"] == {"any": 1} and "label" not in written[1]
    assert written[0]["image_a"] == "0.png" and written[0]["output_dir"].endswith("pair_001")
    summary = json.loads((tmp_path / "out" / "pair_001" / "summary.json").read_text())
    assert set(summary) >= ORIGINAL_SUMMARY and summary["psnr"] == written[0]["psnr"]
    assert not (tmp_path / "out" / "pair_001" / "pca_features.png").exists()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "complete"


def test_compat_mismatch_is_relative(folder, encoder, tmp_path):
    items = pairs_of(folder, (0, 0), (0, 1))
    plain = pair_images(items, encoder, output_dir=tmp_path / "a", visualize=True).results
    compat = pair_images(items, encoder, output_dir=tmp_path / "b", visualize=True, compat=True).results
    assert plain[0].mean_mismatch_a <= 1e-6
    a, b = (encoder.encode(frames_in_memory(read_image(folder / f"{n}.png")[None])).patches[0] for n in (0, 1))
    expected = mismatch(correspondence(a, b), compat=True)[0].mean().item()
    assert compat[1].mean_mismatch_a == pytest.approx(expected, abs=1e-5)


def test_bad_items_are_named_and_the_rest_is_done(folder, encoder, tmp_path):
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"no picture")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:200])
    (folder / "frames").mkdir()
    for n in (0, 1):
        Image.fromarray(picture(n)).save(folder / "frames" / f"{n}.png")
    bad = ["missing.png", "empty.png", "text.png", "cut.png", "frames"]
    items = [[str(folder / name), str(folder / "0.png")] for name in bad] + pairs_of(folder, (0, 1), (2, 3))
    batch = pair_images(items, encoder, output_dir=tmp_path / "out")
    assert [result.number for result in batch.results] == [6, 7] and batch.run.status == "partial"
    assert [failure.number for failure in batch.run.failed] == [1, 2, 3, 4, 5]
    for failure, name, words in zip(
        batch.run.failed, bad,
        ("No such file", "empty", "no image", "does not decode", "must be an image, is a folder"),
        strict=True,
    ):  # fmt: skip
        assert name in failure.reason and words in failure.reason
    nothing = pair_images([items[0]], encoder)
    assert nothing.run.status == "nothing" and nothing.run.mean_cosine_distance is None


def test_images_of_all_kinds(folder, encoder):
    rgb = picture(0)
    Image.fromarray(rgb).convert("L").save(folder / "grey.png")
    Image.fromarray(rgb).convert("RGBA").save(folder / "opaque.png")
    clear = Image.fromarray(rgb).convert("RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))))
    clear.save(folder / "clear.png")
    grey = np.asarray(Image.fromarray(rgb).convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "deep.png")
    turned = Image.fromarray(np.rot90(rgb).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(folder / "turned.jpg", quality=98, subsampling=0, exif=exif)
    Image.fromarray(rgb).convert("P").save(folder / "palette.png")
    names = ["opaque.png", "clear.png", "turned.jpg", "palette.png"]
    batch = pair_images([[str(folder / "0.png"), str(folder / name)] for name in names], encoder)
    opaque, clear, turned, palette = batch.results
    assert opaque.cosine_distance <= 1e-6 and opaque.psnr is None and not opaque.notes
    assert clear.cosine_distance <= 1e-6 and "alpha channel" in clear.notes[0]
    assert turned.psnr > 35 and not turned.notes  # upright: the size is that of the other
    assert palette.psnr > 20
    deep = pair_images([[str(folder / "grey.png"), str(folder / "deep.png")]], encoder).results[0]
    assert deep.psnr is None and "16 bits" in deep.notes[0]


def test_sizes_that_differ_are_said(folder, encoder):
    Image.fromarray(picture(0, (96, 128))).save(folder / "large.png")
    result = pair_images([[str(folder / "0.png"), str(folder / "large.png")]], encoder).results[0]
    assert "64x48, 128x96" in result.notes[0] and result.psnr > 20 and result.cosine_distance < 0.1


def test_tiny_images_have_no_ssim(folder, encoder):
    for name in "ab":
        Image.fromarray(picture(ord(name), (8, 9))).save(folder / f"{name}.png")
    result = pair_images([[str(folder / "a.png"), str(folder / "b.png")]], encoder).results[0]
    assert result.ssim is None and result.psnr > 0


def test_featureless_images_are_noted(folder, encoder):
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(folder / "black.png")
    result = pair_images([[str(folder / "0.png"), str(folder / "black.png")]], encoder).results[0]
    assert result.notes == ["black.png: black or without texture: its distances mean little"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": ["mse"]}, "metrics must be of psnr, ssim, lpips, got 'mse'"),
        ({"visualize": True}, "visualize needs an output_dir"),
        ({"arrow_stride": 0}, "arrow_stride must be a whole number of 1 or more, got 0"),
    ],
)
def test_arguments_are_checked(folder, encoder, options, words):
    with pytest.raises(UsageError, match=words):
        pair_images(pairs_of(folder, (0, 1)), encoder, **options)


def test_items_are_checked(encoder):
    with pytest.raises(UsageError, match="no pairs"):
        pair_images([], encoder)
    with pytest.raises(UsageError, match="two or three paths"):
        pair_images(["ab"], encoder)
    with pytest.raises(UsageError, match="must be a multiple of 14, at least 56, got 60"):
        pair_images([("a.png", "b.png")], "builtin", image_size=60, device="cpu")


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("wrap", [lambda pairs: pairs, lambda pairs: {"pairs": pairs}], ids=["list", "object"])
def test_config_spellings(tmp_path, wrap):
    (tmp_path / "here.png").touch()
    pairs = [
        {"image_a": "here.png", "image_b": "/y.png"},
        {"ref_img": "x.png", "dist_img": "y.png", "label": "mild"},
        {"image_0": "a", "image_t": "b", "image_1": "c"},
        {"image_a": "x.png", "label": 3},
        "x.png",
        {"image_a": 1, "image_b": 2},
        None,
    ]
    items = read_config(write(tmp_path / "pairs.json", wrap(pairs)))
    assert items[0] == Item(1, (str(tmp_path / "here.png"), "/y.png"))  # beside the file
    assert items[1] == Item(2, (str(tmp_path / "x.png"), str(tmp_path / "y.png")), "mild")  # all of one file alike
    assert [Path(image).name for image in items[2].images] == ["a", "b", "c"]
    assert [type(item) for item in items[3:]] == [Failure] * 4 and items[3].label == 3
    assert "must have image_a and image_b (or ref_img and dist_img), got" in items[3].reason


def test_config_items_that_no_output_could_hold(tmp_path, monkeypatch):
    deep: object = 1
    for _ in range(200):
        deep = [deep]
    pairs = [
        {"image_a": "x.png", "image_b": "y.png", "label": deep},
        {"image_a": "x" * 5000, "image_b": "y.png"},
        {"image_a": "x.png", "image_b": "y.png", "label": {"nested": [1, {"a": None}]}},
    ]
    failed, long, item = read_config(write(tmp_path / "pairs.json", pairs))
    assert failed.reason == "label must not be nested deeper than 32 levels" and item.label == pairs[2]["label"]
    assert pair_images([long], load_encoder("builtin", device="cpu", image_size=SIDE)).run.status == "nothing"


def test_config_beside_other_files_of_the_same_names(tmp_path, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").touch()
    (tmp_path / "there" / "b.png").touch()
    monkeypatch.chdir(tmp_path / "here")
    (item,) = read_config(write(tmp_path / "there" / "pairs.json", [{"image_a": "a.png", "image_b": "b.png"}]))
    assert item.images == tuple(str(tmp_path / "there" / name) for name in ("a.png", "b.png"))
    (tmp_path / "here" / "b.png").touch()
    (item,) = read_config(tmp_path / "there" / "pairs.json")
    assert item.images == ("a.png", "b.png")


def test_what_cannot_be_finished_keeps_its_distances(folder, encoder, tmp_path, monkeypatch):
    def refuse(*_):
        raise OutputError("the disk is full")

    monkeypatch.setattr(module.Finishers, "draw", refuse)
    batch = pair_images(pairs_of(folder, (0, 1)), encoder, output_dir=tmp_path / "out", visualize=True)
    assert batch.run.status == "partial" and not batch.run.failed and batch.results[0].cosine_distance > 0
    assert batch.results[0].notes == ["no pictures: the disk is full"] and batch.results[0].output_dir is None


def test_the_output_folder_is_tried_before_the_work(folder, encoder, monkeypatch):
    monkeypatch.setattr(module, "stream_videos", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(OutputError, match=r"0\.png"):
        pair_images(pairs_of(folder, (0, 1)), encoder, output_dir=folder / "0.png")


def test_an_interrupt_keeps_what_is_compared(folder, encoder, tmp_path, monkeypatch):
    class Interrupting:
        def advance(self, stage, done, total):
            if done >= 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        items = pairs_of(folder, (0, 1), (2, 3), (3, 4))
        monkeypatch.setattr(module, "_images_at_a_time", lambda encoder: 2)
        pair_images(items, encoder, output_dir=tmp_path / "out", progress=Interrupting())
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["number"] for one in written] == [1]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "not JSON"),
        ("[]", "holds no pairs"),
        ('{"pairs": []}', "holds no pairs"),
        ("{}", "must be a JSON list of pairs"),
        ("3", "must be a JSON list of pairs"),
        ("[" * 100_000, "not JSON"),
        ('[{"label": NaN}]', "NaN is no JSON number"),
        (None, "cannot be read"),
    ],
)
def test_config_that_is_none(tmp_path, content, words):
    path = tmp_path / "pairs.json"
    if content is not None:
        write(path, content)
    with pytest.raises(UsageError, match=words) as caught:
        read_config(path)
    assert "pairs.json" in str(caught.value)


def test_a_finisher_that_dies_costs_its_pair(tmp_path, folder, encoder, monkeypatch):
    drawn = []
    monkeypatch.setattr(module.Finishers, "draw", lambda self, folder: drawn.append(folder))
    pair_images(pairs_of(folder, (0, 1)), encoder, output_dir=tmp_path / "out", visualize=True)
    monkeypatch.undo()
    with Finishers(1, processes=True) as finishers:
        finishers.submit(finishers.draw, drawn[0]).result()
        process = finishers._idle.queue[-1][0]
        process.kill()
        process.wait()
        with pytest.raises(WorkerDied, match="ended with exit code -9"):
            finishers.submit(finishers.draw, drawn[0]).result()
        finishers.submit(finishers.draw, drawn[0]).result()
        with pytest.raises(OutputError, match=r"0\.png"):  # not a folder
            finishers.submit(finishers.draw, drawn[0]._replace(path=str(folder / "0.png"))).result()


# ── the original's calls ──


def test_original_calls(folder, tmp_path):
    model = load_model(model_name="builtin", device="cpu")
    a, b = folder / "0.png", folder / "1.png"
    found = compute_cosine_distance(model, a, b, torch.device("cpu"), resize=SIDE)
    assert list(found) == ORIGINAL_KEYS
    assert found["cosine_distance"] == pytest.approx(
        pair_images([(a, b)], model.encoder(SIDE)).results[0].cosine_distance, abs=1e-6
    )
    summary = run_visualization(model, str(a), str(b), str(tmp_path / "out"), resize=SIDE, arrow_stride=2)
    assert set(summary) >= ORIGINAL_SUMMARY and {path.name for path in (tmp_path / "out").iterdir()} == PICTURES
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert model.encoder(SIDE) is model.encoder(SIDE)
    with pytest.raises(OpenError, match="missing"):
        compute_cosine_distance(model, a, folder / "missing.png", resize=SIDE)
    with pytest.raises(EncoderError, match="no such"):
        load_model(folder / "missing.pt", device="cpu")


def test_pick_device():
    assert pick_device("cpu") == torch.device("cpu") and pick_device("cuda:1") == torch.device("cuda:1")
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device().type == expected


@pytest.mark.real_media
def test_the_true_middle_frame_is_nearest(media):
    """Of distances to both neighbours: the truth beats its blurred, noisy and shifted copies."""
    from vsim_fast.frame_pairs.ladders import distort

    encoder = load_encoder("builtin", device="cpu", image_size=518)
    wins = {"blur": 0, "noise": 0, "shift": 0}
    ghosts = {}
    for name in ("bunny_pan", "city_pan", "dog", "highway", "juggle", "walk_path"):
        before, frame, after = (read_image(media / "vfi" / name / f"{n}.png") for n in ("I0", "It", "I1"))
        made = {
            kind: distort(kind, strength, frame, before, after)
            for kind, strength in {"blur": 3, "noise": 25, "shift": 8, "ghost": 1}.items()
        }
        made["by one"] = distort("shift", 1, frame, before, after)
        stacked = np.stack([before, after, frame, *made.values()])
        tokens = encoder.forward_in_batches(encoder.pixels(frames_in_memory(stacked))).patches
        pooled = tokens.mean(1)
        sums = [(cosine_distance(pooled[0], p) + cosine_distance(pooled[1], p)).item() for p in pooled[2:]]
        for kind, value in zip(list(made)[:3], sums[1:4], strict=True):
            wins[kind] += value > sums[0]
        patch = pooled_patch_distance(cosine_distance(tokens[2:3], tokens[6:]))
        ghosts[name] = (patch[0] / patch[1]).item()
    assert min(wins.values()) >= 5, wins
    # the blend is near to both neighbours; against the truth it shows, wherever it is under 30 dB
    assert min(ghosts[name] for name in ("walk_path", "dog", "juggle")) > 1, ghosts
