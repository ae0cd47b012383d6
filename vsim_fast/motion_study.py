"""Do the fingerprints tell motions apart? A study of drawn paths, where the right answer is known.

Each trial draws every pattern twice with fresh noise. A score separates two patterns in a trial by the margin between
the lower of its similarities of either pattern to its second draw and its similarity of one pattern to the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, computed_field
from torch import Tensor

from vsim_fast.fingerprints import (
    DTWTrajectoryMatcher,
    MotionFingerprint,
    MultiScaleDerivativeFingerprint,
    MultiScaleFingerprint,
    TemporalDerivativeFingerprint,
    TrajectoryFingerprint,
)
from vsim_fast.ops._threads import one_thread

PATTERNS = (
    "linear_lr", "linear_rl", "linear_tb", "circular_cw", "circular_ccw", "zigzag", "stationary", "random_walk",
)  # fmt: skip
FRAMES = 100
CORNERS, DIM = 4, 1024
EMBEDDING_NOISE = 0.1
"""Standard deviation of each of 1024 dimensions: a frame's noise is three times as long as its signal, and what a point
at rest does is lost in it; so the scores of embeddings make no claim about one."""
HYPOTHESES = {
    "H1": ("opposite directions are dissimilar", "linear_lr", "linear_rl"),
    "H2": ("clockwise and counter-clockwise are dissimilar", "circular_cw", "circular_ccw"),
    "H3": ("a zigzag and a point at rest are dissimilar", "zigzag", "stationary"),
}
COMPARED = tuple(name for _, *pair in HYPOTHESES.values() for name in pair)
REQUIRED = {  # score -> hypothesis -> margin that every trial must reach; a score makes no claim where none is given
    "trajectory_stats": {"H1": 0.5, "H2": 0.5, "H3": 0.25},
    "trajectory_dtw": {"H1": 0.5, "H2": 0.5, "H3": 0.25},
    "temporal_derivative": {"H1": 0.03, "H2": 0.01},
    "multiscale_derivative": {"H1": 0.1, "H2": 0.05},
}


class Separation(BaseModel):
    """How far one score keeps two patterns apart."""

    model_config = ConfigDict(frozen=True)
    hypothesis: str
    statement: str
    score: str
    patterns: tuple[str, str]
    same_median: float
    """Similarity of a pattern to its second draw: of both patterns the lower, median over the trials."""
    cross_median: float
    """Similarity of the two patterns."""
    margin_min: float
    """Smallest over the trials of same minus cross."""
    margin_median: float
    required: float | None
    """Margin that `margin_min` must exceed; None where the score makes no claim."""

    @computed_field
    @property
    def holds(self) -> bool:
        return self.required is None or self.margin_min > self.required


class MotionStudy(BaseModel):
    """What `run_motion_study` found."""

    model_config = ConfigDict(frozen=True)
    noise: float
    embedding_noise: float
    seeds: int
    frames: int
    compat: bool
    patterns: tuple[str, ...]
    separations: tuple[Separation, ...]
    similarity: dict[str, tuple[tuple[float, ...], ...]]
    """By score, of the first draw of each pattern (row) to the second draw of each (column), first trial."""

    @computed_field
    @property
    def ok(self) -> bool:
        return not self.failures()

    def failures(self) -> list[str]:
        """One line for every claim that does not hold, naming the hypothesis, the score and both margins."""
        return [
            f"{s.hypothesis} ({s.statement}) fails for {s.score}: {s.patterns[0]} and {s.patterns[1]} are separated by "
            f"{s.margin_min:.3f}, {s.required:.3f} is required"
            for s in self.separations
            if not s.holds
        ]


def motion_patterns(frames: int = FRAMES, noise: float = 0.0, seed: int = 0, draw: int = 0) -> dict[str, Tensor]:
    """The paths of the study.

    Args:
        frames: T.  noise: standard deviation added to each coordinate, in picture sides.
        seed: of the random walk, and with `draw` of the noise.
    Returns:
        name -> float64 [T, 2] (x, y) in picture sides, y down, 0.01 per frame along the lines.
    """
    t = torch.linspace(0, 1, frames, dtype=torch.float64)
    middle, turn = torch.full_like(t, 0.5), 2 * math.pi * t
    generator = torch.Generator().manual_seed(seed)
    walk = (0.03 * torch.randn(frames, 2, dtype=torch.float64, generator=generator)).cumsum(0)
    walk = walk - walk.mean(0)
    walk = 0.5 + 0.4 * walk / walk.abs().max()
    paths = {
        "linear_lr": (t, middle),
        "linear_rl": (1 - t, middle),
        "linear_tb": (middle, t),
        "circular_cw": (0.5 + 0.3 * turn.cos(), 0.5 + 0.3 * turn.sin()),
        "circular_ccw": (0.5 + 0.3 * turn.cos(), 0.5 - 0.3 * turn.sin()),
        "zigzag": (t, 0.5 + 0.2 * (4 * turn).sin()),
        "stationary": (0.5 + 0.05 * t, 0.5 + 0.02 * turn.sin()),
        "random_walk": walk.unbind(1),
    }
    generator.manual_seed(2 * seed + draw + (1 << 32))
    return {
        name: torch.stack(path, dim=1) + noise * torch.randn(frames, 2, dtype=torch.float64, generator=generator)
        for name, path in paths.items()
    }


def path_embeddings(path: Tensor, noise: float, generator: torch.Generator, corners: Tensor) -> Tensor:
    """Embeddings of frames whose content is a place: unit vectors between four corners, noisy, unit again.

    Args:
        path: [T, 2] (x, y).  noise: standard deviation per dimension.
        corners: [4, D] unit vectors, at (0, 0), (1, 0), (0, 1) and (1, 1).
    Returns:
        float32 [T, D].
    """
    x, y = path.float().split(1, dim=1)
    weights = torch.cat(((1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y), dim=1)  # [T, 4]
    clean = F.normalize(weights @ corners, dim=1)
    return F.normalize(clean + noise * torch.randn(clean.shape, generator=generator), dim=1)


def run_motion_study(
    noise: float = 0.005,
    seeds: int = 100,
    compat: bool = False,
    *,
    embedding_noise: float = EMBEDDING_NOISE,
) -> MotionStudy:
    """Separate left-right from right-left, clockwise from counter-clockwise and a zigzag from a point at rest.

    Args:
        noise: standard deviation of each coordinate of the paths, in picture sides.
        seeds: trials, >= 1; trial s is the same in every run.
        compat: of the fingerprints.  embedding_noise: as in `path_embeddings`.
    Raises:
        ValueError: noise below 0 or not finite, or no trial.
    """
    for name, value in (("noise", noise), ("embedding_noise", embedding_noise)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and >= 0, got {value}")
    if seeds < 1:
        raise ValueError(f"seeds must be >= 1, got {seeds}")
    trial = _Trial(compat)
    pairs = [pair for _, a, b in HYPOTHESES.values() for pair in ((a, a), (b, b), (a, b))]
    found: dict[str, list[list[float]]] = {score: [] for score in trial.scores}  # [seeds][3 per hypothesis]
    with one_thread():
        for seed in range(seeds):
            names = PATTERNS if seed == 0 else COMPARED
            first, second = (trial.draw(names, seed, draw, noise, embedding_noise) for draw in (0, 1))
            for score, compare in trial.scores.items():
                found[score].append([compare(first[a], second[b]) for a, b in pairs])
            if seed == 0:
                similarity = {
                    score: tuple(tuple(compare(first[a], second[b]) for b in names) for a in names)
                    for score, compare in trial.scores.items()
                }
    separations = [
        _separation(hypothesis, score, torch.tensor(found[score])[:, 3 * h : 3 * h + 3])
        for h, hypothesis in enumerate(HYPOTHESES)
        for score in trial.scores
    ]
    return MotionStudy(
        noise=noise,
        embedding_noise=embedding_noise,
        seeds=seeds,
        frames=FRAMES,
        compat=compat,
        patterns=PATTERNS,
        separations=tuple(separations),
        similarity=similarity,
    )


@dataclass(frozen=True)
class _Drawn:
    path: Tensor
    motion: MotionFingerprint
    changes: MultiScaleFingerprint


class _Trial:
    """Draws patterns and fingerprints them once; `scores` compare two of them."""

    def __init__(self, compat: bool):
        stats, matcher = TrajectoryFingerprint(compat=compat), DTWTrajectoryMatcher(compat=compat)
        single = TemporalDerivativeFingerprint(compat=compat)
        multiscale = MultiScaleDerivativeFingerprint(compat=compat)
        self._describe = lambda path, embeddings: _Drawn(path, stats.compute(path), multiscale.compute(embeddings))
        self.scores: dict[str, Callable[[_Drawn, _Drawn], float]] = {
            "trajectory_stats": lambda a, b: stats.compare(a.motion, b.motion),
            "trajectory_dtw": lambda a, b: matcher.compare(a.path, b.path),
            "temporal_derivative": lambda a, b: single.compare(a.changes.scales[1], b.changes.scales[1]),
            "multiscale_derivative": lambda a, b: multiscale.compare(a.changes, b.changes),
        }

    def draw(
        self, names: Sequence[str], seed: int, draw: int, noise: float, embedding_noise: float
    ) -> dict[str, _Drawn]:
        generator = torch.Generator().manual_seed(seed)
        corners = F.normalize(torch.randn(CORNERS, DIM, generator=generator), dim=1)
        generator.manual_seed(2 * seed + draw + (1 << 32))
        paths = motion_patterns(noise=noise, seed=seed, draw=draw)
        return {
            name: self._describe(paths[name], path_embeddings(paths[name], embedding_noise, generator, corners))
            for name in names
        }


def _separation(hypothesis: str, score: str, similarities: Tensor) -> Separation:
    """From [seeds, 3]: both patterns to their second draws, and one to the other."""
    same, cross = similarities[:, :2].amin(1), similarities[:, 2]
    statement, *patterns = HYPOTHESES[hypothesis]
    return Separation(
        hypothesis=hypothesis,
        statement=statement,
        score=score,
        patterns=tuple(patterns),
        same_median=same.median().item(),
        cross_median=cross.median().item(),
        margin_min=(same - cross).min().item(),
        margin_median=(same - cross).median().item(),
        required=REQUIRED[score].get(hypothesis),
    )
