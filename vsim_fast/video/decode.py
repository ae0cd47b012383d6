"""open_video(): from a path and a sampling rule to batches of frames; chooses the decoder and says which and why."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from types import TracebackType
from typing import Literal

import torch

from vsim_fast.errors import DeviceError, UsageError
from vsim_fast.processor import usable_cores
from vsim_fast.records import FrameBatch, VideoInfo
from vsim_fast.video._batches import DecodeReport
from vsim_fast.video.probe import DEFAULT_LIMITS, Limits, probe
from vsim_fast.video.sampling import Sampling, plan, plan_indices

MAX_THREADS = 16
ALL_FRAMES = Sampling("all")


def open_video(
    path: str | os.PathLike,
    sampling: Sampling = ALL_FRAMES,
    *,
    decoder: Literal["auto", "pyav", "nvdec"] = "auto",
    device: str | torch.device = "cpu",
    batch_size: int = 16,
    on_error: Literal["partial", "raise"] = "partial",
    output: Literal["auto", "planes", "rgb"] = "auto",
    threads: int | None = None,
    image_fps: float | Fraction | None = None,
    apply_rotation: bool = True,
    limits: Limits = DEFAULT_LIMITS,
) -> VideoReader:
    """Sampled frames of a video, in batches, in order of time.

    Args:
        path: a local video file, an image, or a folder of images.
        sampling: which frames; default all.
        decoder: "auto" takes NVDEC on a CUDA device where it can serve this file, else PyAV, and records the reason.
            A named one serves or raises.
        device: where the batches end up.
        batch_size: most frames per batch; the last batch is shorter, and so is one that lost frames.
        on_error: "partial" leaves out what cannot be decoded and counts it in the report; "raise" stops at the first
            damaged packet or lost frame.
        output: "planes" (NV12-like y and uv, only 4:2:0 in 8 or 10 bits), "rgb" (swscale, with the file's matrix and
            range, BT.601 limited where untagged), or "auto": planes on CUDA where the file has them, else rgb.
        threads: decoder threads of PyAV; default the usable cores, at most 16.
        image_fps: frame rate of a folder of images, default 3.
        apply_rotation: False reports rotation 0, not mirrored. Pixels are never turned here, but after resizing.
        limits: largest video accepted.
    Raises:
        OpenError, NoVideoStream, UnsupportedVideo, CorruptVideo: the file.  UsageError: an argument.
        DeviceError: the named decoder or device cannot be used, with the reason.
    """
    for name, value, allowed in (
        ("decoder", decoder, ("auto", "pyav", "nvdec")),
        ("on_error", on_error, ("partial", "raise")),
        ("output", output, ("auto", "planes", "rgb")),
    ):
        if value not in allowed:
            raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device {str(device)!r} was asked for, but torch finds no CUDA device")
    info = probe(path, limits=limits, image_fps=image_fps)
    if not apply_rotation:
        info = replace(info, rotation=0, mirrored=False)
    return VideoReader(
        info, sampling, decoder=decoder, device=device, batch_size=batch_size, strict=on_error == "raise",
        output=output, threads=threads or min(usable_cores(), MAX_THREADS), limits=limits,
    )  # fmt: skip


class VideoReader:
    """Iterates `FrameBatch`es once; a context manager that frees the decoder.

    Attributes:
        info: what `probe` found.
        plan: the frames to come and what they cost.
        report: backend, counts and losses, live.
    """

    def __init__(
        self,
        info: VideoInfo,
        sampling: Sampling,
        *,
        decoder: str,
        device: torch.device,
        batch_size: int,
        strict: bool,
        output: str,
        threads: int,
        limits: Limits,
    ):
        from vsim_fast.video import _nvdec, _pyav

        self.info, self.plan = info, plan(info, sampling)
        self._device, self._batch_size, self._strict, self._limits = device, batch_size, strict, limits
        self._threads = threads
        planar = info.pix_fmt in _pyav.PLANAR
        if output == "planes" and not planar:
            raise UsageError(f"output 'planes' needs 4:2:0 in 8 or 10 bits, {info.path} is {info.pix_fmt}")
        self._output = output if output != "auto" else "planes" if planar and device.type == "cuda" else "rgb"

        why_not = None
        if decoder == "pyav" or (decoder == "auto" and device.type != "cuda"):
            backend = "pyav"
        else:
            why_not = _nvdec.why_not(info, device, self._output)
            backend = "nvdec" if why_not is None else "pyav"
        if info.codec == "images":
            backend = "images"
        if decoder == "nvdec" and why_not is not None:
            raise DeviceError(f"decoder 'nvdec' cannot serve {info.path}: {why_not}")
        self._named = decoder != "auto"
        self.report = DecodeReport(backend, expected=len(self.plan), fallback_reason=why_not)
        self._batches = self._read(backend)

    def _read(self, backend: str) -> Iterator[FrameBatch]:
        if backend == "nvdec":
            from vsim_fast.video import _nvdec

            try:
                yield from _nvdec.NvdecBackend(
                    self.info, self.plan, self.report, batch_size=self._batch_size, device=self._device
                )
                return
            except _nvdec.NvdecError as error:
                if self._named:
                    raise DeviceError(f"decoder 'nvdec' gave up on {self.info.path}: {error}") from error
                self.report.fallback_reason = str(error)
                self.report.backend = "pyav"
        rest = plan_indices(self.info, self.plan.index[self.report.delivered :])
        common = dict(batch_size=self._batch_size, output=self._output, device=self._device, strict=self._strict)
        if backend == "images":
            from vsim_fast.video import _images

            yield from _images.ImageBackend(self.info, rest, self.report, **common)
        else:
            from vsim_fast.video import _pyav

            yield from _pyav.PyavBackend(
                self.info, rest, self.report, threads=self._threads, limits=self._limits, **common
            )

    def __iter__(self) -> Iterator[FrameBatch]:
        return self

    def __next__(self) -> FrameBatch:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.report.seconds += time.perf_counter() - start

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder; frames not read yet are given up."""
        self._batches.close()
