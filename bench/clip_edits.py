"""Short clips in memory: read as displayed, run through filters, drawn, written."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

RATE = 25
LINES = 360
"""Most pixels of the shorter side."""
Clip = list[np.ndarray]
"""Frames at RATE per second, uint8 yuv420p as PyAV lays it out: [H * 3 / 2, W], H and W even."""


def drawn(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def filtered(chain: str, frames: Iterable[av.VideoFrame] = (), stream=None, count: int | None = None) -> Clip:
    """What comes out of a chain of filters, as yuv420p of even size; without `frames` the chain is its own source.

    Args:
        chain: filters of FFmpeg joined by commas.
        frames: with times; of `stream`, then also None at the end, or, without it, yuv420p at RATE per second.
        count: stop after as many.
    """
    graph = av.filter.Graph()
    frames = iter(frames)
    nodes = []
    if stream is not None:
        nodes = [graph.add_buffer(template=stream, time_base=stream.time_base)]
    elif (first := next(frames, None)) is not None:
        tick = Fraction(1, RATE)
        nodes = [graph.add_buffer(width=first.width, height=first.height, format="yuv420p", time_base=tick)]
        frames = (first, *frames)
    for part in f"{chain},format=yuv420p,crop=trunc(iw/2)*2:trunc(ih/2)*2".split(","):
        name, _, options = part.partition("=")
        nodes.append(graph.add(name, options or None))
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()

    def pulled() -> Iterator[np.ndarray]:
        while True:
            try:
                yield graph.vpull().to_ndarray()
            except (av.BlockingIOError, av.EOFError):
                return

    clip: Clip = []
    for frame in (*frames, None) if stream is None else frames:
        if frame is not None or nodes[0].filter.name == "buffer":
            graph.vpush(frame)
        for array in pulled():
            clip.append(array)
            if len(clip) == count:
                return clip
    return clip


def as_frames(clip: Clip) -> Iterator[av.VideoFrame]:
    for k, array in enumerate(clip):
        frame = av.VideoFrame.from_ndarray(array, format="yuv420p")
        frame.pts, frame.time_base = k, Fraction(1, RATE)
        yield frame


def fitted(width: int, height: int) -> str:
    """Scaling to at most LINES lines, square pixels."""
    scale = min(1, LINES / min(width, height))
    return f"scale={round(width * scale / 2) * 2}:{round(height * scale / 2) * 2}:flags=area:out_range=tv,setsar=1"


def read(path: Path, start: float, seconds: float) -> Clip:
    """As displayed: turned, square pixels, RATE frames per second from the first frame on."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames = container.decode(stream)
        first = next(frames)
        turns = {0: "null", 90: "transpose=cclock", 180: "hflip,vflip", 270: "transpose=clock"}
        turned = first.rotation % 360
        width = round(first.width * (stream.sample_aspect_ratio or 1))
        size = (first.height, width) if turned % 180 else (width, first.height)
        chain = f"setpts=PTS-STARTPTS,fps={RATE},{turns[turned]},{fitted(*size)}"

        def all_frames() -> Iterator[av.VideoFrame | None]:
            yield first
            yield from frames
            yield None

        return filtered(chain, all_frames(), stream, round((start + seconds) * RATE))[round(start * RATE) :]


def yuv(picture: Image.Image) -> np.ndarray:
    return av.VideoFrame.from_image(picture).reformat(format="yuv420p").to_ndarray()


