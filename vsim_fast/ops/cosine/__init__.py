"""Cosine similarity of patch tokens: by position, inside frames, between frames, and best matches of two frames.

Every op accumulates in float32 (float64 for float64 input, reference backend only) and clamps to [-1, 1]. A zero
vector is similar to nothing, itself included: 0, never NaN. NaN and infinity in the input show as NaN in the output.
Source: the patch-similarity analysis of VideoLLaMA3 tokens, with the similarities kept in full precision.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vsim_fast.ops._checks import check_out, check_same, check_tensor
from vsim_fast.ops._dispatch import choose
from vsim_fast.ops.cosine._results import BestMatch, SimilarityStats, TopMatches

__all__ = [
    "BestMatch", "SimilarityStats", "TopMatches",
    "best_match", "frame_similarity", "intra_frame_similarity", "position_similarity",
]  # fmt: skip

Reduce = Literal["stats", "topk"]


def position_similarity(
    patches: Tensor, *, reduce: Reduce | None = None, k: int = 5, out: Tensor | None = None, backend: str | None = None
) -> Tensor | SimilarityStats | TopMatches:
    """Cosine similarity between all frames at each patch position.

    Args:
        patches: [T, P, D] patch tokens, float16/bfloat16/float32 (float64: reference), any strides, not normalised.
        reduce: None for the matrices; "stats" for `SimilarityStats` with [P] fields; "topk" for `TopMatches` with
            [P, T, k], the k most similar other frames. The reductions never store the matrices.
        k: 1 … T - 1; used by "topk" alone.
        out: [P, T, T] of any float dtype and strides on the same device, written and returned; only without `reduce`.
        backend: "triton" or "reference"; None picks the fastest that runs on the device.
    Returns:
        [P, T, T] in the dtype of `patches` (or `out`), values in [-1, 1].
    Raises:
        ValueError: shape, `k` or `reduce`.  TypeError: dtype.  RuntimeError: the backend cannot run.
    Memory: the output; on the CPU 16 MiB of scratch or one position's [T, D] and [T, T] in float32, if larger.
    """
    _check(patches, reduce, k, rows="T")
    frames, positions, _ = patches.shape
    out = _output(patches, (positions, frames, frames), reduce, out)
    return choose("position_similarity", patches.device.type, backend)(patches, reduce=reduce, k=k, out=out)


def intra_frame_similarity(
    patches: Tensor, *, reduce: Reduce | None = None, k: int = 5, out: Tensor | None = None, backend: str | None = None
) -> Tensor | SimilarityStats | TopMatches:
    """Cosine similarity between all patches of each frame.

    Args:
        patches: [T, P, D], as in `position_similarity`.
        reduce: None, "stats" ([T] fields) or "topk" ([T, P, k], the k most similar other patches of the frame).
        k: 1 … P - 1; used by "topk" alone.
        out: [T, P, P] of any float dtype and strides on the same device; only without `reduce`.
        backend: "triton" or "reference"; None picks the fastest that runs on the device.
    Returns:
        [T, P, P] in the dtype of `patches` (or `out`), values in [-1, 1].
    Raises, memory: as `position_similarity`, with frames for positions.
    """
    _check(patches, reduce, k, rows="P")
    frames, positions, _ = patches.shape
    out = _output(patches, (frames, positions, positions), reduce, out)
    return choose("intra_frame_similarity", patches.device.type, backend)(patches, reduce=reduce, k=k, out=out)


def frame_similarity(
    patches: Tensor, *, reduce: Reduce | None = None, k: int = 5, out: Tensor | None = None, backend: str | None = None
) -> Tensor | SimilarityStats | TopMatches:
    """Cosine similarity between frames: of the mean over each frame's patches, which are not normalised first.

    Args:
        patches: [T, P, D], as in `position_similarity`.
        reduce: None, "stats" (0-dim fields) or "topk" ([T, k], the k most similar other frames).
        k: 1 … T - 1; used by "topk" alone.
        out: [T, T] of any float dtype and strides on the same device; only without `reduce`.
        backend: "triton" or "reference"; None picks the fastest that runs on the device.
    Returns:
        [T, T] in the dtype of `patches` (or `out`), values in [-1, 1].
    Raises: as `position_similarity`.   Memory: the [T, D] means in float32 and the output.
    """
    _check(patches, reduce, k, rows="T")
    out = _output(patches, (len(patches), len(patches)), reduce, out)
    return choose("frame_similarity", patches.device.type, backend)(patches, reduce=reduce, k=k, out=out)


def best_match(a: Tensor, b: Tensor, *, backend: str | None = None) -> BestMatch:
    """The most similar row of the other side, in both directions at once, without the Pa × Pb matrix.

    Args:
        a: [Pa, D] or [B, Pa, D] vectors, float16/bfloat16/float32 (float64: reference), not normalised.
        b: [Pb, D] or [B, Pb, D], same dtype, device and B; row i of a pair is compared with rows of the same pair only.
        backend: "triton" or "reference"; None picks the fastest that runs on the device.
    Returns:
        `BestMatch` with the leading axes of the inputs. A zero vector scores 0 with index 0.
    Raises:
        ValueError: shapes that do not fit, or a side without rows.  TypeError: dtype.  RuntimeError: backend.
    Memory: O(B · (Pa + Pb)); on the CPU 16 MiB of scratch or one pair in float32, if larger.
    """
    batch = "" if isinstance(a, Tensor) and a.ndim == 2 else "B, "
    check_tensor("a", a, f"[{batch}Pa, D]")
    check_tensor("b", b, f"[{batch}Pb, D]")
    check_same("a and b", a, b)
    if a.shape[-1] != b.shape[-1] or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"a and b must agree in B and D, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
    if not a.shape[-2] or not b.shape[-2]:
        raise ValueError(f"a and b must have at least one row, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
    run = choose("best_match", a.device.type, backend)
    if a.ndim == 3:
        return run(a, b)
    return BestMatch(*(field.squeeze(0) for field in run(a.unsqueeze(0), b.unsqueeze(0))))


def _check(patches: Tensor, reduce: str | None, k: int, rows: str) -> None:
    check_tensor("patches", patches, "[T, P, D]")
    if reduce not in (None, "stats", "topk"):
        raise ValueError(f"reduce must be None, 'stats' or 'topk', got {reduce!r}")
    count = patches.shape["TP".index(rows)]
    if reduce == "topk" and not 1 <= k < count:
        raise ValueError(f"k must be 1 … {rows} - 1 = {count - 1}, got {k}")
    if reduce == "stats" and not count:
        raise ValueError(f"reduce='stats' needs {rows} of at least 1, got shape {tuple(patches.shape)}")


def _output(patches: Tensor, shape: tuple[int, ...], reduce: str | None, out: Tensor | None) -> Tensor | None:
    if reduce is not None:
        if out is not None:
            raise ValueError(f"out holds matrices, which reduce={reduce!r} does not make")
        return None
    if out is None:
        return torch.empty(shape, dtype=patches.dtype, device=patches.device)
    check_out(out, shape, patches)
    return out
