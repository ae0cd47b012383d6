"""`embed`: its files, and that they come to be whatever happens on the way."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from copy_clips import scene, write

from vsim_fast import batch
from vsim_fast.batch import embed
from vsim_fast.batch.inspection import batch_status, verify
from vsim_fast.batch.run import Run
from vsim_fast.errors import OutputError, UsageError
from vsim_fast.feature_store import Store
from vsim_fast.pipeline import sources
from vsim_fast.pipeline.reading import Opened
from vsim_fast.store import PARTIAL

QUICK = dict(encoder="builtin", image_size=56, fps=4.0, device="cpu", precision="float32", isolate=False)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Eight clips in two folders, two of one name, two of one content."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    for n in range(6):
        write(folder / f"clip{n}.mp4", scene(seed=n, frames=(12, 24)[n % 2]))
    write(folder / "more" / "clip0.mp4", scene(seed=10, frames=12))
    shutil.copy(folder / "clip1.mp4", folder / "more" / "copy.mp4")
    return folder


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert embed([clips], output_dir=folder, **QUICK).status == "complete"
    return folder


def contents(folder):
    """What users and later runs read, by name."""
    files = [*folder.glob("*_embedding.*"), *folder.glob("store/features/*/*"), folder / batch.CONSOLIDATED]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_same(folder, whole):
    ours, theirs = contents(folder), contents(whole)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        if name.endswith(".npy"):
            a, b = np.load(folder / name), np.load(whole / name)
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert not list(folder.rglob("*.vsim-partial-*"))
    ours, theirs = (json.loads(side[batch.CONSOLIDATED]) for side in (ours, theirs))
    assert ours.keys() == theirs.keys()
    with Store(folder / "store") as store:
        assert store.status()["files"] == len(theirs) and not list(store.verify(folder))


def test_files_and_what_is_in_them(clips, whole):
    names = {"clip0", "clip1", "clip2", "clip3", "clip4", "clip5", "copy"}
    files = {path.name for path in whole.iterdir()}
    (other,) = {path.name.removesuffix("_embedding.npy") for path in whole.glob("clip0~*_embedding.npy")}
    assert files >= {f"{name}_embedding{suffix}" for name in names | {other} for suffix in (".npy", ".json")}
    vector = np.load(whole / "clip3_embedding.npy")
    assert vector.dtype == np.float32 and vector.shape == (384,) and abs(np.linalg.norm(vector) - 1) < 1e-5
    told = json.loads((whole / "clip3_embedding.json").read_text())
    assert told["video_name"] == "clip3" and told["video_path"] == str(clips / "clip3.mp4") and told["frames"] == 8
    np.testing.assert_allclose(told["embedding"], vector, atol=1e-7)
    everything = json.loads((whole / batch.CONSOLIDATED).read_text())
    assert everything.keys() == names | {other}
    np.testing.assert_allclose(everything["clip3"]["embedding"], vector, atol=1e-7)
    summary = json.loads((whole / batch.SUMMARY).read_text())
    assert summary["total_videos"] == summary["processed"] == 8 and summary["failed"] == 0
    assert {video["video_path"] for video in summary["results"]} == {str(path) for path in clips.rglob("*.mp4")}
    assert (np.load(whole / "clip1_embedding.npy") == np.load(whole / "copy_embedding.npy")).all()
    with Store(whole / "store") as store:
        assert len(store) == 7
        features = store.features(next(iter(store.videos())).key)
        assert features.keys() == {"embedding", "pooled", "pts_seconds", "featureless"}


def test_the_embedding_is_that_of_the_frame_encoder(clips, whole):
    from vsim_fast import FrameEncoder, Sampling, load_encoder, open_video
    from vsim_fast.frame_encoder import frame_embeddings

    encoder = FrameEncoder(load_encoder("builtin", "cpu", "float32", 56)).encoder
    with open_video(clips / "clip3.mp4", Sampling(fps=4.0, max_frames=100)) as reader:
        rows = torch.cat([frame_embeddings(encoder.encode(frames)) for frames in reader])
    mean = torch.nn.functional.normalize(rows, dim=1).mean(0)
    np.testing.assert_allclose(np.load(whole / "clip3_embedding.npy"), mean / mean.norm(), atol=1e-5)


def test_a_second_run_does_nothing(clips, whole, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*_embedding.*")}
    monkeypatch.setattr("vsim_fast.batch.engines.gather_videos", None)  # nobody may ask for work
    result = embed([clips], output_dir=whole, **QUICK)
    assert (result.status, result.computed, result.skipped, result.frames) == ("complete", 0, 8, 0)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_new_and_renamed_and_changed_files(clips, tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(clips, videos)
    embed([videos], output_dir=out, **QUICK)
    (videos / "clip2.mp4").rename(videos / "renamed.mp4")
    write(videos / "clip4.mp4", scene(seed=40, frames=12))
    write(videos / "new.mp4", scene(seed=41, frames=12))
    old = np.load(out / "clip4_embedding.npy")
    result = embed([videos], output_dir=out, **QUICK)
    assert result.status == "complete" and result.frames == 8  # of the changed and the new one
    assert (np.load(out / "renamed_embedding.npy") == np.load(out / "clip2_embedding.npy")).all()
    assert (np.load(out / "clip4_embedding.npy") != old).any() and (out / "new_embedding.npy").exists()
    assert "clip2" not in json.loads((out / batch.CONSOLIDATED).read_text())


def test_shards_make_up_the_whole(clips, whole, tmp_path):
    names = []
    for i in (1, 2, 3):
        result = embed([clips], output_dir=tmp_path / str(i), shard=(i, 3), **QUICK)
        names += [video["name"] for video in result.results]
    assert sorted(names) == sorted(json.loads((whole / batch.CONSOLIDATED).read_text()))


@pytest.mark.parametrize("save_format", ["numpy", "json"])
def test_save_format_and_keep_and_layout(clips, tmp_path, save_format):
    layout = "npy" if save_format == "numpy" else "safetensors"
    keep = ("patches", "cls", "attention", "pooled")
    embed([clips / "clip0.mp4"], output_dir=tmp_path, save_format=save_format, keep=keep, layout=layout, **QUICK)
    assert len(list(tmp_path.glob("clip0_embedding.*"))) == 1
    with Store(tmp_path / "store") as store:
        features = store.features(next(iter(store.videos())).key)
        assert features["patches"].shape == (4, 16, 384) and features["attention"].shape == (4, 16)
    embed([clips / "clip0.mp4"], output_dir=tmp_path, keep=keep, layout=layout, **QUICK)
    assert len(list(tmp_path.glob("clip0_embedding.*"))) == 2


# ---- what goes wrong


def test_broken_files_are_listed_and_the_rest_is_done(clips, whole, tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(clips, videos)
    for n in range(4):
        (videos / f"broken{n}.mp4").write_bytes(b"no video" * (n + 1) * 50)
    (videos / "empty.mp4").touch()
    (videos / "truncated.mp4").write_bytes((videos / "clip1.mp4").read_bytes()[:3000])
    os.mkfifo(videos / "pipe.mp4")
    result = embed([videos, videos / "pipe.mp4"], output_dir=out, **QUICK)
    assert (result.status, result.processed, result.failed) == ("partial", 8, 7)
    reasons = {Path(video["video_path"]).name: video["reason"] for video in result.failed_videos}
    assert "no video container that is read here" in reasons["broken2.mp4"] and all(reasons.values())
    assert len(batch_status(out)["failures"]) == 7
    for name in ("clip3_embedding.npy", "copy_embedding.npy"):
        np.testing.assert_allclose(np.load(out / name), np.load(whole / name), atol=1e-5)
    again = embed([videos, videos / "pipe.mp4"], output_dir=out, **QUICK)
    told = {Path(video["video_path"]).name: video["reason"] for video in again.failed_videos}
    assert again.frames == 0 and told["broken1.mp4"].endswith("(an earlier run; --retry-failed tries again)")
    write(videos / "broken1.mp4", scene(seed=50, frames=12))  # mended: another content, so no old failure
    assert embed([videos], output_dir=out, **QUICK).failed == 5
    assert embed([videos], output_dir=out, retry_failed=True, **QUICK).failed == 5


def test_nothing_produced_is_said(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    result = embed([tmp_path / "broken.mp4"], output_dir=tmp_path / "out", **QUICK)
    assert (result.status, result.processed, result.failed) == ("nothing", 0, 1)


def test_too_many_failures_end_the_run(clips, tmp_path):
    for n in range(5):
        (tmp_path / f"a{n}.mp4").write_bytes(b"no video" + bytes([n]))
    result = embed([tmp_path, clips], output_dir=tmp_path / "out", max_failures=2, workers=1, **QUICK)
    assert result.status == "stopped" and result.failed >= 3 and result.processed < 8
    assert embed([tmp_path, clips], output_dir=tmp_path / "out", **QUICK).processed == 8


def test_other_settings_are_refused_and_nothing_is_touched(clips, whole):
    before = contents(whole)
    with pytest.raises(UsageError, match=r"computed with other settings \(.*fps.*4\.0.*2\.0"):
        embed([clips], output_dir=whole, **{**QUICK, "fps": 2.0})
    assert contents(whole) == before


def test_a_second_run_at_once_is_refused(clips, whole):
    with Store(whole / "store", write=True), pytest.raises(OutputError, match=rf"process {os.getpid()}|{os.getpid()}"):
        embed([clips], output_dir=whole, **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(keep=("tokens",)), "keep must be of patches, cls, attention, pooled, got 'tokens'"),
        (dict(save_format="csv"), "save_format must be one of numpy, json, both, got 'csv'"),
        (dict(shard=(0, 2)), r"shard must be \(i, n\) with 1 <= i <= n, got \(0, 2\)"),
        (dict(max_failures=-1), "max_failures must be 0 or more, got -1"),
        (dict(workers=0), "workers must be 1 or more, got 0"),
        (dict(timeout=float("nan")), "timeout must be more than 0 seconds, got nan"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments(clips, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        embed([clips], output_dir=tmp_path / "out", **{**QUICK, **options})
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_the_run_and_keeps_what_is_done(clips, whole, tmp_path, monkeypatch):
    written = []
    write_bytes = Path.write_bytes

    def full(path, data):
        if "_embedding" in path.name:
            written.append(path)
            if len(written) > 7:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_bytes(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        patched.setattr("vsim_fast.batch.writer.COMMIT_VIDEOS", 1)
        with pytest.raises(OutputError, match="the disk is full"):
            embed([clips], output_dir=tmp_path / "out", workers=1, **QUICK)
    assert 0 < batch_status(tmp_path / "out")["files"] < 8
    embed([clips], output_dir=tmp_path / "out", **QUICK)
    assert_same(tmp_path / "out", whole)


def test_stop_finishes_what_has_begun(clips, whole, tmp_path):
    stop = threading.Event()

    class StopAtOnce:
        def batch(self, snapshot):
            if snapshot.frames:
                stop.set()

    batch_progress = StopAtOnce()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vsim_fast.batch.run.PROGRESS_SECONDS", 0)
        result = embed([clips], output_dir=tmp_path, stop=stop, progress=batch_progress, workers=1, **QUICK)
    assert result.status == "interrupted" and 0 < result.processed < 8 and result.failed == 0
    embed([clips], output_dir=tmp_path, **QUICK)
    assert_same(tmp_path, whole)


def damage(path, choose):
    size = path.stat().st_size
    os.truncate(path, choose.randrange(size) if size else 0)


def test_any_file_cut_off_is_found_and_made_again(clips, whole, tmp_path):
    choose = random.Random(1)
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for _ in range(10):
        victim = choose.choice(sorted(path for path in out.rglob("*") if path.is_file() and path.stat().st_size))
        others = {path: path.stat().st_mtime_ns for path in out.rglob("*_embedding.*") if path != victim}
        damage(victim, choose)
        embed([clips], output_dir=out, **QUICK)
        assert_same(out, whole)
        assert {path: path.stat().st_mtime_ns for path in others} == others, victim


def test_summary_and_consolidated_are_of_this_run_and_whole(clips, tmp_path):
    def told():
        summary = json.loads((tmp_path / batch.SUMMARY).read_text())
        everything = json.loads((tmp_path / batch.CONSOLIDATED).read_text())
        return {video["name"] for video in summary["results"]}, everything.keys()

    first, second = [clips / "clip0.mp4", clips / "clip1.mp4"], [clips / "clip2.mp4"]
    for paths in (first, second, first):  # nothing is computed the third time
        embed(paths, output_dir=tmp_path, **QUICK)
        names = {path.stem for path in paths}
        assert told() == (names, names)
    for name in (batch.SUMMARY, batch.CONSOLIDATED):
        os.truncate(tmp_path / name, 20)
    assert embed(first, output_dir=tmp_path, **QUICK).computed == 0
    assert told() == ({"clip0", "clip1"}, {"clip0", "clip1"})


def test_other_commands_write_into_the_same_folder(clips, tmp_path):
    (tmp_path / f"{PARTIAL}1234").mkdir()
    shutil.copy(clips / "clip0.mp4", tmp_path)
    assert embed([tmp_path], output_dir=tmp_path, **QUICK).status == "complete"
    assert (tmp_path / f"{PARTIAL}1234").is_dir()


def test_a_file_that_is_replaced_before_it_is_read_has_the_features_of_neither(clips, tmp_path, monkeypatch):
    video, out, begin = tmp_path / "video.mp4", tmp_path / "out", Run._begin
    shutil.copy(clips / "clip0.mp4", video)

    def replaced(self, job):
        shutil.copy(clips / "clip2.mp4", video)
        begin(self, job)

    monkeypatch.setattr(Run, "_begin", replaced)
    (failed,) = embed([video], output_dir=out, **QUICK).failed_videos
    assert failed["reason"].startswith("it changed before it was read")
    with Store(out / "store") as store:
        assert not len(store)
    monkeypatch.setattr(Run, "_begin", begin)
    assert embed([video], output_dir=out, **QUICK).status == "complete"


def test_what_says_nothing_of_a_file_is_not_held_against_it(clips, tmp_path, monkeypatch):
    video, out, begin = tmp_path / "video.mp4", tmp_path / "out", Run._begin
    shutil.copy(clips / "clip0.mp4", video)
    (failed,) = embed([video], output_dir=out, **QUICK, decoder="nvdec").failed_videos
    assert "decoder 'nvdec' cannot serve" in failed["reason"]

    def gone(self, job):
        video.unlink()
        begin(self, job)

    monkeypatch.setattr(Run, "_begin", gone)
    (failed,) = embed([video], output_dir=out, **QUICK).failed_videos
    assert failed["reason"] == "No such file or directory"
    monkeypatch.setattr(Run, "_begin", begin)
    shutil.copy(clips / "clip0.mp4", video)
    assert embed([video], output_dir=out, **QUICK).status == "complete"


def test_a_url_whose_features_are_lost_is_fetched_again(clips, tmp_path):
    system = pytest.importorskip("fsspec").filesystem("memory")
    system.pipe_file("/batch/clip.mp4", (clips / "clip0.mp4").read_bytes())
    for _ in range(2):
        result = embed(["memory://batch/clip.mp4"], output_dir=tmp_path, **QUICK)
        assert (result.status, result.computed) == ("complete", 1)
        shutil.rmtree(tmp_path / "store" / "features")
    system.rm("/batch", recursive=True)


def test_verify_finds_changed_bytes_and_the_next_run_mends_them(clips, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    assert not verify(out).problems
    victim = sorted(out.glob("store/features/*/*"))[2]
    data = bytearray(victim.read_bytes())
    data[-40] ^= 1
    victim.write_bytes(data)
    (out / "clip5_embedding.npy").write_bytes(bytes(len((out / "clip5_embedding.npy").read_bytes())))
    (out / "copy_embedding.json").unlink()
    found = {problem.file for problem in verify(out).problems}
    assert found == {str(victim.relative_to(out)), "clip5_embedding.npy", "copy_embedding.json"}
    embed([clips], output_dir=out, **QUICK)
    assert_same(out, whole)


def test_killed_at_any_moment_the_next_run_completes_it(clips, whole, tmp_path):
    """SIGKILL at ten moments of a run, into one folder after another until it is complete."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vsim_fast.batch", "vsim_fast.video._pyav", "vsim_fast.encode.builtin"])
    choose, out, done = random.Random(2), tmp_path / "out", {}
    options = dict(output_dir=out, workers=1, **QUICK)
    for moment in sorted(choose.uniform(0.1, 1.5) for _ in range(10)):
        process = context.Process(target=embed, args=([clips],), kwargs=options)
        process.start()
        process.join(moment)
        process.kill()
        process.join()
        if (out / "store" / "ledger.sqlite").exists():
            for name in done:
                assert (out / name).stat().st_mtime_ns == done[name], f"{name} was written again"
            with Store(out / "store") as store:
                names = [f"{video.name}_embedding.npy" for video in store.videos()]
            done = {name: (out / name).stat().st_mtime_ns for name in names if (out / name).exists()}
    assert embed([clips], **options).status == "complete"
    assert_same(out, whole)


