"""PNG files: an encoder for large, even pictures, one palette of colours and greys, and text."""

from __future__ import annotations

import os
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

LEVELS, GREYS = 224, 32
"""One palette of 256: levels of a colour table, then greys for frame and text."""
GREY_INDEX = ((np.arange(256) * (GREYS - 1) + 127) // 255 + LEVELS).astype(np.uint8)
"""Palette index of each grey value."""


@cache
def colour_table(name: str, levels: int) -> np.ndarray:
    """uint8 [levels, 3], matplotlib's colour table of that name at `levels` even steps."""
    from matplotlib import colormaps

    return (colormaps[name](np.linspace(0, 1, levels))[:, :3] * 255 + 0.5).astype(np.uint8)


@cache
def palette(name: str) -> np.ndarray:
    """uint8 [256, 3]: LEVELS of the colour table, then GREYS from black to white."""
    greys = np.linspace(0, 255, GREYS).round().astype(np.uint8)[:, None].repeat(3, 1)
    return np.concatenate([colour_table(name, LEVELS), greys])


def to_levels(values: np.ndarray, vmin: float, vmax: float) -> np.ndarray:
    """uint8, palette indices of `values`; those outside vmin..vmax take the end colours."""
    return ((values - vmin) * (LEVELS / (vmax - vmin))).clip(0, LEVELS - 1).astype(np.uint8)


@cache
def font(pixels: int) -> FreeTypeFont:
    """The typeface that matplotlib writes with."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), pixels)


def shortened(text: str, face: FreeTypeFont, room: int) -> str:
    """`text`, cut and ended by an ellipsis where it is wider than `room` pixels."""
    if face.getlength(text) <= room:
        return text
    while text and face.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"


def write_png(
    path: str | os.PathLike[str], pixels: np.ndarray, *, dpi: int, colours: np.ndarray | None = None
) -> None:  # fmt: skip
    """Write uint8 [H, W, 3], or palette indices [H, W] with `colours` [256, 3], straight to `path`.

    Every row is stored as its difference to the one above: enlarged cells become zeros, and photographs come out
    smaller and twice as fast as where the filter is searched row by row.
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 2
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    per_metre = round(dpi / 0.0254)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2 if colours is None else 3, 0, 0, 0)),
        (b"PLTE", b"" if colours is None else colours.tobytes()),
        (b"pHYs", struct.pack(">IIB", per_metre, per_metre, 1)),
        (b"IDAT", zlib.compress(filtered, 1)),
        (b"IEND", b""),
    ]
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in chunks:
            if content or kind == b"IEND":
                crc = zlib.crc32(content, zlib.crc32(kind))
                file.write(b"".join([struct.pack(">I", len(content)), kind, content, struct.pack(">I", crc)]))
