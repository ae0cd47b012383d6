"""The files a user finds in the output folder: embeddings per video, all of them in one, and the summary."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vsim_fast.feature_store import Sizes
from vsim_fast.store import PARTIAL, atomic_path, output_errors

SaveFormat = Literal["numpy", "json", "both"]
SUFFIXES: dict[str, tuple[str, ...]] = {"numpy": (".npy",), "json": (".json",), "both": (".npy", ".json")}
STORE, CONSOLIDATED, SUMMARY = "store", "consolidated_embeddings.json", "summary.json"


class EmbeddingFiles:
    """`NAME_embedding.npy` (float32 [D]) and `NAME_embedding.json` in the output folder."""

    def __init__(self, folder: Path, save_format: SaveFormat):
        self.folder, self.suffixes = folder, SUFFIXES[save_format]

    def names(self, name: str) -> list[str]:
        return [f"{name}_embedding{suffix}" for suffix in self.suffixes]

    def sizes(self) -> dict[str, int | None]:
        """Of all files in the folder, None of any other; what a killed run had not finished is removed."""
        sizes = Sizes(self.folder)
        with output_errors(self.folder):
            for entry in list(os.scandir(self.folder)):  # folders are of other commands, which look after them
                if entry.name.startswith(".") and PARTIAL in entry.name and entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)
        return sizes

    def write(
        self, name: str, path: str, embedding: np.ndarray, facts: Mapping[str, Any]
    ) -> dict[str, tuple[int, str]]:
        """File name -> (size, digest). A file that holds these bytes already is left alone."""
        written = {}
        for file in self.names(name):
            data = _npy(embedding) if file.endswith(".npy") else _json(name, path, embedding, facts)
            written[file] = (len(data), hashlib.blake2b(data, digest_size=16).hexdigest())
            target = self.folder / file
            if not _holds(target, data):
                with atomic_path(target) as partial:
                    partial.write_bytes(data)
        return written


def write_consolidated(path: Path, rows: Iterable[tuple[str, str, np.ndarray, Mapping[str, Any]]]) -> None:
    """All videos in one object by NAME, row by row."""
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:
        start = "{\n"
        for name, video, embedding, facts in rows:
            file.write(f"{start}{json.dumps(name)}: {json.dumps(_entry(name, video, embedding, facts))}")
            start = ",\n"
        file.write("\n}\n" if start != "{\n" else "{}\n")


def write_json(path: Path, content: Any) -> None:
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _entry(name: str, path: str, embedding: np.ndarray, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "video_name": name, "video_path": path, "embedding": embedding.tolist(), "embedding_dim": len(embedding),
        "frames": facts["frames"], "duration_seconds": facts["duration_seconds"], "encoder": facts["encoder"],
    }  # fmt: skip


def _json(name: str, path: str, embedding: np.ndarray, facts: Mapping[str, Any]) -> bytes:
    return (json.dumps(_entry(name, path, embedding, facts), indent=1) + "\n").encode()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array.astype(np.float32), allow_pickle=False)
    return file.getvalue()


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False
