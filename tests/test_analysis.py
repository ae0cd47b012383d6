"""The whole of `analyze` on generated clips, against the fp64 oracle of its definitions."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from vsim_fast.analysis import analyze, planned_bytes
from vsim_fast.encode import load_encoder
from vsim_fast.errors import CorruptVideo, OutputError, UsageError
from vsim_fast.video import Sampling, open_video

OPTIONS = dict(fps=2.0, image_size=112, visualize_positions=3)
ARRAYS = ("position_similarities.npz", "frame_similarity.npy", "intra_frame_similarities.npz")


@pytest.fixture(scope="session")
def encoder():
    return load_encoder("builtin", device="cpu", precision="float32", image_size=112)


@pytest.fixture(scope="session")
def oracle(clip, encoder):
    """Normalised and raw patches in fp64, [T, P, D]."""
    with open_video(clip, Sampling(fps=2.0, max_frames=100)) as reader:
        raw = torch.cat([encoder.encode(batch).patches for batch in reader]).double()
    return torch.nn.functional.normalize(raw, dim=-1), raw


def load(folder, name):
    data = np.load(folder / name, allow_pickle=False)
    return data[name.removesuffix(".npz")] if name.endswith(".npz") else data


def check_matrices(folder, oracle, atol):
    unit, raw = oracle
    position = torch.einsum("ipd,jpd->pij", unit, unit).numpy()
    intra = torch.einsum("tpd,tqd->tpq", unit, unit).numpy()
    mean = torch.nn.functional.normalize(raw.mean(1), dim=-1)
    for name, expected in zip(ARRAYS, (position, (mean @ mean.T).numpy(), intra), strict=True):
        got = load(folder, name)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=atol)
        np.testing.assert_allclose(got, np.swapaxes(got, -1, -2), atol=atol)


def test_outputs_equal_the_oracle(clip, encoder, oracle, tmp_path):
    summary = analyze(clip, encoder, output_dir=tmp_path, **OPTIONS)
    check_matrices(tmp_path, oracle, atol=1e-5)
    assert {p.name for p in tmp_path.iterdir()} == {
        *ARRAYS, "statistics.txt", "summary.json", "report.html", "frame_similarity.png",
        "position_0000_r0_c0.png", "position_0031_r3_c7.png", "position_0063_r7_c7.png",
        *(f"intra_frame_{t:04d}.png" for t in (0, 3, 7, 11, 15)),
    }  # fmt: skip
    assert summary.status == "complete" and summary.frames == 16 and summary.patches == 64
    assert summary.pts_seconds == [k / 2 for k in range(16)]
    assert json.loads((tmp_path / "summary.json").read_text())["schema_version"] == 1
    for name, size in summary.outputs.items():
        assert (tmp_path / name).stat().st_size == size
    intra = load(tmp_path, ARRAYS[2]).astype(np.float64)
    stats = summary.statistics["Intra-Frame Similarities"]
    for key, value in (("mean", intra.mean()), ("std", intra.std()), ("min", intra.min()), ("max", intra.max())):
        assert stats[key] == pytest.approx(value, abs=1e-5)
    assert f"Mean: {intra.mean():.4f}" in (tmp_path / "statistics.txt").read_text()


def test_cuts_show_in_frame_similarity(clip, encoder, tmp_path):
    analyze(clip, encoder, output_dir=tmp_path, **OPTIONS)
    frame = load(tmp_path, "frame_similarity.npy")
    assert frame[0, 1] > frame[3, 4] + 0.1  # one shot of four frames, then the cut


@pytest.mark.parametrize("reduce", ["stats", "topk"])
def test_reduced_outputs_equal_reductions_of_the_whole(clip, encoder, oracle, tmp_path, reduce):
    summary = analyze(clip, encoder, output_dir=tmp_path, reduce=reduce, topk=3, **OPTIONS)
    assert not any((tmp_path / name).exists() for name in ARRAYS if name.endswith("npz"))
    unit = oracle[0]
    for name, matrices in (
        ("position", torch.einsum("ipd,jpd->pij", unit, unit)),
        ("intra_frame", torch.einsum("tpd,tqd->tpq", unit, unit)),
    ):
        stats = np.load(tmp_path / f"{name}_similarity_stats.npz")
        np.testing.assert_allclose(stats["mean"], matrices.mean((1, 2)), atol=1e-5)
        np.testing.assert_allclose(stats["std"], matrices.std((1, 2), correction=0), atol=1e-5)
        np.testing.assert_allclose(stats["min"], matrices.amin((1, 2)), atol=1e-5)
        if reduce == "topk":
            matrices.diagonal(dim1=1, dim2=2).fill_(-2)  # a row is not its own match
            best = matrices.topk(3, dim=-1).values
            values = np.load(tmp_path / f"{name}_similarities_topk_values.npy")
            indices = torch.from_numpy(np.load(tmp_path / f"{name}_similarities_topk_indices.npy")).long()
            np.testing.assert_allclose(values, best, atol=1e-5)
            np.testing.assert_allclose(matrices.gather(2, indices), best, atol=1e-5)
    whole = {key: stats["mean"] for key, stats in summary.statistics.items()}
    assert whole["Position-wise Similarities"] == pytest.approx(float(stats_mean(unit, "ipd,jpd->pij")), abs=1e-5)


def stats_mean(unit, equation):
    return torch.einsum(equation, unit, unit).mean()


def test_float16_and_compressed_arrays(clip, encoder, oracle, tmp_path):
    analyze(clip, encoder, output_dir=tmp_path, dtype="float16", compress=True, **OPTIONS)
    assert load(tmp_path, ARRAYS[0]).dtype == np.float16
    check_matrices(tmp_path, oracle, atol=1e-3)


@pytest.mark.parametrize("limits", [(0, 1 << 40), (0, 0)], ids=["float16", "mapped"])
def test_large_stacks_are_kept_compactly(clip, encoder, oracle, tmp_path, monkeypatch, limits):
    monkeypatch.setattr("vsim_fast.similarity.EXACT_BYTES", limits[0])
    monkeypatch.setattr("vsim_fast.similarity.MEMORY_BYTES", limits[1])
    summary = analyze(clip, encoder, output_dir=tmp_path, **OPTIONS)
    assert "normalised float16" in summary.memory["features"]
    check_matrices(tmp_path, oracle, atol=1e-3)


def test_small_blocks_give_the_same_arrays(clip, encoder, oracle, tmp_path, monkeypatch):
    monkeypatch.setattr("vsim_fast.similarity.BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr("vsim_fast.analysis.BLOCK_BYTES", 1 << 12)
    analyze(clip, encoder, output_dir=tmp_path, **OPTIONS)
    check_matrices(tmp_path, oracle, atol=1e-5)


def test_max_frames_thins_out_evenly(clip, encoder, tmp_path):
    summary = analyze(clip, encoder, output_dir=tmp_path, **(OPTIONS | {"max_frames": 5}))
    assert summary.pts_seconds == [0, 1.5, 3.5, 5.5, 7.5]


@pytest.mark.parametrize("positions", [0, 1000], ids=["no-positions", "more-positions-than-patches"])
def test_one_frame(clip, encoder, tmp_path, positions):
    options = OPTIONS | {"max_frames": 1, "visualize_positions": positions}
    summary = analyze(clip, encoder, output_dir=tmp_path, **options)
    assert summary.frames == 1
    assert load(tmp_path, ARRAYS[0]).shape == (64, 1, 1)
    assert (tmp_path / "report.html").exists()
    assert len(list(tmp_path.glob("position_*.png"))) == min(positions, 64)


def test_one_frame_has_no_best_matches_over_time(clip, encoder, tmp_path):
    analyze(clip, encoder, output_dir=tmp_path, reduce="topk", dtype="float16", **(OPTIONS | {"max_frames": 1}))
    for kind, shape in (("position", (64, 1, 0)), ("intra_frame", (1, 64, 8))):
        for what, dtype in (("values", np.float16), ("indices", np.int32)):
            array = np.load(tmp_path / f"{kind}_similarities_topk_{what}.npy")
            assert (array.shape, array.dtype) == (shape, dtype)


def test_one_patch(clip, tmp_path):
    options = OPTIONS | {"image_size": 16}
    for reduce in (None, "topk"):
        summary = analyze(clip, "timm:vit_tiny_patch16_224@random", output_dir=tmp_path, reduce=reduce, **options)
        assert (summary.frames, summary.patches) == (16, 1)
    assert np.load(tmp_path / "intra_frame_similarities_topk_values.npy").shape == (16, 1, 0)


@pytest.mark.parametrize("size", [(3000, 8), (8, 3000)], ids=["wide", "tall"])
def test_extreme_aspect_gives_small_thumbnails(encoder, tmp_path, size):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    Image.effect_noise(size, 80).convert("RGB").save(folder / "0.png")
    summary = analyze(folder, encoder, output_dir=tmp_path / "out", **OPTIONS)
    assert summary.frames == 1 and summary.report["bytes"] < 1 << 20


def test_second_run_replaces_the_first_and_removes_what_it_no_longer_writes(clip, encoder, tmp_path):
    analyze(clip, encoder, output_dir=tmp_path, **OPTIONS)
    (tmp_path / "mine.txt").write_text("not ours")
    analyze(clip, encoder, output_dir=tmp_path, reduce="stats", **OPTIONS)
    assert not (tmp_path / ARRAYS[2]).exists()
    assert (tmp_path / "mine.txt").exists()


def test_truncated_clip_gives_what_decodes(clip, encoder, tmp_path):
    data = clip.read_bytes()
    # The index comes first, so that the file opens although its last frames are gone.
    import av

    fast = tmp_path / "fast.mp4"
    with av.open(str(clip)) as source, av.open(str(fast), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = fast.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    out = tmp_path / "out"
    summary = analyze(tmp_path / "cut.mp4", encoder, output_dir=out, **OPTIONS)
    assert summary.status == "partial"
    assert 0 < summary.frames < 16 and summary.decoder["delivered"] == summary.frames
    assert load(out, ARRAYS[2]).shape == (summary.frames, 64, 64)
    assert any("could not be decoded" in note for note in summary.notes)


def test_black_frames_are_flagged(encoder, tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, level in enumerate((0, 90, 0)):
        noise = rng.integers(0, 120, (64, 64, 3)) if level else np.zeros((64, 64, 3))
        Image.fromarray((level + noise).astype(np.uint8)).save(folder / f"{i}.png")
    summary = analyze(folder, encoder, output_dir=tmp_path / "out", image_fps=1, **(OPTIONS | {"fps": 1.0}))
    assert summary.featureless_frames == [0, 2]
    assert any("featureless" in note for note in summary.notes)


def test_killed_run_leaves_no_final_name(clip, tmp_path):
    code = f"""
