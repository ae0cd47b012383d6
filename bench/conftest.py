"""Machine description, synchronised and cache-flushed rounds, ceilings, and the row file. Run with `pytest bench`.

On CUDA a round is timed with device events while the queue is kept busy, so that launch latency on the host stays out
of the figure; on CPU with the wall clock.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import find_clip

from vsim_fast.benchmark import Machine, Row, append_row, table

ROOT = Path(__file__).resolve().parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vsim_fast benchmark")
    group.addoption("--rows", type=Path, metavar="PATH", help="row file, or folder for <machine>.jsonl")
    group.addoption("--tested", action="store_true", help="the ops' own tests have just passed: do not run them again")
    group.addoption("--pairs", type=int, metavar="N", help="pairs of images that `vsim pair` is timed on")
    group.addoption("--quick", action="store_true", help="few rounds, small end-to-end runs, no torch.compile")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(ROOT / "bench"):
            item.add_marker(pytest.mark.filterwarnings("default"))  # a compiler's advice is no reason not to time
            if DEVICE == "cuda":
                item.add_marker(pytest.mark.benchmark(timer=DeviceTime))


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_machine() -> Machine:
    """`VSIM_COMMIT` (with `-dirty` at its end where that holds) names the commit where the tree has no git folder."""
    gpu = torch.cuda.get_device_name() if DEVICE == "cuda" else None
    driver = gpu and _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    cpu, cores = found[1].strip() if found else platform.processor() or platform.machine(), os.cpu_count() or 1
    commit = os.environ.get("VSIM_COMMIT") or _output("git", "rev-parse", "HEAD") or "unknown"
    changed = _output("git", "status", "--porcelain", "--", ".", ":!bench/results")
    return Machine(
        name=re.sub(r"[^a-z0-9]+", "-", (gpu or f"{cpu} {cores} cores").lower()).strip("-"),
        device=DEVICE, gpu=gpu, driver=driver, cpu=cpu, cores=cores, python=platform.python_version(),
        torch=torch.__version__, triton=_version("triton"), cuda=torch.version.cuda if gpu else None,
        commit=commit.removesuffix("-dirty"), dirty=bool(changed) or commit.endswith("-dirty"),
    )  # fmt: skip


class DeviceTime:
    """A point on the current CUDA stream; the difference of two is seconds of device time."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, start: DeviceTime) -> float:
        self.event.synchronize()
        return start.event.elapsed_time(self.event) / 1e3


clock = DeviceTime if DEVICE == "cuda" else time.perf_counter


