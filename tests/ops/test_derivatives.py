"""Every backend and instruction set of `derivatives` against the fp64 reference."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from compare import assert_matches_reference

from vsim_fast.ops import derivatives
from vsim_fast.ops.derivatives import reference

try:
    from vsim_fast import _C
except ImportError:
    _C = None

CSRC = Path(__file__).resolve().parents[2] / "csrc"
WINDOWS = (1, 5, 15, 30)
SHAPES = [  # B, T, D
    (1, 1, 1), (2, 2, 1), (1, 5, 2), (3, 31, 3), (2, 32, 17), (2, 40, 31), (1, 33, 32), (2, 37, 33), (1, 29, 64),
    (2, 77, 100), (3, 70, 768), (1, 300, 2), (1, 300, 96),
]  # fmt: skip
needs_core = pytest.mark.skipif(_C is None, reason="the compiled core is not installed")
BACKENDS = [
    "reference",
    pytest.param("cpp", marks=needs_core),
    pytest.param("cuda", marks=pytest.mark.needs_cuda),
]


def oracle(x, windows=WINDOWS, counts=None):
    if counts is None:
        counts = (torch.full((len(x), 1), x.shape[1]) - torch.tensor(windows)).clamp_min(0)
    return reference.derivatives(x.double(), windows, counts)


def assert_close(got, want, dim):
    magnitudes, changes, mean, variance = got[:4]
    scale = want[0].max().clamp_min(1).item()  # magnitudes grow with sqrt(D): relative error counts
    assert_matches_reference(magnitudes, want[0], dtype=torch.float32, atol=1e-6 * scale)
    assert_matches_reference(changes, want[1], dtype=torch.float32, atol=2e-6)
    assert_matches_reference(mean, want[2], dtype=torch.float32, atol=1e-6)
    assert_matches_reference(variance, want[3], dtype=torch.float32, atol=1e-6 / dim)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-T{}-D{}".format(*s))
@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_matches_reference(backend, shape):
    x = torch.randn(shape)
    device = "cuda" if backend == "cuda" else "cpu"
    got = derivatives(x.to(device), WINDOWS, backend=backend)
    assert got.counts.tolist() == [[max(0, shape[1] - w) for w in WINDOWS]] * shape[0]
    assert_close(got, oracle(x), shape[2])


@needs_core
@pytest.mark.parametrize("simd", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-T{}-D{}".format(*s))
def test_derivatives_on_every_instruction_set(simd, shape):
    from vsim_fast.ops.derivatives import native_impl

    if simd not in _C.simd_levels():
        pytest.skip(f"this CPU or build has no {simd}")
    x = torch.randn(shape)
    counts = (torch.full((shape[0], 1), shape[1]) - torch.tensor(WINDOWS)).clamp_min(0)
    assert_close(native_impl.derivatives(x, WINDOWS, counts, simd=simd), oracle(x), shape[2])


@pytest.mark.parametrize("dim", [2, 40])
@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_on_ragged_lengths(backend, dim):
    lengths = [0, 1, 2, 5, 16, 33, 64, 70]
    x = torch.randn(len(lengths), 70, dim)
    padded = x.clone()
    for b, length in enumerate(lengths):
        padded[b, length:] = float("nan")  # must never be read
    got = derivatives(padded.to("cuda" if backend == "cuda" else "cpu"), (1, 4, 30), lengths=lengths, backend=backend)
    for b, length in enumerate(lengths):
        alone = oracle(x[b : b + 1, :length], (1, 4, 30))
        pad = [torch.nn.functional.pad(field, (0, 70 - length)) for field in alone[:2]]
        assert_close([field[b : b + 1] for field in got], (*pad, *alone[2:]), dim)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_by_hand(backend):
    # A right angle, then a step of length 2, then rest: directions (1,0), (0,1), (0,1), (0,0).
    x = torch.tensor([[0.0, 0], [3, 0], [3, 4], [3, 6], [3, 6]], device="cuda" if backend == "cuda" else "cpu")
    got = derivatives(x, (1, 5), backend=backend)
    assert got.counts.tolist() == [4, 0]
    torch.testing.assert_close(got.magnitudes.cpu(), torch.tensor([[3.0, 4, 2, 0, 0], [0] * 5]))
    torch.testing.assert_close(got.direction_changes.cpu(), torch.tensor([[math.sqrt(2), 0, 1, 0, 0], [0.0] * 5]))
    torch.testing.assert_close(got.mean_direction.cpu(), torch.tensor([[0.25, 0.5], [0, 0]]))
    # var of (1,0,0,0) is 1/4, of (0,1,1,0) is 1/3; their mean is 7/24.
    torch.testing.assert_close(got.direction_variance.cpu(), torch.tensor([7 / 24, 0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [8, 64])
def test_reversed_video_negates_directions(backend, dim):
    x = torch.randn(2, 50, dim, device="cuda" if backend == "cuda" else "cpu")
    forward, back = derivatives(x, backend=backend), derivatives(x.flip(1), backend=backend)
    torch.testing.assert_close(back.mean_direction, -forward.mean_direction, rtol=0, atol=1e-6)
    for s, n in enumerate(forward.counts[0].tolist()):
        torch.testing.assert_close(back.magnitudes[:, s, :n], forward.magnitudes[:, s, :n].flip(1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [3, 50])
def test_derivatives_on_straight_motion(backend, dim):
    # Accelerating along one line: parallel differences of unlike lengths, where 2 - 2 cos would lose half the digits.
    line = torch.linspace(0, 3, 64).square()[:, None] * torch.randn(dim)
    got = derivatives(line.to("cuda" if backend == "cuda" else "cpu"), (1, 7), backend=backend)
    want = oracle(line[None], (1, 7))
    assert_close([field[None] for field in got], want, dim)
    frozen = derivatives(torch.ones(9, dim, device=got.counts.device), (1,), backend=backend)
    assert all(not field.any() for field in frozen[:4])


@needs_core
def test_derivatives_over_thousands_of_equal_steps():
    x = torch.arange(6000.0)[:, None] * torch.tensor([3.0, 4.0])  # equal directions: rounding must not pile up
    for dim in (2, 34):
        got = derivatives(torch.nn.functional.pad(x, (0, dim - 2)), (1,), backend="cpp")
        torch.testing.assert_close(got.mean_direction[0, :2], torch.tensor([0.6, 0.8]), rtol=0, atol=2e-7)
        assert got.direction_variance.item() <= 1e-6 / dim


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_on_non_contiguous_views(backend):
    base = torch.randn(40, 3, 2 * 37, device="cuda" if backend == "cuda" else "cpu")
    view = base.permute(1, 0, 2)[:, ::2, ::2]
    assert not view.is_contiguous()
    assert_close(derivatives(view, (1, 3), backend=backend), oracle(view.cpu(), (1, 3)), 37)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [2, 64])
def test_nan_reaches_only_what_is_computed_from_it(backend, dim):
    x = torch.randn(2, 40, dim, device="cuda" if backend == "cuda" else "cpu")
    clean = derivatives(x, (1, 30), backend=backend)
    x[1, 20, 1] = float("nan")  # behind every difference of window 30
    got = derivatives(x, (1, 30), backend=backend)
    for field, before in zip(got, clean, strict=True):
        assert torch.equal(field[0], before[0])
        assert torch.equal(field[1, 1], before[1, 1])
    assert got.magnitudes[1, 0].isnan().nonzero().flatten().tolist() == [19, 20]
    assert got.direction_changes[1, 0].isnan().nonzero().flatten().tolist() == [18, 19, 20]
    assert got.direction_variance[1, 0].isnan()


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_on_empty_batch(backend):
    got = derivatives(torch.zeros(0, 5, 3, device="cuda" if backend == "cuda" else "cpu"), (1, 2), backend=backend)
    assert [tuple(field.shape) for field in got] == [(0, 2, 5), (0, 2, 5), (0, 2, 3), (0, 2), (0, 2)]
    got = derivatives(torch.zeros(2, 0, 3, device=got.counts.device), (1, 2), backend=backend)
    assert got.magnitudes.shape == (2, 2, 0) and not got.mean_direction.any() and not got.counts.any()


@needs_core
def test_derivatives_does_not_depend_on_threads():
    from vsim_fast.ops.derivatives import native_impl

    x = torch.randn(9, 200, 400)
    counts = (torch.full((9, 1), 200) - torch.tensor(WINDOWS)).clamp_min(0)
    one, many = (native_impl.derivatives(x, WINDOWS, counts, threads=threads) for threads in (1, 5))
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(embeddings=torch.zeros(4)), ValueError, r"\[B, T, D\] or \[T, D\], got shape \(4,\)"),
        (dict(embeddings=torch.zeros(2, 4, 0)), ValueError, "D >= 1"),
        (dict(embeddings=torch.zeros(2, 4, 3).double()), TypeError, "must be float32, got torch.float64"),
        (dict(windows=()), ValueError, "windows must be"),
        (dict(windows=(1, 0)), ValueError, r"windows must be .* got \(1, 0\)"),
        (dict(windows=(1.5,)), ValueError, "windows must be"),
        (dict(lengths=[4]), ValueError, r"lengths must be \[2\]"),
        (dict(lengths=[4, 5]), ValueError, r"lengths must be in 0\.\.4, got 4\.\.5"),
        (dict(lengths=[-1, 4]), ValueError, r"lengths must be in 0\.\.4, got -1\.\.4"),
        (dict(lengths=[1.0, 2.0]), TypeError, "lengths must be integers"),
        (dict(backend="triton"), ValueError, "backend must be one of"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_derivatives_rejects(change, error, message):
    with pytest.raises(error, match=message):
        derivatives(**(dict(embeddings=torch.zeros(2, 4, 3)) | change))


def test_named_backend_never_falls_back(monkeypatch):
    from vsim_fast.ops import _dispatch

    x = torch.zeros(2, 4, 3)
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run: it serves cuda tensors"):
        derivatives(x, backend="cuda")
    monkeypatch.setattr(_dispatch, "why_not", lambda backend, device: "no core" if backend == "cpp" else None)
    with pytest.raises(RuntimeError, match="backend 'cpp' cannot run: no core"):
        derivatives(x, backend="cpp")
    assert derivatives(x, (1,)).counts.tolist() == [[3], [3]]  # unset: the reference serves


@needs_core
def test_core_rejects_what_would_read_outside():
    import numpy as np

    def call(x, windows=(1,), counts=((3,),), simd="", dtype=np.float32):
        (b, t, d), s = x.shape, len(windows)
        outputs = [np.empty(shape, dtype) for shape in ((b, s, t), (b, s, t), (b, s, d), (b, s))]
        _C.derivatives(x, np.array(windows), np.array(counts), *outputs, simd=simd)

    x = np.zeros((1, 4, 3), np.float32)
    call(x)
    with pytest.raises(ValueError, match=r"counts must be in 0\.\.3, got 4"):
        call(x, counts=((4,),))
    with pytest.raises(ValueError, match="windows must be >= 1, got 0"):
        call(x, windows=(0,))
    with pytest.raises(ValueError, match=r"counts must have shape \(1, 1\), got \(1, 2\)"):
        call(x, counts=((3, 3),))
    with pytest.raises(TypeError):
        call(x.astype(np.float64))
    with pytest.raises(TypeError):
        call(x.transpose(0, 2, 1))
    with pytest.raises(TypeError):
        call(x, dtype=np.float64)
    with pytest.raises(ValueError, match="simd must be one of portable, avx2, avx512, got 'mmx'"):
        call(x, simd="mmx")
    if len(_C.simd_levels()) < 3:
        with pytest.raises(RuntimeError, match="simd 'avx512' cannot run on this CPU"):
            call(x, simd="avx512")


@pytest.mark.needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_cuda_source_compiles_without_spills(arch, tmp_path):
    nvcc = [shutil.which("nvcc"), "-std=c++17", "-O3", f"-arch={arch}", "-Xptxas", "-v", "-cubin"]
    out = tmp_path / "derivatives.cubin"
    source = str(CSRC / "derivatives.cu")
    log = subprocess.run([*nvcc, "-o", str(out), source], capture_output=True, text=True, env=os.environ)
    assert log.returncode == 0, log.stderr
    kernels = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log.stderr)
    assert len(kernels) == 3 and all(spill == ("0", "0") for spill in kernels), log.stderr
    assert out.stat().st_size > 0
