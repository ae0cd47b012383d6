"""`vsim pair`: the original tool's options, exit codes, one JSON object."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from vsim_fast.cli import main

SMALL = ("--resize", "56", "--device", "cpu")


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["pair", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for n in range(4):
        shifted = np.roll(coarse, n, axis=1)
        Image.fromarray(shifted).resize((64, 48), Image.Resampling.BICUBIC).save(tmp_path / f"{n}.png")
    return tmp_path


def test_two_images(capsys, images):
    out = images / "out"
    code, stdout, _ = run(capsys, images / "0.png", images / "1.png", *SMALL, "--out", out)
    assert code == 0 and "cosine distance" in stdout and "1 of 1 compared (2 images)" in stdout
    assert "encoder builtin" in stdout and {path.name for path in out.iterdir()} == {"results.json", "summary.json"}


def test_the_originals_options_verbatim(capsys, images):
    out = images / "out"
    arguments = ["--image-a", images / "0.png", "--image_b", images / "1.png", "--visualize", "--out", out]
    options = ["--model-name", "vit_tiny_patch16_224@random", "--resize", "64", "--arrow_stride", "2", "--no-pca"]
    code, stdout, _ = run(capsys, *arguments, *options, "--device", "cpu", "--json")
    found = json.loads(stdout)
    assert code == 0 and found["results"] == json.loads((out / "results.json").read_text())
    assert found["run"]["encoder"]["spec"] == "timm:vit_tiny_patch16_224@random"
    assert found["run"] == json.loads((out / "summary.json").read_text())
    names = {path.name for path in (out / "pair_001").iterdir()}
    assert "vector_field.png" in names and "pca_features.png" not in names
    assert found["results"][0]["grid_size"] == 4


def test_a_merged_checkpoint(capsys, images):
    torch.manual_seed(0)
    base = timm.create_model("vit_small_patch14_dinov2", num_classes=0, depth=1, img_size=56)
    torch.save({"base": base.state_dict()}, images / "merged.pt")
    pair = [images / "0.png", images / "1.png", *SMALL, "--out", images / "out", "--json"]
    code, stdout, _ = run(capsys, *pair, "--checkpoint", images / "merged.pt", "--precision", "float32")
    found = json.loads(stdout)
    checkpoint = found["run"]["encoder"]["checkpoint"]
    assert "vit_small_patch14_dinov2, 20 of 20 tensors" in found["run"]["notes"][0]
    assert code == 0 and checkpoint["matched"] == checkpoint["total"] == len(base.state_dict())
    named = ["--checkpoint", images / "merged.pt", "--model-name"]
    assert run(capsys, *pair, *named, "vit_small_patch14_dinov2.lvd142m")[0] == 0
    code, stdout, stderr = run(capsys, *pair, *named, "vit_base_patch14_dinov2")
    assert code == 1 and "holds a vit_small_patch14_dinov2, not the vit_base_patch14_dinov2" in stderr
    assert json.loads(stdout)["error"]["type"] == "EncoderError"


def test_a_config_with_bad_items(capsys, images):
    pairs = [
        {"image_a": "0.png", "image_b": "1.png", "label": "first"},
        {"ref_img": "0.png"},
        {"ref_img": "2.png", "dist_img": "missing.png"},
        {"image_0": "0.png", "image_t": "1.png", "image_1": "2.png"},
    ]
    (images / "pairs.json").write_text(json.dumps({"pairs": pairs}))
    arguments = ["--config", images / "pairs.json", *SMALL, "--out", images / "out"]
    code, stdout, stderr = run(capsys, *arguments, "--json")
    found = json.loads(stdout)
    assert code == 3 and [one["number"] for one in found["results"]] == [1, 4]
    assert found["results"][0]["label"] == "first" and found["results"][1]["image_t"] == "1.png"
    assert [one["number"] for one in found["run"]["failed"]] == [2, 3]
    code, stdout, stderr = run(capsys, *arguments)
    assert code == 3 and "not compared: pair 2: must have image_a" in stderr and "missing.png" in stderr
    assert "2 of 4 compared" in stdout and "stands out" in stdout


def test_nothing_compared_is_exit_code_4(capsys, images):
    code, stdout, stderr = run(capsys, images / "0.png", images / "no.png", *SMALL, "--out", images / "out")
    assert code == 4 and "No such file" in stderr and "0 of 1 compared" in stdout


def test_a_video(capsys, images):
    (images / "frames").mkdir()
    (images / "truth").mkdir()
    for n in range(4):
        for folder in ("frames", "truth"):
            (images / folder / f"{n}.png").write_bytes((images / f"{n if folder == 'truth' else 0}.png").read_bytes())
    arguments = ["--video", images / "frames", *SMALL, "--out", images / "out"]
    code, stdout, _ = run(capsys, *arguments, "--reference", images / "truth")
    assert code == 0 and "4 frames compared with truth" in stdout and "decoder images" in stdout
    code, stdout, _ = run(capsys, *arguments, "--json")
    found = json.loads(stdout)
    assert code == 0 and found["results"][0]["reference"] is None and found["results"][0]["identical_frames"] == 3
    assert found["results"] == json.loads((images / "out" / "results.json").read_text())


def test_validation(capsys, images):
    code, stdout, _ = run(capsys, "--validate", images, "--count", "1", *SMALL, "--out", images / "out", "--json")
    found = json.loads(stdout)
    kinds = [one["distortion"] for one in found["results"]]
    assert code == 0 and kinds == ["blur", "noise", "shift", "ghost", "tear", "block_loss", "darken"]
    assert set(found["results"][0]["metrics"]) == {"patch_distance", "cosine_distance", "psnr", "ssim"}
    assert json.loads((images / "out" / "validation.json").read_text()) == found
    code, stdout, _ = run(capsys, "--validate", images, "--count", "1", *SMALL, "--out", images / "out")
    assert code == 0 and "block loss" in stdout and "Spearman" in stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one of: two or three images"),
        (("a.png",), "give one of"),
        (("a.png", "b.png", "c.png", "d.png"), "give one of"),
        (("a.png", "b.png", "--video", "c.mp4"), "give one of"),
        (("--reference", "c.mp4", "a.png", "b.png"), "give one of"),
        (("a.png", "b.png", "--model", "timm:x", "--model-name", "y"), "give one of --model, --model-name"),
        (("a.png", "b.png", "--metrics", "psnr,mse"), "metrics must be of psnr, ssim, lpips, got 'mse'"),
        (("a.png", "b.png", "--resize", "57"), "multiple of 14"),
        (("--config", "missing.json"), "cannot be read"),
        (("a.png", "b.png", "--checkpoint", "missing.pt"), "no such checkpoint"),
        (("--video", "missing.mp4"), "No such file"),
        (("--validate", "missing"), "No such file"),
    ],
)
def test_wrong_usage_is_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = run(capsys, *arguments, "--device", "cpu")
    assert code == 1 and words in stderr and len(stderr.strip().splitlines()) == 1 and not stdout
    assert not (tmp_path / "output").exists()