class Stopwatch:
    """Times calls of one benchmark: rotated inputs, cold cache, busy queue."""

    def __init__(self, quick: bool):
        self.quick = quick
        self.flush = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE) if DEVICE == "cuda" else None

    def __call__(self, benchmark: Any, call: Callable, inputs: list[tuple]) -> tuple[list[float], float | None]:
        """(seconds of each round, extra device memory of one call in MiB) of `call(*inputs[i])`, in turn."""
        call(*inputs[0])  # compiles, loads, allocates
        peak, first = self._probe(call, inputs[-1])
        most = 10 if self.quick else 50
        slow, turns = first > 1.0, cycle(inputs)
        rounds = (1 if self.quick else 3) if slow else int(min(most, max(5, 2.0 / max(first, 1e-6))))
        warmup = 0 if slow else 1  # what takes seconds is warm after two calls
        benchmark.pedantic(call, setup=lambda: (self._prepare(next(turns)), {}), rounds=rounds, warmup_rounds=warmup)
        if benchmark.stats is None:
            pytest.skip("timing is disabled (--benchmark-disable)")
        return list(benchmark.stats.stats.data), peak

    def _probe(self, call: Callable, args: tuple) -> tuple[float | None, float]:
        if DEVICE == "cpu":
            start = time.perf_counter()
            call(*args)
            return None, time.perf_counter() - start
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start = clock()
        result = call(*args)
        seconds = clock() - start
        del result
        return (torch.cuda.max_memory_allocated() - before) / 2**20, seconds

    def _prepare(self, args: tuple) -> tuple:
        if self.flush is not None:
            torch.cuda.synchronize()
            self.flush.fill_(1)
            torch.cuda._sleep(1_000_000)  # about half a millisecond in which the host can launch ahead
        return args


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches, measured in this run on random data."""

    copy_gb_s: float
    """Large copy, bytes read plus bytes written."""
    matmul_tflop_s: float
    """Square matrix product: bf16 on CUDA, fp32 on CPU."""

    def compare(self, nbytes: int, flops: int, seconds: float) -> dict[str, Any]:
        """Figures of a row, by whatever bounds the work: moving its bytes or doing its arithmetic."""
        moving, computing = nbytes / (self.copy_gb_s * 1e9), flops / (self.matmul_tflop_s * 1e12)
        if moving >= computing:
            rate, unit = nbytes / seconds / 1e9, "GB/s"
        else:
            unit, scale = ("TFLOP/s", 1e12) if self.matmul_tflop_s > 10 else ("GFLOP/s", 1e9)
            rate = flops / seconds / scale
        floor = max(moving, computing)
        return dict(rate=rate, unit=unit, of_ceiling=floor / seconds, floor_ms=1e3 * floor)


def measure_ceilings(recorder: Recorder) -> Ceilings:
    n, mib, dtype = (8192, 2048, torch.bfloat16) if DEVICE == "cuda" else (2048, 256, torch.float32)
    a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
    source = torch.randint(256, (mib << 20,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)

    def seconds(call: Callable) -> list[float]:
        call()
        times = []
        for _ in range(7):
            start = clock()
            call()
            times.append(clock() - start)
        return times

    copy, product = seconds(lambda: target.copy_(source)), seconds(lambda: a @ b)
    ceilings = Ceilings(2 * source.numel() / float(np.median(copy)) / 1e9, 2 * n**3 / float(np.median(product)) / 1e12)
    common = dict(op="ceiling", baseline="", of_ceiling=1.0)
    recorder.add(
        copy, provider="copy", dtype="uint8", shape=f"{mib} MiB", rate=ceilings.copy_gb_s, unit="GB/s", **common
    )
    recorder.add(
        product, provider="matrix product", dtype=str(dtype).removeprefix("torch."), shape=f"{n}³",
        rate=ceilings.matmul_tflop_s, unit="TFLOP/s", **common,
    )  # fmt: skip
    return ceilings


class Recorder:
    """Appends rows as they are measured, so that a run cut short keeps what it has."""

    def __init__(self, path: Path | None):
        self.machine = describe_machine()
        path = path or ROOT / "bench" / "results"
        self.path = path if path.suffix == ".jsonl" else path / f"{self.machine.name}.jsonl"
        self.run = datetime.now(UTC).isoformat(timespec="seconds")
        self.rows: list[Row] = []

    def add(
        self, seconds: list[float], *, op: str, provider: str, dtype: str, shape: str, baseline: str, **figures: Any
    ) -> Row:
        """Write one row; `baseline` is the provider, measured before in this run, to compare with."""
        p20, p50, p80 = (1e3 * np.percentile(seconds, (20, 50, 80))).tolist()
        same = (row for row in self.rows if (row.op, row.shape, row.provider) == (op, shape, baseline))
        peer = next(same, None)
        row = Row(
            op=op, provider=provider, dtype=dtype, shape=shape, p20_ms=p20, p50_ms=p50, p80_ms=p80,
            rounds=len(seconds), run=self.run, machine=self.machine,
            baseline=peer and peer.provider, speedup=peer and peer.p50_ms / p50, **figures,
        )  # fmt: skip
        self.rows.append(row)
        append_row(self.path, row)
        return row


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    return pytestconfig.getoption("--quick")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return find_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def device() -> str:
    return DEVICE


@pytest.fixture(scope="session")
def stopwatch(quick: bool) -> Stopwatch:
    return Stopwatch(quick)


@pytest.fixture(scope="session")
def ceilings(recorder: Recorder) -> Ceilings:
    return measure_ceilings(recorder)


RECORDER = pytest.StashKey[Recorder]()


@pytest.fixture(scope="session")
def recorder(pytestconfig: pytest.Config) -> Iterator[Recorder]:
    pytestconfig.stash[RECORDER] = Recorder(pytestconfig.getoption("--rows"))
    yield pytestconfig.stash[RECORDER]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    recorder = config.stash.get(RECORDER, None)
    if recorder and recorder.rows:
        terminalreporter.section(f"{len(recorder.rows)} rows appended to {recorder.path}")
        terminalreporter.write_line(table(recorder.rows))
