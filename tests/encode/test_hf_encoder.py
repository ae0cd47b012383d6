"""Every transformers family, small, saved by the library in its real format: tokens and attention against eager."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
import torch
from compare import assert_matches_reference

from vsim_fast.encode import known_encoders, load_encoder
from vsim_fast.encode.attention import CLS_ROW, POOLED_ROW, PROBE_ROW
from vsim_fast.errors import EncoderError, UsageError

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {**SIZES, "vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CASES = {  # id -> (module, class saved, config, pixels, prefix tokens, what attention is)
    "dinov2": ("dinov2", "Dinov2Model", {"patch_size": 14, "image_size": 56}, 56, 1, CLS_ROW),
    "dinov2-registers": (
        "dinov2_with_registers", "Dinov2WithRegistersModel",
        {"patch_size": 14, "image_size": 56, "num_register_tokens": 3}, 70, 4, CLS_ROW,
    ),
    "dinov3": (
        "dinov3_vit", "DINOv3ViTModel", {"patch_size": 16, "image_size": 64, "num_register_tokens": 4}, 64, 5, CLS_ROW,
    ),
    "clip-vision": ("clip", "CLIPVisionModel", {"patch_size": 16, "image_size": 64}, 80, 1, CLS_ROW),
    "clip-full": ("clip", "CLIPModel", {"patch_size": 16, "image_size": 64}, 64, 1, CLS_ROW),
    "clip-projected": ("clip", "CLIPVisionModelWithProjection", {"patch_size": 16, "image_size": 64}, 64, 1, CLS_ROW),
    "siglip-vision": ("siglip", "SiglipVisionModel", {"patch_size": 16, "image_size": 64}, 64, 0, PROBE_ROW),
    "siglip-full": ("siglip", "SiglipModel", {"patch_size": 16, "image_size": 64}, 96, 0, PROBE_ROW),
    "siglip-headless": (
        "siglip", "SiglipVisionModel",
        {"patch_size": 16, "image_size": 64, "vision_use_head": False}, 64, 0, POOLED_ROW,
    ),
    "siglip2-naflex": ("siglip2", "Siglip2VisionModel", {"patch_size": 16, "num_patches": 16}, 80, 0, PROBE_ROW),
    "siglip2-full": ("siglip2", "Siglip2Model", {"patch_size": 16, "num_patches": 16}, 64, 0, PROBE_ROW),
}  # fmt: skip


def save(case, folder):
    """A shaken random model of the case in the library's own format."""
    module, name, options, *_ = CASES[case]
    modeling = import_module(f"transformers.models.{module}.modeling_{module}")
    model_class = getattr(modeling, name)
    config = {**SIZES, **options}
    if name in ("CLIPModel", "SiglipModel", "Siglip2Model"):
        config = {"vision_config": config, "text_config": TEXT}
        config |= {"projection_dim": 32} if name == "CLIPModel" else {}
    torch.manual_seed(0)
    model = model_class(model_class.config_class.from_dict(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def oracle(case, folder, pixels):
    """(patches, cls, attention) from the library's eager path, loaded by the library."""
    module, name, options, _, prefix, kind = CASES[case]
    modeling = import_module(f"transformers.models.{module}.modeling_{module}")
    vision = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel", "siglip2": "Siglip2VisionModel"}.get(
        module, name
    )
    model = getattr(modeling, vision).from_pretrained(folder, attn_implementation="eager").eval()
    base, patch = getattr(model, "vision_model", model), options["patch_size"]
    kept = {}
    if kind == PROBE_ROW:
        base.head.attention.register_forward_hook(lambda m, args, out: kept.update(hidden=args[1], probe=args[0]))
    if module == "siglip2":
        from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

        rows = [convert_image_to_patches(frame.numpy(), patch) for frame in pixels]
        grid = [pixels.shape[2] // patch, pixels.shape[3] // patch]
        inputs = {
            "pixel_values": torch.stack([torch.as_tensor(row) for row in rows]),
            "pixel_attention_mask": torch.ones(len(pixels), grid[0] * grid[1], dtype=torch.long),
            "spatial_shapes": torch.tensor([grid] * len(pixels)),
        }
    else:
        inputs = {"pixel_values": pixels}
        if module in ("clip", "siglip"):
            inputs["interpolate_pos_encoding"] = True
    out = model(**inputs, output_attentions=True)
    hidden = base.post_layernorm(out.last_hidden_state) if module == "clip" else out.last_hidden_state
    if kind == CLS_ROW:
        attention = out.attentions[-1][:, :, 0, prefix:].mean(1)
        assert module == "dinov3_vit" or torch.allclose(out.pooler_output, hidden[:, 0], atol=1e-5)
        return hidden[:, prefix:], hidden[:, 0], attention
    if kind == PROBE_ROW:
        head = base.head.attention
        (wq, wk, _), (bq, bk, _) = head.in_proj_weight.chunk(3), head.in_proj_bias.chunk(3)
        q, k = kept["probe"] @ wq.T + bq, kept["hidden"] @ wk.T + bk
        q, k = (x.unflatten(-1, (head.num_heads, -1)).transpose(1, 2) for x in (q, k))
        return hidden, out.pooler_output, (q @ k.mT * head.head_dim**-0.5).softmax(-1).mean(1)[:, 0]
    layer = base.encoder.layers[-1].self_attn
    inputs = layer_input(base, pixels)
    q, k = (p(inputs).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for p in (layer.q_proj, layer.k_proj))
    return hidden, None, (q.mean(2, keepdim=True) @ k.mT * layer.scale).softmax(-1).mean(1)[:, 0]


def layer_input(base, pixels):
    kept = []
    handle = base.encoder.layers[-1].self_attn.q_proj.register_forward_hook(lambda m, args, out: kept.append(args[0]))
    base(pixels)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_tokens_and_attention_match_the_library(case, tmp_path):
    size, kind = CASES[case][3], CASES[case][5]
    save(case, tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}", "cpu", "float32", size)
    assert encoder.attention_kind == kind and not encoder.random_weights and encoder.dim == 48
    assert encoder.has_cls_token == (kind == CLS_ROW)
    pixels = torch.randn(3, 3, size, size)
    tokens = encoder.forward(pixels)
    patches, cls, attention = oracle(case, tmp_path, pixels)
    assert tokens.patches.shape[1] == encoder.grid[0] * encoder.grid[1]
    assert_matches_reference(tokens.patches, patches, dtype=torch.float32, atol=2e-5)  # values up to 5
    assert_matches_reference(tokens.attention, attention, dtype=torch.float32)
    assert (attention.amax(1) > 1.2 * attention.mean(1)).all(), "a flat row would prove nothing"
    assert (tokens.cls is None) == (cls is None)
    if cls is not None:
        assert_matches_reference(tokens.cls, cls, dtype=torch.float32, atol=2e-5)
    one_by_one = [encoder.forward(pixels[i : i + 1]) for i in range(3)]
    for whole, parts in zip(tokens, zip(*one_by_one, strict=True), strict=True):
        if whole is not None:
            assert_matches_reference(torch.cat(parts), whole, dtype=torch.float32, atol=2e-5)


@pytest.mark.parametrize("case", ["dinov3", "siglip2-naflex"])
@torch.inference_mode()
def test_bfloat16_runs_and_stays_near(case, tmp_path):
    size = CASES[case][3]
    save(case, tmp_path)
    exact, half = (load_encoder(f"hf:{tmp_path}", "cpu", p, size) for p in ("float32", "bfloat16"))
    pixels = torch.randn(2, 3, size, size)
    a, b = (e.forward(pixels.to(e.dtype)) for e in (exact, half))
    assert b.patches.dtype == b.cls.dtype == torch.bfloat16 and b.attention.dtype == torch.float32
    unit = [torch.nn.functional.normalize(t.patches.float(), dim=-1) for t in (a, b)]
    # 3e-2: shaken toy weights amplify rounding; what matters for real use is the load-time check
    assert_matches_reference(unit[1] @ unit[1].mT, unit[0] @ unit[0].mT, dtype=torch.bfloat16, atol=3e-2)


def test_random_needs_only_the_configuration(tmp_path):
    save("dinov2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    first, second = (load_encoder(f"hf:{tmp_path}@random", "cpu", "float32") for _ in range(2))
    assert first.random_weights and first.id == second.id and str(tmp_path.parent) not in first.id
    with pytest.raises(EncoderError):
        load_encoder(f"hf:{tmp_path}", "cpu", "float32")


def test_preprocessing_comes_from_the_folder(tmp_path):
    save("dinov2", tmp_path)
    assert load_encoder(f"hf:{tmp_path}", "cpu", "float32").preprocess.size == (56, 56)
    processor = {
        "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2, "do_center_crop": True,
        "size": {"shortest_edge": 96}, "crop_size": {"height": 84, "width": 84},
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    squash = load_encoder(f"hf:{tmp_path}", "cpu", "float32").preprocess
    assert (squash.size, squash.interpolation, squash.fit, squash.crop_fraction) == (
        (84, 84),
        "bilinear",
        "squash",
        1.0,
    )
    assert squash.mean == (0.1, 0.2, 0.3) and squash.std == (0.4, 0.5, 0.6)
    crop = load_encoder(f"hf:{tmp_path}", "cpu", "float32", fit="crop").preprocess
    assert (crop.fit, crop.crop_fraction) == ("crop", 84 / 96)
    with pytest.raises(UsageError, match="multiple of the patch size 14, got 60; nearest: 56 or 70"):
        load_encoder(f"hf:{tmp_path}", "cpu", "float32", 60)


def test_offline_serves_from_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo, commit = tmp_path / "models--some--tower", "0" * 40
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    save("dinov2", repo / "snapshots" / commit)
    encoder = load_encoder("hf:some/tower", "cpu", "float32", offline=True)
    assert encoder.id.startswith("hf:some/tower+") and not encoder.random_weights
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert [row["cached"] for row in known_encoders() if row["spec"].startswith("hf:")] == [["some/tower"]]


def test_rejects_folders(tmp_path):
    with pytest.raises(EncoderError, match="holds no config"):
        load_encoder(f"hf:{tmp_path}", "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(EncoderError, match=r"model_type 'bert' is not supported; known: dinov2, .*video_llama_3"):
        load_encoder(f"hf:{tmp_path}", "cpu")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EncoderError, match="not JSON"):
        load_encoder(f"hf:{tmp_path}", "cpu")
    with pytest.raises(EncoderError, match="is no folder, and a hub id has the form OWNER/NAME"):
        load_encoder(f"hf:{tmp_path}/absent", "cpu")


def test_wrong_keys_are_counted(tmp_path, capfd):
    from safetensors.torch import load_file, save_file

    save("dinov2", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["layernorm.weight"], state["layernorm.bias"]
    state["extra"] = torch.zeros(1)
    state["embeddings.cls_token"] = torch.zeros(1, 1, 3)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    with pytest.raises(
        EncoderError, match=r"2 missing \(.*layernorm\.bias.*1 unexpected \(e\.g\. extra\); 1 of another shape"
    ):
        load_encoder(f"hf:{tmp_path}", "cpu")
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
