"""Compiled, recorded and float8 forward passes: the tokens of the eager one, whatever the batch and the thread."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from compare import COSINE_ATOL, assert_matches_reference
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

from vsim_fast.cli import app
from vsim_fast.encode import execution, hf_encoder, load_encoder, timm_encoder
from vsim_fast.encode.base import Tokens
from vsim_fast.encode.execution import Captured, CapturedForward, padded_size
from vsim_fast.encode.float8 import FLOAT8, Float8Linear, quantise_linears, quantised
from vsim_fast.encode.spec import Spec
from vsim_fast.errors import DeviceError, UsageError

CPU = torch.device("cpu")
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 14}
CONFIGS = {  # of transformers' models
    "dinov2": {"model_type": "dinov2", "image_size": 56, **SIZES},
    "clip": {"model_type": "clip_vision_model", "image_size": 56, **SIZES},
    "videollama3": {"model_type": "video_llama_3_vision", **SIZES},
}
DINOV2, SIGLIP, DINOV3, EVA = (
    "vit_small_patch14_dinov2", "vit_base_patch16_siglip_224", "vit_small_patch16_dinov3_qkvb",
    "eva02_tiny_patch14_224",
)  # fmt: skip
CASES = [(name, torch.float32) for name in (DINOV2, SIGLIP, *CONFIGS)] + [(DINOV2, torch.bfloat16)]
SIDE = 112  # pixels: a multiple of both patch sizes


def cosines(patches):
    unit = F.normalize(patches.float(), dim=-1)
    return unit @ unit.mT


def same_tokens(got, expected, dtype):
    """Patch cosines and attention within the table; lengths within a few steps of the dtype."""
    assert_matches_reference(cosines(got.patches), cosines(expected.patches), dtype=dtype)
    assert_matches_reference(got.attention, expected.attention, dtype=dtype)
    for one, other in ((got.patches, expected.patches), (got.cls, expected.cls)):
        assert (one is None) == (other is None)
        if one is not None:
            error = (one.float() - other.float()).abs().max() / other.float().abs().max()
            assert error < 4 * COSINE_ATOL[dtype]


def unsettled(name, folder=None):
    """A small model of two blocks, the same at each call."""
    common = dict(image_size=SIDE, fit="squash", offline=True)
    if name in CONFIGS:
        (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
        return hf_encoder.load(Spec.parse(f"hf:{folder}@random"), **common)
    return timm_encoder.load(Spec.parse(f"timm:{name}@random"), **common, depth=2, embed_dim=48, num_heads=2)


def small(name, dtype, mode="eager", folder=None):
    """The same, settled, its weights large enough for an uneven attention."""
    encoder, generator = unsettled(name, folder), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.network.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return encoder.settle(CPU, [dtype], mode)


@pytest.fixture
def captured_only(monkeypatch):
    """What `torch.compile` takes down runs as it is: the same graphs without seconds of a C++ compiler."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend="aot_eager", **options))


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=[f"{n}-{str(d).removeprefix('torch.')}" for n, d in CASES])
def test_compiled_tokens_and_attention_match_eager(name, dtype, tmp_path, request):
    if name != DINOV2:
        request.getfixturevalue("captured_only")
    eager, compiled = (small(name, dtype, mode, tmp_path) for mode in ("eager", "compiled"))
    assert compiled.id == eager.id
    assert (eager.describe()["execution"], compiled.describe()["execution"]) == ("eager", "compiled")
    for frames in (3, 2):
        pixels = torch.randn(frames, 3, SIDE, SIDE).to(dtype)
        same_tokens(compiled.forward_in_batches(pixels), eager.forward_in_batches(pixels), dtype)


def test_all_blocks_but_the_tapped_one_share_what_is_compiled(monkeypatch):
    made, compiled, real = [], [], torch.compile

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda f, **options: made.append(f) or real(f, backend=backend, **options))
    encoder = small(DINOV2, torch.float32, "compiled")
    *others, last = encoder.blocks()
    assert len(made) == 1 and all(hasattr(block.forward, "func") for block in others)
    assert not hasattr(last.forward, "func"), "the attention row is taken in an eager block"
    assert made[0].__code__ is not type(last).forward.__code__, "another model's sizes count against another limit"
    for frames in (3, 2, 5):
        encoder.forward_in_batches(torch.randn(frames, 3, SIDE, SIDE))
    assert len(compiled) == 1, "all batch sizes share what is compiled, too"


