"""Merged VFI-Similarity and NOVA checkpoints: a DINOv2 tower fine-tuned to judge interpolated video frames."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from vsim_fast.encode.base import Preprocess
from vsim_fast.encode.checkpoint import SkipInit, check_keys, load_matching, opened, read_checkpoint
from vsim_fast.encode.network import check_image_size
from vsim_fast.encode.spec import Spec
from vsim_fast.encode.timm_encoder import TimmEncoder, adapt
from vsim_fast.errors import EncoderError

PATCH, DEFAULT_SIZE = 14, 518
SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}  # width -> DINOv2's name
NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight")  # tell the architecture


class VfiEncoder(TimmEncoder):
    """The tower of a merged checkpoint.

    Its authors' embedding of an image is the mean over CLS and patch tokens after the last norm.

    Attributes:
        checkpoint: `tower` (timm's name) and its `blocks`, both read from the tensors; `matched` of `total` tensors;
            `embedding_head`: whether one is stored (no score uses it); `ignored`: how many entries are neither.
    """

    checkpoint: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "checkpoint": self.checkpoint}


def load(spec: Spec, *, image_size: int | None, fit: str, offline: bool) -> VfiEncoder:
    """The tower in file `spec.name`, in float32 on the CPU, its position table resampled to `image_size` by timm.

    The file is {"base": state dict, "embedding_head": state dict, …}, or one flat state dict with those two as
    prefixes; width, depth and registers are read from its tensors. Nothing is fetched, whatever `offline` says.

    Raises:
        EncoderError: no such file, not a DINOv2 tower of patch 14, keys that do not match.
        UsageError: `image_size` is not a multiple of 14.
    Source: stootaghaj/NOVA, `vfi_similarity.py` (file format, preprocessing, embedding).
    """
    size = check_image_size(image_size, DEFAULT_SIZE, PATCH)
    path = Path(spec.name).expanduser()
    parts = read_parts(path)
    name, depth = architecture(path, parts.base)
    with SkipInit():
        network = timm.create_model(name, num_classes=0, img_size=size, dynamic_img_size=True, depth=depth)
    load_matching(network, adapt(network, dict(parts.base)), path)
    if parts.head:
        check_head(path, parts.head, network.embed_dim)
    preprocess = Preprocess((size, size), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "bilinear", fit)
    encoder = VfiEncoder(spec, network, preprocess, patch_size=PATCH, dim=network.embed_dim)
    total = len(network.state_dict())
    encoder.checkpoint = {
        "tower": name, "blocks": depth, "matched": total, "total": total,
        "embedding_head": "stored, not used" if parts.head else None,
        "ignored": parts.others + len(parts.base) - total,
    }  # fmt: skip
    return encoder


class Parts(NamedTuple):
    """A checkpoint, divided by what its entries are for."""

    base: dict[str, Tensor]
    head: dict[str, Tensor]
    others: int


def read_parts(path: Path) -> Parts:
    """Both formats by their joined names, `base.*` and `embedding_head.*`, with or without a wrapper around them."""
    levels = opened(read_checkpoint(path))
    holder = next((i for i, level in enumerate(levels) if isinstance(level.get("base"), Mapping)), len(levels) - 1)
    joined: dict[str, object] = {}
    for key, value in levels[holder].items():
        inner = value.items() if isinstance(value, Mapping) else ()
        joined |= {f"{key}.{name}": entry for name, entry in inner} or {str(key): value}
    parts: dict[str, dict[str, Tensor]] = {"base": {}, "embedding_head": {}}
    for key, value in joined.items():
        part, _, name = key.partition(".")
        if part in parts and isinstance(value, Tensor):
            parts[part][name] = value
    base, head = parts.values()
    if not base:
        hint = "; a tower alone loads as timm:NAME@PATH" if "patch_embed.proj.weight" in joined else ""
        raise EncoderError(f"{path}: holds no tensors under `base` nor named base.*; found {_told(joined)}{hint}")
    beside = sum(len(level) - 1 for level in levels[:holder])  # of the wrappers that were opened
    return Parts(base, head, beside + len(joined) - len(base) - len(head))


def architecture(path: Path, base: Mapping[str, Tensor]) -> tuple[str, int]:
    """timm's name and the number of blocks of the tower whose tensors are `base`, in timm's or in Meta's names."""
    if missing := [key for key in NEEDED if key not in base]:
        raise EncoderError(f"{path}: `base` is no DINOv2 tower: no {', no '.join(missing)}; found {_told(base)}")
    patch, positions = base["patch_embed.proj.weight"].shape, base["pos_embed"].shape
    if patch[1:] != (3, PATCH, PATCH) or patch[0] not in SIZES:
        widths = " or ".join(map(str, SIZES))
        raise EncoderError(f"{path}: patch_embed.proj.weight must be [{widths}, 3, 14, 14], got {list(patch)}")
    width, side = patch[0], math.isqrt(positions[1:].numel() // patch[0])
    cls_row = int("reg_token" not in base)  # with registers timm adds the row to the token
    if side < 1 or positions != (1, side**2 + cls_row, width):
        rows = "n² + 1" if cls_row else "n²"
        raise EncoderError(f"{path}: pos_embed must be [1, {rows}, {width}], a square grid, got {list(positions)}")
    registers = "_reg4" if base.keys() & {"reg_token", "register_tokens"} else ""
    blocks = {match[1] for key in base if (match := re.match(r"blocks\.(\d+)\.", key))}
    return f"vit_{SIZES[width]}_patch14{registers}_dinov2", len(blocks)


def check_head(path: Path, head: Mapping[str, Tensor], width: int) -> None:
    """Raise EncoderError unless the head is whole: Linear(width, 768), ReLU, Linear(768, 512), LayerNorm(512)."""
    shapes = {
        "0.weight": (768, width), "0.bias": (768,), "2.weight": (512, 768), "2.bias": (512,),
        "3.weight": (512,), "3.bias": (512,),
    }  # fmt: skip
    misshapen = {key for key in shapes.keys() & head.keys() if head[key].shape != shapes[key]}
    missing, unexpected = shapes.keys() - head.keys(), head.keys() - shapes.keys()
    check_keys(f"{path}: embedding_head", len(shapes), missing, unexpected, misshapen)


def _told(entries: Mapping[str, object]) -> str:
    examples = ", ".join(key[:60] for key in list(entries)[:3])
    return f"{len(entries)} entries" + (f", e.g. {examples}" if examples else "")
