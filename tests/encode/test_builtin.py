"""The built-in encoder: hand-worked pieces, shapes, determinism, and what it says when it cannot run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compare import COSINE_ATOL
from safetensors.torch import load_file, save_file

from vsim_fast.encode.builtin import (
    CONSTANTS,
    GRADIENT_FLOOR,
    cell_maps,
    load_builtin,
    oriented_gradients,
    patch_windows,
    pool_half,
    region_weights,
)
from vsim_fast.errors import EncoderError, UsageError


def natural(count: int, size: int) -> torch.Tensor:
    """[count, 3, size, size] in 0..1: noise summed over octaves, a spectrum like that of photographs."""
    octaves = [torch.rand(count, 3, max(2, size >> s), max(2, size >> s)) * 2**s for s in range(7)]
    total = sum(F.interpolate(o, (size, size), mode="bilinear", align_corners=False) for o in octaves)
    return total / 2**7


@pytest.fixture(scope="module")
def encoder():
    return load_builtin()


@pytest.mark.parametrize("size", [56, 224, 238, 448])
def test_tokens_have_the_stated_shapes(size):
    encoder = load_builtin(image_size=size)
    patches, cls, attention = encoder.forward(natural(2, size))
    count = (size // 14) ** 2
    assert encoder.grid == (size // 14, size // 14)
    assert patches.shape == (2, count, 384) and cls.shape == (2, 384) and attention.shape == (2, count)
    assert all(torch.isfinite(x).all() for x in (patches, cls, attention))


def test_a_ramp_falls_into_the_directions_beside_its_own():
    ramp = (0.01 * torch.arange(20.0)).expand(1, 1, 20, 20)
    for reach in (1, 2):
        shares = oriented_gradients(ramp, reach=reach)[0, :, 10, 10]
        # 0, 45, 90, 135, 180, 225, 270, 315 degrees: cos² where the cosine is positive
        torch.testing.assert_close(shares, 0.01 * torch.tensor([1, 0.5, 0, 0, 0, 0, 0, 0.5]), atol=2e-6, rtol=0)
        turned = oriented_gradients(ramp.mT.flip(-2).contiguous(), reach=reach)[0, :, 10, 10]
        torch.testing.assert_close(turned, 0.01 * torch.tensor([0, 0, 0, 0, 0, 0.5, 1, 0.5]), atol=2e-6, rtol=0)


def test_cells_of_the_half_size_maps_are_the_seven_pixel_cells():
    maps = torch.rand(2, 3, 28, 14)
    expected = F.avg_pool2d(maps.repeat_interleave(2, -1).repeat_interleave(2, -2), 7)
    torch.testing.assert_close(pool_half(maps), expected)


def test_a_flat_frame_has_only_its_colour():
    maps = cell_maps(torch.tensor([0.2, 0.5, 0.8]).view(1, 3, 1, 1).expand(1, 3, 56, 56))[0]
    luma = 0.299 * 0.2 + 0.587 * 0.5 + 0.114 * 0.8
    colour = torch.tensor([luma, 0.564 * (0.8 - luma), 0.713 * (0.2 - luma)])
    torch.testing.assert_close(maps[24:27, 3, 3], colour, atol=1e-3, rtol=0)
    torch.testing.assert_close(maps[:24], torch.full((24, 8, 8), GRADIENT_FLOOR**0.5), atol=2e-4, rtol=0)


def test_windows_are_row_major_patches_with_one_cell_of_margin():
    maps = torch.arange(2 * 8 * 8.0).view(1, 2, 8, 8)
    windows = patch_windows(maps).view(1, 4, 4, 2, 4, 4)  # patch row, patch column, channel, window
    assert torch.equal(windows[0, 1, 2, 1], maps[0, 1, 1:5, 3:7])


@pytest.mark.parametrize("grid", [(16, 16), (17, 17), (37, 37), (4, 5)], ids=str)
def test_regions_share_the_frame_evenly(grid):
    weights = region_weights(grid)
    torch.testing.assert_close(weights.sum(1), torch.ones(16))
    torch.testing.assert_close(weights.sum(0), torch.full((grid[0] * grid[1],), 16 / (grid[0] * grid[1])))


def test_results_do_not_depend_on_the_batch(encoder):
    pixels = natural(9, 224)
    together = encoder.forward(pixels)
    for size in (1, 4):
        encoder.batch_size = size
        apart = encoder.forward_in_batches(pixels)
        for a, b in zip(apart, together, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens_keep_their_cosines(encoder, dtype):
    pixels = natural(2, 224)
    low, full = load_builtin(dtype=dtype).forward(pixels), encoder.forward(pixels)
    assert low.patches.dtype == low.cls.dtype == dtype and low.attention.dtype == torch.float32
    for a, b in zip(low[:2], full[:2], strict=True):
        a, b = (F.normalize(x.flatten(0, -2).float(), dim=-1) for x in (a, b))
        assert (a @ a.T - b @ b.T).abs().max() <= COSINE_ATOL[dtype]


def test_attention_follows_contrast(encoder):
    pixels = torch.full((2, 3, 224, 224), 0.5)
    pixels[0, :, 112:, :112] = torch.rand(3, 112, 112)
    attention = encoder.forward(pixels).attention
    torch.testing.assert_close(attention.sum(1), torch.ones(2))
    assert attention[0].view(16, 16)[8:, :8].sum() > 0.9
    torch.testing.assert_close(attention[1], torch.full((256,), 1 / 256))


def test_unrelated_patches_score_near_zero_and_same_patches_one(encoder):
    tokens = F.normalize(encoder.forward(natural(2, 224)).patches, dim=-1)
    cosines = tokens[0] @ tokens[1].T
    assert (tokens[0] @ tokens[0].T).diagonal().min() > 0.9999
    assert cosines.abs().mean() < 0.15  # measured 0.10: noise is all one texture


@pytest.mark.parametrize("size", [0, 42, 225, -14])
def test_image_size_must_be_a_multiple_of_the_patch(size):
    with pytest.raises(UsageError, match=f"multiple of 14, at least 56, got {size}"):
        load_builtin(image_size=size)


def test_broken_constants_are_named(tmp_path):
    path = tmp_path / "constants.safetensors"
    with pytest.raises(EncoderError, match="cannot read"):
        load_builtin(constants=path)
    path.write_bytes(CONSTANTS.read_bytes()[:1000])
    with pytest.raises(EncoderError, match="cannot read"):
        load_builtin(constants=path)
    save_file(load_file(CONSTANTS) | {"bias": torch.zeros(7)}, path)
    with pytest.raises(EncoderError, match=r"must hold .*got .*\(7,\)"):
        load_builtin(constants=path)


def test_id_tells_constants_size_and_precision_apart(tmp_path):
    path = tmp_path / "constants.safetensors"
    save_file(load_file(CONSTANTS) | {"bias": torch.zeros(384)}, path)
    encoders = [
        load_builtin(), load_builtin(image_size=448), load_builtin(dtype=torch.float16), load_builtin(constants=path),
    ]  # fmt: skip
    assert len({encoder.id for encoder in encoders}) == len(encoders)
    assert load_builtin().id == encoders[0].id
    assert CONSTANTS.stat().st_size < 700_000


def test_calibration_centres_and_whitens():
    source = Path(__file__).resolve().parents[2] / "bench" / "calibrate_builtin.py"
    spec = importlib.util.spec_from_file_location("calibrate_builtin", source)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    pixels = natural(12, 224)
    windows = patch_windows(cell_maps(pixels))
    constants = script.calibrate([[windows[:4]], [windows[4:8], windows[8:]]])
    centred = windows - constants["channel_mean"].repeat_interleave(16)
    tokens = centred @ constants["weight"].float().flatten(1).T + constants["bias"]
    weight = torch.where(torch.arange(12).view(-1, 1, 1) < 4, 0.5, 0.25) / (4 * 256)  # every recording the same
    mean = (tokens * weight).sum((0, 1))
    variance = (tokens.square() * weight).sum((0, 1)) - mean.square()
    assert mean.abs().max() < 0.02  # stored in half precision
    assert 0.9 < variance[0] < 1.02 and (variance[1:] < 1.02 * variance[:-1] + 0.01).all()


@pytest.mark.needs_cuda
def test_cuda_equals_the_cpu(encoder):
    pixels = natural(4, 224)
    there = load_builtin("cuda").forward(pixels.cuda())
    for a, b in zip(there, encoder.forward(pixels), strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-3, rtol=0)
