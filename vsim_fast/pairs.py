"""Two frames by their tokens: how far apart, at which patches, and what of one lies where in the other.

Every function takes any leading axes [...], so that many pairs go through one call. Two patches of zeros, in which an
encoder found nothing, are as alike as can be here: a frame is at distance 0 from itself, black ones included.
Source: the frame-pair tool VFI-Similarity (later NOVA), whose mismatch map is `mismatch(..., compat=True)`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.ops import best_match

Pooling = Literal["all", "patches"]
MUTUAL_PENALTY = 1.25
"""Factor of the mismatch of a patch whose best match prefers another patch."""
TIE = 1e-5
"""A patch that matches the same place as well as its best match, to within this cosine, has not moved."""
PCA_SEED, PCA_VECTORS, PCA_ROUNDS = 0, 16, 32


def pooled_embedding(patches: Tensor, cls: Tensor | None = None, *, pooling: Pooling = "all") -> Tensor:
    """One vector per frame: the mean of its tokens.

    Args:
        patches: [..., P, D].  cls: [..., D], the CLS token; None where the encoder has none in its sequence.
        pooling: "all" takes the CLS token in, as the released checkpoints were trained; "patches" leaves it out.
    Returns:
        float32 [..., D].   Raises: ValueError: `pooling`.
    """
    if pooling not in ("all", "patches"):
        raise ValueError(f"pooling must be all or patches, got {pooling!r}")
    if pooling == "patches" or cls is None:
        return patches.mean(-2, dtype=torch.float32)
    return (patches.sum(-2, dtype=torch.float32) + cls.float()) / (patches.shape[-2] + 1)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine of vectors [..., D]: float32 [...] in [0, 2], as half the squared distance of the unit vectors.

    So equal vectors are at exactly 0, and small distances keep their digits. Two zero vectors: 0; one: 1.
    """
    a, b = a.float(), b.float()
    norms = torch.linalg.vector_norm(a, dim=-1), torch.linalg.vector_norm(b, dim=-1)
    unit_a, unit_b = (
        x / norm.clamp_min(torch.finfo(torch.float32).tiny)[..., None] for x, norm in zip((a, b), norms, strict=True)
    )
    one_empty = (norms[0] == 0) != (norms[1] == 0)
    return torch.where(one_empty, 1.0, (unit_a - unit_b).square().sum(-1) / 2).clamp_(max=2)


def pooled_patch_distance(distances: Tensor) -> Tensor:
    """[...] root mean square of `cosine_distance` of the patches at the same position, [..., P].

    The quadratic mean weighs a defect in a few patches (a ghost, a torn row) more than the same sum spread thin over
    the picture, and unlike the distance of pooled embeddings it knows where things are.
    """
    return distances.square().mean(-1).sqrt()


class Correspondence(NamedTuple):
    """For each patch of a the most similar patch of b, and back."""

    scores_ab: Tensor
    """float32 [..., P] cosine of each patch of a with its best match in b."""
    index_ab: Tensor
    """int64 [..., P] patch of b."""
    scores_ba: Tensor
    index_ba: Tensor
    mutual_ab: Tensor
    """bool [..., P]: the best match of a patch of a has that patch as its own best match."""
    mutual_ba: Tensor


