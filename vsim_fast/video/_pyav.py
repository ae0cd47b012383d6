"""FFmpeg on the CPU through PyAV: the only importer of `av`."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from vsim_fast.errors import CorruptVideo, NoVideoStream, OpenError, UnsupportedVideo
from vsim_fast.records import ColorSpec, FrameBatch, VideoInfo
from vsim_fast.video._batches import Assembler, DecodeReport
from vsim_fast.video.probe import Limits
from vsim_fast.video.sampling import DecodePlan, plan_indices

FORMATS = (  # demuxers that read one file and nothing else: no hls, dash, concat, image2, sdp, devices
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,h264,hevc,vvc,m4v,h261,h263,vc1,obu,av1,ivf,flv,ogg,asf,gif,apng,mxf,nut,"
    "yuv4mpegpipe,mjpeg,dv,rm,wtv,swf"
)
TIMELESS = {"avi", "mpegvideo", "h264", "hevc", "vvc", "m4v", "h261", "h263", "vc1", "mjpeg"}
"""Demuxers of files that store no presentation times; what FFmpeg then guesses need not be what it decodes."""
TIMEOUT_SECONDS = 60
TAGS_AS_TEXT = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""PyAV 19 no longer has the option: undecodable tags never fail there."""
READ_ERRORS = 16
"""Consecutive read errors after which a file counts as ended."""
MATRICES = {1: "bt709", 4: "bt601", 5: "bt601", 6: "bt601", 7: "bt709", 9: "bt2020", 10: "bt2020"}  # AVCOL_SPC_*
TRANSFERS = {  # AVCOL_TRC_* -> FFmpeg's name
    1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear", 11: "iec61966-2-4",
    13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 17: "smpte428", 18: "arib-std-b67",
}  # fmt: skip
PLANAR = {"yuv420p": 8, "yuvj420p": 8, "nv12": 8, "yuv420p10le": 10, "p010le": 10}
"""Pixel formats delivered as planes -> bits per sample; all others go through swscale to RGB."""


@contextmanager
def open_container(path: str, limits: Limits) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and the stream FFmpeg would pick, closed at the end. FFmpeg sees a file name, never a URL."""
    try:
        container = av.open(
            f"file:{path}",
            container_options={"protocol_whitelist": "file", "format_whitelist": FORMATS},
            options={"max_pixels": str(limits.max_pixels)},
            **TAGS_AS_TEXT,
            timeout=TIMEOUT_SECONDS,
        )
    except (av.FFmpegError, OSError, ValueError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OpenError(path, f"no video container that is read here ({reason})") from None
    with container:
        stream = container.streams.best("video")
        if stream is None:
            kinds = sorted({s.type for s in container.streams}) or ["no stream"]
            raise NoVideoStream(path, f"the file holds no video stream (found {', '.join(kinds)})")
        if stream.disposition & av.stream.Disposition.attached_pic:
            raise NoVideoStream(path, "the file holds no video stream but a cover picture")
        codec = stream.codec_context
        if codec is None:
            raise UnsupportedVideo(path, "FFmpeg has no decoder for its video codec")
        if codec.width * codec.height > limits.max_pixels:
            raise UnsupportedVideo(
                path, f"{codec.width}x{codec.height} pixels are more than the {limits.max_pixels} allowed"
            )
        codec.options = {"max_pixels": str(limits.max_pixels)}
        yield container, stream


def packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Packets with data, past read errors; the end of the file or too many errors in a row end it."""
    errors = 0
    while errors < READ_ERRORS:
        try:
            for packet in container.demux(stream):
                if packet.size:
                    errors = 0
                    yield packet
            return
        except (av.FFmpegError, OSError):
            errors += 1


