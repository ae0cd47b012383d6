"""timm's ViT and EVA towers: DINOv2, DINOv3, SigLIP, CLIP, PE and their kin."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vsim_fast.encode.attention import CLS_ROW, POOLED_ROW, PROBE_ROW, AttentionTap
from vsim_fast.encode.base import Preprocess
from vsim_fast.encode.checkpoint import SkipInit, hub_folder, load_matching, read_state, seeded
from vsim_fast.encode.network import NetworkEncoder, check_image_size
from vsim_fast.encode.spec import Spec
from vsim_fast.errors import EncoderError

HEAD_PREFIXES = ("head.", "head_dist.", "fc_norm.", "attn_pool.")  # dropped where the headless model has no such part


class TimmEncoder(NetworkEncoder):
    """A timm ViT or EVA tower.

    patches: `forward_features` without the prefix tokens (CLS, registers).
    cls: the CLS token; without one the attention-pooling head's output (SigLIP); without either None.
    attention: the CLS row of the last block; without CLS the row of the pooling head's probe; without either that of
    the mean patch query of the last block.
    """

    @property
    def has_cls_token(self) -> bool:
        return self.network.cls_token is not None

    def tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        network = self.network
        out = network.forward_features(pixels)  # [B, prefix + P, D]
        patches = out[:, network.num_prefix_tokens :]
        if self.has_cls_token:
            return patches, out[:, 0]
        return patches, None if network.attn_pool is None else network.forward_head(out, pre_logits=True)

    def blocks(self) -> Sequence[nn.Module]:
        return self.network.blocks

    def tap(self) -> AttentionTap:
        rope = getattr(self.network, "rope", None)
        if rope is not None and next(rope.parameters(), None) is None:
            keep_angles(rope, self.grid)
        if self.has_cls_token:
            self.attention_kind = CLS_ROW
            return AttentionTap(self.network.blocks[-1])
        if self.network.attn_pool is not None:
            self.attention_kind = PROBE_ROW
            return AttentionTap(self.network.attn_pool)
        self.attention_kind = POOLED_ROW
        return AttentionTap(self.network.blocks[-1], query="mean")


def keep_angles(rope: nn.Module, grid: tuple[int, int]) -> None:
    """Have timm's rotary embedding make its table of `grid` once, now. DINOv3's begins on the CPU at each pass: a copy
    that the GPU waits for, and that cannot be recorded."""
    make, table = rope.get_embed, rope.get_embed(shape=list(grid))

    def get_embed(shape: Sequence[int] | None = None, *args: Any, **kwargs: Any) -> Tensor:
        fits = shape is not None and tuple(shape) == grid and not (args or kwargs)
        return table if fits else make(shape, *args, **kwargs)

    rope.get_embed = get_embed


def load(spec: Spec, *, image_size: int | None, fit: str, offline: bool, **overrides: object) -> TimmEncoder:
    """The tower `spec.name` in float32 on the CPU, its position table resampled to `image_size` by timm.

    Args:
        overrides: further arguments of `timm.create_model`, e.g. depth and embed_dim of a small test model.
    Raises:
        EncoderError: unknown name, not a ViT or EVA tower, no weights at hand, keys that do not match.
        UsageError: `image_size` is not a multiple of the patch size.
    """
    architecture, _, tag = spec.name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models("*vit*"), n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise EncoderError(f"{spec}: timm {timm.__version__} has no model {architecture!r}{hint}")
    try:
        config = timm.get_pretrained_cfg(spec.name, allow_unregistered=False)
    except RuntimeError:
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*"))
        raise EncoderError(
            f"{spec}: timm {timm.__version__} has no weights {tag!r} for it; it has: {tags or 'none'}"
        ) from None
    if image_size is not None:
        check_image_size(image_size, 0, 1)
    options = {"dynamic_img_size": True, "img_size": image_size or config.input_size[-1], **overrides}
    if spec.random:
        with seeded():
            network = _build(spec, options)
    else:
        path = Path(spec.source) if spec.source else _fetch(spec, config, offline)
        state = read_state(path)
        with SkipInit():
            network = _build(spec, options)
        load_matching(network, adapt(network, state), path)
    patch = network.patch_embed.patch_size[0]
    size = check_image_size(image_size, config.input_size[-1], patch)
    if config.interpolation not in ("bicubic", "bilinear"):
        raise EncoderError(f"{spec}: its preprocessing wants {config.interpolation!r}; supported: bicubic, bilinear")
    preprocess = Preprocess(
        (size, size), tuple(config.mean), tuple(config.std), config.interpolation, fit,
        config.crop_pct if fit == "crop" else 1.0,
    )  # fmt: skip
    return TimmEncoder(spec, network, preprocess, patch_size=patch, dim=network.embed_dim)


def _build(spec: Spec, options: dict) -> nn.Module:
    architecture = spec.name.partition(".")[0]
    try:
        network = timm.create_model(architecture, num_classes=0, **options)
    except TypeError as error:  # the architecture knows no dynamic_img_size
        raise EncoderError(f"{spec}: not a ViT or EVA tower ({str(error)[:120]})") from None
    if not isinstance(network, (VisionTransformer, Eva)):
        raise EncoderError(f"{spec}: must be a ViT or EVA tower, got a {type(network).__name__}")
    return network


def adapt(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` under timm's own names (original releases are renamed), position table resampled, heads dropped."""
    adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if adapt:
        with redirect_stdout(io.StringIO()):  # it prints what it tries
            state = adapt(state, network)
    own = network.state_dict().keys()
    return {key: value for key, value in state.items() if key in own or not key.startswith(HEAD_PREFIXES)}


def _fetch(spec: Spec, config: object, offline: bool) -> Path:
    """The weights file of `spec` in the hub cache, fetched unless there or `offline`."""
    if not config.hf_hub_id:
        raise EncoderError(f"{spec}: timm knows no hub weights for it; name a checkpoint: timm:NAME@PATH")
    wanted = config.hf_hub_filename or "model.safetensors"
    file = hub_folder(config.hf_hub_id, [wanted], offline=offline) / wanted
    if not file.is_file():
        raise EncoderError(f"{spec}: {config.hf_hub_id} holds no {wanted}; download its weights and use timm:NAME@PATH")
    return file
