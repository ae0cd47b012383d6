"""statistics.txt."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vsim_fast.similarity import Stats
from vsim_fast.store import atomic_path


def write_statistics(path: str | os.PathLike[str], sections: Mapping[str, Stats]) -> None:
    """Write statistics.txt: per section its name, then Shape, Mean, Std, Min, Max with 4 decimals."""
    heading = "Patch Similarity Analysis Statistics"
    blocks = [f"{heading}\n{'=' * 50}\n"]
    for name, stats in sections.items():
        numbers = "".join(f"  {key.title()}: {getattr(stats, key):.4f}\n" for key in ("mean", "std", "min", "max"))
        blocks.append(f"{name}:\n  Shape: {tuple(stats.shape)}\n{numbers}")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(blocks), encoding="utf-8")
