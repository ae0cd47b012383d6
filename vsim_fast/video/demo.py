"""A generated clip with cuts and motion, so that every command can be tried without a video at hand."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

FPS, WIDTH, HEIGHT = 24, 640, 360
SHOTS = 4
SHOT_SECONDS = 2


def write_demo_clip(path: str | Path) -> None:
    """Write an 8-second H.264 clip, 640×360 at 24 frames/s: four shots of drifting texture with a moving disc.

    The third shot returns to the scene of the first, so that similarity across a cut is there to be found.
    """
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for i, picture in enumerate(demo_frames()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def demo_frames():
    """uint8 [HEIGHT, WIDTH, 3] pictures of the demo clip, in order."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    for shot in range(SHOTS):
        scene = _texture(seed=shot % 2, rows=HEIGHT + 64, columns=WIDTH + 128)
        for i in range(FPS * SHOT_SECONDS):
            progress = i / (FPS * SHOT_SECONDS)
            top, left = round(48 * progress), round(96 * progress)
            picture = scene[top : top + HEIGHT, left : left + WIDTH].copy()
            centre = (HEIGHT * (0.5 + 0.3 * np.sin(6.3 * progress)), WIDTH * (0.15 + 0.7 * progress))
            inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < (36 + 6 * shot) ** 2
            picture[inside] = np.array([(240, 200, 40), (40, 220, 230), (240, 80, 60), (120, 240, 90)][shot])
            yield picture


def _texture(seed: int, rows: int, columns: int) -> np.ndarray:
    """uint8 [rows, columns, 3]: noise with a 1/f spectrum, as natural pictures have, tinted by the seed."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None, :])
    amplitude = 1 / np.maximum(frequency, 1 / columns) ** 1.2
    layers = []
    for _ in range(3):
        phase = rng.uniform(0, 2 * np.pi, amplitude.shape)
        layer = np.fft.irfft2(amplitude * np.exp(1j * phase), s=(rows, columns))
        layers.append((layer - layer.mean()) / layer.std())
    shared = layers[0]
    tint = rng.uniform(60, 180, 3)
    channels = [tint[c] + 34 * shared + 12 * layers[c] for c in range(3)]
    return np.stack(channels, -1).clip(0, 255).astype(np.uint8)
