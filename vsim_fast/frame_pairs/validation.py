"""`vsim pair --validate`: the ladders of `ladders.py` with every metric that pairs have, on an encoder of choice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel

from vsim_fast.encode.base import Encoder
from vsim_fast.frame_pairs.images import encoder_notes, load_pair_encoder
from vsim_fast.frame_pairs.ladders import LadderStudy, ladder_study, read_triples
from vsim_fast.frame_pairs.metrics import DEFAULT_METRICS, check_metrics, pixel_metrics
from vsim_fast.image_quality import Lpips
from vsim_fast.pairs import Pooling, cosine_distance, pooled_embedding, pooled_patch_distance
from vsim_fast.pipeline import Timings
from vsim_fast.records import Progress, frames_in_memory
from vsim_fast.store import OutputFolder, output_errors


class ValidationRun(BaseModel):
    """How the study was made."""

    status: Literal["complete"] = "complete"
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
        """{"results": one entry per distortion, "run": how they were made}."""
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
    Raises: UsageError, DeviceError, EncoderError, OpenError, CorruptVideo, OutputError.
    """
    started = time.perf_counter() if started is None else started
    timings = timings or Timings()
    check_metrics(metrics)
    frames = read_triples(path, count)
    lpips = Lpips() if "lpips" in metrics else None
    if isinstance(encoder, str):
        with timings.stage("load_encoder"):
            encoder = load_pair_encoder(encoder, image_size, device=device, precision=precision, offline=offline)

    @torch.inference_mode()
    def measure(frame: np.ndarray, copies: list[np.ndarray]) -> list[dict[str, float | None]]:
        with timings.stage("pixels"):
            pixels = encoder.pixels(frames_in_memory(np.stack([frame, *copies])))
        with timings.stage("encode"):
            tokens = encoder.forward_in_batches(pixels)
        with timings.stage("compare"):
            token = tokens.cls if encoder.has_cls_token else None
            embeddings = pooled_embedding(tokens.patches, token, pooling=pooling)
            pooled = cosine_distance(embeddings[:1], embeddings[1:]).tolist()
            patch = pooled_patch_distance(cosine_distance(tokens.patches[:1], tokens.patches[1:])).tolist()
        with timings.stage("metrics"):
            others = [pixel_metrics(frame, copy, tuple(metrics), lpips) for copy in copies]
        distances = ({"patch_distance": p, "cosine_distance": c} for p, c in zip(patch, pooled, strict=True))
        return [one | other for one, other in zip(distances, others, strict=True)]

    study = ladder_study(frames, measure, progress)
    settings = {
        "frames": str(path), "count": count, "image_size": list(encoder.preprocess.size), "pooling": pooling,
        "metrics": list(metrics),
    }  # fmt: skip
    run = ValidationRun(
        settings=settings, encoder=encoder.describe(), notes=encoder_notes(encoder),
        output_dir="" if output_dir is None else str(output_dir), timings=timings.summary(started),
    )  # fmt: skip
    result = Validation(study=study, run=run)
    if output_dir is not None:
        with OutputFolder(Path(output_dir)) as out:
            path = out.file("validation.json")
            with output_errors(path):
                path.write_text(json.dumps(result.as_dict(), indent=2, allow_nan=False), encoding="utf-8")
    return result
