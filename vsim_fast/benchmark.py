"""Benchmark rows: their one schema, the append-only file they live in, and the table that shows them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Where and with what a row was measured."""

    name: str
    """Slug of the GPU's or the CPU's name; also the name of the row file."""
    device: str
    """"cuda" or "cpu"."""
    gpu: str | None
    driver: str | None
    cpu: str
    cores: int
    python: str
    torch: str
    triton: str | None
    cuda: str | None
    commit: str
    dirty: bool


@dataclass(frozen=True)
class Row:
    """One measured thing."""

    op: str
    provider: str
    """"vsim_fast:triton", "torch eager", "straightforward", …"""
    dtype: str
    shape: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    rounds: int
    run: str
    """UTC time at which the run began: only rows of one run are compared."""
    machine: Machine
    rate: float | None = None
    unit: str | None = None
    """Of `rate`: "GB/s", "TFLOP/s", "frames/s", "pairs/s" or, of dynamic programming, "Gcells/s"."""
    of_ceiling: float | None = None
    """`rate` over what the same run measured as this machine's ceiling: a copy, a matrix product, the slower roof."""
    peak_mib: float | None = None
    """Extra device memory of one call; for whole programs, peak resident memory of the process."""
    max_error: float | None = None
    """Largest absolute difference from the fp64 oracle; for whole programs, from the baseline's result."""
    baseline: str | None = None
    speedup: float | None = None
    """p50 of `baseline`, in this run, over p50 of this row."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds per stage of a whole program."""
    quality: dict[str, float] = field(default_factory=dict)
    """How good a result is, by the name of the measure."""
    note: str = ""


def append_row(path: Path, row: Row) -> None:
    """Add one line to the record. Rows are never rewritten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(row), allow_nan=False) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Rows of one file, or of every .jsonl file in a folder, in the order they were written."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    records = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.strip()]
    return [Row(**{**record, "machine": Machine(**record["machine"])}) for record in records]


def latest(rows: Iterable[Row]) -> list[Row]:
    """The newest row of each machine, op, shape, dtype and provider, grouped as first seen."""
    newest: dict[tuple[str, ...], Row] = {}
    for row in rows:
        newest[row.machine.name, row.op, row.shape, row.dtype, row.provider] = row
    return list(newest.values())


def table(rows: Iterable[Row]) -> str:
    """Markdown table, one line per row; `–` where a figure does not apply."""

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    texts = ("machine", "op", "shape", "dtype", "provider")
    figures = ("p50 ms", "rate", "of ceiling", "speed-up", "max error", "commit")
    lines = [texts + figures, ("---",) * len(texts) + ("---:",) * len(figures)]
    for row in rows:
        rate = "–" if row.rate is None else f"{row.rate:.3g} {row.unit}"
        speedup = "–" if row.speedup is None else f"{row.speedup:.2f}× {row.baseline}"
        commit = row.machine.commit[:9] + ("*" if row.machine.dirty else "")
        lines.append((
            row.machine.name, row.op, row.shape, row.dtype, row.provider, f"{row.p50_ms:.4g}", rate,
            number(row.of_ceiling, ".0%"), speedup, number(row.max_error, ".1e"), commit,
        ))  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
