"""Rows survive the round trip, tables show the newest beside their bars, and the profiler trace is read right."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace

import device_trace
import pytest
from rich.console import Console

from vsim_fast.benchmark import Machine, Row, append_row, latest, named, read_rows, shortfalls, table, terminal_table
from vsim_fast.cli import main

MACHINE = Machine("gpu-x", "cuda", "GPU X", "1.0", "CPU", 4, "3.12", "2.11", "3.6", "13.0", "0123456789abcdef", True)
ROW = Row("best_match", "torch eager", "float16", "B4-P8-D2", 0.9, 1.0, 1.2, 5, "2026-01-01T00:00:00+00:00", MACHINE)


def test_rows_are_appended_and_the_table_shows_the_newest(tmp_path):
    path = tmp_path / "deep" / "gpu-x.jsonl"
    fast = replace(ROW, provider="ours", p50_ms=0.25, rate=3.0, unit="GB/s", of_ceiling=0.5, max_error=2e-4,
                   floor_ms=0.125, baseline="torch eager", speedup=4.0, stages={"encode": 1.5})  # fmt: skip
    for row in (ROW, replace(fast, p50_ms=9.0), fast):
        append_row(path, row)
    assert len(path.read_text().splitlines()) == 3
    rows = read_rows(path.parent)
    assert rows == read_rows(path)
    assert latest(rows) == [ROW, fast]
    cells = ["gpu-x", "best_match", "B4-P8-D2", "float16", "ours", "0.25", "0.125", "3 GB/s", "50%", "4.00×", "2.0e-04"]
    cells += ["torch eager", "–", "0123456*"]
    assert table([fast]).splitlines()[2] == f"| {' | '.join(cells)} |"


def test_rows_from_before_a_field_was_added_are_read(tmp_path):
    record = asdict(ROW)
    del record["floor_ms"]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(record) + "\n")
    assert read_rows(path) == [ROW]


H200 = replace(MACHINE, name="nvidia-h200", gpu="NVIDIA H200", dirty=False)
POSITION = replace(
    ROW, op="position_similarity", shape="T100-P1024-D1152", provider="vsim_fast:triton", machine=H200, p50_ms=0.1
)


def test_a_row_is_held_to_the_bar_of_its_op_shape_and_machine():
    eager = replace(POSITION, provider="torch eager", p50_ms=0.3)
    compiled = replace(POSITION, provider="torch compiled", p50_ms=0.16)
    assert shortfalls(POSITION, [eager, compiled]) == []
    assert shortfalls(replace(POSITION, machine=MACHINE), [eager, compiled]) is None
    assert shortfalls(replace(POSITION, shape="T8-P8-D8"), [eager, compiled]) is None
    later = replace(compiled, run="2027-01-01T00:00:00+00:00", p50_ms=9.0)
    assert shortfalls(replace(POSITION, p50_ms=0.15), [eager, later]) == [
        "2.00× torch eager, bar 2.5×", "no row of torch compiled in this run, bar 1.5×", "p50 ms 0.15, bar 0.11",
    ]  # fmt: skip
    pixels = replace(POSITION, op="nv12_to_pixels", shape="B64-H1080-W1920-S224", of_ceiling=0.4)
    assert shortfalls(pixels, [replace(pixels, provider="torch eager", p50_ms=0.8)]) == ["of ceiling 40%, bar 50%"]
    program = replace(ROW, op="analyze", provider="vsim_fast", p50_ms=2000.0, stages={"encode": 1.8, "total": 1.9})
    assert shortfalls(program, []) == []
    assert shortfalls(replace(program, p50_ms=3000.0), []) == ["encoding 60%, bar 85%"]


def test_a_terminal_of_100_columns_shows_a_block_per_op_and_shape():
    eager = replace(POSITION, provider="torch eager", p50_ms=0.1)
    ours = replace(POSITION, dtype="bfloat16", baseline="torch eager", speedup=1.0, rate=4321.0, unit="GB/s")
    ours = replace(ours, floor_ms=0.05)
    rows = [eager, ROW, ours]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal_table(rows, rows))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100
    headings = [line.split()[0] for line in lines if "P1024" in line or "B4" in line]
    assert headings == ["position_similarity", "best_match"]
    (line,) = (line for line in lines if line.startswith("vsim_fast:triton, bfloat16"))
    assert line.split()[2:] == ["0.1", "0.05", "4320", "GB/s", "–", "1.00×", "–", "below"]
    assert any("1.00× torch eager, bar 2.5×" in line for line in lines)
    assert lines[-1].startswith("* measured with changes")


def bench_show(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["bench", "--show", *map(str, arguments)])
    return end.value.code or 0, *capsys.readouterr()


def test_show_filters_by_op_and_prints_json(capsys, tmp_path):
    for row in (ROW, POSITION):
        append_row(tmp_path / "rows.jsonl", row)
    assert named([ROW, POSITION], "") == [ROW, POSITION]
    code, out, _ = bench_show(capsys, "--rows", tmp_path, "--op", "position", "--json")
    assert code == 0 and json.loads(out) == {"rows": [asdict(POSITION)]}
    code, out, _ = bench_show(capsys, "--rows", tmp_path, "--op", "match")
    assert code == 0 and out == table([ROW]) + "\n"
    code, _, error = bench_show(capsys, "--rows", tmp_path, "--op", "dtw")
    assert code == 1 and "'dtw'" in error and "best_match, position_similarity" in error
    code, _, error = bench_show(capsys, "--rows", tmp_path / "none")
    assert code == 1 and "--rows must be a file or folder" in error


@pytest.mark.parametrize("line", ['{"op": "x', "[1, 2]", '{"op": "x"}', json.dumps(asdict(ROW) | {"joules": 1})])
def test_show_names_the_line_that_is_no_row(capsys, tmp_path, line):
    path = tmp_path / "rows.jsonl"
    append_row(path, ROW)
    with path.open("a") as file:
        file.write("\n" + line + "\n")
    code, out, error = bench_show(capsys, "--rows", tmp_path)
    assert code == 1 and not out and f"{path}, line 3, is no benchmark row" in error.replace("\n", "")


def test_show_of_a_folder_without_rows_says_so(capsys, tmp_path):
    code, _, error = bench_show(capsys, "--rows", tmp_path)
    assert code == 1 and "one without any" in error


def test_rows_stand_under_the_versions_they_were_measured_with():
    newer = replace(ROW, provider="ours", machine=replace(MACHINE, torch="2.12"))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal_table([ROW, newer], [ROW, newer]))
    first = [line.split()[0] for line in console.export_text().splitlines() if line.strip()]
    assert [word for word in first if word in ("GPU", "torch", "ours")] == ["GPU", "torch", "GPU", "ours"]


def test_nan_is_not_a_figure(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_row(tmp_path / "rows.jsonl", replace(ROW, p50_ms=float("nan")))


def kernel(name: str, start: float, length: float, stream: int) -> dict:
    return {"cat": "kernel", "name": name, "ts": start, "dur": length, "args": {"stream": stream}}


def copy(name: str, start: float, size: int) -> dict:
    return {"cat": "gpu_memcpy", "name": name, "ts": start, "dur": 1, "args": {"bytes": size, "stream": 7}}


def test_trace_finds_frame_sized_host_copies_and_idle_time():
    events = [
        copy("Memcpy HtoD (Pageable -> Device)", 0, 10**8),  # weights, before the first frame
        kernel("nv12_to_pixels_kernel", 10, 10, 20),
        kernel("gemm", 20, 30, 7),
        copy("Memcpy DtoH (Device -> Pinned)", 50, 100),
        copy("Memcpy HtoD (Pinned -> Device)", 55, 5000),
        copy("Memcpy DtoD (Device -> Device)", 56, 10**6),
        kernel("gemm", 60, 40, 7),
        kernel("nv12_to_pixels_kernel", 90, 20, 20),
    ]
    start, end = device_trace.window(events)
    assert (start, end) == (10, 110)
    found = device_trace.host_copies(events, 1000, start, end)
    assert [(one["bytes"], one["at_ms"]) for one in found] == [(5000, 0.045)]
    idle = device_trace.idle_share(events, start, end)
    assert idle == pytest.approx({"compute_stream": 0.3, "gpu": 0.1})
    with pytest.raises(SystemExit, match="no kernel"):
        device_trace.window([])


def test_kernels_of_a_replayed_graph_count_as_the_compute_stream():
    """Launched on stream 7 between a copy in and a copy out, reported on two streams of the driver's own."""

    def kernel(start, length, stream, launch):
        args = {"stream": stream, "correlation": launch}
        return {"cat": "kernel", "name": "any", "ts": start, "dur": length, "args": args}

    replayed = [kernel(2, 3, 20, 3), kernel(5, 3, 21, 3)]
    events = [kernel(0, 1, 7, 1), kernel(1, 1, 7, 2), *replayed, kernel(8, 1, 7, 4), kernel(3, 1, 9, 5)]
    assert device_trace.idle_share(events, 0, 10) == pytest.approx({"compute_stream": 0.1, "gpu": 0.1})
