"""vsim_fast: what is alike between videos, where, when and in which direction, at hardware speed.

Names are loaded on first access, so importing the package imports nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {  # public name -> module that defines it
    "VsimError": "errors",
    "FrameBatch": "records",
    "FrameFeatures": "records",
    "VideoInfo": "records",
    "probe": "video",
    "open_video": "video",
    "Sampling": "video",
    "load_encoder": "encode",
    "pairs_above": "ops",
    "position_similarity": "ops",
    "intra_frame_similarity": "ops",
    "frame_similarity": "ops",
    "best_match": "ops",
    "best_cosines": "ops",
    "quantize_tokens": "ops",
    "derivatives": "ops",
    "dtw": "ops",
    "dtw_knn": "ops",
    "dtw_pairwise": "ops",
    "dtw_pairwise_blocks": "ops",
    "dtw_path": "ops",
    "dtw_matrix": "all_pairs",
    "nv12_to_pixels": "ops",
    "rgb_to_pixels": "ops",
    "soft_dtw": "ops",
    "top_k": "ops",
    "TemporalDerivativeFingerprint": "fingerprints",
    "MultiScaleDerivativeFingerprint": "fingerprints",
    "TrajectoryFingerprint": "fingerprints",
    "DTWTrajectoryMatcher": "fingerprints",
    "run_motion_study": "motion_study",
    "FrameEncoder": "frame_encoder",
    "DINOv3Encoder": "frame_encoder",
    "encode_videos": "pipeline",
    "VectorSearch": "vector_search",
    "near_duplicates": "vector_search",
    "search": "vector_search",
    "pair_images": "frame_pairs",
    "pair_video": "frame_pairs",
    "load_model": "frame_pairs",
    "compute_cosine_distance": "frame_pairs",
    "run_visualization": "frame_pairs",
    "pick_device": "frame_pairs",
    "analyze": "analysis",
    "compare": "comparison",
    "dedup": "deduplication",
    "Store": "feature_store",
    "read_pairs": "evaluation",
    "read_truth": "evaluation",
    "evaluate": "evaluation",
    "micro_average_precision": "evaluation",
    "mean_average_precision": "evaluation",
    "recall_at_precision": "evaluation",
    "recall_at_false_share": "evaluation",
    "segment_ap": "evaluation",
    "roc_auc": "evaluation",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'vsim_fast' has no attribute {name!r}")
    value = getattr(import_module(f"vsim_fast.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
