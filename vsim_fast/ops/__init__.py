"""The floor: tensors in, tensors out. Knows nothing of files, models or videos."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {  # public name -> subpackage, loaded on first access
    "position_similarity": "cosine",
    "intra_frame_similarity": "cosine",
    "frame_similarity": "cosine",
    "best_match": "cosine",
    "nv12_to_pixels": "nv12",
    "rgb_to_pixels": "nv12",
    "derivatives": "derivatives",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value