def sprites(seed: int, start: float, seconds: float, width: int = 480, height: int = 360) -> Clip:
    """Shapes on curved paths, which never come back, over a drifting texture of several scales."""
    random = drawn(f"sprites {seed}")
    field = np.zeros((2 * height, 3 * width, 3))
    for cells in (6, 18, 54, 160):
        patch = Image.fromarray(random.integers(0, 256, (cells, cells * 2, 3), np.uint8))
        field += np.asarray(patch.resize((3 * width, 2 * height), Image.BICUBIC), float) / cells**0.35
    field -= field.min((0, 1))
    ground = Image.fromarray((field / field.max((0, 1)) * 230).astype(np.uint8))
    shapes = []
    for _ in range(7):
        sides, reach = random.integers(3, 8), random.uniform(0.06, 0.16) * width
        reaches, angles = reach * random.uniform(0.5, 1, sides), np.sort(random.uniform(0, 2 * np.pi, sides))
        shapes.append(dict(
            corners=np.stack((reaches * np.cos(angles), reaches * np.sin(angles)), 1),
            colour=tuple(random.integers(0, 256, 3).tolist()), middle=random.uniform(0.2, 0.8, 2),
            swing=random.uniform(0.15, 0.4, 2), pace=random.uniform(0.25, 0.9, 2), phase=random.uniform(0, 6.3, 2),
        ))  # fmt: skip
    drift = random.uniform(4, 12, 2)
    clip = []
    for k in range(round(start * RATE), round((start + seconds) * RATE)):
        t = k / RATE
        x, y = (drift * t * (1, 0.5)).round().astype(int)
        picture = ground.crop((x, y, x + width, y + height))
        draw = ImageDraw.Draw(picture)
        for s in shapes:
            at = (s["middle"] + s["swing"] * np.sin(s["pace"] * (1 + 0.03 * t) * t + s["phase"])) * (width, height)
            draw.polygon([tuple(p) for p in (at + s["corners"]).tolist()], fill=s["colour"], outline=(20, 20, 20))
        clip.append(yuv(picture))
    return clip


def lettered(width: int, height: int, text: str, ground: tuple, ink: tuple) -> Image.Image:
    picture = Image.new("RGB", (width, height), ground)
    font = ImageFont.load_default(size=max(8, min(height * 0.6, 1.6 * width / max(1, len(text)))))
    ImageDraw.Draw(picture).text((width / 2, height / 2), text, ink, font, anchor="mm")
    return picture


def card(seed: int, seconds: float) -> Clip:
    """Text that changes every second."""
    random = drawn(f"card {seed}")
    ground, ink = (tuple(random.integers(low, low + 90, 3).tolist()) for low in (10, 165))
    texts = ["".join(random.choice(list("ABCDEFGHIJKLMNOPRSTUVWXYZ  "), 14)) for _ in range(int(seconds))]
    return [yuv(lettered(480, 270, text, ground, ink)) for text in texts for _ in range(RATE)]


def size(clip: Clip) -> tuple[int, int]:
    """Width and height."""
    return clip[0].shape[1], clip[0].shape[0] * 2 // 3


def resized(clip: Clip, width: int, height: int) -> Clip:
    return filtered(f"scale={width}:{height}:flags=area,setsar=1", as_frames(clip))


def looped(clip: Clip, count: int) -> Clip:
    return [clip[k % len(clip)] for k in range(count)]


def planes(frame: np.ndarray) -> tuple[np.ndarray, ...]:
    """Views of Y, U and V."""
    width, height = frame.shape[1], frame.shape[0] * 2 // 3
    flat, n = frame.reshape(-1), width * height
    u, v = flat[n : n * 5 // 4], flat[n * 5 // 4 :]
    return flat[:n].reshape(height, width), u.reshape(height // 2, -1), v.reshape(height // 2, -1)


def pasted(ground: np.ndarray, patch: np.ndarray, x: int, y: int) -> np.ndarray:
    """`patch` over `ground` with its left upper corner at even (x, y)."""
    result = ground.copy()
    for k, (to, part) in enumerate(zip(planes(result), planes(patch), strict=True)):
        a, b = (y // 2, x // 2) if k else (y, x)
        to[a : a + part.shape[0], b : b + part.shape[1]] = part
    return result


def even(value: float) -> int:
    return round(value / 2) * 2


def write(path: Path, clip: Clip, *, rate: int = RATE, crf: int = 23) -> None:
    """H.264. The same frames give the same bytes: one thread, and no macroblock tree, whose AVX code does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with av.open(str(partial), "w", format="mp4") as out:
        options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        stream = out.add_stream("libx264", rate=rate, options=options)
        (stream.width, stream.height), stream.pix_fmt = size(clip), "yuv420p"
        for k, array in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(array, format="yuv420p")
            frame.pts, frame.time_base = k, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    partial.rename(path)
