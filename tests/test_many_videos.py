"""Many videos through one encoder: the same features as one by one, errors as values, dead and hanging readers."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time

import pytest
import torch
from compare import assert_matches_reference
from copy_clips import scene, write

from vsim_fast.encode import load_encoder
from vsim_fast.encode.base import Tokens
from vsim_fast.errors import ChangedVideo, DoesNotFit, EncoderError, OpenError, UsageError, WorkerDied
from vsim_fast.pipeline import encode_video, encode_videos, fork_server, sources
from vsim_fast.pipeline.decode_worker import Waiting, Worker
from vsim_fast.pipeline.frames import InputFormat
from vsim_fast.pipeline.reading import Failed, Opened, ReadOptions, Task, read_video
from vsim_fast.video import Sampling, open_video

SAMPLING = Sampling(fps=4.0)
BOTH = pytest.mark.parametrize("isolate", [True, False], ids=["processes", "threads"])


@pytest.fixture(scope="module")
def encoder():
    encoder = load_encoder("builtin", device="cpu", precision="float32", image_size=112)
    encoder.batch_size = 8
    return encoder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six clips of three lengths, more than a batch and less."""
    folder = tmp_path_factory.mktemp("clips")
    for n in range(6):
        write(folder / f"clip{n}.mp4", scene(seed=n, frames=(12, 24, 42)[n % 3]))
    return sorted(map(str, folder.iterdir()))


def one_by_one(path, encoder):
    with open_video(path, SAMPLING, batch_size=encoder.batch_size) as reader:
        batches = list(encode_video(reader, encoder))
    patches, cls, attention, times = (
        torch.cat([getattr(batch.features, name) for batch in batches])
        for name in ("patches", "cls", "attention", "pts_seconds")
    )
    return patches, cls, attention, times, torch.cat([batch.featureless for batch in batches])


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("vsim-")]


def run(paths, encoder, **options):
    return {video.path: video for video in encode_videos(paths, encoder, SAMPLING, **options)}


@BOTH
def test_features_are_those_of_one_video_at_a_time(clips, encoder, isolate):
    found = run(clips, encoder, isolate=isolate, workers=3, keep=("patches", "cls", "attention", "pooled"))
    assert sorted(found) == clips
    for path, video in found.items():
        patches, cls, attention, times, featureless = one_by_one(path, encoder)
        features = video.features
        torch.testing.assert_close(features.patches, patches, atol=1e-5, rtol=0)
        torch.testing.assert_close(features.cls, cls, atol=1e-5, rtol=0)
        torch.testing.assert_close(features.attention, attention, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(video.pooled, patches.mean(1), atol=1e-5, rtol=0)
        assert torch.equal(features.pts_seconds, times) and torch.equal(video.featureless, featureless)
        mean = torch.nn.functional.normalize(cls, dim=1)[~featureless].mean(0)
        torch.testing.assert_close(video.embedding, mean / mean.norm(), atol=1e-5, rtol=0)
        assert video.report.delivered == len(times) and video.info.path == path and video.error is None
    assert not readers()


def test_batches_are_filled_across_videos(clips, encoder, monkeypatch):
    sizes, forward = [], encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda pixels: sizes.append(len(pixels)) or forward(pixels))
    monkeypatch.setattr("vsim_fast.pipeline.many.IDLE_SECONDS", 60.0)
    monkeypatch.setattr(sources, "LONG_IDLE_SECONDS", 60.0)
    run(clips, encoder, isolate=False, workers=2, keep=())
    full = sum(sizes) // encoder.batch_size  # the last frames are shared by the lanes
    assert full > 4 and sizes.count(encoder.batch_size) >= full and len(sizes) <= full + torch.get_num_threads()


def test_only_what_is_to_be_kept_is_kept(clips, encoder):
    video = run(clips[:1], encoder, isolate=False, keep=("pooled",))[clips[0]]
    assert video.features.patches is None and video.features.cls is None and video.features.attention is None
    assert video.pooled.shape == (len(video.featureless), encoder.dim)
    with pytest.raises(UsageError, match="keep must be of patches, cls, attention, pooled, got 'tokens'"):
        run(clips, encoder, keep=("tokens",))


