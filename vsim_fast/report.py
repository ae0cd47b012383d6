"""What a person looks at: heat maps (PNG), statistics.txt and the page report.html. The only importer of matplotlib."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsim_fast.similarity import Stats
from vsim_fast.store import atomic_path

# --- heat maps ------------------------------------------------------------------------------------------------------

FIGURE_INCHES, DPI = (10, 8), 300
WIDTH, HEIGHT = FIGURE_INCHES[0] * DPI, FIGURE_INCHES[1] * DPI
CELLS_PX = 2048
"""Most pixels a side of the cells: 2 per cell for a grid of 32×32 patches."""
LEFT, TOP = 370, 150
"""Pixel at which the cells begin: room for the tick labels and the title."""
LEVELS, GREYS = 224, 32
"""One palette of 256: levels of the colour table, then greys for frame and text."""


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
        levels = ((values - vmin) * (LEVELS / (vmax - vmin))).clip(0, LEVELS - 1).astype(np.uint8)
        # Larger than the box: average cells, so that thin structure fades instead of vanishing.
        resample = Image.Resampling.NEAREST if len(values) <= side else Image.Resampling.BOX
        page[top : top + side, left : left + side] = Image.fromarray(levels).resize((side, side), resample)
        _draw_title(page, title, centre=left + side // 2, bottom=top)
        picture = Image.frombuffer("P", (WIDTH, HEIGHT), page, "raw", "P", 0, 1)
        picture.putpalette(_palette())
        with atomic_path(path) as temporary:
            picture.save(temporary, "PNG", compress_level=1, dpi=(DPI, DPI))


@cache
def _viridis(levels: int) -> np.ndarray:
    """uint8 [levels, 3], the colour table at `levels` even steps."""
    from matplotlib import colormaps

    return (colormaps["viridis"](np.linspace(0, 1, levels))[:, :3] * 255 + 0.5).astype(np.uint8)


@cache
def _palette() -> bytes:
    greys = np.linspace(0, 255, GREYS).round().astype(np.uint8)[:, None].repeat(3, 1)
    return np.concatenate([_viridis(LEVELS), greys]).tobytes()


GREY_INDEX = ((np.arange(256) * (GREYS - 1) + 127) // 255 + LEVELS).astype(np.uint8)
"""Palette index of each grey value."""


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


@cache
def _font(points: float):
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), round(points * DPI / 72))


def _draw_title(page: np.ndarray, title: str, *, centre: int, bottom: int) -> None:
    """Set `title` in one line above row `bottom`, in a smaller size and at last shortened where it is too wide."""
    from PIL import Image, ImageDraw

    title = " ".join(title.split())
    room = 2 * min(centre, WIDTH - centre) - 60
    font = next((f for f in map(_font, (12, 10, 8)) if f.getlength(title) <= room), _font(8))
    if font.getlength(title) > room:
        while font.getlength(title + "…") > room:
            title = title[:-1]
        title += "…"
    strip = Image.new("L", (WIDTH, bottom), 255)
    ImageDraw.Draw(strip).text((centre, bottom - 30), title, fill=0, font=font, anchor="ms")
    np.minimum(page[:bottom], GREY_INDEX[np.asarray(strip)], out=page[:bottom])  # tick labels reach up here


# --- alignment.png ---------------------------------------------------------------------------------------------------

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


# --- trajectories.png ------------------------------------------------------------------------------------------------


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


# --- statistics.txt --------------------------------------------------------------------------------------------------


def write_statistics(path: str | os.PathLike[str], sections: Mapping[str, Stats]) -> None:
    """Write statistics.txt: per section its name, then Shape, Mean, Std, Min, Max with 4 decimals."""
    heading = "Patch Similarity Analysis Statistics"
    blocks = [f"{heading}\n{'=' * 50}\n"]
    for name, stats in sections.items():
        numbers = "".join(f"  {key.title()}: {getattr(stats, key):.4f}\n" for key in ("mean", "std", "min", "max"))
        blocks.append(f"{name}:\n  Shape: {tuple(stats.shape)}\n{numbers}")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(blocks), encoding="utf-8")


# --- report.html -----------------------------------------------------------------------------------------------------

TEMPLATES = Path(__file__).parent / "templates"
EXPLORER_BYTES = 3 * 2**20
"""Most bytes of feature codes in the page; base64 makes them a third larger."""
RANK_MIN, RANK_MAX = 32, 192
PAGE_FRAMES = 1200
"""Most rows of the frame-similarity map kept in the page; longer videos are thinned evenly."""
KAPPA_BINS = 32


@dataclass
class ReportData:
    """Everything report.html shows. Arrays may be numpy or tensors on any device."""

    title: str
    """Usually the file name; any text, it is escaped."""
    video: Mapping[str, Any]
    settings: Mapping[str, Any]
    encoder: Mapping[str, Any]
    notes: Sequence[str]
    """Things the reader must know: fallbacks, guessed colour, black frames."""
    pts_seconds: np.ndarray | Tensor
    """[T]."""
    frame_similarity: np.ndarray | Tensor
    """[T, T]."""
    position_mean: np.ndarray | Tensor
    """[Hp, Wp], mean over all pairs of frames of the similarity at each position."""
    statistics: Mapping[str, Stats]
    thumbnails: Sequence[tuple[int, bytes]]
    """(frame index in 0..T-1, JPEG); see `thumbnail`. They should show what the patch grid covers."""
    shown_index: Sequence[int]
    """[S], the frames whose patches can be explored, rising."""
    shown_patches: np.ndarray | Tensor
    """[S, P, D], not normalised, any float dtype."""
    grid: tuple[int, int]
    """(Hp, Wp)."""
    timings: Mapping[str, float]
    """Stage -> seconds."""
    random_weights: bool = False
    flagged: Mapping[int, str] = field(default_factory=dict)
    """Frame index -> why it matches everything, e.g. "black"."""


def thumbnail(rgb: np.ndarray, *, width: int = 320) -> bytes:
    """JPEG of a frame, uint8 [H, W, 3], at most `width` pixels wide."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(rgb))
    if image.width > width:
        size = (width, max(1, round(image.height * width / image.width)))
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=70)
    return out.getvalue()


