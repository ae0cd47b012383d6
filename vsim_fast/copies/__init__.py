"""What makes two videos copies of each other: the same content, in the same order, over how much of each."""

from vsim_fast.copies.features import ORIENTATIONS, CopyFeatures
from vsim_fast.copies.scores import SIGNALS, THRESHOLDS, VERDICTS, PairScores, score_pairs

VERSION = 1
"""Of the features and scores: what was made by another one is made again."""

__all__ = ["ORIENTATIONS", "SIGNALS", "THRESHOLDS", "VERDICTS", "VERSION", "CopyFeatures", "PairScores", "score_pairs"]
