"""report.html of `pair` on videos: a curve over the frames, and the pictures of any of them beside it."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vsim_fast.report.page import render, to_base64
from vsim_fast.report.pair_pictures import HEAT, OPACITY
from vsim_fast.report.png import colour_table
from vsim_fast.store import atomic_path

CURVE_BUCKETS = 1500
"""Stretches of a long video of which each curve keeps its least and its largest value."""
MAIN_PICTURES = ("video", "frame")
"""The pictures that the heat lies over; the others are what they are compared with."""


@dataclass
class PairPage:
    """Everything the page shows. T frames were measured, S of them have pictures."""

    title: str
    """Any text, it is escaped."""
    verdict: str
    notes: Sequence[str]
    """Things the reader must know: fallbacks, frames left out."""
    random_weights: bool
    facts: Mapping[str, Mapping[str, Any]]
    """Heading -> table: video, reference, settings, encoder, statistics, timings."""
    frames: np.ndarray
    """int [T], frame numbers, rising."""
    times: np.ndarray
    """float [T], seconds, rising."""
    curves: Mapping[str, np.ndarray]
    """Name -> float [T], not finite where undefined. The first is the main one."""
    labels: Mapping[str, str]
    """Name of a curve -> what it means, one line."""
    worst: Sequence[int]
    """Rows in 0..T-1, worst first."""
    expected: np.ndarray | None
    """[T], the local level of the main curve above which `worst` stick out."""
    shown: Sequence[int]
    """Rows with pictures, rising."""
    pictures: Mapping[str, Sequence[bytes]]
    """Name -> S JPEGs: "video" and "reference", or "before", "frame" and "after"; what the patch grid covers."""
    maps: np.ndarray | None
    """float [S, Hp, Wp], patch distances, 0 or more."""


def write_pair_page(path: str | os.PathLike[str], page: PairPage) -> dict[str, int]:
    """Write the page: one file, no library, nothing fetched, scripts and styles pinned by hash.

    Returns: "bytes" of the file, "curve_frames" and "shown_frames" that it holds.
    Raises: ValueError: parts that do not fit together.
    """
    _check(page)
    rows = _kept_rows(page)
    place = {row: k for k, row in enumerate(rows.tolist())}  # row -> where it is among the kept
    kept = {name: _finite(curve)[rows] for name, curve in page.curves.items()}
    main = next((name for name in page.pictures if name in MAIN_PICTURES), next(iter(page.pictures), None))
    page_data = {
        "frames": page.frames[rows].tolist(), "times": np.round(page.times[rows], 4).tolist(),
        "curves": [{"name": _words(name), "values": to_base64(curve.astype("<f4"))} for name, curve in kept.items()],
        "expected": None if page.expected is None else to_base64(_finite(page.expected)[rows].astype("<f4")),
        "worst": [place[int(row)] for row in page.worst], "shown": [place[int(row)] for row in page.shown],
        "pictures": {name: [base64.b64encode(jpeg).decode() for jpeg in page.pictures[name]] for name in page.pictures},
        "main": main, "heat": None if page.maps is None or not len(page.shown) else _heat(page.maps),
    }  # fmt: skip
    html = render(
        "pair", {"value": _value, "words": _words}, base=True, page=page, page_data=page_data, main=main,
        others=[name for name in page.pictures if name != main], thinned=len(rows) < len(page.frames),
    )  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_bytes(html)
    return {"bytes": len(html), "curve_frames": len(rows), "shown_frames": len(page.shown)}


def _check(page: PairPage) -> None:
    count, shown = len(page.frames), np.asarray(page.shown, dtype=np.int64)
    if not count or not page.curves:
        raise ValueError(f"a page needs a frame and a curve, got {count} frames and {len(page.curves)} curves")
    named = {"times": page.times, **page.curves} | ({} if page.expected is None else {"expected": page.expected})
    for name, values in named.items():
        if np.shape(values) != (count,):
            raise ValueError(f"{name} must be [{count}] as frames, got shape {np.shape(values)}")
    for name, rows in (("worst", np.asarray(page.worst, dtype=np.int64)), ("shown", shown)):
        if rows.size and not 0 <= rows.min() <= rows.max() < count:
            raise ValueError(f"{name} must be rows in 0..{count - 1}, got {rows.min()} to {rows.max()}")
    if (np.diff(shown) <= 0).any():
        raise ValueError(f"shown must rise, got {shown.tolist()}")
    for name, jpegs in page.pictures.items():
        if len(jpegs) != len(shown):
            raise ValueError(f"pictures of {name!r} must be {len(shown)} as shown, got {len(jpegs)}")
    if page.maps is not None and (np.ndim(page.maps) != 3 or len(page.maps) != len(shown)):
        raise ValueError(f"maps must be [{len(shown)}, Hp, Wp] as shown, got shape {np.shape(page.maps)}")


def _finite(curve: np.ndarray) -> np.ndarray:
    """float64 [T] with NaN for all that is not finite."""
    curve = np.asarray(curve, dtype=np.float64)
    return np.where(np.isfinite(curve), curve, np.nan)


def _kept_rows(page: PairPage) -> np.ndarray:
    """Rows whose values are in the page: all of a short video; of a long one the first and the last, the least and the
    largest of every curve in each stretch, and all that are named or shown."""
    count = len(page.frames)
    if count <= 2 * CURVE_BUCKETS:
        return np.arange(count)
    edges = np.linspace(0, count, CURVE_BUCKETS + 1).astype(np.int64)
    rows = [[0, count - 1], np.asarray(page.worst, np.int64), np.asarray(page.shown, np.int64)]
    for curve in map(_finite, page.curves.values()):
        for sign in (1, -1):
            signed = np.where(np.isnan(curve), np.inf, sign * curve)
            least = np.minimum.reduceat(signed, edges[:-1])
            hits = np.flatnonzero(signed == least.repeat(np.diff(edges)))
            bucket = np.searchsorted(edges, hits, side="right") - 1
            rows.append(hits[np.unique(bucket, return_index=True)[1]])  # the first of equals
    return np.unique(np.concatenate(rows)).astype(np.int64)


def _heat(maps: np.ndarray) -> dict[str, Any]:
    """Maps [S, Hp, Wp] as bytes, (code / 255)² · most: the root keeps small distances apart."""
    maps = np.nan_to_num(np.asarray(maps, dtype=np.float32), posinf=0.0).clip(0)
    most = float(maps.max()) or 1.0
    codes = np.sqrt(maps / most) * 255 + 0.5
    return {
        "grid": list(maps.shape[1:]), "most": most, "codes": to_base64(codes.astype(np.uint8)),
        "colours": to_base64(colour_table(HEAT, 256)), "opacity": OPACITY,
    }  # fmt: skip


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: float) -> str:
    """A measured value with four digits or so; the page's script writes them alike."""
    if not math.isfinite(value):
        return "–"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"
