"""The command line in-process: option spellings, one-line errors, exit codes, JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cheap_copies
import pytest
from video.clips import encode as write_clip

import vsim_fast
from vsim_fast.cli import main


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


def test_analyze_accepts_the_original_spellings(capsys, clip, tmp_path):
    out = tmp_path / "o"
    code, stdout, _ = run(
        capsys, "analyze", "--video_path", clip, "--model_path", "builtin", "--output_dir", out, "--max_frames", "4",
        "--fps", "1", "--image_size", "112", "--patch_size", "14", "--device", "cpu", "--visualize_positions", "2",
        "--json",
    )  # fmt: skip
    assert code == 0
    summary = json.loads(stdout)
    assert summary["frames"] == 4 and summary["output_dir"] == str(out)
    assert (out / "position_similarities.npz").exists()


def test_demo_writes_its_clip_and_says_what_was_used(capsys, tmp_path):
    code, stdout, _ = run(
        capsys, "analyze", "--demo", "--output-dir", tmp_path, "--image-size", "112", "--device", "cpu"
    )
    assert code == 0
    assert (tmp_path / "demo.mp4").exists() and (tmp_path / "report.html").exists()
    assert re.search(r"decoder pyav, device cpu, float32, encoder builtin", stdout)


def bad_file(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "bad.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "garbage":
        path.write_bytes(bytes(range(256)) * 64)
    elif kind == "hls":
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n")
    elif kind == "concat":
        path.write_text("ffconcat version 1.0\nfile '/etc/hostname'\n")
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "garbage", "hls", "concat"])
def test_bad_files_are_one_line_and_leave_nothing(capsys, tmp_path, kind):
    path, out = bad_file(tmp_path, kind), tmp_path / "out"
    code, stdout, stderr = run(capsys, "analyze", path, "--output-dir", out, "--json")
    assert code == 1
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and "bad.mp4" in stderr
    assert json.loads(stdout)["error"]["type"] == "OpenError"
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fps", "0"], "fps"),
        (["--max-frames", "0"], "max_frames"),
        (["--image-size", "450"], "450"),
        (["--model", "nonsense"], "nonsense"),
        (["--model", "timm:no_such_model_at_all"], "no_such_model_at_all"),
    ],
)
def test_bad_options_are_one_line(capsys, clip, tmp_path, arguments, message):
    code, _, stderr = run(capsys, "analyze", clip, "--output-dir", tmp_path / "out", "--offline", *arguments)
    assert code == 1 and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert message in stderr
    assert not (tmp_path / "out").exists()


def test_late_errors_leave_no_empty_folder(capsys, clip, tmp_path):
    code, _, stderr = run(
        capsys, "analyze", clip, "--output-dir", tmp_path / "out", "--decoder", "nvdec", "--device=cpu"
    )
    assert code == 1 and "nvdec" in stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_cuda_asked_for_where_there_is_none(capsys, clip, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    code, _, stderr = run(capsys, "analyze", clip, "--output-dir", tmp_path / "out", "--device", "cuda")
    assert code == 1 and "cuda" in stderr and stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--bogus"], [], ["a.mp4", "--demo"], ["a.mp4", "b.mp4"], ["a.mp4", "--fps", "x"], ["a.mp4", "--fps"]]
)
def test_wrong_usage_is_one_line_and_ends_with_1(capsys, arguments):
    code, stdout, stderr = run(capsys, "analyze", "--json", *arguments)
    assert code == 1 and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert json.loads(stdout)["error"]["type"] == "UsageError"


def test_names_that_are_no_text_or_look_like_markup(capsys, clip, tmp_path):
    video = os.fsdecode(os.fsencode(tmp_path) + b"/<script>\xff\n[b].mp4")
    shutil.copy(clip, video)
    out = tmp_path / "out"
    code, stdout, _ = run(
        capsys, "analyze", video, "--output-dir", out, "--max-frames", "2", "--image-size", "56", "--json"
    )
    assert code == 0
    assert json.loads(stdout)["video"]["path"].endswith("<script>\ufffd\n[b].mp4")
    assert "&lt;script&gt;\ufffd" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_interrupted_run_cleans_up(clip, tmp_path, name, code):
    out = tmp_path / "out"
    script = (  # the signal comes once the frames have been encoded
        "import signal, sys, vsim_fast.similarity as s\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits that it is ignored
        f"s.PatchStack.frame_similarity = lambda self: signal.raise_signal(signal.{name})\n"
        "from vsim_fast.cli import main; main(sys.argv[1:])"
    )
    arguments = ["analyze", clip, "--max-frames", "2", "--image-size", "56", "--output-dir", out]
    ended = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True)
    assert ended.returncode == code and not out.exists()


def compare_options(out):
    return ["--output-dir", out, "--image-size", "56", "--fps", "4", "--device", "cpu"]


def test_compare_takes_videos_as_arguments_or_in_the_original_spelling(capsys, clip, tmp_path):
    options = compare_options(tmp_path / "out")
    code, stdout, _ = run(capsys, "compare", clip, clip, *options)
    assert code == 0 and "same motion (fusion 1.00 >= 0.65)" in stdout
    assert re.search(
        r"32 and 32 frames .* decoder pyav, device cpu, float32, encoder builtin", " ".join(stdout.split())
    )
    code, stdout, _ = run(
        capsys, "compare", "--video1", clip, "--video2", clip, "--model_path", "builtin", "--sample_rate", "12",
        "--max_frames", "8", "--threshold", "0.9", "--alpha", "0.5", "--json", *options,
    )  # fmt: skip
    found = json.loads(stdout)
    assert code == 0 and found["verdict"] == "same motion" and found["video1"]["frames"] == 8
    assert found["settings"]["sample_rate"] == 12 and (found["alpha"], found["threshold"]) == (0.5, 0.9)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["alignment.png", "comparison.json"]


def test_compare_prints_every_pair_of_a_folder(capsys, clip, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(clip, tmp_path / name)
    (tmp_path / "c.avi").write_bytes(b"no video")
    code, stdout, stderr = run(capsys, "compare", "--video-dir", tmp_path, *compare_options(tmp_path / "out"))
    assert code == 3 and "1 pairs" in stdout and "c.avi" in stderr
    code, stdout, _ = run(capsys, "compare", "--video_dir", tmp_path, "--json", *compare_options(tmp_path / "out"))
    assert code == 3 and list(json.loads(stdout)["pairs"][0]["scores"])[:5] == [
        "temporal_derivative", "multiscale_derivative", "trajectory_stats", "trajectory_dtw", "semantic_baseline",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["a.mp4"], ["a.mp4", "b.mp4", "c.mp4"], ["a.mp4", "b.mp4", "--synthetic"], ["--video1", "a.mp4"],
        ["a.mp4", "--synthetic"], ["--video-dir", ".", "--synthetic"], ["a.mp4", "b.mp4", "--alpha", "2"],
    ],
)  # fmt: skip
def test_compare_wrong_usage_is_one_line(capsys, arguments):
    code, stdout, stderr = run(capsys, "compare", "--json", *arguments)
    assert code == 1 and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert json.loads(stdout)["error"]["type"] == "UsageError"


def test_compare_names_the_video_it_cannot_use(capsys, clip, tmp_path):
    out = tmp_path / "out"
    code, _, stderr = run(capsys, "compare", clip, bad_file(tmp_path, "garbage"), *compare_options(out))
    assert code == 1 and "bad.mp4" in stderr and stderr.count("\n") == 1 and not out.exists()
    code, _, stderr = run(capsys, "compare", clip, write_clip(tmp_path / "one.mp4", 1), *compare_options(out))
    assert code == 1 and not out.exists()
    assert "one.mp4: compare needs at least 2 sampled frames, got 1 of 1 (4 fps); nothing can move" in stderr


def test_a_plain_checkpoint_means_dinov3(capsys, clip, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    code, _, stderr = run(capsys, "compare", clip, clip, "--model-path", tmp_path / "weights.pth")
    assert code == 1 and "weights.pth" in stderr and stderr.count("\n") == 1


def test_the_synthetic_study_fails_loudly(capsys, tmp_path, monkeypatch):
    from vsim_fast import motion_study

    study = motion_study.run_motion_study(seeds=2)
    monkeypatch.setattr(motion_study, "run_motion_study", lambda: study)
    code, stdout, _ = run(capsys, "compare", "--synthetic", "--output-dir", tmp_path)
    assert code == 0 and "H3: a zigzag and a point at rest are dissimilar" in stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["motion_study.json", "trajectories.png"]
    code, stdout, _ = run(capsys, "compare", "--synthetic", "--output-dir", tmp_path, "--json")
    assert code == 0 and json.loads(stdout)["ok"] is True
    monkeypatch.undo()
    monkeypatch.setitem(motion_study.REQUIRED["trajectory_dtw"], "H2", 0.999)
    failing = motion_study.run_motion_study(seeds=2)
    monkeypatch.setattr(motion_study, "run_motion_study", lambda: failing)
    code, _, stderr = run(capsys, "compare", "--synthetic", "--output-dir", tmp_path)
    assert code == 1 and stderr.startswith("error: H2 (clockwise and counter-clockwise are dissimilar) fails for")


def duplicates(clip, folder):
    """A folder with a clip, the same bytes under another name, another clip, a link and a file that is no video."""
    folder.mkdir()
    for name in ("a.mp4", "[b].mp4"):
        shutil.copy(clip, folder / name)
    write_clip(folder / "other.mp4", 60)
    os.link(folder / "a.mp4", folder / "link.mp4")
    (folder / "c.avi").write_bytes(b"no video")
    return folder


def test_dedup_prints_groups_and_writes_its_files(capsys, clip, tmp_path, monkeypatch):
    cheap_copies.use(monkeypatch)
    folder, out = duplicates(clip, tmp_path / "v"), tmp_path / "out"
    code, stdout, stderr = run(capsys, "dedup", folder, "--output_dir", out, "--device", "cpu")
    text = " ".join(stdout.split())
    assert code == 3 and "not read: " in stderr and "c.avi" in stderr
    assert "link.mp4: the same file as" in stderr
    assert "[b].mp4" in text.replace(" ", "")
    assert "3 videos (2 new), 3 pairs (2 new)" in text and "1 groups of 2 videos" in text
    assert text.endswith("decoder pyav, device cpu, float32, encoder builtin")
    (folder / "c.avi").unlink()
    code, stdout, _ = run(capsys, "dedup", folder / "*.mp4", "--output-dir", out, "--device", "cpu", "--json")
    found = json.loads(stdout)
    assert code == 0 and found["counts"]["pairs_computed"] == found["counts"]["features_computed"] == 0
    assert json.loads((out / "groups.json").read_text())["groups"] == found["groups"]


def test_dedup_against_another_folder(capsys, clip, tmp_path, monkeypatch):
    cheap_copies.use(monkeypatch)
    folder = duplicates(clip, tmp_path / "v")
    arguments = ["--against", folder / "other.mp4", "--against", folder / "a.mp4", "--output-dir", tmp_path / "out"]
    code, stdout, _ = run(capsys, "dedup", folder / "[b].mp4", *arguments, "--min-score", "0", "--device", "cpu")
    assert code == 0 and "1 matches" in " ".join(stdout.split())
    assert len((tmp_path / "out" / "pairs.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 1, "give folders or files: vsim dedup PATHS"),
        (["nothing"], 1, "no videos in nothing (of a folder: *.mp4, "),
        (["v/c.avi", "v/a.mp4"], 4, "1 of 2 videos can be read, nothing to compare; v/c.avi: "),
        (["v", "--orientations", "some"], 1, "orientations"),
        (["v", "--top", "0"], 1, "top must be 1 or more, got 0"),
        (["v", "--noise", "v/a.mp4"], 1, "noise must not be among the videos compared: v/a.mp4 has the content of"),
        (["v", "--decisions", "v/c.avi"], 1, "decisions v/c.avi: the file: Invalid JSON"),
    ],
)
def test_dedup_errors_are_one_line(capsys, clip, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    cheap_copies.use(monkeypatch)
    duplicates(clip, Path("v"))
    ended, stdout, stderr = run(capsys, "dedup", *arguments, "--json", "--device", "cpu")
    assert ended == code and stderr.startswith("error: ") and stderr.count("\n") == 1 and message in stderr
    assert json.loads(stdout)["error"]["message"] in stderr


def test_doctor_and_models_print_json(capsys):
    code, stdout, _ = run(capsys, "doctor", "--json")
    assert code == 0 and json.loads(stdout)["ok"] is True
    code, stdout, _ = run(capsys, "models", "--json")
    assert code == 0 and any(e["spec"] == "builtin" for e in json.loads(stdout)["encoders"])


def test_help_and_import_start_no_heavy_library():
    code = (
        "import sys\nfrom vsim_fast.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'av', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("[]")


def test_console_command_ends_with_its_code_and_all_its_output(tmp_path):
    command = [sys.executable, "-m", "vsim_fast.cli", "analyze", str(tmp_path / "missing.mp4"), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.startswith("error: ")
    assert json.loads(ended.stdout)["error"]["type"] == "OpenError"


def test_every_public_name_resolves():
    for name in vsim_fast.__all__:
        assert getattr(vsim_fast, name) is not None
