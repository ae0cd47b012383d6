"""`bench/gpu.sh` without a GPU: its plan, what it refuses, and a summary and exit code that tell what was not done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cases
import pytest
from test_ops import COMPILED, providers

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "gpu.sh"


@pytest.fixture
def gpu_sh(tmp_path):
    """Runs the script from another folder, with neither GPU nor compiler on the path."""
    tools = tmp_path / "bin"
    tools.mkdir()
    names = "bash cat dirname find mkdir mktemp realpath rm sed sha256sum sort tail tee timeout xargs"
    for name in names.split():
        found = next(path for folder in ("/usr/bin", "/bin") if (path := Path(folder, name)).exists())
        (tools / name).symlink_to(found)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = ("CLIPS", "WHEELS", "BUDGET", "PYTHONPATH")
        clean = {key: value for key, value in os.environ.items() if key not in settings}
        clean |= {"PATH": str(tools), "PYTHON": sys.executable, "OUT": "out", **environment}
        return subprocess.run(["bash", SCRIPT, *arguments], env=clean, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_the_plan_names_every_step_and_adds_up(gpu_sh, tmp_path):
    run = gpu_sh("--dry-run")
    assert run.returncode == 0, run.stderr
    steps = re.findall(r"^([\w-]+) +(?:required|optional) +(\d+)s", run.stdout, re.M)
    assert [name for name, _ in steps] == [
        "machine", "build", "op-tests", "gpu-tests", "nvdec-tests", "sanitizer", "ops", "engine", "modes", "trace",
        "tune", "programs", "pairs", "batches",
    ]  # fmt: skip
    assert f"limits of these steps: {sum(int(limit) for _, limit in steps)} s" in run.stdout
    assert not (tmp_path / "out").exists()
    assert re.search(r"^ +VSIM_CUDA=ON .*pip install", run.stdout, re.M)  # else pip hides what did not compile
    usage = " ".join(line.lstrip("# ") for line in SCRIPT.read_text().splitlines() if line.startswith("#"))
    listed = re.search(r"only these of ([^;]*);", usage)[1]
    assert re.split(r",\s+", listed) == [name for name, _ in steps[2:]]


def test_what_was_left_out_is_said_and_counts(gpu_sh, tmp_path):
    run = gpu_sh("engine", "batches")
    assert run.returncode == 1
    assert re.search(r"^engine .*left out: no gpu", run.stdout, re.M)
    assert re.search(r"^batches .*left out: no CLIPS gpu", run.stdout, re.M)
    assert "left out" in (tmp_path / "out" / "gpu.log").read_text()


@pytest.mark.skipif((SCRIPT.parents[1] / "build" / "op-tests-passed").exists(), reason="they have passed here before")
def test_ops_are_timed_after_their_tests(gpu_sh):
    steps = re.findall(r"^([\w-]+) +(?:required|optional)", gpu_sh("--dry-run", "ops").stdout, re.M)
    assert steps == ["machine", "build", "op-tests", "ops"]


def test_wrong_arguments_are_refused(gpu_sh, tmp_path):
    (tmp_path / "file").touch()
    for arguments, environment, message in (
        (["nothing"], {}, "no step nothing"),
        (["engine"], {"CLIPS": "bin"}, f"CLIPS has no *.mp4: {tmp_path / 'bin'}"),
        (["engine"], {"OUT": "file/out"}, "Not a directory"),
    ):
        run = gpu_sh(*arguments, **environment)
        assert run.returncode == 2 and message in run.stderr and not run.stdout, run


def test_only_what_compiles_in_time_is_timed_compiled():
    compiled = {case.op for case in cases.CASES["cuda"] if COMPILED in providers(case)}
    assert "position_similarity" in compiled and "dtw_pairwise" not in compiled
