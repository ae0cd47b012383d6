"""What `vsim compare` tells apart on real clips: each against itself, reversed, sped up and re-encoded.

    python bench/motion_clips.py FOLDER [--cache FOLDER] [--score order] [NAME ...]

Prints one row per clip. A clip with motion must have the verdict "same motion" with itself and with every edit but the
reversed one. Variants are made once, in the cache folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vsim_fast.comparison import STILL, Comparison, compare_clips, compare_settings, read_clip
from vsim_fast.encode import load_encoder
from vsim_fast.errors import DecodeError
from vsim_fast.pipeline import Timings
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


def compared(path: Path, encoder, folder: Path) -> dict[str, Comparison]:
    """A clip against itself and its variants."""
    settings = compare_settings()
    clip = read_clip(path, encoder, settings)
    others = {"self": clip} | {
        kind: read_clip(variant, encoder, settings) for kind, variant in variants(path, folder).items()
    }
    return {kind: compare_clips(clip, other, encoder, settings, Timings())[0] for kind, other in others.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, help="folder of clips")
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "vsim-motion-clips")
    parser.add_argument("--score", default="order", help="score to print, or fusion")
    parser.add_argument("--model", default="builtin")
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.model)
    kinds = ("self", *VARIANTS)
    print(f"{arguments.score:40s} motion " + "".join(f"{kind:>11s}" for kind in kinds))
    wrong = 0
    for path in sorted(p for p in arguments.media.iterdir() if p.is_file()):
        if arguments.names and path.name not in arguments.names:
            continue
        try:
            rows = compared(path, encoder, arguments.cache)
        except DecodeError as error:
            print(f"{path.name:40s} {error}")
            continue
        motion = rows["self"].video1.motion.steady
        cells = []
        for kind in kinds:
            row = rows[kind]
            bad = motion >= STILL and (row.verdict == "same motion") == (kind == "reversed")
            wrong += bad
            value = row.fusion if arguments.score == "fusion" else row.scores[arguments.score]
            cells.append(f"{value:10.3f}{'!' if bad else ' '}")
        print(
            f"{path.name:40s} {motion:6.3f} " + "".join(cells) + ("" if motion >= STILL else "  no motion"), flush=True
        )
    print(f"{wrong} wrong verdicts on clips with motion")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
