"""report.html of `analyze`: one page with maps, statistics and a patch explorer."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsim_fast.report.page import render, to_base64
from vsim_fast.report.png import colour_table
from vsim_fast.similarity import Stats
from vsim_fast.store import atomic_path

EXPLORER_BYTES = 3 * 2**20
"""Most bytes of feature codes in the page; base64 makes them a third larger."""
RANK_MIN, RANK_MAX = 32, 192
PAGE_FRAMES = 1200
"""Most rows of the frame-similarity map kept in the page; longer videos are thinned evenly."""
KAPPA_BINS = 32


@dataclass
class ReportData:
    """Everything report.html shows. Arrays may be numpy or tensors on any device."""

    title: str
    """Usually the file name; any text, it is escaped."""
    video: Mapping[str, Any]
    settings: Mapping[str, Any]
    encoder: Mapping[str, Any]
    notes: Sequence[str]
    """Things the reader must know: fallbacks, guessed colour, black frames."""
    pts_seconds: np.ndarray | Tensor
    """[T]."""
    frame_similarity: np.ndarray | Tensor
    """[T, T]."""
    position_mean: np.ndarray | Tensor
    """[Hp, Wp], mean over all pairs of frames of the similarity at each position."""
    statistics: Mapping[str, Stats]
    thumbnails: Sequence[tuple[int, bytes]]
    """(frame index in 0..T-1, JPEG); see `thumbnail`. They should show what the patch grid covers."""
    shown_index: Sequence[int]
    """[S], the frames whose patches can be explored, rising."""
    shown_patches: np.ndarray | Tensor
    """[S, P, D], not normalised, any float dtype."""
    grid: tuple[int, int]
    """(Hp, Wp)."""
    timings: Mapping[str, float]
    """Stage -> seconds."""
    random_weights: bool = False
    flagged: Mapping[int, str] = field(default_factory=dict)
    """Frame index -> why it matches everything, e.g. "black"."""


def thumbnail(rgb: np.ndarray, *, width: int = 320, quality: int = 70) -> bytes:
    """JPEG of a frame, uint8 [H, W, 3], at most `width` pixels wide."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(rgb))
    if image.width > width:
        size = (width, max(1, round(image.height * width / image.width)))
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def write_report(path: str | os.PathLike[str], data: ReportData) -> dict[str, float]:
    """Write the page: one file, no library, nothing fetched, scripts and styles pinned by hash.

    Returns: bytes of the file; rank, mean, 99th-percentile and maximum error of the cosines its patch explorer shows.
    Raises: ValueError: shapes in `data` do not fit together.
    """
    pts = torch.as_tensor(data.pts_seconds).double().cpu().numpy()
    similarity = torch.as_tensor(data.frame_similarity).float().cpu().numpy()
    position_mean = torch.as_tensor(data.position_mean).float().cpu().numpy()
    patches = torch.as_tensor(data.shown_patches).cpu()
    shown = np.asarray(data.shown_index, dtype=np.int64)
    count, (rows, columns) = len(pts), data.grid
    if similarity.shape != (count, count):
        raise ValueError(f"frame_similarity must be [{count}, {count}] as pts_seconds, got {similarity.shape}")
    if position_mean.shape != (rows, columns):
        raise ValueError(f"position_mean must be {(rows, columns)} as grid, got {position_mean.shape}")
    if patches.ndim != 3 or patches.shape[:2] != (len(shown), rows * columns):
        raise ValueError(f"shown_patches must be [{len(shown)}, {rows * columns}, D], got {tuple(patches.shape)}")

    explorer = _compress(patches, rows * columns)
    kept = np.linspace(0, count - 1, min(count, PAGE_FRAMES)).astype(np.int64)
    triangle = similarity[np.ix_(kept, kept)][np.triu_indices(len(kept))]
    page_data = {
        "pts": np.round(pts, 4).tolist(), "grid": [rows, columns], "viridis": to_base64(colour_table("viridis", 256)),
        "similarity": {"frames": kept.tolist(), "triangle": to_base64(np.round(triangle * 32767).astype("<i2"))},
        "position": to_base64(position_mean.astype("<f4")),
        "explorer": {
            "frames": shown[explorer.frames].tolist(), "rank": explorer.rank, "codes": to_base64(explorer.codes),
            "scales": to_base64(explorer.scales.astype("<f4")), "kappa": explorer.kappa.tolist(),
        },
    }  # fmt: skip
    page = render(
        "analyze", base=True, data=data, pts=pts, page_data=page_data, explorer=explorer,
        verdict=_verdict(data.grid, pts, similarity), thinned=len(kept) < count,
        thumbnails=[(int(index), base64.b64encode(jpeg).decode()) for index, jpeg in sorted(data.thumbnails)],
    )  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_bytes(page)
    return {
        "bytes": len(page), "explorer_rank": explorer.rank, "explorer_mean_error": explorer.mean_error,
        "explorer_p99_error": explorer.p99_error, "explorer_max_error": explorer.max_error,
    }  # fmt: skip


class _Explorer(NamedTuple):
    """A small copy of unit patch vectors x from which the page computes cosines.

    x ≈ scale · code, its projection on `rank` principal directions (uncentred, so that inner products survive). What
    the projection drops has length ρ = sqrt(1 - |scale · code|²). The cosine of two dropped parts is estimated by
    kappa, a table over c, the cosine of the kept parts: near 0 for unrelated patches, near 1 for the same thing twice.
        cosine(a, b) = aᵀb + ρa ρb kappa[bin],   bin = floor(KAPPA_BINS · sqrt((1 - c) / 2)), finest where c is near 1
    Without the table the cosines of nearly equal patches come out low by ρ².
    """

    frames: np.ndarray
    """Which of the given frames are kept, all unless rank would fall under RANK_MIN."""
    codes: np.ndarray
    """int8 [S, P, rank]."""
    scales: np.ndarray
    """float32 [S, P], one per vector; 0 marks a zero patch, similar to nothing."""
    kappa: np.ndarray
    """float32 [KAPPA_BINS]."""
    mean_error: float
    p99_error: float
    max_error: float
    position_error: float
    """Mean over pairs at the same position in different frames, which the chart shows."""
    pairs_checked: int

    @property
    def rank(self) -> int:
        return self.codes.shape[-1]


