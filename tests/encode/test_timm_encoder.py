"""Every timm family at toy size: tokens against forward_features, attention against timm's own unfused path."""

from __future__ import annotations

import pytest
import timm
import torch
from compare import COSINE_ATOL, assert_matches_reference
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from vsim_fast.encode import timm_encoder
from vsim_fast.encode.attention import CLS_ROW, POOLED_ROW, PROBE_ROW
from vsim_fast.encode.spec import Spec
from vsim_fast.errors import EncoderError

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 2}
FAMILIES = {  # name -> (further arguments, pixels, prefix tokens, what attention is)
    "vit_small_patch14_dinov2": ({"init_values": 0.5}, 56, 1, CLS_ROW),
    "vit_small_patch14_reg4_dinov2": ({"init_values": 0.5}, 56, 5, CLS_ROW),
    "vit_small_patch16_dinov3": ({"init_values": 0.5}, 64, 5, CLS_ROW),
    "vit_small_patch16_dinov3_qkvb": ({"init_values": 0.5}, 64, 5, CLS_ROW),
    "vit_base_patch16_clip_224": ({}, 64, 1, CLS_ROW),
    "vit_base_patch16_siglip_224": ({}, 64, 0, PROBE_ROW),
    "vit_pe_core_tiny_patch16_384": ({"attn_pool_num_heads": 2}, 64, 1, CLS_ROW),
    "eva02_tiny_patch14_224": ({}, 56, 1, CLS_ROW),
    "vit_base_patch16_siglip_gap_224": ({}, 64, 0, POOLED_ROW),
    "vit_small_patch16_224": ({"qk_norm": True}, 64, 1, CLS_ROW),
}
CPU = torch.device("cpu")


def load(name, pixels, *, dtype=torch.float32, **options):
    spec = Spec.parse(f"timm:{name}" if "@" in name else f"timm:{name}@random")
    encoder = timm_encoder.load(spec, image_size=pixels, fit="squash", offline=True, **SMALL, **options)
    return encoder.settle(CPU, [dtype])


def shake(network):
    """Weights large enough for an attention that is far from uniform; norms and positions move too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


class KeepSoftmax(TorchFunctionMode):
    """The last softmax output: the attention map of timm's unfused path."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.Tensor.softmax:
            self.map = out  # [B, heads, queries, keys]
        return out


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_tokens_and_attention_match_timm(name):
    options, size, prefix, kind = FAMILIES[name]
    encoder = load(name, size, **options)
    network = encoder.network
    shake(network)
    pixels = torch.randn(3, 3, size, size)
    tokens = encoder.forward(pixels)
    one_by_one = [encoder.forward(pixels[i : i + 1]) for i in range(3)]

    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with KeepSoftmax() as seen:
        features = network.forward_features(pixels)
        pooled = network.forward_head(features, pre_logits=True) if kind == PROBE_ROW else None
    assert encoder.attention_kind == kind and encoder.has_cls_token == (kind == CLS_ROW)
    assert_matches_reference(tokens.patches, features[:, prefix:], dtype=torch.float32, atol=2e-5)  # values up to 4
    assert tokens.patches.shape == (3, encoder.grid[0] * encoder.grid[1], encoder.dim)
    if kind == POOLED_ROW:
        assert tokens.cls is None
        expected = pooled_row(network, pixels)
    else:
        cls = pooled if kind == PROBE_ROW else features[:, 0]
        assert_matches_reference(tokens.cls, cls, dtype=torch.float32, atol=5e-5)
        expected = seen.map[:, :, 0, prefix:].mean(1)
    assert_matches_reference(tokens.attention, expected, dtype=torch.float32)
    assert (expected.amax(1) > 1.2 * expected.mean(1)).all(), "a flat row would prove nothing"
    for whole, parts in zip(tokens, zip(*one_by_one, strict=True), strict=True):
        if whole is not None:
            assert_matches_reference(torch.cat(parts), whole, dtype=torch.float32, atol=5e-5)


def pooled_row(network, pixels):
    """The definition, from the projection's own output: softmax(mean q · k / sqrt(d)), mean over heads."""
    attn, kept = network.blocks[-1].attn, []
    handle = attn.qkv.register_forward_hook(lambda module, args, out: kept.append(out))
    network.forward_features(pixels)
    handle.remove()
    q, k, _ = kept[0].unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).double()
    return (q.mean(2, keepdim=True) @ k.mT * attn.scale).softmax(-1).mean(1)[:, 0]


