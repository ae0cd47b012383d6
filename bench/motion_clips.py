"""What `vsim compare` tells apart on real clips: each against itself, reversed, sped up and re-encoded."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vsim_fast.video import Sampling, open_video

LONGER_SIDE = 480
"""Most pixels a side of a variant: halves the work, and is an edit in itself."""
VARIANTS = ("reversed", "speed1.5", "speed2", "reencoded")


def displayed_frames(path: Path) -> tuple[list[np.ndarray], np.ndarray, Fraction]:
    """Every frame as displayed, uint8 [H, W, 3] of at most LONGER_SIDE; start times in seconds; frame rate."""
    frames, times = [], []
    with open_video(path, Sampling("all"), decoder="pyav", output="rgb", batch_size=16) as reader:
        info = reader.info
        for batch in reader:
            for rgb in batch.rgb.numpy():
                rgb = np.rot90(rgb, info.rotation // 90)
                frames.append(smaller(rgb[:, ::-1] if info.mirrored else rgb))
            times.append(batch.pts_seconds.numpy())
            batch.release()
    return frames, np.concatenate(times), Fraction(info.average_fps).limit_denominator(1001)


def smaller(rgb: np.ndarray) -> np.ndarray:
    height, width = rgb.shape[:2]
    scale = min(1, LONGER_SIDE / max(height, width))
    height, width = (2 * round(n * scale / 2) for n in (height, width))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return frame.reformat(width, height, interpolation="AREA").to_ndarray()


def write_variant(path: Path, kind: str, frames: list[np.ndarray], times: np.ndarray, rate: Fraction) -> None:
    """One edit of a clip, at its own frame rate."""
    end = times[-1] + float(1 / rate)
    if kind == "reversed":
        picks, starts = np.arange(len(frames))[::-1], end - np.append(times, end)[:0:-1]
    elif kind.startswith("speed"):
        starts = np.arange(0, (end - times[0]) / float(kind.removeprefix("speed")), float(1 / rate))
        at = times[0] + starts * float(kind.removeprefix("speed"))
        picks = (np.searchsorted(times, at + 1e-6, side="right") - 1).clip(0)
    else:
        picks, starts = np.arange(len(frames)), times - times[0]
    height, width = frames[0].shape[:2]
    if kind == "reencoded":
        height, width = (2 * round(n * 0.6 / 2) for n in (height, width))
    tick = Fraction(1, 12800)
    with av.open(str(path), "w", format="mp4") as out:
        crf = "35" if kind == "reencoded" else "23"
        stream = out.add_stream("libx264", rate=rate, options={"crf": crf, "preset": "veryfast", "threads": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = tick
        for pick, start in zip(picks.tolist(), starts.tolist(), strict=True):
            frame = av.VideoFrame.from_ndarray(frames[pick], format="rgb24")
            frame.pts, frame.time_base = round(start / tick), tick
            out.mux(stream.encode(frame.reformat(width, height, "yuv420p", interpolation="AREA")))
        out.mux(stream.encode(None))


def variants(path: Path, folder: Path) -> dict[str, Path]:
    """Paths of all variants of a clip, made where they are not yet in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"{path.name}.{kind}.mp4" for kind in VARIANTS}
    if not all(p.exists() for p in paths.values()):
        source = displayed_frames(path)
        for kind, target in paths.items():
            write_variant(target, kind, *source)
    return paths
