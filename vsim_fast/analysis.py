"""`vsim analyze`: a video file to every patch similarity, streamed to disk while later frames are being encoded."""

from __future__ import annotations

import os
import resource
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel

from vsim_fast import __version__
from vsim_fast.encode import load_encoder
from vsim_fast.encode.base import Encoder
from vsim_fast.errors import CorruptVideo, UsageError
from vsim_fast.ops import intra_frame_similarity, position_similarity
from vsim_fast.pipeline import EncodedFrames, Timings, encode_video
from vsim_fast.records import VideoInfo
from vsim_fast.report import HeatmapWriter, ReportData, thumbnail, write_report, write_statistics
from vsim_fast.similarity import MatrixStats, PatchStack, Reduce, Stats, matrices, mean_over_time
from vsim_fast.store import ArrayWriter, OutputFolder, earlier_outputs, output_errors
from vsim_fast.video import DecodeReport, Sampling, open_video, plan, probe

SHOWN_FRAMES = 24
"""Most frames that the page shows and explores."""
INTRA_PICTURES = 5
THUMBNAIL_SIDE = 320
"""Pixels of the longer side."""
BLOCK_BYTES = 64 << 20
"""Most bytes of similarity matrices computed and handed to the disk at once."""
PENDING_WRITES = 2


