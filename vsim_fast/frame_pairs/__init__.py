"""`vsim pair`: how good made-up frames are, by deep features: pairs and triplets of images, whole videos, and a check
of every metric on distortions of known strength.

    images.py   pairs and triplets in batches      videos.py   a distance per frame, flicker, worst frames
    ladders.py  distortions of rising strength     original.py the calls of the tool VFI-Similarity
"""

from __future__ import annotations

from vsim_fast.frame_pairs.config import read_config
from vsim_fast.frame_pairs.images import pair_images
from vsim_fast.frame_pairs.records import Failure, Item, PairBatch, PairResult, PairRun, TripletResult
from vsim_fast.frame_pairs.videos import VideoComparison, VideoPair, pair_video

__all__ = [
    "Failure", "Item", "PairBatch", "PairResult", "PairRun", "TripletResult", "VideoComparison", "VideoPair",
    "pair_images", "pair_video", "read_config",
]  # fmt: skip
