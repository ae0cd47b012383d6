"""Compiles every kernel of every `triton_impl` module for sm_80 and sm_90 and prints one JSON object.

A process of its own: once `TRITON_INTERPRET=1` has turned the kernels into Python, they cannot be compiled.
"""

from __future__ import annotations

import json
from importlib import import_module

from vsim_fast.ops._dispatch import IMPLS
from vsim_fast.ops._triton_compile import compile_case


def main() -> None:
    modules = sorted({impls["triton"] for impls in IMPLS.values() if "triton" in impls})
    print(json.dumps({
        f"{case.name}-sm_{arch}": compile_case(case, arch)
        for module in modules
        for case in import_module(f"vsim_fast.ops.{module}").compile_cases()
        for arch in case.archs
    }))  # fmt: skip


if __name__ == "__main__":
    main()
