"""The records that cross layers. Frozen; `repr` shows shapes, never values."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Matrix = Literal["bt601", "bt709", "bt2020"]
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
"""What counts as an image of a folder, in upper or lower case."""


def _show(value: object) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None and not isinstance(value, (bytes, str)):
        return f"{list(shape)} {str(getattr(value, 'dtype', '')).removeprefix('torch.')}".rstrip()
    return repr(value)


class _ShapeRepr:
    def __repr__(self) -> str:
        body = ", ".join(f"{f.name}={_show(getattr(self, f.name))}" for f in fields(self) if f.repr)  # type: ignore[arg-type]
        return f"{type(self).__name__}({body})"


@dataclass(frozen=True)
class ColorSpec:
    """How YUV code values become RGB."""

    matrix: Matrix = "bt601"
    """Luma weights. Untagged video is BT.601, as FFmpeg assumes."""
    full_range: bool = False
    """True: 0..255; False: limited range, 16..235 luma and 16..240 chroma."""
    bit_depth: int = 8
    guessed: bool = True
    """True when the file carries no matrix tag and the default was taken."""
    transfer: str = "unspecified"
    """Transfer characteristic by its FFmpeg name; `smpte2084` and `arib-std-b67` mean HDR, which is not tone-mapped."""

    @property
    def is_hdr(self) -> bool:
        return self.transfer in ("smpte2084", "arib-std-b67")


@dataclass(frozen=True, repr=False)
class VideoInfo(_ShapeRepr):
    """What `probe` learns about a file without decoding it."""

    path: str
    codec: str
    width: int
    """Coded (unrotated) width in pixels."""
    height: int
    pix_fmt: str
    color: ColorSpec
    time_base: Fraction
    pts: np.ndarray
    """int64 [N], presentation timestamps in `time_base`, sorted, frames dropped by an edit list removed."""
    is_key: np.ndarray
    """bool [N], aligned with `pts`."""
    duration_seconds: float
    """From the first frame's start to the last frame's end."""
    average_fps: float
    rotation: int = 0
    """Degrees counter-clockwise (0, 90, 180, 270) that turn the coded picture into the displayed one."""
    mirrored: bool = False
    """True when the picture is flipped left-right after the rotation."""
    sample_aspect: Fraction = Fraction(1)
    """Reported, never applied."""
    interlaced: bool = False
    container_frames: int = 0
    """Frame count the container header claims; 0 if it claims none."""
    seekable: bool = True
    """False when the container's times could not be trusted and came from a decode pass: decode from the start."""
    notes: tuple[str, ...] = ()
    """Anything worth telling the user: guessed colour, HDR, dropped frames, odd size."""

    @property
    def pts_seconds(self) -> np.ndarray:
        """float64 [N], presentation times in seconds."""
        return self.pts * float(self.time_base)

    @property
    def display_size(self) -> tuple[int, int]:
        """(height, width) after rotation."""
        return (self.width, self.height) if self.rotation in (90, 270) else (self.height, self.width)


@dataclass(frozen=True, repr=False)
class FrameBatch(_ShapeRepr):
    """Consecutive sampled frames of one video, unrotated, either as native planes or as RGB.

    Planes from a hardware decoder are valid only until `release()` has been called; consume them by work enqueued
    on the current stream, then release.
    """

    info: VideoInfo
    pts_seconds: Tensor
    """float64 [B] on the CPU."""
    index: Tensor
    """int64 [B] on the CPU: position of each frame in `info.pts`."""
    y: Tensor | None = None
    """uint8 or uint16 [B, H, W]. 16-bit planes hold the code value in the low bits (0..2**bit_depth - 1)."""
    uv: Tensor | None = None
    """Same dtype, [B, ceil(H/2), ceil(W/2), 2]."""
    rgb: Tensor | None = None
    """uint8 [B, H, W, 3]; set exactly when the planes are None."""
    on_release: object = field(default=None, repr=False, compare=False)
    """Callable without arguments, or None."""

    def __post_init__(self) -> None:
        if (self.rgb is None) == (self.y is None) or (self.y is None) != (self.uv is None):
            raise TypeError("FrameBatch needs either y and uv planes or rgb")
        data = self.rgb if self.rgb is not None else self.y
        if not len(data) == len(self.pts_seconds) == len(self.index):
            raise ValueError(f"FrameBatch lengths differ: {len(data)}, {len(self.pts_seconds)}, {len(self.index)}")

    def __len__(self) -> int:
        return len(self.index)

    def release(self) -> None:
        """Hand the buffers back to the decoder. The tensors must not be read after this call."""
        if self.on_release is not None:
            self.on_release()  # type: ignore[operator]


@dataclass(frozen=True, repr=False)
class FrameFeatures(_ShapeRepr):
    """What an encoder makes of T frames."""

    patches: Tensor | None
    """[T, P, D] patch tokens, row-major (p = row·Wp + col), not normalised; None where they were not to be kept."""
    cls: Tensor | None
    """[T, D] CLS token or the model's pooled embedding; None where the model has neither."""
    attention: Tensor | None
    """float32 [T, P] CLS-row attention averaged over heads (or the encoder's stated saliency)."""
    pts_seconds: Tensor
    """float64 [T] on the CPU."""
    grid: tuple[int, int]
    """(Hp, Wp) with P = Hp·Wp."""
    encoder: str
    """Id of the encoder that made them."""

    def __post_init__(self) -> None:
        if self.patches is None:
            return
        t, p = self.patches.shape[:2]
        if self.patches.ndim != 3 or p != self.grid[0] * self.grid[1] or len(self.pts_seconds) != t:
            raise ValueError(
                f"FrameFeatures: patches {list(self.patches.shape)} do not fit grid {self.grid} and "
                f"{len(self.pts_seconds)} times"
            )


class Progress(Protocol):
    """Told what is going on."""

    def advance(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` of what `stage` names: frames of a video, "videos", "pairs"."""


def frames_in_memory(rgb: np.ndarray) -> FrameBatch:
    """Frames uint8 [B, H, W, 3] as a decoder would deliver them, one second apart."""
    import numpy as np
    import torch

    count, height, width = rgb.shape[:3]
    index = torch.arange(count)
    info = VideoInfo(
        path="memory", codec="none", width=width, height=height, pix_fmt="rgb24", color=ColorSpec(),
        time_base=Fraction(1), pts=index.numpy(), is_key=np.ones(count, bool), duration_seconds=float(count),
        average_fps=1.0,
    )  # fmt: skip
    return FrameBatch(info, index.double(), index, rgb=torch.from_numpy(np.ascontiguousarray(rgb)))
