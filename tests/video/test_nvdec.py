"""The NVDEC adapter over a fake library and stream; what a driver-less machine is told; on a GPU, the real thing."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from video import fake_nvdec
from video.clips import encode, stream_copy

from vsim_fast.errors import DeviceError
from vsim_fast.video import DecodeReport, Sampling, open_video, plan, probe
from vsim_fast.video._nvdec import SENTINEL, NvdecBackend, NvdecError, hardware_limits, why_not_file


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("nvdec") / "clip.mp4", 60)


def backend(path, sampling, *, runtime=None, batch_size=7, poison=False, **faults):
    runtime = runtime or fake_nvdec.Runtime()
    info = probe(path)
    targets = plan(info, sampling)
    return NvdecBackend(
        info, targets, DecodeReport("nvdec", len(targets)), batch_size=batch_size, device=torch.device("cpu"),
        poison_released=poison, nv=fake_nvdec.library(runtime, **faults), runtime=runtime,
    )  # fmt: skip


def pyav_planes(path, sampling):
    with open_video(path, sampling, output="planes", threads=1) as reader:
        batches = list(reader)
    return [torch.cat([getattr(b, name) for b in batches]) for name in ("index", "y", "uv")]


SAMPLINGS = {
    "all": Sampling("all"),
    "7fps": Sampling(fps=7),
    "repeats": Sampling(fps=50),
    "tail": Sampling("all", start_seconds=1.5),
    "part": Sampling(fps=3, start_seconds=0.6, end_seconds=1.2),
}


H265 = {"codec": "libx265", "options": {"x265-params": "log-level=none"}}
WEBM = {"options": {"deadline": "realtime", "cpu-used": "8"}, "time_base": Fraction(1, 1000), "pts": range(0, 1485, 33)}
VARIABLE = np.cumsum(np.random.default_rng(1).integers(300, 4000, 45)).tolist()
CLIPS = {  # name -> file and how it is made; larger than the smallest that NVDEC takes of each codec
    "h264": ("a.mp4", {}),
    "long-gop": ("gop.mp4", {"gop": 250}),
    "open-gop": ("open.mp4", {"options": {"x264-params": "open-gop=1:keyint=12:scenecut=0"}}),
    "intra": ("intra.mp4", {"gop": 1, "b_frames": 0}),
    "variable": ("variable.mp4", {"pts": VARIABLE}),
    "transport": ("a.ts", {}),
    "matroska": ("a.mkv", {}),
    "not-of-16": ("size.mp4", {"width": 170, "height": 150}),
    "hevc": ("hevc.mp4", H265),
    "hevc-10bit": ("hdr.mp4", H265 | {"pix_fmt": "yuv420p10le"}),
    "vp8": ("vp8.webm", WEBM | {"codec": "libvpx"}),
    "vp9": ("vp9.webm", WEBM | {"codec": "libvpx-vp9"}),
    "trimmed": ("trimmed.mp4", None),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Path of a clip of `CLIPS`, made once."""
    folder = tmp_path_factory.mktemp("kinds")

    def make(name):
        file, options = CLIPS[name]
        path = folder / file
        if not path.exists() and options is None:
            stream_copy(make("h264"), path, start_seconds=0.5)
        elif not path.exists():
            encode(path, 45, **{"width": 176, "height": 144, **options})
        return path

    return make


def assert_planes_equal_pyav(batches, path, sampling):
    got = []
    for batch in batches:
        got.append((batch.index.clone(), batch.y.cpu().clone(), batch.uv.cpu().clone()))
        batch.release()
    for ours, theirs in zip(map(torch.cat, zip(*got, strict=True)), pyav_planes(path, sampling), strict=True):
        assert np.array_equal(ours.numpy(), theirs.numpy())  # torch compares no uint16 on every device


@pytest.mark.parametrize("name", CLIPS)
def test_planes_equal_pyav(make, name):
    path = make(name)
    for sampling in (Sampling("all"), Sampling(fps=7)):
        assert_planes_equal_pyav(backend(path, sampling, poison=True), path, sampling)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_planes_under_every_rule_equal_pyav(clip, sampling):
    assert_planes_equal_pyav(backend(clip, sampling, poison=True), clip, sampling)


