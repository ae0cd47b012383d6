"""Rows survive the round trip, the table shows the newest, and the profiler trace is read right."""

from __future__ import annotations

from dataclasses import replace

import device_trace
import pytest

from vsim_fast.benchmark import Machine, Row, append_row, latest, read_rows, table

MACHINE = Machine("gpu-x", "cuda", "GPU X", "1.0", "CPU", 4, "3.12", "2.11", "3.6", "13.0", "0123456789abcdef", True)
ROW = Row("best_match", "torch eager", "float16", "B4-P8-D2", 0.9, 1.0, 1.2, 5, "2026-01-01T00:00:00+00:00", MACHINE)


def test_rows_are_appended_and_the_table_shows_the_newest(tmp_path):
    path = tmp_path / "deep" / "gpu-x.jsonl"
    fast = replace(ROW, provider="ours", p50_ms=0.25, rate=3.0, unit="GB/s", of_ceiling=0.5, max_error=2e-4,
                   baseline="torch eager", speedup=4.0, stages={"encode": 1.5})  # fmt: skip
    for row in (ROW, replace(fast, p50_ms=9.0), fast):
        append_row(path, row)
    assert len(path.read_text().splitlines()) == 3
    rows = read_rows(path.parent)
    assert rows == read_rows(path)
    assert latest(rows) == [ROW, fast]
    cells = ["gpu-x", "best_match", "B4-P8-D2", "float16", "ours", "0.25", "3 GB/s", "50%"]
    cells += ["4.00× torch eager", "2.0e-04", "012345678*"]
    assert table([fast]).splitlines()[2] == f"| {' | '.join(cells)} |"


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
