"""Motion fingerprints: how a video moves, whatever it shows.

Embeddings [T, D] give temporal derivatives; attention centroids [T, 2] give trajectories. Every class has two readings:
the mended one, whose scores lie in [0, 1] and have a stated meaning, and `compat=True`, the published formulas.
"""

from vsim_fast.fingerprints.derivative import (
    DerivativeFingerprint,
    MultiScaleDerivativeFingerprint,
    MultiScaleFingerprint,
    TemporalDerivativeFingerprint,
)
from vsim_fast.fingerprints.matcher import DTWTrajectoryMatcher
from vsim_fast.fingerprints.trajectory import MotionFingerprint, TrajectoryFingerprint

__all__ = [
    "DTWTrajectoryMatcher",
    "DerivativeFingerprint",
    "MotionFingerprint",
    "MultiScaleDerivativeFingerprint",
    "MultiScaleFingerprint",
    "TemporalDerivativeFingerprint",
    "TrajectoryFingerprint",
]
