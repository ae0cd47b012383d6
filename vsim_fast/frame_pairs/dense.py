"""Dense correspondence of pairs: the numbers that are told, and what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from vsim_fast.pairs import Correspondence, correspondence, displacement, joint_pca, mismatch, pca_colors
from vsim_fast.report import PairDrawing


class Dense(NamedTuple):
    facts: dict[str, Any]
    """By the names of `PairResult`."""
    drawing: PairDrawing


def compare_densely(
    a: Tensor, b: Tensor, pictures_a: Sequence[np.ndarray], pictures_b: Sequence[np.ndarray], grid: tuple[int, int],
    *, compat: bool, pca: bool,
) -> list[Dense]:  # fmt: skip
    """Of B pairs of frames: patches [B, P, D] each, and what the encoder saw of each, uint8 [S, S, 3]."""
    found = correspondence(a, b)
    maps = [x.cpu() for x in mismatch(found, compat=compat)]
    moved = displacement(found.index_ab, grid).float().norm(dim=-1).cpu()
    colors = [pca_colors(x).cpu().numpy() for x in joint_pca(a, b)] if pca else None
    found = Correspondence(*(x.cpu() for x in found))
    results = []
    for row in range(len(a)):
        mutual = found.mutual_ab[row]
        facts = {
            "grid_size": grid[0], "num_patches": grid[0] * grid[1],
            "mean_similarity_a2b": found.scores_ab[row].mean().item(),
            "mean_similarity_b2a": found.scores_ba[row].mean().item(),
            "mean_mismatch_a": maps[0][row].mean().item(), "mean_mismatch_b": maps[1][row].mean().item(),
            "mutual_matches": mutual.float().mean().item(),
            "mean_displacement": moved[row][mutual].mean().item() if mutual.any() else None,
        }  # fmt: skip
        of_matches = (found.scores_ab, found.scores_ba, *maps, found.index_ab, found.mutual_ab)
        drawing = PairDrawing(
            pictures_a[row], pictures_b[row], grid, *(x[row].numpy() for x in of_matches),
            *((x[row] for x in colors) if colors else (None, None)),
        )  # fmt: skip
        results.append(Dense(facts, drawing))
    return results