class CopyAtOnce(fake_nvdec.Runtime):
    """Copies without waiting for the stream: reads what the buffer held before."""

    def copy(self, target, source, shift):
        target.copy_(source)


class CopyLate(fake_nvdec.Runtime):
    """Copies when the batch is handed over: the decoder has reused its buffers by then."""

    def __init__(self):
        super().__init__()
        self.late = []

    def copy(self, target, source, shift):
        self.late.append(lambda: target.copy_(source))

    def hand_over(self, tensors):
        super().hand_over(tensors)
        for work in self.late:
            work()


@pytest.mark.parametrize("runtime", [CopyAtOnce, CopyLate])
def test_fake_shows_wrong_lifetimes(clip, runtime):
    frames = torch.cat([b.y for b in backend(clip, Sampling("all"), runtime=runtime())])
    assert not torch.equal(frames, pyav_planes(clip, Sampling("all"))[1])


def test_released_buffers_are_poisoned_then_reused(clip):
    source = backend(clip, Sampling("all"), batch_size=10, poison=True)
    batches = iter(source)
    first = next(batches)
    y = first.y
    first.release()
    first.release()  # twice changes nothing
    assert (y == SENTINEL).all() and source.runtime.releases == 1
    assert next(batches).y.data_ptr() == y.data_ptr()


def test_unreleased_batches_stay_valid(clip):
    batches = list(backend(clip, Sampling("all"), batch_size=8))
    assert torch.equal(torch.cat([b.y for b in batches]), pyav_planes(clip, Sampling("all"))[1])


FAULTS = {"damaged": {"damaged": {20}}, "damaged-last": {"damaged": {59}}, "truncated": {"stop": 40}}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_gap_is_an_error_after_good_frames(clip, fault):
    got = []
    with pytest.raises(NvdecError):
        for batch in backend(clip, Sampling("all"), batch_size=4, **fault):
            got.append(batch)
    assert got, "frames before the gap are delivered"
    count = sum(map(len, got))
    assert torch.equal(torch.cat([b.y for b in got]), pyav_planes(clip, Sampling("all"))[1][:count])


def test_reader_redoes_the_rest_with_pyav(clip, monkeypatch):
    """decoder="auto": the reason is recorded, no frame is lost or given twice; a named decoder raises instead."""
    runtime = fake_nvdec.Runtime()
    monkeypatch.setattr("vsim_fast.video._nvdec.why_not", lambda *args: None)
    monkeypatch.setattr("vsim_fast.video._nvdec.library", lambda: fake_nvdec.library(runtime, damaged={30}))
    monkeypatch.setattr("vsim_fast.video._nvdec.CudaRuntime", lambda device: runtime)
    with (
        open_video(clip, decoder="nvdec", output="planes", batch_size=4) as reader,
        pytest.raises(DeviceError, match="gave up"),
    ):
        list(reader)
    reader = open_video(clip, decoder="nvdec", output="planes", batch_size=4)
    reader._named = False  # what decoder="auto" on a CUDA device sets
    batches = list(reader)
    assert torch.cat([b.index for b in batches]).tolist() == list(range(60))
    assert reader.report.backend == "pyav" and "damaged packet" in reader.report.fallback_reason
    assert torch.equal(torch.cat([b.y for b in batches]), pyav_planes(clip, Sampling("all"))[1])


def test_named_nvdec_without_gpu_says_why(clip):
    with pytest.raises(DeviceError, match="decodes to CUDA devices"):
        open_video(clip, decoder="nvdec")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codec": "flv1"}, "no hardware decoder"),
        ({"pix_fmt": "yuv444p"}, "4:2:0"),
        ({"pix_fmt": "yuv420p10le"}, "8 bits only"),
        ({"width": 97}, "odd size"),
        ({"interlaced": True}, "interlaced"),
        ({"seekable": False}, "decode pass"),
    ],
)
def test_file_is_refused_with_a_reason(clip, change, words):
    assert words in why_not_file(replace(probe(clip), **change), "planes")
    assert why_not_file(probe(clip), "planes") is None and "rgb" in why_not_file(probe(clip), "rgb")


