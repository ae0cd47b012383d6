"""The gate and the probe: what is refused and why, and what is learnt from awkward files."""

from __future__ import annotations

import os
import socket
import struct
from fractions import Fraction
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from av.sidedata.sidedata import Type
from PIL import Image
from video import clips

from vsim_fast.errors import CorruptVideo, DecodeError, NoVideoStream, OpenError, UnsupportedVideo, UsageError
from vsim_fast.video import Limits, probe
from vsim_fast.video._pyav import orientation


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clips.encode(tmp_path_factory.mktemp("probe") / "clip.mp4")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.mp4", b"", "the file is empty"),
        ("garbage.mp4", bytes(range(256)) * 40, "no video container"),
        ("text.mp4", b"hello\n", "no video container"),
        ("concat.mp4", b"ffconcat version 1.0\nfile clip.mp4\n", "concat script"),
        ("hls.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nclip.mp4\n", "HLS playlist"),
        ("bom.mp4", b"\xef\xbb\xbf#EXTM3U\n#EXTINF:2,\nclip.mp4\n", "HLS playlist"),
        ("dash.mp4", b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>', "XML document"),
        ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "no image that is read here"),
    ],
)
def test_gate_refuses_content(tmp_path, clip, name, content, words):
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OpenError, match=words) as caught:
        probe(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(
    "script", [b"ffconcat version 1.0\nfile clip.mp4\n", b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nclip.mp4\n"]
)
def test_ffmpeg_would_not_open_a_script_either(tmp_path, clip, script, monkeypatch):
    """The second wall: with our own look at the first bytes gone, the list of allowed formats still refuses."""
    monkeypatch.setattr(import_module("vsim_fast.video.probe"), "SCRIPTS", {})
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "script.mp4").write_bytes(script)
    with pytest.raises(OpenError, match="no video container"):
        probe(tmp_path / "script.mp4")


def test_gate_refuses_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would block for ever
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        for path, words in (
            (tmp_path / "pipe.mp4", "regular file"),
            (tmp_path / "s", "regular file"),
            ("/dev/zero", "regular file"),
            (tmp_path / "missing.mp4", "No such file"),
            ("http://127.0.0.1:9/clip.mp4", "No such file"),
            (f"concat:{tmp_path}/a.mp4|{tmp_path}/b.mp4", "No such file"),
            ("pipe:0", "No such file"),
            ("a\0b", "not a file name"),
            (tmp_path, "holds no image"),
        ):
            with pytest.raises(OpenError, match=words):
                probe(path)


@pytest.mark.parametrize(
    "name", ["pipe:0", "concat:a|b.mp4", "HTTP:x.mp4", "%03d.mp4", "a b?c#d.mp4", "naïve-日本.mp4", "-i"]
)
def test_gate_reads_odd_names_as_files(tmp_path, clip, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(clip.read_bytes())
    assert len(probe(name).pts) == 60


def test_symlink_is_followed(tmp_path, clip):
    (tmp_path / "link.mp4").symlink_to(clip)
    assert len(probe(tmp_path / "link.mp4").pts) == 60


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(max_pixels=96 * 64 - 1), "96x64 pixels are more than the 6143 allowed"),
        (Limits(max_frames=59), "more than the 59 frames allowed"),
        (Limits(max_seconds=1), "2 s are more than the 1 allowed"),
    ],
)
def test_limits(clip, limits, words):
    with pytest.raises(UnsupportedVideo, match=words):
        probe(clip, limits=limits)


def test_limits_reject_zero():
    with pytest.raises(UsageError, match="max_pixels"):
        Limits(max_pixels=0)


def test_audio_only(tmp_path):
    with pytest.raises(NoVideoStream, match="found audio"):
        probe(clips.audio_only(tmp_path / "sound.m4a"))


def test_truncated_to_its_header(tmp_path, clip):
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:2000])  # no moov box
    with pytest.raises(OpenError):
        probe(tmp_path / "cut.mp4")


def test_all_packets_damaged(tmp_path, clip):
    path = clip
    for n in range(60):
        path = clips.damage(path, tmp_path / "bad.mp4", n)
    with pytest.raises((CorruptVideo, OpenError)) as caught:
        probe(path)
    assert isinstance(caught.value, DecodeError) and "\n" not in str(caught.value)


def times(path):
    return [frame.pts for frame in clips.full_decode(path)]


