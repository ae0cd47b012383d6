"""`vsim pair` beside the flow of the tool it replaces (original_pairs.py), and on a video.

The images of a pair are neighbouring frames of the clip and in no other pair, so that encoding each image once is no
advantage by itself. Weights are random: speed does not depend on them, and nothing is downloaded. `--pairs 100` for
figures to be quoted: with few pairs the start of a program is most of its time.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest
import torch
from clips import write_copy, write_pairs
from programs import ROOT, VSIM, run_in_turn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODEL, SIZE = {"cpu": "vit_small_patch14_dinov2", "cuda": "vit_base_patch14_dinov2"}[DEVICE], 518
FEW, MANY = 4, 50
"""Pairs with --quick; from which on one round is long enough."""
PAIRS = 12
LOADED_PAIRS = {"cpu": (PAIRS, PAIRS), "cuda": (400, 100)}[DEVICE]
"""At least; without and with pictures."""
VIDEO_FRAMES = {"cpu": 60, "cuda": 600}[DEVICE]
BASELINE = "original"
SETTINGS = {  # of ours: provider, options
    "float32": ("vsim_fast", ["--precision", "float32", "--metrics", ""]),
    "auto": ("vsim_fast", ["--metrics", ""]),
    "metrics": ("vsim_fast, psnr and ssim too", []),
}
WITH_PICTURES = {"cpu": ("float32", "auto"), "cuda": ("auto",)}[DEVICE]
PICTURES = pytest.mark.parametrize("visualize", [False, True], ids=["distances", "pictures"])


@pytest.fixture(scope="session")
def pairs(pytestconfig: pytest.Config, quick: bool) -> int:
    return pytestconfig.getoption("--pairs") or (FEW if quick else PAIRS)


def loaded_rate(count: int, seconds: float, stages: dict[str, float]) -> str:
    """Rate of what comes after the start of a program."""
    return f"{count / (seconds - stages['import'] - stages['load_encoder']):.3g}/s after import and load_encoder"


@PICTURES
def test_pairs_beside_the_original(visualize, pairs, clip, tmp_path, recorder, quick):
    config = write_pairs(clip, tmp_path, pairs)
    rounds = 1 if quick or DEVICE == "cuda" or pairs >= MANY else 2
    options = ["--resize", str(SIZE), "--device", DEVICE, *["--visualize"][:visualize]]
    original = [sys.executable, str(ROOT / "bench" / "original_pairs.py"), str(config), "--model-name", MODEL]
    ours = [*VSIM, "pair", "--config", str(config), "--model", f"timm:{MODEL}@random", "--json"]
    programs = {BASELINE: [*original, "--random", *options, "--out", str(tmp_path / BASELINE)]}
    for name in WITH_PICTURES if visualize else SETTINGS:
        programs[name] = [*ours, *options, *SETTINGS[name][1], "--out", str(tmp_path / name)]

    def distances(name: str) -> np.ndarray:
        written = json.loads((tmp_path / name / "results.json").read_text())
        return np.array([pair["cosine_distance"] for pair in written])

    runs = run_in_turn(programs, rounds)
    true = distances(BASELINE)
    for name, results in runs.items():
        wall, peak, result = sorted(results, key=lambda one: one[0])[len(results) // 2]
        seconds, found = [one[0] for one in results], distances(name)
        run = result.get("run", result)
        note = f"random weights; {DEVICE}; {loaded_rate(len(true), wall, run['timings'])}"
        if name in SETTINGS:
            resize = run["encoder"]["preprocess"]["interpolation"]
            note += f"; resize {resize}, the original's bilinear; distances there {true.min():.1e} to {true.max():.1e}"
        recorder.add(
            seconds, op="pairs with pictures" if visualize else "pairs",
            provider=SETTINGS[name][0] if name in SETTINGS else name,
            dtype=run["encoder"]["dtype"] if name in SETTINGS else "float32",
            shape=f"{clip.stem}-{MODEL}-S{SIZE}-N{len(true)}", baseline=BASELINE if name in SETTINGS else "",
            rate=len(true) / float(np.median(seconds)), unit="pairs/s", peak_mib=peak, stages=run["timings"],
            max_error=float(np.abs(found - true).max()), note=note,
        )  # fmt: skip


@PICTURES
def test_pairs_of_a_loaded_encoder(visualize, pairs, clip, tmp_path, recorder, quick):
    """What a program that lives on gets: the call alone, its worker processes' start included."""
    from vsim_fast.encode import load_encoder
    from vsim_fast.frame_pairs import pair_images, read_config

    encoder = load_encoder(f"timm:{MODEL}@random", device=DEVICE, image_size=SIZE)
    items = read_config(write_pairs(clip, tmp_path, FEW if quick else max(pairs, LOADED_PAIRS[visualize])))
    options = dict(metrics=(), visualize=visualize)
    pair_images(items[:2], encoder, output_dir=tmp_path / "first", **options)  # warms up
    start = time.perf_counter()
    batch = pair_images(items, encoder, output_dir=tmp_path / "out", **options)
    seconds = time.perf_counter() - start
    recorder.add(
        [seconds], op="pairs with pictures" if visualize else "pairs", provider="vsim_fast, encoder loaded",
        dtype=str(encoder.dtype).removeprefix("torch."), shape=f"{clip.stem}-{MODEL}-S{SIZE}-N{len(items)}",
        baseline="", rate=len(batch.results) / seconds, unit="pairs/s", stages=batch.run.timings,
        note=f"random weights; {DEVICE}; batch {encoder.batch_size}",
    )  # fmt: skip


def test_video_against_a_copy(clip, tmp_path, recorder, quick):
    """The first frames of the clip in two qualities, from decoding to the page."""
    frames = FEW if quick else VIDEO_FRAMES
    reference, copy = (write_copy(clip, tmp_path / f"{crf}.mp4", frames, crf) for crf in (18, 35))
    command = [*VSIM, "pair", "--video", str(copy), "--reference", str(reference), "--model", "builtin", "--json"]
    options = ["--resize", str(SIZE), "--device", DEVICE, "--out", str(tmp_path / "out")]
    rounds = 1 if quick or DEVICE == "cuda" else 2
    runs = run_in_turn({"vsim_fast": [*command, *options]}, rounds)["vsim_fast"]
    seconds = [one[0] for one in runs]
    _, peak, result = runs[-1]
    frames, run = result["results"][0]["frames"], result["run"]
    recorder.add(
        seconds, op="video against a copy", provider="vsim_fast", dtype=run["encoder"]["dtype"],
        shape=f"{clip.stem}-builtin-S{SIZE}-T{frames}", baseline="", rate=frames / float(np.median(seconds)),
        unit="frames/s", peak_mib=peak, stages=run["timings"],
        note=f"psnr and ssim too; {DEVICE}; {loaded_rate(frames, seconds[-1], run['timings'])}",
    )  # fmt: skip
