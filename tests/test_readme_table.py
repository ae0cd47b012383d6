"""README's speed tables are what the rows give, for machines and ops that have rows already and for those to come."""

from __future__ import annotations

import re
from dataclasses import replace

import cases
import pytest
import readme_table

from vsim_fast.benchmark import Machine, Row, append_row
from vsim_fast.ops import _dispatch

H200 = Machine(
    "nvidia-h200", "cuda", "NVIDIA H200", "580.1", "Xeon", 16, "3.12.3", "2.11.0", "3.6.0", "13.0", "abcdef0123", False
)
CPU = replace(H200, name="xeon", device="cpu", gpu=None, driver=None, cuda=None)
NEW, OLD = "2027-01-02T00:00:00+00:00", "2027-01-01T00:00:00+00:00"


def row(op: str, shape: str, provider: str, p50_ms: float, dtype: str = "float16", **more) -> Row:
    settings = dict(run=NEW, machine=H200) | more
    return Row(op, provider, dtype, shape, p50_ms, p50_ms, p50_ms, rounds=5, **settings)


def written(folder, rows: list[Row]) -> list[str]:
    """Lines between the marks of a README after `rows`, each in the file of its machine."""
    readme, results = folder / "README.md", folder / "results"
    results.mkdir(exist_ok=True)
    readme.write_text(f"before\n{readme_table.BEGIN}\nold\n{readme_table.END}\nafter\n")
    for one in rows:
        append_row(results / f"{one.machine.name}.jsonl", one)
    options = ["--rows", str(results), "--readme", str(readme)]
    assert readme_table.main([*options, "--check"]) == 1
    assert readme_table.main(options) == 0
    assert readme_table.main([*options, "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    return text.splitlines()[2:-2]


def test_the_readme_is_what_the_rows_give(capsys):
    assert readme_table.main(["--check"]) == 0, capsys.readouterr().err


def test_the_rows_of_a_gpu_make_a_table_of_their_own(tmp_path):
    shape = "T100-P1024-D1152"
    peers = [row("position_similarity", shape, f"torch {how}", ms) for how, ms in (("eager", 0.3), ("compiled", 0.2))]
    ours = row(
        "position_similarity", shape, "vsim_fast:triton", 0.1, baseline="torch eager", rate=4512.3, unit="GB/s",
        of_ceiling=0.7, max_error=4.9e-4, machine=replace(H200, dirty=True),
    )  # fmt: skip
    before = [replace(one, run=OLD, p50_ms=77.0) for one in (*peers, ours)]
    on_cpu = row("derivatives", "B64-T300-D384-S4", "vsim_fast:cpp", 3.3, machine=CPU)
    lines = written(tmp_path, [on_cpu, *before, *peers, ours])
    assert [line for line in lines if line.endswith(":")] == [
        "NVIDIA H200, 16 cores of Xeon, driver 580.1, CUDA 13.0, torch 2.11.0, triton 3.6.0, Python 3.12.3:",
        "16 cores of Xeon, torch 2.11.0, triton 3.6.0, Python 3.12.3:",
    ]
    assert [line for line in lines if line.startswith("| `")] == [
        "| `position_similarity`, 100 × 1024 × 1152, float16 | torch eager, 300 µs; torch compiled, 200 µs | 100 µs "
        "| 3.00×; 2.00× | 4510 GB/s, 70% | 4.9e-4 | [abcdef0](results/nvidia-h200.jsonl#L6)\\* |",
        "| `derivatives`, 64 videos of 300 × 384, 4 windows | – | 3.3 ms | – | – | – "
        "| [abcdef0](results/xeon.jsonl#L1) |",
    ]
    assert r"\* measured with changes that were not committed." in lines
    assert not any("No GPU row" in line for line in lines)


def test_programs_and_roofs_make_lines(tmp_path):
    clip = "clip-vit_base_patch14_dinov2-S518"
    batch = "64 videos, 640 frames, 224 px, timm:vit_base_patch14_dinov2@random"
    lines = written(tmp_path, [
        row("analyze", f"{clip}-T40", "straightforward", 20_000, "float32"),
        row("analyze", f"{clip}-T40", "vsim_fast", 5000, baseline="straightforward", rate=8.0, unit="frames/s",
            max_error=0.004, stages={"encode": 4.5, "total": 4.9}),
        row("file to features", f"{clip}-T1390", "encoder roof", 900),
        row("file to features", f"{clip}-T1390", "engine", 1000, baseline="encoder roof", of_ceiling=0.9, rate=1390.0,
            unit="frames/s"),
        row("decode", "clip-T11120", "8 readers", 2000, "uint8", rate=5560.0, unit="frames/s"),
        row("batch of videos", batch, "decode alone", 1500), row("batch of videos", batch, "encode alone", 900),
        row("batch of videos", batch, "vsim_fast:encode_videos", 2000),
        row("pairs", f"{clip}-N400", "vsim_fast, encoder loaded", 1000),
    ])  # fmt: skip
    assert [re.split(r" \| \[abc", line[2:])[0] for line in lines if line.endswith(") |")] == [
        "`vsim analyze`, 40 frames, ViT-B/14 at 518 px, float16 | [straightforward script](bench/straightforward.py), "
        "20 s | 5 s | 4.00× | 8 frames/s, 90% encoding | 4.0e-3 (another resize)",
        "`vsim pair` without pictures, 400 pairs, ViT-B/14 at 518 px, encoder loaded | – | 1 s | – | – | –",
        "file to features, 1390 frames, ViT-B/14 at 518 px, float16 | encoding alone, 900 ms | 1 s | 0.90× "
        "| 1390 frames/s, 90% | –",
        "decoding alone, 11,120 frames, 8 at a time | – | 2 s | – | 5560 frames/s | –",
        "`encode_videos`, 64 videos, 640 frames, 224 px, ViT-B/14 | decoding alone, 1.5 s | 2 s | 0.75× | – | –",
    ]  # fmt: skip


@pytest.mark.parametrize("device", cases.CASES)
def test_every_case_of_the_benchmark_makes_a_line(device, tmp_path):
    machine = {"cuda": H200, "cpu": CPU}[device]
    rows = []
    for case in cases.CASES[device]:
        backend = next(name for name in _dispatch.ORDER[device] if name in _dispatch.IMPLS[case.op])
        common = dict(dtype=case.dtype_name, machine=machine)
        rows.append(row(case.op, case.shape_id, case.baseline, 2.0, **common))
        rows.append(row(case.op, case.shape_id, f"vsim_fast:{backend}", 1.0, baseline=case.baseline, **common))
    lines = [line for line in written(tmp_path, rows) if line.endswith(") |")]
    assert len(lines) == len(cases.CASES[device])
    assert all("| 2.00× |" in line and not re.search(r"[{}]", line) for line in lines)


def test_default_is_what_a_call_takes():
    taken = [f"vsim_fast:{name}" for device in ("cuda", "cpu") for name in _dispatch.ORDER[device]]
    assert [name for name in readme_table.DEFAULT if name in taken] == list(readme_table.DEFAULT)
    for device in ("cuda", "cpu"):
        order = [f"vsim_fast:{name}" for name in _dispatch.ORDER[device]]
        assert sorted(order, key=readme_table.DEFAULT.index) == order


def test_a_readme_without_marks_is_refused(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"{readme_table.END} {readme_table.BEGIN}")
    with pytest.raises(SystemExit):
        readme_table.main(["--readme", str(readme)])
    assert "must hold" in capsys.readouterr().err
