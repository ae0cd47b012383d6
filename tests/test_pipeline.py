"""Path to features: order, errors and threads of the decode-ahead loop."""

from __future__ import annotations

import threading

import pytest
import torch
from compare import assert_matches_reference

from vsim_fast.encode import load_encoder
from vsim_fast.encode.base import Tokens
from vsim_fast.errors import DeviceError, EncoderError
from vsim_fast.pipeline import QUEUED_BATCHES, Timings, encode_video
from vsim_fast.video import Sampling, open_video

SAMPLING = Sampling(fps=4.0)
BATCH = 5


@pytest.fixture(scope="session")
def encoder():
    return load_encoder("builtin", device="cpu", precision="float32", image_size=112)


def decode_threads():
    return [thread for thread in threading.enumerate() if thread.name == "vsim-decode"]


def encoded(clip, encoder, **options):
    with open_video(clip, SAMPLING, batch_size=BATCH, device=encoder.device, **options) as reader:
        return list(encode_video(reader, encoder))


def test_features_equal_plain_encoding_in_order(clip, encoder):
    with open_video(clip, SAMPLING, batch_size=BATCH) as reader:
        plain = [encoder.encode(batch) for batch in reader]
    batches = encoded(clip, encoder)
    assert len(batches) == len(plain) > QUEUED_BATCHES + 1
    for ours, theirs in zip(batches, plain, strict=True):
        assert torch.equal(ours.features.patches, theirs.patches)
        assert torch.equal(ours.features.pts_seconds, theirs.pts_seconds)
    assert not decode_threads()


def test_caller_that_stops_early_leaves_no_thread(clip, encoder):
    with open_video(clip, SAMPLING, batch_size=1) as reader:
        batches = encode_video(reader, encoder)
        next(batches)
        assert decode_threads()
        batches.close()
        assert not decode_threads()


def test_error_of_the_decode_thread_is_raised_here(encoder):
    def frames():
        raise RuntimeError("the reader broke")
        yield

    with pytest.raises(RuntimeError, match="the reader broke"):
        next(encode_video(frames(), encoder))
    assert not decode_threads()


def test_error_of_the_encoder_ends_the_decode_thread(clip, encoder, monkeypatch):
    def broken(pixels):
        raise RuntimeError("the encoder broke")

    monkeypatch.setattr(encoder, "forward", broken)
    with pytest.raises(RuntimeError, match="the encoder broke"):
        encoded(clip, encoder)
    assert not decode_threads()


def test_nan_features_name_the_file_and_the_times(clip, encoder, monkeypatch):
    forward = encoder.forward

    def spoilt(pixels):
        tokens = forward(pixels)
        return Tokens(tokens.patches * torch.nan, tokens.cls, tokens.attention)

    monkeypatch.setattr(encoder, "forward", spoilt)
    with pytest.raises(EncoderError, match=r"demo\.mp4: builtin .* between 0\.000 s and 1\.000 s; its weights"):
        encoded(clip, encoder)


@pytest.mark.parametrize("room", [2, 0], ids=["two-frames", "not-one"])
def test_out_of_memory_halves_the_batch_down_to_one_frame(clip, encoder, monkeypatch, room):
    exact, forward = encoded(clip, encoder), encoder.forward

    def tight(pixels):
        if len(pixels) > room:
            raise torch.OutOfMemoryError("made up")
        return forward(pixels)

    monkeypatch.setattr(encoder, "forward", tight)
    monkeypatch.setattr(encoder, "batch_size", BATCH)
    if not room:
        with pytest.raises(DeviceError, match="no memory for one frame of 112x112 in builtin"):
            encoded(clip, encoder)
        return
    for ours, theirs in zip(encoded(clip, encoder), exact, strict=True):
        torch.testing.assert_close(ours.features.patches, theirs.features.patches, atol=1e-5, rtol=0)
    assert encoder.batch_size == 2


def test_timings_add_up_over_threads():
    timings = Timings()

    def work():
        for _ in range(2000):
            timings.add("write", 1.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with timings.stage("empty"):
        pass
    assert timings.seconds()["write"] == 8000
    assert 0 <= timings.seconds()["empty"] < 1


@pytest.mark.needs_cuda
@pytest.mark.parametrize("spec", ["builtin", "timm:vit_tiny_patch16_224@random"])
@pytest.mark.parametrize("decoder", ["pyav", pytest.param("nvdec", marks=pytest.mark.needs_nvdec)])
def test_cuda_features_equal_the_cpu(clip, spec, decoder):
    there, here = (load_encoder(spec, device, "float32", image_size=112) for device in ("cuda", "cpu"))
    timings = Timings()
    with open_video(clip, SAMPLING, decoder=decoder, batch_size=BATCH, device="cuda") as reader:
        batches = list(encode_video(reader, there, timings))
    assert reader.report.backend == decoder
    exact = encoded(clip, here)
    ours, theirs = (torch.cat([b.features.patches for b in side]).double().cpu() for side in (batches, exact))
    # Colour and resize round otherwise than swscale and torch do on the CPU; with the reference kernels 3.3e-3 at most.
    cosines = torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)
    assert_matches_reference(cosines, torch.ones_like(cosines), dtype=torch.float32, atol=2e-2)
    assert all(batch.features.patches.is_cuda and not batch.featureless.any() for batch in batches)
    assert {"decode", "pixels", "encode"} <= timings.seconds().keys()
