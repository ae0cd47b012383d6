"""The clip that whole programs are timed on."""

from __future__ import annotations

import os
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
