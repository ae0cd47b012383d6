"""The VideoLLaMA3 tower in its four layouts, against the library's own class on packed and single frames."""

from __future__ import annotations

import json

import pytest
import torch
from compare import COSINE_ATOL, assert_matches_reference
from safetensors.torch import save_file
from transformers.models.video_llama_3.modeling_video_llama_3 import (
    VideoLlama3VisionConfig,
    VideoLlama3VisionModel,
    apply_rotary_pos_emb_vision,
)

from vsim_fast.encode import load_encoder
from vsim_fast.encode.attention import POOLED_ROW
from vsim_fast.errors import EncoderError, UsageError

# head_dim 72 as in the real model; 2-D rotary positions need it divisible by 4
SIZES = {
    "hidden_size": 144, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 3, "patch_size": 14,
}  # fmt: skip
LAYOUTS = {  # id -> (config.json, prefix of the tensors, weight file)
    "standalone": ({"model_type": "videollama3_vision_encoder", **SIZES}, "", "model.safetensors"),
    "full": (
        {"model_type": "videollama3_qwen2", "hidden_size": 1536, "vision_encoder_config": SIZES},
        "model.vision_encoder.", "sharded",
    ),
    "converted": (
        {"model_type": "videollama3_qwen2", "vision_encoder": "name", "vision_encoder_config": SIZES},
        "model.vision_encoder.vision_encoder.", "pytorch_model.bin",
    ),
    "native": ({"model_type": "video_llama_3", "vision_config": SIZES}, "model.vision_model.", "model.safetensors"),
    "native-older": ({"model_type": "video_llama_3", "vision_config": SIZES}, "vision_model.", "model.safetensors"),
}  # fmt: skip


def native(attention="eager"):
    torch.manual_seed(0)
    config = VideoLlama3VisionConfig(**SIZES)
    model = VideoLlama3VisionModel._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def save(layout, folder):
    """The native model's tensors under the layout's names, among those of a language model."""
    config, prefix, file = LAYOUTS[layout]
    (folder / "config.json").write_text(json.dumps(config))
    state = {prefix + key: value for key, value in native().state_dict().items()}
    if prefix:
        state |= {
            "model.embed_tokens.weight": torch.zeros(9, 4),
            "model.mm_projector.readout.0.weight": torch.zeros(4, 4),
        }
    if file == "sharded":
        names = sorted(state)
        shards = {f"model-0000{i}-of-00003.safetensors": names[i - 1 :: 3] for i in (1, 2, 3)}
        for shard, keys in shards.items():
            save_file({key: state[key] for key in keys}, folder / shard)
        index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif file.endswith(".bin"):
        torch.save(state, folder / file)
    else:
        save_file(state, folder / file)