@BOTH
def test_errors_are_values(clips, encoder, isolate, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    missing = str(tmp_path / "missing.mp4")
    found = run([str(broken), clips[0], missing, clips[1]], encoder, isolate=isolate, keep=())
    assert isinstance(found[str(broken)].error, OpenError) and isinstance(found[missing].error, OpenError)
    assert not found[missing].worker_died and found[clips[0]].error is None and found[clips[1]].error is None


def test_no_videos_is_no_error(encoder):
    assert run([], encoder) == {}


def on_opened(monkeypatch, path, act):
    """Calls `act(pid)` whenever a decode process says that it has opened `path`."""
    take_in = sources.DecodeProcesses._take_in

    def watched(self, worker, message):
        if isinstance(message, Opened) and worker.tasks[0].path == path:
            act(worker.pid)
        take_in(self, worker, message)

    monkeypatch.setattr(sources.DecodeProcesses, "_take_in", watched)


def test_a_dead_process_costs_one_video(clips, encoder, monkeypatch):
    on_opened(monkeypatch, clips[2], lambda pid: os.kill(pid, signal.SIGKILL))
    found = run(clips, encoder, workers=2, keep=())
    died = found.pop(clips[2])
    assert isinstance(died.error, WorkerDied) and died.worker_died
    assert "the process died of SIGKILL while it was read" in str(died.error)
    assert len(found) == 5 and not any(video.error for video in found.values())


def test_a_hanging_process_is_ended(clips, encoder, monkeypatch):
    on_opened(monkeypatch, clips[5], lambda pid: os.kill(pid, signal.SIGSTOP))
    found = run(clips, encoder, workers=1, timeout=1.0, keep=())
    died = found.pop(clips[5])
    assert died.worker_died and "no progress for 1 s while it was read" in str(died.error)
    assert len(found) == 5 and not any(video.error for video in found.values())


def test_who_waits_for_memory_does_not_hang():
    """Whatever else it says, until something comes back that it has not seen yet."""
    ours, theirs = multiprocessing.Pipe()
    source, worker = object.__new__(sources.DecodeProcesses), fork_server.Worker(0, ours, torch.empty(0))
    for message, waits in ((Waiting(0), True), ("alive", True), (None, False), (Waiting(0), False), (Waiting(1), True)):
        if message is None:
            worker.give_back()
        else:
            source._take_in(worker, message)
        assert worker.waiting == waits
    theirs.close()
    ours.close()


def test_silence_while_this_process_was_stopped_means_nothing(monkeypatch):
    ours, theirs = multiprocessing.Pipe()
    source, worker, ended = object.__new__(sources.DecodeProcesses), fork_server.Worker(7, ours, torch.empty(0)), []
    monkeypatch.setattr(os, "kill", lambda pid, _: ended.append(pid))
    worker.tasks.append(Task(0, "clip", "clip"))
    source.workers, source._timeout = [worker], 9.0
    for looked, expected in ((10, []), (0, []), (1, [7])):
        if looked:
            worker._last -= 10
        source._looked = time.monotonic() - looked
        source._watch()
        assert ended == expected
    theirs.close()
    ours.close()


def test_modules_of_the_working_directory_are_not_imported(clips, encoder, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert run(clips[:1], encoder, workers=1, keep=())[clips[0]].error is None


def test_a_hanging_thread_is_left_behind(clips, encoder, monkeypatch):
    released = threading.Event()

    def hanging(task, options):
        if task.path == clips[1]:
            released.wait(60)
        yield from read_video(task, options)

    monkeypatch.setattr(sources, "read_video", hanging)
    found = run(clips, encoder, isolate=False, workers=1, timeout=0.3, keep=())
    released.set()
    assert found[clips[1]].worker_died and "no progress for 0.3 s" in str(found[clips[1]].error)
    assert sum(video.error is None for video in found.values()) == 5


def test_nan_costs_the_video_whose_frames_they_are(clips, encoder, monkeypatch):
    marked, forward = {}, encoder.forward
    exact = one_by_one(clips[1], encoder)[0]

    def spoilt(pixels):
        tokens = forward(pixels)
        wrong = torch.tensor([(patches - exact).flatten(1).abs().amax(1).min() < 1e-4 for patches in tokens.patches])
        marked[len(marked)] = wrong.any()
        return Tokens(torch.where(wrong[:, None, None], torch.nan, tokens.patches), tokens.cls, tokens.attention)

    monkeypatch.setattr(encoder, "forward", spoilt)
    found = run(clips[:3], encoder, isolate=False, keep=())
    assert any(marked.values())
    assert isinstance(found[clips[1]].error, EncoderError) and "clip1.mp4: builtin" in str(found[clips[1]].error)
    assert found[clips[0]].error is None and found[clips[2]].error is None


def test_what_does_not_fit_is_refused(clips, encoder):
    room = 2 * 6 * 64 * encoder.dim * 4  # two videos of six frames
    found = run(clips[:2], encoder, isolate=False, workers=1, memory_bytes=room, keep=("patches",))
    assert found[clips[0]].error is None
    assert isinstance(found[clips[1]].error, DoesNotFit) and "8 frames would be taken" in str(found[clips[1]].error)


@BOTH
def test_a_caller_that_stops_early_leaves_nothing(clips, encoder, isolate):
    videos = encode_videos(clips * 5, encoder, SAMPLING, isolate=isolate, workers=2, keep=())
    next(videos)
    assert readers()
    videos.close()
    assert not readers()


def test_an_error_of_the_paths_is_raised(clips, encoder):
    def paths():
        yield clips[0]
        raise RuntimeError("the list broke")

    with pytest.raises(RuntimeError, match="the list broke"):
        run(paths(), encoder, workers=1)
    assert not readers()


def test_a_file_that_changes_while_it_is_read_fails(clips, encoder):
    form = InputFormat(encoder.preprocess, torch.float32, torch.device("cpu"))
    events = read_video(Task(0, clips[0], clips[0]), ReadOptions(SAMPLING, form))
    assert isinstance(next(events), Opened)
    os.utime(clips[0], (1, 1))
    *_, last = events
    assert isinstance(last, Failed) and isinstance(last.error, ChangedVideo)


def test_places_in_the_ring_never_overlap():
    """The worker's bookkeeping against a plain model: which frames of the ring are lent."""
    choose = random.Random(0)
    for frames in (2, 5, 16, 33):
        worker = Worker(None, torch.zeros(frames), None)
        lent = []
        for _ in range(3000):
            count = choose.randint(1, max(1, frames // 2))
            start = worker._free(count)
            used = {frame for block in lent for frame in block}
            if start is not None and choose.random() < 0.6:
                block = range(start, start + count)
                assert block.stop <= frames and not used & set(block)
                worker.lent.append((block.start, block.stop))
                lent.append(block)
            elif lent:
                worker.lent.popleft()
                lent.pop(0)
            assert lent or worker._free(max(1, frames // 2)) is not None


@pytest.mark.needs_cuda
@pytest.mark.parametrize("decoder", ["pyav", pytest.param("nvdec", marks=pytest.mark.needs_nvdec)])
def test_cuda_features_equal_the_cpu(clips, encoder, decoder):
    there = load_encoder("builtin", device="cuda", precision="float32", image_size=112)
    found = run(clips, there, decoder=decoder)
    for path, video in found.items():
        patches, _, _, times, _ = one_by_one(path, encoder)
        assert video.error is None and video.report.backend == decoder and video.features.patches.is_cuda
        assert torch.equal(video.features.pts_seconds, times)
        cosines = torch.nn.functional.cosine_similarity(video.features.patches.cpu().double(), patches.double(), dim=-1)
        assert_matches_reference(cosines, torch.ones_like(cosines), dtype=torch.float32, atol=2e-2)
