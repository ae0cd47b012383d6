"""Images, one as a video of a single frame or a folder of them as a video, read with Pillow."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from vsim_fast.errors import CorruptVideo, OpenError, UnsupportedVideo
from vsim_fast.records import IMAGE_SUFFIXES, ColorSpec, FrameBatch, VideoInfo
from vsim_fast.video._batches import Assembler, DecodeReport
from vsim_fast.video.probe import DEFAULT_LIMITS, Limits, gate, is_image
from vsim_fast.video.sampling import DecodePlan, exact

ORIENTATION = 0x0112  # EXIF tag; 5..8 swap width and height
CAMERA_FORMATS = {"JPEG", "MPO", "WEBP", "TIFF"}  # others are not turned: reading their EXIF decodes the whole image


def files(path: str) -> list[Path]:
    """The image itself, or the image files of a folder in natural order: frame2 before frame10."""
    if os.path.isfile(path):
        return [Path(path)]
    found = [p for p in Path(path).iterdir() if is_image(p.name) and p.is_file()]
    return sorted(found, key=lambda p: [int(s) if s.isdigit() else s for s in re.split(r"([0-9]+)", p.name.lower())])


def open_image(path: str | Path) -> Image.Image:
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):  # our limit is lower
            return Image.open(path)
    except (OSError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise OpenError(path, f"no image that is read here ({error})") from None


def read_image(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3], upright.  Raises: OpenError, UnsupportedVideo, CorruptVideo."""
    path, _ = gate(path)
    with open_image(path) as image:
        width, height = image.size
        if width * height > limits.max_pixels:
            raise UnsupportedVideo(path, f"{width}x{height} pixels are more than the {limits.max_pixels} allowed")
        with decoding(path):
            return np.array(_upright(image))  # Pillow hands out memory that cannot be written to


@contextmanager
def decoding(path: str) -> Iterator[None]:
    """What Pillow says of damaged images, as CorruptVideo."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, IndexError) as error:
        raise CorruptVideo(path, f"the image does not decode ({error})") from None


def _upright(image: Image.Image) -> np.ndarray:
    """uint8 RGB [H, W, 3]; alpha is left out, what has 16 bits is scaled (Pillow's own conversion would clip it)."""
    turned = ImageOps.exif_transpose(image) if image.format in CAMERA_FORMATS else image
    if turned.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if turned.mode.startswith("I"):
        deep = np.asarray(turned)
        if deep.min() < 0 or deep.max() > 0xFFFF:
            raise ValueError("whole-number pixels must be in 0 ... 65535")
        return ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)[..., None].repeat(3, axis=2)
    return np.asarray(turned.convert("RGB"))


def _notes(image: Image.Image) -> tuple[str, ...]:
    """What reading as 8-bit RGB leaves out of an image; `image` is decoded only if it has an alpha channel."""
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"holds {image.n_frames} pictures, the first is read")
    if image.mode.startswith("I") or any(";16" in str(tile) for tile in image.tile):
        notes.append("16 bits a channel, read as 8")
    elif image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        notes.append("transparent in places: the alpha channel is left out")
    return tuple(notes)


def scan(folder: str, limits: Limits, fps: float | Fraction) -> VideoInfo:
    """`VideoInfo` of an image or a folder; all images must have one size (upright, after their EXIF orientation)."""
    try:
        paths = files(folder)
    except OSError as error:
        raise OpenError(folder, error.strerror or str(error)) from None
    if not paths:
        raise OpenError(folder, f"the folder holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if len(paths) > limits.max_frames:
        raise UnsupportedVideo(folder, f"{len(paths)} images are more than the {limits.max_frames} frames allowed")
    size = None
    for path in paths:
        with open_image(path) as image:
            width, height = image.size
            if image.format in CAMERA_FORMATS and image.getexif().get(ORIENTATION, 1) >= 5:
                width, height = height, width
        if size is None:
            size = (width, height)
        if (width, height) != size:
            raise UnsupportedVideo(path, f"must be {size[0]}x{size[1]} like {paths[0].name}, is {width}x{height}")
        if width * height > limits.max_pixels:
            raise UnsupportedVideo(path, f"{width}x{height} pixels are more than the {limits.max_pixels} allowed")
    rate, notes = exact(fps), (f"a folder of images ({len(paths)}) at {float(fps):g} per second",)
    if paths == [Path(folder)]:
        with open_image(folder) as image, decoding(folder):
            notes = _notes(image)
    return VideoInfo(
        path=folder, codec="images", width=size[0], height=size[1], pix_fmt="rgb24", color=ColorSpec(guessed=False),
        time_base=1 / rate, pts=np.arange(len(paths)), is_key=np.ones(len(paths), dtype=bool),
        duration_seconds=float(len(paths) / rate), average_fps=float(rate),
        notes=notes,
    )  # fmt: skip


class ImageBackend:
    """Delivers the images of a plan as RGB, upright."""

    name = "images"

    def __init__(
        self,
        info: VideoInfo,
        plan: DecodePlan,
        report: DecodeReport,
        *,
        batch_size: int,
        output: str,
        device: torch.device,
        strict: bool,
    ):
        assert output == "rgb"
        self.info, self.plan, self.report, self.device, self.strict = info, plan, report, device, strict
        self.assembler = Assembler(
            info, plan, batch_size, report, on_lost=lambda index: None, finish=self._finish,
            allocate=lambda count: (torch.empty(count, info.height, info.width, 3, dtype=torch.uint8),),
        )  # fmt: skip

    def __iter__(self) -> Iterator[FrameBatch]:
        paths = files(self.info.path)
        for index in np.unique(self.plan.index).tolist():
            try:
                with open_image(paths[index]) as image:
                    picture = _upright(image)
                if picture.shape != (self.info.height, self.info.width, 3):
                    raise OpenError(paths[index], "the image changed its size while being read")
            except (OSError, OpenError, SyntaxError, ValueError, IndexError) as error:
                self.report.corrupt += 1
                if self.strict or len(paths) == 1:
                    which = "the image" if len(paths) == 1 else f"image {index}"
                    raise CorruptVideo(self.info.path, f"{which} does not decode ({error})") from None
                continue
            self.report.decoded_frames += 1
            for buffers, slot in self.assembler.slots(index):
                buffers[0].numpy()[slot] = picture
            yield from self.assembler.ready(index)
        yield from self.assembler.rest()

    def _finish(self, buffers: tuple[torch.Tensor, ...], **fields) -> FrameBatch:
        return FrameBatch(**fields, rgb=buffers[0].to(self.device))
