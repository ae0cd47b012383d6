"""A process that finishes pairs: pixel metrics in the size of the images, pictures. Started by `finishing`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vsim_fast.errors import UsageError, VsimError
from vsim_fast.frame_pairs.reading import native_pair
from vsim_fast.image_quality import Lpips, psnr, ssim
from vsim_fast.records import frames_in_memory
from vsim_fast.report import PairDrawing, write_pair_pictures
from vsim_fast.store import OutputFolder, output_errors
from vsim_fast.video import read_image

NICENESS = 5
"""Gives way to the encoder, as decode processes do."""
METRICS = ("psnr", "ssim", "lpips")


def check_metrics(metrics: Iterable[str]) -> None:
    """Raises: UsageError: one of them is none of METRICS."""
    for name in metrics:
        if name not in METRICS:
            raise UsageError(f"metrics must be of {', '.join(METRICS)}, got {name!r}")


class Job(NamedTuple):
    """What is left to do of a pair once its tokens have been compared."""

    path_a: str
    path_b: str
    metrics: tuple[str, ...]
    folder: str | None = None
    """For the pictures, or None."""
    drawing: PairDrawing | None = None
    summary: dict[str, Any] | None = None
    """Goes beside the pictures, metrics added."""
    arrow_stride: int = 4
    relative: bool = False
    """Each map has its own colour range."""


def finish(job: Job, lpips: Lpips | None) -> dict[str, float | None]:
    """The metrics by name, once the pictures are written."""
    found = pixel_metrics(read_image(job.path_a), read_image(job.path_b), job.metrics, lpips) if job.metrics else {}
    if job.drawing is not None:
        with OutputFolder(Path(job.folder)) as out:
            write_pair_pictures(out.file, job.drawing, arrow_stride=job.arrow_stride, relative=job.relative)
            path = out.file("summary.json")
            with output_errors(path):
                path.write_text(json.dumps(job.summary | found, indent=2, allow_nan=False), encoding="utf-8")
    return found


def pixel_metrics(
    a: np.ndarray, b: np.ndarray, metrics: tuple[str, ...], lpips: Lpips | None = None
) -> dict[str, float | None]:
    """Of two uint8 RGB [H, W, 3]; b is resized to the size of a. SSIM is None for images too small to have one."""
    pixels = native_pair(frames_in_memory(b[None]), frames_in_memory(a[None]))
    found: dict[str, float | None] = {}
    if "psnr" in metrics:
        value = psnr(*pixels).item()
        found["psnr"] = value if np.isfinite(value) else None
    if "ssim" in metrics:
        found["ssim"] = ssim(*pixels).item() if min(a.shape[:2]) >= 11 else None
    if "lpips" in metrics:
        found["lpips"] = lpips(*pixels).item()
    return found


def main() -> None:
    """Jobs in, (metrics, None) or (None, error) out, until the other side goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the user process
    with suppress(OSError):
        os.nice(NICENESS)
    torch.set_num_threads(1)
    lpips = None
    connection = Connection(int(sys.argv[1]))
    with suppress(EOFError, OSError):
        while True:
            job = connection.recv()
            try:
                if "lpips" in job.metrics and lpips is None:
                    lpips = Lpips()
                reply = finish(job, lpips), None
            except VsimError as error:
                reply = None, error
            connection.send(reply)
