"""How close a batch comes to its roofs, whether its memory stays flat, and how long a run with nothing to do takes.

    python bench/batch.py cut CLIPS FOLDER [--count 200]     short clips, cut from real ones
    python bench/batch.py roofs FOLDER [--model SPEC] [--rows bench/results]
    python bench/batch.py done FOLDER [--count 100000] [--rows bench/results]

roofs: all videos decoded and prepared without an encoder; as many frames encoded without a decoder; `encode_videos`;
`embed`, writing included: all in one run, with one encoder. done: a folder in which everything is done already.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from conftest import Recorder

from vsim_fast import load_encoder
from vsim_fast.batch import embed
from vsim_fast.batch.inspection import batch_status
from vsim_fast.feature_store import Done, Store, stamp
from vsim_fast.inputs import find_videos
from vsim_fast.pipeline import Timings, encode_videos
from vsim_fast.pipeline.encoding import encode_blocks
from vsim_fast.pipeline.frames import Block, InputFormat
from vsim_fast.pipeline.many import BLOCK_FRAMES, worker_count
from vsim_fast.pipeline.reading import ReadOptions, Task
from vsim_fast.pipeline.sources import DecodeProcesses, DecodeThreads
from vsim_fast.processor import usable_cores
from vsim_fast.video import Sampling

CLIP_SECONDS, LONGEST = 2.0, 720


def cut(clips: Path, folder: Path, count: int) -> None:
    """`count` clips of CLIP_SECONDS from the videos of `clips` in turn, H.264, at most LONGEST pixels high."""
    folder.mkdir(parents=True, exist_ok=True)
    running = {path: _pieces(path) for path in find_videos([clips]).files}
    made = 0
    while made < count and running:
        for path, pieces in list(running.items()):
            frames = next(pieces, None)
            if frames is None:
                del running[path]
            elif made < count:
                _write(folder / f"{made:04d}_{Path(path).stem}.mp4", frames)
                made += 1
    print(f"{made} clips in {folder}")


def _pieces(path: str) -> Iterator[list[av.VideoFrame]]:
    """Runs of frames, one after the other, of those that decode."""
    try:
        with av.open(path) as container:
            stream = container.streams.best("video")
            size = round(CLIP_SECONDS * float(stream.average_rate or 25))
            piece: list[av.VideoFrame] = []
            for frame in container.decode(stream):
                height = min(LONGEST, frame.height) // 2 * 2
                width = round(frame.width * height / frame.height) // 2 * 2
                piece.append(frame.reformat(width, height, "yuv420p"))
                if len(piece) == size:
                    yield piece
                    piece = []
    except av.FFmpegError:
        return


def _write(path: Path, frames: list[av.VideoFrame]) -> None:
    rate = Fraction(round(len(frames) / CLIP_SECONDS))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        for n, frame in enumerate(frames):
            frame.pts, frame.time_base = n, 1 / rate
            frame.pict_type = av.video.frame.PictureType.NONE
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def roofs(folder: Path, model: str, image_size: int, device: str, fps: float, rows: Path | None) -> None:
    encoder = load_encoder(model, device, image_size=image_size)
    paths, sampling = find_videos([folder]).files, Sampling(fps=fps, max_frames=100)
    recorder = Recorder(rows)
    list(encode_videos(paths[:8], encoder, sampling, keep=()))  # warm caches, threads and the encoder
    frames, decode = _decode_alone(paths, encoder, sampling)
    encode = _encode_alone(frames, encoder)
    timings, start = Timings(), time.perf_counter()
    for video in encode_videos(paths, encoder, sampling, keep=("pooled",), timings=timings):
        if video.error is not None:
            raise video.error
    both = time.perf_counter() - start
    with tempfile.TemporaryDirectory(prefix="vsim-bench-") as out, Memory() as memory:
        result = embed(
            paths, output_dir=out, encoder=model, image_size=image_size, fps=fps, device=device, progress=memory,
            precision=str(encoder.dtype).removeprefix("torch."),
        )  # fmt: skip
        total = result.timings["total"] - result.timings.get("load_encoder", 0.0)
    shape = f"{len(paths)} videos, {frames} frames, {encoder.preprocess.size[0]} px"
    print(f"{shape}, {model} on {encoder.device}, {usable_cores()} cores")
    slower = max(decode, encode)
    for name, seconds in (
        ("decode alone", decode), ("encode alone", encode), ("encode_videos", both), ("embed", total),
    ):  # fmt: skip
        print(f"  {name:14s} {seconds:7.2f} s  {frames / seconds:7.1f} frames/s  {slower / seconds:6.1%} of the slower")
        if rows:
            ours = name in ("encode_videos", "embed")
            recorder.add(
                [seconds], op="batch of videos", provider=f"vsim_fast:{name}" if ours else name,
                dtype=str(encoder.dtype).removeprefix("torch."), shape=f"{shape}, {model}", baseline="slower roof",
                rate=frames / seconds, unit="frames/s", of_ceiling=slower / seconds,
                peak_mib=memory.peak if name == "embed" else None, note=f"device {encoder.device}",
                stages=timings.seconds() if name == "encode_videos" else {},
                quality=memory.growth if name == "embed" else {},
            )  # fmt: skip
    print(f"  one after the other {decode + encode:.2f} s; memory {memory.growth}")


def _decode_alone(paths: list[str], encoder, sampling: Sampling) -> tuple[int, float]:
    form = InputFormat(encoder.preprocess, encoder.dtype, encoder.device)
    workers = worker_count(encoder, "auto")
    options = ReadOptions(
        sampling, form, block_frames=min(encoder.batch_size, BLOCK_FRAMES), threads=max(1, usable_cores() // workers)
    )
    kind = DecodeThreads if encoder.device.type == "cuda" else DecodeProcesses
    start, frames = time.perf_counter(), 0
    tasks = (Task(n, path, path) for n, path in enumerate(paths))
    source = kind(tasks, options, workers=workers, queue_frames=2 * encoder.batch_size, timeout=120.0)
    for event in source.events(0.02):
        if isinstance(event, Block):
            frames += len(event)
            event.release()
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    source.close()
    return frames, seconds


def _encode_alone(frames: int, encoder) -> float:
    """As the pipeline encodes, with pixels at hand."""
    pixels = torch.randn(BLOCK_FRAMES, 3, *encoder.preprocess.size).to(encoder.device, encoder.dtype)
    rows = torch.arange(BLOCK_FRAMES)

    def blocks(count: int) -> Iterator[Block]:
        for start in range(0, count, BLOCK_FRAMES):
            part = rows[: count - start]
            yield Block(0, "", pixels[: len(part)], part.double(), part, part < 0)

    for _ in encode_blocks(blocks(4 * encoder.batch_size), encoder, Timings(), pack=True):
        pass
    start = time.perf_counter()
    for _ in encode_blocks(blocks(frames), encoder, Timings(), pack=True):
        pass
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Memory:
    """Resident memory of this process and all below it while a batch runs, MiB."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []
        self.done, self._stop = 0, threading.Event()

    def batch(self, snapshot) -> None:
        self.done = snapshot.done

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.4):  # reading it takes the system a while
            self.seen.append((self.done, sum(_resident(pid) for pid in _family(os.getpid()))))

    @property
    def peak(self) -> float:
        return max(mib for _, mib in self.seen)

    @property
    def growth(self) -> dict[str, float]:
        """Largest until 20 videos were done (but not before the first), and largest after."""
        early = [mib for done, mib in self.seen if 0 < done <= 20]
        late = [mib for done, mib in self.seen if done > 20]
        return {"mib_to_video_20": max(early, default=0.0), "mib_after": max(late, default=0.0)}


