"""Benchmark rows: their one schema, the append-only file they live in, the bars they are held to, and their tables."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group


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
    floor_ms: float | None = None
    """The least time that ceiling allows: the larger of bytes over the copy's rate and FLOPs over the product's."""
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
    """Rows of one file, or of every .jsonl file in a folder, in the order they were written.

    Raises:
        ValueError: a line is no row.
    """
    rows = []
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            try:
                if line.strip():
                    record = json.loads(line)
                    rows.append(Row(**{**record, "machine": Machine(**record["machine"])}))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{file}, line {number}, is no benchmark row: {error}") from None
    return rows


def latest(rows: Iterable[Row]) -> list[Row]:
    """The newest row of each machine, op, shape, dtype and provider, grouped as first seen."""
    newest: dict[tuple[str, ...], Row] = {}
    for row in rows:
        newest[row.machine.name, row.op, row.shape, row.dtype, row.provider] = row
    return list(newest.values())


def named(rows: Iterable[Row], op: str) -> list[Row]:
    """Rows whose op contains `op`."""
    rows = list(rows)
    found = [row for row in rows if op in row.op]
    if not found:
        known = ", ".join(sorted({row.op for row in rows})) or "none"
        raise ValueError(f"no row of an op named like {op!r}; ops with rows: {known}")
    return found


def peer_row(row: Row, provider: str, rows: Iterable[Row]) -> Row | None:
    """The row of `provider` beside `row`: same machine, run, op and shape."""

    def place(one: Row) -> tuple[str, ...]:
        return one.machine.name, one.run, one.op, one.shape

    return next((one for one in rows if one.provider == provider and place(one) == place(row)), None)


def encoding_share(row: Row) -> float | None:
    """Part of a whole program's wall time that it encodes; None of anything else."""
    return 1e3 * row.stages["encode"] / row.p50_ms if {"encode", "total"} <= row.stages.keys() else None


# bars


@dataclass(frozen=True)
class Bar:
    """What the rows of one op, shape and provider must reach. What is left out is not asked for."""

    op: str
    shape: str
    """A pattern as of file names."""
    provider: str
    speedup: dict[str, float] = field(default_factory=dict)
    """Least speed-up over each of these peers, in the same run."""
    gpu: str = ""
    """A word of the GPU's name: the bar holds there only."""
    p50_ms: float | None = None
    of_ceiling: float | None = None
    peak_mib: float | None = None
    encoding: float | None = None
    """Least share of a program's wall time that is encoding."""

    def applies(self, row: Row) -> bool:
        same = (row.op, row.provider) == (self.op, self.provider) and fnmatchcase(row.shape, self.shape)
        return same and self.gpu in (row.machine.gpu or "")

    def shortfalls(self, row: Row, rows: Iterable[Row]) -> list[str]:
        """Each condition that `row` does not meet, or that cannot be judged; peers are looked for in `rows`."""
        rows, lacks = list(rows), []
        for provider, least in self.speedup.items():
            peer = peer_row(row, provider, rows)
            if peer is None:
                lacks.append(f"no row of {provider} in this run, bar {least:g}×")
            elif peer.p50_ms / row.p50_ms < least:
                lacks.append(f"{peer.p50_ms / row.p50_ms:.2f}× {provider}, bar {least:g}×")
        for what, value, bar, sign, form in (
            ("p50 ms", row.p50_ms, self.p50_ms, 1, ".4g"), ("of ceiling", row.of_ceiling, self.of_ceiling, -1, ".0%"),
            ("peak MiB", row.peak_mib, self.peak_mib, 1, ".4g"),
            ("encoding", encoding_share(row), self.encoding, -1, ".0%"),
        ):  # fmt: skip
            if bar is not None and (value is None or sign * value > sign * bar):
                lacks.append(f"{what} {_number(value, form)}, bar {bar:{form}}")
        return lacks


BARS = (
    Bar(
        "position_similarity", "T100-P1024-D1152", "vsim_fast:triton", {"torch eager": 2.5, "torch compiled": 1.5},
        gpu="H200", p50_ms=0.11,
    ),
    Bar(
        "intra_frame_similarity", "T100-P1024-D1152", "vsim_fast:triton", {"torch eager": 1.4},
        gpu="H200", p50_ms=0.32,
    ),
    # the matrices would take 229 MiB; the results, twice 64 × 1369 values and indices, 1.7
    Bar("best_match", "B64-P1369-D768", "vsim_fast:triton", {"torch eager": 1.5}, gpu="H200", peak_mib=32),
    Bar("nv12_to_pixels", "B64-H1080-W1920-S224", "vsim_fast:triton", {"torch eager": 8}, gpu="H200", of_ceiling=0.5),
    Bar("dtw_pairwise", "N2000-T300-D2", "vsim_fast:cuda", gpu="H200", p50_ms=120),  # 1.8e11 cells at 1.5e12 a second
    Bar("file to features", "*", "engine", gpu="H200", of_ceiling=0.85),
    Bar("analyze", "*", "vsim_fast", encoding=0.85),
    Bar("dtw_pairwise", "N200-T300-D2", "vsim_fast:cpp", {"aeon": 40, "dtaidistance": 40}),
    Bar("dtw_pairwise", "N200-T300-D2-R30", "vsim_fast:cpp", {"aeon": 35, "dtaidistance": 35}),
    Bar("dtw", "T1000-D2", "vsim_fast:cpp", {"aeon": 20, "dtaidistance": 20}),
    Bar("dtw_pairwise", "N16-T300-D768", "vsim_fast:cpp", {"aeon": 20, "dtaidistance": 20}),
    Bar("derivatives", "B64-T300-D384-S4", "vsim_fast:cpp", {"numpy": 12}),
)  # fmt: skip


