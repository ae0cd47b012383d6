"""The build: one library for every CPU, no core without a compiler, and an error when CUDA was asked for in vain."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HAS_BACKEND = all(importlib.util.find_spec(name) for name in ("scikit_build_core", "pybind11"))
COMPILER = shutil.which("c++")
needs_backend = pytest.mark.skipif(
    not (HAS_BACKEND and shutil.which("cmake")), reason="scikit-build-core, pybind11 and cmake are not installed"
)


@pytest.fixture
def source(tmp_path):
    """A copy of the files that make a wheel."""
    for name in ("CMakeLists.txt", "pyproject.toml", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "README.md").write_text("# vsim_fast\n")
    for name in ("csrc", "vsim_fast"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def build_wheel(source: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", "dist", str(source)]
    return subprocess.run(
        [*command, "--disable-pip-version-check"], cwd=source, env=os.environ | env, capture_output=True, text=True
    )


@needs_backend
def test_without_a_compiler_the_wheel_holds_no_core(source):
    run = build_wheel(source, CC="/nonexistent/cc", CXX="/nonexistent/c++", VSIM_CUDA="AUTO")
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = (source / "dist").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "vsim_fast/ops/derivatives/reference.py" in names
    assert not [name for name in names if "_C" in name or name.startswith("csrc")]


@needs_backend
def test_cuda_that_was_asked_for_is_never_left_out(source, tmp_path):
    run = build_wheel(source, CUDACXX="/nonexistent/nvcc", VSIM_CUDA="ON")
    assert run.returncode != 0
    assert "VSIM_CUDA=ON but no CUDA compiler was found" in run.stdout + run.stderr
    assert not list(source.glob("dist/*"))


@pytest.mark.skipif(not (COMPILER and shutil.which("nm")), reason="no C++ compiler")
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512bf16", "avx512vnni"])
def test_instruction_sets_share_no_code(isa, tmp_path):
    """A symbol the linker may merge (weak) could carry one instruction set's code into another's path."""
    if isa != "portable" and os.uname().machine != "x86_64":
        pytest.skip("x86-64 only")
    cmake = (ROOT / "CMakeLists.txt").read_text()
    flags = re.search(rf'csrc/simd_{isa}.cpp PROPERTIES COMPILE_OPTIONS\s+"([^"]*)"', cmake)[1]
    flags = flags.replace("${avx512}", re.search(r"set\(avx512 ([^)]*)\)", cmake)[1].replace(" ", ";"))
    options = [flag for flag in flags.split(";") if flag.startswith("-m")]
    out = tmp_path / "kernel.o"
    source = ROOT / "csrc" / f"simd_{isa}.cpp"
    subprocess.run([COMPILER, "-std=c++17", "-O1", *options, "-c", str(source), "-o", str(out)], check=True)
    listed = subprocess.run(["nm", "-C", str(out)], check=True, capture_output=True, text=True).stdout
    exported = [line.split(maxsplit=2)[1:] for line in listed.splitlines() if line[17] in "TDBRVWuvwi"]
    assert exported and all(kind == "T" and name.startswith(f"vsim::{isa}::") for kind, name in exported), exported


def test_core_needs_no_torch():
    core = pytest.importorskip("vsim_fast._C", reason="the compiled core is not installed")
    info = core.build_info()
    assert core.has_cuda == (info["cuda"] is not None) == (info["architectures"] is not None)
    assert core.simd() == core.simd_levels()[-1] and core.simd_levels()[0] == "portable"
    code = "import sys; from vsim_fast import _C; print(_C.simd(), 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [core.simd(), "False"]
