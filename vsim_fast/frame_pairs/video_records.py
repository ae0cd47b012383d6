"""What comes of a video: results as results.json holds them, the run as summary.json does."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, Literal

from pydantic import BaseModel

from vsim_fast import __version__

Kind = Literal["differs", "stands out", "like a blend", "largest"]
"""differs: from the reference. stands out: its neighbours are nearer to each other than to it. like a blend: nearer to
both neighbours than motion here allows. largest: where no frame is one of these, those of the largest values."""

TOLD: dict[str, tuple[str, str]] = {  # kind -> of one frame, of several
    "differs": ("frame sticks out", "frames stick out"),
    "stands out": ("frame stands out from its neighbours", "frames stand out from their neighbours"),
    "like a blend": ("frame looks blended", "frames look blended"),
}


class WorstFrame(BaseModel):
    """A frame whose judged curve is not what it is around it."""

    frame: int
    """Number in the video, from 0."""
    time_seconds: float
    kind: Kind
    patch_distance: float | None
    cosine_distance: float | None
    expected: float
    """Local level of the curve that was judged."""
    excess: float
    """Of the curve over it; negative for frames like a blend."""
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    picture: str | None = None
    """File name; the largest have one."""


class VideoComparison(BaseModel):
    """The entry of results.json."""

    video: str
    reference: str | None
    frames: int
    """Compared with the reference; without one, of the video."""
    judged: str
    """Curve on which flicker and worst frames go."""
    cosine_distance: float
    """Mean over the frames, as everything below but for the worst frames."""
    patch_distance: float
    psnr: float | None = None
    """Mean over the frames that differ; null where none does."""
    ssim: float | None = None
    lpips: float | None = None
    flicker_index: float
    """0 … 1: see `curves.flicker_index`; without a reference `curves.neighbour_flicker`."""
    judder_index: float | None = None
    """0 … 1, without a reference: how much the steps from frame to frame alternate."""
    identical_frames: int
    """Equal in every pixel: to the reference, or to the frame before."""
    worst_frames: list[WorstFrame]
    statistics: dict[str, dict[str, float]]
    """Of each curve: mean, median, p95, max."""
    notes: list[str]


class VideoRun(BaseModel):
    """What summary.json holds."""

    schema_version: int = 1
    vsim_fast: str = __version__
    status: Literal["complete", "partial"]
    """partial: frames could not be decoded."""
    settings: dict[str, Any]
    encoder: dict[str, Any]
    decoder: dict[str, dict[str, Any]]
    notes: list[str]
    output_dir: str
    outputs: list[str] = []
    timings: dict[str, float] = {}


class VideoPair(BaseModel):
    """The comparison and the run that made it."""

    results: list[VideoComparison]
    run: VideoRun

    def as_dict(self) -> dict[str, Any]:
        """{"results": what results.json holds, "run": what summary.json holds}."""
        return self.model_dump(mode="json")


def verdict(result: VideoComparison) -> str:
    """What was found, in a sentence or two."""
    against = f" compared with {os.path.basename(result.reference)}" if result.reference else ""
    if result.reference and result.identical_frames == result.frames:
        return f"{result.frames} frames{against}: all equal in every pixel."
    curve = result.statistics["patch_distance" if result.reference else "step"]
    what = "Patch distance" if result.reference else "Patch distance from frame to frame"
    count = len(result.worst_frames)
    stand = "no frame sticks out"
    if count:
        first = result.worst_frames[0]
    if count and first.kind == "largest":
        stand += f"; the largest value is that of frame {first.frame} at {first.time_seconds:.2f} s"
    elif count:
        counts = Counter(worst.kind for worst in result.worst_frames)
        stand = ", ".join(f"{counts[kind]} {words[counts[kind] > 1]}" for kind, words in TOLD.items() if counts[kind])
        stand += f", most of all {first.frame} at {first.time_seconds:.2f} s"
    return (
        f"{result.frames} frames{against}. {what} {curve['mean']:.4f} on average, at most {curve['max']:.4f}; "
        f"{stand}; flicker index {result.flicker_index:.2f}"
        + ("." if result.judder_index is None else f", judder index {result.judder_index:.2f}.")
    )
