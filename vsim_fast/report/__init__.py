"""What a person looks at: pictures (PNG), statistics.txt and HTML pages. The only importer of matplotlib.

Names are loaded on first access: a process that draws the pictures of a pair needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {  # public name -> module that defines it
    "HeatmapWriter": "heatmaps",
    "PairDrawing": "pair_pictures",
    "PairPage": "pair_page",
    "ReportData": "analysis_page",
    "Second": "alignment",
    "thumbnail": "analysis_page",
    "write_alignment": "alignment",
    "write_overlay": "pair_pictures",
    "write_pair_page": "pair_page",
    "write_pair_pictures": "pair_pictures",
    "write_report": "analysis_page",
    "write_statistics": "statistics",
    "write_trajectories": "trajectories",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