class Decoder:
    """One stream's decoder with an explicit number of threads, going on after bad packets."""

    def __init__(self, stream: av.VideoStream, threads: int):
        self.context = stream.codec_context
        self.context.thread_count = threads
        self.context.thread_type = "AUTO" if threads > 1 else "NONE"  # frame threads; PyAV's own default is slices
        self.errors = 0

    def __call__(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        """Frames that come out for `packet`; None drains. A failing packet is counted and gives none."""
        try:
            return self.context.decode(packet)
        except EOFError:
            return []
        except av.FFmpegError:
            self.errors += 1
            return []


# ---- probe ----------------------------------------------------------------------------------------------------------


def scan(path: str, limits: Limits) -> VideoInfo:
    """`VideoInfo` of a file: the times of all packets, and one decoded frame for size, colour and rotation."""
    rows: list[tuple[int | None, bool, int]] = []  # pts, key, duration of each packet that shows a frame
    first, first_key, notes = None, None, []
    with open_container(path, limits) as (container, stream):
        if container.duration and container.duration / av.time_base > limits.max_seconds:
            raise UnsupportedVideo(
                path, f"{container.duration / av.time_base:.0f} s are more than the {limits.max_seconds:g} allowed"
            )
        if (others := len(container.streams.video)) > 1:
            notes.append(f"{others} video streams; stream {stream.index}, which FFmpeg takes, is read")
        decode = Decoder(stream, threads=1)
        time_base, rate, announced = stream.time_base, stream.average_rate or stream.guessed_rate, stream.frames
        codec, formats = decode.context.codec.canonical_name, set(container.format.name.split(","))
        for packet in packets(container, stream):
            if first is None:
                first = next(iter(decode(packet)), None)
            if packet.is_keyframe and first_key is None:
                first_key = packet.pts  # even of a frame that an edit list hides: decoding starts there
            if not packet.is_discard and is_shown(codec, packet):
                rows.append((packet.pts, packet.is_keyframe, packet.duration or 0))
            if len(rows) > limits.max_frames:
                raise UnsupportedVideo(path, f"it has more than the {limits.max_frames} frames allowed")
        first = first or next(iter(decode(None)), None)
        aspect = stream.sample_aspect_ratio  # FFmpeg's guess from container and codec
        interlaced = bool(first and first.interlaced_frame) or decode.context.field_order > 1
    if first is None or not rows:
        raise CorruptVideo(path, f"no frame decodes ({len(rows)} packets, {decode.errors} errors)")

    rate = rate or Fraction(25)
    step = max(1, round(1 / (rate * time_base)))
    reason = distrust(formats, rows, first_key)
    if reason:
        rows = decode_pass(path, limits)
        notes.append(f"times from a decode pass because {reason}; decoding starts at the beginning")
        pts = [pts for pts, _, _ in rows]
        if None in pts or len(set(pts)) < len(pts):
            start = next((p for p in pts if p is not None), 0)
            rows = [(start + n * step, key, 0) for n, (_, key, _) in enumerate(rows)]
            notes.append(f"frames carry no times of their own; {float(rate):g} frames per second assumed")
    order = sorted(range(len(rows)), key=lambda n: rows[n][0])
    pts = np.asarray([rows[n][0] for n in order], dtype=np.int64)
    # k-th decoded frame gets the k-th time, so after a decode pass key flags stay in decoder order
    is_key = np.asarray([rows[n][1] for n in (range(len(rows)) if reason else order)], dtype=bool)
    last = rows[order[-1]][2] or (int(np.median(np.diff(pts))) if len(pts) > 1 else step)
    ticks = int(pts[-1] - pts[0]) + last
    seconds = float(ticks * time_base)
    if seconds > limits.max_seconds:
        raise UnsupportedVideo(path, f"{seconds:.0f} s are more than the {limits.max_seconds:g} allowed")
    measured = len(pts) / seconds
    average = float(rate) if abs(float(rate) - measured) <= 0.05 * measured else measured

    color, guess = color_of(first)
    rotation, mirrored = orientation(first)
    if announced and announced != len(pts):
        notes.append(f"the container announces {announced} frames, {len(pts)} are there")
    if guess:
        notes.append(guess)
    if color.is_hdr:
        notes.append(f"HDR ({color.transfer}) is converted by its matrix only, without tone mapping")
    if interlaced:
        notes.append("interlaced: fields are delivered woven")
    if first.width % 2 or first.height % 2:
        notes.append(f"odd size {first.width}x{first.height}")
    return VideoInfo(
        path=path, codec=codec, width=first.width, height=first.height, pix_fmt=first.format.name, color=color,
        time_base=time_base, pts=_frozen(pts), is_key=_frozen(is_key), duration_seconds=seconds, average_fps=average,
        rotation=rotation, mirrored=mirrored, sample_aspect=Fraction(aspect) if aspect else Fraction(1),
        interlaced=interlaced, container_frames=announced, seekable=reason is None, notes=tuple(notes),
    )  # fmt: skip


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)  # the record is cached and shared
    return array


