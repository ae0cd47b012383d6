"""Similarity matrices as labelled pictures (PNG)."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsim_fast.report.png import GREY_INDEX, LEVELS, font, palette, shortened, to_levels, write_png
from vsim_fast.store import atomic_path

FIGURE_INCHES, DPI = (10, 8), 300
WIDTH, HEIGHT = FIGURE_INCHES[0] * DPI, FIGURE_INCHES[1] * DPI
CELLS_PX = 2048
"""Most pixels a side of the cells: 2 per cell for a grid of 32×32 patches."""
LEFT, TOP = 370, 150
"""Pixel at which the cells begin: room for the tick labels and the title."""


class _Template(NamedTuple):
    page: np.ndarray
    """uint8 [HEIGHT, WIDTH], palette indices of everything but title and cells."""
    box: tuple[int, int, int]
    """left, top, side of the cells in pixels."""


class HeatmapWriter:
    """Similarity matrices as labelled pictures, 3000×2400 px: viridis, square cells, colour bar.

    Matplotlib draws frame, ticks and labels once per matrix size and labels; a picture then costs one table look-up,
    one enlargement and one palette PNG.
    """

    def __init__(self) -> None:
        self._templates: dict[tuple[object, ...], _Template] = {}

    def prepare(self, size: int, *, xlabel: str, ylabel: str, vmin: float = 0.0, vmax: float = 1.0) -> None:
        """Draw the template ahead of its first `write`, for instance while the encoder is still busy."""
        key = (size, xlabel, ylabel, vmin, vmax)
        if key not in self._templates:
            self._templates[key] = _draw_template(*key)

    def write(
        self, path: str | os.PathLike[str], matrix: np.ndarray | Tensor, *, title: str, xlabel: str, ylabel: str,
        vmin: float = 0.0, vmax: float = 1.0,
    ) -> None:  # fmt: skip
        """Write `matrix` [N, N] to `path` (PNG). Values outside vmin..vmax take the end colours.

        Raises: ValueError: `matrix` is not square, is empty or holds NaN; or vmin >= vmax.
        """
        values = torch.as_tensor(matrix).detach().float().cpu().numpy()
        if values.ndim != 2 or values.shape[0] != values.shape[1] or not values.size:
            raise ValueError(f"matrix must be [N, N] with N > 0, got shape {values.shape}")
        if not vmin < vmax:
            raise ValueError(f"vmin must be less than vmax, got {vmin} and {vmax}")
        if np.isnan(values).any():
            raise ValueError(f"matrix must hold no NaN, got {int(np.isnan(values).sum())}")
        from PIL import Image

        self.prepare(len(values), xlabel=xlabel, ylabel=ylabel, vmin=vmin, vmax=vmax)
        template = self._templates[len(values), xlabel, ylabel, vmin, vmax]
        left, top, side = template.box
        page = template.page.copy()
        levels = to_levels(values, vmin, vmax)
        # Larger than the box: average cells, so that thin structure fades instead of vanishing.
        resample = Image.Resampling.NEAREST if len(values) <= side else Image.Resampling.BOX
        page[top : top + side, left : left + side] = Image.fromarray(levels).resize((side, side), resample)
        _draw_title(page, title, centre=left + side // 2, bottom=top)
        with atomic_path(path) as temporary:
            write_png(temporary, page, dpi=DPI, colours=palette("viridis"))


def _cell_side(size: int) -> int:
    """Pixels a side for `size` cells: a whole number each where that fills most of the box, so that all are equal."""
    side = size * max(1, CELLS_PX // size)
    return side if 0.8 * CELLS_PX <= side <= CELLS_PX else CELLS_PX


def _draw_template(size: int, xlabel: str, ylabel: str, vmin: float, vmax: float) -> _Template:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    side = _cell_side(size)
    left, top = LEFT + (CELLS_PX - side) // 2, TOP + (CELLS_PX - side) // 2
    bar_left, bar_width = left + side + 90, 96
    before, after = 2, 1  # px from content to frame line: the line, 3 px wide, snaps to lie outside and hides no cell

    def axes(figure: Figure, x: int, y: int, width: int, height: int):
        width, height, bottom = width + before + after, height + before + after, HEIGHT - y - height - after
        return figure.add_axes(((x - before) / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))

    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    defaults["axes.linewidth"] = 3 * 72 / DPI
    with matplotlib.rc_context(defaults):  # a user's own style may not be grey on white
        figure = Figure(FIGURE_INCHES, DPI)
        cells = axes(figure, left, top, side, side)
        first, last = -0.5 - before * size / side, size - 0.5 + after * size / side
        cells.set_xlim(first, last)
        cells.set_ylim(last, first)
        for axis in (cells.xaxis, cells.yaxis):
            axis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        cells.set_xlabel(xlabel)
        cells.set_ylabel(ylabel)
        bar = axes(figure, bar_left, top, bar_width, side)
        bar.set_ylim(vmin, vmax)
        bar.set_xticks([])
        bar.yaxis.tick_right()
        bar.yaxis.set_label_position("right")
        bar.set_ylabel("Cosine Similarity")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        page = GREY_INDEX[np.asarray(canvas.buffer_rgba())[..., 1]]
    ramp = (np.arange(side)[::-1] * LEVELS // side).astype(np.uint8)
    page[top : top + side, bar_left : bar_left + bar_width] = ramp[:, None]
    return _Template(page, (left, top, side))


def _draw_title(page: np.ndarray, title: str, *, centre: int, bottom: int) -> None:
    """Set `title` in one line above row `bottom`, in a smaller size and at last shortened where it is too wide."""
    from PIL import Image, ImageDraw

    title = " ".join(title.split())
    room = 2 * min(centre, WIDTH - centre) - 60
    faces = [font(round(points * DPI / 72)) for points in (12, 10, 8)]
    face = next((face for face in faces if face.getlength(title) <= room), faces[-1])
    title = shortened(title, face, room)
    strip = Image.new("L", (WIDTH, bottom), 255)
    ImageDraw.Draw(strip).text((centre, bottom - 30), title, fill=0, font=face, anchor="ms")
    np.minimum(page[:bottom], GREY_INDEX[np.asarray(strip)], out=page[:bottom])  # tick labels reach up here
