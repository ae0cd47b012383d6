"""What comparing needs of one video: patch tokens of a few frames, and small pictures of many."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.ops import QuantizedTokens

ORIENTATIONS = (
    "as it is", "turned 90", "turned 180", "turned 270",
    "mirrored", "mirrored, turned 90", "upside down", "mirrored, turned 270",
)  # fmt: skip
"""`turn(pixels, k)` makes the k-th: mirrored for k >= 4, then turned k % 4 quarters counter-clockwise."""
TURNS = {"none": (0,), "mirror": (0, 4), "all": tuple(range(8))}
"""Option --orientations: the ways in which the frames of a query are tried."""
SCALES = ((1.0, 160), (0.69, 80), (0.5, 48), (0.31, 24))
"""Sizes at which every content frame is looked at, and how many patch tokens of each are kept on a 16 × 16 grid: those
with the most gradient energy, flat ones match everything. A video shown small inside another one, or cut out and
enlarged, is found at another size."""
QUERY_SCALES = ((0, 96), (2, 48))
"""Of SCALES by number, and the tokens of each, that a query is compared by: together sizes differ by 0.31 to 2."""
QUERY_FRAMES = 5
"""Content frames that a query is compared by, evenly spaced, if it has no more than 8; see `query_frames`."""
FLAT = 0.006
"""Mean gradient, of luma 0..1 per two pixels, below which patches count less: they match everything."""
PICTURE = 56
"""Pixels a side of the small pictures."""
LUMA = (0.299, 0.587, 0.114)
BORDER_LEVEL = 0.02
"""Rows and columns that vary less than this, of 0..1, over their length and over time, are bars."""
BORDER_MIN = 4 / 224
"""Bars narrower than this are left alone."""
PICTURE_LEAST = 0.2
"""A picture smaller than this between bars is no picture: a dark frame, say."""


@dataclass(frozen=True)
class CopyFeatures:
    """Features of one video: F content frames of K tokens, about one a second; O orientations; T small pictures."""

    frame_seconds: Tensor
    """float64 [F], from the first frame."""
    codes: Tensor
    """int8 [F, K, D'], patch tokens of the content frames, size by size, the most energetic first, as `quantize_tokens`
    makes them."""
    code_scales: Tensor
    """float32 [F, K]: codes · code_scales are tokens of length 1."""
    places: Tensor
    """uint8 [F, K, 2], x and y of the patch centres in 256ths of the picture between its bars."""
    weights: Tensor
    """float16 [F, K], gradient energy of the patches, sums to 1 per frame and size; a featureless frame has zeros."""
    background: Tensor
    """float16 [F, K], how well each token is matched by pictures it has nothing to do with, see `content`."""
    scales: Tensor
    """uint8 [K], number in SCALES."""
    orientations: Tensor
    """int64 [O], indices of ORIENTATIONS, the first 0."""
    turned_codes: Tensor
    """int8 [O - 1, Fq, Kq, D']: of `query_frames` in the other orientations, at the sizes of QUERY_SCALES; likewise the
    next four."""
    turned_code_scales: Tensor
    turned_places: Tensor
    turned_weights: Tensor
    turned_background: Tensor
    turned_scales: Tensor
    """uint8 [Kq]."""
    box: Tensor
    """float32 [4], top, left, bottom, right of the picture between constant bars, as fractions of the frame."""
    picture_seconds: Tensor
    """float64 [T], from the first frame."""
    pictures: Tensor
    """uint8 [T, PICTURE, PICTURE], luma of the whole frame."""
    embeddings: Tensor
    """float16 [T, D], of length 1, CLS tokens or mean patch tokens."""
    centroids: Tensor
    """float32 [T, 2], centre of attention; NaN where the encoder gives none."""
    featureless: Tensor
    """bool [T], black or without texture."""

    @property
    def blank(self) -> bool:
        """No frame shows anything that could be compared."""
        return not bool((self.weights > 0).any())

    @property
    def duration_seconds(self) -> float:
        """Of the sampled pictures, the last one's own time included."""
        times = self.picture_seconds
        return float(times[-1] - times[0]) * len(times) / max(1, len(times) - 1)

    @property
    def tokens(self) -> QuantizedTokens:
        return QuantizedTokens(self.codes, self.code_scales)

    @property
    def turned_tokens(self) -> QuantizedTokens:
        return QuantizedTokens(self.turned_codes, self.turned_code_scales)

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> CopyFeatures:
        """Raises: KeyError: one is missing."""
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})


def luma(pixels: Tensor) -> Tensor:
    """[B, H, W] of RGB pixels [B, 3, H, W]."""
    return torch.einsum("bchw,c->bhw", pixels, pixels.new_tensor(LUMA))


def small_pictures(pixels: Tensor) -> Tensor:
    """uint8 [B, PICTURE, PICTURE], luma of RGB pixels [B, 3, H, W] in 0..1."""
    small = F.interpolate(luma(pixels)[:, None], (PICTURE, PICTURE), mode="bilinear", antialias=True)[:, 0]
    return (small * 255).round().clamp(0, 255).byte()


def picture_box(pixels: Tensor) -> Tensor:
    """Where the picture lies between bars that are constant in all frames [F, 3, H, W]: `CopyFeatures.box`."""
    grey = luma(pixels)
    _, height, width = grey.shape
    top, bottom = _bars(grey)
    left, right = _bars(grey.mT)
    if height - top - bottom < PICTURE_LEAST * height or width - left - right < PICTURE_LEAST * width:
        return torch.tensor([0.0, 0.0, 1.0, 1.0])
    return torch.tensor([top / height, left / width, 1 - bottom / height, 1 - right / width])