def is_shown(codec: str, packet: av.Packet) -> bool:
    """False for the packets of VP8 and VP9 that only update references (alternate reference frames)."""
    if codec == "vp8":
        return bool(memoryview(packet)[0] & 0x10)
    if codec == "vp9":
        head, tail = memoryview(packet)[0], memoryview(packet)[packet.size - 1]
        if tail & 0xE0 == 0xC0 and packet.size > 1:  # a superframe ends in the frame it shows
            return True
        if head & 0x30 == 0x30:  # profile 3 has one more bit before the flags
            head <<= 1
        return bool(head & 0x0A)  # show_existing_frame or show_frame
    return True


def distrust(formats: set[str], rows: list[tuple[int | None, bool, int]], first_key: int | None) -> str | None:
    """Why packet times cannot be the times of decoded frames, or None."""
    if timeless := formats & TIMELESS:
        return f"{min(timeless)} files store no presentation times"
    times = [pts for pts, _, _ in rows]
    if None in times:
        return f"{times.count(None)} packets carry no presentation time"
    if len(set(times)) < len(times):
        return f"{len(times) - len(set(times))} packets share a presentation time"
    if first_key is None or min(times) < first_key:
        return "frames come before the first key frame"
    return None


def decode_pass(path: str, limits: Limits) -> list[tuple[int | None, bool, int]]:
    """pts, key flag and duration of every frame that really decodes, in the decoder's order."""
    rows = []
    with open_container(path, limits) as (container, stream):
        decode = Decoder(stream, threads=1)
        for packet in chain(packets(container, stream), (None,)):
            rows += [(frame.pts, bool(frame.key_frame), frame.duration or 0) for frame in decode(packet)]
    if not rows:
        raise CorruptVideo(path, "no frame decodes")
    return rows


def color_of(frame: av.VideoFrame) -> tuple[ColorSpec, str | None]:
    """How the frame's code values become RGB, and a note where that is a guess."""
    name, matrix = frame.format.name, int(frame.colorspace)
    is_yuv = not frame.format.is_rgb and name not in ("pal8", "gray")
    guessed = is_yuv and matrix not in MATRICES
    color = ColorSpec(
        matrix=MATRICES.get(matrix, "bt601"),
        full_range=int(frame.color_range) == 2 or name.startswith("yuvj"),
        bit_depth=frame.format.components[0].bits,
        guessed=guessed,
        transfer=TRANSFERS.get(int(frame.color_trc), "unspecified"),
    )
    return color, "no colour matrix tag: BT.601 assumed" if guessed else None


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """(rotation, mirrored) of the display matrix, as `VideoInfo` defines them; (0, False) without one.

    The matrix sends a coded point (x, y), y down, to (a·x + c·y, b·x + d·y). A negative determinant mirrors: undoing
    the left-right flip, which is the last step, leaves a turn whose clockwise angle is atan2(b, a).
    """
    matrix = frame.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
    if matrix is None:
        return 0, False
    a, b, _, c, d, *_ = struct.unpack("<9i", bytes(matrix)[:36])
    mirrored = a * d - b * c < 0
    clockwise = math.degrees(math.atan2(b, -a if mirrored else a))
    return round(-clockwise / 90) % 4 * 90, mirrored


# ---- decode ---------------------------------------------------------------------------------------------------------