def look_again(batches, path):
    """Frames of the first batch, unreleased, are the same after all others have been decoded and given back."""
    batches = iter(batches)
    first = next(batches)
    for batch in batches:
        batch.release()
    want = pyav_planes(path, Sampling("all"))
    assert sum(len(plane) for plane in want[:1]) > 100 + len(first)
    for ours, theirs in zip((first.y, first.uv), want[1:], strict=True):
        assert np.array_equal(ours.cpu().numpy(), theirs[: len(first)].numpy())


def test_frame_is_the_same_after_100_others(tmp_path):
    path = encode(tmp_path / "long.mp4", 130)
    look_again(backend(path, Sampling("all"), poison=True), path)


def open_on_gpu(path, sampling, **options):
    return open_video(path, sampling, decoder="nvdec", device="cuda", batch_size=7, **options)


@pytest.mark.needs_nvdec
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_real_nvdec_under_every_rule_equals_pyav(clip, sampling):
    with open_on_gpu(clip, sampling) as reader:
        assert_planes_equal_pyav(reader, clip, sampling)
    assert reader.report.backend == "nvdec", reader.report.fallback_reason


@pytest.mark.needs_nvdec
@pytest.mark.parametrize("name", CLIPS)
def test_real_nvdec_planes_equal_pyav(make, name):
    path = make(name)
    for sampling in (Sampling("all"), Sampling(fps=7)):
        with open_on_gpu(path, sampling) as reader:
            assert_planes_equal_pyav(reader, path, sampling)
        assert reader.report.backend == "nvdec", reader.report.fallback_reason


@pytest.mark.needs_nvdec
def test_real_nvdec_in_eight_threads(make):
    """Readers of different codecs and rules at once, several of the same clip, each on a stream of its own."""
    work = [(make(name), Sampling(fps=fps)) for name in ("h264", "hevc", "vp9", "hevc-10bit") for fps in (7, 30)]

    def check(path, sampling):
        for _ in range(3):
            with open_on_gpu(path, sampling) as reader:
                assert_planes_equal_pyav(reader, path, sampling)

    with ThreadPoolExecutor(len(work)) as pool:
        list(pool.map(check, *zip(*work, strict=True)))


@pytest.mark.needs_nvdec
def test_real_frame_is_the_same_after_100_others(tmp_path):
    path = encode(tmp_path / "long.mp4", 130)
    with open_on_gpu(path, Sampling("all")) as reader:
        look_again(reader, path)


@pytest.mark.needs_nvdec
def test_real_unsupported_clip_then_a_good_one(tmp_path, clip):
    """4:4:4 H.264, which no NVDEC before Blackwell decodes."""
    with pytest.raises(DeviceError, match="4:2:0"):
        open_on_gpu(encode(tmp_path / "444.mp4", 30, pix_fmt="yuv444p"), Sampling("all"))
    with open_on_gpu(clip, Sampling("all")) as reader:
        assert_planes_equal_pyav(reader, clip, Sampling("all"))


PASSED_OFF = """
import sys
from dataclasses import replace
import torch
from vsim_fast.video import DecodeReport, Sampling, open_video, plan, probe
from vsim_fast.video._nvdec import NvdecBackend, NvdecError
bad, good = sys.argv[1:]
info = replace(probe(bad), pix_fmt="yuv420p")
targets = plan(info, Sampling("all"))
try:
    list(NvdecBackend(info, targets, DecodeReport("nvdec", len(targets)), batch_size=7, device=torch.device("cuda")))
    sys.exit("nothing was raised")
except NvdecError as error:
    print("raised:", error)
with open_video(good, Sampling("all"), decoder="nvdec", device="cuda") as reader:
    print("good frames:", sum(map(len, reader)))
"""


@pytest.mark.needs_nvdec
def test_real_decoder_outlives_what_the_library_refuses(tmp_path, clip):
    """The same passed off as 4:2:0, in a process of its own: the library throws where its parser calls it back."""
    bad = encode(tmp_path / "444.mp4", 30, width=176, height=144, pix_fmt="yuv444p")
    run = subprocess.run([sys.executable, "-c", PASSED_OFF, str(bad), str(clip)], capture_output=True, text=True)
    assert run.returncode == 0 and "good frames: 60" in run.stdout, (run.returncode, run.stdout, run.stderr)


@pytest.mark.needs_nvdec
def test_real_limits_are_told():
    assert hardware_limits("h264", 8, 0)["width_max"] >= 4096
    assert isinstance(hardware_limits("h264", 10, 0), str)
