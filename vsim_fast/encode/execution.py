"""How a network's forward pass is run: operator by operator, compiled block by block, replayed from a CUDA graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from vsim_fast.encode.base import Tokens
from vsim_fast.errors import DeviceError, UsageError

EXECUTIONS = ("eager", "compiled", "graphs", "compiled+graphs")
WARM_UP = 2  # forward passes before a capture: libraries load, compilers compile, handles and workspaces are made
_numbers = count()
_capturing = threading.Lock()  # torch allows one capture at a time in a process


def check_execution(execution: str, device: torch.device) -> None:
    """Raise UsageError for an unknown name, DeviceError where `device` cannot run it."""
    if execution not in EXECUTIONS:
        raise UsageError(f"execution must be {', '.join(EXECUTIONS)}, got {execution!r}")
    if "graphs" in execution and device.type != "cuda":
        raise DeviceError(f"execution {execution} needs a CUDA device, got {device}; use eager or compiled")
    if "compiled" in execution and (reason := why_not_compiled(str(device))):
        needs = "a C++ compiler: g++, clang++ or the one that CXX names"
        if device.type == "cuda":
            needs = "Triton, and for its launcher a C compiler and Python's headers"
        raise DeviceError(
            f"execution {execution}: torch.compile does not work on {device}: {reason}; it needs {needs}; or use eager"
        )


@cache
def why_not_compiled(device: str) -> str | None:
    """Why torch.compile cannot run on `device`, told by compiling one small function there; None if it can."""
    try:
        torch.compile(_probe, fullgraph=True, dynamic=False)(torch.zeros(64, device=device))
    except Exception as error:  # whatever a compiler, its driver or a missing header makes it raise
        return _reason(error)
    return None


def _probe(x: Tensor) -> Tensor:
    return x.sin() + 1


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Have blocks run compiled, in place; those of a kind share what is compiled: their weights are arguments of it.

    A block with hooks stays as it is: what watches the attention call inside it cannot be compiled with it. torch
    compiles at the first call, for any number of frames but 1, for 1 apart, and anew where its number of threads
    differs. Calls from several threads are fine.
    """
    compiled: dict[type, Callable] = {}
    for block in blocks:
        if block._forward_hooks or block._forward_pre_hooks:
            continue
        if type(block) not in compiled:
            compiled[type(block)] = _compiled(type(block).forward)
        block.forward = partial(compiled[type(block)], block)


def _compiled(function: FunctionType) -> Callable:
    """`function`, a block's forward, compiled whole. torch keeps what it compiled, and counts it against its limit, by
    code object, and learns by its name which sizes vary: a copy of another name keeps the blocks of this network apart
    from those of any other of the same class."""
    name = f"{function.__name__}_{next(_numbers)}"
    code, closure = function.__code__.replace(co_name=name), function.__closure__
    copy = FunctionType(code, function.__globals__, name, function.__defaults__, closure)
    copy.__kwdefaults__ = function.__kwdefaults__
    inner = torch.compile(copy, fullgraph=True)

    def call(block: nn.Module, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        torch._dynamo.maybe_mark_dynamic(tokens, 0)  # the last batch of a video is shorter; as fast as a fixed size
        try:
            return inner(block, tokens, *args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise DeviceError(
                f"execution compiled: torch.compile failed on {tokens.device}: {_reason(error)}; use eager"
            ) from error
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:  # its text is only that it is one
            limit = torch._dynamo.config.recompile_limit
            raise DeviceError(
                f"execution compiled: torch compiles a block at most {limit} times, anew for each number of threads; "
                "keep to a few of them, raise torch._dynamo.config.recompile_limit, or use eager"
            ) from error

    return call


def _reason(error: BaseException) -> str:
    """The first line that says something, which is not the one that names the backend."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("backend=")]
    return told[0][:200] if told else type(error).__name__


class CapturedForward:
    """A forward pass, recorded once per batch size as a CUDA graph and replayed.

    A batch is padded to the next power of two, at most `most()`, so that few graphs serve all sizes; what is padded is
    cut off. Replay is on the current stream. The tokens that a call returns are copies, which the next call leaves
    alone. Calls from several threads and streams follow each other.

    Args:
        forward: pixels [B, 3, H, W] to tokens; must not synchronise or copy from pageable memory.
        most: frames per batch at this time.
        capture: `capture_on_cuda`, or what stands in for it in a test.
    """

    def __init__(self, forward: Callable[[Tensor], Tokens], most: Callable[[], int], capture: Callable | None = None):
        self._forward, self._most, self._capture = forward, most, capture or capture_on_cuda
        self._captured: dict[tuple[int, ...], Captured] = {}
        self._lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tokens:
        shape = (padded_size(len(pixels), self._most()), *pixels.shape[1:])
        with self._lock:
            try:
                if shape not in self._captured:
                    self._captured[shape] = self._recorded(pixels, shape)
                return self._captured[shape].replay(pixels)
            except torch.OutOfMemoryError:
                self._captured.clear()  # their memory is what a smaller batch needs
                raise

    def _recorded(self, pixels: Tensor, shape: tuple[int, ...]) -> Captured:
        held = pixels.new_zeros(shape)
        try:
            return self._capture(self._forward, held)
        except RuntimeError as error:
            for cause in (error, error.__context__):  # leaving a capture that ran out of memory fails in its turn
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from None
            raise DeviceError(
                f"execution graphs: the forward pass of {shape[0]} frames cannot be captured: {_reason(error)}; "
                "use eager or compiled"
            ) from error


def padded_size(rows: int, most: int) -> int:
    """The next power of two, but no more than `most` where `rows` is not."""
    return max(rows, min(most, 1 << (rows - 1).bit_length()))


class Captured:
    """A recorded forward pass with the memory that it reads and writes."""

    def __init__(self, graph: Any, pixels: Tensor, tokens: Tokens):
        self._graph, self._pixels, self._tokens = graph, pixels, tokens
        self._free: Any = None

    def replay(self, pixels: Tensor) -> Tokens:
        """Tokens of up to as many frames as were recorded."""
        stream = torch.cuda.current_stream(pixels.device) if pixels.is_cuda else None
        if stream and self._free:
            stream.wait_event(self._free)  # a call on another stream may still read the tokens
        if stream:
            self._pixels.record_stream(stream)  # all may be dropped before this stream has read them
        self._pixels[: len(pixels)].copy_(pixels)
        self._graph.replay()
        tokens = Tokens(*(None if x is None else x[: len(pixels)].clone() for x in self._tokens))
        self._free = stream and stream.record_event()
        return tokens


def capture_on_cuda(forward: Callable[[Tensor], Tokens], pixels: Tensor) -> Captured:
    """Record `forward(pixels)`. Other threads may go on using the device, but for a capture of theirs; warm-up and
    capture share a stream of their own, so that what libraries keep for a stream is there before the capture."""
    current, stream = torch.cuda.current_stream(pixels.device), torch.cuda.Stream(pixels.device)
    with _capturing, torch.cuda.stream(current):  # a capture that fails may leave its own stream the current one
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                forward(pixels)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            tokens = forward(pixels)
        current.wait_stream(stream)
    return Captured(graph, pixels, tokens)