class PyavBackend:
    """Delivers the frames of a plan as planes or RGB, in host memory or uploaded to a CUDA device.

    Args:
        output: "planes" or "rgb".
        device: where the batches end up.
        threads: decoder threads.
        strict: the first damaged packet or lost frame raises CorruptVideo.
    """

    name = "pyav"

    def __init__(
        self,
        info: VideoInfo,
        plan: DecodePlan,
        report: DecodeReport,
        *,
        batch_size: int,
        output: str,
        device: torch.device,
        threads: int,
        strict: bool,
        limits: Limits,
    ):
        self.info, self.plan, self.report = info, plan, report
        self.device, self.threads, self.strict, self.limits = device, threads, strict, limits
        self.free: list[tuple[Tensor, ...]] = []  # released batches, filled again
        self.write = self._rgb_writer() if output == "rgb" else self._plane_writer()
        self.assembler = Assembler(
            info, plan, batch_size, report, on_lost=self._lost, allocate=self._allocator(output), finish=self._finish
        )

    def __iter__(self) -> Iterator[FrameBatch]:
        assembler, report = self.assembler, self.report
        for index, frame in self._frames(self.plan, self.threads):
            self._put(index, frame)
            yield from assembler.ready(index)
        missing = assembler.missing()
        if len(missing) and self.threads > 1:
            # Draining frame threads stops at the first error, unsaid; one thread gets the frames behind it.
            counted, report.corrupt = report.corrupt, 0
            for index, frame in self._frames(plan_indices(self.info, missing), threads=1):
                if index in missing:
                    self._put(index, frame)
            report.corrupt = max(counted, report.corrupt)
        yield from assembler.rest()

    def _put(self, index: int, frame: av.VideoFrame) -> None:
        self.report.decoded_frames += 1
        if self._accept(frame):
            for buffers, slot in self.assembler.slots(index):
                self.write(frame, buffers, slot)

    def _frames(self, plan: DecodePlan, threads: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """(index, frame) as the decoder puts them out; frames that belong to no index are left out."""
        with open_container(self.info.path, self.limits) as (container, stream):
            decode = Decoder(stream, threads)
            if not self.info.seekable:
                yield from self._in_decoder_order(container, stream, decode, plan)
            elif plan.keys_only:
                yield from self._decode(packets(container, stream), decode, plan.pts, only_targets=True)
            else:
                for run in plan.runs:
                    first, stop = np.searchsorted(plan.index, [run.first, run.last + 1])
                    source = packets(container, stream) if run.key == 0 else self._from_key(container, stream, run.key)
                    yield from self._decode(source, decode, plan.pts[first:stop])

    def _decode(
        self, source: Iterator[av.Packet], decode: Decoder, targets: np.ndarray, only_targets: bool = False
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Feed packets until those of all targets are in, then drain: nothing after the last target is decoded."""
        unfed = set(targets.tolist())
        for packet in source:
            if only_targets and packet.pts not in unfed:
                continue
            yield from self._indexed(self._checked(decode, packet))
            if is_shown(self.info.codec, packet):  # one that is not may carry the time of the frame behind it
                unfed.discard(packet.pts)
            if not unfed:
                break
        yield from self._indexed(self._checked(decode, None))

    def _in_decoder_order(
        self, container: av.container.InputContainer, stream: av.VideoStream, decode: Decoder, plan: DecodePlan
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """The k-th frame out of the decoder is frame k: what the decode pass of the probe counted."""
        index = 0
        for packet in chain(packets(container, stream), (None,)):
            for frame in self._checked(decode, packet):
                yield index, frame
                index += 1
            if index > plan.index[-1]:
                return

    def _from_key(
        self, container: av.container.InputContainer, stream: av.VideoStream, key: int
    ) -> Iterator[av.Packet]:
        """Packets from the one of key frame `key` on. A seek that lands late is repeated from earlier."""
        wanted = int(self.info.pts[key])
        earlier = np.flatnonzero(self.info.is_key[:key])
        for start in (wanted, *(int(self.info.pts[k]) for k in earlier[::-1][:2]), int(self.info.pts[0])):
            try:
                container.seek(start, stream=stream)
            except (av.FFmpegError, OSError):
                continue
            source = packets(container, stream)
            for packet in source:
                if packet.pts == wanted:
                    yield packet
                    yield from source
                    return
                if packet.is_keyframe and packet.pts is not None and packet.pts > wanted:
                    break

    def _checked(self, decode: Decoder, packet: av.Packet | None) -> list[av.VideoFrame]:
        """Decode, count the damage, and under the strict policy stop at it."""
        before = decode.errors
        frames = decode(packet)
        damaged = decode.errors - before + sum(frame.is_corrupt for frame in frames)
        self.report.corrupt += damaged
        if damaged and self.strict:
            pts = next((f.pts for f in frames if f.is_corrupt), packet.pts if packet is not None else None)
            at = None if pts is None else float(pts * self.info.time_base)
            raise CorruptVideo(self.info.path, "damaged data", pts_seconds=at)
        return frames

    def _indexed(self, frames: list[av.VideoFrame]) -> Iterator[tuple[int, av.VideoFrame]]:
        for frame in frames:
            if frame.pts is None:
                continue
            index = int(np.searchsorted(self.info.pts, frame.pts))
            if index < len(self.info.pts) and self.info.pts[index] == frame.pts:
                yield index, frame

    def _accept(self, frame: av.VideoFrame) -> bool:
        """Frames of another size than the first cannot join a batch; they count as lost."""
        info = self.info
        if (frame.width, frame.height) == (info.width, info.height):
            return True
        if self.strict:
            raise UnsupportedVideo(
                info.path,
                f"the size changes from {info.width}x{info.height} to {frame.width}x{frame.height}",
                pts_seconds=None if frame.pts is None else float(frame.pts * info.time_base),
            )
        return False

    def _lost(self, index: int) -> None:
        if self.strict:
            at = float(self.info.pts_seconds[index])
            raise CorruptVideo(self.info.path, f"frame {index} does not decode", pts_seconds=at)

    def _allocator(self, output: str) -> Callable[[int], tuple[Tensor, ...]]:
        h, w, pinned = self.info.height, self.info.width, self.device.type == "cuda"
        dtype = torch.uint8 if output == "rgb" or PLANAR[self.info.pix_fmt] == 8 else torch.uint16
        shapes = [(h, w, 3)] if output == "rgb" else [(h, w), (-(-h // 2), -(-w // 2), 2)]

        def allocate(count: int) -> tuple[Tensor, ...]:
            for n, buffers in enumerate(self.free):
                if len(buffers[0]) == count:
                    return self.free.pop(n)
            return tuple(torch.empty((count, *shape), dtype=dtype, pin_memory=pinned) for shape in shapes)

        return allocate

    def _rgb_writer(self) -> Callable[[av.VideoFrame, tuple[Tensor, ...], int], None]:
        reformatter = VideoReformatter()  # kept: a new one per frame sets swscale up again each time

        def write(frame: av.VideoFrame, buffers: tuple[Tensor, ...], slot: int) -> None:
            picture = reformatter.reformat(frame, format="rgb24", threads=1)
            flat = buffers[0].numpy()[slot].reshape(self.info.height, -1)
            flat[:] = rows(picture.planes[0], flat.shape[1])

        return write

    def _plane_writer(self) -> Callable[[av.VideoFrame, tuple[Tensor, ...], int], None]:
        reformatter, width, chroma = VideoReformatter(), self.info.width, -(-self.info.width // 2)

        def write(frame: av.VideoFrame, buffers: tuple[Tensor, ...], slot: int) -> None:
            if frame.format.name != self.info.pix_fmt:
                frame = reformatter.reformat(frame, format=self.info.pix_fmt, threads=1)
            y, uv = (buffer.numpy()[slot] for buffer in buffers)
            y[:] = rows(frame.planes[0], width, y.dtype)
            if len(frame.planes) == 3:
                uv[..., 0] = rows(frame.planes[1], chroma, y.dtype)
                uv[..., 1] = rows(frame.planes[2], chroma, y.dtype)
            else:
                uv[:] = rows(frame.planes[1], 2 * chroma, y.dtype).reshape(uv.shape)
            if frame.format.name == "p010le":  # code values sit in the high bits
                y >>= 6
                uv >>= 6

        return write

    def _finish(self, buffers: tuple[Tensor, ...], **fields) -> FrameBatch:
        names = ("rgb",) if len(buffers) == 1 else ("y", "uv")
        if self.device.type != "cpu":  # the pinned copy goes back to torch, which waits for the upload
            uploaded = (buffer.to(self.device, non_blocking=True) for buffer in buffers)
            return FrameBatch(**fields, **dict(zip(names, uploaded, strict=True)))
        pending = [buffers]

        def release() -> None:
            if pending:  # fresh memory for every batch would cost more in page faults than the copy into it
                self.free.append(pending.pop())

        return FrameBatch(**fields, **dict(zip(names, buffers, strict=True)), on_release=release)


def rows(plane: av.video.plane.VideoPlane, width: int, dtype: np.dtype | type = np.uint8) -> np.ndarray:
    """[plane height, width] view of a plane without its padding."""
    return np.frombuffer(plane, dtype).reshape(-1, plane.line_size // np.dtype(dtype).itemsize)[: plane.height, :width]
