"""The clip that whole programs are timed on, and what is made from it."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np

PREFERRED = "person_indoor_139s_10fps.mp4"
BESIDE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "data" / "videos"


def find_clip(scratch: Path) -> Path:
    """The long real clip of `VSIM_BENCH_CLIPS` or beside the checkout, else the largest there, else a generated one."""
    folder = Path(os.environ.get("VSIM_BENCH_CLIPS") or BESIDE_CHECKOUT)
    real = sorted(folder.glob("*.mp4"), key=lambda path: (path.name == PREFERRED, path.stat().st_size))
    return real[-1] if real else generate(scratch / "drift.mp4")


def generate(path: Path, *, seconds: int = 60, fps: int = 10, width: int = 768, height: int = 432) -> Path:
    """H.264 of a drifting texture with sensor noise."""
    import av

    random = np.random.default_rng(0)
    texture = random.integers(0, 240, (height // 8, width // 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)  # twice as wide
    noise = random.integers(0, 16, (height, width, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(seconds * fps):
            frame = texture[:, k % width : k % width + width] + np.roll(noise, 7 * k, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_pairs(clip: Path, folder: Path, count: int) -> Path:
    """A list (JSON) of `count` pairs of a frame and the next one, spread over the clip; each image a PNG of its own.

    A clip of fewer than two frames per pair gives fewer pairs.
    """
    import av
    from PIL import Image

    from vsim_fast.video import probe

    frames = len(probe(clip).pts)
    count = min(count, frames // 2)
    firsts = [k * frames // count for k in range(count)]
    wanted = {first + side: f"{k:03d}_{'ab'[side]}.png" for k, first in enumerate(firsts) for side in (0, 1)}
    with av.open(str(clip)) as container:
        for n, frame in enumerate(container.decode(video=0)):
            if n in wanted:
                Image.fromarray(frame.to_ndarray(format="rgb24")).save(folder / wanted[n], compress_level=1)
    pairs = [{f"image_{side}": str(folder / f"{k:03d}_{side}.png") for side in "ab"} for k in range(count)]
    config = folder / "pairs.json"
    config.write_text(json.dumps(pairs))
    return config


def write_copy(clip: Path, path: Path, frames: int, crf: int) -> Path:
    """The first frames of the clip again, as H.264 of that rate factor."""
    import av

    with av.open(str(clip)) as source, av.open(str(path), "w") as out:
        shown = source.streams.video[0]
        stream = out.add_stream("libx264", rate=shown.average_rate, options={"preset": "veryfast", "crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = shown.width, shown.height, "yuv420p"
        stream.codec_context.time_base = shown.time_base
        for frame in islice(source.decode(shown), frames):
            copy = frame.reformat(format="yuv420p")
            copy.pts, copy.time_base, copy.pict_type = frame.pts, shown.time_base, 0
            out.mux(stream.encode(copy))
        out.mux(stream.encode())
    return path
