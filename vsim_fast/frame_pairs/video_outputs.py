"""What `pair_video` writes."""

from __future__ import annotations

import csv
import io
import os
from typing import Any

import numpy as np
from PIL import Image

from vsim_fast.frame_pairs.comparing import Comparing, Judged
from vsim_fast.frame_pairs.video_records import VideoPair, verdict
from vsim_fast.pipeline import Timings
from vsim_fast.report import PairPage, thumbnail, write_overlay, write_pair_page
from vsim_fast.store import OutputFolder, output_errors


def write_outputs(
    out: OutputFolder, comparing: Comparing, judged: Judged, pair: VideoPair, timings: Timings, started: float
) -> None:
    """frames.csv, frames.json, results.json, worst_*.png, report.html, summary.json."""
    (result,), curves = pair.results, comparing.curves | comparing.pixels.values
    worst, level, kinds = judged
    seconds = comparing.seconds
    table = comparing.columns() | curves | {"expected": level}
    stick_out = np.isin(np.arange(comparing.frames), worst[np.array(kinds, dtype=object) != "largest"])
    with output_errors(out.path):
        with open(out.file("frames.csv"), "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*table, "sticks_out"])
            for row in np.flatnonzero(comparing.number >= 0).tolist():
                writer.writerow([*(_cell(column[row]) for column in table.values()), int(stick_out[row])])
        known = comparing.number >= 0
        columns = {
            name: column[known].tolist() if column.dtype.kind == "i" else [number(value) for value in column[known]]
            for name, column in table.items()
        }
    out.write_json("frames.json", columns | {"sticks_out": stick_out[known].tolist()}, indent=None)
    out.write_json("results.json", [result.model_dump(mode="json") for result in pair.results])
    grid = comparing.encoder.grid
    for rank, row in enumerate(worst.tolist(), 1):
        if result.worst_frames[rank - 1].picture is not None:
            kept = comparing.shown[row]
            pictures = {name: _pixels(picture) for name, picture in kept.pictures.items()}
            frame = pictures["video" if "video" in pictures else "frame"]
            distance = result.worst_frames[rank - 1].patch_distance
            title = (
                f"{kinds[rank - 1]}: frame {comparing.number[row]}, {seconds[row]:.2f} s: patch distance {distance:.3f}"
            )
            write_overlay(
                out.file(overlay_name(rank, comparing.number[row])), frame, kept.distances.reshape(grid),
                vmax=1.0, title=title, reference=pictures.get("reference", pictures.get("before")),
                reference_label="reference" if "reference" in pictures else "frame before",
            )  # fmt: skip
    shown = sorted(comparing.shown)
    pair.run.timings = timings.summary(started)
    facts: dict[str, Any] = {
        name: {"path": reader.info.path, "size": "{1} x {0}".format(*reader.info.display_size),
               "codec": reader.info.codec, "frames": len(reader.info.pts), "frames per second": reader.info.average_fps}
        for name, reader in zip(("video", "reference"), comparing.readers, strict=False)
    }  # fmt: skip
    page = PairPage(
        title=os.path.basename(comparing.readers[0].info.path), verdict=verdict(result),
        notes=[note for note in pair.run.notes if "random weights" not in note],
        random_weights=comparing.encoder.random_weights,
        facts=facts | {"settings": pair.run.settings, "encoder": pair.run.encoder, "decoder": pair.run.decoder,
                       "seconds": pair.run.timings},
        frames=comparing.number, times=seconds, curves=_ordered(curves, comparing.judged),
        labels=comparing.labels, worst=worst.tolist(), expected=level, shown=shown,
        pictures={
            name: [thumbnail(_pixels(comparing.shown[row].pictures[name])) for row in shown]
            for name in comparing.picture_names
        },
        maps=np.stack([comparing.shown[row].distances.reshape(grid) for row in shown]) if shown else None,
    )  # fmt: skip
    write_pair_page(out.file("report.html"), page)
    pair.run.outputs = [*out.names, "summary.json"]
    out.write_json("summary.json", pair.run.model_dump(mode="json"))


def _pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def _ordered(curves: dict[str, np.ndarray], first: str) -> dict[str, np.ndarray]:
    return {first: curves[first]} | {name: curve for name, curve in curves.items() if np.isfinite(curve).any()}


def overlay_name(rank: int, frame: int) -> str:
    """Of the picture of the frame of that rank among the worst."""
    return f"worst_{rank:03d}_frame_{frame:06d}.png"


def number(value: float) -> float | None:
    """For JSON: null where there is none."""
    return float(value) if np.isfinite(value) else None


def _cell(value: float) -> str | int:
    return int(value) if isinstance(value, np.integer) else f"{value:.6g}" if np.isfinite(value) else ""
