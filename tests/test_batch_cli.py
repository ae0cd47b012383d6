"""The commands around a store: embed, status, verify, search, export; and what they take for a video."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
from copy_clips import scene, write
from PIL import Image

from vsim_fast.batch import embed
from vsim_fast.cli import main

QUICK = dict(encoder="builtin", image_size=56, fps=4.0, device="cpu", precision="float32", isolate=False)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for n in range(4):
        write(folder / f"clip{n}.mp4", scene(seed=n, frames=24))
    write(folder / "brighter.mp4", [np.minimum(frame + 8, 255).astype(np.uint8) for frame in scene(seed=2, frames=24)])
    return folder


@pytest.fixture(scope="module")
def store(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("store")
    embed([videos], output_dir=out, **QUICK)
    return out


def test_embed_in_the_original_spelling(capsys, videos, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    arguments = ["embed", tmp_path / "bad", "--video_dir", videos, "--output_dir", out, "--save_format", "numpy"]
    options = ["--summary", "--consolidated", "--device", "cpu", "--image_size", "56", "--max_frames", "4"]
    code, stdout, stderr = run(capsys, *arguments, *options, "--json", "--progress", "json")
    found = json.loads(stdout)
    assert code == 3 and found["status"] == "partial" and (found["processed"], found["failed"]) == (5, 1)
    lines = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    assert (
        lines and lines[-1]["total"] == 6 and {"videos_per_second", "decoders_busy", "encoder_busy"} <= lines[-1].keys()
    )
    assert not list(out.glob("*_embedding.json")) and len(list(out.glob("*_embedding.npy"))) == 5
    code, stdout, stderr = run(capsys, *arguments, *options)
    assert code == 3 and "5 of 6 videos have their embedding (0 new, 0 frames), 1 failed" in " ".join(stdout.split())
    assert "not read: " in stderr and "(an earlier run; --retry-failed tries again)" in stderr


def test_embed_nothing_and_wrong_usage(capsys, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    code, stdout, _ = run(capsys, "embed", tmp_path / "broken.mp4", "--output-dir", tmp_path / "out", "--json")
    assert code == 4 and json.loads(stdout)["status"] == "nothing"
    for arguments, message in (
        (["embed"], "give folders or files"),
        (["embed", tmp_path, "--shard", "3/2"], "--shard must be I/N with 1 <= I <= N, got '3/2'"),
        (["embed", tmp_path, "--keep", "tokens"], "keep must be of patches, cls, attention, pooled"),
        (["embed", tmp_path / "nowhere"], "no such file or folder"),
        (["embed", tmp_path, "--cache-gb", "nan"], "--cache-gb must be above 0, got nan"),
        (["status", tmp_path], "there is no"),
        (["search", "--store", tmp_path], "give one query"),
        (["export", tmp_path, tmp_path / "x.csv"], "TO must end in one of .parquet, .npz, .lance"),
    ):
        code, _, stderr = run(capsys, *arguments)
        assert code == 1 and stderr.startswith("error: ") and message in stderr and stderr.count("\n") == 1, stderr


def test_status_and_verify(capsys, videos, store, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(store, out)
    code, stdout, _ = run(capsys, "status", out)
    assert code == 0 and "5 files done" in stdout and "last run: complete, 5 new videos" in stdout
    code, stdout, _ = run(capsys, "status", out, "--json")
    assert json.loads(stdout)["files"] == 5
    code, stdout, _ = run(capsys, "verify", out)
    assert code == 0 and "0 damaged or missing" in stdout
    (out / "clip1_embedding.npy").write_bytes(b"other")
    code, stdout, _ = run(capsys, "verify", out, "--json")
    assert code == 3 and [problem["file"] for problem in json.loads(stdout)["problems"]] == ["clip1_embedding.npy"]


def test_search_and_export(capsys, videos, store, tmp_path):
    code, stdout, _ = run(capsys, "search", videos / "clip2.mp4", "--store", store, "--top", "2", "--json")
    hits = json.loads(stdout)["hits"]
    assert code == 0 and [hit["name"] for hit in hits] == ["clip2", "brighter"] and hits[0]["score"] > 0.999
    picture = tmp_path / "query.png"
    Image.fromarray(scene(seed=3, frames=24)[12]).save(picture)
    code, stdout, _ = run(capsys, "search", "--like", picture, "--store", store, "--output", tmp_path / "hits.json")
    first = json.loads((tmp_path / "hits.json").read_text())["hits"][0]
    assert code == 0 and "clip3.mp4" in stdout and first["name"] == "clip3" and abs(first["pts_seconds"] - 1) < 0.3
    pairs = tmp_path / "pairs.csv"
    code, stdout, _ = run(capsys, "search", "--near-duplicates", "0.99", "--store", store, "--output", pairs)
    header, *rows = pairs.read_text().splitlines()
    assert code == 0 and header == "query_id,ref_id,score" and len(rows) == 1 and "brighter" in rows[0]
    code, stdout, _ = run(capsys, "export", store, tmp_path / "vectors.npz", "--json")
    assert (
        code == 0
        and json.loads(stdout)["frames"] == 40
        and np.load(tmp_path / "vectors.npz")["features"].shape == (40, 384)
    )


@pytest.mark.parametrize("times", [1, 2], ids=["drains", "ends at once"])
def test_interrupts(videos, tmp_path, times):
    out = tmp_path / "out"
    script = (  # the signal comes when the first video is being read
        "import signal, sys, vsim_fast.batch.run as r\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits that it is ignored
        "take = r.Run._begin\n"
        "def begin(self, job):\n"
        f"    take(self, job)\n    for _ in range({times} if not self.stop.is_set() else 0): signal.raise_signal(2)\n"
        "r.Run._begin = begin\n"
        "from vsim_fast.cli import main; main(sys.argv[1:])"
    )
    arguments = [
        "embed",
        videos,
        "--image-size",
        "56",
        "--device",
        "cpu",
        "--workers",
        "1",
        "--output-dir",
        out,
        "--json",
    ]
    ended = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert ended.returncode == 130, ended.stderr
    assert "finishing what has begun; interrupt again to end at once" in ended.stderr
    told = json.loads(ended.stdout)
    assert told["status"] == "interrupted" if times == 1 else told["error"]["type"] == "Interrupted"
    done = len(list(out.glob("*_embedding.npy")))
    assert 0 < done < 5 if times == 1 else done == 0
    assert embed([videos], output_dir=out, **{**QUICK, "fps": 1.0, "precision": "auto"}).processed == 5


def test_patterns_and_folders_of_images(videos, tmp_path):
    frames = tmp_path / "in" / "frames.v1"
    frames.mkdir(parents=True)
    for n, picture in enumerate(scene(seed=8, frames=6)):
        Image.fromarray(picture).save(frames / f"{n:03d}.png")
    out = tmp_path / "out"
    options = dict(include=["clip*"], exclude=["*3.mp4"], images=True, output_dir=out, **QUICK)
    result = embed([videos, frames.parent], **{**options, "include": ["clip*", "frames*"]})
    assert sorted(video["name"] for video in result.results) == ["clip0", "clip1", "clip2", "frames.v1"]
    assert embed([videos, frames.parent], **{**options, "include": ["clip*", "frames*"]}).skipped == 4
    Image.fromarray(scene(seed=9, frames=1)[0]).save(frames / "003.png")
    assert embed([videos, frames.parent], **{**options, "include": ["clip*", "frames*"]}).computed == 1


@pytest.fixture
def server(videos):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(videos))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_urls(store, server, tmp_path):
    urls = [f"{server}/clip0.mp4", f"{server}/clip1.mp4", f"{server}/missing.mp4"]
    out = tmp_path / "out"
    result = embed(urls, output_dir=out, allow_private=True, **QUICK)
    assert (result.status, result.computed, result.failed) == ("partial", 2, 1)
    assert (np.load(out / "clip0_embedding.npy") == np.load(store / "clip0_embedding.npy")).all()
    assert not (out / "cache").exists()
    again = embed(urls[:2], output_dir=out, allow_private=True, **QUICK)
    assert (again.status, again.skipped, again.computed) == ("complete", 2, 0)
    private = embed(urls[:1], output_dir=tmp_path / "other", **QUICK)
    assert private.status == "nothing" and "127.0.0.1" in private.failed_videos[0]["reason"]
