"""What encoders built on a library's network share: device, precision with its load-time check, identity, sizes."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vsim_fast.encode.attention import AttentionTap, CoreAttention, ProbeTap
from vsim_fast.encode.base import Encoder, Preprocess, Tokens
from vsim_fast.encode.checkpoint import weights_digest
from vsim_fast.encode.execution import CapturedForward, compile_blocks
from vsim_fast.encode.float8 import FLOAT8, Float8Linear, quantise_linears
from vsim_fast.encode.spec import Spec
from vsim_fast.errors import DeviceError, UsageError
from vsim_fast.ops.attention import core_is_faster
from vsim_fast.processor import cpu_has_bfloat16

PRECISIONS = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float8": FLOAT8,
}  # fmt: skip
COSINE_BOUND = 8e-3  # largest error of a patch cosine that `auto` accepts for a 16-bit dtype
CPU_BATCH_SIZE = 8  # throughput is flat beyond it (ViT-S at 448 px), memory is not
CHECK_GRID = 8  # patches per side of the frame that the check encodes


def resolve_device(device: str | torch.device) -> torch.device:
    """`auto` is CUDA where a CUDA device answers, else the CPU; anything else must be usable as named.

    Raises:
        UsageError: no such kind of device.  DeviceError: it cannot be used here, with the reason.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device must be auto, cpu, cuda, cuda:N or mps, got {str(device)!r}") from None
    if resolved.type == "cuda":
        if torch.version.cuda is None:
            raise DeviceError(f"device {resolved}: this PyTorch ({torch.__version__}) is built without CUDA")
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            raise DeviceError(f"device {resolved}: {str(error).splitlines()[0]}") from None
        if (resolved.index or 0) >= torch.cuda.device_count():
            raise DeviceError(f"device {resolved}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    elif resolved.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device mps: no Metal device here")
    elif resolved.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device must be auto, cpu, cuda, cuda:N or mps, got {str(device)!r}")
    return resolved