def shortfalls(row: Row, rows: Iterable[Row]) -> list[str] | None:
    """What `row` lacks of its bars; [] when it meets them, None when it has none."""
    rows, bars = list(rows), [bar for bar in BARS if bar.applies(row)]
    return [lack for bar in bars for lack in bar.shortfalls(row, rows)] if bars else None


# tables


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def digits(value: float, count: int = 3) -> str:
    """`count` significant digits, never an exponent."""
    return f"{float(f'{value:.{count}g}'):.15g}"


def grouped(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows of one machine, with the same versions, op and shape together, in the order first seen."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((describe(row.machine), row.op, row.shape), []).append(row)
    return list(groups.values())


FIGURES = {"p50 ms": 8, "floor ms": 8, "rate": 16, "ceiling": 7, "speed-up": 8, "max error": 9}
"""Columns that both tables have, and their widths in a terminal."""


def _figures(row: Row) -> tuple[str, ...]:
    return (
        digits(row.p50_ms, 4), "–" if row.floor_ms is None else digits(row.floor_ms),
        "–" if row.rate is None else f"{digits(row.rate)} {row.unit}", _number(row.of_ceiling, ".0%"),
        "–" if row.speedup is None else f"{row.speedup:.2f}×", _number(row.max_error, ".1e"),
    )  # fmt: skip


def _commit(row: Row) -> str:
    return row.machine.commit[:7] + "*" * row.machine.dirty


def table(rows: Iterable[Row], recorded: Iterable[Row] | None = None) -> str:
    """Markdown, one line per row; `–` where a figure does not apply.

    Peers that bars name are looked for in `recorded`, by default in `rows`.
    """
    rows = list(rows)
    recorded = rows if recorded is None else list(recorded)
    texts = ("machine", "op", "shape", "dtype", "provider")
    ends = ("over", "bar", "commit")
    lines = [(*texts, *FIGURES, *ends), ("---",) * len(texts) + ("---:",) * len(FIGURES) + ("---",) * len(ends)]
    for row in (row for group in grouped(rows) for row in group):
        lacks = shortfalls(row, recorded)
        bar = "–" if lacks is None else "; ".join(lacks) or "ok"
        lines.append((
            row.machine.name, row.op, row.shape, row.dtype, row.provider, *_figures(row), row.baseline or "–", bar,
            _commit(row),
        ))  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def terminal_table(rows: Iterable[Row], recorded: Iterable[Row]) -> Group:
    """The same for a terminal of 100 columns: a heading and a block per machine, op and shape."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows, recorded, parts, machine = list(rows), list(recorded), [], None
    for group in grouped(rows):
        first = group[0]
        dtypes, peers = ({getattr(row, name) for row in group} for name in ("dtype", "baseline"))
        block = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=describe(first.machine) != machine)
        block.add_column("", width=28, overflow="fold")
        for name, width in FIGURES.items():
            block.add_column(name, width=width, justify="right")
        block.add_column("bar", width=5)
        notes = []
        for row in group:
            lacks = shortfalls(row, recorded)
            notes += [f"  {row.provider}, {row.dtype}: {lack}" for lack in lacks or ()]
            bar = "–" if lacks is None else "[red]below[/]" if lacks else "[green]ok[/]"
            block.add_row(Text(row.provider + f", {row.dtype}" * (len(dtypes) > 1)), *_figures(row), bar)
        if describe(first.machine) != machine:
            machine = describe(first.machine)
            parts.append(Text(machine, "reverse"))
        title = Text(f"\n{first.op}", "bold").append(f"  {first.shape}", "not bold")
        against = ", ".join(sorted(peers - {None}))
        about = [", ".join(sorted(dtypes)) * (len(dtypes) == 1), f"over {against}" * bool(against)]
        about.append(" ".join(dict.fromkeys(map(_commit, group))))
        title.append("  " + ", ".join(filter(None, about)), "dim")
        parts += [title, block, *(Text(note, "red") for note in notes)]
    if any(row.machine.dirty for row in rows):
        parts.append(Text("\n* measured with changes that were not committed", "dim"))
    return Group(*parts)


def describe(machine: Machine) -> str:
    """What a row was measured on and with, but for the commit."""
    cores = f"{machine.cores} cores of {machine.cpu}"
    named = {"driver": machine.driver, "CUDA": machine.cuda, "torch": machine.torch, "triton": machine.triton,
             "Python": machine.python}  # fmt: skip
    return ", ".join([*([machine.gpu] if machine.gpu else []), cores, *(f"{k} {v}" for k, v in named.items() if v)])
