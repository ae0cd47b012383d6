"""PSNR, SSIM and LPIPS between pictures of the same size: what the pixels say, beside what features say.

PSNR and SSIM go through blocks of rows that stay in a core's cache, in float32, whatever the size of the picture.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vsim_fast.encode.checkpoint import read_state
from vsim_fast.errors import EncoderError, UsageError, VsimError

RADIUS, SIGMA = 5, 1.5
"""Of the Gaussian window of SSIM: 11 pixels a side."""
K1, K2 = 0.01, 0.03
BLOCK_PIXELS = {"cpu": 1 << 16}
"""Pixels of a block: on a CPU the 12 maps of SSIM fill its caches; elsewhere launches are what costs."""
OTHER_BLOCK_PIXELS = 1 << 22
TRUNKS = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}
LEAST_SIDE = {"alex": 31, "vgg": 16, "squeeze": 17}
"""Net -> least height and width, in pixels, of pictures that `Lpips` takes; below it a layer has nothing left."""


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over all pixels and channels.

    Args:
        a, b: [B, 3, H, W], uint8, or floating point in 0..1; any device, any strides.
    Returns:
        float32 [B], dB; infinite where the two are equal.
    Raises:
        ValueError: shapes differ or are not [B, 3, H, W].  TypeError: another dtype.
    """
    _check(a, b)
    squares = a.new_zeros(len(a), dtype=torch.float32)
    with torch.inference_mode():
        for image, x, y in _blocks(a, b):
            squares[image] += x.sub_(y).square_().sum()
        return -10 * torch.log10(squares / math.prod(a.shape[1:]))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, mean over the colour channels and all places where the whole window fits.

    Args:
        a, b: as for `psnr`, at least 11 pixels high and wide.
    Returns:
        float32 [B], at most 1; 1 where the two are equal.
    Raises:
        ValueError, TypeError: as `psnr`; a picture smaller than the window.
    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity": Gaussian
    window of 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, population variances.
    """
    _check(a, b)
    side = 2 * RADIUS + 1
    if min(a.shape[2:]) < side:
        raise ValueError(
            f"SSIM needs pictures of at least {side}x{side} pixels, got {a.shape[3]}x{a.shape[2]} (width x height)"
        )
    sums = a.new_zeros(len(a), dtype=torch.float32)
    with torch.inference_mode():
        for image, x, y in _blocks(a, b, overlap=2 * RADIUS):
            sums[image] += _similarities(x, y).sum()
        return sums / (3 * (a.shape[2] - 2 * RADIUS) * (a.shape[3] - 2 * RADIUS))


def _similarities(x: Tensor, y: Tensor) -> Tensor:
    """SSIM at each place, from float [3, h, w] to [3, h - 10, w - 10].

    Sum and difference of the pictures need one smoothing less than the pictures themselves, and lose nothing where the
    two are nearly equal: with s = x + y and d = x - y, 2 cov(x, y) = (var s - var d) / 2, var x + var y = (var s + var
    d) / 2, and the same of the means.
    """
    maps = torch.stack((x + y, x - y, x, x))  # the last two are room for the squares
    maps[0] -= 1  # around 0, where squares of floats are exact to more places
    torch.square(maps[:2], out=maps[2:])
    smooth = gaussian_average(gaussian_average(maps, 2, SIGMA, RADIUS), 3, SIGMA, RADIUS)
    means, squares = smooth[:2], smooth[2:]
    squares.addcmul_(means, means, value=-1)  # now variances
    means[0] += 1
    means.square_()
    result = None
    for (of_sum, of_difference), k in ((means, K1), (squares, K2)):
        ratio = torch.sub(of_sum, of_difference).add_(2 * k**2)
        ratio.div_(of_sum.add_(of_difference).add_(2 * k**2))
        result = ratio if result is None else result.mul_(ratio)
    return result


def gaussian_average(maps: Tensor, dim: int, sigma: float, radius: int) -> Tensor:
    """Average along `dim` under a Gaussian of `sigma` cut at `radius`; `dim` loses `radius` at both ends."""
    weights = [math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(-radius, radius + 1)]
    length = maps.shape[dim] - 2 * radius
    total = maps.narrow(dim, 0, length) * (weights[0] / sum(weights))
    for start, weight in enumerate(weights[1:], 1):
        total.add_(maps.narrow(dim, start, length), alpha=weight / sum(weights))
    return total


def _check(a: Tensor, b: Tensor) -> None:
    for name, value in (("a", a), ("b", b)):
        if value.ndim != 4 or value.shape[1] != 3:
            raise ValueError(f"{name} must be [B, 3, H, W], got shape {tuple(value.shape)}")
        if value.dtype != torch.uint8 and not value.is_floating_point():
            raise TypeError(f"{name} must be uint8 or floating point, got {value.dtype}")
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")


def _blocks(a: Tensor, b: Tensor, overlap: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Image by image, rows of both as float32 [3, h, W] in 0..1 that the caller may overwrite."""
    height, width = a.shape[2:]
    rows = max(8, BLOCK_PIXELS.get(a.device.type, OTHER_BLOCK_PIXELS) // width)
    for image in range(len(a)):
        for top in range(0, height - overlap, rows):
            part = slice(top, min(top + rows + overlap, height))
            yield image, _unit(a[image, :, part]), _unit(b[image, :, part])


def _unit(picture: Tensor) -> Tensor:
    """A copy as contiguous float32; uint8 becomes 0..1."""
    copy = picture.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return copy.div_(255) if picture.dtype == torch.uint8 else copy


class Lpips:
    """Learned perceptual distance; needs the package `lpips` (extra `lpips`). Nothing is downloaded.

    Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric", version 0.1.
    """

    def __init__(self, net: str = "alex", device: str | torch.device = "cpu", *, trunk: str | Path | None = None):
        """
        Args:
            net: "alex", "vgg" or "squeeze".  device: where it runs.
            trunk: file of the ImageNet weights of `net`, as torchvision publishes them; default: under torchvision's
                name for it in the folder where torch.hub keeps its downloads.
        Raises:
            UsageError: an unknown net.  VsimError: the package is missing; the message names the extra.
            EncoderError: the trunk's file is missing, not readable or of another network.
        """
        if net not in TRUNKS:
            raise UsageError(f"LPIPS net must be one of {', '.join(TRUNKS)}, got {net!r}")
        try:
            from lpips import LPIPS
        except ImportError as error:
            raise VsimError(f"lpips does not import ({error}): pip install 'vsim_fast[lpips]'") from None
        self.net = net
        path = Path(trunk) if trunk is not None else _trunk_file(net)
        state = read_state(path)
        # The package would download the trunk itself; asked for a random one it does not.
        with torch.random.fork_rng(devices=()), warnings.catch_warnings(action="ignore"):
            self.model = LPIPS(net=net, pnet_rand=True, verbose=False).eval().requires_grad_(False)
        names = {key: f"features.{key.split('.', 1)[1]}" for key in self.model.net.state_dict()}
        if missing := [name for name in names.values() if name not in state]:
            raise EncoderError(
                f"{path}: {len(missing)} of the {len(names)} tensors of {net} are missing, e.g. {missing[0]}"
            )
        try:
            self.model.net.load_state_dict({key: state[name] for key, name in names.items()})
        except RuntimeError as error:  # shapes
            raise EncoderError(f"{path}: not the weights of {net} ({str(error).splitlines()[-1].strip()})") from None
        self.model.to(device)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances, float32 [B], 0 where the two are equal; `a` and `b` as for `psnr`, on the device of the network.

        Raises:
            ValueError, TypeError: as `psnr`; a picture smaller than `LEAST_SIDE`.
        """
        _check(a, b)
        if min(a.shape[2:]) < LEAST_SIDE[self.net]:
            raise ValueError(
                f"LPIPS ({self.net}) needs pictures of at least {LEAST_SIDE[self.net]}x{LEAST_SIDE[self.net]} pixels, "
                f"got {a.shape[3]}x{a.shape[2]} (width x height)"
            )
        with torch.inference_mode():
            return self.model(_unit(a), _unit(b), normalize=True).flatten()


def _trunk_file(net: str) -> Path:
    """Where torch.hub keeps the trunk's weights, which must be there."""
    import torchvision

    url = getattr(torchvision.models, TRUNKS[net]).IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    if not path.is_file():
        raise EncoderError(f"{path}: no such file; LPIPS ({net}) needs it and downloads nothing: fetch {url}")
    return path
