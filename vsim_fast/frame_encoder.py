"""Frames or a video file to embeddings, attention centroids, patch statistics: one call each, with any encoder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.encode import load_encoder
from vsim_fast.encode.base import Encoder
from vsim_fast.errors import CorruptVideo, EncoderError, UsageError
from vsim_fast.pipeline import encode_video
from vsim_fast.records import FrameFeatures, frames_in_memory
from vsim_fast.video import Sampling, open_video

DINOV3 = "timm:vit_large_patch16_dinov3"


class FrameEncoder:
    """The calls of the original DINOv3 encoder, on any encoder.

    Args:
        encoder: a spec of `load_encoder`, or an encoder made by it (device and size are then its own).
        weights_path: checkpoint of a `timm:` spec.
        device: as in `load_encoder`.
        img_size: pixels per side of the encoder's input, a multiple of its patch.
    Raises:
        UsageError, EncoderError, DeviceError.
    """

    def __init__(
        self,
        encoder: str | Encoder = "builtin",
        weights_path: str | os.PathLike | None = None,
        device: str | torch.device = "auto",
        img_size: int = 224,
    ):
        if weights_path is not None:
            if not isinstance(encoder, str) or not encoder.startswith("timm:") or "@" in encoder:
                raise UsageError(f"weights_path needs an encoder spec of the form timm:NAME, got {encoder!r}")
            encoder = f"{encoder}@{os.fspath(weights_path)}"
        if isinstance(encoder, str):
            encoder = load_encoder(encoder, device=device, image_size=img_size)
        self.encoder: Encoder = encoder

    def encode_frames(self, frames: Iterable[Any], batch_size: int = 32, normalize: bool = True) -> Tensor:
        """Embeddings of frames: the CLS token, or the mean patch token where the model has none.

        Args:
            frames: uint8 RGB, [N, H, W, 3] or any iterable of [H, W, 3] arrays or PIL images; sizes may differ.
            batch_size: most frames per forward pass.
            normalize: scale each embedding to length 1.
        Returns:
            float32 [N, D] on the encoder's device.
        """
        rows = [frame_embeddings(features) for features in self._features(frames, batch_size)]
        embeddings = torch.cat(rows) if rows else torch.zeros(0, self.encoder.dim, device=self.encoder.device)
        return F.normalize(embeddings, dim=1) if normalize else embeddings

    def encode_video(
        self, path: str | os.PathLike, sample_rate: int = 5, max_frames: int | None = None, batch_size: int = 32
    ) -> tuple[Tensor, dict[str, Any]]:
        """Normalised embeddings of every `sample_rate`-th frame of a video, the first `max_frames` of them.

        Returns:
            float32 [N, D], and {num_frames: N, fps: of the file, sample_rate, video_path}.
        Raises:
            UsageError, OpenError, NoVideoStream, UnsupportedVideo, CorruptVideo, EncoderError.
        """
        if max_frames is not None and max_frames < 1:
            raise UsageError(f"max_frames must be 1 or more, got {max_frames}")
        encoder, rows, count = self.encoder, [], 0
        size = min(_checked(batch_size), encoder.batch_size)
        sampling = Sampling("stride", stride=sample_rate)
        with open_video(path, sampling, device=encoder.device, batch_size=size) as reader:
            with closing(encode_video(reader, encoder)) as batches:
                for batch in batches:
                    rows.append(frame_embeddings(batch.features))
                    count += len(rows[-1])
                    if max_frames is not None and count >= max_frames:
                        break
            info = reader.info
        if not rows:
            raise CorruptVideo(info.path, "no sampled frame decodes")
        embeddings = F.normalize(torch.cat(rows)[:max_frames], dim=1)
        about = {"num_frames": len(embeddings), "fps": info.average_fps, "sample_rate": sample_rate}
        return embeddings, about | {"video_path": os.fspath(path)}

    def get_attention_centroids(
        self, frames: Iterable[Any], layer: int = -1, batch_size: int = 16, *, compat: bool = False
    ) -> Tensor:
        """Where the encoder looks: centre of mass of its attention in each frame, float32 [N, 2], columns x, y.

        Only the last layer is read (`layer=-1`). See `attention_centroids` for the coordinates, and
        `encoder.attention_kind` for what attention means for this encoder.
        """
        if layer != -1:
            raise UsageError(f"layer must be -1, the last: encoders hand out its attention only, got {layer}")
        rows = [frame_centroids(features, compat=compat) for features in self._features(frames, batch_size)]
        return torch.cat(rows) if rows else torch.zeros(0, 2, device=self.encoder.device)

    def get_patch_statistics(self, frames: Iterable[Any], batch_size: int = 16) -> dict[str, Tensor]:
        """How varied the patch tokens of each frame are.

        Returns:
            variance: float32 [N], variance over patches (unbiased), mean over dimensions.
            entropy: float32 [N], -Σ p log(p + 1e-8), p the softmax over patches of the tokens' lengths; log(P) at most.
        """
        variance, entropy = [], []
        for features in self._features(frames, batch_size):
            patches = features.patches.float()
            variance.append(patches.var(1).mean(1))
            p = patches.norm(dim=-1).softmax(1)
            entropy.append(-(p * (p + 1e-8).log()).sum(1))
        none = [torch.zeros(0, device=self.encoder.device)]
        return {"variance": torch.cat(variance or none), "entropy": torch.cat(entropy or none)}

    def _features(self, frames: Iterable[Any], batch_size: int) -> Iterator[FrameFeatures]:
        with torch.inference_mode():
            for batch in _stacks(frames, _checked(batch_size)):
                yield self.encoder.encode(frames_in_memory(batch))


def DINOv3Encoder(
    weights_path: str | os.PathLike | None = None, device: str | torch.device = "cuda", img_size: int = 224
) -> FrameEncoder:
    """The original's constructor: DINOv3 ViT-L/16 from a local checkpoint.

    Raises:
        UsageError: no `weights_path`. Meta's weights need a licence and are never fetched.
    """
    if weights_path is None:
        raise UsageError("DINOv3Encoder needs weights_path, a DINOv3 ViT-L/16 checkpoint; FrameEncoder() needs none")
    return FrameEncoder(DINOV3, weights_path, device, img_size)


def frame_embeddings(features: FrameFeatures) -> Tensor:
    """float32 [T, D], not normalised: CLS tokens, or mean patch tokens where the model has none."""
    return features.patches.float().mean(1) if features.cls is None else features.cls.float()


def frame_centroids(features: FrameFeatures, *, compat: bool = False) -> Tensor:
    """`attention_centroids` of frames, float32 [T, 2].  Raises: EncoderError: their encoder gives no attention."""
    if features.attention is None:
        raise EncoderError(f"{features.encoder}: this encoder gives no attention, so there are no centroids")
    return attention_centroids(features.attention, features.grid, compat=compat)


def attention_centroids(attention: Tensor, grid: tuple[int, int], *, compat: bool = False) -> Tensor:
    """Centre of mass of attention rows.

    Args:
        attention: [T, P], not negative, row-major over `grid` = (Hp, Wp).
        compat: the original's formula: patch indices over the grid size, so that values lie in [0, (Wp - 1) / Wp] and
            even attention gives (Wp - 1) / (2 Wp). By default patches count at their centres, even attention gives 0.5.
    Returns:
        float32 [T, 2], columns x (0 left, 1 right) and y (0 top, 1 bottom). Without compat a row of zeros counts as
        even.
    """
    rows, columns = grid
    if attention.ndim != 2 or attention.shape[1] != rows * columns:
        raise ValueError(f"attention must be [T, {rows * columns}] for grid {grid}, got {tuple(attention.shape)}")
    weights = attention.float()
    total = weights.sum(1, keepdim=True)
    if compat:
        weights, shift = weights / (total + 1e-8), 0.0
    else:
        weights, shift = torch.where(total == 0, 1 / (rows * columns), weights / total), 0.5
    maps = weights.unflatten(1, grid)
    x = (torch.arange(columns, device=maps.device) + shift) / columns
    y = (torch.arange(rows, device=maps.device) + shift) / rows
    return torch.stack([maps.sum(1) @ x, maps.sum(2) @ y], dim=1)


def _checked(batch_size: int) -> int:
    if batch_size < 1:
        raise UsageError(f"batch_size must be 1 or more, got {batch_size}")
    return batch_size


def _stacks(frames: Iterable[Any], size: int) -> Iterator[np.ndarray]:
    """Runs of at most `size` frames of one shape, uint8 [B, H, W, 3]."""
    run: list[np.ndarray] = []
    for frame in frames:
        frame = np.asarray(frame.cpu() if isinstance(frame, Tensor) else frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise UsageError(f"frames must be uint8 RGB [H, W, 3], got {frame.dtype} {list(frame.shape)}")
        if run and (len(run) == size or frame.shape != run[0].shape):
            yield np.stack(run)
            run = []
        run.append(frame)
    if run:
        yield np.stack(run)
