"""The one error hierarchy. A message names the file or argument, the rule and the value, and what to do."""

from __future__ import annotations

from functools import partial
from typing import Any


class VsimError(Exception):
    """Anything the user can act on. The command line prints it as one line; anything else is a programming error."""


class UsageError(VsimError, ValueError):
    """An argument breaks a stated rule."""


class DeviceError(VsimError):
    """The asked-for device, backend or precision cannot run here."""


class EncoderError(VsimError):
    """An encoder cannot be built: unknown spec, missing weights, keys that do not match."""


class OutputError(VsimError):
    """Results cannot be written: folder not writable, disk full."""


class DecodeError(VsimError):
    """A video cannot be read.

    Attributes:
        path: the file.
        reason: what is wrong with it, without the file name.
        pts_seconds: presentation time at which decoding failed, or None.
    """

    def __init__(self, path: object, reason: str, *, pts_seconds: float | None = None):
        self.path, self.reason, self.pts_seconds = str(path), reason, pts_seconds
        super().__init__(f"{self.path}: {self.told}")

    @property
    def told(self) -> str:
        """The message without the file's name."""
        return self.reason + ("" if self.pts_seconds is None else f" at {self.pts_seconds:.3f} s")

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes send it
        return partial(type(self), pts_seconds=self.pts_seconds), (self.path, self.reason)


class OpenError(DecodeError):
    """The file is missing, empty, refused by the gate, or no container FFmpeg reads."""


class NoVideoStream(DecodeError):
    """The container holds no video stream."""


class UnsupportedVideo(DecodeError):
    """The codec, pixel format, size or length is outside what the decoder or the limits allow."""


class CorruptVideo(DecodeError):
    """The stream is damaged beyond the error policy (`on_error="raise"`), or no frame decodes."""


class ChangedVideo(CorruptVideo):
    """The file changed while it was read: nothing to remember about its content."""


class WorkerDied(DecodeError):
    """Whatever read the file crashed or hung, and was ended."""


class DoesNotFit(UnsupportedVideo):
    """What is to be kept of the video does not fit into the memory of this machine."""
