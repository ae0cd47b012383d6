"""`vsim pair --validate`: the ladders of `ladders.py` with every metric that pairs have, on an encoder of choice."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from vsim_fast.encode.base import Encoder
from vsim_fast.frame_pairs.images import encoder_notes, frame_embeddings, load_pair_encoder
from vsim_fast.frame_pairs.ladders import LadderStudy, ladder_study, read_triples
from vsim_fast.frame_pairs.metrics import DEFAULT_METRICS, check_metrics, pixel_metrics
from vsim_fast.image_quality import Lpips
from vsim_fast.pairs import Pooling, cosine_distance, pooled_patch_distance
from vsim_fast.pipeline import Timings
from vsim_fast.records import Progress, frames_in_memory
from vsim_fast.store import OutputFolder


class ValidationRun(BaseModel):
    """How the study was made."""

    status: Literal["complete", "partial"]
    """Partial: frames were skipped, see the study."""
    settings: dict[str, Any]
    encoder: dict[str, Any]
    notes: list[str]
    output_dir: str
    timings: dict[str, float] = {}


class Validation(BaseModel):
    """What validation.json holds."""

    study: LadderStudy
    run: ValidationRun

    def as_dict(self) -> dict[str, Any]:
        """{"results": one entry per distortion, "run": how they were made and of which frames}."""
        study = self.study.model_dump(mode="json")
        return {"results": study.pop("ladders"), "run": self.run.model_dump(mode="json") | study}


def validate_metrics(
    path: str | os.PathLike,
    encoder: str | Encoder = "builtin",
    *,
    count: int = 8,
    output_dir: str | os.PathLike | None = None,
    pooling: Pooling = "all",
    metrics: Sequence[str] = DEFAULT_METRICS,
    image_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    offline: bool = False,
    progress: Progress | None = None,
    timings: Timings | None = None,
    started: float | None = None,
) -> Validation:
    """Does each metric get worse as frames are made worse? Spearman's correlation with the strength, per distortion.

    Args:
        path: a video, a folder of consecutive images, or a folder of triplets; see `read_triples`.
        count: frames that are distorted.
        output_dir: validation.json goes there; None writes nothing.
        encoder, pooling, metrics, image_size, device, precision, offline: as `pair_images`.
    Frames that cannot be read are skipped.
    Raises: UsageError, DeviceError, EncoderError, OutputError; DecodeError: no frame can be read.
    """
    started = time.perf_counter() if started is None else started
    timings = timings or Timings()
    check_metrics(metrics)
    frames = read_triples(path, count)
    lpips = Lpips() if "lpips" in metrics else None
    if isinstance(encoder, str):
        with timings.stage("load_encoder"):
            encoder = load_pair_encoder(encoder, image_size, device=device, precision=precision, offline=offline)

    study = ladder_study(frames, _Measure(encoder, pooling, tuple(metrics), lpips, timings), progress)
    settings = {
        "frames": str(path), "count": count, "image_size": list(encoder.preprocess.size), "pooling": pooling,
        "metrics": list(metrics),
    }  # fmt: skip
    run = ValidationRun(
        status="partial" if study.skipped else "complete", settings=settings, encoder=encoder.describe(),
        notes=[*encoder_notes(encoder), *_too_small(study, metrics)],
        output_dir="" if output_dir is None else str(output_dir), timings=timings.summary(started),
    )  # fmt: skip
    result = Validation(study=study, run=run)
    if output_dir is not None:
        with OutputFolder(Path(output_dir)) as out:
            out.write_json("validation.json", result.as_dict())
    return result


def _too_small(study: LadderStudy, metrics: Sequence[str]) -> list[str]:
    """Notes on metrics that frames do not have."""
    notes = []
    for name in metrics:
        having = (ladder.metrics[name].frames if name in ladder.metrics else 0 for ladder in study.ladders)
        if lacking := max(ladder.frames - had for ladder, had in zip(study.ladders, having, strict=True)):
            notes.append(f"{name}: too small for it are {lacking} of {len(study.frames)} frames")
    return notes


class _Measure:
    """Every metric of the copies of a frame, which is encoded once for all its ladders."""

    def __init__(
        self, encoder: Encoder, pooling: Pooling, metrics: tuple[str, ...], lpips: Lpips | None, timings: Timings
    ):
        self.encoder, self.pooling, self.metrics, self.lpips, self.timings = encoder, pooling, metrics, lpips, timings
        self._frame: np.ndarray | None = None

    @torch.inference_mode()
    def __call__(self, frame: np.ndarray, copies: list[np.ndarray]) -> list[dict[str, float | None]]:
        if self._frame is not frame:
            self._frame, self._features = frame, self._encode([frame])
        # An equal copy is at exactly 0, which another size of batch would round away.
        differs = torch.tensor([not np.array_equal(copy, frame) for copy in copies])
        distances = torch.zeros(2, len(copies))
        features = self._encode([copy for copy, other in zip(copies, differs.tolist(), strict=True) if other])
        with self.timings.stage("compare"):
            patches, pooled = (cosine_distance(a, b) for a, b in zip(self._features, features, strict=True))
            distances[:, differs] = torch.stack((pooled_patch_distance(patches), pooled)).cpu()
        with self.timings.stage("metrics"):
            others = [pixel_metrics(frame, copy, self.metrics, self.lpips) for copy in copies]
        columns = zip(*distances.tolist(), others, strict=True)
        return [dict(patch_distance=patch, cosine_distance=pooled) | other for patch, pooled, other in columns]

    def _encode(self, pictures: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Patches [N, P, D] and embeddings [N, D]."""
        with self.timings.stage("pixels"):
            pixels = self.encoder.pixels(frames_in_memory(np.stack(pictures)))
        with self.timings.stage("encode"):
            tokens = self.encoder.forward_in_batches(pixels)
        with self.timings.stage("compare"):
            return tokens.patches, frame_embeddings(self.encoder, tokens.patches, tokens.cls, self.pooling)
