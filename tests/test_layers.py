"""Imports only point down the list of layers, peers do not import each other, and the package imports light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vsim_fast

ROOT = Path(vsim_fast.__file__).parent
LAYERS = [  # lowest first; names in one set are peers
    {"errors", "processor"},
    {"records", "ops"},
    {"video", "encode", "store"},
    {"remote"},
    {"inputs"},
    {
        "similarity", "image_quality", "alignment", "all_pairs", "pairs", "fingerprints", "retrieval", "nerv",
        "evaluation",
    },
    {"copies"},
    {"pipeline", "report", "motion_study", "feature_store", "grouping"},
    {"frame_encoder", "exports"},
    {"copy_reader", "vector_search"},
    {"analysis", "comparison", "frame_pairs", "deduplication", "batch", "benchmark", "doctor", "models"},
    {"cli"},
]  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = ("torch", "triton", "timm", "transformers", "av", "ray", "matplotlib", "numpy", "PIL")


def imported_layers(path: Path) -> set[str]:
    """Top-level parts of vsim_fast that a file imports, absolutely or relatively."""
    parts = set()
    package = ["vsim_fast", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module] if module != "vsim_fast" else [f"vsim_fast.{alias.name}" for alias in node.names]
        else:
            continue
        parts |= {name.split(".")[1] for name in names if name.startswith("vsim_fast.")}
    return parts - {"_C", "__version__"}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in LEVEL, f"{own} has no layer; add it to LAYERS"
    for part in imported_layers(path) - {own}:
        assert LEVEL[part] < LEVEL[own], f"{path.name} ({own}) may not import {part}"


@pytest.mark.parametrize("module", ["vsim_fast", "vsim_fast.cli"])
def test_import_pulls_in_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
