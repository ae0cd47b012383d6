"""A cheap comparison of videos, so that what `dedup` computes, keeps and writes is tested without the true one's time:
12 × 16 grey pictures four times a second, each query picture against its best reference picture."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from vsim_fast.errors import CorruptVideo, UsageError
from vsim_fast.video import Sampling, open_video


@dataclass(frozen=True)
class CheapFeatures:
    frame_seconds: torch.Tensor
    pictures: torch.Tensor

    def tensors(self):
        return {"frame_seconds": self.frame_seconds, "pictures": self.pictures}

    @classmethod
    def from_tensors(cls, tensors):
        return cls(**tensors)

    @property
    def blank(self):
        return bool(self.pictures.std(1).max() < 0.01)


class CheapVideo(NamedTuple):
    features: CheapFeatures
    info: Any
    report: Any
    thumbnails: list[bytes]
    notes: list[str]


class CheapNoise(NamedTuple):
    videos: list[CheapVideo]

    def overlap(self, features):
        return any(_best(features, video.features)[0].mean() > 0.95 for video in self.videos)


def read_copy_video(path, encoder, settings, noise=None, *, decoder="auto", progress=None, label="", timings=None):
    with open_video(path, Sampling(fps=4, max_frames=20), output="rgb") as reader:
        batches = list(reader)
    if not batches:
        raise CorruptVideo(path, "no frame decodes")
    grey = torch.cat([batch.rgb for batch in batches]).float().mean(3)[:, None] / 255
    pictures = F.interpolate(grey, (12, 16), mode="area").flatten(1)
    times = torch.cat([batch.pts_seconds for batch in batches])
    return CheapVideo(CheapFeatures(times, pictures), reader.info, reader.report, [b"jpeg"] * len(pictures), [])


def score_pairs(load, pairs, *, progress=None):
    from vsim_fast.copies import SIGNALS, PairScores

    for row, (query, ref) in enumerate(pairs.tolist()):
        a, b = load(query), load(ref)
        best, where = _best(a, b)
        score = float(best.mean().clamp(0, 1))
        coverage = [min(1, len(x.pictures) / len(y.pictures)) for x, y in ((b, a), (a, b))]
        verdict = "duplicate" if score > 0.85 else "shares a part" if score > 0.6 else "different"
        yield row, PairScores(
            score, score, 1.0, max(coverage), *coverage, "as it is", verdict, score > 0.85, f"score {score:.2f}",
            dict.fromkeys(SIGNALS, score) | {"trajectory_dtw": float("nan")},
            [(n, int(m), float(v)) for n, (m, v) in enumerate(zip(where, best, strict=True))],
        )  # fmt: skip


def _best(a, b):
    x, y = (F.normalize(v.pictures - v.pictures.mean(1, keepdim=True)) for v in (a, b))
    return (x @ y.T).max(1)


def use(monkeypatch):
    """Compare cheaply from here on."""
    from vsim_fast.deduplication import pairing, reading

    monkeypatch.setattr(reading, "read_copy_video", read_copy_video)
    monkeypatch.setattr(reading, "CopyFeatures", CheapFeatures)
    monkeypatch.setattr(reading, "noise_for", lambda encoder, videos=(): CheapNoise(videos))
    monkeypatch.setattr(pairing, "score_pairs", score_pairs)


class _PairScores(NamedTuple):
    score: float
    content: float
    order: float
    coverage: float
    query_coverage: float
    ref_coverage: float
    orientation: str
    verdict: str
    duplicate: bool
    reason: str
    signals: dict
    matches: list


def _copy_settings(orientations="mirror"):
    if orientations not in ("none", "mirror", "all"):
        raise UsageError(f"orientations must be one of none, mirror, all, got {orientations!r}")
    return {"orientations": orientations}


def install():
    """The names that the package takes from the true comparison, where that is not there."""
    if "vsim_fast.copies" in sys.modules or find_spec("vsim_fast.copies"):
        return
    copies, reader = (ModuleType(f"vsim_fast.{name}") for name in ("copies", "copy_reader"))
    signals = (
        "semantic_baseline", "match", "temporal_derivative", "multiscale_derivative", "trajectory_stats",
        "trajectory_dtw",
    )  # fmt: skip
    vars(copies).update(
        SIGNALS=signals, VERSION=1, CopyFeatures=CheapFeatures, PairScores=_PairScores, score_pairs=score_pairs,
        THRESHOLDS={"score": 0.85},
    )  # fmt: skip
    vars(reader).update(read_copy_video=read_copy_video, copy_settings=_copy_settings, Noise=CheapNoise, noise_for=None)
    for module in (copies, reader):
        sys.modules[module.__name__] = module
