"""A stand-in for the comparison of two videos, until the true one is there."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch

from vsim_fast.errors import CorruptVideo, UsageError
from vsim_fast.video import Sampling, open_video

SIGNALS = (
    "semantic_baseline", "match", "temporal_derivative", "multiscale_derivative", "trajectory_stats", "trajectory_dtw",
)  # fmt: skip


@dataclass(frozen=True)
class CopyFeatures:
    frame_seconds: torch.Tensor
    frames: torch.Tensor

    def tensors(self):
        return {"frame_seconds": self.frame_seconds, "frames": self.frames}

    @classmethod
    def from_tensors(cls, tensors):
        return cls(**tensors)

    @property
    def blank(self):
        return bool(self.frames.std(1).max() < 0.01)


class PairScores(NamedTuple):
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


def score_pairs(load, pairs, *, progress=None):
    for row, (query, ref) in enumerate(pairs.tolist()):
        a, b = (load(n).frames - load(n).frames.mean(1, keepdim=True) for n in (query, ref))
        best, where = (torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T).max(1)
        score = float(best.mean().clamp(0, 1))
        coverage = [min(1, len(x) / len(y)) for x, y in ((a, b), (b, a))]
        verdict = "duplicate" if score > 0.85 else "shares a part" if score > 0.6 else "different"
        yield row, PairScores(
            score, score, 1.0, max(coverage), *coverage, "as it is", verdict, score > 0.85, f"score {score:.2f}",
            dict.fromkeys(SIGNALS, score) | {"trajectory_dtw": float("nan")},
            [(n, int(m), float(v)) for n, (m, v) in enumerate(zip(where, best, strict=True))],
        )  # fmt: skip


@dataclass
class Noise:
    videos: list

    def overlap(self, features):
        for video in self.videos:
            for _, scores in score_pairs(
                lambda n, v=video: (features, v.features)[n], torch.tensor([[0, 1]]), noise=None
            ):
                if scores.score > 0.95:
                    return True
        return False


@dataclass(frozen=True)
class CopyVideo:
    features: CopyFeatures
    info: object
    report: object
    thumbnails: list
    notes: list


def read_copy_video(path, encoder, settings, noise=None, *, decoder="auto", progress=None, label="", timings=None):
    with open_video(path, Sampling(fps=4, max_frames=20), output="rgb") as reader:
        batches = list(reader)
    if not batches:
        raise CorruptVideo(path, "no frame decodes")
    rgb = torch.cat([batch.rgb for batch in batches]).float().mean(3)[:, None] / 255
    frames = torch.nn.functional.interpolate(rgb, (12, 16), mode="area").flatten(1)
    times = torch.cat([batch.pts_seconds for batch in batches])
    return CopyVideo(CopyFeatures(times, frames), reader.info, reader.report, [b"jpeg"] * len(frames), [])


def copy_settings(orientations="mirror"):
    if orientations not in ("none", "mirror", "all"):
        raise UsageError(f"orientations must be one of none, mirror, all, got {orientations!r}")
    return {"orientations": orientations}


def install():
    copies, reader = (ModuleType(f"vsim_fast.{n}") for n in ("copies", "copy_reader"))
    vars(copies).update(
        SIGNALS=SIGNALS, VERSION=1, CopyFeatures=CopyFeatures, PairScores=PairScores, score_pairs=score_pairs,
        THRESHOLDS={"score": 0.85},
    )  # fmt: skip
    vars(reader).update(
        read_copy_video=read_copy_video, copy_settings=copy_settings, Noise=Noise, noise_for=lambda e, v=(): Noise(v)
    )

    for module in (copies, reader):
        sys.modules.setdefault(module.__name__, module)
