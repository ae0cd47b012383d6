"""`vsim pair`: how good made-up frames are, by deep features: pairs and triplets of images, whole videos, and a check
of every metric on distortions of known strength.

    images.py       pairs and triplets in batches
    videos.py       a distance per frame, flicker, worst frames
    validation.py   the metrics on distortions of rising strength (ladders.py)
    original.py     the calls of the tool VFI-Similarity
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {  # public name -> module that defines it; loaded on first access: worker processes need little of it
    "read_config": "config",
    "load_pair_encoder": "images",
    "pair_images": "images",
    "Failure": "records",
    "Item": "records",
    "PairBatch": "records",
    "PairResult": "records",
    "PairRun": "records",
    "TripletResult": "records",
    "VFISimilarityModel": "original",
    "check_model_name": "original",
    "compute_cosine_distance": "original",
    "load_model": "original",
    "pick_device": "original",
    "run_visualization": "original",
    "Validation": "validation",
    "validate_metrics": "validation",
    "VideoComparison": "video_records",
    "VideoPair": "video_records",
    "verdict": "video_records",
    "pair_video": "videos",
}
__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
