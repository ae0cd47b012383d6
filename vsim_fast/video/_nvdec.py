"""NVDEC through PyNvVideoCodec: the only importer of that library, and the only place that knows its frames' lifetime.

The decoder owns the memory of its frames and starts at its first buffer again on every `Decode`; neither DLPack nor the
array interface waits for its stream. Hence: one stream per reader, on which the decoder maps its surfaces and on which
every wanted frame is copied into our batch before the next `Decode`; the consumer's stream waits for that stream when a
batch is handed over, and that stream waits for the consumer's when a released batch is filled again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vsim_fast.records import FrameBatch, VideoInfo
from vsim_fast.video._batches import REORDER, Assembler, DecodeReport
from vsim_fast.video.sampling import DecodePlan

CODECS = {  # FFmpeg's name -> cudaVideoCodec's
    "h264": "H264", "hevc": "HEVC", "vp8": "VP8", "vp9": "VP9", "av1": "AV1",
    "mpeg1video": "MPEG1", "mpeg2video": "MPEG2", "mpeg4": "MPEG4", "vc1": "VC1",
}  # fmt: skip
DEPTHS = {"yuv420p": 8, "yuvj420p": 8, "yuv420p10le": 10}
SENTINEL = 0xA5


class NvdecError(Exception):
    """NVDEC cannot finish this clip; the text says why."""


@cache
def library() -> ModuleType | str:
    """PyNvVideoCodec, or "reason; cure". Its import needs the driver and fails with RuntimeError without one."""
    try:
        import PyNvVideoCodec
    except ImportError as error:
        if "PyNvVideoCodec" in str(error):
            return "PyNvVideoCodec is not installed; install vsim_fast[nvdec]"
        return f"PyNvVideoCodec does not import ({_line(error)}); reinstall vsim_fast[nvdec]"
    except Exception as error:  # a missing driver library is a RuntimeError with a page of text
        return (
            f"PyNvVideoCodec does not import ({_line(error)}); install the NVIDIA driver with libnvcuvid and "
            "libnvidia-encode (in a container: NVIDIA_DRIVER_CAPABILITIES with 'video')"
        )
    return PyNvVideoCodec


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def why_not(info: VideoInfo, device: torch.device, output: str) -> str | None:
    """Why NVDEC cannot serve this file on this device; None when it can."""
    if device.type != "cuda":
        return f"it decodes to CUDA devices, got device {str(device)!r}"
    gpu = torch.cuda.current_device() if device.index is None else device.index
    if gpu:  # its frames say device 0 whatever the device, so tensors over them would be wrong
        return f"it serves device 0 only, got {gpu}; choose the GPU by CUDA_VISIBLE_DEVICES"
    return why_not_file(info, output) or why_not_hardware(info, gpu)


def why_not_file(info: VideoInfo, output: str) -> str | None:
    """What speaks against NVDEC in the file itself."""
    if info.codec not in CODECS:
        return f"codec {info.codec} has no hardware decoder"
    if output != "planes":
        return "it delivers planes, output 'rgb' was asked for"
    if info.pix_fmt not in DEPTHS:
        return f"pixel format {info.pix_fmt} is not 4:2:0 in 8 or 10 bits"
    if info.codec == "h264" and DEPTHS[info.pix_fmt] != 8:
        return "H.264 is decoded in 8 bits only"
    if info.width % 2 or info.height % 2:
        return f"odd size {info.width}x{info.height}"
    if info.interlaced:
        return "interlaced video would be deinterlaced, which FFmpeg does not do"
    if not info.seekable:
        return "the file's times come from a decode pass, which only the same decoder repeats"
    return None


def hardware_limits(codec: str, depth: int, gpu: int) -> dict[str, int] | str:
    """Sizes of 4:2:0 video in `codec` (FFmpeg's name) and `depth` bits that the GPU decodes, or why it does not."""
    nv = library()
    if isinstance(nv, str):
        return nv
    try:  # the chroma format defaults to 4:2:0
        caps = nv.GetDecoderCaps(gpuid=gpu, codec=getattr(nv.cudaVideoCodec, CODECS[codec]), bitdepth=depth)
    except Exception as error:
        return f"the GPU does not say whether it decodes {codec} in {depth} bits ({_line(error)})"
    return caps if caps.get("num_decoder_engines") else f"the GPU does not decode {codec} in {depth} bits"


def why_not_hardware(info: VideoInfo, gpu: int) -> str | None:
    """What speaks against it in the driver and the GPU."""
    codec, caps = info.codec, hardware_limits(info.codec, DEPTHS[info.pix_fmt], gpu)
    if isinstance(caps, str):
        return caps
    if not (
        caps["width_min"] <= info.width <= caps["width_max"] and caps["height_min"] <= info.height <= caps["height_max"]
    ):
        return (
            f"{info.width}x{info.height} is outside the GPU's {caps['width_min']}x{caps['height_min']} to "
            f"{caps['width_max']}x{caps['height_max']} for {codec}"
        )
    macroblocks = -(-info.width // 16) * -(-info.height // 16)
    if macroblocks > caps["mb_num_max"]:
        return f"{macroblocks} macroblocks are more than the GPU's {caps['mb_num_max']} for {codec}"
    return None


class CudaRuntime:
    """The few stream operations the adapter needs, so that tests can run the same adapter over a model of a stream."""

    def __init__(self, device: torch.device):
        self.device = torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())
        with torch.cuda.device(self.device):
            torch.cuda.init()
            self.stream = torch.cuda.Stream(self.device)
            self.stream.synchronize()  # makes the primary context current on this thread
            self.context = _current_context()

    @property
    def gpu(self) -> int:
        return self.device.index

    @property
    def handles(self) -> dict[str, int]:
        """Context and stream as CreateDecoder wants them: a stream without its context is refused."""
        return {"cudacontext": self.context, "cudastream": self.stream.cuda_stream}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with torch.cuda.stream(self.stream):
            return torch.empty(shape, dtype=dtype, device=self.device)

    def copy(self, target: Tensor, source: Tensor, shift: int) -> None:
        """Enqueue target = source >> shift (on the bits of 16-bit words) on the decoder's stream."""
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
            if shift:  # torch shifts no uint16: int16 keeps the bits, the mask clears the copied sign
                words = target.view(torch.int16)
                words.bitwise_right_shift_(shift).bitwise_and_((1 << (16 - shift)) - 1)

    def hand_over(self, tensors: tuple[Tensor, ...]) -> None:
        """The consumer's current stream waits for the copies; the allocator learns that it reads them."""
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_stream(self.stream)
        for tensor in tensors:
            tensor.record_stream(consumer)

    def released(self) -> Any:
        """Marks the consumer's progress on its current stream."""
        return torch.cuda.current_stream(self.device).record_event()

    def wait(self, event: Any) -> None:
        """The decoder's stream goes on after `event`."""
        self.stream.wait_event(event)

    def finish(self) -> None:
        self.stream.synchronize()


def _current_context() -> int:
    context = ctypes.c_void_p()
    if ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(context)) or not context.value:
        raise NvdecError("no current CUDA context on this thread")
    return context.value


