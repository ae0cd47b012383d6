"""The CUDA kernels of dynamic time warping: on an emulated grid anywhere, compiled with nvcc, and on a GPU."""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import vsim_fast
from vsim_fast.ops import _dispatch, dtw, dtw_knn, dtw_pairwise, dtw_path
from vsim_fast.ops.dtw import reference
from vsim_fast.ops.dtw._series import Costs, parse_options, series

TESTS = Path(__file__).resolve().parents[1]
CSRC = TESTS.parent / "csrc"
COMPILER = shutil.which("c++") or shutil.which("g++")
DEFAULTS = dict(
    cost="sqeuclidean", root=None, sakoe_chiba_radius=None, itakura_max_slope=None, open_begin=False, open_end=False,
    subsequence=False, normalize=None,
)  # fmt: skip


class EmulatedCore(ModuleType):
    """dtw.cu compiled by the host compiler, with the interface of the compiled core."""

    DTW_WARPS, DTW_BLOCKS_PER_SM = 4, 5

    def __init__(self, path: Path):
        super().__init__("vsim_fast._C")
        self.entry = ctypes.CDLL(str(path)).dtw_cuda
        number, address, flag = ctypes.c_int64, ctypes.c_void_p, ctypes.c_bool
        self.entry.argtypes = [
            number, flag, ctypes.c_float, flag, number, ctypes.c_double, ctypes.c_double, flag, flag, ctypes.c_int,
            ctypes.c_int, address, address, address, number, number, address, number, number, number, number,
            address, address, address, number, number, address,
        ]  # fmt: skip

    @staticmethod
    def DtwOptions(D, euclidean, scale, root, radius, fraction, slope, open_begin, open_end, normalize):
        kind = ("none", "path", "length").index(normalize)
        return D, euclidean, scale, root, radius, fraction, slope, open_begin, open_end, kind

    def dtw_cuda(
        self, options, *, pairs, x, y, tables, x_count, y_count, costs, cost_size, cost_columns, count, chunk, next,
        border, border_cells, longest, blocks, out, stream,
    ):  # fmt: skip
        kind = ("aligned", "rectangle", "triangle").index(pairs)
        self.entry(
            *options, kind, x, y, tables, x_count, y_count, costs, cost_size, cost_columns, count, chunk, next,
            border, border_cells, longest, blocks, out,
        )  # fmt: skip


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    if COMPILER is None or sys.platform != "linux":
        pytest.skip("no host compiler, or no ucontext")
    native, path = TESTS / "native", tmp_path_factory.mktemp("emulation") / "dtw.so"
    flags = ["-x", "c++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{native}", f"-I{CSRC}"]
    subprocess.run([COMPILER, *flags, "-o", str(path), str(native / "dtw_emulation.cpp")], check=True)
    return path


@pytest.fixture
def emulated(library, monkeypatch):
    """`cuda_impl` on CPU tensors."""
    core = EmulatedCore(library)
    monkeypatch.setitem(sys.modules, "vsim_fast._C", core)
    monkeypatch.setattr(vsim_fast, "_C", core, raising=False)
    monkeypatch.delitem(sys.modules, "vsim_fast.ops.dtw.cuda_impl", raising=False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=1))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module("vsim_fast.ops.dtw.cuda_impl")
    torch.set_num_threads(before)
    sys.modules.pop("vsim_fast.ops.dtw.cuda_impl", None)


def options(**changes):
    return parse_options(**(DEFAULTS | changes))


def walks(lengths, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=generator).cumsum(0) / math.sqrt(dim) for n in lengths]