def write_report(path: str | os.PathLike[str], data: ReportData) -> dict[str, float]:
    """Write the page: one file, no library, nothing fetched, scripts and styles pinned by hash.

    Returns: bytes of the file; rank, mean, 99th-percentile and maximum error of the cosines its patch explorer shows.
    Raises: ValueError: shapes in `data` do not fit together.
    """
    import jinja2
    from markupsafe import Markup

    pts = torch.as_tensor(data.pts_seconds).double().cpu().numpy()
    similarity = torch.as_tensor(data.frame_similarity).float().cpu().numpy()
    position_mean = torch.as_tensor(data.position_mean).float().cpu().numpy()
    patches = torch.as_tensor(data.shown_patches).cpu()
    shown = np.asarray(data.shown_index, dtype=np.int64)
    count, (rows, columns) = len(pts), data.grid
    if similarity.shape != (count, count):
        raise ValueError(f"frame_similarity must be [{count}, {count}] as pts_seconds, got {similarity.shape}")
    if position_mean.shape != (rows, columns):
        raise ValueError(f"position_mean must be {(rows, columns)} as grid, got {position_mean.shape}")
    if patches.ndim != 3 or patches.shape[:2] != (len(shown), rows * columns):
        raise ValueError(f"shown_patches must be [{len(shown)}, {rows * columns}, D], got {tuple(patches.shape)}")

    explorer = _compress(patches, rows * columns)
    kept = np.linspace(0, count - 1, min(count, PAGE_FRAMES)).astype(np.int64)
    triangle = similarity[np.ix_(kept, kept)][np.triu_indices(len(kept))]
    page_data = {
        "pts": np.round(pts, 4).tolist(), "grid": [rows, columns], "viridis": _base64(_viridis(256)),
        "similarity": {"frames": kept.tolist(), "triangle": _base64(np.round(triangle * 32767).astype("<i2"))},
        "position": _base64(position_mean.astype("<f4")),
        "explorer": {
            "frames": shown[explorer.frames].tolist(), "rank": explorer.rank, "codes": _base64(explorer.codes),
            "scales": _base64(explorer.scales.astype("<f4")), "kappa": explorer.kappa.tolist(),
        },
    }  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"show": _show, "seconds": lambda value: f"{value:.2f} s"}
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("analyze.css", "analyze.js"))
    page = environment.get_template("analyze.html.j2").render(
        data=data, pts=pts, page_data=page_data, explorer=explorer, verdict=_verdict(data.grid, pts, similarity),
        thumbnails=[(int(index), base64.b64encode(jpeg).decode()) for index, jpeg in sorted(data.thumbnails)],
        thinned=len(kept) < count, style=Markup(style), script=Markup(script),
        style_hash=_csp_hash(style), script_hash=_csp_hash(script),
    ).encode()  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_bytes(page)
    return {
        "bytes": len(page), "explorer_rank": explorer.rank, "explorer_mean_error": explorer.mean_error,
        "explorer_p99_error": explorer.p99_error, "explorer_max_error": explorer.max_error,
    }  # fmt: skip