def test_plain_clip(clip):
    info = probe(clip)
    assert (info.codec, info.width, info.height, info.pix_fmt) == ("h264", 96, 64, "yuv420p")
    assert info.pts.tolist() == times(clip) and info.time_base == Fraction(1, 15360)
    assert np.flatnonzero(info.is_key).tolist() == [0, 12, 24, 36, 48]
    assert (info.duration_seconds, info.average_fps, info.container_frames) == (2.0, 30.0, 60)
    assert info.color.guessed and info.color.matrix == "bt601" and not info.color.full_range
    assert not info.pts.flags.writeable, "the record is shared"
    assert probe(clip) is info


def test_edit_list_hides_frames(tmp_path, clip):
    path = clips.stream_copy(clip, tmp_path / "trimmed.mp4", start_seconds=0.5)
    info = probe(path)
    assert info.pts.tolist() == times(path) and len(info.pts) == 45 < info.container_frames == 48
    assert info.seekable and any("announces 48 frames, 45" in note for note in info.notes)


def test_transport_stream_starts_late(tmp_path):
    path = clips.encode(tmp_path / "late.ts", pts=range(30_720, 61_440, 512))  # from 2 s on
    info = probe(path)
    assert info.pts[0] >= 180_000 and info.pts.tolist() == times(path) and info.duration_seconds == pytest.approx(2)


def test_variable_rate(tmp_path):
    pts = np.cumsum(np.random.default_rng(1).integers(300, 4000, 40)).tolist()
    path = clips.encode(tmp_path / "vfr.mp4", pts=pts)
    assert (np.diff(probe(path).pts) == np.diff(pts)).all() and probe(path).pts.tolist() == times(path)


def test_raw_stream_gets_even_times(tmp_path):
    info = probe(clips.encode(tmp_path / "raw.h264", format="h264"))
    assert len(info.pts) == 60 and len(set(np.diff(info.pts))) == 1 and not info.seekable
    assert any("no times of their own" in note for note in info.notes)


def test_avi_times_come_from_decoding(tmp_path):
    path = clips.encode(tmp_path / "old.avi", codec="mpeg4")
    info = probe(path)
    assert info.pts.tolist() == sorted(times(path)) and not info.seekable


@pytest.mark.parametrize(
    ("colorspace", "matrix"), [(1, "bt709"), (5, "bt601"), (9, "bt2020")], ids=["bt709", "bt601", "bt2020"]
)
@pytest.mark.parametrize("full", [False, True])
def test_colour_tags(tmp_path, colorspace, matrix, full):
    info = probe(clips.encode(tmp_path / "c.mp4", 2, colorspace=colorspace, color_range=2 if full else 1))
    assert (info.color.matrix, info.color.full_range, info.color.guessed) == (matrix, full, False)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_metadata(tmp_path, degrees, mirrored):
    info = probe(clips.encode(tmp_path / "r.mp4", 2, rotate=(degrees, mirrored)))
    assert (info.rotation, info.mirrored) == (degrees, mirrored)
    assert info.display_size == ((96, 64) if degrees in (90, 270) else (64, 96))


@pytest.mark.parametrize("a, b, c, d", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0),
                                        (-1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 0, -1), (0, -1, -1, 0)])  # fmt: skip
def test_orientation_is_what_the_matrix_does(a, b, c, d):
    """Move each pixel to (a·x + c·y, b·x + d·y), shift into the first quadrant: equals rot90 then fliplr."""
    matrix = struct.pack("<9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    rotation, mirrored = orientation(SimpleNamespace(side_data={Type.DISPLAYMATRIX: matrix}))
    coded = np.arange(6).reshape(2, 3)
    moved = {(a * x + c * y, b * x + d * y): coded[y, x] for y in range(2) for x in range(3)}
    left, top = min(x for x, _ in moved), min(y for _, y in moved)
    shown = np.zeros((2, 3) if b == 0 else (3, 2), int)
    for (x, y), value in moved.items():
        shown[y - top, x - left] = value
    turned = np.rot90(coded, rotation // 90)
    assert np.array_equal(np.fliplr(turned) if mirrored else turned, shown)


def images(folder, sizes, names=None):
    folder.mkdir()
    for n, size in enumerate(sizes):
        Image.fromarray(clips.picture(n, *size)).save(folder / (names[n] if names else f"frame{n}.png"))
    return folder


def test_image_folder(tmp_path):
    info = probe(images(tmp_path / "f", [(20, 10)] * 12))
    assert (info.codec, info.average_fps, len(info.pts), info.duration_seconds) == ("images", 3.0, 12, 4.0)
    assert probe(tmp_path / "f", image_fps=24).duration_seconds == 0.5


def test_image_folder_names_the_odd_one(tmp_path):
    with pytest.raises(UnsupportedVideo, match=r"frame2.png: must be 20x10 like frame0.png, is 10x20"):
        probe(images(tmp_path / "f", [(20, 10), (20, 10), (10, 20)]))
