"""The gate every file passes, and what is known about a video before any frame is taken from it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import lru_cache

from vsim_fast.errors import OpenError, UsageError
from vsim_fast.records import IMAGE_SUFFIXES, VideoInfo


@dataclass(frozen=True)
class Limits:
    """The largest video that is read; anything beyond is `UnsupportedVideo`."""

    max_pixels: int = 8192 * 8192
    """Width times height."""
    max_frames: int = 10_000_000
    max_seconds: float = 86_400

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"{name} must be above 0, got {value}")


DEFAULT_LIMITS = Limits()
IMAGE_FPS = 3.0
"""Frame rate of a folder of images where none is given."""
SCRIPTS = {  # first bytes -> what the file really is
    b"ffconcat": "a concat script",
    b"#EXTM3U": "an HLS playlist",
    b"<MPD": "a DASH manifest",
    b"<?xml": "an XML document",
    b"v=0": "an SDP session description",
    b"[playlist]": "a playlist",
}


def gate(path: str | os.PathLike) -> tuple[str, os.stat_result]:
    """Absolute path and status of a real local file or folder; the name is never read as a URL.

    Raises:
        OpenError: missing, unreadable, empty, not a regular file (pipe, device, socket), or a script naming others.
    """
    try:
        absolute = os.path.abspath(os.fspath(path))
        status = os.stat(absolute)
    except ValueError as error:  # embedded null byte
        raise OpenError(ascii(path), f"not a file name ({error})") from None
    except OSError as error:
        raise OpenError(path, error.strerror or str(error)) from None
    if stat.S_ISDIR(status.st_mode):
        return absolute, status
    if not stat.S_ISREG(status.st_mode):
        raise OpenError(path, "must be a regular file, not a pipe, socket or device")
    if status.st_size == 0:
        raise OpenError(path, "the file is empty")
    try:
        with open(absolute, "rb") as file:
            head = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise OpenError(path, error.strerror or str(error)) from None
    for start, kind in SCRIPTS.items():
        if head.startswith(start):
            raise OpenError(
                path, f"this is {kind}, which is refused because it names other files; name the video itself"
            )
    return absolute, status


def is_image(path: str) -> bool:
    """Whether the name is that of an image file."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def probe(path: str | os.PathLike, *, limits: Limits = DEFAULT_LIMITS, image_fps: float | None = None) -> VideoInfo:
    """Everything about a video but its pixels: one demux pass for the times, one decoded frame for colour and rotation.

    Args:
        path: a local video file, an image file (a video of one frame), or a folder of images (natural order of names).
        limits: largest size, frame count and duration accepted.
        image_fps: frame rate of images; 3 where not given. Ignored for videos.
    Raises:
        OpenError, NoVideoStream, UnsupportedVideo, CorruptVideo: one line each, naming the file and the rule.
        UsageError: `image_fps` is not a finite number above 0.
    The stream taken is the one FFmpeg takes (largest, then most frames). Results are cached by path, size and mtime.
    """
    if image_fps is not None and not 0 < image_fps < float("inf"):
        raise UsageError(f"image_fps must be a finite number above 0, got {image_fps}")
    absolute, status = gate(path)
    if stat.S_ISDIR(status.st_mode) or is_image(absolute):
        from vsim_fast.video import _images

        return _images.scan(absolute, limits, IMAGE_FPS if image_fps is None else image_fps)
    return _scan(absolute, status.st_size, status.st_mtime_ns, status.st_ino, limits)


@lru_cache(maxsize=64)
def _scan(path: str, size: int, mtime_ns: int, inode: int, limits: Limits) -> VideoInfo:
    from vsim_fast.video import _pyav

    return _pyav.scan(path, limits)
