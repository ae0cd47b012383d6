"""trajectories.png: the paths of what moves."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vsim_fast.store import atomic_path


def write_trajectories(path: str | os.PathLike[str], trajectories: Mapping[str, np.ndarray | Tensor]) -> None:
    """Draw paths [T, 2] (x right, y down, in picture sides), a panel each; a dot marks the start, later is lighter."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    columns = min(4, len(trajectories))
    rows = -(-len(trajectories) // columns)
    with matplotlib.rc_context(defaults):
        figure = Figure((3 * columns, 3.2 * rows), 120, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (name, points) in zip(panels, trajectories.items(), strict=False):
            x, y = torch.as_tensor(points).double().cpu().numpy().T
            axes.plot(x, y, color="lightgrey", linewidth=0.8)
            axes.scatter(x, y, c=np.arange(len(x)), cmap="viridis", s=8, zorder=2)
            axes.plot(x[0], y[0], "o", color="crimson", markersize=7, label="start", zorder=3)
            axes.set_title(name, parse_math=False)
            axes.set_xlim(-0.05, 1.05)
            axes.set_ylim(1.05, -0.05)
            axes.set_aspect("equal")
        panels[0].legend(loc="lower right")
        for axes in panels[len(trajectories) :]:
            axes.set_axis_off()
        with atomic_path(path) as temporary:
            canvas.print_png(str(temporary))