def _compress(patches: Tensor, positions: int) -> _Explorer:
    """Compress patches [S, P, D]. Table and errors come from two samples of query patches, each against all patches."""
    kept = max(1, EXPLORER_BYTES // (positions * min(RANK_MIN, patches.shape[2])))
    frames = np.linspace(0, len(patches) - 1, min(len(patches), kept)).astype(np.int64)
    if not len(patches):
        return _Explorer(frames, np.zeros((0, positions, 0), np.int8), np.zeros((0, positions)), np.zeros(0), *[0] * 5)
    dim = patches.shape[2]
    rows = patches[torch.from_numpy(frames)].reshape(-1, dim).float()
    inverse = rows.norm(dim=1).clamp_min(1e-12).reciprocal()
    rank = min(dim, RANK_MAX, max(RANK_MIN, EXPLORER_BYTES // len(rows)))
    generator = torch.Generator().manual_seed(0)

    order = torch.randperm(len(rows), generator=generator)
    sample = order[:6144]
    basis = _principal_subspace(rows[sample] * inverse[sample, None], rank, generator)
    projected = (rows @ basis) * inverse[:, None]
    scales = projected.abs().amax(1) / 127
    codes = (projected / scales.clamp_min(1e-12)[:, None]).round().to(torch.int8)
    approximate = codes.float() * scales[:, None]
    length = approximate.norm(dim=1)
    dropped = torch.where(scales > 0, (1 - length.square()).clamp_min(0).sqrt(), 0)

    def compare(queries: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Exact cosine, kept part, ρa ρb and table bin of `queries` with every patch, [Q, S·P] each."""
        exact = (rows[queries] * inverse[queries, None]) @ rows.T * inverse
        inner = approximate[queries] @ approximate.T
        cosine = inner / (length[queries, None] * length).clamp_min(1e-12)
        bins = ((1 - cosine).clamp_min_(0).mul_(0.5).sqrt_() * KAPPA_BINS).long().clamp_(max=KAPPA_BINS - 1)
        return exact, inner, dropped[queries, None] * dropped, bins

    exact, inner, weight, bins = compare(order[-32:])

    def total(values: Tensor) -> Tensor:
        return torch.zeros(KAPPA_BINS).index_add_(0, bins.flatten(), values.flatten())

    kappa = total((exact - inner) * weight) / (total(weight.square()) + 1e-3)  # least squares in each bin

    queries = order[:64]
    exact, inner, weight, bins = compare(queries)
    estimate = (inner + weight * kappa[bins]).clamp_(-1, 1)
    alive = (scales[queries] > 0).float()
    estimate[torch.arange(len(queries)), queries] = alive  # the page knows that a patch equals itself
    error = (estimate - exact).abs_()
    others = queries[:, None] % positions + positions * torch.arange(len(frames))  # the same position in every frame
    position_error = error.gather(1, others).sum() / max(1, len(queries) * (len(frames) - 1))
    error = error.flatten()
    shape = (len(frames), positions)
    return _Explorer(
        frames, codes.reshape(*shape, rank).numpy(), scales.reshape(shape).numpy(), kappa.numpy(),
        error.mean().item(), error.kthvalue(math.ceil(0.99 * len(error))).values.item(), error.max().item(),
        position_error.item(), len(error),
    )  # fmt: skip


def _principal_subspace(rows: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """[D, rank], an orthonormal basis of the strongest uncentred principal directions of rows [n, D].

    Subspace iteration with Cholesky orthonormalisation, nearly all of it matrix products: a full eigendecomposition is
    as fast on idle cores, but its threads wait for each other and take seconds on busy ones. The basis is rotated at
    random inside the subspace, which inner products do not see.
    """
    dim = rows.shape[1]
    if rank == dim:
        return torch.eye(dim)
    moment = (rows.T @ rows).double()
    moment.diagonal().add_(1e-4 * moment.trace() / dim + 1e-9)  # keeps the factorisation alive on few distinct rows
    basis = torch.randn(dim, rank, generator=generator, dtype=torch.float64)
    for _ in range(6):
        basis = moment @ basis
        factor = torch.linalg.cholesky(basis.T @ basis)
        basis = torch.linalg.solve_triangular(factor, basis.T, upper=False).T
    return basis.float()


def _verdict(grid: tuple[int, int], pts: np.ndarray, similarity: np.ndarray) -> str:
    """What was analysed and what stands out, in one line."""
    count = len(pts)
    patches = f"{grid[0]} × {grid[1]} patches"
    if count == 1:
        return f"One frame at {pts[0]:.2f} s, {patches}. Nothing to compare over time."
    steps = np.diagonal(similarity, 1)
    worst = int(steps.argmin())
    everything = (similarity.sum(dtype=np.float64) - np.trace(similarity, dtype=np.float64)) / (count * (count - 1))
    return (
        f"{count} frames from {pts[0]:.2f} s to {pts[-1]:.2f} s, {patches} each. Mean similarity of neighbouring "
        f"frames {steps.mean():.3f}, of any two {everything:.3f}; the largest change is from {pts[worst]:.2f} s "
        f"to {pts[worst + 1]:.2f} s ({steps[worst]:.3f})."
    )
