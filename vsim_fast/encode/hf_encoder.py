"""transformers' image towers: DINOv2, DINOv3, CLIP, SigLIP, SigLIP 2 from a local folder or the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch import Tensor, nn

from vsim_fast.encode.attention import CLS_ROW, POOLED_ROW, PROBE_ROW, AttentionTap, ProbeTap
from vsim_fast.encode.base import Preprocess
from vsim_fast.encode.checkpoint import check_keys, hub_folder, read_config, seeded
from vsim_fast.encode.network import NetworkEncoder, check_image_size
from vsim_fast.encode.spec import Spec
from vsim_fast.errors import EncoderError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5,) * 3, (0.5,) * 3)
CONFIGS = ["config.json", "preprocessor_config.json", "processor_config.json"]


class Family(NamedTuple):
    module: str
    """Under transformers.models; only this one is imported."""
    model: str
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    """(mean, std) where the folder holds no preprocessor configuration."""


FAMILIES = {  # model_type in config.json, of the tower or of the two-tower model around it
    "dinov2": Family("dinov2", "Dinov2Model", IMAGENET),
    "dinov2_with_registers": Family("dinov2_with_registers", "Dinov2WithRegistersModel", IMAGENET),
    "dinov3_vit": Family("dinov3_vit", "DINOv3ViTModel", IMAGENET),
    "clip": Family("clip", "CLIPVisionModel", CLIP),
    "siglip": Family("siglip", "SiglipVisionModel", HALF),
    "siglip2": Family("siglip2", "Siglip2VisionModel", HALF),
}
VIDEOLLAMA3_TYPES = ("video_llama_3", "video_llama_3_vision", "videollama3_vision_encoder", "videollama3_qwen2")


class HFEncoder(NetworkEncoder):
    """A transformers image tower.

    patches: tokens after the final LayerNorm (CLIP's, which the library applies to CLS alone, is applied to all),
    without CLS and registers.
    cls: the CLS token; for SigLIP the pooling head's output, or None where the checkpoint has no head.
    attention: the CLS row of the last layer; for SigLIP the row of the pooling head's probe, or without a head that of
    the mean patch query of the last layer.
    """

    def __init__(self, *args, family: str, **kwargs):
        self.family = family
        super().__init__(*args, **kwargs)

    @property
    def has_cls_token(self) -> bool:
        return not self.family.startswith("siglip")

    def tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        network = self.network
        match self.family:
            case "siglip2":  # takes packed rows of pixels and the grid of each frame; the grid is read on the host
                rows = pixel_rows(pixels, self.patch_size).permute(0, 1, 3, 4, 2).flatten(2)  # [B, P, ph·pw·C]
                grid = [side // self.patch_size for side in pixels.shape[2:]]
                out = network(rows, pixel_attention_mask=None, spatial_shapes=torch.tensor([grid] * len(pixels)))
            case "clip" | "siglip":
                out = network(pixels, interpolate_pos_encoding=True)
            case _:
                out = network(pixels)
        hidden = out.last_hidden_state  # [B, prefix + P, D]
        if not self.has_cls_token:
            return hidden, out.pooler_output
        if self.family == "clip":
            hidden = getattr(network, "vision_model", network).post_layernorm(hidden)
        prefix = 1 + (getattr(network.config, "num_register_tokens", 0) or 0)
        return hidden[:, prefix:], hidden[:, 0]

    def blocks(self) -> Sequence[nn.Module]:
        return max((m for m in self.network.modules() if isinstance(m, nn.ModuleList)), key=len)

    def tap(self) -> AttentionTap | ProbeTap:
        head = next((m for m in self.network.modules() if isinstance(m, nn.MultiheadAttention)), None)
        if head is not None:
            self.attention_kind = PROBE_ROW
            return ProbeTap(head)
        self.attention_kind = CLS_ROW if self.has_cls_token else POOLED_ROW
        return AttentionTap(self.blocks()[-1], query="first" if self.has_cls_token else "mean")


def pixel_rows(pixels: Tensor, patch: int) -> Tensor:
    """[B, 3, H, W] -> [B, P, 3, patch, patch], patches in row-major order."""
    b, c, height, width = pixels.shape
    grid = pixels.reshape(b, c, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def load(spec: Spec, *, image_size: int | None, fit: str, offline: bool) -> NetworkEncoder:
    """The tower in folder or hub repository `spec.name`, in float32 on the CPU.

    Raises:
        EncoderError: no such folder or repository, a model type without support, keys that do not match.
        UsageError: `image_size` is not a multiple of the patch size.
    """
    folder = _folder(spec, offline)
    config = read_config(folder)
    model_type = config.get("model_type", "")
    if model_type in VIDEOLLAMA3_TYPES:
        from vsim_fast.encode import videollama3

        return videollama3.load(spec, image_size=image_size, fit=fit, offline=offline, folder=folder)
    family = model_type.removesuffix("_model").removesuffix("_vision")
    if family not in FAMILIES:
        known = ", ".join([*FAMILIES, "video_llama_3"])
        raise EncoderError(f"{folder / 'config.json'}: model_type {model_type!r} is not supported; known: {known}")
    module, name, statistics = FAMILIES[family]
    model_class = getattr(import_module(f"transformers.models.{module}.modeling_{module}"), name)
    vision = model_class.config_class.from_dict(config.get("vision_config") or config)
    network = _random(model_class, vision) if spec.random else _pretrained(model_class, vision, folder)
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    own = round(vision.num_patches**0.5) * patch if family == "siglip2" else vision.image_size
    own = own if isinstance(own, int) else own[0]
    preprocess = read_preprocess(folder, own, patch, image_size, fit, statistics)
    return HFEncoder(spec, network, preprocess, patch_size=patch, dim=vision.hidden_size, family=family)


def read_preprocess(
    folder: Path, own: int, patch: int, image_size: int | None, fit: str, statistics: tuple
) -> Preprocess:
    """Preprocessing from the folder's processor configuration, else `own` size, bicubic and `statistics`."""
    config = {}
    if (folder / "preprocessor_config.json").is_file():
        config = read_config(folder, "preprocessor_config.json")
    elif (folder / "processor_config.json").is_file():
        config = read_config(folder, "processor_config.json").get("image_processor", {})
    resized = config.get("size") or {}
    resized = resized if isinstance(resized, dict) else {"shortest_edge": resized}
    short = resized.get("shortest_edge") or resized.get("height")
    crop = config.get("crop_size") if config.get("do_center_crop") else None
    crop = crop.get("height") if isinstance(crop, dict) else crop
    if config.get("resample", 3) not in (2, 3):
        raise EncoderError(
            f"{folder}: its processor wants PIL filter {config['resample']}; supported: 2 and 3 (bicubic)"
        )
    size = check_image_size(image_size, crop or short or own, patch)
    return Preprocess(
        (size, size),
        tuple(config.get("image_mean") or statistics[0]),
        tuple(config.get("image_std") or statistics[1]),
        "bilinear" if config.get("resample", 3) == 2 else "bicubic",
        fit,
        min(1.0, crop / short) if fit == "crop" and crop and short else 1.0,
    )


def _folder(spec: Spec, offline: bool) -> Path:
    path = Path(spec.name).expanduser()
    if path.is_dir():
        return path
    if spec.name.startswith(("/", ".", "~")) or spec.name.count("/") != 1:
        raise EncoderError(f"{spec}: {path} is no folder, and a hub id has the form OWNER/NAME")
    if spec.random:
        return hub_folder(spec.name, CONFIGS, offline=offline)
    folder = hub_folder(spec.name, [*CONFIGS, "model*.safetensors", "model*.index.json"], offline=offline)
    if not any(folder.glob("model*.safetensors")):
        folder = hub_folder(spec.name, [*CONFIGS, "pytorch_model*.bin", "pytorch_model*.json"], offline=offline)
    return folder


def _random(model_class: type, config: object) -> nn.Module:
    with seeded():
        return model_class._from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def _pretrained(model_class: type, config: object, folder: Path) -> nn.Module:
    try:
        with _quiet():
            network, info = model_class.from_pretrained(
                folder, config=config, attn_implementation="sdpa", dtype=torch.float32, local_files_only=True,
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise EncoderError(f"{folder}: {str(error).splitlines()[0][:200]}") from None
    other_tower = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
    unexpected = [key for key in info["unexpected_keys"] if not key.startswith(other_tower)]
    misshapen = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    check_keys(folder, len(network.state_dict()), info["missing_keys"], unexpected, misshapen)
    return network


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's load report and progress bar; we report mismatches ourselves."""
    log = transformers.utils.logging
    verbosity, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bar:
            log.enable_progress_bar()
