"""Compiles every kernel of every `triton_impl` module for sm_80 and sm_90 and prints one JSON object.

A process of its own: once `TRITON_INTERPRET=1` has turned the kernels into Python, they cannot be compiled.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context

from vsim_fast.ops._dispatch import IMPLS
from vsim_fast.ops._triton_compile import CompileCase, compile_case
from vsim_fast.processor import usable_cores


def cases() -> list[CompileCase]:
    modules = sorted({impls["triton"] for impls in IMPLS.values() if "triton" in impls})
    return [case for module in modules for case in import_module(f"vsim_fast.ops.{module}").compile_cases()]


def compiled(number: int, arch: int) -> dict[str, int]:
    return compile_case(cases()[number], arch)  # kernels cannot be sent to a process, their numbers can


def main() -> None:
    with ProcessPoolExecutor(usable_cores(), get_context("spawn")) as pool:
        jobs = {
            f"{case.name}-sm_{arch}": pool.submit(compiled, number, arch)
            for number, case in enumerate(cases())
            for arch in case.archs
        }
        print(json.dumps({name: job.result() for name, job in jobs.items()}))


if __name__ == "__main__":
    main()
