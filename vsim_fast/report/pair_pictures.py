"""Pictures of a pair of frames: match maps, mismatch, vector field, PCA; and a frame under its heat map."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vsim_fast.report.png import GREY_INDEX, LEVELS, colour_table, font, palette, shortened, to_levels, write_png

if TYPE_CHECKING:
    from PIL import Image

DPI = 150
MAP_PX, PANEL_PX, FRAME_PX = 490, 640, 560
"""Longest side of a heat map's cells, of a picture in the vector field and of PCA, of a frame beside its heat map."""
LEFT, TOP, LABELS_PX = 16, 48, 96
"""Pixel at which the cells or pictures begin, and room for the labels of a colour bar."""
MISMATCH_MAX = 1.25
"""A patch without any similarity and without a mutual match."""
HEAT, OPACITY = "inferno", 0.85
"""Colour table of heat over a picture, and how much of the picture the hottest colour hides."""
MUTUAL, ONE_WAY = (0, 255, 255), (255, 140, 26)


class PairDrawing(NamedTuple):
    """What the pictures of a pair show; numpy only, so that it crosses process borders. P = Hp·Wp."""

    image_a: np.ndarray
    """uint8 [H, W, 3], what the encoder saw of it."""
    image_b: np.ndarray
    grid: tuple[int, int]
    """(Hp, Wp)."""
    similarity_ab: np.ndarray
    """float [P], cosine of each patch of a with its best match in b."""
    similarity_ba: np.ndarray
    mismatch_a: np.ndarray
    """float [P] in [0, MISMATCH_MAX]."""
    mismatch_b: np.ndarray
    index_ab: np.ndarray
    """int [P], the patch of b that a's patch matches."""
    mutual_ab: np.ndarray
    """bool [P], whether that patch matches back."""
    pca_a: np.ndarray | None
    """float [P, 3] in 0..1, red, green and blue."""
    pca_b: np.ndarray | None


def write_pair_pictures(
    path_of: Callable[[str], Path], drawing: PairDrawing, *, arrow_stride: int = 4, relative: bool = False
) -> list[str]:
    """Draw similarity_A2B, similarity_B2A, mismatch_A, mismatch_B, vector_field and, with PCA, pca_features (.png).

    Args:
        path_of: from a name to the path that is written, at once and without a temporary name of its own.
        arrow_stride: every so many rows and columns of a's patches have an arrow.
        relative: colours from the least to the largest value of each map; else 0 to 1 for similarities and 0 to
            MISMATCH_MAX for mismatch, so that pictures of different pairs can be compared.
    Returns: the names.
    Raises: ValueError: shapes that do not fit the grid, values that are not finite, arrow_stride < 1.
    """
    _check(drawing, arrow_stride)
    maps = [
        ("similarity_A2B.png", drawing.similarity_ab, "A→B Cosine Similarity", "viridis", 1.0),
        ("similarity_B2A.png", drawing.similarity_ba, "B→A Cosine Similarity", "viridis", 1.0),
        ("mismatch_A.png", drawing.mismatch_a, "Mismatch Map A", "hot", MISMATCH_MAX),
        ("mismatch_B.png", drawing.mismatch_b, "Mismatch Map B", "hot", MISMATCH_MAX),
    ]
    names = []
    for name, values, title, colours, most in maps:
        low, high = (float(values.min()), float(values.max())) if relative else (0.0, most)
        page = _draw_map(values.reshape(drawing.grid), title, low, max(high, low + 1e-3))
        write_png(path_of(name), page, dpi=DPI, colours=palette(colours))
        names.append(name)
    names.append("vector_field.png")
    write_png(path_of(names[-1]), _draw_vector_field(drawing, arrow_stride), dpi=DPI)
    if drawing.pca_a is not None:
        names.append("pca_features.png")
        write_png(path_of(names[-1]), _draw_pca(drawing), dpi=DPI)
    return names


