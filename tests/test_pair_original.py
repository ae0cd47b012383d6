"""The baseline program of the benchmarks beside `pair_images`: the same model, the same distances."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vsim_fast.encode import load_encoder
from vsim_fast.frame_pairs import pair_images, read_config

PROGRAM = Path(__file__).resolve().parents[1] / "bench" / "original_pairs.py"
MODEL, SIDE = "deit_tiny_patch16_224", 64  # normalises as the program does; images of that side are not resized


@pytest.mark.usefixtures("one_thread")
def test_the_original_flow_gives_the_same_distances(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("torchvision")
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    images = {"noise.png": noise, "shifted.png": np.roll(noise, 21, axis=1), "flat.png": np.full_like(noise, 90)}
    for name, pixels in images.items():
        Image.fromarray(pixels).save(tmp_path / name)
    a, *others = (str(tmp_path / name) for name in images)
    config = tmp_path / "pairs.json"
    config.write_text(json.dumps([{"image_a": a, "image_b": b} for b in others]))

    options = ["--model-name", MODEL, "--random", "--resize", str(SIDE), "--device", "cpu", "--visualize", "--no-pca"]
    command = [sys.executable, str(PROGRAM), str(config), *options, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["pairs"] == 2
    theirs = json.loads((tmp_path / "out" / "results.json").read_text())

    encoder = load_encoder(f"timm:{MODEL}@random", device="cpu", precision="float32", image_size=SIDE)
    results = pair_images(read_config(config), encoder, output_dir=tmp_path / "ours", visualize=True, pca=False).results
    for ours, original in zip(results, theirs, strict=True):
        assert ours.cosine_distance == pytest.approx(original["cosine_distance"], abs=1e-5)
        assert ours.mean_similarity_a2b == pytest.approx(original["mean_similarity_a2b"], abs=1e-5)
        assert ours.mean_similarity_b2a == pytest.approx(original["mean_similarity_b2a"], abs=1e-5)
        assert ours.embedding_dim == original["embedding_dim"]
    assert min(pair["cosine_distance"] for pair in theirs) > 1e-4  # far above the bound: other weights would show