def correspondence(a: Tensor, b: Tensor, *, backend: str | None = None) -> Correspondence:
    """Best matches of the patches [P, D] or [B, P, D] of two frames, both ways, without the P × P matrix.

    Among matches that are equally good, the same place is taken.  Raises: as `ops.best_match`.
    """
    match = best_match(a, b, backend=backend)
    empty_a, empty_b = (~x.any(-1) for x in (a, b))
    stays = 1 - cosine_distance(a, b)
    place = torch.arange(a.shape[-2], device=a.device)

    def settled(scores: Tensor, index: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.where(empty, 1.0, scores)
        return scores, torch.where(empty | (stays >= scores - TIE), place, index)

    both = empty_a & empty_b
    scores_ab, index_ab = settled(match.scores_ab, match.index_ab, both)
    scores_ba, index_ba = settled(match.scores_ba, match.index_ba, both)
    mutual_ab, mutual_ba = index_ba.gather(-1, index_ab) == place, index_ab.gather(-1, index_ba) == place
    return Correspondence(scores_ab, index_ab, scores_ba, index_ba, mutual_ab, mutual_ba)


def mismatch(found: Correspondence, *, compat: bool = False) -> tuple[Tensor, Tensor]:
    """How little each patch of a is found in b, and of b in a: float32 [..., P] each, in [0, 1.25].

    1 - cosine of the best match (cosines under 0 count as 0), times 1.25 where the match is not mutual. So two equal
    frames are 0 everywhere, and maps of different pairs can be compared.

    Args:
        compat: the original's relative map: cosines are stretched to 0 … 1 over each map first, so that the worst patch
            of any pair is 1 or 1.25, and two equal frames, with nothing to stretch, are 1 everywhere.
    """
    maps = []
    for scores, mutual in ((found.scores_ab, found.mutual_ab), (found.scores_ba, found.mutual_ba)):
        if compat:
            low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
            scores = (scores - low) / (high - low).clamp_min(1e-8)
        maps.append((1 - scores).clamp(0, 1) * torch.where(mutual, 1.0, MUTUAL_PENALTY))
    return maps[0], maps[1]


def displacement(index: Tensor, grid: tuple[int, int]) -> Tensor:
    """int64 [..., P, 2]: columns right and rows down, in patches, from each patch to its match, `index` [..., P]."""
    width = grid[1]
    place = torch.arange(index.shape[-1], device=index.device)
    return torch.stack([index % width - place % width, index // width - place // width], -1)


def joint_pca(a: Tensor, b: Tensor, components: int = 3) -> tuple[Tensor, Tensor]:
    """Patches of two frames on the principal axes of both together: float32 [..., P, components] each, whitened.

    Each component has variance 1 over the 2P patches. The sign of a component is the one that makes the entry of
    largest magnitude in its axis positive. A component without variance is 0. The same input gives the same output.
    """
    rows = a.shape[-2]
    stacked = torch.cat([a, b], -2).float()
    stacked = stacked - stacked.mean(-2, keepdim=True)
    values, axes = _leading(stacked.mT @ stacked)
    axes, values = axes[..., :components], values[..., :components].sqrt()  # [..., D, c] [..., c]
    largest = axes.gather(-2, axes.abs().argmax(-2, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    spread = values[..., None, :] / (2 * rows - 1) ** 0.5  # standard deviation along each axis
    floor = 1e-6 * stacked.abs().amax((-2, -1), keepdim=True) + torch.finfo(torch.float32).tiny
    projected = torch.where(spread > floor, stacked @ axes / spread.clamp_min(floor), 0.0)
    projected = F.pad(projected, (0, components - projected.shape[-1]))
    return projected[..., :rows, :], projected[..., rows:, :]


def _leading(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues [..., k], falling, and eigenvectors [..., D, k] of symmetric [..., D, D], nothing negative.

    Subspace iteration with vectors and rounds enough to agree with the full decomposition, in a fifth of its time. Not
    `torch.svd_lowrank`, which is the same but draws from the random state of the process: pairs run in threads.
    """
    generator = torch.Generator().manual_seed(PCA_SEED)
    start = torch.randn(moment.shape[-1], min(PCA_VECTORS, moment.shape[-1]), generator=generator)
    basis = start.to(moment).expand(*moment.shape[:-1], -1)
    for _ in range(PCA_ROUNDS):
        basis = torch.linalg.qr(moment @ basis).Q
    values, inner = torch.linalg.eigh(basis.mT @ moment @ basis)
    return values.flip(-1).clamp_min(0), (basis @ inner).flip(-1)


def pca_colors(projected: Tensor) -> Tensor:
    """float32 [..., P, 3] in 0 … 1 of three whitened components: a sigmoid, so that no patch sets the others' scale."""
    return torch.sigmoid(2 * projected)