def test_a_file_that_kills_its_worker_twice_is_given_up(clips, whole, tmp_path, monkeypatch):
    take_in, deaths = sources.DecodeProcesses._take_in, []

    def killed(self, worker, message):
        if isinstance(message, Opened) and worker.tasks[0].path.endswith("clip3.mp4"):
            deaths.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
        take_in(self, worker, message)

    monkeypatch.setattr(sources.DecodeProcesses, "_take_in", killed)
    isolated = {**QUICK, "isolate": True}
    result = embed([clips], output_dir=tmp_path, **isolated)
    assert (result.status, result.processed, len(deaths)) == ("partial", 7, 2)
    (failed,) = result.failed_videos
    assert failed["status"] == "quarantined" and "the process died of SIGKILL" in failed["reason"]
    assert embed([clips], output_dir=tmp_path, **isolated).failed == 1 and len(deaths) == 2
    monkeypatch.setattr(sources.DecodeProcesses, "_take_in", take_in)
    assert embed([clips], output_dir=tmp_path, retry_failed=True, **isolated).status == "complete"
    assert_same(tmp_path, whole)


def test_workers_killed_at_random_cost_nothing(clips, whole, tmp_path, monkeypatch):
    take_in, choose, struck = sources.DecodeProcesses._take_in, random.Random(3), set()

    def killed(self, worker, message):
        path = worker.tasks[0].path if isinstance(message, Opened) else None
        if path and path not in struck and choose.random() < 0.6:
            struck.add(path)
            os.kill(worker.pid, signal.SIGKILL)
        take_in(self, worker, message)

    monkeypatch.setattr(sources.DecodeProcesses, "_take_in", killed)
    assert embed([clips], output_dir=tmp_path, workers=2, **{**QUICK, "isolate": True}).status == "complete"
    assert struck
    assert_same(tmp_path, whole)


def test_processes_per_device_make_the_same_files(clips, whole, tmp_path):
    result = embed([clips], output_dir=tmp_path, **{**QUICK, "device": "cpu,cpu"})
    assert result.status == "complete" and result.engine["devices"] == ["cpu", "cpu"]
    assert_same(tmp_path, whole)


@pytest.mark.needs_cuda
def test_a_process_on_the_gpu_makes_the_files(clips, tmp_path):
    result = embed([clips], output_dir=tmp_path, **{**QUICK, "device": "cuda"})
    assert result.status == "complete" and result.engine["devices"] == ["cuda"]
    assert len(list(tmp_path.glob("*_embedding.npy"))) == 8
