"""The encoder that ships with the package: a fixed descriptor of 14-pixel patches, no download, nothing trained.

Every frame becomes 30 maps of 7-pixel cells (`cell_maps`): oriented gradients at three scales, low frequencies of luma
and chroma, energies of three frequency bands. A patch reads the 4×4 cells around it (28 pixels), and one linear map
centres, whitens and reduces those 480 numbers to 384: a single strided convolution. Its constants are a mean and a
covariance over natural video, estimated by bench/calibrate_builtin.py.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vsim_fast.encode.base import Encoder, Preprocess, Tokens
from vsim_fast.errors import EncoderError, UsageError

PATCH = 14
CELL = PATCH // 2
WINDOW = 4
"""Cells per side that one patch sees."""
ORIENTATIONS = 8
CHANNELS = 3 * ORIENTATIONS + 3 + 3
LAYOUT = 4
"""The CLS token is LAYOUT × LAYOUT regions, row-major, of DIM / LAYOUT² numbers each."""
DIM = 384
GRADIENT_FLOOR = 1e-3
"""Gradient (of luma 0..1, per pixel) below which orientation is noise."""
ENERGY_FLOOR = 1e-5
"""Band energy of about one grey level of 255."""
CPU_BATCH_SIZE = 8
"""As fast as larger batches, in a quarter of the memory of 32."""
CONSTANTS = Path(__file__).with_name("builtin.safetensors")
SHAPES = {
    "channel_mean": (CHANNELS,), "weight": (DIM, CHANNELS, WINDOW, WINDOW), "bias": (DIM,),
    "cls_mean": (DIM,), "cls_weight": (DIM // LAYOUT**2, DIM),
}  # fmt: skip

# rows: luma of BT.601, Cb, Cr, all on the 0..1 scale
YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168636, -0.331068, 0.499704], [0.499813, -0.418531, -0.081282]])


def load_builtin(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    image_size: int | None = None,
    *,
    constants: Path = CONSTANTS,
) -> BuiltinEncoder:
    """The built-in encoder.

    Args:
        device: where it computes.  dtype: of the tokens. Everything before them is float32: an 8-bit level is no more
            than a rounding step of half precision, and flat patches would change direction with it.
        image_size: pixels per side, a multiple of 14, at least 56; None is 224.
        constants: file written by bench/calibrate_builtin.py; the one in the package by default.
    Raises:
        UsageError: `image_size` breaks its rule.  EncoderError: the constants are missing or have another shape.
    """
    return BuiltinEncoder(torch.device(device), dtype, 224 if image_size is None else image_size, constants)


class BuiltinEncoder(Encoder):
    """Whitened patch descriptor; see the module for what it computes.

    patches: [B, P, 384]. Cosines of unrelated patches scatter around 0.
    cls: [B, 384], the patch tokens averaged over 4×4 regions of the frame, each region whitened to 24 numbers, joined.
    attention: [B, P], local contrast: square root of each patch's mean gradient magnitude, sums to 1 per frame;
        a frame without any contrast gets 1 / P everywhere.
    """

    spec = "builtin"
    attention_kind = "local contrast: square root of the mean gradient magnitude, sums to 1 per frame"

    def __init__(self, device: torch.device, dtype: torch.dtype, image_size: int, constants: Path):
        if image_size < LAYOUT * PATCH or image_size % PATCH:
            least = LAYOUT * PATCH
            raise UsageError(f"builtin: image size must be a multiple of {PATCH}, at least {least}, got {image_size}")
        try:
            data = constants.read_bytes()
            tensors = load_file(constants)
        except (OSError, SafetensorError) as error:
            raise EncoderError(f"builtin: cannot read {constants} ({error}); reinstall vsim_fast") from None
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != SHAPES:
            raise EncoderError(f"builtin: {constants} must hold {SHAPES}, got {shapes}")
        self.device, self.dtype, self._token_dtype, self.patch_size, self.dim = device, torch.float32, dtype, PATCH, DIM
        if device.type == "cpu":
            self.batch_size = CPU_BATCH_SIZE
        self.grid = (image_size // PATCH, image_size // PATCH)
        self.preprocess = Preprocess((image_size, image_size), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        digest = hashlib.sha256(data).hexdigest()[:12]
        self.id = f"builtin.{digest}.{image_size}px.{str(dtype).removeprefix('torch.')}"
        self._channel_mean = tensors["channel_mean"].float().view(-1, 1, 1).to(device)
        # [480, 384]: rows as F.unfold lays them out, channel, then row and column in the window
        self._weight = tensors["weight"].float().flatten(1).T.contiguous().to(device)
        self._bias = tensors["bias"].float().to(device)
        self._cls_mean = tensors["cls_mean"].float().to(device)
        self._cls_weight = tensors["cls_weight"].float().T.contiguous().to(device)
        self._regions = region_weights(self.grid).to(device)

    @property
    def token_dtype(self) -> torch.dtype:
        return self._token_dtype

    def forward(self, pixels: Tensor) -> Tokens:
        maps = cell_maps(pixels.float())
        patches = patch_windows(maps - self._channel_mean) @ self._weight + self._bias
        regions = self._regions @ patches - self._cls_mean  # [B, 16, D]
        cls = (regions @ self._cls_weight).flatten(1)
        return Tokens(patches.to(self.token_dtype), cls.to(self.token_dtype), contrast(maps))


def cell_maps(pixels: Tensor) -> Tensor:
    """What the descriptor sees of RGB pixels: one number per cell of 7 pixels and channel.

    Channels: 3 × 8 oriented gradients (directions of 45° steps; differences over 2-, 4- and 7-pixel samples; square
    root of the cell's mean), luma and two chroma means, half the log energy of three frequency bands.

    Args:
        pixels: float32 [B, 3, H, W] in 0..1, H and W multiples of 14.
    Returns:
        float32 [B, 30, H / 7, W / 7].
    """
    ycc = torch.einsum("kc,bchw->bkhw", luma_chroma(pixels.device), pixels)
    full = ycc[:, :1]  # [B, 1, H, W]
    half = F.avg_pool2d(full, 2)
    low = F.avg_pool2d(ycc, CELL)  # [B, 3, H / 7, W / 7]
    half_smooth = smooth(half)
    bands = (full - smooth(full), half - half_smooth, half_smooth - smooth(smooth(half_smooth)))
    energy = torch.cat([F.avg_pool2d(bands[0].square(), CELL), *(pool_half(b.square()) for b in bands[1:])], 1)
    gradients = torch.cat([
        pool_half(oriented_gradients(half, reach=1)),
        pool_half(oriented_gradients(half_smooth, reach=2)),
        oriented_gradients(low[:, :1], reach=1),
    ], 1)  # fmt: skip
    return torch.cat([(gradients + GRADIENT_FLOOR).sqrt(), low, 0.5 * (energy + ENERGY_FLOOR).log()], 1)


@cache
def luma_chroma(device: torch.device) -> Tensor:
    """YCC on the device: a copy per forward pass would wait for the pass before."""
    return YCC.to(device)


def oriented_gradients(image: Tensor, *, reach: int) -> Tensor:
    """Gradient magnitude of [B, 1, H, W] shared out to 8 directions by cos² of the angle where positive: [B, 8, H, W].

    reach=1: Sobel differences; reach=2: plain differences between samples four apart.
    """
    image = F.pad(image, (reach,) * 4, mode="replicate")
    if reach == 1:
        gx, gy = difference(binomial(image, -2), -1, 1), difference(binomial(image, -1), -2, 1)
    else:
        gx = difference(image[..., reach:-reach, :], -1, reach)
        gy = difference(image[..., :, reach:-reach], -2, reach)
    magnitude = (gx.square() + gy.square() + 1e-10).sqrt()
    turns = torch.arange(ORIENTATIONS // 2, device=image.device) * (2 * math.pi / ORIENTATIONS)
    along = gx * turns.cos().view(-1, 1, 1) + gy * turns.sin().view(-1, 1, 1)  # [B, 4, H, W]
    share = along * along.abs() / magnitude
    return torch.cat([share.clamp(min=0), (-share).clamp_(min=0)], 1)


def difference(image: Tensor, dim: int, reach: int) -> Tensor:
    """(image[i + reach] − image[i − reach]) / (2 · reach) along `dim`, without the borders."""
    n = image.shape[dim] - 2 * reach
    return (image.narrow(dim, 2 * reach, n) - image.narrow(dim, 0, n)) / (2 * reach)


def binomial(image: Tensor, dim: int) -> Tensor:
    """(1 2 1) / 4 along `dim`, without the borders. Slices: conv2d of one channel is 20 times slower on CPUs."""
    n = image.shape[dim] - 2
    return (image.narrow(dim, 0, n) + 2 * image.narrow(dim, 1, n) + image.narrow(dim, 2, n)) / 4


def smooth(image: Tensor) -> Tensor:
    """Binomial 3×3 low pass of [B, 1, H, W], edges repeated."""
    return binomial(binomial(F.pad(image, (1, 1, 1, 1), mode="replicate"), -2), -1)


def pool_half(maps: Tensor) -> Tensor:
    """Cell means of [B, C, H / 2, W / 2] maps, where a cell is 3.5 samples wide: [B, C, H / 7, W / 7]."""
    rows, cols = (half_cells(n, maps.device) for n in maps.shape[-2:])
    return rows @ (maps @ cols.T)


@cache
def half_cells(samples: int, device: torch.device) -> Tensor:
    """[cells, samples], rows sum to 1: the sample between two cells counts half to each."""
    pair = torch.tensor([[1, 1, 1, 0.5, 0, 0, 0], [0, 0, 0, 0.5, 1, 1, 1]]) / 3.5
    return torch.block_diag(*[pair] * (samples // CELL)).to(device)


def patch_windows(maps: Tensor) -> Tensor:
    """The 4×4 cells around each patch, edges repeated: [B, C, 2·Hp, 2·Wp] to [B, Hp·Wp, C·16]."""
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    return F.unfold(padded, WINDOW, stride=2).transpose(1, 2)


def contrast(maps: Tensor) -> Tensor:
    """float32 [B, P], sums to 1: square root of the patch's mean gradient magnitude at the finest gradient scale."""
    magnitude = (maps[:, :ORIENTATIONS].square() - GRADIENT_FLOOR).clamp(min=0).sum(1)  # undo the root, drop the floor
    weight = (F.avg_pool2d(magnitude, 2).flatten(1) + 1e-12).sqrt()
    return weight / weight.sum(1, keepdim=True)


def region_weights(grid: tuple[int, int]) -> Tensor:
    """[LAYOUT², P], rows sum to 1: mean over each region, a patch on a border shared by area."""

    def overlap(n: int) -> Tensor:
        start = torch.arange(LAYOUT)[:, None] * n / LAYOUT
        patch = torch.arange(n)
        return ((patch + 1).minimum(start + n / LAYOUT) - torch.maximum(patch, start)).clamp(min=0) * LAYOUT / n

    rows, cols = map(overlap, grid)
    return torch.einsum("ai,bj->abij", rows, cols).reshape(LAYOUT**2, -1)
