"""Preparation of frames that ends its process; workers import it by this name."""

from __future__ import annotations

import os
import signal

from vsim_fast.encode.base import Preprocess

DEADLY = "deadly.mp4"


class DeadlyPreprocess(Preprocess):
    """Nobody survives a frame of a file called DEADLY."""

    def pixels(self, frames, device, dtype):
        if os.path.basename(frames.info.path) == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().pixels(frames, device, dtype)
