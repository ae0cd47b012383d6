"""Path to features: where decoding and encoding meet.

    one open video    decode thread ─► blocks ─► encoder                                     encode_video
    many videos       decode workers ─► blocks of frames ─► batches across videos ─► encoder encode_videos

Decoding turns packets into encoder input (decode, colour, resize, normalise). What lies between it and the encoder is
bounded in frames. On a GPU both work on streams of their own and hand over events, so that frames stay on the device.
"""

from __future__ import annotations

from vsim_fast.pipeline.frames import FEATURELESS_STD, EncodedFrames
from vsim_fast.pipeline.many import EncodedVideo, encode_videos, stream_videos
from vsim_fast.pipeline.one import QUEUED_BATCHES, encode_video
from vsim_fast.pipeline.timings import Timings

__all__ = [
    "FEATURELESS_STD",
    "QUEUED_BATCHES",
    "EncodedFrames",
    "EncodedVideo",
    "Timings",
    "encode_video",
    "encode_videos",
    "stream_videos",
]
