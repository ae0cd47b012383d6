"""Each op: the straightforward chain in eager and compiled torch, then every backend of ours that runs here.

An op is timed only after its own tests have passed; its error is measured on the timed inputs against the fp64 oracle.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from statistics import median

import pytest
import torch
from cases import CASES, Case

from vsim_fast.ops import _dispatch

ROOT = Path(__file__).resolve().parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILED = "torch compiled"
THREADS = ", {} threads"


def folder(op: str) -> str:
    return _dispatch.IMPLS[op]["reference"].partition(".")[0]


@cache
def red_tests(op: str) -> str | None:
    """Output of the op's own tests if they fail (or there are none), else None."""
    files = sorted((ROOT / "tests" / "ops").glob(f"test_{folder(op)}*.py"))
    if not files:
        return f"no tests/ops/test_{folder(op)}*.py"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return run.stdout[-2000:] + run.stderr[-500:] if run.returncode else None


def providers(case: Case) -> list[str]:
    """The baseline comes first, so that later rows of the run can be compared with it."""
    usable = (name for name in _dispatch.IMPLS[case.op] if _dispatch.why_not(name, DEVICE) is None)
    ours = [f"vsim_fast:{name}" for name in usable if name not in case.without]
    ours += [name + THREADS.format(count) for name in ours for count in case.threads if count > 1]
    if case.eager is None:
        return ours
    compiled = [COMPILED] if case.baseline == "torch eager" and COMPILED not in case.without else []
    return [case.baseline, *case.peers, *compiled, *ours]


def provide(case: Case, provider: str):
    """The callable a provider stands for."""
    if provider in case.peers or provider == case.baseline:
        return case.peers.get(provider, case.eager)
    if provider == COMPILED:
        return torch.compile(case.eager, dynamic=False)
    public = getattr(import_module(f"vsim_fast.ops.{folder(case.op)}"), case.op)
    return partial(public, backend=provider.removeprefix("vsim_fast:").partition(",")[0], **case.options)


def leaves(result: object) -> list[torch.Tensor]:
    """Floating-point tensors of a tensor or tuple, in order; indices are compared through their scores."""
    parts = [result] if isinstance(result, torch.Tensor) else result
    return [part for part in parts if isinstance(part, torch.Tensor) and part.is_floating_point()]


def max_error(case: Case, call, inputs: tuple, given: tuple) -> float:
    try:
        result = call(*given)
    except ImportError as error:
        pytest.skip(f"{error}; the extra bench brings it")
    truth, got = leaves(case.oracle(*inputs)), leaves(case.sample(result))
    assert [t.shape for t in truth] == [g.shape for g in got]
    return max((g.double() - t).abs().max().item() for g, t in zip(got, truth, strict=True))


@pytest.mark.parametrize(
    ("case", "provider"),
    [pytest.param(case, p, id=f"{case.op}-{case.shape_id}-{p}") for case in CASES[DEVICE] for p in providers(case)],
)
@torch.inference_mode()
def test_op(case: Case, provider: str, benchmark, stopwatch, ceilings, recorder, quick, pytestconfig):
    if provider == COMPILED and quick:
        pytest.skip("--quick: torch.compile takes up to a minute per case")
    if not pytestconfig.getoption("--tested") and (output := red_tests(case.op)):
        pytest.fail(f"{case.op} is not timed while its own tests are red:\n{output}")
    benchmark.group = f"{case.op} {case.shape_id}"
    torch.manual_seed(0)
    inputs = [case.draw(DEVICE) for _ in range(case.draws or (3 if DEVICE == "cuda" else 2))]
    given = [case.ready(*x) for x in inputs] if provider.startswith("vsim_fast:") else inputs
    call = provide(case, provider)
    before = torch.get_num_threads()
    wanted = (count for count in case.threads if provider.endswith(THREADS.format(count)))
    torch.set_num_threads(next(wanted, 1) if case.threads else before)
    try:
        error = max_error(case, call, inputs[0], given[0])
        seconds, peak_mib = stopwatch(benchmark, call, given)
    finally:
        torch.set_num_threads(before)
    if own := case.cells or case.operations:
        figures = dict(rate=own / median(seconds) / 1e9, unit="Gcells/s" if case.cells else "GOP/s")
    else:
        figures = ceilings.compare(case.bytes, case.flops, median(seconds))
    recorder.add(
        seconds, op=case.op, provider=provider, dtype=case.dtype_name, shape=case.shape_id, baseline=case.baseline,
        max_error=error, peak_mib=peak_mib, note=case.note, **figures,
    )  # fmt: skip
