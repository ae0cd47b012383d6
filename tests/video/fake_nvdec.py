"""A stand-in for PyNvVideoCodec and for a CUDA stream, over PyAV on the CPU, with their traps built in.

Like the real library: the decoder reuses its output buffers from the first one at every `Decode`; what it and the
adapter enqueue on the stream happens only when the stream runs; a damaged packet is replaced by an empty one; an empty
packet given to `Decode` means the end; frames hidden by an edit list come out; 10-bit values sit in the high bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import av
import numpy as np
import torch
from torch import Tensor

BUFFERS = 4
STALE = 77  # what a buffer holds before the stream has run


class Stream:
    """Work in order, done when somebody waits for it."""

    def __init__(self) -> None:
        self.queue: list[Callable[[], object]] = []

    def add(self, work: Callable[[], object]) -> None:
        self.queue.append(work)

    def run(self) -> None:
        for work in self.queue:
            work()
        self.queue.clear()


class Runtime:
    """`CudaRuntime` over a `Stream`."""

    gpu = 0

    def __init__(self) -> None:
        self.stream = Stream()
        self.releases = 0

    @property
    def handles(self) -> dict[str, int]:
        return {"cudacontext": 1, "cudastream": id(self.stream)}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def copy(self, target: Tensor, source: Tensor, shift: int) -> None:
        self.stream.add(lambda: target.numpy().__setitem__(slice(None), source.numpy() >> shift))

    def hand_over(self, tensors: tuple[Tensor, ...]) -> None:
        self.stream.run()

    def released(self) -> object:
        self.releases += 1
        return None

    def wait(self, event: object) -> None:
        pass

    def finish(self) -> None:
        self.stream.run()


class PacketData:
    def __init__(self, packet: av.Packet | None = None):
        self.packet = packet
        self.bsl = packet.size if packet else 0
        self.bsl_data, self.pts = 0, (packet.pts or 0) if packet else 0


class Demuxer:
    def __init__(self, path: str, damaged: set[int], stop: int | None):
        self.container = av.open(path)
        self.stream = self.container.streams.best("video")
        self.damaged, self.stop = damaged, stop

    def Width(self) -> int:
        return self.stream.codec_context.width

    def Height(self) -> int:
        return self.stream.codec_context.height

    def GetNvCodecId(self) -> av.VideoStream:
        return self.stream

    def __iter__(self) -> Iterator[PacketData]:
        for n, packet in enumerate(self.container.demux(self.stream)):
            if n == self.stop or not packet.size:
                break
            yield PacketData() if n in self.damaged else PacketData(packet)
        yield PacketData()


class Frame:
    def __init__(self, buffer: Tensor, pts: int):
        self.buffer, self.pts = buffer, pts

    def getPTS(self) -> int:
        return self.pts

    def __dlpack__(self, **options):
        return self.buffer.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.buffer.__dlpack_device__()


class Decoder:
    def __init__(self, codec: av.VideoStream, queue: Stream):
        template = codec.codec_context
        self.context = av.CodecContext.create(template.name, "r")
        self.context.extradata, self.context.thread_count = template.extradata, 1
        self.queue, self.ended = queue, False
        self.buffers: list[Tensor] = []

    def Decode(self, data: PacketData) -> list[Frame]:
        if self.ended:
            raise RuntimeError("Decode after the end of the stream")
        packet = None
        if data.bsl:
            packet = av.Packet(bytes(data.packet))  # a fresh one carries no discard flag: hidden frames come out
            packet.pts, packet.dts = data.packet.pts, data.packet.dts
        self.ended = packet is None
        out = []
        for slot, frame in enumerate(self.context.decode(packet)):
            planes = frame.to_ndarray()  # I420, [H·3/2, W]
            h, w = frame.height, frame.width
            nv12 = np.empty((h * 3 // 2, w), planes.dtype)
            nv12[:h] = planes[:h]
            u, v = planes[h:].reshape(2, h // 2, w // 2)
            nv12[h:, 0::2], nv12[h:, 1::2] = u, v
            if nv12.dtype == np.uint16:
                nv12 <<= 6
            if slot == len(self.buffers):
                self.buffers.append(torch.full(nv12.shape, STALE, dtype=torch.from_numpy(nv12).dtype))
            buffer = self.buffers[slot]
            self.queue.add(lambda buffer=buffer, nv12=nv12: buffer.copy_(torch.from_numpy(nv12)))
            out.append(Frame(buffer, frame.pts))
        return out


def library(runtime: Runtime, *, damaged: set[int] = frozenset(), stop: int | None = None) -> SimpleNamespace:
    """The module `PyNvVideoCodec` as the adapter sees it."""

    def create_decoder(*, gpuid, codec, cudacontext, cudastream, usedevicememory):
        assert usedevicememory == 1 and cudacontext == 1 and cudastream == id(runtime.stream)
        return Decoder(codec, runtime.stream)

    return SimpleNamespace(
        CreateDemuxer=lambda filename: Demuxer(filename, set(damaged), stop),
        CreateDecoder=create_decoder,
        PacketData=PacketData,
    )
