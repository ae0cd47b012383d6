"""The helpers of the original DINOv3 encoder, on any encoder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from video.clips import encode as write_clip
from video.clips import full_decode, picture

from vsim_fast.encode import load_encoder
from vsim_fast.errors import EncoderError, OpenError, UsageError
from vsim_fast.frame_encoder import DINOv3Encoder, FrameEncoder, attention_centroids, frame_centroids
from vsim_fast.records import FrameFeatures

SIDE = 112


@pytest.fixture(scope="module")
def helper():
    return FrameEncoder(device="cpu", img_size=SIDE)


@pytest.fixture(scope="module")
def frames():
    return np.stack([picture(n, 96, 64) for n in range(7)])


def test_frames_become_unit_embeddings_whatever_the_batch(helper, frames):
    found = helper.encode_frames(frames, batch_size=3)
    assert found.shape == (7, helper.encoder.dim) and found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(helper.encode_frames(list(frames)), found)
    raw = helper.encode_frames(frames, normalize=False)
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=1), found)


def test_frames_may_be_pictures_of_several_sizes(helper, frames):
    mixed = [Image.fromarray(frames[0]), frames[1], picture(2, 64, 64), torch.from_numpy(frames[3])]
    found = helper.encode_frames(mixed)
    torch.testing.assert_close(found[[0, 1, 3]], helper.encode_frames(frames[[0, 1, 3]]))
    assert helper.encode_frames([]).shape == (0, helper.encoder.dim)


def test_a_video_gives_every_nth_frame_and_its_facts(helper, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 23)
    found, about = helper.encode_video(path, sample_rate=5, batch_size=2)
    assert about == {"num_frames": 5, "fps": 30.0, "sample_rate": 5, "video_path": str(path)}
    decoded = [frame.to_ndarray(format="rgb24") for frame in full_decode(path)[::5]]
    assert (found * helper.encode_frames(decoded)).sum(1).min() > 0.999
    few, about = helper.encode_video(path, sample_rate=5, max_frames=3, batch_size=2)
    torch.testing.assert_close(few, found[:3])
    assert about["num_frames"] == 3


def test_centroids_follow_what_moves(helper):
    pictures = np.full((5, SIDE, SIDE, 3), 90, np.uint8)
    for n in range(5):
        block = np.random.default_rng(0).integers(0, 255, (28, 28, 3), dtype=np.uint8)
        pictures[n, 70:98, 10 + 14 * n : 38 + 14 * n] = block
    x, y = helper.get_attention_centroids(pictures, batch_size=2).T
    assert (x.diff() > 0.05).all() and (x[0], x[-1]) == (pytest.approx(0.3, abs=0.15), pytest.approx(0.7, abs=0.15))
    assert ((y - 0.7).abs() < 0.15).all()


def test_patch_statistics_are_those_of_the_tokens(helper, frames):
    found = helper.get_patch_statistics(frames, batch_size=3)
    encoder = load_encoder("builtin", device="cpu", image_size=SIDE)
    single = FrameEncoder(encoder).get_patch_statistics(frames[4:5])
    for name in ("variance", "entropy"):
        assert found[name].shape == (7,)
        torch.testing.assert_close(found[name][4:5], single[name])
    assert (found["variance"] > 0).all() and (found["entropy"] <= math.log(64) + 1e-4).all()


@pytest.mark.parametrize("spec", ["timm:vit_tiny_patch16_224", "timm:vit_base_patch16_siglip_224"])
def test_any_encoder_serves(spec, frames, monkeypatch):
    small = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **k: small(*a, **k | {"depth": 1, "embed_dim": 48, "num_heads": 2})
    )
    helper = FrameEncoder(f"{spec}@random", device="cpu", img_size=64)
    assert helper.encode_frames(frames[:2]).shape == (2, helper.encoder.dim)
    centroids = helper.get_attention_centroids(frames[:2])
    assert centroids.shape == (2, 2) and ((centroids > 0) & (centroids < 1)).all()
    assert helper.get_patch_statistics(frames[:2])["entropy"].isfinite().all()


def test_weights_path_is_the_checkpoint_of_a_timm_model(tmp_path, frames, monkeypatch):
    small = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: small(*a, **k | {"depth": 1}))
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(network.state_dict(), tmp_path / "tiny.safetensors")
    helper = FrameEncoder("timm:vit_tiny_patch16_224", tmp_path / "tiny.safetensors", "cpu")
    assert helper.encode_frames(frames[:1]).shape == (1, 192) and not helper.encoder.random_weights
    for spec in ("builtin", "timm:vit_tiny_patch16_224@random"):
        with pytest.raises(UsageError, match="weights_path needs"):
            FrameEncoder(spec, tmp_path / "tiny.safetensors", "cpu")


def test_the_original_constructor_needs_its_checkpoint(tmp_path):
    with pytest.raises(UsageError, match="needs weights_path"):
        DINOv3Encoder(device="cpu")
    with pytest.raises(EncoderError, match=r"missing\.pth"):
        DINOv3Encoder(tmp_path / "missing.pth", device="cpu")


def test_bad_input_is_named(helper, frames, tmp_path):
    with pytest.raises(UsageError, match=r"frames must be uint8 RGB \[H, W, 3\], got float64 \[64, 96, 3\]"):
        helper.encode_frames(frames / 255)
    with pytest.raises(UsageError, match=r"got uint8 \[64, 96\]"):
        helper.encode_frames(frames[..., 0])
    with pytest.raises(UsageError, match="batch_size must be 1 or more, got 0"):
        helper.encode_frames(frames, batch_size=0)
    with pytest.raises(UsageError, match="layer must be -1"):
        helper.get_attention_centroids(frames, layer=3)
    with pytest.raises(UsageError, match="stride"):
        helper.encode_video(write_clip(tmp_path / "a.mp4", 3), sample_rate=0)
    with pytest.raises(UsageError, match="max_frames must be 1 or more, got 0"):
        helper.encode_video(tmp_path / "a.mp4", max_frames=0)
    with pytest.raises(OpenError, match=r"missing\.mp4"):
        helper.encode_video(tmp_path / "missing.mp4")


def test_centroids_by_hand():
    attention = torch.zeros(3, 6)  # 2 rows, 3 columns
    attention[0, 5] = 2  # all in the bottom right patch
    attention[1, [0, 2]] = 0.5  # both ends of the top row
    default = attention_centroids(attention, (2, 3))
    torch.testing.assert_close(default, torch.tensor([[2.5 / 3, 0.75], [0.5, 0.25], [0.5, 0.5]]))
    compat = attention_centroids(attention[:2], (2, 3), compat=True)
    torch.testing.assert_close(compat, torch.tensor([[2 / 3, 0.5], [1 / 3, 0.0]]))


def test_even_attention_lies_in_the_middle():
    even = torch.full((1, 196), 1 / 196)
    assert attention_centroids(even * 1e-35, (14, 14)).tolist() == [[pytest.approx(0.5)] * 2]
    assert attention_centroids(even * math.nan, (14, 14)).isnan().all()  # what follows tells of it
    assert attention_centroids(even, (14, 14)).tolist() == [[pytest.approx(0.5)] * 2]
    assert attention_centroids(even, (14, 14), compat=True).tolist() == [[pytest.approx(13 / 28)] * 2]
    with pytest.raises(ValueError, match=r"\[T, 195\]"):
        attention_centroids(even, (13, 15))


def test_no_attention_is_an_error():
    features = FrameFeatures(torch.zeros(1, 4, 3), None, None, torch.zeros(1), (2, 2), "some encoder")
    with pytest.raises(EncoderError, match="some encoder: this encoder gives no attention"):
        frame_centroids(features)
