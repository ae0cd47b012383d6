"""Specs, devices, precisions, sizes, identity: everything that does not depend on the family of model."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from vsim_fast import ops
from vsim_fast.encode import known_encoders, load_encoder
from vsim_fast.encode.network import candidate_dtypes, check_image_size
from vsim_fast.encode.spec import Spec
from vsim_fast.errors import DeviceError, EncoderError, UsageError

TINY = "timm:test_vit@random"  # 0.4 M parameters, 160 px, patch 16


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("builtin", ("builtin", "", None)),
        ("timm:vit_x.tag", ("timm", "vit_x.tag", None)),
        ("timm:vit_x@/a@b/c.pt", ("timm", "vit_x", "/a@b/c.pt")),
        ("timm:vit_x@random", ("timm", "vit_x", "random")),
        ("hf:owner/name", ("hf", "owner/name", None)),
        ("hf:/a@b/model@random", ("hf", "/a@b/model", "random")),
        ("videollama3:C:/models/v", ("videollama3", "C:/models/v", None)),
    ],
)
def test_spec_parses_and_prints_back(text, parts):
    spec = Spec.parse(text)
    assert (spec.kind, spec.name, spec.source) == parts
    assert str(spec) == text


@pytest.mark.parametrize(
    "text", ["", "clip", "timm:", "timm", "timm:x@", "hf:", "hf:@random", "builtin:x", "foo:bar", ":x"]
)
def test_spec_rejects(text):
    with pytest.raises(EncoderError, match=r"is none of: builtin, timm:NAME, "):
        Spec.parse(text)


def test_portable_name_leaves_folders_out(tmp_path):
    (tmp_path / "model").mkdir()
    assert Spec.parse(f"hf:{tmp_path}/model@random").portable_name == "hf:model@random"
    assert Spec.parse("timm:vit_x@/some/where/w.pt").portable_name == "timm:vit_x"
    assert Spec.parse("hf:owner/name").portable_name == "hf:owner/name"


def test_the_same_call_gives_the_same_encoder_and_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    first, second = (load_encoder(TINY, "cpu", "float32", 64) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.id == second.id and first.random_weights and first.spec == TINY
    pixels = torch.randn(2, 3, 64, 64)
    tokens = first.forward_in_batches(pixels)
    assert all(torch.equal(a, b) for a, b in zip(tokens, second.forward_in_batches(pixels), strict=True))
    assert (
        first.grid == (4, 4) and tokens.patches.shape == (2, 16, first.dim) and tokens.attention.dtype == torch.float32
    )
    assert {"random_weights": True, "dtype": "float32", "cosine_error": None}.items() <= first.describe().items()


def test_id_tells_size_precision_fit_and_weights_apart():
    one = load_encoder(TINY, "cpu", "float32", 64)
    ids = {one.id, load_encoder(TINY, "cpu", "float32", 80).id, load_encoder(TINY, "cpu", "bfloat16", 64).id}
    ids.add(load_encoder(TINY, "cpu", "float32", 64, fit="crop").id)
    ids.add(load_encoder("timm:test_vit2@random", "cpu", "float32", 64).id)
    assert len(ids) == 5


def test_crop_takes_the_models_own_fraction():
    assert load_encoder(TINY, "cpu", "float32").preprocess.crop_fraction == 1.0
    crop = load_encoder(TINY, "cpu", "float32", fit="crop").preprocess
    assert (crop.fit, crop.size, crop.crop_fraction) == ("crop", (160, 160), 0.95)


def test_the_core_computes_attention_where_it_is_faster(monkeypatch):
    layers, real = [], ops.attention
    monkeypatch.setattr(ops, "attention", lambda *qkv, **options: (layers.append(0), real(*qkv, **options))[1])
    for faster in (True, False):
        monkeypatch.setattr("vsim_fast.encode.network.core_is_faster", lambda device, dtype, faster=faster: faster)
        encoder = load_encoder(TINY, "cpu", "bfloat16", 64)
        layers.clear()
        encoder.forward(torch.randn(1, 3, 64, 64).bfloat16())
        assert len(layers) == (len(encoder.network.blocks) if faster else 0)


def test_auto_precision_measures_bfloat16_before_taking_it(monkeypatch):
    monkeypatch.setattr("vsim_fast.encode.network.cpu_has_bfloat16", lambda: True)
    encoder = load_encoder(TINY, "cpu", "auto", 64)
    assert encoder.dtype == torch.bfloat16 and 0 < encoder.cosine_error <= 8e-3
    assert encoder.describe()["cosine_error"] == encoder.cosine_error
    exact, pixels = load_encoder(TINY, "cpu", "float32", 64), torch.randn(1, 3, 64, 64)
    unit = [
        torch.nn.functional.normalize(e.forward(pixels.to(e.dtype)).patches[0].float(), dim=-1)
        for e in (exact, encoder)
    ]
    assert (unit[0] @ unit[0].T - unit[1] @ unit[1].T).abs().max() < 8e-3
    monkeypatch.setattr("vsim_fast.encode.network.COSINE_BOUND", 0.0)
    refused = load_encoder(TINY, "cpu", "auto", 64)
    assert refused.dtype == torch.float32 and refused.cosine_error is None
    assert torch.equal(refused.forward(pixels).patches, exact.forward(pixels).patches)


@pytest.mark.needs_cuda
@torch.inference_mode()
def test_auto_precision_on_cuda_is_float16_and_near_the_cpu():
    encoder, exact = load_encoder(TINY, "cuda", "auto", 64), load_encoder(TINY, "cpu", "float32", 64)
    assert encoder.dtype == torch.float16 and encoder.cosine_error <= 8e-3
    pixels = torch.randn(3, 3, 64, 64)
    half, full = encoder.forward(pixels.to("cuda", encoder.dtype)), exact.forward(pixels)
    assert torch.allclose(half.attention.cpu(), full.attention, atol=1e-3)
    unit = [torch.nn.functional.normalize(t.patches.float().cpu(), dim=-1) for t in (half, full)]
    assert (unit[0] @ unit[0].mT - unit[1] @ unit[1].mT).abs().max() < 8e-3


def test_candidate_dtypes(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert candidate_dtypes("auto", cuda) == [torch.float16, torch.bfloat16, torch.float32]
    assert candidate_dtypes("bfloat16", cpu) == [torch.bfloat16]
    monkeypatch.setattr("vsim_fast.encode.network.cpu_has_bfloat16", lambda: False)
    assert candidate_dtypes("auto", cpu) == [torch.float32]
    with pytest.raises(DeviceError, match="float16 needs a GPU"):
        candidate_dtypes("float16", cpu)
    with pytest.raises(UsageError, match="precision must be auto, float32, bfloat16, float16, float8, got 'fp8'"):
        candidate_dtypes("fp8", cpu)


def test_image_size_rule():
    assert check_image_size(None, 384, 14) == 378
    assert check_image_size(448, 518, 14) == 448
    for size, near in ((450, "448 or 462"), (5, "14")):
        with pytest.raises(UsageError, match=rf"multiple of the patch size 14, got {size}; nearest: {near}"):
            check_image_size(size, 518, 14)
    for size in (0, -14, 2.5, True):
        with pytest.raises(UsageError, match="positive whole number"):
            check_image_size(size, 518, 14)


def test_rejects_devices_that_are_not_there():
    with pytest.raises(UsageError, match="device must be auto"):
        load_encoder(TINY, "tpu")
    with pytest.raises(UsageError, match="fit must be squash or crop"):
        load_encoder(TINY, fit="pad")
    wanted = f"cuda:{torch.cuda.device_count()}" if torch.cuda.is_available() else "cuda"
    with pytest.raises(DeviceError, match="device cuda") as caught:
        load_encoder(TINY, wanted)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["timm:vit_tiny_patch16_224", "hf:nobody/nothing"])
def test_offline_forbids_the_hub(spec, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match="not in the local cache and offline is set") as caught:
        load_encoder(spec, "cpu", offline=True)
    assert "\n" not in str(caught.value)


def test_known_encoders_imports_no_library():
    code = "import sys, vsim_fast.encode as e; e.known_encoders(); print({'torch', 'timm'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
    rows = {row["spec"].partition(":")[0]: row for row in known_encoders()}
    assert rows["timm"]["available"] and rows["timm"]["reason"] is None and rows["timm"]["what"]


def test_known_encoders_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("vsim_fast.encode.find_spec", lambda name: None)
    assert all(not row["available"] and "is not installed" in row["reason"] for row in known_encoders())
