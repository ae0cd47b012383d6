"""Every Triton kernel compiles for sm_80 and sm_90, without a GPU and without register spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import vsim_fast

SHARED_LIMIT = {"80": 163 << 10, "90": 227 << 10}  # bytes one block may use, CUDA C programming guide


def test_triton_kernels_compile_without_spills():
    path = os.pathsep.join([str(Path(vsim_fast.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("triton_compile.py")],
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)
    assert rows
    for name, row in rows.items():
        print(f"{name:48}", *(f"{key} {value:6}" for key, value in row.items()))
    assert not {name: row for name, row in rows.items() if row["spill_bytes"] or row["stack"]}
    assert not {
        name: row["shared_bytes"] for name, row in rows.items() if row["shared_bytes"] > SHARED_LIMIT[name[-2:]]
    }
