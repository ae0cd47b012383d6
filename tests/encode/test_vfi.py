"""Merged checkpoints in both formats: timm's own tokens, every key accounted for, wrong files say what they are."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from compare import assert_matches_reference
from PIL import Image
from safetensors.torch import save_file

from vsim_fast.encode import load_encoder
from vsim_fast.encode.spec import Spec
from vsim_fast.errors import EncoderError, UsageError
from vsim_fast.records import frames_in_memory

MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))


def tower(name="vit_small_patch14_dinov2", depth=2, size=56, seed=0):
    """A tower as `timm.create_model` gives it, with weights that move tokens far apart; a 4×4 grid keeps it small."""
    network = timm.create_model(name, num_classes=0, img_size=size, dynamic_img_size=True, depth=depth).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.requires_grad_(False)


def head(width=384):
    """The projection head that the authors store."""
    layers = torch.nn.Linear(width, 768), torch.nn.ReLU(), torch.nn.Linear(768, 512), torch.nn.LayerNorm(512)
    return torch.nn.Sequential(*layers).state_dict()


def flat(**parts):
    return {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}


@pytest.fixture(scope="module")
def network():
    return tower()


@pytest.fixture(scope="module")
def state(network):
    return network.state_dict()


def save(path, content):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return f"vfi:{path}"


def load(spec, size=56, **options):
    return load_encoder(spec, "cpu", "float32", size, offline=True, **options)


def mean_of_all(tokens):
    """Mean over CLS and patches, from Tokens."""
    return torch.cat([tokens.cls[:, None], tokens.patches], 1).mean(1)


FORMATS = {  # name -> (file, content of state and head, entries beside them)
    "merged": ("m.pt", lambda s, h: {"base": s, "embedding_head": h}, 0),
    "merged without head": ("m@random.pth", lambda s, h: {"base": s}, 0),
    "training": (
        "t.pt",
        lambda s, h: {"base": s, "embedding_head": h, "epoch": 3, "optimizer": {"state": {}, "step": 9}, "args": {}},
        4,
    ),
    "wrapped": ("w.bin", lambda s, h: {"model": {"base": s, "embedding_head": h}, "epoch": 3}, 1),
    "flat": ("f.pt", lambda s, h: flat(base=s, embedding_head=h), 0),
    "flat, wrapped": ("f.pt", lambda s, h: {"state_dict": flat(base=s), "epoch": 3, "loss": 0.1}, 2),
    "flat safetensors": ("f.safetensors", lambda s, h: flat(base=s, embedding_head=h, ema={"x": torch.ones(2)}), 1),
}


@pytest.mark.parametrize("name", FORMATS)
@torch.inference_mode()
def test_formats_give_timms_own_tokens_and_a_full_account(name, network, state, tmp_path):
    file, content, ignored = FORMATS[name]
    content = content(state, head())
    encoder = load(save(tmp_path / file, content))
    pixels = torch.randn(2, 3, 56, 56)
    tokens, expected = encoder.forward(pixels), network.forward_features(pixels)  # [2, 1 + 16, 384]
    assert torch.equal(tokens.patches, expected[:, 1:]) and torch.equal(tokens.cls, expected[:, 0])
    assert (mean_of_all(tokens) - expected.mean(1)).abs().max() < 1e-6
    assert encoder.has_cls_token and not encoder.random_weights and encoder.grid == (4, 4)
    stored = (
        "stored, not used" if any("embedding_head" in key for key in (*content, *content.get("model", ()))) else None
    )
    assert encoder.describe()["checkpoint"] == {
        "tower": "vit_small_patch14_dinov2", "blocks": 2, "matched": len(state), "total": len(state),
        "embedding_head": stored, "ignored": ignored,
    }  # fmt: skip


@pytest.mark.parametrize("size", [224, 252])
@torch.inference_mode()
def test_any_multiple_of_the_patch(size, network, state, tmp_path):
    encoder = load(save(tmp_path / "m.pt", {"base": state}), size)
    pixels = torch.randn(1, 3, size, size)
    expected = network.forward_features(pixels)  # timm resamples its table in the forward pass
    assert encoder.grid == (size // 14, size // 14)
    assert_matches_reference(mean_of_all(encoder.forward(pixels)), expected.mean(1), dtype=torch.float32, atol=1e-6)


def test_own_size_is_518(state, tmp_path):
    spec = save(tmp_path / "m.pt", {"base": state})
    encoder = load(spec, None)
    assert encoder.preprocess.size == (518, 518) and encoder.grid == (37, 37)
    with pytest.raises(UsageError, match="multiple of the patch size 14, got 500; nearest: 490 or 504"):
        load(spec, 500)


@pytest.mark.parametrize("width", ["small", "base"])
@pytest.mark.parametrize("registers", ["", "_reg4"])
@torch.inference_mode()
def test_width_depth_and_registers_come_from_the_tensors(width, registers, tmp_path):
    network = tower(f"vit_{width}_patch14{registers}_dinov2", depth=1)
    encoder = load(save(tmp_path / "m.pt", {"base": network.state_dict(), "embedding_head": head(network.embed_dim)}))
    pixels = torch.randn(1, 3, 56, 56)
    expected = network.forward_features(pixels)
    tokens = encoder.forward(pixels)
    assert torch.equal(tokens.patches, expected[:, network.num_prefix_tokens :])
    assert torch.equal(tokens.cls, expected[:, 0]) and tokens.attention.shape == (1, 16)
    assert (encoder.dim, len(encoder.network.blocks)) == (network.embed_dim, 1)


@pytest.mark.parametrize("registers", [False, True])
@torch.inference_mode()
def test_metas_names_are_understood(registers, tmp_path):
    network = tower(f"vit_small_patch14{'_reg4' * registers}_dinov2", depth=1)
    names = {**network.state_dict(), "mask_token": torch.zeros(1, 384)}
    if registers:  # Meta adds the first row of the table to the CLS token in the forward pass
        row = torch.randn(1, 1, 384)
        names["register_tokens"] = names.pop("reg_token")
        names["pos_embed"] = torch.cat([row, names["pos_embed"]], 1)
        names["cls_token"] = names["cls_token"] - row
    encoder = load(save(tmp_path / "m.pt", {"base": names}))
    pixels = torch.randn(1, 3, 56, 56)
    expected = network.forward_features(pixels)[:, network.num_prefix_tokens :]
    assert_matches_reference(encoder.forward(pixels).patches, expected, dtype=torch.float32)
    assert encoder.checkpoint["ignored"] == 1  # mask_token


@torch.inference_mode()
def test_frames_are_prepared_as_pil_prepares_them(state, tmp_path):
    y, x = np.mgrid[:90, :160]
    waves = [127 + 120 * np.sin(x / (3 + c) + y / (5 + 2 * c)) for c in range(3)]
    frame = np.stack(waves, -1).round().astype(np.uint8)
    frame[20:40, 30:60] = (255, 0, 128)  # edges: bicubic would overshoot them
    encoder = load(save(tmp_path / "m.pt", {"base": state}), 112)
    assert encoder.preprocess.interpolation == "bilinear" and encoder.preprocess.fit == "squash"
    got = encoder.pixels(frames_in_memory(frame[None]))[0].permute(1, 2, 0).double().numpy() * STD + MEAN
    expected = np.asarray(Image.fromarray(frame).resize((112, 112), Image.Resampling.BILINEAR))
    assert np.abs(got * 255 - expected).max() <= 2


def test_id_follows_the_weights_and_not_the_place(state, tmp_path):
    other = tower(seed=1).state_dict()
    (tmp_path / "x@y").mkdir()
    specs = [save(tmp_path / "m.pt", {"base": state}), save(tmp_path / "x@y" / "m.pt", flat(base=state))]
    ids = [load(spec).id for spec in specs]
    assert ids[0] == ids[1] and ids[0].startswith("vfi:m.pt+")
    assert load(save(tmp_path / "m.pt", {"base": other})).id != ids[0]


def test_a_path_may_hold_an_at_sign():
    for path in ("/x@y/m.pt", "m@random", "C:/m.pt"):
        spec = Spec.parse(f"vfi:{path}")
        assert (spec.kind, spec.name, spec.source, spec.random, str(spec)) == ("vfi", path, None, False, f"vfi:{path}")
    with pytest.raises(EncoderError, match=r"is none of: .*vfi:CHECKPOINT"):
        Spec.parse("vfi:")


def without(state, *keys):
    return {key: value for key, value in state.items() if key not in keys}


WRONG = {  # what is wrong -> (content of a good state, message)
    "a block is missing": (
        lambda s: {"base": {k: v for k, v in s.items() if not k.startswith("blocks.0.mlp")}},
        r"fit the model, which has 34 tensors: 4 missing \(e\.g\. blocks\.0\.mlp\.fc1\.bias, blocks\.0\.mlp\.fc1\.w",
    ),
    "LoRA is not merged": (
        lambda s: flat(base={**s, "blocks.0.attn.qkv.lora_A.weight": torch.zeros(4, 384)}),
        r"1 unexpected \(e\.g\. blocks\.0\.attn\.qkv\.lora_A\.weight\)",
    ),
    "a tensor is misshapen": (
        lambda s: {"base": {**s, "norm.bias": torch.zeros(383)}},
        r"34 tensors: 1 of another shape \(e\.g\. norm\.bias\)",
    ),
    "no base": (
        lambda s: {"encoder": {"conv.weight": torch.zeros(3)}, "step": 1},
        r"holds no tensors under `base` nor named base\.\*; found 2 entries, e\.g\. encoder\.conv\.weight, step",
    ),
    "a tower alone": (lambda s: s, r"found 34 entries, e\.g\. cls_token, .*; a tower alone loads as timm:NAME@PATH"),
    "base of another network": (
        lambda s: {"base": {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(1)}},
        r"no DINOv2 tower: no cls_token, no pos_embed, .*; found 2 entries, e\.g\. conv1\.weight, fc\.bias",
    ),
    "base is empty": (lambda s: {"base": {}, "embedding_head": head()}, "holds no tensors under `base`"),
    "base is text": (lambda s: {"base": "here"}, r"holds no tensors under `base` .* found 1 entries, e\.g\. base"),
    "a list": (lambda s: [torch.zeros(1)], "holds no tensors under `base` .*found 0 entries$"),
    "another width": (
        lambda s: {"base": {**s, "patch_embed.proj.weight": torch.zeros(48, 3, 14, 14)}},
        r"must be \[384 or 768 or 1024 or 1536, 3, 14, 14\], got \[48, 3, 14, 14\]",
    ),
    "another patch": (
        lambda s: {"base": {**s, "patch_embed.proj.weight": torch.zeros(384, 3, 16, 16)}}, r"got \[384, 3, 16, 16\]",
    ),
    "not square": (
        lambda s: {"base": {**s, "pos_embed": torch.zeros(1, 1 + 4 * 6, 384)}},
        r"pos_embed must be \[1, n² \+ 1, 384\], a square grid, got \[1, 25, 384\]",
    ),
    "a table of one number": (lambda s: {"base": {**s, "pos_embed": torch.zeros(())}}, r"a square grid, got \[\]"),
    "half a head": (
        lambda s: {"base": s, "embedding_head": without(head(), "2.bias", "3.bias")},
        r"embedding_head: weights do not fit .* 6 tensors: 2 missing \(e\.g\. 2\.bias, 3\.bias\)",
    ),
    "a head of another width": (
        lambda s: flat(base=s, embedding_head=head(768)), r"1 of another shape \(e\.g\. 0\.weight\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_content_says_what_it_is(what, state, tmp_path):
    content, message = WRONG[what]
    path = tmp_path / "wrong.pt"
    with pytest.raises(EncoderError, match=message) as caught:
        load(save(path, content(state)))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_wrong_files_say_what_they_are(state, tmp_path, capsys):
    torch.save({"base": state, "config": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 364488825\n")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "folder.pt").mkdir()
    for file, rule in {
        "evil.pt": "not a checkpoint of tensors only", "pointer.pt": "a Git LFS pointer, not the weights",
        "text.pt": "not a checkpoint|not a readable", "empty.pt": "not a readable", "cut.safetensors": "not a readable",
        "folder.pt": "no such checkpoint file", "absent.pt": "no such checkpoint file",
    }.items():  # fmt: skip
        with pytest.raises(EncoderError, match=rule) as caught:
            load(f"vfi:{tmp_path / file}")
        assert "\n" not in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


def test_has_cls_token_is_for_tokens_of_the_sequence():
    assert load("timm:test_vit@random", 64).has_cls_token
    assert not load("timm:vit_base_patch16_siglip_gap_224@random", 32).has_cls_token
    assert not load("builtin", 56).has_cls_token  # its CLS is pooled
