"""Videos against the truth and by themselves: the frames that were spoilt, and only those, are named."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from video.clips import damage

from vsim_fast.encode import load_encoder
from vsim_fast.errors import CorruptVideo, OpenError, UsageError
from vsim_fast.frame_pairs import comparing, pair_images, pair_video, verdict
from vsim_fast.pairs import cosine_distance, pooled_patch_distance
from vsim_fast.records import frames_in_memory

FRAMES = 48
OUTPUTS = {"frames.csv", "frames.json", "results.json", "report.html", "summary.json"}


@pytest.fixture(autouse=True)
def _few_small_pictures(monkeypatch):
    """They take more time than all else on clips like these."""
    monkeypatch.setattr(comparing, "SHOWN_FRAMES", 5)
    monkeypatch.setattr(comparing, "PICTURE_SIDE", 96)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("builtin", device="cpu", image_size=112)


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return [scene_frame(n) for n in range(FRAMES)]


@cache
def world() -> np.ndarray:
    """uint8 [300, 400, 3]: texture of all sizes."""
    rng, made = np.random.default_rng(0), np.zeros((300, 400, 3))
    for cells in (6, 12, 24, 48, 96):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        made += np.asarray(Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC)) / 5.0
    return made.round().astype(np.uint8)


def scene_frame(n: int) -> np.ndarray:
    """uint8 [180, 240, 3] of a camera that pans over it, 3 pixels a frame."""
    x, y = 3 * (n % 50), 2 * (n % 50)
    return world()[y : y + 180, x : x + 240]


def write(path: Path, frames: list[np.ndarray], rate: int = 12, times: list[int] | None = None) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "ultrafast", "g": "12"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        for time, frame in zip(times or range(len(frames)), frames, strict=True):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, rate)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return path


def folder_of(path: Path, frames: list[np.ndarray]) -> Path:
    """As a folder of images, which loses nothing."""
    path.mkdir(parents=True)
    for n, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{n:04d}.png", compress_level=1)
    return path


def blended(frames: list[np.ndarray], every: int = 10) -> list[np.ndarray]:
    made = list(frames)
    for n in range(5, len(frames) - 1, every):
        made[n] = ((frames[n - 1].astype(np.uint16) + frames[n + 1]) // 2).astype(np.uint8)
    return made


@pytest.fixture(scope="module")
def clips(tmp_path_factory, frames) -> Path:
    path = tmp_path_factory.mktemp("clips")
    folder_of(path / "truth", frames)
    folder_of(path / "blended", blended(frames))
    write(path / "truth.mp4", frames)
    write(path / "blended.mp4", blended(frames))
    return path


def test_a_video_against_itself_is_at_zero(clips, encoder, tmp_path):
    result = pair_video(clips / "truth.mp4", clips / "truth.mp4", encoder, output_dir=tmp_path / "out")
    (one,) = result.results
    assert one.frames == one.identical_frames == FRAMES and not one.worst_frames
    assert one.statistics["patch_distance"]["max"] == one.statistics["cosine_distance"]["max"] == 0
    assert one.psnr is None and one.ssim == 1 and one.flicker_index == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == OUTPUTS == set(result.run.outputs)
    assert verdict(one) == "48 frames compared with truth.mp4: all equal in every pixel."


@pytest.mark.parametrize("kind", ["", ".mp4"], ids=["lossless", "encoded"])
def test_blended_frames_and_only_those_are_worst(clips, encoder, tmp_path, kind):
    result = pair_video(clips / f"blended{kind}", clips / f"truth{kind}", encoder, output_dir=tmp_path / "out")
    (one,) = result.results
    assert sorted(worst.frame for worst in one.worst_frames) == [5, 15, 25, 35, 45]
    assert {worst.kind for worst in one.worst_frames} == {"differs"}
    excess = [worst.excess for worst in one.worst_frames]
    assert excess == sorted(excess, reverse=True)
    if not kind:
        assert one.identical_frames == FRAMES - 5 and one.statistics["patch_distance"]["median"] == 0
    assert one.flicker_index < 0.1
    names = {worst.picture for worst in one.worst_frames}
    assert {path.name for path in (tmp_path / "out").iterdir()} == OUTPUTS | names and len(names) == 5


def test_every_other_frame_flickers(frames, encoder, tmp_path):
    truth, made = folder_of(tmp_path / "truth", frames), folder_of(tmp_path / "made", blended(frames, every=2))
    (one,) = pair_video(made, truth, encoder, output_dir=tmp_path / "out").results
    assert one.flicker_index > 0.7 and {worst.kind for worst in one.worst_frames} == {"largest"}
    assert "no frame sticks out; the largest value is that of frame" in verdict(one)
    made = blended(frames, every=2)
    made[21] = np.roll(made[21], 24, axis=1)  # ruined among the made-up ones
    (one,) = pair_video(folder_of(tmp_path / "ruined", made), truth, encoder, output_dir=tmp_path / "out").results
    assert [worst.frame for worst in one.worst_frames] == [21] and one.worst_frames[0].picture
    shown = json.loads((tmp_path / "out" / "summary.json").read_text())["outputs"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*shown}  # nothing is left of the run before


def test_frames_that_take_turns_flicker_without_a_reference(frames, encoder, tmp_path):
    dim = [(frame * np.float32(0.5)).astype(np.uint8) if n % 2 else frame[::-1] for n, frame in enumerate(frames)]
    (one,) = pair_video(folder_of(tmp_path / "turns", dim), None, encoder, output_dir=tmp_path / "out").results
    assert one.flicker_index > 0.2 and one.judder_index < 0.2
    twice = [frames[n // 2] for n in range(FRAMES)]
    (one,) = pair_video(folder_of(tmp_path / "twice", twice), None, encoder, output_dir=tmp_path / "out").results
    assert one.flicker_index == 0 and one.judder_index > 0.7


def test_frames_shown_at_other_times_are_told(frames, encoder, tmp_path):
    write(tmp_path / "truth.mp4", frames)
    write(tmp_path / "gap.mp4", frames[:20] + frames[21:], times=[*range(20), *range(21, FRAMES)])
    result = pair_video(tmp_path / "gap.mp4", tmp_path / "truth.mp4", encoder, output_dir=tmp_path / "out")
    assert any(note.startswith("from frame 20 on the containers show") for note in result.run.notes)
    result = pair_video(tmp_path / "truth.mp4", tmp_path / "truth.mp4", encoder, output_dir=tmp_path / "out")
    assert not any("containers" in note for note in result.run.notes)


def test_values_are_those_of_the_frames(frames, clips, encoder, tmp_path):
    pair_video(clips / "blended", clips / "truth", encoder, output_dir=tmp_path / "out")
    with open(tmp_path / "out" / "frames.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in rows] == list(range(FRAMES))
    assert [row["sticks_out"] for row in rows] == ["1" if n % 10 == 5 else "0" for n in range(FRAMES)]
    names = [str(clips / kind / "0015.png") for kind in ("blended", "truth")]
    (alone,) = pair_images([names], encoder).results
    for name in ("patch_distance", "cosine_distance", "psnr", "ssim"):
        assert float(rows[15][name]) == pytest.approx(getattr(alone, name), rel=1e-4), name
    assert rows[14]["psnr"] == "" and float(rows[14]["ssim"]) == 1
    table = json.loads((tmp_path / "out" / "frames.json").read_text())
    assert table["psnr"][14] is None and table["patch_distance"][15] == pytest.approx(alone.patch_distance, rel=1e-4)


def test_without_a_reference_neighbours_are_compared(frames, encoder, tmp_path):
    made = list(frames)
    made[20] = frames[20][::-1].copy()  # upside down
    made[31] = frames[30]  # repeated
    clip = folder_of(tmp_path / "clip", made)
    (one,) = pair_video(clip, None, encoder, output_dir=tmp_path / "out").results
    assert one.worst_frames[0].frame == 20 and one.worst_frames[0].kind == "stands out"
    assert one.identical_frames == 1 and one.judged == "stands_out"
    table = json.loads((tmp_path / "out" / "frames.json").read_text())
    tokens = encoder.forward_in_batches(encoder.pixels(frames_in_memory(np.stack(made)))).patches
    step = pooled_patch_distance(cosine_distance(tokens[1:], tokens[:-1]))
    skip = pooled_patch_distance(cosine_distance(tokens[2:], tokens[:-2]))
    assert table["step"][0] is None and table["skip"][0] is None and table["skip"][-1] is None
    torch.testing.assert_close(torch.tensor(table["step"][1:]), step, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(table["skip"][1:-1]), skip, atol=1e-5, rtol=0)
    assert table["step"][31] == 0


@pytest.mark.parametrize("repeats", [[5], [5, 6, 7], [47], [1]])
def test_repeated_frames_cost_no_forward_pass(frames, encoder, tmp_path, repeats, monkeypatch):
    made = list(frames)
    for n in repeats:
        made[n] = made[n - 1]
    seen = []
    forward = type(encoder).forward
    monkeypatch.setattr(
        type(encoder), "forward", lambda self, pixels: seen.append(len(pixels)) or forward(self, pixels)
    )
    clip = folder_of(tmp_path / "clip", made)
    (one,) = pair_video(clip, None, encoder, output_dir=tmp_path / "out").results
    assert sum(seen) == FRAMES - len(repeats) and one.identical_frames == len(repeats)
    table = json.loads((tmp_path / "out" / "frames.json").read_text())
    assert [n for n, value in enumerate(table["step"]) if value == 0] == repeats
    assert None not in table["step"][1:] and None not in table["skip"][1:-1]


def test_lengths_that_differ(frames, clips, encoder, tmp_path):
    short = folder_of(tmp_path / "short", frames[:30])
    result = pair_video(short, clips / "truth", encoder, output_dir=tmp_path / "out")
    assert result.results[0].frames == 30 and "30 frames" in result.run.notes[0] and "48" in result.run.notes[0]
    assert result.run.status == "complete" and not any("decode" in note for note in result.run.notes)
    result = pair_video(clips / "truth", short, encoder, output_dir=tmp_path / "turned")
    assert result.results[0].frames == 30 and result.run.status == "complete"
    with pytest.raises(UsageError, match=r"lengths must be equal: .* has 30 frames, .* 48"):
        pair_video(short, clips / "truth", encoder, output_dir=tmp_path / "none", on_length="error")
    assert not (tmp_path / "none").exists()


def test_sizes_and_rates_that_differ_are_said(frames, clips, encoder, tmp_path):
    write(tmp_path / "small.mp4", [frame[::2, ::2] for frame in frames], rate=24)
    result = pair_video(tmp_path / "small.mp4", clips / "truth.mp4", encoder, output_dir=tmp_path / "out")
    notes = " ".join(result.run.notes)
    assert "sizes differ" in notes and "frame rates differ" in notes


def test_fps_compares_on_a_grid_of_time(frames, clips, encoder, tmp_path):
    write(tmp_path / "half.mp4", frames[::2], rate=6)
    write(tmp_path / "full.mp4", frames, rate=12)
    options = dict(output_dir=tmp_path / "out", fps=6)
    result = pair_video(tmp_path / "half.mp4", tmp_path / "full.mp4", encoder, **options)
    assert result.results[0].frames == 24 and result.results[0].psnr > 30
    assert not any("rates" in note for note in result.run.notes)


def test_frames_lost_in_one_of_both_are_left_out(clips, encoder, tmp_path):
    damage(clips / "blended.mp4", tmp_path / "hurt.mp4", packet=14)
    result = pair_video(tmp_path / "hurt.mp4", clips / "truth.mp4", encoder, output_dir=tmp_path / "out")
    table = json.loads((tmp_path / "out" / "frames.json").read_text())
    whole = pair_video(clips / "blended.mp4", clips / "truth.mp4", encoder, output_dir=tmp_path / "whole")
    lost = result.run.decoder["video"]["expected"] - result.run.decoder["video"]["delivered"]
    assert result.run.status == ("partial" if lost else "complete")
    assert result.results[0].frames == FRAMES - lost == len(table["frame"])
    assert whole.results[0].frames == FRAMES


def test_a_broken_image_among_frames_is_left_out(frames, clips, encoder, tmp_path):
    hurt = folder_of(tmp_path / "hurt", blended(frames))
    for n in (15, 16, 17, 18, 19, 20, 40):  # a whole batch among them
        (hurt / f"{n:04d}.png").write_bytes((hurt / f"{n:04d}.png").read_bytes()[:300])
    result = pair_video(hurt, clips / "truth", encoder, output_dir=tmp_path / "out")
    (one,) = result.results
    assert result.run.status == "partial" and one.frames == FRAMES - 7
    assert sorted(worst.frame for worst in one.worst_frames) == [5, 25, 35, 45]
    assert "7 of 48 frames could not be decoded and were not compared" in " ".join(result.run.notes)
    alone = pair_video(hurt, None, encoder, output_dir=tmp_path / "alone")
    table = json.loads((tmp_path / "alone" / "frames.json").read_text())
    steps = dict(zip(table["frame"], table["step"], strict=True))
    assert [n for n, value in steps.items() if value is None] == [0, 21, 41] and alone.run.status == "partial"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_short_videos(frames, encoder, tmp_path, count):
    clip = folder_of(tmp_path / "clip", frames[:count])
    (one,) = pair_video(clip, clip, encoder, output_dir=tmp_path / "out").results
    assert one.frames == count
    if count == 1:
        with pytest.raises(UsageError, match="holds one frame; without a reference two are needed"):
            pair_video(clip, None, encoder, output_dir=tmp_path / "alone")
    else:
        (one,) = pair_video(clip, None, encoder, output_dir=tmp_path / "alone").results
        assert one.frames == count and one.patch_distance > 0


def test_black_videos(encoder, tmp_path):
    clip = folder_of(tmp_path / "clip", [np.zeros((90, 120, 3), np.uint8)] * 6)
    result = pair_video(clip, clip, encoder, output_dir=tmp_path / "out")
    assert result.results[0].patch_distance == 0
    assert "6 frames are black or without texture" in " ".join(result.run.notes)


def test_metrics_can_be_left_out(clips, encoder, tmp_path):
    (one,) = pair_video(clips / "blended", clips / "truth", encoder, output_dir=tmp_path / "out", metrics=()).results
    assert one.psnr is None and "psnr" not in one.statistics
    header = (tmp_path / "out" / "frames.csv").read_text().splitlines()[0]
    assert header == (
        "frame,time_seconds,reference_frame,reference_time_seconds,patch_distance,cosine_distance,expected,sticks_out"
    )


def test_pictures_are_bounded(clips, encoder, tmp_path):
    for worst in (0, 2):
        out = tmp_path / str(worst)
        (one,) = pair_video(clips / "blended", clips / "truth", encoder, output_dir=out, worst=worst).results
        assert len(one.worst_frames) == 5 and all(frame.picture for frame in one.worst_frames[:worst])
        listed = [frame.picture for frame in one.worst_frames if frame.picture]
        assert sorted(listed) == sorted(path.name for path in out.glob("worst_*.png")) and len(listed) == worst


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_length": "pad"}, "on_length must be shortest or error"),
        ({"worst": -1}, "worst must be 0 or more"),
        ({"metrics": ["mse"]}, "metrics must be of"),
        ({"fps": 0}, "fps"),
    ],
)
def test_arguments_are_checked(clips, encoder, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        pair_video(clips / "truth", clips / "truth", encoder, output_dir=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_files_that_are_none(clips, encoder, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(OpenError, match=r"text\.mp4"):
        pair_video(clips / "truth.mp4", tmp_path / "text.mp4", encoder, output_dir=tmp_path / "out")
    broken = tmp_path / "broken"
    broken.mkdir()
    for n in range(3):
        Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(broken / f"{n}.png")
        (broken / f"{n}.png").write_bytes((broken / f"{n}.png").read_bytes()[:60])
    with pytest.raises(CorruptVideo, match="no two frames"):
        pair_video(broken, clips / "truth", encoder, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_the_video(clips, tmp_path):
    """Three times the frames: the peak must not follow."""
    code = """
import resource, sys
import numpy as np
from pathlib import Path
from PIL import Image
from vsim_fast.frame_pairs import pair_video
from vsim_fast.encode import load_encoder
out = Path(sys.argv[1])
encoder = load_encoder("builtin", device="cpu", image_size=224)
peaks = []
coarse = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
world = np.asarray(Image.fromarray(coarse).resize((300, 300), Image.Resampling.BICUBIC))
for count in (96, 336):
    folder = out / str(count)
    folder.mkdir()
    for n in range(count):
        Image.fromarray(world[n % 90 :][:200, :200]).save(folder / f"{n:04d}.png", compress_level=1)
    pair_video(folder, None, encoder, output_dir=out / f"out{count}", metrics=(), worst=4)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(peaks[1] - peaks[0])
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    # 240 more frames: 94 MB of tokens, 145 MB of pixels; how many wait for each other is never the same
    assert float(run.stdout) < 110, run.stdout