def grid(lengths, dim, seed=0):
    """Small whole numbers: sums are exact, and many paths cost the same."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-3, 4, (n, dim), generator=generator).float() for n in lengths]


def batch(items):
    return series("x", items, batch=True)


def exact(one):
    return replace(one, values=one.values.double())


def assert_close(got, want, rtol=2e-6):
    got, want = got.double().cpu(), want.double().cpu()
    assert torch.equal(got == math.inf, want == math.inf), (got, want)
    torch.testing.assert_close(got, want, rtol=rtol, atol=0)


# Around lanes, strips of 4 rows, of a tile of costs; short against long.
SHAPES = [([1, 1, 5, 32], [1, 7, 1, 33]), ([31, 33, 65], [64, 31, 40]), ([127, 129, 130], [128, 20, 131])]
OPTIONS = [
    {}, dict(root=False, sakoe_chiba_radius=0), dict(sakoe_chiba_radius=5), dict(sakoe_chiba_radius=0.3),
    dict(cost="euclidean", subsequence=True), dict(open_begin=True, sakoe_chiba_radius=4), dict(open_end=True),
    dict(itakura_max_slope=2.0), dict(itakura_max_slope=1, root=False), dict(normalize="length"),
]  # fmt: skip


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 19])
def test_emulated_kernel_matches_reference(emulated, dim, changes):
    rows, columns = SHAPES[(dim + len(changes)) % 3]
    x, y = batch(walks(rows, dim)), batch(walks(columns, dim, seed=1))
    assert_close(emulated.dtw(x, y, options(**changes)), reference.dtw(exact(x), exact(y), options(**changes)))


@pytest.mark.parametrize("dim", [1, 2, 4, 6])
@pytest.mark.parametrize("changes", [{}, dict(sakoe_chiba_radius=3), dict(subsequence=True)], ids=str)
def test_emulated_kernel_counts_the_cells_of_the_shortest_of_equal_paths(emulated, dim, changes):
    x, y = batch(grid([9, 66, 130], dim)), batch(grid([12, 70, 90], dim, seed=1))
    kind = options(normalize="path", root=False, **changes)
    assert_close(emulated.dtw(x, y, kind), reference.dtw(exact(x), exact(y), kind))


@pytest.mark.parametrize("dim", [2, 7])
def test_emulated_kernel_on_several_strips(emulated, dim):
    x, y = batch(walks([400, 300], dim)), batch(walks([450, 257], dim, seed=1))
    for kind in (options(), options(sakoe_chiba_radius=20), options(open_end=True)):
        assert_close(emulated.dtw(x, y, kind), reference.dtw(exact(x), exact(y), kind))


@pytest.mark.parametrize("dim", [2, 5])
def test_emulated_pairs_are_the_same_bits_wherever_they_are_computed(emulated, dim):
    items = walks([40, 3, 40, 77, 129, 40], dim)
    x, kind = batch(items), options()
    square = emulated.dtw_pairwise(x, None, kind)
    assert torch.equal(square, square.mT) and not square.diagonal().any()
    assert_close(square, reference.dtw_pairwise(exact(x), None, kind))
    off = ~torch.eye(len(items), dtype=torch.bool)
    assert torch.equal(emulated.dtw_pairwise(x, batch(items), kind)[off], square[off])
    for i, j in ((0, 2), (2, 0), (3, 1), (4, 5)):
        assert torch.equal(emulated.dtw(batch([items[i]]), batch([items[j]]), kind), square[i, j, None])
    opened = options(open_end=True)
    assert_close(emulated.dtw_pairwise(x, None, opened), reference.dtw_pairwise(exact(x), None, opened))


@pytest.mark.parametrize("changes", [{}, dict(open_end=True), dict(itakura_max_slope=3)], ids=str)
@pytest.mark.parametrize("normalize", [None, "path"])
def test_emulated_kernel_on_given_costs(emulated, changes, normalize):
    values = torch.randint(0, 9, (3, 131, 70)).float()
    values[:, 3, 2] = math.inf
    rows, columns, kind = torch.tensor([131, 32, 1]), torch.tensor([70, 33, 9]), options(normalize=normalize, **changes)
    want = reference.dtw(Costs(values.double(), rows, columns), None, kind)
    for b in range(3):
        values[b, rows[b] :], values[b, :, columns[b] :] = math.nan, math.nan  # must never be read
    assert_close(emulated.dtw(Costs(values, rows, columns), None, kind), want)


@pytest.mark.parametrize("dim", [1, 2, 4, 5])
def test_emulated_sums_stay_exact_over_thousands_of_equal_costs(emulated, dim):
    x, y = batch([torch.zeros(3000, dim)]), batch([torch.full((3000, dim), 0.0713)])
    want = 3000 * dim * y.values[0, 0].double().square()
    assert_close(emulated.dtw(x, y, options(root=False, sakoe_chiba_radius=8)), want[None])


def test_emulated_neighbors_and_empty_batches(emulated, monkeypatch):
    monkeypatch.setattr(emulated, "BLOCK", 10)  # two queries at a time
    queries, candidates = batch(walks([20, 9, 30, 12, 1], 2)), batch(walks([10, 20, 15, 20], 2, seed=1))
    candidates = replace(candidates, starts=candidates.starts[[0, 1, 2, 1]])  # the second and the last are equal
    got, want = (way.dtw_knn(queries, candidates, 3, options()) for way in (emulated, reference))
    assert_close(got[0], want[0])
    assert torch.equal(got[1], want[1])
    none = batch([])
    assert emulated.dtw(none, none, options()).shape == (0,)
    assert emulated.dtw_pairwise(none, None, options()).shape == (0, 0)
    assert emulated.dtw_pairwise(queries, none, options()).shape == (5, 0)


@pytest.mark.needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_cuda_source_compiles_without_spills(arch, tmp_path):
    nvcc = [shutil.which("nvcc"), "-std=c++17", "-O3", f"-arch={arch}", "-Xptxas", "-v", "-cubin"]
    out = tmp_path / "dtw.cubin"
    log = subprocess.run([*nvcc, "-o", str(out), str(CSRC / "dtw.cu")], capture_output=True, text=True, env=os.environ)
    assert log.returncode == 0, log.stderr
    kernels = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log.stderr)
    assert len(kernels) == 18 and all(spill == ("0", "0") for spill in kernels), log.stderr
    assert out.stat().st_size > 0


@pytest.mark.needs_cuda
@pytest.mark.parametrize("changes", [*OPTIONS, dict(cost="cosine")], ids=str)
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 300])
def test_cuda_matches_cpp_and_reference(dim, changes):
    x = walks([1, 33, 129, 300, 320, 321, 700, 64], dim)
    y = walks([5, 70, 128, 300, 385, 40, 650, 64], dim, seed=1)
    on_device = [[item.cuda() for item in items] for items in (x, y)]
    got = dtw(*on_device, backend="cuda", **changes)
    assert got.is_cuda and got.dtype == torch.float32
    doubles = [[item.double() for item in items] for items in (x, y)]
    assert_close(got, dtw(*doubles, backend="reference", **changes), rtol=1e-5)
    assert_close(got, dtw(x, y, backend="cpp", **changes), rtol=1e-5)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 40])
def test_cuda_on_few_short_series(dim):
    """Every kernel on little work, also for tools that watch each access."""
    x, y = walks([1, 33, 70], dim), walks([5, 31, 140], dim, seed=1)
    on_device = [[item.cuda() for item in items] for items in (x, y)]
    for changes in ({}, dict(sakoe_chiba_radius=4), dict(open_begin=True, open_end=True), dict(normalize="path")):
        got = dtw(*on_device, backend="cuda", **changes)
        assert_close(got, dtw(x, y, backend="cpp", **changes), rtol=1e-5)
    assert_close(dtw_pairwise(on_device[0], backend="cuda"), dtw_pairwise(x, backend="cpp"), rtol=1e-5)
    assert_close(dtw_pairwise(*on_device, backend="cuda"), dtw_pairwise(x, y, backend="cpp"), rtol=1e-5)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dim", [2, 48])
def test_cuda_all_pairs_match_cpp(dim):
    lengths = [1 + 37 * k % 400 for k in range(60)]
    x, y = walks(lengths, dim), walks(lengths[:23], dim, seed=1)
    on_device = [[item.cuda() for item in items] for items in (x, y)]
    square = dtw_pairwise(on_device[0], backend="cuda")
    assert torch.equal(square, square.mT) and torch.equal(square, dtw_pairwise(on_device[0], backend="cuda"))
    assert_close(square, dtw_pairwise(x, backend="cpp"), rtol=1e-5)
    assert_close(dtw_pairwise(*on_device, backend="cuda"), dtw_pairwise(x, y, backend="cpp"), rtol=1e-5)
    near, want = dtw_knn(*on_device, 5, backend="cuda"), dtw_knn(x, y, 5, backend="cpp")
    assert near.indices.is_cuda
    assert_close(near.distances, want.distances, rtol=1e-5)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dim", [1, 2, 4, 5])
def test_cuda_on_thousands_of_frames(dim):
    x = walks([4000], dim)[0]
    for y in (x + 0.1, walks([3000], dim, seed=1)[0]):
        for changes in ({}, dict(sakoe_chiba_radius=0.1), dict(cost="euclidean"), dict(subsequence=True)):
            got = dtw(x.cuda(), y.cuda(), backend="cuda", root=False, **changes)
            assert_close(got, dtw(x, y, backend="cpp", root=False, **changes), rtol=1e-5)


@pytest.mark.needs_cuda
def test_cuda_path_and_given_costs():
    x, y = (item.cuda() for item in (*walks([50], 2), *walks([60], 2, seed=1)))
    got, want = dtw_path(x, y, backend="cuda"), dtw_path(x.cpu(), y.cpu(), backend="cpp")
    assert got.path.is_cuda and got.distance.is_cuda and torch.equal(got.path.cpu(), want.path)
    costs = torch.rand(5, 300, 200)
    got = dtw(costs.cuda(), cost="precomputed", backend="cuda", normalize="path")
    assert_close(got, dtw(costs, cost="precomputed", backend="cpp", normalize="path"), rtol=1e-5)


def test_cuda_backend_refuses_cpu_tensors():
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run: it serves cuda tensors"):
        dtw_pairwise([torch.zeros(3, 2)] * 2, backend="cuda")
    assert next(iter(_dispatch.IMPLS["dtw_pairwise"])) == "cuda"
