"""Short clips of drawn scenes for the tests of copies: edits are made of lists of frames."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from vsim_fast.models import Scene

RATE = 12


def scene(seed: int, frames: int = 48) -> list[np.ndarray]:
    """uint8 [180, 240, 3] each; RATE a second."""
    drawn = Scene(seed)
    return [drawn.frame(n / 2) for n in range(frames)]


def write(path: Path, frames: list[np.ndarray]) -> Path:
    """The same bytes every time, unlike those of x264's other presets."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "18", "preset": "ultrafast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        out.mux(stream.encode(None))
    return path
