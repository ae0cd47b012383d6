"""Small clips made by PyAV in the test run, one function per trap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

RATE = 30


def picture(n: int, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 3]: a moving gradient, noise and a block whose place tells the frame number."""
    rng = np.random.default_rng(n)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    rgb = np.stack([(x * 3 + n * 4) % 256, (y * 2 + n * 3) % 256, (x + y + n * 7) % 256], -1)
    rgb = rgb // 2 + rng.integers(0, 48, rgb.shape)
    rgb[height // 4 : height // 2, (n * 5) % max(1, width - 8) :][:, :8] = (250, 250 - n % 200, 20)
    return rgb.clip(0, 255).astype(np.uint8)


def encode(
    path: Path,
    frames: int = 60,
    *,
    width: int = 96,
    height: int = 64,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    pts: Iterable[int] | None = None,
    time_base: Fraction = Fraction(1, 15360),
    gop: int = 12,
    b_frames: int = 2,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    format: str | None = None,
    rotate: tuple[int, bool] | None = None,
    colorspace: int | None = None,
    color_range: int | None = None,
) -> Path:
    """A clip of `picture`s; `pts` in `time_base`, default a constant 30 frames per second."""
    step = int(1 / (RATE * time_base))
    pts = range(0, frames * step, step) if pts is None else pts
    with av.open(str(path), "w", format=format, container_options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=RATE, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        context = stream.codec_context
        context.time_base, context.gop_size, context.max_b_frames = time_base, gop, b_frames
        context.thread_count = 1
        if codec == "libx264":
            context.options = {"preset": "ultrafast", "keyint_min": str(gop), "sc_threshold": "0", "crf": "18"} | (
                {"bf": str(b_frames)} | (options or {})
            )
        if colorspace is not None:
            context.colorspace = colorspace
        if color_range is not None:
            context.color_range = color_range
        if rotate is not None:
            stream.set_display_rotation(rotate[0], hflip=rotate[1])
        for n, t in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(n, width, height), format="rgb24").reformat(
                format=pix_fmt, dst_colorspace=colorspace, dst_color_range=color_range
            )
            frame.pts, frame.time_base = t, time_base
            frame.pict_type = 0
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def stream_copy(source: Path, path: Path, *, start_seconds: float) -> Path:
    """The packets from the key frame before `start_seconds` on, times shifted so that the muxer writes an edit list."""
    with av.open(str(source)) as read, av.open(str(path), "w") as out:
        stream = read.streams.video[0]
        copy = out.add_stream_from_template(stream)
        cut = round(start_seconds / stream.time_base)
        read.seek(cut, stream=stream)
        for packet in read.demux(stream):
            if packet.size:
                packet.pts, packet.dts = packet.pts - cut, packet.dts - cut
                packet.stream = copy
                out.mux(packet)
    return path


def bare_alternate_references(path: Path, frames: int = 40) -> Path:
    """VP9 whose alternate reference frames are packets of their own, with the time of the frame behind them.

    FFmpeg's muxers join such a packet with the next one; files of other makers have both.
    """
    options = {"deadline": "realtime", "cpu-used": "6", "b": "100k", "auto-alt-ref": "1", "lag-in-frames": "25"}
    joined = encode(path.with_suffix(".joined.webm"), frames, codec="libvpx-vp9", options=options, gop=250)
    with av.open(str(joined)) as read, av.open(str(path), "w", container_options={"fflags": "-autobsf"}) as out:
        stream = read.streams.video[0]
        copy, split = out.add_stream_from_template(stream), BitStreamFilterContext("vp9_superframe_split", stream)
        for source in read.demux(stream):
            pts = source.pts
            for packet in split.filter(source if source.size else None):
                packet.pts = packet.dts = pts
                packet.stream = copy
                out.mux(packet)
    return path


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def packet_positions(path: Path) -> list[tuple[int, int]]:
    """(offset, size) in the file of each video packet, in file order."""
    with av.open(str(path)) as container:
        return [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]


def packet_times(path: Path) -> list[int | None]:
    """Presentation time of each video packet, in file order."""
    with av.open(str(path)) as container:
        return [p.pts for p in container.demux(container.streams.video[0]) if p.size]


def damage(source: Path, path: Path, packet: int) -> Path:
    """Overwrite the payload of one packet, its length fields left alone."""
    data = bytearray(source.read_bytes())
    offset, size = packet_positions(source)[packet]
    data[offset + 5 : offset + size] = bytes(255 - (i * 37) % 256 for i in range(size - 5))
    path.write_bytes(data)
    return path


def truncate(source: Path, path: Path, packets: float) -> Path:
    """Cut the file inside a packet: `packets` 29.5 keeps 29 whole ones and half of the next."""
    offset, size = packet_positions(source)[int(packets)]
    path.write_bytes(source.read_bytes()[: offset + int(size * (packets % 1))])
    return path


def frames_of(path: Path, threads: int = 1) -> Iterator[av.VideoFrame]:
    """Every frame FFmpeg gives, past bad packets: what the reader is compared with."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_type = "AUTO" if threads > 1 else "NONE"
        stream.codec_context.thread_count = threads
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except (av.FFmpegError, EOFError):
                continue


def full_decode(path: Path) -> list[av.VideoFrame]:
    return list(frames_of(path))
