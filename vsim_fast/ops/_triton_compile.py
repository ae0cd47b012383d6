"""Ahead-of-time compilation of Triton kernels for a named GPU; needs no GPU, only the ptxas that Triton bundles."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from typing import Any, NamedTuple


class CompileCase(NamedTuple):
    """One specialisation of a kernel, as its launcher would ask for it."""

    name: str
    kernel: Any
    """The `@triton.jit` function."""
    signature: dict[str, str]
    """Argument -> type, every argument that is not a constexpr, in order: "*fp16", "i32", "fp32". A trailing ":16"
    states divisibility by 16, which the just-in-time path finds out by itself for pointers and strides."""
    constexprs: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    archs: tuple[int, ...] = (80, 90)
    """Compute capabilities the launcher uses it on."""


def compile_case(case: CompileCase, arch: int) -> dict[str, int]:
    """Compile `case` for compute capability `arch` (80, 90) and count what one program takes.

    Returns:
        registers, spill_bytes (stored and loaded) and stack bytes per thread; shared_bytes per program.
    Raises:
        whatever Triton raises when the kernel does not compile.
    """
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    types = {name: case.signature.get(name, "constexpr").removesuffix(":16") for name in names}
    aligned = [i for i, name in enumerate(names) if case.signature.get(name, "").endswith(":16")]
    source = ASTSource(
        case.kernel, types, constexprs=case.constexprs, attrs={(i,): [["tt.divisibility", 16]] for i in aligned}
    )
    log = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), redirect_stdout(log):
        knobs.compilation.always_compile = True  # a cached binary comes without the assembler's report
        knobs.nvidia.dump_ptxas_log = True
        binary = triton.compile(
            source,
            target=GPUTarget("cuda", arch, 32),
            options={"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True},
        )
    report = log.getvalue()

    def count(pattern: str) -> int:
        found = re.findall(pattern, report)
        if not found:
            raise RuntimeError(f"{case.name}: no {pattern!r} in the assembler's report: {report!r}")
        return sum(map(int, found))

    return {
        "registers": count(r"Used (\d+) registers"),
        "spill_bytes": count(r"(\d+) bytes spill (?:stores|loads)"),
        "shared_bytes": binary.metadata.shared,
        "stack": count(r"(\d+) bytes stack frame"),
    }
