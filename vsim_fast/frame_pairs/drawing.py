"""The folder of pictures of a pair; also a process that draws them, started by `finishing`. Imports no torch."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from vsim_fast.errors import VsimError
from vsim_fast.report.pair_pictures import PairDrawing, write_pair_pictures
from vsim_fast.store import OutputFolder

PICTURES = (
    "similarity_A2B.png", "similarity_B2A.png", "mismatch_A.png", "mismatch_B.png", "vector_field.png",
    "pca_features.png",
)  # fmt: skip
"""What an earlier run may have left; a later one may draw fewer."""
NICENESS = 5
"""Gives way to the encoder, as decode processes do."""


class Folder(NamedTuple):
    """What a folder of pictures is made of."""

    path: str
    drawing: PairDrawing
    summary: dict[str, Any]
    """Of summary.json."""
    arrow_stride: int
    relative: bool
    """Each map has its own colour range."""


def write_folder(folder: Folder) -> None:
    """Pictures and summary.json.  Raises: OutputError."""
    with OutputFolder(Path(folder.path)) as out:
        out.replaces(PICTURES)
        write_pair_pictures(out.file, folder.drawing, arrow_stride=folder.arrow_stride, relative=folder.relative)
        out.write_json("summary.json", folder.summary)


def main() -> None:
    """Folders in, None or the error out, until the other side goes."""
    with suppress(OSError):
        os.nice(NICENESS)
    connection = Connection(int(sys.argv[1]))
    with suppress(EOFError, OSError):
        while True:
            folder, error = connection.recv(), None
            try:
                write_folder(folder)
            except VsimError as refused:
                error = refused
            connection.send(error)
