"""alignment.png: two aligned videos, where and when they match."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vsim_fast.store import atomic_path

SHOWN_MATCHES, LABELLED_SECONDS = 8, 24
COST_MAX = 1.5
"""End of the colour scale: changes that oppose each other cost more than unrelated ones."""
MATRIX_SIDE = 600
"""Most rows and columns of the drawn cost matrix; larger ones are thinned evenly."""


class Second(NamedTuple):
    """What one second of video 1 is matched to."""

    second: int
    """From the start of video 1."""
    start_seconds: float
    """First and last matched frame of video 2, from its start."""
    end_seconds: float
    cost: float
    """Mean local cost: 0 the same change in the picture, around 1 unrelated."""


def write_alignment(
    path: str | os.PathLike[str],
    *,
    cost: np.ndarray,
    path_cells: np.ndarray,
    times: Sequence[np.ndarray],
    names: Sequence[str],
    seconds: Sequence[Second],
    title: str,
    thumbnails: Sequence[Callable[[int], np.ndarray]],
) -> None:
    """Draw two aligned videos: the warping path over the costs, one strip of seconds, and frames that belong together.

    Args:
        cost: [Ta, Tb] local costs, 0 the same, 1 unrelated.  path_cells: [L, 2], frames matched to each other.
        times: seconds of the frames of both videos, [Ta] and [Tb].  names: of the videos, any text.
        seconds: rows of the strip, see `Second`.
        thumbnails: for each video, from the index of a frame to uint8 [h, w, 3].
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context(defaults), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a file name may need letters that the font lacks
        figure = Figure((10, 11), 150, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        top, middle, bottom = figure.subfigures(3, 1, height_ratios=(6.6, 1.3, 2.8))
        names = [name if len(name) <= 48 else name[:47] + "…" for name in names]
        top.suptitle(title, parse_math=False, fontsize=12)
        _draw_path(top.subplots(), cost, path_cells, times, names)
        _draw_seconds(middle.subplots(), seconds, names[0])
        _draw_matches(bottom, cost, path_cells, times, names, thumbnails)
        with atomic_path(path) as temporary:
            canvas.print_png(str(temporary))


def _draw_path(axes: Any, cost: np.ndarray, cells: np.ndarray, times: Sequence[np.ndarray], names: Sequence[str]):
    rows, columns = (np.linspace(0, n - 1, min(n, MATRIX_SIDE)).astype(int) for n in cost.shape)
    mesh = axes.pcolormesh(
        times[1][columns], times[0][rows], cost[np.ix_(rows, columns)], vmin=0, vmax=COST_MAX, cmap="viridis",
        shading="nearest", rasterized=True,
    )  # fmt: skip
    axes.plot(times[1][cells[:, 1]], times[0][cells[:, 0]], color="white", linewidth=3)
    axes.plot(times[1][cells[:, 1]], times[0][cells[:, 0]], color="crimson", linewidth=1.5, label="warping path")
    axes.invert_yaxis()
    axes.set_xlabel(f"video 2: {names[1]} (s)", parse_math=False)
    axes.set_ylabel(f"video 1: {names[0]} (s)", parse_math=False)
    axes.legend(loc="upper right")
    axes.figure.colorbar(mesh, ax=axes, label="cost: 0 the same change, 1 unrelated")


def _draw_seconds(axes: Any, seconds: Sequence[Second], name: str) -> None:
    """A strip with one cell per second of video 1: its colour is the cost, its text the time in video 2."""
    first, last = seconds[0].second, seconds[-1].second
    strip = np.full((1, last - first + 1), np.nan)
    for row in seconds:
        strip[0, row.second - first] = row.cost
    extent = (first, last + 1, 0, 1)
    axes.imshow(strip, vmin=0, vmax=COST_MAX, cmap="viridis", extent=extent, aspect="auto", interpolation="nearest")
    for row in seconds[:: -(-len(seconds) // LABELLED_SECONDS)]:
        span = f"{row.start_seconds:.1f}\n– {row.end_seconds:.1f}"
        color = "white" if row.cost < 0.6 * COST_MAX else "black"
        axes.text(row.second + 0.5, 0.5, span, color=color, fontsize=6.5, ha="center", va="center")
    axes.set_yticks([])
    axes.set_title("each second of video 1: when it happens in video 2, coloured by cost", fontsize=10)
    axes.set_xlabel(f"video 1: {name} (s)", parse_math=False)


def _draw_matches(
    figure: Any, cost: np.ndarray, cells: np.ndarray, times: Sequence[np.ndarray], names: Sequence[str],
    thumbnails: Sequence[Callable[[int], np.ndarray]],
) -> None:  # fmt: skip
    """Frames of video 1 at even distances, above the frames of video 2 that they are matched to."""
    figure.suptitle("matched frames: video 1 above, video 2 below", fontsize=10)
    shown = np.unique(np.linspace(0, cost.shape[0] - 1, SHOWN_MATCHES).astype(int))
    axes = figure.subplots(2, len(shown), squeeze=False)
    for column, i in enumerate(shown):
        matches = cells[cells[:, 0] == i, 1]
        j = matches[len(matches) // 2]
        for row, (frame, note) in enumerate(((i, ""), (j, f"\ncost {cost[i, j]:.2f}"))):
            axes[row, column].imshow(thumbnails[row](int(frame)))
            axes[row, column].set_xlabel(f"{times[row][frame]:.2f} s{note}", fontsize=8)
            axes[row, column].set_xticks([])
            axes[row, column].set_yticks([])
