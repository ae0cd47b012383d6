"""Files in, batches of frames out: gate and probe, sampling rules, decoders."""

from __future__ import annotations

from vsim_fast.records import IMAGE_SUFFIXES
from vsim_fast.video._batches import DecodeReport
from vsim_fast.video._images import read_image
from vsim_fast.video.decode import VideoReader, open_video
from vsim_fast.video.probe import Limits, is_image, probe
from vsim_fast.video.sampling import RULES, DecodePlan, Sampling, plan, sample

__all__ = [
    "IMAGE_SUFFIXES", "RULES", "DecodePlan", "DecodeReport", "Limits", "Sampling", "VideoReader", "is_image",
    "open_video", "plan", "probe", "read_image", "sample",
]  # fmt: skip
