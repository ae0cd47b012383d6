"""Planes and RGB to pixels: colour against swscale, resize against PIL, every backend against the fp64 reference."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from compare import assert_matches_reference
from PIL import Image

from vsim_fast.ops import nv12_to_pixels, rgb_to_pixels
from vsim_fast.ops.nv12 import reference

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
LEVELS = dict(mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)  # output in 0..255
DEFAULTS = dict(
    matrix="bt601", full_range=False, bit_depth=8, interpolation="bicubic", rotation=0, mirrored=False, **LEVELS
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on the CPU Triton is interpreted
PIL_FILTER = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
EXACT = Interpolation.POINT | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND  # nearest chroma, no bias
SWSCALE = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709, "bt2020": Colorspace.BT2020}


def scene(height: int, width: int) -> torch.Tensor:
    """uint8 [H, W, 3]: smooth shading, edges and fine texture, with flat black and white to clip at."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    picture = torch.stack((x, 1 - y, 0.5 + 0.5 * torch.sin(9 * x * y)), dim=-1)
    blocks = torch.rand(1, 3, 9, 12, generator=generator)
    picture = 0.5 * picture + 0.6 * F.interpolate(blocks, size=(height, width))[0].permute(1, 2, 0)
    picture = picture + 0.06 * torch.randn(height, width, 3, generator=generator)
    picture[: height // 5, : width // 3] = 0
    picture[-(height // 6) :, -(width // 4) :] = 1
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def planes(height: int, width: int, *, bit_depth: int = 8, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy planes: smooth luma and chroma, code values mostly in gamut with some out of it."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, (height + 1) // 2 * 2, (width + 1) // 2 * 2)
    smooth = F.interpolate(torch.rand(batch, 3, 5, 7, generator=generator), size=shape[2:], mode="bilinear")
    codes = (smooth + 0.08 * torch.randn(shape, generator=generator)).clamp(0, 1) * ((1 << bit_depth) - 1)
    codes = codes.round().to(torch.int32).to(torch.uint8 if bit_depth == 8 else torch.uint16)
    uv = torch.stack((codes[:, 1, ::2, ::2], codes[:, 2, ::2, ::2]), dim=-1)
    return codes[:, 0, :height, :width].contiguous().to(DEVICE), uv.contiguous().to(DEVICE)


def oracle(y, uv, *, size, crop=None, **options) -> torch.Tensor:
    """The reference in fp64, with the public function's defaults."""
    options = DEFAULTS | options
    return reference.nv12_to_pixels(
        y.cpu(), uv.cpu(), size=size, crop=crop or (0, 0, *size), dtype=torch.float64, out=None, **options
    )


def swscale_rgb(y, uv, *, matrix: str, full_range: bool, bit_depth: int, flags=EXACT) -> torch.Tensor:
    """uint8 [H, W, 3] of one frame, by FFmpeg's own conversion; `flags` None means its default."""
    height, width = y.shape
    frame = av.VideoFrame(width, height, "yuv420p" if bit_depth == 8 else "yuv420p10le")
    for plane, data in zip(frame.planes, (y, *uv.unbind(-1)), strict=True):
        codes = data.cpu().numpy()
        rows = np.zeros((plane.height, plane.line_size // codes.itemsize), codes.dtype)
        rows[:, : codes.shape[1]] = codes
        plane.update(rows)
    rgb = frame.reformat(
        format="rgb24",
        interpolation=flags,
        src_colorspace=SWSCALE[matrix],
        dst_colorspace=SWSCALE[matrix],
        src_color_range=ColorRange.JPEG if full_range else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    )
    return torch.from_numpy(rgb.to_ndarray().copy())


def identity(y, uv, backend, **color) -> torch.Tensor:
    """[H, W, 3] levels of the first frame at its own size: the colour conversion alone."""
    size = tuple(y.shape[1:])
    pixels = nv12_to_pixels(y[:1], uv[:1], size=size, **LEVELS, **color, dtype=torch.float32, backend=backend)
    return pixels[0].permute(1, 2, 0).cpu()


def off_by(got: torch.Tensor, want: torch.Tensor) -> tuple[float, float, float]:
    """Mean, 99th percentile and maximum of |got − want|."""
    error = (got.double() - want.double()).abs().flatten()
    return error.mean().item(), error.quantile(0.99).item(), error.max().item()


BACKENDS = ["triton", "reference"] + (["torch"] if DEVICE == "cpu" else [])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bit_depth", [8, 10])
@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
def test_colour_matches_exact_swscale(matrix, full_range, bit_depth, backend):
    color = dict(matrix=matrix, full_range=full_range, bit_depth=bit_depth)
    y, uv = planes(64, 96, bit_depth=bit_depth)
    mean, p99, most = off_by(identity(y, uv, backend, **color), swscale_rgb(y[0], uv[0], **color))
    # swscale takes 10-bit full range as 0..1020: mean 0.3; fp16 colour rounds a few values the other way
    assert mean <= 0.35 and p99 <= 1.1 and most <= 1.3


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
def test_colour_is_near_default_swscale(matrix, full_range):
    """What PyAV gives unasked: a table that rounds down. From 10 bits it interpolates chroma, so 8 bits only."""
    color = dict(matrix=matrix, full_range=full_range, bit_depth=8)
    y, uv = planes(64, 96)
    mean, p99, most = off_by(identity(y, uv, "reference", **color), swscale_rgb(y[0], uv[0], **color, flags=None))
    assert mean <= 1.0 and p99 <= 3 and most <= 4


@pytest.mark.parametrize("wrong", [dict(matrix="bt709"), dict(full_range=True)], ids=["matrix", "range"])
def test_colour_tolerance_catches_a_wrong_tag(wrong):
    color = dict(matrix="bt601", full_range=False, bit_depth=8)
    y, uv = planes(64, 96)
    mean, p99, _ = off_by(identity(y, uv, "reference", **color | wrong), swscale_rgb(y[0], uv[0], **color))
    assert mean > 3 and p99 > 10


@pytest.mark.parametrize(
    ("matrix", "yuv", "rgb"),
    [
        ("bt601", (180, 128, 128), (191, 191, 191)),
        ("bt601", (65, 100, 212), (191, 0, 1)),
        ("bt601", (35, 212, 114), (0, 1, 192)),
        ("bt709", (51, 109, 212), (191, 0, 1)),
    ],
    ids=["grey", "red", "blue", "red-709"],
)
def test_colour_of_75_percent_bars(matrix, yuv, rgb):
    """Limited-range code values of the standard colour bars, worked by hand."""
    y, u, v = torch.tensor(yuv, dtype=torch.uint8)
    uv = torch.stack((u, v)).view(1, 1, 1, 2)
    color = dict(matrix=matrix, full_range=False, bit_depth=8)
    got = reference.planes_to_rgb(y.view(1, 1, 1), uv, **color, dtype=torch.float64)
    assert got.flatten().tolist() == list(rgb)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("in_size", "out_size"), [(1080, 224), (144, 448), (719, 448), (7, 7), (1, 9), (33, 1)])
def test_resize_weights_match_torch(in_size, out_size, interpolation):
    matrix = reference.resize_matrix(in_size, out_size, interpolation, 0, out_size)
    impulses = torch.eye(in_size, dtype=torch.float64)[None, None]  # [1, 1, in, in]
    want = F.interpolate(impulses, size=(in_size, out_size), mode=interpolation, antialias=True)[0, 0].T
    assert_matches_reference(matrix, want, dtype=torch.float32)


@pytest.mark.parametrize("backend", ["reference"] + (["torch"] if DEVICE == "cpu" else []))
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(112, 112), (97, 301), (480, 512)], ids=["down", "odd", "up"])
def test_rgb_matches_pil(size, interpolation, backend):
    rgb = scene(270, 480)
    pil = Image.fromarray(rgb.numpy()).resize(size[::-1], PIL_FILTER[interpolation])
    got = rgb_to_pixels(
        rgb[None].to(DEVICE), size=size, **LEVELS, interpolation=interpolation, dtype=torch.float32, backend=backend
    )
    mean, p99, _ = off_by(got[0].permute(1, 2, 0).cpu(), torch.from_numpy(np.array(pil)))
    assert mean <= 0.5 and p99 <= 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_nv12_matches_pil_on_its_rgb(backend):
    y, uv = planes(180, 320, batch=1)
    rgb = reference.planes_to_rgb(y, uv, matrix="bt709", full_range=False, bit_depth=8, dtype=torch.float32)
    rgb = rgb[0].permute(1, 2, 0).to(torch.uint8).cpu()
    pil = Image.fromarray(rgb.numpy()).resize((56, 42), Image.Resampling.BICUBIC)
    got = nv12_to_pixels(y, uv, size=(42, 56), **LEVELS, matrix="bt709", dtype=torch.float32, backend=backend)
    mean, p99, _ = off_by(got[0].permute(1, 2, 0).cpu(), torch.from_numpy(np.array(pil)))
    assert mean <= 0.5 and p99 <= 2


CASES = {  # id -> (height, width, options)
    "down": (150, 260, dict(size=(32, 64))),
    "odd-bilinear": (131, 147, dict(size=(29, 37), interpolation="bilinear")),
    "up-crop": (36, 44, dict(size=(70, 90), crop=(3, 5, 61, 80))),
    "10-bit-turned": (66, 98, dict(size=(50, 41), crop=(0, 7, 50, 30), bit_depth=10, rotation=90, mirrored=True)),
    "10-bit-odd": (67, 97, dict(size=(30, 40), bit_depth=10, full_range=True)),
    "one-pixel": (1, 1, dict(size=(3, 2))),
    "wide": (8, 700, dict(size=(4, 70), matrix="bt2020", rotation=270)),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in CASES), ("down", torch.float16), ("10-bit-turned", torch.bfloat16)],
    ids=str,
)
def test_triton_matches_reference(name, dtype):
    height, width, options = CASES[name]
    y, uv = planes(height, width, bit_depth=options.get("bit_depth", 8))
    got = nv12_to_pixels(y, uv, **options, **IMAGENET, dtype=dtype, backend="triton")
    want = oracle(y, uv, **options, **IMAGENET)
    # in levels of 255; 8-bit colour in fp16 rounds some pixels to the next level: measured mean 0.06, max 0.6
    error = (got.cpu().double() - want).abs() * 255 * 0.225
    output_step = {torch.float32: 0, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype] * 2.7 * 255 * 0.225
    assert got.dtype == dtype and error.mean() <= 0.1 + output_step / 2 and error.max() <= 1.25 + output_step


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mirrored", [False, True], ids=["plain", "mirrored"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_is_exact(rotation, mirrored, backend):
    y, uv = planes(50, 70)
    kw = dict(**IMAGENET, dtype=torch.float32, backend=backend)
    upright = nv12_to_pixels(y, uv, size=(24, 40), **kw)
    want = torch.rot90(upright, rotation // 90, (-2, -1))
    want = want.flip(-1) if mirrored else want
    got = nv12_to_pixels(y, uv, size=tuple(want.shape[-2:]), rotation=rotation, mirrored=mirrored, **kw)
    assert torch.equal(got, want)


@pytest.mark.parametrize("rotation", [90, 180])
def test_rotation_equals_resizing_the_displayed_picture(rotation):
    rgb = scene(90, 160).to(DEVICE)[None]
    displayed = torch.rot90(rgb, rotation // 90, (1, 2)).flip(2)
    kw = dict(size=(41, 60), **LEVELS, dtype=torch.float32, backend="reference")
    got, want = rgb_to_pixels(rgb, rotation=rotation, mirrored=True, **kw), rgb_to_pixels(displayed, **kw)
    assert_matches_reference(got, want, dtype=torch.float32, atol=1e-3)  # of 255: the two passes change places


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rotation", [0, 90, 270])
def test_crop_is_a_slice(rotation, backend):
    y, uv = planes(60, 84)
    kw = dict(size=(40, 52), **LEVELS, rotation=rotation, mirrored=True, dtype=torch.float32, backend=backend)
    whole = nv12_to_pixels(y, uv, **kw)
    part = nv12_to_pixels(y, uv, crop=(7, 11, 30, 33), **kw)
    # the filter tiles start elsewhere, so the sums are ordered differently
    assert_matches_reference(part, whole[..., 7:37, 11:44], dtype=torch.float32, atol=0.13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nv12_takes_strided_planes_and_writes_into_out(backend):
    y, uv = planes(48, 64)
    surface = torch.full((2, 72, 80), 7, dtype=torch.uint8, device=DEVICE)  # rows padded, planes in one buffer
    surface[:, :48, :64] = y
    surface[:, 48:, :64] = uv.flatten(2)
    views = surface[:, :48, :64], surface[:, 48:, :64].unflatten(2, (32, 2))
    kw = dict(size=(20, 30), **IMAGENET, backend=backend)
    out = torch.zeros(2, 3, 40, 60, dtype=torch.float16, device=DEVICE)[:, :, ::2, ::2]
    assert nv12_to_pixels(*views, out=out, **kw) is out
    assert torch.equal(out, nv12_to_pixels(y, uv, **kw))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nv12_on_an_empty_batch(backend):
    y, uv = planes(16, 16)
    assert nv12_to_pixels(y[:0], uv[:0], size=(8, 8), **IMAGENET, backend=backend).shape == (0, 3, 8, 8)


def test_default_backend_is_the_fast_one():
    y, uv = planes(30, 40)
    fast = "triton" if DEVICE == "cuda" else "torch"
    kw = dict(size=(14, 14), **IMAGENET)
    assert torch.equal(nv12_to_pixels(y, uv, **kw), nv12_to_pixels(y, uv, backend=fast, **kw))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(y=torch.zeros(1, 16, 16)), TypeError, "uint8 or uint16"),
        (dict(y=torch.zeros(16, 16, dtype=torch.uint8)), ValueError, r"y must be \[B, H, W\]"),
        (dict(uv=torch.zeros(1, 8, 16, dtype=torch.uint8)), ValueError, r"uv must be \(1, 8, 8, 2\)"),
        (dict(matrix="bt470"), ValueError, "matrix must be one of"),
        (dict(bit_depth=10), ValueError, "bit_depth must be 8"),
        (dict(size=(0, 8)), ValueError, "size must be"),
        (dict(crop=(0, 4, 8, 8)), ValueError, "inside size"),
        (dict(std=(1, 0, 1)), ValueError, "std above 0"),
        (dict(interpolation="area"), ValueError, "interpolation must be one of"),
        (dict(rotation=45), ValueError, "rotation must be"),
        (dict(dtype=torch.int8), TypeError, "dtype must be"),
        (dict(out=torch.zeros(1, 3, 8, 9)), ValueError, "out must be"),
        (dict(backend="cpp"), ValueError, "backend must be one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_nv12_rejects(change, error, message):
    y, uv = torch.zeros(1, 16, 16, dtype=torch.uint8), torch.zeros(1, 8, 8, 2, dtype=torch.uint8)
    good = dict(y=y, uv=uv, size=(8, 8), **IMAGENET)
    with pytest.raises(error, match=message):
        nv12_to_pixels(**good | change)


def test_rgb_rejects_planar_and_float():
    with pytest.raises(ValueError, match=r"rgb must be \[B, H, W, 3\]"):
        rgb_to_pixels(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), size=(4, 4), **IMAGENET)
    with pytest.raises(TypeError, match="rgb must be uint8"):
        rgb_to_pixels(torch.zeros(1, 8, 8, 3), size=(4, 4), **IMAGENET)
