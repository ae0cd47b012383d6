"""`compare`: verdicts on edits of a clip, the alignment, bad videos, folders."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from motion_clips import write_variant
from video.clips import damage
from video.clips import encode as write_test_clip

from vsim_fast.comparison import (
    Comparison,
    FolderComparison,
    compare,
    compare_clips,
    compare_folder,
    compare_settings,
    judge,
    read_clip,
)
from vsim_fast.encode import load_encoder
from vsim_fast.errors import CorruptVideo, OpenError, UnsupportedVideo, UsageError
from vsim_fast.models import Scene
from vsim_fast.pipeline import Timings

RATE, SECONDS = 12, 3
FRAMES = RATE * SECONDS


def scene(seed: int) -> list[np.ndarray]:
    """Textured discs under a moving camera, one of them moving in front: uint8 [180, 240, 3]."""
    drawn = Scene(seed)
    return [drawn.frame(n / 2) for n in range(FRAMES)]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("builtin", device="cpu", image_size=84)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("motion")
    times, rate = np.arange(FRAMES) / RATE, Fraction(RATE)
    frames = scene(0)
    for kind in ("original", "reversed", "speed1.5", "speed2", "reencoded"):
        write_variant(folder / f"{kind}.mp4", kind, frames, times, rate)
    write_variant(folder / "other.mp4", "original", scene(1), times, rate)
    write_variant(folder / "still.mp4", "original", frames[:1] * 12, times[:12], rate)
    write_variant(folder / "one.mp4", "original", frames[:1], times[:1], rate)
    black = [np.zeros_like(frames[0])] * RATE
    write_variant(folder / "intro.mp4", "original", black + frames, np.arange(RATE + FRAMES) / RATE, rate)
    return folder


@pytest.fixture(scope="module")
def compared(clips, encoder):
    """Comparison of two of the clips, each read once."""
    settings = compare_settings()
    read = cache(lambda kind: read_clip(clips / f"{kind}.mp4", encoder, settings))
    return lambda first, second: compare_clips(read(first), read(second), encoder, settings, Timings())[0]


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("original", "same motion"),
        ("speed1.5", "same motion"),
        ("speed2", "same motion"),
        ("reencoded", "same motion"),
        ("intro", "same motion"),
        ("reversed", "same content, different motion or order"),
        ("still", "same content, different motion or order"),
        ("other", "different"),
    ],
)
def test_verdicts(compared, kind, verdict):
    found = compared("original", kind)
    assert found.verdict == verdict and found.order_judged and found.status == "complete"
    order = found.scores["order"]
    expected = {"other": abs(order - 0.5) < 0.2, "still": abs(order - 0.5) < 0.1, "reversed": order < 0.1}
    assert expected.get(kind, order > 0.85)
    assert {
        name: 0 <= value <= 1 for name, value in found.scores.items() if name != "semantic_baseline"
    } == dict.fromkeys(
        ["temporal_derivative", "multiscale_derivative", "trajectory_stats", "trajectory_dtw", "order", "match"], True
    )


def test_speed_and_seconds(compared):
    found = compared("original", "speed2")
    assert [row["second"] for row in found.seconds] == [0, 1, 2]
    for row in found.seconds:
        assert row["start_seconds"] == pytest.approx(row["second"] / 2, abs=0.2)
        assert row["end_seconds"] == pytest.approx((row["second"] + 1) / 2, abs=0.2)
    assert found.path[0] == (0, 0) and found.path[-1] == (found.video1.frames - 1, found.video2.frames - 1)


def test_black_frames_are_not_aligned(compared):
    found = compared("intro", "original")
    assert found.video1.featureless_frames == list(range(10))
    assert "video 1: 10 of 40 frames are black or featureless, not aligned" in found.notes
    assert found.path[0] == (10, 0)
    assert [row["second"] for row in found.seconds] == [1, 2, 3]
    assert found.seconds[0]["start_seconds"] == pytest.approx(0, abs=0.05)


def test_still_videos_have_no_order(compared):
    found = compared("still", "still")
    assert found.verdict == "same content, no motion to judge" and not found.order_judged and found.nonsemantic is None
    assert found.fusion == pytest.approx(1)
    assert "its order cannot be judged" in " ".join(found.notes)


def test_what_is_written(clips, encoder, tmp_path):
    found = compare(clips / "original.mp4", clips / "reencoded.mp4", encoder, output_dir=tmp_path / "out", alpha=0.4)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["alignment.png", "comparison.json"]
    written = Comparison.model_validate_json((tmp_path / "out" / "comparison.json").read_text())
    assert written.model_dump_json() == found.model_dump_json() and written.schema_version == 1
    assert written.outputs["alignment.png"] == (tmp_path / "out" / "alignment.png").stat().st_size > 20_000
    assert written.fusion == pytest.approx(
        0.4 * written.scores["semantic_baseline"] + 0.6 * (2 * written.scores["order"] - 1), abs=1e-4
    )
    assert written.timings["total"] >= written.timings["encode"] > 0


def test_names_of_any_kind_are_drawn(clips, encoder, tmp_path):
    name = "$x_$ 自転車 " + 40 * "long " + ".mp4"
    shutil.copy(clips / "still.mp4", tmp_path / name)
    found = compare(tmp_path / name, tmp_path / name, encoder, output_dir=tmp_path / "out", max_frames=2)
    assert found.video1.frames == 2 and (tmp_path / "out" / "alignment.png").exists()


@pytest.mark.parametrize(
    ("semantic", "order", "judged", "fusion", "verdict"),
    [
        (0.9, 1.0, True, 0.97, "same motion"),
        (0.0, 1.0, True, 0.7, "same motion"),
        (1.0, 0.0, True, 0.3, "same content, different motion or order"),
        (1.0, 0.5, True, 0.3, "same content, different motion or order"),
        (-0.3, 0.5, True, 0.0, "different"),
        (0.9, 0.5, False, 0.9, "same content, no motion to judge"),
        (0.2, 0.5, False, 0.2, "different"),
    ],
)
def test_judge(semantic, order, judged, fusion, verdict):
    found = judge(semantic, order, order_judged=judged)
    assert found.fusion == pytest.approx(fusion) and found.verdict == verdict
    assert f"{max(0, semantic):.2f}" in found.rule or f"{fusion:.2f}" in found.rule


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha must be in 0\.\.1, got 1\.5"),
        ({"threshold": -1}, r"threshold must be in 0\.\.1, got -1"),
        ({"max_frames": 1}, "max_frames must be 2 or more, got 1"),
        ({"fps": 0}, "fps"),
        ({"sample_rate": 0}, "sample_rate must be 1 or more, got 0"),
    ],
)
def test_bad_options_are_named_before_anything_is_read(encoder, options, message):
    with pytest.raises(UsageError, match=message):
        compare("missing.mp4", "missing.mp4", encoder, **options)


def test_videos_that_cannot_be_compared(clips, encoder, tmp_path):
    with pytest.raises(
        UnsupportedVideo, match=r"one\.mp4: compare needs at least 2 sampled frames, got 1 of 1 \(10 fps\)"
    ):
        compare(clips / "original.mp4", clips / "one.mp4", encoder)
    with pytest.raises(UnsupportedVideo, match=r"got 1 of 36 \(0\.1 fps\); take more of them"):
        compare(clips / "original.mp4", clips / "other.mp4", encoder, fps=0.1)
    with pytest.raises(OpenError, match=r"missing\.mp4"):
        compare(clips / "original.mp4", tmp_path / "missing.mp4", encoder, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lost_frames_make_it_partial(encoder, tmp_path):
    whole = write_test_clip(tmp_path / "whole.mp4", 30)
    broken = damage(whole, tmp_path / "broken.mp4", 12)
    found = compare(whole, broken, encoder)
    assert found.status == "partial"
    assert any(note.startswith("video 2:") and "could not be decoded" in note for note in found.notes)


def test_a_folder_is_compared_pair_by_pair(clips, encoder, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, kept in (("original", "original.mp4"), ("reversed", "reversed.MP4"), ("speed2", "speed2.mp4")):
        shutil.copy(clips / f"{name}.mp4", folder / kept)
    (folder / "broken.avi").write_bytes(b"no video")
    (folder / "ignored.txt").write_text("no video")
    found = compare_folder(folder, encoder, output_dir=tmp_path / "out")
    names = [(Path(pair.video1).stem, Path(pair.video2).stem) for pair in found.pairs]
    assert names == [("original", "reversed"), ("original", "speed2"), ("reversed", "speed2")]
    assert [pair.verdict == "same motion" for pair in found.pairs] == [False, True, False]
    assert [Path(video.path).stem for video in found.videos] == ["original", "reversed", "speed2"]
    assert found.status == "partial" and [Path(f.path).name for f in found.failed] == ["broken.avi"]
    written = FolderComparison.model_validate_json((tmp_path / "out" / "comparison.json").read_text())
    assert written.model_dump_json() == found.model_dump_json()


def test_folders_without_two_videos(clips, encoder, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        compare_folder(tmp_path / "nowhere", encoder)
    shutil.copy(clips / "still.mp4", tmp_path / "a.mp4")
    with pytest.raises(UsageError, match="1 of them"):
        compare_folder(tmp_path, encoder)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(CorruptVideo, match="1 of 2 videos can be read"):
        compare_folder(tmp_path, encoder)


@pytest.mark.real_media
@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("sign_again.mkv", "sign_walk.mkv", False),  # another word signed in the same room
        ("flower.mp4", "flower.webm", True),
        ("carphone_qcif.mp4", "carphone_qcif_distorted.mp4", True),
    ],
)
def test_recordings_and_copies(media, encoder, first, second, same):
    found = compare(media / "videos" / first, media / "videos" / second, encoder, fps=5)
    assert (found.verdict == "same motion") == same, json.dumps(found.scores)