def test_compiled_blocks_run_in_several_threads(captured_only):
    eager, compiled = (small(DINOV2, torch.float32, mode) for mode in ("eager", "compiled"))
    batches = [torch.randn(2 + n % 2, 3, SIDE, SIDE) for n in range(12)]
    with ThreadPoolExecutor(3, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        outcomes = list(pool.map(compiled.forward_in_batches, batches))
    for pixels, tokens in zip(batches, outcomes, strict=True):
        same_tokens(tokens, eager.forward_in_batches(pixels), torch.float32)


def test_without_a_compiler_the_error_says_what_is_missing(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("\n  No working C++ compiler found in torch._inductor.config.cpp.cxx\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    execution.why_not_compiled.cache_clear()
    try:
        with pytest.raises(DeviceError, match=r"does not work on cpu: No working C.*; it needs a C\+\+ compiler"):
            load_encoder("timm:vit_tiny_patch16_224@random", CPU, execution="compiled")
    finally:
        execution.why_not_compiled.cache_clear()


def test_an_error_of_the_compiler_names_the_cure(monkeypatch):
    block = nn.Identity()

    def fails(*_):
        raise torch._dynamo.exc.TorchDynamoException("it broke\nat length")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    execution.compile_blocks([block])
    with pytest.raises(DeviceError, match=r"torch.compile failed on cpu: it broke; use eager"):
        block(torch.zeros(2))


def test_too_many_numbers_of_threads_are_an_error_that_names_the_limit(monkeypatch):
    real, before = torch.compile, torch.get_num_threads()
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend="eager", **options))
    block = nn.GELU()
    execution.compile_blocks([block])
    try:
        limit = torch._dynamo.config.patch(recompile_limit=2)
        with limit, pytest.raises(DeviceError, match="compiles a block at most 2 times"):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                block(torch.zeros(2))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"execution": "fast"}, UsageError, "execution must be eager, compiled, graphs, compiled\\+graphs, got 'fast'"),
        ({"execution": "graphs"}, DeviceError, "execution graphs needs a CUDA device, got cpu; use eager or compiled"),
        ({"execution": "compiled+graphs"}, DeviceError, "needs a CUDA device"),
        ({"precision": "float8"}, DeviceError, "float8 needs a CUDA device of compute capability 9.0 or more, got cpu"),
        ({"spec": "builtin", "execution": "compiled"}, UsageError, "builtin has no network .* takes eager"),
    ],
)
def test_load_encoder_rejects(options, error, message):
    with pytest.raises(error, match=message):
        load_encoder(**{"spec": "timm:vit_tiny_patch16_224@random", "device": "cpu", **options})


@pytest.mark.parametrize("command", ["analyze", "compare", "dedup", "embed"])
def test_commands_hand_the_execution_on(command, clip, tmp_path):
    paths = [str(clip)] * (2 if command == "compare" else 1)
    options = ["--model", "timm:vit_tiny_patch16_224@random", "--device", "cpu", "--execution", "graphs"]
    result = CliRunner().invoke(app, [command, *paths, *options, "--output-dir", str(tmp_path / "out")])
    assert isinstance(result.exception, DeviceError) and "needs a CUDA device" in str(result.exception)


