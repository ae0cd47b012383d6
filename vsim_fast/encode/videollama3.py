"""VideoLLaMA3's vision encoder (SigLIP-so400m with 2-D rotary positions) from any of its four checkpoint layouts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.video_llama_3 import modeling_video_llama_3 as library
from transformers.models.video_llama_3.configuration_video_llama_3 import VideoLlama3VisionConfig

from vsim_fast.encode.attention import POOLED_ROW, AttentionTap
from vsim_fast.encode.checkpoint import SkipInit, load_matching, read_config, read_folder, seeded
from vsim_fast.encode.hf_encoder import HALF, pixel_rows, read_preprocess
from vsim_fast.encode.network import NetworkEncoder
from vsim_fast.encode.spec import Spec
from vsim_fast.errors import EncoderError

SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "patch_size")
STANDALONE = ("videollama3_vision_encoder", "video_llama_3_vision")  # model_type of the encoder alone
DEFAULT_SIZE = 448  # pixels; the model takes any resolution, the patch similarity tool uses this one

# full checkpoint of the authors, its local conversion, transformers' own (and an older form of it)
PREFIX = re.compile(r"model\.vision_encoder\.vision_encoder\.|model\.vision_encoder\.|(?:model\.)?vision_model\.")


class VideoLlama3Encoder(NetworkEncoder):
    """VideoLLaMA3's vision tower at merge size 1, so that rows are row-major and the merge is the identity.

    patches: tokens after `post_layernorm`.
    cls: None; the model has neither a CLS token nor a pooling head.
    attention: saliency of the mean patch query of the last layer: softmax(q̄·k / √d) over the frame's patches, averaged
    over heads, with q and k after rotary embedding.
    """

    attention_kind = POOLED_ROW

    def tokens(self, pixels: Tensor) -> tuple[Tensor, None]:
        rows = pixel_rows(pixels, self.patch_size).flatten(0, 1).flatten(1)  # [B·P, 3·14·14], channel outermost
        grid = [[len(pixels), *(side // self.patch_size for side in pixels.shape[2:])]]
        out = self.network(
            pixel_values=rows,
            grid_thw=torch.tensor(grid, device=pixels.device),
            merge_sizes=torch.ones(1, dtype=torch.long, device=pixels.device),
        )
        return out.last_hidden_state.unflatten(0, (len(pixels), -1)), None

    def blocks(self) -> Sequence[nn.Module]:
        return self.network.encoder.layers

    def tap(self) -> AttentionTap:
        return AttentionTap(self.blocks()[-1], query="mean")


class FrameAttention(library.VideoLlama3VisionAttention):
    """The library's attention over packed frames of one size, as one batched call.

    The library calls its attention once per frame and reads the frame lengths back from the device in every layer.
    """

    def forward(self, hidden_states, cu_seqlens, position_embeddings, **kwargs):
        frames = len(cu_seqlens) - 1
        q, k, v = (
            project(hidden_states).unflatten(-1, (self.num_heads, self.head_dim))  # [B·P, heads, d]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = library.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
        q, k, v = (x.unflatten(0, (frames, -1)).transpose(1, 2) for x in (q, k, v))  # [B, heads, P, d]
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        return self.out_proj(out.transpose(1, 2).reshape(len(hidden_states), -1)), None


def load(
    spec: Spec, *, image_size: int | None, fit: str, offline: bool, folder: Path | None = None
) -> VideoLlama3Encoder:
    """The encoder in `folder` (else `spec.name`), standalone or inside a full checkpoint, in float32 on the CPU.

    Raises:
        EncoderError: no such folder, sizes missing from its configuration, keys that do not match.
        UsageError: `image_size` is not a multiple of the patch size.
    """
    folder = folder or Path(spec.name).expanduser()
    config = vision_config(folder)
    if spec.random:
        with seeded():
            network = _build(config)
    else:
        state = _vision_state(folder)
        with SkipInit():
            network = _build(config)
        load_matching(network, state, folder)
    preprocess = read_preprocess(folder, DEFAULT_SIZE, config.patch_size, image_size, fit, HALF)
    return VideoLlama3Encoder(spec, network, preprocess, patch_size=config.patch_size, dim=config.hidden_size)


def vision_config(folder: Path) -> VideoLlama3VisionConfig:
    """The encoder's configuration; its five sizes must be written out, for their defaults describe another model."""
    config = read_config(folder)
    nested = next((key for key in ("vision_encoder_config", "vision_config") if config.get(key)), None)
    if nested is None and config.get("model_type") not in STANDALONE:
        raise EncoderError(
            f"{folder / 'config.json'}: must be a VideoLLaMA3 vision encoder or hold its vision_encoder_config, "
            f"got model_type {config.get('model_type')!r}"
        )
    sizes = config[nested] if nested else config
    missing = [name for name in SIZES if not isinstance(sizes.get(name), int)]
    if missing:
        raise EncoderError(f"{folder / 'config.json'}: {nested or 'top level'} must state {', '.join(missing)}")
    optional = ("num_channels", "hidden_act", "layer_norm_eps")
    return VideoLlama3VisionConfig(**{name: sizes[name] for name in (*SIZES, *optional) if name in sizes})


def _build(config: VideoLlama3VisionConfig) -> nn.Module:
    network = library.VideoLlama3VisionModel._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    for layer in network.encoder.layers:
        layer.self_attn.__class__ = FrameAttention
    return network


def _vision_state(folder: Path) -> dict[str, Tensor]:
    """The encoder's tensors under their inner names, whatever the layout."""
    standalone = read_config(folder).get("model_type") in STANDALONE
    state = read_folder(folder, lambda key: standalone or bool(PREFIX.match(key)))
    if not state:
        raise EncoderError(f"{folder}: no tensor's name starts as the vision encoder's do: {PREFIX.pattern}")
    inner = {PREFIX.sub("", key, count=1): value for key, value in state.items()}
    return {key: value for key, value in inner.items() if not key.endswith("inv_freq")}  # older exports keep the buffer
