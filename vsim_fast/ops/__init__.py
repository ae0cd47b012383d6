"""The floor: tensors in, tensors out. Knows nothing of files, models or videos.

Every op is one public function with a plain-torch reference and faster backends behind one dispatch table.
"""

from vsim_fast.ops.attention import attention
from vsim_fast.ops.best_cosines import BestCosines, QuantizedTokens, best_cosines, quantize_tokens
from vsim_fast.ops.cosine import best_match, frame_similarity, intra_frame_similarity, position_similarity
from vsim_fast.ops.derivatives import Derivatives, derivatives
from vsim_fast.ops.dtw import Neighbors, WarpingPath, dtw, dtw_knn, dtw_pairwise, dtw_pairwise_blocks, dtw_path
from vsim_fast.ops.dtw.soft import soft_dtw
from vsim_fast.ops.nv12 import nv12_to_pixels, rgb_to_pixels
from vsim_fast.ops.top_k import Pairs, TopK, pairs_above, top_k

__all__ = [
    "BestCosines",
    "Derivatives",
    "Neighbors",
    "Pairs",
    "QuantizedTokens",
    "TopK",
    "WarpingPath",
    "attention",
    "best_cosines",
    "best_match",
    "derivatives",
    "dtw",
    "dtw_knn",
    "dtw_pairwise",
    "dtw_pairwise_blocks",
    "dtw_path",
    "frame_similarity",
    "intra_frame_similarity",
    "nv12_to_pixels",
    "pairs_above",
    "position_similarity",
    "quantize_tokens",
    "rgb_to_pixels",
    "soft_dtw",
    "top_k",
]
