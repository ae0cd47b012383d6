"""Engine ray: the same files as the local engine makes, whatever dies in mid-run."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from copy_clips import RATE, scene, write
from deadly_frames import DEADLY, DeadlyPreprocess

from vsim_fast.batch import embed
from vsim_fast.cli import main
from vsim_fast.errors import UsageError
from vsim_fast.feature_store import Store
from vsim_fast.pipeline.frames import InputFormat

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")  # Ray Data sets its own old options
OPTIONS = dict(image_size=112, fps=float(RATE), keep=("pooled", "cls"), precision="float32")
BROKEN = ("empty.mp4", "noise.mp4")


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
    """Nine clips of three lengths, two files that are no videos."""
    folder = tmp_path_factory.mktemp("clips")
    for n in range(9):
        write(folder / f"clip{n}.mp4", scene(n, (12, 30, 48)[n % 3]))
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(b"no video" * 100)
    return folder


@pytest.fixture(scope="module")
def local(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    embed([clips], output_dir=folder, **OPTIONS)
    return folder


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


def test_files_and_ledger_are_those_of_the_local_engine(cluster, clips, local, tmp_path, capsys):
    options = f"--image-size 112 --fps {RATE} --keep pooled,cls --precision float32 --workers 2 --json".split()
    with pytest.raises(SystemExit) as end:
        main(["embed", str(clips), "--output-dir", str(tmp_path), "--engine", "ray", *options])
    result = json.loads(capsys.readouterr().out)
    assert end.value.code == 3 and result["computed"] == 9
    assert result["engine"] == {"engine": "ray", "devices": ["cpu"], "decoders": 2, "encoders": 1}
    assert sorted(Path(video["video_path"]).name for video in result["failed_videos"]) == list(BROKEN)
    assert {"decode", "encode"} <= result["timings"].keys()
    assert_same(tmp_path, local)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_killed_actors_cost_nothing(cluster, clips, local, tmp_path, monkeypatch):
    monkeypatch.setattr("vsim_fast.batch.ray_engine.PACKED_BATCHES", 1)
    monkeypatch.setattr("vsim_fast.batch.run.PROGRESS_SECONDS", 0.0)
    killed = []

    class Killer:
        def batch(self, snapshot):
            if snapshot.frames and not killed:
                killed.extend([actors("Decode")[0], actors("Encode")[0]])
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

    embed([clips], output_dir=tmp_path, engine="ray", progress=Killer(), **OPTIONS)
    assert len(killed) == 2
    assert_same(tmp_path, local)


def test_a_file_that_kills_its_decoder_twice_is_given_up(cluster, clips, local, tmp_path, monkeypatch):
    def deadly(preprocess, dtype, device):
        return InputFormat(DeadlyPreprocess(**asdict(preprocess)), dtype, device)

    monkeypatch.setattr("vsim_fast.batch.ray_engine.InputFormat", deadly)
    write(tmp_path / DEADLY, scene(99, 12))
    chosen = sorted(clips.glob("clip*"))[:4]
    result = embed([*chosen, tmp_path / DEADLY], output_dir=tmp_path / "out", engine="ray", **OPTIONS)
    assert result.computed == 4
    (failed,) = result.failed_videos
    assert failed["status"] == "quarantined" and failed["reason"] == "the process died of SIGKILL while it was read"


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
    with pytest.raises(UsageError, match=r"ray is missing: pip install 'vsim_fast\[ray\]'"):
        embed([clips], output_dir=tmp_path, engine="ray")
