"""Reading: every rule and trap against a full decode, damage against a count, colour against the exact formula."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from video import clips

from vsim_fast.errors import CorruptVideo, DecodeError, DeviceError, UsageError
from vsim_fast.video import Sampling, open_video, plan, probe, read_image
from vsim_fast.video._pyav import PyavBackend

MILLI = Fraction(1, 1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("decode")


@pytest.fixture(scope="module")
def clip(folder):
    return clips.encode(folder / "clip.mp4")


VFR = np.cumsum(np.random.default_rng(1).integers(300, 4000, 60)).tolist()
ALTREF = {"deadline": "good", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "12"}
CASES = {  # trap -> file name and how the clip is made
    "plain": ("a.mp4", {}),
    "long-gop": ("gop.mp4", {"gop": 250}),
    "open-gop": ("open.mp4", {"options": {"x264-params": "open-gop=1:keyint=12:scenecut=0"}}),
    "intra": ("intra.mp4", {"gop": 1, "b_frames": 0}),
    "variable": ("vfr.mp4", {"pts": VFR}),
    "trimmed": ("trim.mp4", None),
    "transport": ("late.ts", {}),
    "matroska": ("a.mkv", {}),
    "avi": ("a.avi", {"codec": "mpeg4"}),
    "avi-b": ("b.avi", {"codec": "mpeg4", "b_frames": 2}),
    "vp9": ("a.webm", {"codec": "libvpx-vp9", "options": ALTREF, "time_base": MILLI, "pts": range(0, 1980, 33)}),
    "vp8": ("b.webm", {"codec": "libvpx", "options": ALTREF, "time_base": MILLI, "pts": range(0, 1980, 33)}),
    "raw": ("a.h264", {"format": "h264"}),
    "10bit": ("ten.mp4", {"pix_fmt": "yuv420p10le"}),
    "yuv444": ("444.mp4", {"pix_fmt": "yuv444p"}),
    "odd": ("odd.mp4", {"codec": "mpeg4", "width": 97, "height": 63}),
    "one-frame": ("one.mp4", {"frames": 1}),
    "gif": ("a.gif", {"codec": "gif", "pix_fmt": "rgb8", "time_base": Fraction(1, 100), "pts": range(0, 200, 10)}),
}


@pytest.fixture(scope="module")
def made(folder, clip):
    """Path of the clip of a trap, made once."""
    done = {}

    def make(name):
        if name not in done:
            file, options = CASES[name]
            path = folder / f"{name}-{file}"
            if options is None:
                clips.stream_copy(clip, path, start_seconds=0.5)
            else:
                clips.encode(path, **options)
            done[name] = path
        return done[name]

    return make


SAMPLINGS = [
    Sampling("all"),
    Sampling(fps=5),
    Sampling(fps=70),
    Sampling("keyframes"),
    Sampling("linspace", count=3),
    Sampling("time_grid", fps=2, start_seconds=0.3),
]


def read(path, sampling, **options):
    with open_video(path, sampling, **options) as reader:
        batches = list(reader)
    return reader, batches


def joined(batches, name):
    return np.concatenate([getattr(batch, name).numpy() for batch in batches])


@pytest.mark.parametrize("name", CASES)
def test_frames_equal_a_full_decode(made, name):
    """Under every rule: times and pixels of the frames a plain, single-threaded decode of the whole file gives."""
    path = made(name)
    info = probe(path)
    frames = clips.full_decode(path)
    if info.seekable:
        assert info.pts.tolist() == [frame.pts for frame in frames]
    assert len(info.pts) == len(frames)
    reference = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    for sampling in SAMPLINGS:
        if sampling.start_seconds >= info.duration_seconds:
            continue
        reader, batches = read(path, sampling, batch_size=7, threads=2)
        index = joined(batches, "index")
        assert index.tolist() == plan(info, sampling).index.tolist()
        assert np.array_equal(joined(batches, "pts_seconds"), info.pts_seconds[index])
        assert np.array_equal(joined(batches, "rgb"), reference[index])
        report = reader.report
        assert (report.backend, report.delivered, report.lost, report.corrupt) == ("pyav", len(index), 0, 0)
        assert max(len(batch) for batch in batches) <= 7


@pytest.mark.parametrize("name", ["plain", "10bit", "odd"])
def test_planes_equal_the_decoders(made, name):
    path = made(name)
    reader, batches = read(path, Sampling(fps=9), output="planes")
    frames = clips.full_decode(path)
    info = reader.info
    half = (-(-info.height // 2), -(-info.width // 2))
    for index, y, uv in zip(*(joined(batches, n) for n in ("index", "y", "uv")), strict=True):
        planes = []
        for plane, width in zip(frames[index].planes, (info.width, half[1], half[1]), strict=True):
            words = np.frombuffer(plane, y.dtype)
            planes.append(words.reshape(-1, plane.line_size // y.itemsize)[:, :width])
        assert np.array_equal(y, planes[0][: info.height])
        assert np.array_equal(uv, np.stack([planes[1][: half[0]], planes[2][: half[0]]], -1))
    assert y.dtype == (np.uint16 if name == "10bit" else np.uint8)
    assert name != "10bit" or 255 < y.max() < 1024


def test_only_what_is_needed_is_decoded(made):
    path = made("plain")  # key frames every 12
    reader, _ = read(path, Sampling("linspace", count=2), threads=1)
    assert reader.plan.cost == 1 + 12 and reader.report.decoded_frames <= 1 + 12 + 3  # and what B-frames hold back
    reader, _ = read(path, Sampling("keyframes"), threads=1)
    assert reader.report.decoded_frames == 5
    reader, _ = read(path, Sampling("all", end_seconds=0.5), threads=1)
    assert reader.report.decoded_frames <= 15 + 3


def test_last_frame_behind_a_hidden_packet_of_its_time(folder):
    """Every window of three frames is whole, also where it ends behind an alternate reference frame."""
    path = clips.bare_alternate_references(folder / "altrefs.webm")
    info, reference = probe(path), [frame.to_ndarray(format="rgb24") for frame in clips.full_decode(path)]
    times = clips.packet_times(path)
    assert len(times) > len(set(times)) == len(info.pts) == len(reference) == 40  # the clip has what it is made for
    for last in range(2, 40):
        start, end = max(0, last - 2.5) / clips.RATE, (last + 0.5) / clips.RATE
        _, batches = read(path, Sampling("all", start_seconds=start, end_seconds=end), threads=2)
        assert joined(batches, "index").tolist() == [last - 2, last - 1, last]
        assert np.array_equal(joined(batches, "rgb"), reference[last - 2 : last + 1])


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_damaged_packet_costs_one_frame(folder, clip, threads):
    bad = clips.damage(clip, folder / "damaged.mp4", 20)
    reader, batches = read(bad, Sampling("all"), threads=threads)
    survivors = {frame.pts for frame in clips.full_decode(bad)}
    expected = [n for n, pts in enumerate(reader.info.pts.tolist()) if pts in survivors]
    assert joined(batches, "index").tolist() == expected and len(expected) == 59
    assert (reader.report.expected, reader.report.delivered, reader.report.lost) == (60, 59, 1)
    assert reader.report.corrupt >= 1


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_truncated_file_gives_all_that_is_there(folder, threads):
    whole = clips.encode(folder / "front.mp4", container_options={"movflags": "faststart"})
    cut = clips.truncate(whole, folder / "cut.mp4", 29.5)
    reader, batches = read(cut, Sampling("all"), threads=threads)
    there = [frame.pts for frame in clips.full_decode(cut)]
    assert reader.info.pts[joined(batches, "index")].tolist() == there and len(there) >= 29
    assert any("announces 60 frames" in note for note in reader.info.notes)


def test_raise_policy_stops_at_the_damage(folder, clip):
    bad = clips.damage(clip, folder / "strict.mp4", 20)
    with pytest.raises(CorruptVideo, match=r"strict.mp4: .* at 0\.\d+ s"):
        read(bad, Sampling("all"), on_error="raise")


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_never_hangs_or_leaks_other_errors(folder, clip, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(clip.read_bytes())
    for position in rng.integers(0, len(data), int(rng.integers(1, 300))):
        data[position] = int(rng.integers(0, 256))
    path = folder / f"fuzz{seed}.mp4"
    path.write_bytes(data[: int(rng.integers(len(data) // 2, len(data) + 1))] if seed % 3 == 0 else data)
    try:
        reader, batches = read(path, Sampling(fps=10), threads=2)
    except DecodeError as error:
        assert "\n" not in str(error)
        return
    index = [i for batch in batches for i in batch.index.tolist()]
    assert index == sorted(index) and len(index) == reader.report.delivered <= reader.report.expected


# ---- colour ---------------------------------------------------------------------------------------------------------

WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


def exact_rgb(y, uv, matrix, full):
    """float64 [H, W, 3] by the definition, chroma repeated."""
    kr, kb = WEIGHTS[matrix]
    uv = uv.repeat(2, 0).repeat(2, 1)[: y.shape[0], : y.shape[1]].astype(float) - 128
    luma = y.astype(float)
    if not full:
        luma, uv = (luma - 16) * 255 / 219, uv * 255 / 224
    r, b = luma + 2 * (1 - kr) * uv[..., 1], luma + 2 * (1 - kb) * uv[..., 0]
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    return np.stack([r, g, b], -1).clip(0, 255)


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("space", [None, 1, 5, 9], ids=["untagged", "bt709", "bt601", "bt2020"])
def test_rgb_follows_the_files_matrix_and_range(tmp_path, space, full):
    """Against the exact conversion of the same planes, in 255ths; a wrong matrix gives a mean of 9."""
    path = clips.encode(tmp_path / "c.mp4", 3, colorspace=space, color_range=2 if full else 1)
    info, (rgb,) = probe(path), read(path, Sampling("all"))[1]
    (planes,) = read(path, Sampling("all"), output="planes")[1]
    oracle = exact_rgb(planes.y[1].numpy(), planes.uv[1].numpy(), info.color.matrix, info.color.full_range)
    error = np.abs(rgb.rgb[1].numpy() - np.floor(oracle + 0.5))
    # swscale truncates on this path: mean 1.19 measured in limited range, 0.55 in full
    assert error.mean() <= 1.3 and np.quantile(error, 0.99) <= 3 and error.max() <= 4


# ---- the interface --------------------------------------------------------------------------------------------------


def test_rotation_is_reported_not_applied(tmp_path):
    path = clips.encode(tmp_path / "r.mp4", 2, rotate=(90, True))
    reader, batches = read(path, Sampling("all"))
    assert (reader.info.rotation, reader.info.mirrored) == (90, True) and batches[0].rgb.shape == (2, 64, 96, 3)
    reader, batches = read(path, Sampling("all"), apply_rotation=False)
    assert (reader.info.rotation, batches[0].info.mirrored) == (0, False)


def test_image_folder(tmp_path):
    pictures = [clips.picture(n, 20, 11) for n in range(12)]
    for n, rgb in enumerate(pictures):  # natural order: 2 before 10
        Image.fromarray(rgb).save(tmp_path / f"shot{n}.png")
    (tmp_path / "notes.txt").write_text("no image")
    reader, batches = read(tmp_path, Sampling("stride", stride=5), image_fps=10)
    assert np.array_equal(joined(batches, "rgb"), np.stack(pictures[::5]))
    assert joined(batches, "pts_seconds").tolist() == [0, 0.5, 1.0] and reader.report.backend == "images"


def test_image_folder_goes_past_a_bad_image(tmp_path):
    for n in range(4):
        Image.fromarray(clips.picture(n, 64, 48)).save(tmp_path / f"{n}.png")
    data = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(data[: len(data) // 2])
    reader, batches = read(tmp_path, Sampling("all"))
    assert joined(batches, "index").tolist() == [0, 1, 3] and reader.report.lost == 1
    with pytest.raises(CorruptVideo, match="image 2"):
        read(tmp_path, Sampling("all"), on_error="raise")


def test_an_image_is_a_video_of_one_frame(tmp_path):
    rgb = clips.picture(3, 21, 12)
    Image.fromarray(rgb).save(tmp_path / "shot.PNG")
    reader, batches = read(tmp_path / "shot.PNG", Sampling("all"))
    assert np.array_equal(batches[0].rgb, rgb[None]) and reader.report.backend == "images"
    assert (len(reader.info.pts), reader.info.notes) == (1, ())
    (tmp_path / "shot.PNG").write_bytes((tmp_path / "shot.PNG").read_bytes()[:200])
    with pytest.raises(CorruptVideo, match=r"shot\.PNG: the image does not decode"):
        read(tmp_path / "shot.PNG", Sampling("all"))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32], ids=["16 bits", "32 bits"])
def test_deep_grey_images_are_scaled_not_clipped(tmp_path, dtype):
    levels = np.arange(256).reshape(16, 16)
    Image.fromarray((levels * 257).astype(dtype)).save(tmp_path / "deep.tif")
    assert np.array_equal(read_image(tmp_path / "deep.tif"), levels.astype(np.uint8)[..., None].repeat(3, 2))
    _, batches = read(tmp_path / "deep.tif", Sampling("all"))
    assert np.array_equal(batches[0].rgb[0, ..., 0], levels) and "16 bits" in batches[0].info.notes[0]


def test_images_without_a_range_are_refused(tmp_path):
    for name, pixels in (("float.tif", np.float32(0.5)), ("wide.tif", np.int32(70_000))):
        Image.fromarray(np.full((8, 8), pixels)).save(tmp_path / name)
        with pytest.raises(CorruptVideo, match=name):
            read_image(tmp_path / name)


def test_alpha_is_left_out_and_said(tmp_path):
    rgba = np.dstack([clips.picture(0, 16, 16), np.full((16, 16), 255, np.uint8)])
    for name, alpha, notes in (("opaque", 255, 0), ("clear", 9, 1)):
        rgba[0, 0, 3] = alpha
        Image.fromarray(rgba).save(tmp_path / f"{name}.png")
        reader, batches = read(tmp_path / f"{name}.png", Sampling("all"))
        assert np.array_equal(batches[0].rgb[0], rgba[..., :3]) and len(reader.info.notes) == notes


def test_reader_stops_early_and_closes(clip):
    with open_video(clip, batch_size=4) as reader:
        assert len(next(reader)) == 4
    assert list(reader) == [] and reader.report.delivered == 4


def test_released_buffers_are_filled_again_and_others_kept(clip):
    whole = joined(read(clip, Sampling("all"))[1], "rgb")
    with open_video(clip, batch_size=10) as reader:
        first = next(reader)
        kept = next(reader)
        place = first.rgb.data_ptr()
        first.release()
        first.release()  # twice changes nothing
        rest = list(reader)
    assert [batch.rgb.data_ptr() == place for batch in rest].count(True) == 1
    assert np.array_equal(joined([kept, *rest], "rgb"), whole[10:])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"decoder": "cuvid"}, UsageError, "decoder must be one of auto, pyav, nvdec, got 'cuvid'"),
        ({"on_error": "skip"}, UsageError, "on_error"),
        ({"output": "yuv"}, UsageError, "output"),
        ({"batch_size": 0}, UsageError, "batch_size must be at least 1, got 0"),
        ({"threads": 0}, UsageError, "threads must be at least 1, got 0"),
        ({"image_fps": 0}, UsageError, "image_fps"),
        ({"decoder": "nvdec"}, DeviceError, "nvdec"),
    ],
)
def test_open_video_rejects(clip, options, error, words):
    with pytest.raises(error, match=words):
        open_video(clip, **options)


def test_planes_are_refused_where_the_file_has_none(made):
    with pytest.raises(UsageError, match="4:2:0"):
        open_video(made("yuv444"), output="planes")


def test_threads_are_explicit(clip, monkeypatch):
    used = []
    monkeypatch.setattr(PyavBackend, "_frames", lambda self, plan, threads: used.append(threads) or iter(()))
    read(clip, Sampling("all"), threads=3)
    read(clip, Sampling("all"))
    assert used[0] == 3 and 1 <= used[1] <= 16


# ---- real clips -----------------------------------------------------------------------------------------------------

BROKEN = {"videos/broken_vp9.webm"}
OTHER_STREAM = {"videos/hangar_two_video_streams.mp4": 390}  # the list counts stream 0, FFmpeg takes the larger one


@pytest.mark.real_media
def test_real_clips(media):
    """Every clip: frame count of the list, times of a full decode, and its pixels for a few samples over the length."""
    for entry in json.loads((media / "manifest.json").read_text())["clips"]:
        path = media / entry["file"]
        if entry["file"] in BROKEN:
            with pytest.raises(CorruptVideo):
                probe(path)
            continue
        info = probe(path)
        assert len(info.pts) == OTHER_STREAM.get(entry["file"], entry["frames_decoded"]), entry["file"]
        reader, batches = read(path, Sampling("linspace", count=4), threads=2)
        wanted = set(joined(batches, "index").tolist())
        pts, pictures = [], {}
        for n, frame in enumerate(clips.frames_of(path, threads=2)):
            pts.append(frame.pts)
            index = int(np.searchsorted(info.pts, frame.pts)) if info.seekable else n
            if index in wanted:
                pictures[index] = frame.to_ndarray(format="rgb24")
        assert sorted(pts) == info.pts.tolist(), entry["file"]
        for index, rgb in zip(joined(batches, "index").tolist(), joined(batches, "rgb"), strict=True):
            assert np.array_equal(rgb, pictures[index]), (entry["file"], index)
        assert reader.report.lost == 0 and reader.report.corrupt == 0, entry["file"]
