"""Engine ray: the same files as the local engine makes, whatever dies in mid-run."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from copy_clips import RATE, scene, write
from deadly_frames import DEADLY, DeadlyPreprocess

from vsim_fast.batch import embed
from vsim_fast.batch.engines import EngineConfig
from vsim_fast.batch.jobs import TaskQueue
from vsim_fast.cli import main
from vsim_fast.encode import load_encoder
from vsim_fast.errors import DeviceError, EncoderError, OpenError, UsageError
from vsim_fast.feature_store import Store
from vsim_fast.pipeline import Timings
from vsim_fast.pipeline.frames import InputFormat
from vsim_fast.pipeline.many import gather_videos
from vsim_fast.pipeline.reading import Task
from vsim_fast.video import Sampling

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")  # Ray Data sets its own old options
OPTIONS = dict(image_size=112, fps=float(RATE), keep=("pooled", "cls"), precision="float32")


@pytest.fixture(scope="module")
def cluster():
    """Ray on two CPUs of this machine: an actor that decodes, one that encodes."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Nine clips of three lengths, and a file that is no video."""
    folder = tmp_path_factory.mktemp("clips")
    for n in range(9):
        write(folder / f"clip{n}.mp4", scene(n, (12, 30, 48)[n % 3]))
    (folder / "noise.mp4").write_bytes(b"no video" * 100)
    return folder


@pytest.fixture
def deadly(clips, tmp_path, monkeypatch):
    """A file that kills whatever process prepares its frames."""

    def form(preprocess, dtype, device):
        return InputFormat(DeadlyPreprocess(**asdict(preprocess)), dtype, device)

    for module in ("pipeline.many", "batch.ray_engine"):
        monkeypatch.setattr(f"vsim_fast.{module}.InputFormat", form)
    return write(tmp_path / DEADLY, scene(99, 12))


