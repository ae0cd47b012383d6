"""A cheap comparison of videos, so that what `dedup` computes, keeps and writes is tested without the true one's time:
12 × 16 grey pictures four times a second, each query picture against its best reference picture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from vsim_fast.copies import SIGNALS, PairScores
from vsim_fast.deduplication import pairing, reading
from vsim_fast.errors import ChangedVideo, CorruptVideo, DecodeError
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
    def box(self):
        return torch.tensor([0.0, 0.0, 1.0, 1.0])

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


def read_copy_videos(paths, *args, **options):
    for n, path in enumerate(paths):
        before = os.stat(path)
        try:
            video = reading.read_copy_video(path, *args, **options)
        except DecodeError as error:
            yield n, error
            continue
        changed = os.stat(path).st_size != before.st_size
        yield n, ChangedVideo(path, "it changed while it was read; run again") if changed else video


def score_pairs(load, pairs, *, progress=None):
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
    monkeypatch.setattr(reading, "read_copy_video", read_copy_video)
    monkeypatch.setattr(reading, "read_copy_videos", read_copy_videos)
    monkeypatch.setattr(reading, "CopyFeatures", CheapFeatures)
    monkeypatch.setattr(reading, "noise_for", lambda encoder, videos=(): CheapNoise(videos))
    monkeypatch.setattr(pairing, "score_pairs", score_pairs)