import os, signal
from vsim_fast.analysis import analyze
class Kill:
    def plan(self, *a): pass
    def advance(self, stage, done, total):
        if stage == "positions": os.kill(os.getpid(), signal.SIGKILL)
analyze({str(clip)!r}, output_dir={str(tmp_path)!r}, fps=2.0, image_size=112, device="cpu", progress=Kill())
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert process.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".vsim-partial-")] == []
    analyze(clip, output_dir=tmp_path, device="cpu", **OPTIONS)
    assert not list(tmp_path.glob(".vsim-partial-*"))


def test_interrupted_run_leaves_nothing_and_ends(clip, tmp_path):
    code = f"""
import os, signal
from vsim_fast import analysis, cli
def interrupt(self, batch):
    signal.raise_signal(signal.SIGINT)
analysis._Collector.add = interrupt
cli.main(["analyze", {str(clip)!r}, "--output-dir", {str(tmp_path)!r}, "--image-size", "112", "--device", "cpu"])
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert process.returncode not in (0, 3) and b"Traceback" not in process.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["numpy.save", "numpy.savez", "pathlib.Path.write_text"])
def test_full_disk_is_an_output_error_whatever_is_written(clip, encoder, tmp_path, monkeypatch, call):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(call, full)
    with pytest.raises(OutputError, match="the disk is full"):
        analyze(clip, encoder, output_dir=tmp_path, reduce="stats", **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_no_room_for_the_patches_is_an_output_error(clip, encoder, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vsim_fast.similarity.EXACT_BYTES", 0)
    monkeypatch.setattr("vsim_fast.similarity.MEMORY_BYTES", 0)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OutputError, match="the disk is full"):
        analyze(clip, encoder, output_dir=tmp_path, **OPTIONS)
    assert not list(tmp_path.iterdir())


@pytest.mark.needs_cuda
@pytest.mark.parametrize("reduce", [None, "stats", "topk"])
@pytest.mark.parametrize("decoder", ["pyav", pytest.param("nvdec", marks=pytest.mark.needs_nvdec)])
def test_cuda_outputs_equal_the_oracle(clip, oracle, tmp_path, reduce, decoder):
    options = dict(device="cuda", decoder=decoder, reduce=reduce, topk=3)
    summary = analyze(clip, "builtin", output_dir=tmp_path, **options, **OPTIONS)
    assert summary.decoder["backend"] == decoder
    assert summary.status == "complete" and summary.frames == 16 and not summary.featureless_frames
    assert summary.memory["peak_gpu_mib"] > 0 and summary.encoder["device"].startswith("cuda")
    mean = summary.statistics["Position-wise Similarities"]["mean"]
    assert mean == pytest.approx(float(stats_mean(oracle[0], "ipd,jpd->pij")), abs=8e-3)
    if reduce is None:
        # other colour and resize kernels than swscale's and torch's: 5e-3 with the reference ones, and half precision
        check_matrices(tmp_path, oracle, atol=2e-2)


def test_planned_bytes_are_what_is_written(clip, encoder, tmp_path):
    summary = analyze(clip, encoder, output_dir=tmp_path, **OPTIONS)
    arrays = sum(summary.outputs[name] for name in ARRAYS)
    assert 0 <= arrays - planned_bytes(16, 64) < 2048  # headers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0.0}, "fps"),
        ({"max_frames": 0}, "max_frames"),
        ({"visualize_positions": -1}, "visualize_positions must be 0 or more, got -1"),
        ({"topk": 0}, "topk must be 1 or more, got 0"),
        ({"patch_size": 16}, "patch size must be that of builtin, 14, got 16"),
        ({"reduce": "mean"}, "reduce must be one of stats, topk, got 'mean'"),
    ],
)
def test_bad_arguments_name_rule_and_value(clip, encoder, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        analyze(clip, encoder, output_dir=tmp_path, **(OPTIONS | options))
    assert not list(tmp_path.iterdir())


def test_unwritable_folder(clip, encoder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        analyze(clip, encoder, output_dir=tmp_path / "file", **OPTIONS)


def test_failed_run_keeps_earlier_results(clip, encoder, tmp_path, monkeypatch):
    analyze(clip, encoder, output_dir=tmp_path, **OPTIONS)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    monkeypatch.setattr("vsim_fast.analysis.encode_video", lambda *a: (batch for batch in ()))
    with pytest.raises(CorruptVideo):
        analyze(clip, encoder, output_dir=tmp_path, **OPTIONS)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_planned_bytes_of_more_matches_than_a_row_has():
    assert planned_bytes(4, 64, reduce="topk", topk=100_000) == planned_bytes(4, 64, reduce="topk", topk=63)