def write_overlay(
    path: str | os.PathLike[str], image: np.ndarray, heat: np.ndarray, *, vmax: float, title: str,
    reference: np.ndarray | None = None, reference_label: str = "reference",
) -> None:  # fmt: skip
    """Draw a frame, before it its reference where there is one, and the frame under its heat map, straight to `path`.

    Args:
        image, reference: uint8 [H, W, 3], of any sizes.  heat: float [Hp, Wp] over all of `image`, 0 leaves it as is.
        vmax: value of the strongest colour; larger ones take it too.  title: one line, shortened where it is too long.
        reference_label: what `reference` is called.
    Raises: ValueError: heat that is not 2-D or not finite, vmax that is not above 0.
    """
    if heat.ndim != 2 or not np.isfinite(heat).all():
        raise ValueError(f"heat must be [Hp, Wp] and finite, got shape {heat.shape}")
    if not vmax > 0:
        raise ValueError(f"vmax must be above 0, got {vmax}")
    frame = np.asarray(_resized(image, FRAME_PX))
    height, width = frame.shape[:2]
    panels = [("frame", frame), ("difference", _heated(frame, heat / vmax))]
    if reference is not None:
        panels.insert(0, (reference_label, np.asarray(_resized(reference, FRAME_PX, (width, height)))))
    left, top, gap, bar_width = 16, 76, 12, 18
    bar_left = left + len(panels) * (width + gap) + 4
    grey = _Grey(bar_left + bar_width + LABELS_PX, top + max(height, 60) + 20)
    grey.text(left, 30, title, size=20, anchor="ls", room=grey.image.width - 2 * left)
    for k, (name, _) in enumerate(panels):
        grey.text(left + k * (width + gap), top - 10, name, size=16, anchor="ls", room=width)
    grey.bar(bar_left, top, bar_width, height, 0.0, vmax)
    page = grey.rgb()
    for k, (_, picture) in enumerate(panels):
        page[top : top + height, left + k * (width + gap) :][:, :width] = picture
    page[top : top + height, bar_left : bar_left + bar_width] = palette(HEAT)[_ramp(height)]
    write_png(path, page, dpi=DPI)