def files(folder):
    """Of the output folder, but for what tells of the run, and the ledger."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if "/" not in name or name.startswith("store/features/")} - {"summary.json"}


def ledger(folder):
    """Its rows, without times and digests of what may differ within the tolerance."""
    with Store(folder / "store") as store:
        videos = sorted((video.name, video.key, json.dumps(video.facts)) for video in store.videos())
        failures = sorted((f["path"], f["status"], f["reason"]) for f in store.status()["failures"])
    return videos, failures


def assert_same(ours, theirs):
    assert files(ours) == files(theirs)
    assert ledger(ours) == ledger(theirs)
    for name in files(theirs):
        if name.endswith(".npy"):
            np.testing.assert_allclose(np.load(ours / name), np.load(theirs / name), atol=1e-5, rtol=0)
    with Store(ours / "store") as a, Store(theirs / "store") as b:
        for video in b.videos():
            left, right = a.features(video.key), b.features(video.key)
            assert left.keys() == right.keys() == {"embedding", "pts_seconds", "featureless", "pooled", "cls"}
            for name in right:
                np.testing.assert_allclose(left[name], right[name], atol=1e-5, rtol=0)


def actors(stage):
    """Process ids of the actors of a stage that work for this process, which is their raylet's parent."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            title = (folder / "cmdline").read_text()
            if f"MapBatches({stage})" in title and parent(parent(folder.name)) == os.getpid():
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_files_and_ledger_are_those_of_the_local_engine(cluster, clips, deadly, tmp_path, capsys):
    local, ours = tmp_path / "local", tmp_path / "ray"
    embed([clips, deadly], output_dir=local, **OPTIONS)
    options = f"--image-size 112 --fps {RATE} --keep pooled,cls --precision float32 --workers 2 --json".split()
    with pytest.raises(SystemExit) as end:
        main(["embed", str(clips), str(deadly), "--output-dir", str(ours), "--engine", "ray", *options])
    result = json.loads(capsys.readouterr().out)
    assert end.value.code == 3 and result["computed"] == 9
    assert result["engine"] == {"engine": "ray", "devices": ["cpu"], "decoders": 2, "encoders": 1}
    assert {"decode", "encode"} <= result["timings"].keys()
    given_up, failed = sorted(result["failed_videos"], key=lambda video: video["status"], reverse=True)
    assert given_up["status"] == "quarantined" and Path(given_up["video_path"]).name == DEADLY
    assert given_up["reason"] == "the process died of SIGKILL while it was read"
    assert failed["status"] == "failed" and Path(failed["video_path"]).name == "noise.mp4"
    assert_same(ours, local)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_killed_actors_cost_nothing(cluster, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("vsim_fast.batch.ray_engine.PACKED_BATCHES", 1)
    monkeypatch.setattr("vsim_fast.batch.run.PROGRESS_SECONDS", 0.0)
    killed = []

    class Killer:
        def batch(self, snapshot):
            if snapshot.frames and not killed:
                killed.extend([actors("Decode")[0], actors("Encode")[0]])
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

    local, ours = tmp_path / "local", tmp_path / "ray"
    embed([clips], output_dir=local, **OPTIONS)
    embed([clips], output_dir=ours, engine="ray", progress=Killer(), **OPTIONS)
    assert len(killed) == 2
    assert_same(ours, local)


@pytest.fixture(scope="module")
def engine():
    """An engine that knows its encoder and has no Ray."""
    pytest.importorskip("ray")
    from vsim_fast.batch.ray_engine import RayEngine
    from vsim_fast.batch.ray_stages import encoder_facts

    config = EngineConfig(
        "builtin", "float32", 112, False, Sampling(fps=RATE), ("patches", "pooled"), "auto", 1, timeout=60.0
    )
    engine = RayEngine(config, "cpu", None, Timings())
    engine._facts, engine.decoders, engine._round_videos = encoder_facts(config, "cpu"), 1, 8
    engine.encoder = engine._facts.description
    return engine


@pytest.fixture(scope="module")
def tables(engine, clips):
    """What the actors make of three videos, 12, 30 and 48 frames, and of a file that is none."""
    import pyarrow as pa

    from vsim_fast.batch.ray_stages import Decode, Encode

    pixels, features = engine._facts.pixels(), engine._facts.features(engine.config.keep)
    decode, encode = Decode(engine._reading(), 32, 60.0, pixels), Encode(engine.config, "cpu", pixels, features)
    rows = [pickle.dumps(task) for task in tasks_of(clips)]
    decoded = pa.concat_tables(decode(pa.table({"task": rows})))
    decode.tasks.put(None)
    decode.source.close()
    return [*encode(decoded.slice(0, 50)), *encode(decoded.slice(50))]


def tasks_of(clips):
    names = ("clip0", "clip1", "clip2", "noise")
    return [Task(n, name, str(clips / f"{name}.mp4")) for n, name in enumerate(names)]


def run(engine, clips, monkeypatch, rounds):
    """Results by number of the tasks when each round gives what `rounds` says, and the tasks of each round."""
    given = []

    def tables_of(tasks):
        given.append([task.number for task in tasks])
        for item in rounds[len(given) - 1]:
            if isinstance(item, Exception):
                raise item
            yield item

    monkeypatch.setattr(engine, "_tables", tables_of)
    queue = TaskQueue()
    for task in tasks_of(clips):
        queue.put(task)
    queue.close()
    results = [result for result in engine.run(queue) if result is not None]
    assert len(results) == len(dict(results))
    return dict(results), given


def test_rows_in_any_order_make_the_videos(engine, clips, tables, monkeypatch):
    found, given = run(engine, clips, monkeypatch, [list(reversed(tables))])
    assert given == [[0, 1, 2, 3]] and isinstance(found[3].error, OpenError)
    videos = {video.path: video for video in gather(engine, clips)}
    for number, name in enumerate(("clip0", "clip1", "clip2")):
        ours, theirs = found[number], videos[name]
        assert torch.equal(ours.features.pts_seconds, theirs.features.pts_seconds)
        torch.testing.assert_close(ours.features.patches, theirs.features.patches, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.pooled, theirs.pooled, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.embedding, theirs.embedding, atol=1e-5, rtol=0)


def gather(engine, clips):
    encoder = load_encoder("builtin", "cpu", "float32", 112)
    videos = gather_videos(tasks_of(clips), encoder, engine.config.sampling, engine.config.keep, isolate=False)
    return [item[1] for item in videos if item is not None]


def test_videos_with_rows_lost_or_doubled_go_into_the_next_round(engine, clips, tables, monkeypatch):
    def frames_of(number):
        return next(n for n, table in enumerate(tables) if table["video"][0].as_py() == number)

    lost, doubled = frames_of(1), frames_of(2)
    spoilt = [table for n, table in enumerate(tables) if n != lost]
    spoilt.insert(0, tables[doubled])
    found, given = run(engine, clips, monkeypatch, [spoilt, tables])
    assert given == [[0, 1, 2, 3], [1, 2]] and len(found) == 4
    assert len(found[1].featureless) == 30 and len(found[2].featureless) == 48
    found, _ = run(engine, clips, monkeypatch, [spoilt] * 3)
    assert all(found[n].worker_died and str(found[n].error).endswith("Ray lost frames of it 3 times") for n in (1, 2))


def test_work_that_ray_loses_is_done_again_three_times(engine, clips, tables, monkeypatch):
    from ray.exceptions import RayActorError

    found, given = run(engine, clips, monkeypatch, [[RayActorError()], [RayActorError()], tables])
    assert len(found) == 4 and len(given) == 3
    with pytest.raises(DeviceError, match="Ray failed 3 times, the last time with: The actor"):
        run(engine, clips, monkeypatch, [[RayActorError()]] * 3)


def test_what_ends_the_run_in_an_actor_is_raised_as_it_is(engine, clips, monkeypatch):
    from ray.exceptions import RayTaskError

    from vsim_fast.batch.ray_stages import Encode

    pixels, features = engine._facts.pixels(), engine._facts.features(engine.config.keep)
    encode = Encode(replace(engine.config, encoder="nonsense"), "cpu", pixels, features)
    rows = {"index": torch.arange(2), "pts_seconds": torch.zeros(2), "featureless": torch.zeros(2, dtype=torch.bool)}
    frames = pixels.of_frames(0, rows | {"pixels": torch.zeros(2, 3, 112, 112)})
    with pytest.raises(EncoderError, match=r"^encoder 'nonsense' is none of"):
        run(engine, clips, monkeypatch, [encode(frames)])
    with pytest.raises(RuntimeError, match="an actor of Ray failed"):
        run(engine, clips, monkeypatch, [[RayTaskError("encode", "traceback", KeyError("a mistake"))]])


def test_tensors_cross_as_bytes_whatever_their_type():
    pa = pytest.importorskip("pyarrow")
    from vsim_fast.batch.ray_stages import Table, runs_of_frames

    table = Table({"patches": (torch.bfloat16, (3, 5)), "cls": (torch.float16, (4,)), "pooled": (torch.float32, (2,))})
    patches, pooled = torch.randn(6, 3, 5).bfloat16(), torch.randn(6, 2)
    common = {"index": torch.arange(6), "pts_seconds": torch.rand(6).double(), "featureless": torch.arange(6) > 3}
    strided = patches.transpose(0, 1).contiguous().transpose(0, 1)
    whole = table.of_frames(7, common | {"patches": strided, "pooled": pooled})
    pieces = pa.concat_tables([table.of_event(7, "end"), whole.slice(0, 1), whole.slice(1, 4), whole.slice(5)])
    ((video, frames),) = runs_of_frames(pieces)
    back = table.rows(frames)
    assert video == 7 and back.keys() == {"index", "pts_seconds", "featureless", "patches", "pooled"}
    for name, x in (common | {"patches": patches, "pooled": pooled}).items():
        assert torch.equal(back[name], x) and back[name].dtype == x.dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "engine must be local or ray, got 'spark'"),
        ({"address": "auto"}, "address is that of a Ray cluster: use it with engine ray"),
        ({"engine": "ray", "decoder": "nvdec"}, "decoder must be auto or pyav, got 'nvdec'"),
        ({"engine": "ray", "device": "cuda:1"}, "device must be auto, cpu or cuda, got 'cuda:1'"),
    ],
)
def test_what_it_cannot_do_is_refused(clips, tmp_path, options, message):
    if options.get("engine") == "ray":
        pytest.importorskip("ray")
    with pytest.raises(UsageError, match=message):
        embed([clips], output_dir=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_without_ray_the_extra_is_named(clips, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "vsim_fast.batch.ray_engine", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"(ray|pyarrow) is missing: pip install 'vsim_fast\[ray\]'"):
        embed([clips], output_dir=tmp_path, engine="ray")