class _Explorer(NamedTuple):
    """A small copy of unit patch vectors x from which the page computes cosines.

    x ≈ scale · code, its projection on `rank` principal directions (uncentred, so that inner products survive). What
    the projection drops has length ρ = sqrt(1 - |scale · code|²). The cosine of two dropped parts is estimated by
    kappa, a table over c, the cosine of the kept parts: near 0 for unrelated patches, near 1 for the same thing twice.
        cosine(a, b) = aᵀb + ρa ρb kappa[bin],   bin = floor(KAPPA_BINS · sqrt((1 - c) / 2)), finest where c is near 1
    Without the table the cosines of nearly equal patches come out low by ρ².
    """

    frames: np.ndarray
    """Which of the given frames are kept, all unless rank would fall under RANK_MIN."""
    codes: np.ndarray
    """int8 [S, P, rank]."""
    scales: np.ndarray
    """float32 [S, P], one per vector; 0 marks a zero patch, similar to nothing."""
    kappa: np.ndarray
    """float32 [KAPPA_BINS]."""
    mean_error: float
    p99_error: float
    max_error: float
    position_error: float
    """Mean over pairs at the same position in different frames, which the chart shows."""
    pairs_checked: int

    @property
    def rank(self) -> int:
        return self.codes.shape[-1]


