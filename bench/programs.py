"""Whole programs, run as a user runs them, and what they are run on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VSIM = [sys.executable, "-c", "from vsim_fast.cli import run; run()"]


def run_program(command: list[str]) -> tuple[float, float, dict]:
    """(wall seconds, peak resident MiB of its largest process, the JSON object on the last line of stdout)."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    assert process.returncode == 0, f"{command} exited with {process.returncode}"
    return seconds, usage.ru_maxrss / 1024, json.loads(out.splitlines()[-1])


def run_in_turn(programs: dict[str, list[str]], rounds: int) -> dict[str, list[tuple[float, float, dict]]]:
    """What `run_program` gives of every program, each round in the same order."""
    runs: dict[str, list[tuple[float, float, dict]]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, command in programs.items():
            runs[name].append(run_program(command))
    return runs