def _family(root: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    family = [root]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return family


def _resident(pid: int) -> float:
    """Proportional share: what several processes map counts once."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def done(folder: Path, count: int, rows: Path | None) -> None:
    videos, out = folder / "videos", folder / "out"
    if not videos.exists():
        _make_done(videos, out, count)
    start = time.perf_counter()
    status = batch_status(out)
    seconds = {"status": time.perf_counter() - start}
    start = time.perf_counter()
    result = embed([videos], output_dir=out, **DONE)
    seconds["embed"] = time.perf_counter() - start
    assert result.skipped == status["files"] == count, (result.skipped, status["files"])
    recorder = Recorder(rows)
    for name, value in seconds.items():
        print(f"{name} of {count} videos that are done: {value:.2f} s")
        if rows:
            recorder.add(
                [value], op="nothing to do", provider=f"vsim_fast:{name}", dtype="-", shape=f"{count} videos",
                baseline="",
            )  # fmt: skip


DONE = dict(encoder="builtin", image_size=56, device="cpu", precision="float32", save_format="numpy")


def _make_done(videos: Path, out: Path, count: int) -> None:
    """One video embedded, then `count` files that the store takes for others with the same features."""
    videos.mkdir(parents=True)
    first = videos / "000000.mp4"
    _write(first, [av.VideoFrame.from_ndarray(np.full((64, 64, 3), n * 3, np.uint8)) for n in range(24)])
    embed([first], output_dir=out, **DONE)
    with Store(out / "store", write=True) as store:
        (video,) = store.videos()
        (state,) = store.states([str(first)], [video.key])
        tensors, rows = {name: np.array(x) for name, x in store.features(video.key).items()}, []
        paths = [first.with_name(f"{n:06d}.mp4") for n in range(1, count)]
        names = store.names(paths, [path.stem for path in paths])
        (size, digest), *_ = state.outputs.values()
        for n, (path, name) in enumerate(zip(paths, names, strict=True), 1):
            path.write_bytes(b"video")
            key = f"{n:032x}-{n}"
            store.note_key(path, key, stamp(path))
            shutil.copyfile(out / "000000_embedding.npy", out / f"{name}_embedding.npy")
            file = store.write_features(key, tensors, video.facts)
            rows.append(Done(key, str(path), video.facts, file, {f"{name}_embedding.npy": (size, digest)}))
        store.record(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("cut")
    sub.add_argument("clips", type=Path)
    sub.add_argument("folder", type=Path)
    sub.add_argument("--count", type=int, default=200)
    sub = commands.add_parser("roofs")
    sub.add_argument("folder", type=Path)
    sub.add_argument("--model", default="builtin")
    sub.add_argument("--image-size", type=int, default=224)
    sub.add_argument("--device", default="auto")
    sub.add_argument("--fps", type=float, default=4.0)
    sub.add_argument("--rows", type=Path)
    sub = commands.add_parser("done")
    sub.add_argument("folder", type=Path)
    sub.add_argument("--count", type=int, default=100_000)
    sub.add_argument("--rows", type=Path)
    given = parser.parse_args()
    if given.command == "cut":
        cut(given.clips, given.folder, given.count)
    elif given.command == "roofs":
        roofs(given.folder, given.model, given.image_size, given.device, given.fps, given.rows)
    else:
        done(given.folder, given.count, given.rows)


if __name__ == "__main__":
    main()