class BatchPool:
    """Batch buffers of one shape; a released pair is filled again once the consumer's stream has passed its release."""

    def __init__(self, runtime: CudaRuntime, info: VideoInfo, *, poison_released: bool = False):
        self.runtime, self.info, self.poison = runtime, info, poison_released
        self.dtype = torch.uint8 if DEPTHS[info.pix_fmt] == 8 else torch.uint16
        self.free: list[tuple[Any, tuple[Tensor, Tensor]]] = []

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        for n, (event, buffers) in enumerate(self.free):
            if len(buffers[0]) == count:
                del self.free[n]
                self.runtime.wait(event)
                return buffers
        h, w = self.info.height, self.info.width
        return (
            self.runtime.empty((count, h, w), self.dtype),
            self.runtime.empty((count, h // 2, w // 2, 2), self.dtype),
        )

    def batch(self, buffers: tuple[Tensor, Tensor], **fields) -> FrameBatch:
        self.runtime.hand_over(buffers)
        pending = [buffers]

        def release() -> None:
            if pending:  # a second release changes nothing
                buffers = pending.pop()
                if self.poison:
                    for tensor in buffers:
                        tensor.view(torch.uint8).fill_(SENTINEL)
                self.free.append((self.runtime.released(), buffers))

        return FrameBatch(**fields, y=buffers[0], uv=buffers[1], on_release=release)


class NvdecBackend:
    """Delivers the frames of a plan as planes on a CUDA device.

    Frames are told apart by their timestamps, which must be those of the probe's table. Damage (an empty packet before
    the end, a packet missing, a frame that never comes) raises NvdecError: what was handed over by then is good.

    Args:
        poison_released: released buffers are filled with a sentinel, so that a late reader shows.
        nv, runtime: stand-ins for the library and the CUDA streams, for tests without a GPU.
    """

    name = "nvdec"

    def __init__(
        self,
        info: VideoInfo,
        plan: DecodePlan,
        report: DecodeReport,
        *,
        batch_size: int,
        device: torch.device,
        poison_released: bool = False,
        nv: Any = None,
        runtime: Any = None,
    ):
        self.info, self.plan, self.report = info, plan, report
        self.nv, self.device, self.runtime = nv or library(), device, runtime
        self.poison, self.batch_size = poison_released, batch_size

    def __iter__(self) -> Iterator[FrameBatch]:
        runtime = self.runtime = self.runtime or CudaRuntime(self.device)
        pool = BatchPool(runtime, self.info, poison_released=self.poison)
        assembler = Assembler(
            self.info, self.plan, self.batch_size, self.report, on_lost=self._lost,
            allocate=pool.take, finish=pool.batch,
        )  # fmt: skip
        try:
            for frame in self._frames():
                self.report.decoded_frames += 1
                index = self._index(int(frame.getPTS()))
                if index is None:
                    continue  # trimmed by an edit list, or before the first key frame
                for (y, uv), slot in assembler.slots(index):
                    self._copy(frame, y[slot], uv[slot])
                yield from assembler.ready(index)
            yield from assembler.rest()
        finally:
            runtime.finish()  # no copy may still read the decoder's memory when the decoder goes

    def _lost(self, index: int) -> None:
        raise NvdecError(f"the wanted frame at index {index} did not come")

    def _frames(self) -> Iterator[Any]:
        """Frames as the decoder gives them; each is valid until the next step of this iterator."""
        nv, info, last = self.nv, self.info, int(self.plan.pts.max())
        try:
            demuxer = nv.CreateDemuxer(filename=info.path)
            if (demuxer.Width(), demuxer.Height()) != (info.width, info.height):
                raise NvdecError(
                    f"its demuxer sees {demuxer.Width()}x{demuxer.Height()}, the probe {info.width}x{info.height}"
                )
            decoder = nv.CreateDecoder(
                gpuid=self.runtime.gpu,
                codec=demuxer.GetNvCodecId(),
                usedevicememory=True,
                **self.runtime.handles,
            )
            start = int(info.pts[self.plan.runs[0].key])
            begun, empty, behind, seen = self.plan.runs[0].key == 0, 0, 0, 0
            for packet in demuxer:
                if packet.bsl == 0:  # in mid-file this stands for a damaged packet; passed on it would mean the end
                    empty += 1
                    continue
                if empty:
                    self.report.corrupt += empty
                    raise NvdecError(f"a damaged packet before {float(packet.pts * info.time_base):.3f} s")
                seen += 1
                if not begun:
                    begun = packet.pts == start
                    if not begun:
                        continue  # before the key frame that governs the first target
                behind += packet.pts > last
                yield from decoder.Decode(packet)
                if behind > 2 * REORDER:  # the last target has left every picture buffer
                    break
            else:
                if seen < len(info.pts):
                    raise NvdecError(f"its demuxer gave {seen} packets, the probe found {len(info.pts)} frames")
            yield from decoder.Decode(nv.PacketData())  # an empty packet is the end: what is still held comes out
        except NvdecError:
            raise
        except Exception as error:  # the library's two exception classes share no base below Exception
            raise NvdecError(f"{type(error).__name__}: {_line(error)}") from error

    def _index(self, pts: int) -> int | None:
        index = int(np.searchsorted(self.info.pts, pts))
        return index if index < len(self.info.pts) and self.info.pts[index] == pts else None

    def _copy(self, frame: Any, y: Tensor, uv: Tensor) -> None:
        """Enqueue the copy of a frame into y [H, W] and uv [H/2, W/2, 2], without waiting for anything."""
        h, w = self.info.height, self.info.width
        source = torch.from_dlpack(frame)
        if source.shape != (h * 3 // 2, w):
            raise NvdecError(f"the decoder gives {list(source.shape)} frames, expected {[h * 3 // 2, w]}")
        if source.element_size() != y.element_size():
            raise NvdecError(f"the decoder gives {source.dtype} frames, expected {y.dtype}")
        source = source.view(y.dtype).as_strided(source.shape, (w, 1))  # frames are unpitched
        shift = 16 - DEPTHS[self.info.pix_fmt] if y.dtype == torch.uint16 else 0
        self.runtime.copy(y, source[:h], shift)
        self.runtime.copy(uv, source[h:].view(h // 2, w // 2, 2), shift)