def _bars(grey: Tensor) -> tuple[int, int]:
    """Rows at the start and at the end of [F, H, W] that show one level, the same in all frames."""
    along = grey.std(2, correction=0).amax(0)
    over_time = grey.mean(2).std(0, correction=0)
    constant = ((along < BORDER_LEVEL) & (over_time < BORDER_LEVEL)).long()
    runs = [int(side.cumprod(0).sum()) for side in (constant, constant.flip(0))]
    return tuple(run if run >= BORDER_MIN * len(constant) else 0 for run in runs)


def cut(pixels: Tensor, box: Tensor) -> Tensor:
    """The part of pixels [B, 3, H, W] inside `box`, resized to the whole."""
    height, width = pixels.shape[-2:]
    top, left, bottom, right = (box * torch.tensor([height, width, height, width])).round().long().tolist()
    if (top, left, bottom, right) == (0, 0, height, width):
        return pixels
    part = pixels[..., top:bottom, left:right]
    return F.interpolate(part, (height, width), mode="bilinear", antialias=True)


def turn(pixels: Tensor, orientation: int) -> Tensor:
    """Pixels [..., H, W] in one of ORIENTATIONS."""
    if orientation >= 4:
        pixels = pixels.flip(-1)
    return torch.rot90(pixels, orientation % 4, (-2, -1))


def turned_box(box: Tensor, orientation: int) -> Tensor:
    """`CopyFeatures.box` of the turned frame."""
    top, left, bottom, right = box.tolist()
    if orientation >= 4:
        left, right = 1 - right, 1 - left
    for _ in range(orientation % 4):
        top, left, bottom, right = 1 - right, top, 1 - left, bottom
    return torch.tensor([top, left, bottom, right])


def patch_energy(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """float32 [B, P], mean gradient of luma, per two pixels, in each patch of RGB pixels [B, 3, H, W]."""
    grey = F.avg_pool2d(luma(pixels)[:, None], 2)
    along_x = F.pad(grey, (1, 1, 0, 0), mode="replicate")
    along_y = F.pad(grey, (0, 0, 1, 1), mode="replicate")
    gx, gy = along_x[..., 2:] - along_x[..., :-2], along_y[..., 2:, :] - along_y[..., :-2, :]
    return F.adaptive_avg_pool2d((gx.square() + gy.square()).sqrt() / 2, grid).flatten(1)


def patch_places(grid: tuple[int, int]) -> Tensor:
    """uint8 [P, 2], x and y of the patch centres in 256ths, row-major."""
    rows, columns = grid
    y, x = ((torch.arange(n) + 0.5) / n for n in grid)
    return (torch.stack([x.repeat(rows), y.repeat_interleave(columns)], 1) * 256).round().byte()


def query_frames(frames: int) -> Tensor:
    """int64 [Fq], the content frames that a query is compared by: five of eight."""
    count = min(frames, max(QUERY_FRAMES, round(frames * QUERY_FRAMES / 8)))
    return ((torch.arange(count) + 0.5) * frames / count).long()


def scaled_grid(grid: tuple[int, int], scale: float) -> tuple[int, int]:
    """Patches of a frame that is shown at `scale`."""
    return tuple(max(1, round(n * scale)) for n in grid)


def mosaics(pixels: Tensor, grid: tuple[int, int], scale: float) -> Tensor:
    """Frames [F, 3, H, W] made smaller, as many to a picture [N, 3, H, W] as fit on its grid of patches."""
    side = scaled_grid(grid, scale)
    rows, columns = (n // m for n, m in zip(grid, side, strict=True))
    patch = [n // m for n, m in zip(pixels.shape[-2:], grid, strict=True)]
    height, width = (n * m for n, m in zip(side, patch, strict=True))
    small = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    small = torch.cat([small, small[-1:].expand(-len(small) % (rows * columns), -1, -1, -1)])
    tiles = small.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    rest = (0, pixels.shape[-1] - tiles.shape[-1], 0, pixels.shape[-2] - tiles.shape[-2])
    return F.pad(tiles, rest, mode="replicate")


def mosaic_tokens(patches: Tensor, grid: tuple[int, int], scale: float, frames: int) -> Tensor:
    """[F, P', D] tokens of each frame, P' = Hp' · Wp' of `scaled_grid`, from those [N, P, D] of `mosaics`."""
    side = scaled_grid(grid, scale)
    rows, columns = (n // m for n, m in zip(grid, side, strict=True))
    maps = patches.unflatten(1, grid)[:, : rows * side[0], : columns * side[1]]
    tiles = maps.unflatten(2, (columns, side[1])).unflatten(1, (rows, side[0])).transpose(2, 3)
    return tiles.flatten(3, 4).flatten(0, 2)[:frames]


def select_tokens(patches: Tensor, energy: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` tokens of each frame with the most energy.

    Args:
        patches: [F, P, D].  energy: float32 [F, P].  places: uint8 [P, 2].
    Returns:
        tokens float32 [F, K, D] of length 1, places uint8 [F, K, 2], weights float16 [F, K] that sum to 1,
        or less where even these patches are nearly flat; K = min(count, P).
    """
    energy, index = energy.topk(min(count, energy.shape[1]), dim=1)
    tokens = patches.gather(1, index[..., None].expand(-1, -1, patches.shape[2])).float()
    weights = energy / energy.sum(1, keepdim=True).clamp_min(FLAT * energy.shape[1])
    return F.normalize(tokens, dim=2), places.to(index.device)[index], weights.half()
