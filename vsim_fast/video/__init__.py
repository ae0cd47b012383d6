"""Files in, batches of frames out: gate and probe, sampling rules, decoders."""

from __future__ import annotations

from vsim_fast.video._batches import DecodeReport
from vsim_fast.video.decode import VideoReader, open_video
from vsim_fast.video.probe import Limits, probe
from vsim_fast.video.sampling import RULES, DecodePlan, Sampling, plan, sample

__all__ = [
    "RULES", "DecodePlan", "DecodeReport", "Limits", "Sampling", "VideoReader", "open_video", "plan", "probe", "sample",
]  # fmt: skip