class Crossings(TorchDispatchMode):
    """Operators between devices, which wait for the device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
        if len(devices) > 1:
            self.seen.append(str(func))
        return out


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="torch is built without CUDA")
@pytest.mark.parametrize("name", [DINOV2, SIGLIP, DINOV3, EVA, "dinov2", "clip"])
def test_a_pass_stays_on_its_device(name, tmp_path):
    """What a CUDA graph needs, shown by tensors without memory that claim to be on a GPU."""
    encoder = unsettled(name, tmp_path)
    with FakeTensorMode(), torch.no_grad():
        for module in encoder.network.modules():
            for table in (module._parameters, module._buffers):
                for key, x in table.items():
                    if x is not None:
                        there = torch.empty(x.shape, dtype=x.dtype, device="cuda")
                        table[key] = nn.Parameter(there, requires_grad=False) if isinstance(x, nn.Parameter) else there
        encoder.device, encoder._tap = torch.device("cuda"), encoder.tap()
        pixels = torch.empty(2, 3, SIDE, SIDE, device="cuda")
        with Crossings() as crossings:
            tokens = encoder._forward(pixels)
    assert tokens.patches.device.type == "cuda" and not crossings.seen


# ---- recorded forward passes, with a stand-in for the graph ----


class Recording:
    """Records `forward` as a CUDA graph does: the same memory is read and written by each replay."""

    def __init__(self):
        self.sizes, self.fail = [], {}

    def __call__(self, forward, pixels):
        if error := self.fail.pop(len(pixels), None):
            raise error
        self.sizes.append(len(pixels))
        tokens = forward(pixels)

        class Graph:
            def replay(self):
                for held, new in zip(tokens, forward(pixels), strict=True):
                    if held is not None:
                        held.copy_(new)

        return Captured(Graph(), pixels, tokens)


def double(pixels):
    flat = pixels.flatten(2)
    return Tokens(flat * 2, None, flat.sum(1))


@pytest.fixture
def recording():
    return Recording()


@pytest.mark.parametrize(("rows", "most", "size"), [(1, 32, 1), (3, 32, 4), (17, 32, 32), (12, 12, 12), (9, 12, 12)])
def test_padded_size_is_a_power_of_two_or_the_most(rows, most, size):
    assert padded_size(rows, most) == size


def test_recorded_batches_are_padded_cut_and_reused(recording):
    forward = CapturedForward(double, lambda: 8, recording)
    for rows in (8, 5, 8, 3, 1, 4, 7):
        pixels = torch.randn(rows, 3, 2, 2)
        tokens = forward(pixels)
        assert torch.equal(tokens.patches, double(pixels).patches) and tokens.cls is None
        assert torch.equal(tokens.attention, double(pixels).attention)
    assert recording.sizes == [8, 4, 1]


def test_recorded_tokens_outlive_the_next_batch(recording):
    forward = CapturedForward(double, lambda: 4, recording)
    first = forward(torch.ones(4, 3, 2, 2))
    forward(torch.zeros(4, 3, 2, 2))
    assert (first.patches == 2).all()


def test_memory_running_out_drops_the_graphs_and_halves_the_batch(recording):
    encoder, pixels = small(DINOV2, torch.float32), torch.randn(11, 3, SIDE, SIDE)
    encoder.batch_size = 8
    expected = encoder.forward_in_batches(pixels)
    encoder._run = forward = CapturedForward(encoder._forward, lambda: encoder.batch_size, recording)
    encoder.forward_in_batches(pixels[:2])
    recording.fail[8] = torch.OutOfMemoryError("made up")
    same_tokens(encoder.forward_in_batches(pixels), expected, torch.float32)
    assert encoder.batch_size == 4 and recording.sizes == [2, 4] and len(forward._captured) == 1


def test_what_cannot_be_recorded_is_an_error(recording):
    recording.fail[2] = RuntimeError("operation not permitted when stream is capturing\ndetails")
    with pytest.raises(DeviceError, match="2 frames cannot be captured: operation not permitted when stream"):
        CapturedForward(double, lambda: 2, recording)(torch.zeros(2, 3, 2, 2))


def test_leaving_a_capture_that_ran_out_of_memory_is_running_out_of_memory(recording):
    error = RuntimeError("capture was invalidated")
    error.__context__ = torch.OutOfMemoryError("made up")
    recording.fail[2] = error
    with pytest.raises(torch.OutOfMemoryError):
        CapturedForward(double, lambda: 2, recording)(torch.zeros(2, 3, 2, 2))


@pytest.mark.needs_cuda
@pytest.mark.parametrize(
    ("model", "mode"),
    [("vit_tiny_patch16_224", "graphs"), ("vit_tiny_patch16_224", "compiled+graphs"),
     ("vit_small_patch16_dinov3", "graphs")],
)  # fmt: skip
def test_graphs_on_cuda_match_eager(model, mode):
    spec = f"timm:{model}@random"
    eager, recorded = (load_encoder(spec, "cuda", "float16", 64, execution=e) for e in ("eager", mode))
    eager.batch_size = recorded.batch_size = 8
    kept = []
    for rows in (8, 5, 8):
        pixels = torch.randn(rows, 3, 64, 64, device="cuda").half()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            tokens = recorded.forward_in_batches(pixels)
        stream.synchronize()
        kept.append((tokens, eager.forward_in_batches(pixels)))
    for tokens, expected in kept:
        same_tokens(tokens, expected, torch.float16)


# ---- float8 ----


def emulated_product(a, b, *, scale_a, scale_b, bias, out_dtype, use_fast_accum):
    product = (a.float() @ b.float()) * scale_a * scale_b
    return (product if bias is None else product + bias).to(out_dtype)


@pytest.fixture
def row_scales(monkeypatch):
    """`torch._scaled_mm` with a scale per row on the CPU, emulated where this torch has it on CUDA alone."""
    try:
        Float8Linear(nn.Linear(16, 16), torch.bfloat16)(torch.zeros(2, 16))
    except RuntimeError:
        monkeypatch.setattr(torch, "_scaled_mm", emulated_product)


@pytest.mark.parametrize("shape", [(5, 32), (2, 3, 48)])
def test_quantised_rows_are_near_and_use_the_whole_range(shape):
    x = torch.randn(shape) * torch.logspace(-4, 4, shape[-2])[:, None]
    x[..., 0, :] = 0
    values, scale = quantised(x)
    assert values.dtype == FLOAT8 and scale.shape == (*shape[:-1], 1)
    assert ((values.float() * scale - x).abs() <= x.abs() / 16 + scale * 2**-9).all()  # 3 bits of mantissa
    assert (values.float().abs().amax(-1)[..., 1:] == 448).all()


@pytest.mark.parametrize("bias", [True, False])
def test_float8_linear_is_the_product_of_the_quantised(bias, row_scales):
    linear, x = nn.Linear(64, 48, bias=bias), torch.randn(2, 7, 64, dtype=torch.bfloat16)
    (w, ws), (rows, rs) = quantised(linear.weight), quantised(x)
    exact = (rows.double() * rs.double()) @ (w.double() * ws.double()).T + (linear.bias.bfloat16() if bias else 0)
    got = Float8Linear(linear, torch.bfloat16)(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=8e-3, atol=8e-3)


def test_float8_linear_hands_on_whole_rows(monkeypatch):
    """Of one frame whose tokens still lie as the convolution left them, column by column."""
    linear, x = Float8Linear(nn.Linear(64, 48), torch.bfloat16), torch.randn(1, 64, 7, dtype=torch.bfloat16).mT

    def product(a, b, **options):
        assert a.stride() == (64, 1) and b.stride() == (1, 64)
        return emulated_product(a, b, **options)

    monkeypatch.setattr(torch, "_scaled_mm", product)
    assert torch.equal(linear(x), linear(x.contiguous()))


def test_quantise_linears_leaves_odd_sizes_and_subclasses():
    class Mine(nn.Linear):
        pass

    block = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 24), nn.Sequential(nn.Linear(16, 16)), Mine(16, 16))
    assert quantise_linears([block], torch.bfloat16) == 2
    assert [type(m).__name__ for m in block] == ["Float8Linear", "Linear", "Sequential", "Mine"]


@pytest.mark.parametrize("name", [DINOV2, DINOV3, EVA])
def test_float8_encoders_are_near_float32_and_other(name, row_scales):
    exact, low = small(name, torch.float32), small(name, FLOAT8)
    assert low.id == exact.id.replace("float32", "float8") and low.describe()["dtype"] == "float8"
    assert any(isinstance(module, Float8Linear) for module in low.network.modules())
    assert low.cosine_error < 0.1  # 0.03 to 0.05 measured
    pixels = torch.randn(2, 3, SIDE, SIDE)
    got, expected = low.forward_in_batches(pixels.to(low.dtype)), exact.forward_in_batches(pixels)
    assert_matches_reference(cosines(got.patches), cosines(expected.patches), dtype=FLOAT8, atol=0.1)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("mode", ["eager", "compiled+graphs"])
def test_float8_on_cuda_is_near_the_emulated_product(mode, monkeypatch):
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("float8 needs compute capability 9.0")
    spec, pixels = "timm:vit_tiny_patch16_224@random", torch.randn(3, 3, 64, 64, device="cuda").bfloat16()
    got = load_encoder(spec, "cuda", "float8", 64, execution=mode).forward_in_batches(pixels)
    monkeypatch.setattr(torch, "_scaled_mm", emulated_product)
    expected = load_encoder(spec, "cuda", "float8", 64).forward_in_batches(pixels)
    assert_matches_reference(cosines(got.patches), cosines(expected.patches), dtype=FLOAT8, atol=0.03)
