"""Clips to features: turned, mirrored, with bars, one frame, black; the noise set and what it holds; settings."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import torch
from copy_clips import RATE, scene, write

from vsim_fast.copies import CopyFeatures, score_pairs
from vsim_fast.copies.content import content_scores, frame_matches
from vsim_fast.copies.features import QUERY_SCALES, SCALES
from vsim_fast.copies.noise import noise_pictures
from vsim_fast.copy_reader import FPS, content_frames, copy_settings, noise_for, read_copy_video
from vsim_fast.encode import load_encoder
from vsim_fast.errors import DecodeError, UsageError
from vsim_fast.pipeline import Timings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("builtin", device="cpu")


@pytest.fixture(scope="module")
def noise(encoder):
    return noise_for(encoder)


@pytest.fixture(scope="module")
def read(encoder, noise, tmp_path_factory):
    """Frames, written to a file, as `read_copy_video` reads them."""
    folder, cache = tmp_path_factory.mktemp("clips"), {}

    def call(name: str, frames: list[np.ndarray], orientations: str = "mirror"):
        if (name, orientations) not in cache:
            path = write(folder / f"{name}.mp4", frames)
            cache[name, orientations] = read_copy_video(path, encoder, copy_settings(orientations), noise)
        return cache[name, orientations]

    return call


def scored(query: CopyFeatures, ref: CopyFeatures):
    ((_, found),) = score_pairs([query, ref].__getitem__, np.array([[0, 1]]))
    return found


SCENE = scene(0)


def test_features_are_what_their_records_say(read):
    video = read("scene", SCENE)
    features = video.features
    frames, tokens, asked = 8, sum(count for _, count in SCALES), sum(count for _, count in QUERY_SCALES)
    assert features.codes.shape[:2] == (frames, tokens) and features.codes.dtype == torch.int8
    assert features.places.shape == (frames, tokens, 2) and features.places.dtype == torch.uint8
    assert features.scales.bincount().tolist() == [count for _, count in SCALES]
    assert features.turned_codes.shape[:3] == (1, 5, asked) and len(features.turned_scales) == asked
    sums = torch.stack([part.float().sum(1) for part in features.weights.split([n for _, n in SCALES], 1)])
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=5e-3, rtol=0)
    for part in features.weights.split([n for _, n in SCALES], 1):
        assert bool((part.diff(dim=1) <= 0).all())  # the most energetic first
    torch.testing.assert_close(features.tokens.codes.float().mul(features.code_scales[..., None]).norm(dim=2),
                               torch.ones(frames, tokens), atol=0.02, rtol=0)  # fmt: skip
    assert bool((features.background > 0).all()) and bool((features.background < 1).all())
    times = features.picture_seconds
    assert len(times) == len(SCENE) / RATE * FPS == len(features.pictures) == len(features.embeddings)
    assert times[0] == 0 and times.diff().tolist() == pytest.approx([1 / FPS] * (len(times) - 1), abs=1e-3)
    assert set(features.frame_seconds.tolist()) <= set(times.tolist())
    assert features.box.tolist() == [0, 0, 1, 1] and not features.featureless.any()
    assert not features.centroids.isnan().any() and video.notes == list(video.info.notes)
    assert len(video.thumbnails) == frames and all(jpeg[:2] == b"\xff\xd8" for jpeg in video.thumbnails)
    with av.open(io.BytesIO(video.thumbnails[0])) as container:
        picture = next(container.decode(video=0))
    assert (picture.width, picture.height) == (160, 120)
    again = CopyFeatures.from_tensors(features.tensors())
    assert scored(again, features).score > 0.99


@pytest.mark.parametrize("orientations", ["none", "mirror", "all"])
def test_a_mirrored_clip_is_found_by_who_looks_for_it(read, orientations):
    ref = read("scene", SCENE, orientations).features
    query = read("mirrored", [frame[:, ::-1].copy() for frame in SCENE], orientations).features
    found = scored(query, ref)
    if orientations == "none":
        assert found.verdict == "different" and list(query.orientations) == [0]
    else:
        assert found.verdict == "duplicate" and found.orientation == "mirrored" and found.score > 0.9
        assert len(query.orientations) == {"mirror": 2, "all": 8}[orientations]


@pytest.mark.parametrize("quarters, name", [(1, "turned 270"), (3, "turned 90")])
def test_a_turned_clip_is_found_with_all_orientations(read, quarters, name):
    ref = read("scene", SCENE, "all").features
    query = read(f"turned{quarters}", [np.rot90(frame, quarters).copy() for frame in SCENE], "all").features
    found = scored(query, ref)  # turned back to fit
    assert found.verdict == "duplicate" and found.orientation == name and found.order > 0.9


@pytest.mark.parametrize("pad", [((40, 40), (0, 0)), ((0, 0), (60, 60)), ((30, 20), (40, 20))], ids=str)
def test_bars_are_cut_off(read, pad):
    video = read(f"bars{pad}", [np.pad(frame, (*pad, (0, 0))) for frame in SCENE])
    (top, bottom), (left, right) = pad
    height, width = 180 + top + bottom, 240 + left + right
    expected = [top / height, left / width, 1 - bottom / height, 1 - right / width]
    assert video.features.box.tolist() == pytest.approx(expected, abs=1.5 / 224)
    assert [note for note in video.notes if note.startswith("bars cut off: top")]
    found = scored(video.features, read("scene", SCENE).features)
    assert found.verdict == "duplicate" and found.orientation == "as it is" and found.score > 0.85


def test_one_frame_is_a_video(read):
    features = read("one", SCENE[:1]).features
    assert features.frame_seconds.tolist() == features.picture_seconds.tolist() == [0]
    assert features.duration_seconds == 0 and not features.blank and features.turned_codes.shape[:2] == (1, 1)


def test_black_frames_are_flagged_and_not_compared(read):
    black = np.zeros_like(SCENE[0])
    video = read("half black", [black] * 24 + SCENE[:24])
    features = video.features
    assert features.featureless.tolist() == [True] * 12 + [False] * 12
    dark = features.frame_seconds < 2
    assert dark.tolist() == [True] * 4 + [False] * 4
    assert not features.weights[dark].any() and bool((features.weights[~dark].float().sum(1) > 3.9).all())
    assert not features.turned_weights[0, :2].any() and features.turned_weights[0, -1].any()
    assert not features.blank and "12 of 24 frames are black or featureless, not compared" in video.notes
    assert read("black", [black] * 24).features.blank


def test_a_noise_video_is_known_again(read, encoder, noise):
    video, other = read("scene", SCENE), read("other", scene(1))
    own = noise_for(encoder, [other, video])
    assert own.tokens.codes.shape[:2] == (16, 96)
    assert own.overlap(video.features) and own.overlap(read("one", SCENE[:1]).features)
    assert not own.overlap(read("third", scene(2)).features)
    assert not own.overlap(read("black", [np.zeros_like(SCENE[0])] * 24).features)
    assert not noise.overlap(video.features)


def test_the_noise_set_is_always_the_same(noise, encoder):
    pictures = noise_pictures()
    assert pictures.shape == (32, 224, 224, 3) and pictures.dtype == np.uint8
    assert pictures.std((1, 2)).min() > 10 and len({picture.tobytes() for picture in pictures}) == 32
    assert torch.equal(noise_for(encoder).tokens.codes, noise.tokens.codes)


def test_without_noise_there_is_no_background(read, encoder):
    video = read("scene", SCENE)
    again = read_copy_video(video.info.path, encoder, copy_settings()).features
    assert not again.background.any() and not again.turned_background.any()
    assert torch.equal(video.features.codes, again.codes)


def test_features_do_not_depend_on_the_batch_size(read, noise, encoder, monkeypatch):
    video = read("scene", SCENE)
    monkeypatch.setattr(encoder, "batch_size", 3)
    found = read_copy_video(video.info.path, encoder, copy_settings(), noise).features
    for name, value in video.features.tensors().items():
        step = 1 if value.dtype == torch.int8 else 1e-3
        torch.testing.assert_close(found.tensors()[name].double(), value.double(), atol=step, rtol=0)


@pytest.mark.parametrize("size", [84, 196])  # 6 × 6 and 14 × 14 patches
@pytest.mark.parametrize("orientations", ["none", "mirror"])
def test_encoders_of_other_grids_compare_too(read, size, orientations):
    encoder, settings = load_encoder("builtin", device="cpu", image_size=size), copy_settings(orientations)
    first, other, third = (
        read(name, frames).info.path for name, frames in (("scene", SCENE), ("other", scene(1)), ("third", scene(2)))
    )
    own = noise_for(encoder, [read_copy_video(third, encoder, settings)])
    first, other = (read_copy_video(path, encoder, settings, own).features for path in (first, other))
    matches, unlike = frame_matches([first], [first, other])[0]
    assert content_scores(matches)[0] > 0.3 > content_scores(unlike).max()
    assert not own.overlap(first) and not own.overlap(other)


@pytest.mark.parametrize(
    "pictures, seconds, count", [(1, 0.1, 1), (5, 0.8, 5), (24, 4.0, 8), (180, 30.0, 30), (1800, 900.0, 60)]
)
def test_content_frames_are_about_one_a_second(pictures, seconds, count):
    picks = content_frames(pictures, seconds)
    assert len(picks) == count and picks[0] >= 0 and picks[-1] < pictures
    gaps = picks.diff()
    assert bool((gaps >= 1).all()) and (count == 1 or gaps.max() - gaps.min() <= 1)
    assert abs(int(picks[0]) - (pictures - 1 - int(picks[-1]))) <= 1  # as far from both ends


def test_settings_are_checked_and_name_what_changes_features():
    assert copy_settings() == copy_settings("mirror") != copy_settings("all")
    with pytest.raises(UsageError, match="orientations must be one of none, mirror, all, got 'both'"):
        copy_settings("both")


def test_a_broken_file_is_an_error_of_the_decoder(encoder, noise, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(bytes(range(256)) * 64)
    with pytest.raises(DecodeError, match=r"bad\.mp4"):
        read_copy_video(tmp_path / "bad.mp4", encoder, copy_settings(), noise)


def test_progress_and_times_are_told(encoder, noise, tmp_path):
    told, timings = [], Timings()
    progress = type("Progress", (), {"advance": lambda self, *args: told.append(args)})()
    path = write(tmp_path / "scene.mp4", SCENE[:24])
    read_copy_video(path, encoder, copy_settings(), noise, progress=progress, label="a video", timings=timings)
    assert told == [("a video", 8, 12), ("a video", 12, 12)]
    assert {"probe", "decode", "encode", "tokens"} <= timings.seconds().keys()