def candidate_dtypes(precision: str, device: torch.device) -> list[torch.dtype]:
    """Dtypes to try, best first. A named precision is the only candidate.

    `auto`: float16, then bfloat16 on CUDA; bfloat16 on CPUs that multiply it natively; float32 at last. float16 is
    refused on the CPU, where it is slower than float32 and overflows. float8, of the linear layers only, needs CUDA and
    a capability of 9.0: on 8.9 torch before 2.12 multiplies with scales per row on the wrong stream.
    """
    if precision == "auto":
        if device.type == "cuda":
            return [torch.float16, torch.bfloat16, torch.float32]
        return [torch.bfloat16, torch.float32] if device.type == "cpu" and cpu_has_bfloat16() else [torch.float32]
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be auto, {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "float16" and device.type == "cpu":
        raise DeviceError("precision float16 needs a GPU; on the CPU use bfloat16 or float32")
    if precision == "float8":
        found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        if found is None or found < (9, 0):
            here = f"{device}" if found is None else f"{device} of {found[0]}.{found[1]}"
            raise DeviceError(f"precision float8 needs a CUDA device of compute capability 9.0 or more, got {here}")
    return [PRECISIONS[precision]]


def check_image_size(image_size: int | None, default: int, patch: int) -> int:
    """The side in pixels: `image_size`, or `default` rounded down to whole patches; a multiple of `patch`."""
    if image_size is None:
        return max(patch, default // patch * patch)
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise UsageError(f"image_size must be a positive whole number of pixels, got {image_size!r}")
    if image_size % patch:
        below = image_size // patch * patch
        near = f"{below} or {below + patch}" if below else f"{patch}"
        raise UsageError(f"image_size must be a multiple of the patch size {patch}, got {image_size}; nearest: {near}")
    return image_size


class NetworkEncoder(Encoder):
    """An encoder around one `nn.Module`, handed over in float32 on the CPU, then settled on a device and dtype.

    Attributes:
        network: the library's model, in eval mode.
        precision: name of what it computes in; "float8" is that of the blocks' linear layers, `dtype` of all else.
        cosine_error: largest error of a patch cosine against float32 in the load-time check; None where none was made.
    """

    network: nn.Module
    precision: str
    cosine_error: float | None = None
    _tap: AttentionTap | ProbeTap
    _run: Callable[[Tensor], Tokens]

    def __init__(self, spec: Spec, network: nn.Module, preprocess: Preprocess, *, patch_size: int, dim: int):
        self.spec, self.random_weights = str(spec), spec.random
        self.network, self.preprocess = network.eval().requires_grad_(False), preprocess
        self.patch_size, self.dim = patch_size, dim
        self.grid = (preprocess.size[0] // patch_size, preprocess.size[1] // patch_size)
        self._stem = f"{spec.portable_name}+{weights_digest(network, preprocess.as_dict())}"

    @abstractmethod
    def tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """(patches [B, P, D], cls [B, D] or None) of pixels [B, 3, H, W] of any size in whole patches."""

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks, in order."""

    @abstractmethod
    def tap(self) -> AttentionTap | ProbeTap:
        """Hook `self.network` and set `attention_kind`; called once, when the network is settled."""

    def forward(self, pixels: Tensor) -> Tokens:
        return self._run(pixels)

    def _forward(self, pixels: Tensor) -> Tokens:
        with _attention(pixels):
            patches, cls = self.tokens(pixels)
        return Tokens(patches, cls, self._tap.take()[:, -patches.shape[1] :])  # prefix tokens come first

    def settle(self, device: torch.device, dtypes: list[torch.dtype], execution: str = "eager") -> NetworkEncoder:
        """Move to `device`, in the first of `dtypes` whose patch cosines stay within COSINE_BOUND of float32.

        The last (or only) dtype is taken unchecked; float8 is checked, but taken whatever comes out. The check encodes
        one generated frame of 8×8 patches in both dtypes, with the weights at hand; NaN or infinity fails it.
        """
        self.device, network = device, self.network.to(device)
        with torch.inference_mode():
            exact = self._check_cosines(torch.float32) if dtypes[-1] == FLOAT8 or len(dtypes) > 1 else None
        for dtype in dtypes:
            last, self.precision, self.dtype = dtype == dtypes[-1], _name(dtype), dtype
            if dtype == FLOAT8:
                self.precision, self.dtype = "float8", torch.bfloat16
                quantise_linears(self.blocks(), self.dtype)  # of weights that have all their bits
            replaced = cast(network, self.dtype)
            if last and dtype != FLOAT8:
                break
            with torch.inference_mode():
                error = (self._check_cosines(self.dtype) - exact).abs().max().item()
            if last or error <= COSINE_BOUND:  # False for NaN
                self.cosine_error = error
                break
            for table, name, tensor in replaced:
                table[name] = tensor
        self._tap = self.tap()
        self.execution, self._run = execution, self._forward
        if "compiled" in execution:
            compile_blocks(self.blocks())
        if "graphs" in execution:
            self._run = CapturedForward(self._forward, lambda: self.batch_size)
        self.id = f"{self._stem}.{self.preprocess.size[0]}px.{self.precision}"
        if device.type == "cpu":
            self.batch_size = CPU_BATCH_SIZE
        return self

    def _check_cosines(self, dtype: torch.dtype) -> Tensor:
        """float32 [P, P] patch cosines of a generated frame: blobs, an edge and noise."""
        side = CHECK_GRID * self.patch_size
        generator = torch.Generator().manual_seed(0)
        blobs = torch.randn(1, 3, 5, 5, generator=generator)
        frame = nn.functional.interpolate(blobs, (side, side), mode="bicubic") + 0.2 * torch.randn(
            1, 3, side, side, generator=generator
        )
        frame[..., side // 3 :] -= 0.7
        device = next(self.network.parameters()).device
        pixels = frame.clamp(-2, 2).to(device, dtype)
        with _attention(pixels):
            patches, _ = self.tokens(pixels)
        unit = nn.functional.normalize(patches[0].float(), dim=-1)
        return unit @ unit.T

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "dtype": self.precision, "cosine_error": self.cosine_error}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _attention(pixels: Tensor) -> AbstractContextManager:
    return CoreAttention() if core_is_faster(pixels.device, pixels.dtype) else nullcontext()


def cast(network: nn.Module, dtype: torch.dtype) -> list[tuple[dict, str, Tensor]]:
    """Turn `network` to `dtype` in place, but for rotary tables, whose angles 8 bits of mantissa would spoil, and what
    is in float8.

    Returns what was replaced, as (table, name, tensor): `table[name] = tensor` undoes it.
    """
    replaced = []
    for module in network.modules():
        kept = isinstance(module, Float8Linear) or re.search("rotary|rope", type(module).__name__, re.IGNORECASE)
        for table in (module._parameters, {} if kept else module._buffers):
            for name, tensor in table.items():
                if tensor is not None and tensor.is_floating_point() and tensor.dtype != dtype:
                    replaced.append((table, name, tensor))
                    low = tensor.to(dtype)
                    table[name] = nn.Parameter(low, requires_grad=False) if isinstance(tensor, nn.Parameter) else low
    return replaced
