"""What every encoder is: pixels in, patch tokens, CLS and one attention row out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast import ops
from vsim_fast.errors import DeviceError
from vsim_fast.records import FrameBatch, FrameFeatures


@dataclass(frozen=True)
class Preprocess:
    """How a frame becomes encoder input, from the model's own configuration."""

    size: tuple[int, int]
    """(height, width) in pixels fed to the encoder."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fit: Literal["squash", "crop"] = "squash"
    """squash: the whole frame is resized to `size`, aspect ignored, so that the patch grid covers the frame.
    crop: the short side is resized to size / crop_fraction, then the centre is cut out, as classifiers do."""
    crop_fraction: float = 1.0

    def pixels(self, frames: FrameBatch, device: torch.device, dtype: torch.dtype) -> Tensor:
        """[B, 3, H, W] normalised input for `frames`, rotation applied."""
        info, size, crop = frames.info, self.size, None
        if self.fit == "crop":
            height, width = info.display_size
            scale = max(self.size[0] / height, self.size[1] / width) / self.crop_fraction
            size = (max(self.size[0], round(height * scale)), max(self.size[1], round(width * scale)))
            crop = ((size[0] - self.size[0]) // 2, (size[1] - self.size[1]) // 2, *self.size)
        options = dict(
            size=size, crop=crop, mean=self.mean, std=self.std, interpolation=self.interpolation,
            rotation=info.rotation, mirrored=info.mirrored, dtype=dtype,
        )  # fmt: skip
        if frames.rgb is not None:
            return ops.rgb_to_pixels(frames.rgb.to(device, non_blocking=True), **options)
        y, uv = (plane.to(device, non_blocking=True) for plane in (frames.y, frames.uv))
        color = info.color
        return ops.nv12_to_pixels(
            y, uv, matrix=color.matrix, full_range=color.full_range, bit_depth=color.bit_depth, **options
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Tokens(NamedTuple):
    """One forward pass over B frames."""

    patches: Tensor
    """[B, P, D], row-major, not normalised."""
    cls: Tensor | None
    """[B, D] or None."""
    attention: Tensor | None
    """float32 [B, P] or None."""


class Encoder(ABC):
    """A vision encoder with its preprocessing.

    Attributes:
        spec: the string that `load_encoder` was given.
        id: `spec` plus a digest of the weights' identity, size and precision; equal ids mean comparable features.
        device, dtype: where and in what precision `forward` computes.
        preprocess: resize, crop and normalisation.
        patch_size: pixels per patch side.  grid: (Hp, Wp).  dim: D.
        random_weights: True for `@random` specs; shown in every output.
        has_cls_token: Tokens.cls is a token of the sequence, so that it can be averaged with the patches.
        attention_kind: what `attention` means for this encoder, one line.
        execution: how `forward` is run: "eager", "compiled", "graphs" or "compiled+graphs"; not part of `id`, for the
            tokens agree within the tolerances of their dtype.
    """

    spec: str
    id: str
    device: torch.device
    dtype: torch.dtype
    preprocess: Preprocess
    patch_size: int
    grid: tuple[int, int]
    dim: int
    random_weights: bool = False
    has_cls_token: bool = False
    attention_kind: str = "CLS-row attention of the last layer, mean over heads"
    execution: str = "eager"
    batch_size: int = 32
    """Most frames per forward pass; halved for good when memory runs out."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tokens:
        """Tokens of pixels [B, 3, H, W], normalised, of `self.dtype` on `self.device`."""

    @property
    def token_dtype(self) -> torch.dtype:
        """Of the tokens that `forward` returns."""
        return self.dtype

    def pixels(self, frames: FrameBatch) -> Tensor:
        """[B, 3, H, W] normalised input for `frames`, on `self.device` in `self.dtype`, rotation applied."""
        return self.preprocess.pixels(frames, self.device, self.dtype)

    def normalise(self, rgb: Tensor) -> Tensor:
        """Encoder input of RGB [..., 3, H, W] in 0..1 that has its size already."""
        mean, std = self._mean_std(rgb.device)
        return ((rgb - mean) / std).to(self.dtype)

    def denormalise(self, pixels: Tensor) -> Tensor:
        """float32 RGB, in or near 0..1, of encoder input [..., 3, H, W]."""
        mean, std = self._mean_std(pixels.device)
        return pixels.float() * std + mean

    def _mean_std(self, device: torch.device) -> tuple[Tensor, Tensor]:
        pre = self.preprocess
        return tuple(torch.tensor(v, dtype=torch.float32, device=device)[:, None, None] for v in (pre.mean, pre.std))

    def picture(self, pixels: Tensor, size: tuple[int, int]) -> np.ndarray:
        """What the encoder saw of one frame, from its input [3, H, W] to uint8 [h, w, 3] of `size` (at least 8 a side:
        CUDA's resize cannot shrink to a line), resized where the pixels are."""
        size = tuple(max(8, side) for side in size)
        picture = F.interpolate(self.denormalise(pixels)[None], size, mode="bilinear", antialias=True)[0]
        return (picture * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()

    def forward_in_batches(self, pixels: Tensor) -> Tokens:
        """`forward` over any number of frames; when memory runs out the batch is halved and the same frames retried.

        Raises: DeviceError: the memory does not hold one frame.
        """
        parts: list[Tokens] = []
        start = 0
        while start < len(pixels):
            chunk = pixels[start : start + self.batch_size]
            try:
                with torch.inference_mode():
                    parts.append(self.forward(chunk))
            except torch.OutOfMemoryError as error:
                if len(chunk) == 1:
                    height, width = self.preprocess.size
                    raise DeviceError(
                        f"device {self.device}: no memory for one frame of {width}x{height} in {self.spec}; "
                        "use a smaller --image-size or another device"
                    ) from error
                self.batch_size = max(1, len(chunk) // 2)
                torch.cuda.empty_cache()
                continue
            start += len(chunk)
        if len(parts) == 1:
            return parts[0]
        columns = zip(*parts, strict=True)
        return Tokens(*(None if column[0] is None else torch.cat(column) for column in columns))

    def encode(self, frames: FrameBatch) -> FrameFeatures:
        """Tokens of decoded frames, on `self.device`."""
        tokens = self.forward_in_batches(self.pixels(frames))
        return FrameFeatures(tokens.patches, tokens.cls, tokens.attention, frames.pts_seconds, self.grid, self.id)

    def threshold_warnings(self) -> list[str]:
        """What to know before scores of this encoder are held against thresholds."""
        if self.random_weights:
            return [f"{self.spec}: random weights; the numbers mean nothing"]
        if self.spec != "builtin":
            return [f"{self.spec}: the thresholds were chosen with builtin, they may not fit"]
        return []

    def describe(self) -> dict[str, Any]:
        """What summary.json records."""
        return {
            "spec": self.spec, "id": self.id,
            "device": str(self.device), "dtype": str(self.dtype).removeprefix("torch."),
            "token_dtype": str(self.token_dtype).removeprefix("torch."), "execution": self.execution,
            "patch_size": self.patch_size, "grid": list(self.grid), "dim": self.dim,
            "random_weights": self.random_weights, "attention": self.attention_kind,
            "preprocess": self.preprocess.as_dict(),
        }  # fmt: skip