class Progress(Protocol):
    """Told what is going on."""

    def plan(self, frames: int, array_bytes: int) -> None:
        """How many frames will be taken and how large the arrays will be."""

    def advance(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` "frames" or "positions"."""


class AnalysisSummary(BaseModel):
    """What `summary.json` holds."""

    schema_version: int = 1
    vsim_fast: str = __version__
    status: Literal["complete", "partial"]
    """partial: frames that were planned could not be decoded; see `decoder`."""
    video: dict[str, Any]
    settings: dict[str, Any]
    encoder: dict[str, Any]
    decoder: dict[str, Any]
    frames: int
    patches: int
    grid: tuple[int, int]
    pts_seconds: list[float]
    featureless_frames: list[int]
    """Frames that are black or without texture: they match everything."""
    statistics: dict[str, dict[str, Any]]
    output_dir: str
    notes: list[str]
    report: dict[str, Any] = {}
    """Size of the page and the stated error of its patch explorer."""
    outputs: dict[str, int] = {}
    """File name -> bytes."""
    timings: dict[str, float] = {}
    """Busy seconds per stage (stages overlap), and `total`, the wall time."""
    memory: dict[str, Any] = {}


def analyze(
    video: str | Path,
    encoder: str | Encoder = "builtin",
    *,
    output_dir: str | Path = "patch_analysis_results",
    fps: float = 1.0,
    max_frames: int = 100,
    image_size: int | None = 448,
    patch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    execution: str = "eager",
    decoder: Literal["auto", "pyav", "nvdec"] = "auto",
    visualize_positions: int = 10,
    reduce: Reduce | None = None,
    topk: int = 8,
    dtype: Literal["float32", "float16"] = "float32",
    compress: bool = False,
    image_fps: float | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    timings: Timings | None = None,
    started: float | None = None,
) -> AnalysisSummary:
    """Position, frame and intra-frame cosine similarity of a video's patches, written to `output_dir`.

    Args:
        video: file, or folder of images (their rate is `image_fps`).
        encoder: spec, or an encoder made by `load_encoder` (`image_size`, `device`, `precision`, `execution` are then
            its own).
        fps, max_frames: frames on a grid of 1/fps seconds; if more than `max_frames`, evenly spaced ones of them.
        image_size: side in pixels of the encoder's input, a multiple of its patch; None takes the model's own.
        patch_size: None, or what the encoder's patch side is expected to be.
        visualize_positions: how many positions get a heat map.
        reduce: None writes whole matrices; "stats" one mean, std, min and max per matrix; "topk" the `topk` best
            matches of each row. Reduced matrices are never stored, so no file is large.
        dtype, compress: of the arrays written.
        progress: called as work is done.  timings, started: account for what the caller did before.
    Returns:
        The summary, also written as `summary.json`.
    Raises:
        UsageError, DeviceError, EncoderError, OpenError, NoVideoStream, UnsupportedVideo, CorruptVideo, OutputError.
    Memory: the patches of all frames (as float16 beyond 0.5 GB, in a temporary file beyond 1.25 GB) and a few blocks.
    """
    started = time.perf_counter() if started is None else started
    timings = timings or Timings()
    _check_arguments(visualize_positions, reduce, topk, dtype)
    sampling = Sampling(fps=fps, max_frames=max_frames)
    with timings.stage("probe"):
        info = probe(video, image_fps=image_fps)
        planned = len(plan(info, sampling))
    if isinstance(encoder, str):
        with timings.stage("load_encoder"):
            encoder = load_encoder(
                encoder, device=device, precision=precision, execution=execution, image_size=image_size,
                offline=offline,
            )  # fmt: skip
    if patch_size is not None and patch_size != encoder.patch_size:
        raise UsageError(f"patch size must be that of {encoder.spec}, {encoder.patch_size}, got {patch_size}")
    patches = encoder.grid[0] * encoder.grid[1]
    resident = _resident_mib()

    array_bytes = planned_bytes(planned, patches, reduce=reduce, topk=topk, dtype=dtype)
    settings = {
        "fps": fps, "max_frames": max_frames, "image_size": list(encoder.preprocess.size),
        "visualize_positions": visualize_positions, "reduce": reduce, "topk": topk if reduce == "topk" else None,
        "dtype": dtype, "compress": compress,
    }  # fmt: skip
    if progress:
        progress.plan(planned, array_bytes)
    with OutputFolder(Path(output_dir)) as out, _Pictures(out, encoder, planned, timings) as pictures:
        out.require_space(array_bytes)
        out.replaces(earlier_outputs(out.path / "summary.json", "*"))
        collect = _Collector(out, info, encoder, planned, reduce, topk, dtype, compress, timings)
        source = dict(decoder=decoder, device=encoder.device, batch_size=encoder.batch_size, image_fps=image_fps)
        with collect, open_video(video, sampling, **source) as reader:
            with closing(encode_video(reader, encoder, timings)) as batches:
                for batch in batches:
                    collect.add(batch)
                    if progress:
                        progress.advance("frames", len(collect.stack), planned)
            if not len(collect.stack):
                raise CorruptVideo(info.path, f"none of the {planned} planned frames decodes")
            frame_similarity = collect.frame_similarity()
            drawn = pictures.start(collect.stack, collect.pts_seconds, frame_similarity, visualize_positions)
            over_time = collect.positions(progress)
        statistics = collect.statistics()
        write_statistics(out.file("statistics.txt"), statistics)
        summary = _summarise(info, settings, encoder, collect, statistics, reader.report, _printable(out.path))
        with timings.stage("report"):
            page = _report_data(summary, statistics, collect, frame_similarity, over_time)
            summary.report = write_report(out.file("report.html"), page)
        drawn.result()
        summary.outputs = {name: (out.partial / name).stat().st_size for name in out.names}
        summary.memory = _memory(resident, encoder) | {"features": collect.stack.kept_as}
        with timings.stage("write"):
            out.flush()
        summary.timings = {name: round(value, 4) for name, value in timings.seconds().items()}
        summary.timings["total"] = round(time.perf_counter() - started, 4)
        path = out.file("summary.json")
        with output_errors(path):
            path.write_text(summary.model_dump_json(indent=2), encoding="utf-8")
    return summary


def planned_bytes(
    frames: int, patches: int, *, reduce: Reduce | None = None, topk: int = 8, dtype: str = "float32"
) -> int:
    """Bytes of the arrays that `analyze` writes, uncompressed."""
    width = np.dtype(dtype).itemsize
    frame = frames * frames * width
    others = min(topk, frames - 1) + min(topk, patches - 1)  # a row has no more than those to choose from
    if reduce == "stats":
        return frame + 4 * (frames + patches) * 8
    if reduce == "topk":
        return frame + 4 * (frames + patches) * 8 + frames * patches * others * (width + 4)
    return frame + (patches * frames * frames + frames * patches * patches) * width


class _Collector:
    """Turns encoder batches into arrays on disk, statistics, and what the pictures and the page need."""

    def __init__(
        self,
        out: OutputFolder,
        info: VideoInfo,
        encoder: Encoder,
        planned: int,
        reduce: Reduce | None,
        topk: int,
        dtype: str,
        compress: bool,
        timings: Timings,
    ):
        self.out, self.info, self.encoder, self.planned = out, info, encoder, planned
        self.reduce, self.topk, self.dtype, self.compress, self.timings = reduce, topk, dtype, compress, timings
        self.patches = encoder.grid[0] * encoder.grid[1]
        self.stack = PatchStack(
            planned, self.patches, encoder.dim,
            dtype=encoder.token_dtype, device=encoder.device, scratch=out.partial / "patches.tmp",
        )  # fmt: skip
        self.position_stats, self.intra_stats, self.frame_stats = MatrixStats(), MatrixStats(), MatrixStats()
        self.pts_seconds: list[float] = []
        self.featureless: list[int] = []
        self._shown = set(np.linspace(0, planned - 1, min(planned, SHOWN_FRAMES)).astype(int).tolist())
        self.thumbnails: list[tuple[int, bytes]] = []
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="vsim-disk")
        self._pending: deque[Future] = deque()
        self._opened: list[ArrayWriter] = []
        self._intra = self._writers("intra_frame_similarities", planned, self.patches)

    def __enter__(self) -> _Collector:
        return self

    def __exit__(self, *exception: object) -> None:
        self._disk.shutdown(wait=True, cancel_futures=exception[0] is not None)
        for writer in self._opened:
            writer.abort()

    def add(self, batch: EncodedFrames) -> None:
        """The next frames."""
        patches, first = batch.features.patches, len(self.stack)
        step = max(1, BLOCK_BYTES // (self.patches**2 * 4))
        for start in range(0, len(patches), step):
            self._compare(intra_frame_similarity, patches[start : start + step], self._intra, self.intra_stats)
        with self.timings.stage("similarity"):
            self.stack.add(patches)
        self.pts_seconds += batch.features.pts_seconds.tolist()
        self.featureless += [first + i for i, flag in enumerate(batch.featureless.tolist()) if flag]
        with self.timings.stage("report"):
            for row in range(len(patches)):
                if first + row in self._shown:
                    self.thumbnails.append((first + row, self._thumbnail(batch.pixels[row])))

    def frame_similarity(self) -> torch.Tensor:
        """float32 [T, T] on the CPU, once every frame has come."""
        with self.timings.stage("similarity"):
            matrix = self.stack.frame_similarity().float().cpu()
            self.frame_stats.add_matrices(matrix[None])
        path = self.out.file("frame_similarity.npy")
        with output_errors(path):
            np.save(path, matrix.numpy().astype(self.dtype))
        return matrix

    def positions(self, progress: Progress | None) -> torch.Tensor:
        """All position matrices, once every frame has come. Returns each position's mean similarity over time, [P]."""
        self._close(self._intra)
        writers = self._writers("position_similarities", self.patches, len(self.stack))
        over_time, done = [], 0
        for block in self.stack.position_slices():
            mean = self._compare(position_similarity, block, writers, self.position_stats)
            over_time.append(mean_over_time(mean, block))
            done += block.shape[1]
            if progress:
                progress.advance("positions", done, self.patches)
        self._close(writers)
        if self.reduce:
            for name, stats in (("position", self.position_stats), ("intra_frame", self.intra_stats)):
                mean, std, low, high = stats.columns
                path = self.out.file(f"{name}_similarity_stats.npz")
                with output_errors(path):
                    np.savez(path, mean=mean, std=std, min=low, max=high)
        return torch.cat(over_time)

    def statistics(self) -> dict[str, Stats]:
        """By the section names of statistics.txt."""
        frames, patches = len(self.stack), self.patches
        return {
            "Position-wise Similarities": self.position_stats.overall(patches, frames, frames),
            "Frame-wise Similarity": self.frame_stats.overall(frames, frames),
            "Intra-Frame Similarities": self.intra_stats.overall(frames, patches, patches),
        }

    def _writers(self, name: str, count: int, side: int) -> list[ArrayWriter]:
        """What `count` matrices go to: the matrices themselves, or values and indices of the best k of each row."""
        writers = []
        if self.reduce == "topk":
            shape = (count, side, min(self.topk, side - 1))
            writers = [
                ArrayWriter(self.out.file(f"{name}_topk_values.npy"), shape, self.dtype),
                ArrayWriter(self.out.file(f"{name}_topk_indices.npy"), shape, "int32"),
            ]
        elif self.reduce is None:
            path = self.out.file(f"{name}.npz")
            writers = [ArrayWriter(path, (count, side, side), self.dtype, key=name, compress=self.compress)]
        self._opened += writers
        return writers

    def _compare(
        self, op: Callable, patches: torch.Tensor, writers: list[ArrayWriter], stats: MatrixStats
    ) -> torch.Tensor:
        """Run `op` on a block, collect statistics and queue what is to be stored. Returns each matrix's mean."""
        with self.timings.stage("similarity"):
            if self.reduce is None:
                similarity = matrices(op, patches)
                stats.add_matrices(similarity)
                blocks = [similarity.cpu()]
            else:
                stats.add(*op(patches, reduce="stats")[:4])
                blocks = []
                if writers and (k := writers[0].shape[2]):
                    blocks = [block.cpu() for block in op(patches, reduce="topk", k=k)]
                elif writers:  # a matrix of one row has no other
                    blocks = [torch.empty(len(stats.last_mean), 1, 0)] * 2
        for writer, block in zip(writers, blocks, strict=True):
            while len(self._pending) >= PENDING_WRITES:
                self._pending.popleft().result()
            self._pending.append(self._disk.submit(self._write, writer, block.numpy()))
        return stats.last_mean

    def _write(self, writer: ArrayWriter, block: np.ndarray) -> None:
        with self.timings.stage("write"):
            writer.write(block)

    def _close(self, writers: list[ArrayWriter]) -> None:
        while self._pending:
            self._pending.popleft().result()
        for writer in writers:
            writer.close()

    def _thumbnail(self, pixels: torch.Tensor) -> bytes:
        """JPEG of what the encoder saw, in the aspect of the video."""
        height, width = self.info.display_size
        scale = THUMBNAIL_SIDE / max(height, width)
        return thumbnail(self.encoder.picture(pixels, (round(height * scale), round(width * scale))))


class _Pictures:
    """Draws the heat maps in a thread of its own; what can be drawn before the frames are known is drawn at once."""

    OVER_TIME: ClassVar = {"xlabel": "Frame Index", "ylabel": "Frame Index"}
    WITHIN: ClassVar = {"xlabel": "Patch Index", "ylabel": "Patch Index"}

    def __init__(self, out: OutputFolder, encoder: Encoder, planned: int, timings: Timings):
        self.out, self.timings = out, timings
        self.columns, self.suffix = encoder.grid[1], " (random weights)" if encoder.random_weights else ""
        self._heatmaps = HeatmapWriter()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vsim-pictures")
        self._thread.submit(self._heatmaps.prepare, planned, **self.OVER_TIME)
        self._thread.submit(self._heatmaps.prepare, encoder.grid[0] * self.columns, **self.WITHIN)

    def start(
        self, stack: PatchStack, pts_seconds: list[float], frame_similarity: torch.Tensor, positions: int
    ) -> Future:
        return self._thread.submit(self._draw, stack.patches, pts_seconds, frame_similarity, positions)

    def _draw(
        self, patches: torch.Tensor, pts_seconds: list[float], frame_similarity: torch.Tensor, positions: int
    ) -> None:
        """The heat maps: frames, some positions over time, some frames within themselves."""
        with self.timings.stage("pictures"):
            self._write("frame_similarity.png", frame_similarity, "Frame Similarity", self.OVER_TIME)
            for p in _spread(patches.shape[1], positions):
                matrix = matrices(position_similarity, patches[:, p : p + 1])[0]
                row, column = divmod(p, self.columns)
                title = f"Position {p} (row {row}, col {column})"
                self._write(f"position_{p:04d}_r{row}_c{column}.png", matrix, title, self.OVER_TIME)
            for t in _spread(len(patches), INTRA_PICTURES):
                matrix = matrices(intra_frame_similarity, patches[t : t + 1])[0]
                title = f"Intra-Frame Similarity, frame {t} ({pts_seconds[t]:.2f} s)"
                self._write(f"intra_frame_{t:04d}.png", matrix, title, self.WITHIN)

    def _write(self, name: str, matrix: torch.Tensor, title: str, labels: dict[str, str]) -> None:
        self._heatmaps.write(self.out.file(name), matrix, title=title + self.suffix, **labels)

    def __enter__(self) -> _Pictures:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


def _report_data(
    summary: AnalysisSummary,
    statistics: dict[str, Stats],
    collect: _Collector,
    frame_similarity: torch.Tensor,
    over_time: torch.Tensor,
) -> ReportData:
    shown = [t for t, _ in collect.thumbnails]
    return ReportData(
        title=Path(summary.video["path"]).name,
        video=summary.video,
        settings=summary.settings,
        encoder=summary.encoder | {"decoder": summary.decoder["backend"]},
        notes=summary.notes,
        pts_seconds=summary.pts_seconds,
        frame_similarity=frame_similarity.numpy(),
        position_mean=over_time.reshape(summary.grid).numpy(),
        statistics=statistics,
        thumbnails=collect.thumbnails,
        shown_index=shown,
        shown_patches=collect.stack.patches[shown],
        grid=summary.grid,
        timings=collect.timings.seconds(),
        random_weights=collect.encoder.random_weights,
        flagged=dict.fromkeys(summary.featureless_frames, "featureless"),
    )


def _spread(count: int, picks: int) -> list[int]:
    """At most `picks` different indices of `count`, evenly spaced, first and last included."""
    return sorted(set(np.linspace(0, count - 1, picks).astype(int).tolist())) if picks else []


def _summarise(
    info: VideoInfo,
    settings: dict[str, Any],
    encoder: Encoder,
    collect: _Collector,
    statistics: dict[str, Stats],
    decoded: DecodeReport,
    output_dir: str,
) -> AnalysisSummary:
    return AnalysisSummary(
        status="partial" if decoded.lost else "complete",
        video=_describe(info),
        settings=settings,
        encoder=encoder.describe(),
        decoder=asdict(decoded),
        frames=len(collect.stack),
        patches=collect.patches,
        grid=encoder.grid,
        pts_seconds=collect.pts_seconds,
        featureless_frames=collect.featureless,
        statistics={name: asdict(stats) for name, stats in statistics.items()},
        output_dir=output_dir,
        notes=[*info.notes, *_notes(encoder, collect, decoded)],
    )


def _check_arguments(positions: int, reduce: str | None, topk: int, dtype: str) -> None:
    if positions < 0:
        raise UsageError(f"visualize_positions must be 0 or more, got {positions}")
    if reduce not in (None, "stats", "topk"):
        raise UsageError(f"reduce must be one of stats, topk, got {reduce!r}")
    if topk < 1:
        raise UsageError(f"topk must be 1 or more, got {topk}")
    if dtype not in ("float32", "float16"):
        raise UsageError(f"dtype must be float32 or float16, got {dtype!r}")


def _describe(info: VideoInfo) -> dict[str, Any]:
    return {
        "path": _printable(info.path),
        "codec": info.codec, "width": info.width, "height": info.height, "pix_fmt": info.pix_fmt,
        "frames": len(info.pts), "duration_seconds": round(info.duration_seconds, 6), "average_fps": info.average_fps,
        "rotation": info.rotation, "mirrored": info.mirrored, "sample_aspect": str(info.sample_aspect),
        "interlaced": info.interlaced, "color": asdict(info.color),
    }  # fmt: skip


def _printable(path: str | Path) -> str:
    """A file name may hold bytes that are no text; JSON and HTML take text."""
    return os.fsencode(path).decode(errors="replace")


def _notes(encoder: Encoder, collect: _Collector, decoded: DecodeReport) -> list[str]:
    notes = []
    if encoder.random_weights:
        notes.append(f"{encoder.spec}: random weights; the numbers mean nothing")
    notes += decoded.notes()
    if collect.featureless:
        count = len(collect.featureless)
        which = "frame is" if count == 1 else "frames are"
        notes.append(f"{count} {which} black or featureless: similar to everything")
    return notes


def _memory(resident: float, encoder: Encoder) -> dict[str, float]:
    """In MiB: of the process once the encoder was loaded, its peak since, and that of the GPU."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    memory = {"encoder_loaded_mib": round(resident, 1), "peak_mib": round(peak, 1)}
    if encoder.device.type == "cuda":
        memory["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated(encoder.device) / 2**20, 1)
    return memory


def _resident_mib() -> float:
    """Memory of this process now, in MiB; the peak so far where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