def _compress(patches: Tensor, positions: int) -> _Explorer:
    """Compress patches [S, P, D]. Table and errors come from two samples of query patches, each against all patches."""
    kept = max(1, EXPLORER_BYTES // (positions * min(RANK_MIN, patches.shape[2])))
    frames = np.linspace(0, len(patches) - 1, min(len(patches), kept)).astype(np.int64)
    if not len(patches):
        return _Explorer(frames, np.zeros((0, positions, 0), np.int8), np.zeros((0, positions)), np.zeros(0), *[0] * 5)
    dim = patches.shape[2]
    rows = patches[torch.from_numpy(frames)].reshape(-1, dim).float()
    inverse = rows.norm(dim=1).clamp_min(1e-12).reciprocal()
    rank = min(dim, RANK_MAX, max(RANK_MIN, EXPLORER_BYTES // len(rows)))
    generator = torch.Generator().manual_seed(0)

    order = torch.randperm(len(rows), generator=generator)
    sample = order[:6144]
    basis = _principal_subspace(rows[sample] * inverse[sample, None], rank, generator)
    projected = (rows @ basis) * inverse[:, None]
    scales = projected.abs().amax(1) / 127
    codes = (projected / scales.clamp_min(1e-12)[:, None]).round().to(torch.int8)
    approximate = codes.float() * scales[:, None]
    length = approximate.norm(dim=1)
    dropped = torch.where(scales > 0, (1 - length.square()).clamp_min(0).sqrt(), 0)

    def compare(queries: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Exact cosine, kept part, ρa ρb and table bin of `queries` with every patch, [Q, S·P] each."""
        exact = (rows[queries] * inverse[queries, None]) @ rows.T * inverse
        inner = approximate[queries] @ approximate.T
        cosine = inner / (length[queries, None] * length).clamp_min(1e-12)
        bins = ((1 - cosine).clamp_min_(0).mul_(0.5).sqrt_() * KAPPA_BINS).long().clamp_(max=KAPPA_BINS - 1)
        return exact, inner, dropped[queries, None] * dropped, bins

    exact, inner, weight, bins = compare(order[-32:])

    def total(values: Tensor) -> Tensor:
        return torch.zeros(KAPPA_BINS).index_add_(0, bins.flatten(), values.flatten())

    kappa = total((exact - inner) * weight) / (total(weight.square()) + 1e-3)  # least squares in each bin

    queries = order[:64]
    exact, inner, weight, bins = compare(queries)
    estimate = (inner + weight * kappa[bins]).clamp_(-1, 1)
    alive = (scales[queries] > 0).float()
    estimate[torch.arange(len(queries)), queries] = alive  # the page knows that a patch equals itself
    error = (estimate - exact).abs_()
    others = queries[:, None] % positions + positions * torch.arange(len(frames))  # the same position in every frame
    position_error = error.gather(1, others).sum() / max(1, len(queries) * (len(frames) - 1))
    error = error.flatten()
    shape = (len(frames), positions)
    return _Explorer(
        frames, codes.reshape(*shape, rank).numpy(), scales.reshape(shape).numpy(), kappa.numpy(),
        error.mean().item(), error.kthvalue(math.ceil(0.99 * len(error))).values.item(), error.max().item(),
        position_error.item(), len(error),
    )  # fmt: skip


def _principal_subspace(rows: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """[D, rank], an orthonormal basis of the strongest uncentred principal directions of rows [n, D].

    Subspace iteration with Cholesky orthonormalisation, nearly all of it matrix products: a full eigendecomposition is
    as fast on idle cores, but its threads wait for each other and take seconds on busy ones. The basis is rotated at
    random inside the subspace, which inner products do not see.
    """
    dim = rows.shape[1]
    if rank == dim:
        return torch.eye(dim)
    moment = (rows.T @ rows).double()
    moment.diagonal().add_(1e-4 * moment.trace() / dim + 1e-9)  # keeps the factorisation alive on few distinct rows
    basis = torch.randn(dim, rank, generator=generator, dtype=torch.float64)
    for _ in range(6):
        basis = moment @ basis
        factor = torch.linalg.cholesky(basis.T @ basis)
        basis = torch.linalg.solve_triangular(factor, basis.T, upper=False).T
    return basis.float()


def _verdict(grid: tuple[int, int], pts: np.ndarray, similarity: np.ndarray) -> str:
    """What was analysed and what stands out, in one line."""
    count = len(pts)
    patches = f"{grid[0]} × {grid[1]} patches"
    if count == 1:
        return f"One frame at {pts[0]:.2f} s, {patches}. Nothing to compare over time."
    steps = np.diagonal(similarity, 1)
    worst = int(steps.argmin())
    everything = (similarity.sum(dtype=np.float64) - np.trace(similarity, dtype=np.float64)) / (count * (count - 1))
    return (
        f"{count} frames from {pts[0]:.2f} s to {pts[-1]:.2f} s, {patches} each. Mean similarity of neighbouring "
        f"frames {steps.mean():.3f}, of any two {everything:.3f}; the largest change is from {pts[worst]:.2f} s "
        f"to {pts[worst + 1]:.2f} s ({steps[worst]:.3f})."
    )


def _show(value: Any) -> str:
    """A table cell."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_show(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_show, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
