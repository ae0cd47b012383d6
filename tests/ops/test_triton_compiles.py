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


def test_tuning_candidates_reach_the_kernels():
    """Each is a launchable setting of a table's entry, and the compile case that the tuner counts is made of it."""
    from tune import KERNELS

    for name, kernel in KERNELS.items():
        table = dict(kernel.module.TILES)
        settings = []
        for tile in kernel.tiles():
            assert all(size > 0 and size & (size - 1) == 0 for size in tile[:-1]), (name, tile)  # all but num_stages
            assert kernel.work(tile).memory > 0
            kernel.use(tile)
            case = kernel.compile_case()
            settings.append((case.num_warps, case.num_stages, *map(str, case.constexprs.values())))
            kernel.module.TILES.update(table)
        assert len(set(settings)) == len(settings), name