def rows(pixels, merge=1):
    """Pixel rows as the published processor makes them: merge×merge blocks of patches, channel outermost in a row."""
    t, c, height, width = pixels.shape
    h, w = height // 14, width // 14
    blocks = pixels.reshape(t, c, h // merge, merge, 14, w // merge, merge, 14)
    return blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(t * h * w, c * 14 * 14)


def post_layernorm(model, pixels, merge=1):
    """The library's packed call; [T, h, w, D] in row-major order from the hook on post_layernorm."""
    t, h, w = len(pixels), pixels.shape[2] // 14, pixels.shape[3] // 14
    kept = []
    handle = model.post_layernorm.register_forward_hook(lambda module, args, out: kept.append(out))
    model(rows(pixels, merge), grid_thw=torch.tensor([[t, h, w]]), merge_sizes=torch.tensor([merge]))
    handle.remove()
    blocks = kept[0].view(t, h // merge, w // merge, merge, merge, -1)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(t, h, w, -1)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_every_layout_gives_the_librarys_tokens(layout, tmp_path):
    save(layout, tmp_path)
    encoder = load_encoder(f"videollama3:{tmp_path}", "cpu", "float32", 84)
    assert (encoder.grid, encoder.dim, encoder.patch_size) == ((6, 6), 144, 14)
    assert encoder.preprocess.mean == encoder.preprocess.std == (0.5, 0.5, 0.5)
    assert encoder.preprocess.interpolation == "bicubic"
    pixels = torch.randn(3, 3, 84, 84)
    tokens = encoder.forward(pixels)
    packed = post_layernorm(native(), pixels).flatten(1, 2)
    single = torch.cat([post_layernorm(native(), frame[None]).flatten(1, 2) for frame in pixels])
    assert tokens.cls is None
    assert_matches_reference(tokens.patches, packed, dtype=torch.float32, atol=2e-5)  # values up to 4
    assert_matches_reference(tokens.patches, single, dtype=torch.float32, atol=2e-5)


@torch.inference_mode()
def test_rows_are_row_major_whatever_the_merge_size(tmp_path):
    save("standalone", tmp_path)
    encoder = load_encoder(f"videollama3:{tmp_path}", "cpu", "float32", 84)
    pixels = torch.randn(2, 3, 84, 84)
    merged = post_layernorm(native(), pixels, merge=2).flatten(1, 2)
    assert_matches_reference(encoder.forward(pixels).patches, merged, dtype=torch.float32, atol=2e-5)


@torch.inference_mode()
def test_saliency_is_the_mean_querys_attention(tmp_path):
    save("standalone", tmp_path)
    encoder = load_encoder(f"videollama3:{tmp_path}", "cpu", "float32", 56)
    pixels = torch.randn(3, 3, 56, 56)
    model, kept = native(), {}
    attn = model.encoder.layers[-1].self_attn
    for name in ("q_proj", "k_proj"):
        getattr(attn, name).register_forward_hook(lambda m, args, out, name=name: kept.update({name: out}))
    attn.register_forward_pre_hook(lambda m, args, kw: kept.update(rope=kw["position_embeddings"]), with_kwargs=True)
    post_layernorm(model, pixels)
    q, k = apply_rotary_pos_emb_vision(*(kept[n].unflatten(-1, (2, 72)) for n in ("q_proj", "k_proj")), *kept["rope"])
    q, k = (x.unflatten(0, (3, 16)).transpose(1, 2).double() for x in (q, k))  # [T, heads, P, 72]
    expected = (q.mean(2, keepdim=True) @ k.mT * 72**-0.5).softmax(-1).mean(1)[:, 0]
    assert encoder.attention_kind == POOLED_ROW
    assert_matches_reference(encoder.forward(pixels).attention, expected, dtype=torch.float32)


@torch.inference_mode()
def test_attention_is_called_once_per_layer_for_all_frames(tmp_path, monkeypatch):
    save("standalone", tmp_path)
    encoder = load_encoder(f"videollama3:{tmp_path}", "cpu", "float32", 56)
    calls, real = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, *a, **k: calls.append(q.shape) or real(q, *a, **k),
    )
    encoder.forward(torch.randn(5, 3, 56, 56))
    assert calls == [(5, 2, 16, 72)] * SIZES["num_hidden_layers"]


@pytest.mark.needs_cuda
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@torch.inference_mode()
def test_head_dim_72_on_cuda(precision, tmp_path):
    save("standalone", tmp_path)
    exact, encoder = (
        load_encoder(f"videollama3:{tmp_path}", *a, 224) for a in (("cpu", "float32"), ("cuda", precision))
    )
    pixels = torch.randn(3, 3, 224, 224)
    tokens = encoder.forward(pixels.to("cuda", encoder.dtype))
    unit = [
        torch.nn.functional.normalize(t.float().cpu(), dim=-1) for t in (tokens.patches, exact.forward(pixels).patches)
    ]
    # shaken toy weights amplify rounding: three times the table
    assert_matches_reference(
        unit[0] @ unit[0].mT, unit[1] @ unit[1].mT, dtype=encoder.dtype, atol=3 * COSINE_ATOL[encoder.dtype]
    )


def test_hf_spec_reaches_the_same_encoder(tmp_path):
    save("native", tmp_path)
    through_hf = load_encoder(f"hf:{tmp_path}", "cpu", "float32", 56)
    direct = load_encoder(f"videollama3:{tmp_path}", "cpu", "float32", 56)
    assert through_hf.spec == f"hf:{tmp_path}" and through_hf.id.partition("+")[2] == direct.id.partition("+")[2]
    pixels = torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        assert torch.equal(through_hf.forward(pixels).patches, direct.forward(pixels).patches)


def test_random_needs_only_the_configuration(tmp_path):
    save("full", tmp_path)
    for file in tmp_path.glob("*.safetensors*"):
        file.unlink()
    first, second = (load_encoder(f"videollama3:{tmp_path}@random", "cpu", "bfloat16", 56) for _ in range(2))
    assert first.random_weights and first.id == second.id and first.preprocess.size == (56, 56)
    patches = first.forward_in_batches(torch.randn(2, 3, 56, 56).bfloat16()).patches
    assert patches.isfinite().all() and patches.dtype == torch.bfloat16
    assert first.network.rotary_pos_emb.inv_freq.dtype == torch.float32, "rotary tables keep their precision"


def test_default_size_is_448(tmp_path):
    save("standalone", tmp_path)
    assert load_encoder(f"videollama3:{tmp_path}", "cpu", "float32").grid == (32, 32)
    with pytest.raises(UsageError, match="multiple of the patch size 14, got 450"):
        load_encoder(f"videollama3:{tmp_path}", "cpu", "float32", 450)


def test_rejects_configurations_without_the_sizes(tmp_path):
    save("standalone", tmp_path)
    config = {k: v for k, v in LAYOUTS["standalone"][0].items() if k not in ("patch_size", "hidden_size")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="top level must state hidden_size, patch_size"):
        load_encoder(f"videollama3:{tmp_path}", "cpu")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "videollama3_qwen2", **SIZES}))
    with pytest.raises(
        EncoderError, match=r"must be a VideoLLaMA3 vision encoder .*got model_type 'videollama3_qwen2'"
    ):
        load_encoder(f"videollama3:{tmp_path}", "cpu")


def test_wrong_keys_are_counted(tmp_path):
    save("standalone", tmp_path)
    state = native().state_dict()
    del state["post_layernorm.weight"]
    state["encoder.layers.9.mlp.fc1.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        EncoderError, match=r"1 missing \(e\.g\. post_layernorm\.weight\); 1 unexpected \(e\.g\. encoder"
    ):
        load_encoder(f"videollama3:{tmp_path}", "cpu")
    save_file({"model.layers.0.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(LAYOUTS["full"][0]))
    with pytest.raises(EncoderError, match="no tensor's name starts as the vision encoder's do"):
        load_encoder(f"videollama3:{tmp_path}", "cpu")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(EncoderError, match="no such model folder"):
        load_encoder(f"videollama3:{tmp_path}/absent", "cpu")
    save("full", tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(EncoderError, match="1 of 3 weight shards are missing"):
        load_encoder(f"videollama3:{tmp_path}", "cpu")
    for file in tmp_path.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(EncoderError, match=r"holds neither model.safetensors nor pytorch_model.bin"):
        load_encoder(f"videollama3:{tmp_path}", "cpu")