@torch.inference_mode()
def test_bfloat16_stays_within_the_table():
    exact, half = (
        load("vit_small_patch16_dinov3", 64, init_values=0.5, dtype=d) for d in (torch.float32, torch.bfloat16)
    )
    pixels = torch.randn(2, 3, 64, 64)
    unit = [torch.nn.functional.normalize(e.forward(pixels.to(e.dtype)).patches.float(), dim=-1) for e in (exact, half)]
    error = (unit[0] @ unit[0].mT - unit[1] @ unit[1].mT).abs().max().item()
    assert error < COSINE_ATOL[torch.bfloat16]
    assert half.network.rope.periods.dtype == torch.float32, "rotary tables keep their precision"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@torch.inference_mode()
def test_checkpoint_gives_the_weights_at_any_size(suffix, tmp_path):
    source = load("vit_small_patch14_dinov2", 70, init_values=0.5)
    shake(source.network)
    path = tmp_path / f"weights{suffix}"
    state = {**source.network.state_dict(), "head.weight": torch.zeros(5, 48)}  # a classifier is dropped
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    same = load(f"vit_small_patch14_dinov2@{path}", 70, init_values=0.5)
    pixels = torch.randn(1, 3, 70, 70)
    assert not same.random_weights
    assert torch.equal(same.forward(pixels).patches, source.forward(pixels).patches)
    larger = load(f"vit_small_patch14_dinov2@{path}", 98, init_values=0.5)
    pixels = torch.randn(1, 3, 98, 98)
    expected = source.network.forward_features(pixels)[:, 1:]  # timm resamples its table in the forward pass
    assert_matches_reference(larger.forward(pixels).patches, expected, dtype=torch.float32, atol=2e-5)


@torch.inference_mode()
def test_original_dinov3_names_are_understood(tmp_path):
    source = load("vit_small_patch16_dinov3_qkvb", 64, init_values=0.5)
    shake(source.network)
    original = {}
    for key, value in source.network.state_dict().items():
        key = key.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        if key.endswith(("q_bias", "v_bias")):
            bias = original.setdefault(key[: -len("q_bias")] + "qkv.bias", torch.zeros(3 * 48))
            bias[:48] = value if key.endswith("q_bias") else bias[:48]
            bias[96:] = value if key.endswith("v_bias") else bias[96:]
        else:
            original[key] = value
    original |= {"mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.ones(6)}
    original["blocks.0.attn.qkv.bias_mask"] = torch.ones(144)
    torch.save(original, tmp_path / "dinov3.pth")
    loaded = load(f"vit_small_patch16_dinov3_qkvb@{tmp_path / 'dinov3.pth'}", 64, init_values=0.5)
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.forward(pixels).patches, source.forward(pixels).patches)


def test_wrong_keys_are_counted(tmp_path):
    network = load("vit_small_patch14_dinov2", 56).network
    state = network.state_dict()
    del state["norm.weight"], state["norm.bias"]
    state |= {"extra": torch.zeros(1), "blocks.0.mlp.fc1.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "wrong.pt")
    with pytest.raises(
        EncoderError, match=r"2 missing \(e\.g\. norm\.bias, norm\.weight\); 1 unexpected \(e\.g\. extra\); 1 of"
    ):
        load(f"vit_small_patch14_dinov2@{tmp_path / 'wrong.pt'}", 56)


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_rejects_files_that_are_no_tensor_checkpoint(tmp_path, capsys):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    for file, rule in {
        "evil.pt": "not a checkpoint of tensors only", "cut.safetensors": "not a readable tensor checkpoint",
        "none.pth": "holds no tensors", "absent.pt": "no such checkpoint", "model.onnx": "must end in|no such",
    }.items():  # fmt: skip
        with pytest.raises(EncoderError, match=rule):
            load(f"vit_small_patch14_dinov2@{tmp_path / file}", 56)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("vit_smol_patch14_dinov2@random", "has no model 'vit_smol_patch14_dinov2'; near: vit_small_patch14_dinov2"),
        ("vit_small_patch14_dinov2.nope@random", r"has no weights 'nope' for it; it has: .*lvd142m"),
        ("resnet18@random", "not a ViT or EVA tower"),
    ],
)
def test_rejects_names(name, rule):
    with pytest.raises(EncoderError, match=rule):
        timm_encoder.load(Spec.parse(f"timm:{name}"), image_size=None, fit="squash", offline=True)


def test_building_without_drawing_gives_a_whole_model():
    """SkipInit may only spare draws: buffers and the structure are those of a normal build."""
    from vsim_fast.encode.checkpoint import SkipInit

    options = {**SMALL, "img_size": 64, "num_classes": 0}
    normal = timm.create_model("eva02_tiny_patch14_224", **{**options, "img_size": 56})
    with SkipInit():
        skipped = timm.create_model("eva02_tiny_patch14_224", **{**options, "img_size": 56})
    assert dict(normal.named_buffers()).keys() == dict(skipped.named_buffers()).keys()
    for (name, a), b in zip(normal.named_buffers(), skipped.buffers(), strict=True):
        assert torch.equal(a, b), name
