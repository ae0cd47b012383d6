"""Short clips of drawn scenes for the tests of copies: edits are made of lists of frames."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from motion_clips import write_variant

from vsim_fast.models import Scene

RATE = 12


def scene(seed: int, frames: int = 48, *, pace: float = 0.5) -> list[np.ndarray]:
    """uint8 [180, 240, 3] each; RATE a second."""
    drawn = Scene(seed)
    return [drawn.frame(n * pace) for n in range(frames)]


def write(path: Path, frames: list[np.ndarray]) -> Path:
    write_variant(path, "original", frames, np.arange(len(frames)) / RATE, Fraction(RATE))
    return path