def _heated(frame: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """`frame` under `heat` [Hp, Wp] in 0..1: the hotter, the less of the picture is left."""
    from PIL import Image

    height, width = frame.shape[:2]
    smooth = Image.fromarray(heat.clip(0, 1).astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    smooth = np.asarray(smooth)
    weight = (OPACITY * np.sqrt(smooth))[..., None]
    colours = colour_table(HEAT, 256)[(smooth * 255).astype(np.uint8)]
    return (frame + weight * (colours.astype(np.float32) - frame) + 0.5).astype(np.uint8)


def _check(drawing: PairDrawing, arrow_stride: int) -> None:
    rows, columns = drawing.grid
    for name in ("similarity_ab", "similarity_ba", "mismatch_a", "mismatch_b", "index_ab", "mutual_ab"):
        values = getattr(drawing, name)
        if values.shape != (rows * columns,):
            raise ValueError(f"{name} must be [{rows * columns}] as grid {drawing.grid}, got shape {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite, got {int((~np.isfinite(values)).sum())} other values")
    if drawing.index_ab.min() < 0 or drawing.index_ab.max() >= rows * columns:
        raise ValueError(f"index_ab must be in 0..{rows * columns - 1}, got {drawing.index_ab.max()}")
    for name in ("pca_a", "pca_b"):
        values = getattr(drawing, name)
        if values is not None and values.shape != (rows * columns, 3):
            raise ValueError(f"{name} must be [{rows * columns}, 3], got shape {values.shape}")
    if (drawing.pca_a is None) != (drawing.pca_b is None):
        raise ValueError("pca_a and pca_b must be given together")
    if drawing.image_a.shape != drawing.image_b.shape:
        raise ValueError(
            f"image_a and image_b must have one shape, got {drawing.image_a.shape} and {drawing.image_b.shape}"
        )
    if arrow_stride < 1:
        raise ValueError(f"arrow_stride must be at least 1, got {arrow_stride}")


def _draw_map(values: np.ndarray, title: str, low: float, high: float) -> np.ndarray:
    """uint8 palette indices: square cells [Hp, Wp] under a title, a colour bar beside them."""
    cell = max(1, MAP_PX // max(values.shape))
    height, width = (cell * n for n in values.shape)
    bar_left, bar_width = LEFT + width + 30, 24
    grey = _Grey(bar_left + bar_width + LABELS_PX, TOP + height + 20)
    grey.text(LEFT + width // 2, TOP - 14, title, size=21, anchor="ms", room=2 * (LEFT + width // 2))
    grey.bar(bar_left, TOP, bar_width, height, low, high)
    page = GREY_INDEX[grey.pixels()]
    page[TOP : TOP + height, LEFT : LEFT + width] = _enlarged(to_levels(values, low, high), cell)
    page[TOP : TOP + height, bar_left : bar_left + bar_width] = _ramp(height)
    return page


def _enlarged(cells: np.ndarray, side: int) -> np.ndarray:
    """[Hp·side, Wp·side, ...]: each cell a square."""
    return cells.repeat(side, 1).repeat(side, 0)


def _ramp(height: int) -> np.ndarray:
    """uint8 [height, 1], the levels of a colour bar, the highest on top."""
    return (np.arange(height)[::-1] * LEVELS // height).astype(np.uint8)[:, None]


class _Grey:
    """A white page to write on."""

    def __init__(self, width: int, height: int):
        from PIL import Image, ImageDraw

        self.image = Image.new("L", (width, height), 255)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x: int, y: int, text: str, *, size: int, anchor: str, room: int) -> None:
        """One line at most `room` pixels wide: shortened where it is not."""
        face = font(size)
        self.draw.text((x, y), shortened(" ".join(text.split()), face, room), fill=0, font=face, anchor=anchor)

    def bar(self, x: int, y: int, width: int, height: int, low: float, high: float) -> None:
        """Frame, ticks and labels of a colour bar whose colours fill the box."""
        from matplotlib.ticker import MaxNLocator

        self.draw.rectangle((x - 1, y - 1, x + width, y + height), outline=0)
        ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        step = ticks[1] - ticks[0]
        decimals = max(1, len(f"{step:.5f}".rstrip("0").split(".")[1]))
        slack = 1e-6 * (high - low)
        for value in ticks[(ticks >= low - slack) & (ticks <= high + slack)]:
            at = y + round((height - 1) * (high - value) / (high - low))
            self.draw.line((x + width, at, x + width + 6, at), fill=0)
            label = f"{value:.{decimals}f}" if step > 1e-4 else f"{value:.1e}"
            self.draw.text((x + width + 12, at), label, fill=0, font=font(19), anchor="lm")

    def pixels(self) -> np.ndarray:
        """uint8 [H, W]."""
        return np.asarray(self.image)

    def rgb(self) -> np.ndarray:
        """uint8 [H, W, 3]; quick where few rows are written on."""
        grey = self.pixels()
        page = np.full((*grey.shape, 3), 255, np.uint8)
        rows = np.flatnonzero(grey.min(1) < 255)
        page[rows] = grey[rows, :, None]
        return page


def _resized(image: np.ndarray, longest: int, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture uint8 [h, w, 3] with its longer side of `longest` pixels, or of `size` (width, height)."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    scale = longest / max(picture.size)
    size = size or tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def _draw_pca(drawing: PairDrawing) -> np.ndarray:
    """uint8 [h, w, 3]: both PCA pictures side by side."""
    cell = max(1, PANEL_PX // max(drawing.grid))
    height, width = (cell * n for n in drawing.grid)
    gap = 24
    grey = _Grey(2 * LEFT + 2 * width + gap, TOP + height + 16)
    panels = [(LEFT, "A", drawing.pca_a), (LEFT + width + gap, "B", drawing.pca_b)]
    for x, name, _ in panels:
        grey.text(x + width // 2, TOP - 14, f"Image {name} - PCA Features", size=24, anchor="ms", room=width)
    page = grey.rgb()
    for x, _, values in panels:
        colours = (values.reshape(*drawing.grid, 3).clip(0, 1) * 255 + 0.5).astype(np.uint8)
        page[TOP : TOP + height, x : x + width] = _enlarged(colours, cell)
    return page


def _draw_vector_field(drawing: PairDrawing, stride: int) -> np.ndarray:
    """uint8 [h, w, 3]: both pictures side by side, arrows from a's patches to their matches in b."""
    pictures = [_resized(image, PANEL_PX) for image in (drawing.image_a, drawing.image_b)]
    width, height = pictures[0].size
    grey = _Grey(2 * (LEFT + width), TOP + height + 44)
    for x, name in ((LEFT, "Image A"), (LEFT + width, "Image B")):
        grey.text(x + width // 2, TOP - 14, name, size=24, anchor="ms", room=width)
    below = TOP + height + 26
    for x, label in ((LEFT + width - 190, "mutual match"), (LEFT + width + 60, "one-way match")):
        grey.text(x, below, label, size=19, anchor="lm", room=width)
    page = grey.rgb()
    for k, picture in enumerate(pictures):
        page[TOP : TOP + height, LEFT + k * width : LEFT + (k + 1) * width] = np.asarray(picture)
    arrows = _Arrows(grey.image.size)

    rows, columns = drawing.grid
    p = (np.arange(0, rows, stride)[:, None] * columns + np.arange(0, columns, stride)).ravel()

    def centres(patches: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
        """[n, 2], x and y on the page."""
        cells = np.stack([patches % columns, patches // columns], 1) + 0.5
        return cells * (width / columns, height / rows) + corner

    starts, ends = centres(p, (LEFT, TOP)), centres(drawing.index_ab[p], (LEFT + width, TOP))
    mutual = drawing.mutual_ab[p]
    for colour, chosen, x in ((MUTUAL, mutual, LEFT + width - 240), (ONE_WAY, ~mutual, LEFT + width + 10)):
        legend = np.array([[x, below], [x + 40, below]])
        arrows.draw(np.vstack([starts[chosen], legend[0]]), np.vstack([ends[chosen], legend[1]]), colour)
    arrows.paint(page)
    return page


class _Arrows:
    """Smooth arrows, drawn by matplotlib's rasteriser without any figure."""

    HEAD, HALF_WIDTH, DOT = 11.0, 4.5, 2.5
    """Length and half the width of a head, radius of the start, in pixels."""

    def __init__(self, size: tuple[int, int]):
        from matplotlib.backends.backend_agg import RendererAgg

        self.height = size[1]
        self.renderer = RendererAgg(*size, DPI)

    def draw(self, starts: np.ndarray, ends: np.ndarray, colour: tuple[int, int, int]) -> None:
        """Arrows from `starts` to `ends`, [n, 2] each: dark edges first, so that they show on any picture."""
        from matplotlib.path import Path as Outline
        from matplotlib.transforms import Affine2D

        along = ends - starts
        length = np.hypot(*along.T)[:, None]
        along = np.divide(along, length, out=np.zeros_like(along), where=length > 0)
        across = along[:, ::-1] * (-1, 1)
        necks = ends - self.HEAD * along
        heads = np.stack([ends, necks + self.HALF_WIDTH * across, necks - self.HALF_WIDTH * across, ends], 1)
        turn = np.linspace(0, 2 * np.pi, 9)
        dots = starts[:, None] + self.DOT * np.stack([np.cos(turn), np.sin(turn)], 1)
        down = Affine2D().scale(1, -1).translate(0, self.height)

        def outline(points: np.ndarray) -> Outline:
            """All of [n, k, 2] as one path: where shapes overlap it is painted once."""
            codes = np.full(points.shape[:2], Outline.LINETO)
            codes[:, 0] = Outline.MOVETO
            return Outline(points.reshape(-1, 2), codes.ravel())

        shafts, shapes = outline(np.stack([starts, necks], 1)), (outline(heads), outline(dots))
        for rgb, alpha, width in (((0, 0, 0), 0.5, 3.2), (np.array(colour) / 255, 1.0, 1.3)):
            context = self.renderer.new_gc()
            context.set_foreground((*rgb, alpha), isRGBA=True)
            context.set_snap(False)
            context.set_linewidth(width * 72 / DPI)
            self.renderer.draw_path(context, shafts, down)
            context.set_linewidth((width - 1.3) * 72 / DPI)
            for shape in shapes:
                self.renderer.draw_path(context, shape, down, (*rgb, alpha))

    def paint(self, page: np.ndarray) -> None:
        """Blend what was drawn into `page` uint8 [H, W, 3]; few of its pixels are touched."""
        drawn = np.asarray(self.renderer.buffer_rgba())
        touched = np.flatnonzero(drawn[..., 3])
        drawn, page = drawn.reshape(-1, 4)[touched].astype(np.uint16), page.reshape(-1, 3)
        alpha = drawn[:, 3:]
        page[touched] = (drawn[:, :3] * alpha + page[touched] * (255 - alpha) + 127) // 255
