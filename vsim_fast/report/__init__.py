"""What a person looks at: pictures (PNG), statistics.txt and HTML pages. The only importer of matplotlib."""

from __future__ import annotations

from vsim_fast.report.alignment import Second, write_alignment
from vsim_fast.report.analysis_page import ReportData, thumbnail, write_report
from vsim_fast.report.heatmaps import HeatmapWriter
from vsim_fast.report.pair_page import PairPage, write_pair_page
from vsim_fast.report.pair_pictures import PairDrawing, write_overlay, write_pair_pictures
from vsim_fast.report.statistics import write_statistics
from vsim_fast.report.trajectories import write_trajectories

__all__ = [
    "HeatmapWriter", "PairDrawing", "PairPage", "ReportData", "Second", "thumbnail", "write_alignment",
    "write_overlay", "write_pair_page", "write_pair_pictures", "write_report", "write_statistics", "write_trajectories",
]  # fmt: skip
