"""What the CPU offers this process. Imports nothing heavy."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Instruction sets with bfloat16 dot products: AVX512-BF16, AMX-BF16, Arm BF16."""


def usable_cores() -> int:
    """Cores this process may run on; the affinity mask is Linux's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that can be had without swapping; half of all where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


@cache
def instruction_sets() -> frozenset[str]:
    """As Linux names them; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    listed = (line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(listed, ()))


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; False where it is not known."""
    return bool(BFLOAT16 & instruction_sets())
