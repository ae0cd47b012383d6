"""The NVDEC adapter over a fake library and stream; what a driver-less machine is told; on a GPU, the real thing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from video import fake_nvdec
from video.clips import encode, stream_copy

from vsim_fast.errors import DeviceError
from vsim_fast.video import DecodeReport, Sampling, open_video, plan, probe
from vsim_fast.video._nvdec import SENTINEL, NvdecBackend, NvdecError, why_not_file


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


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("kind", ["8bit", "10bit", "trimmed"])
def test_planes_equal_pyav(tmp_path, clip, kind, sampling):
    path = clip
    if kind == "10bit":
        path = encode(
            tmp_path / "hdr.mp4", 60, codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": "log-level=none"}
        )
    if kind == "trimmed":
        path = stream_copy(clip, tmp_path / "trimmed.mp4", start_seconds=0.1)
    got = []
    for batch in backend(path, sampling, poison=True):
        got.append((batch.index.clone(), batch.y.clone(), batch.uv.clone()))
        batch.release()
    for ours, theirs in zip(map(torch.cat, zip(*got, strict=True)), pyav_planes(path, sampling), strict=True):
        assert torch.equal(ours, theirs)


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


@pytest.mark.needs_nvdec
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_real_nvdec_planes_equal_pyav(clip, sampling):
    with open_video(clip, sampling, decoder="nvdec", device="cuda", batch_size=7) as reader:
        got = []
        for batch in reader:
            got.append((batch.index.clone(), batch.y.cpu(), batch.uv.cpu()))
            batch.release()
    assert reader.report.backend == "nvdec", reader.report.fallback_reason
    for ours, theirs in zip(map(torch.cat, zip(*got, strict=True)), pyav_planes(clip, sampling), strict=True):
        assert np.array_equal(ours.numpy(), theirs.numpy())
