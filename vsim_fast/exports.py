"""A store's vectors in the files that other tools read. Each NAME is a row: two files of the same content are two."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from vsim_fast.errors import UsageError, VsimError
from vsim_fast.feature_store import Store
from vsim_fast.store import atomic_path, output_errors

if TYPE_CHECKING:
    import pyarrow

ROWS = 65_536
"""Of a Parquet row group."""


def export_parquet(store: Store, path: str | Path) -> int:
    """The videos' embeddings as Parquet: `id` (NAME, string) and `embedding` (fixed-size list of D float32).

    Returns:
        The number of rows.
    Raises:
        VsimError: pyarrow is not installed.  UsageError: nothing to export.  OutputError.
    """
    parquet = _library("pyarrow.parquet", "parquet")
    schema, batches, rows = _batches(store, "embedding")
    path = Path(path)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial, parquet.ParquetWriter(partial, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return rows


def export_lance(store: Store, folder: str | Path, *, table: str = "videos") -> int:
    """The videos' embeddings as a LanceDB table: `id` (NAME, string) and `vector` (fixed-size list of D float32).

    All rows in one write: a LanceDB keeps a version per write. A table of that name is replaced, as a new version.

    Returns:
        The number of rows.
    Raises:
        VsimError: lancedb is not installed.  UsageError: nothing to export.  OutputError.
    """
    lancedb, arrow = _library("lancedb", "lance"), _library("pyarrow", "lance")
    schema, batches, rows = _batches(store, "vector")
    folder = Path(folder)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        reader = arrow.RecordBatchReader.from_batches(schema, batches)
        lancedb.connect(folder).create_table(table, reader, schema=schema, mode="overwrite")
    return rows


def export_vsc(store: Store, path: str | Path) -> int:
    """The frames' vectors as an .npz that the code of the Video Similarity Challenge 2022 reads: `video_ids` (NAME of
    each frame, a video's frames one after the other), `features` float32 [M, D] of length 1, `timestamps` float32 [M]
    in seconds. Frames that show nothing are left out.

    Returns:
        The number of frames.
    Raises:
        UsageError: nothing to export; the store keeps no vectors of frames.  OutputError.
    """
    path = Path(path)
    videos, _ = store.embeddings()
    width, ids, counts, times = 0, [], [], []
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial, TemporaryFile(dir=path.parent) as features:  # M is known at the end
        for number, vectors, pts_seconds in store.frames(videos):
            for name in videos[number].names if len(vectors) else ():
                features.write(vectors.astype("<f4").tobytes())
                ids.append(name)
                counts.append(len(vectors))
                times.append(pts_seconds.astype("<f4"))
                width = vectors.shape[1]
        if not ids:
            raise UsageError(f"{store.folder}: there is nothing to export")
        features.seek(0)
        with zipfile.ZipFile(partial, "w") as out:
            for name, array in {"video_ids": np.repeat(ids, counts), "timestamps": np.concatenate(times)}.items():
                with out.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            with out.open("features.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": (sum(counts), width)}
                np.lib.format.write_array_header_1_0(member, header)
                shutil.copyfileobj(features, member, 16 << 20)
    return sum(counts)


def _batches(store: Store, column: str) -> tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch], int]:
    """(schema, batches of ROWS rows, number of rows); `column` holds the embeddings."""
    arrow = _library("pyarrow", "parquet")
    videos, vectors = store.embeddings()
    if not videos:
        raise UsageError(f"{store.folder}: there is nothing to export")
    rows = [(name, n) for n, video in enumerate(videos) for name in video.names]
    width = vectors.shape[1]
    schema = arrow.schema([("id", arrow.string()), (column, arrow.list_(arrow.float32(), width))])

    def batches() -> Iterator[pyarrow.RecordBatch]:
        for start in range(0, len(rows), ROWS):
            names, numbers = zip(*rows[start : start + ROWS], strict=True)
            values = arrow.array(vectors[list(numbers)].reshape(-1))
            lists = arrow.FixedSizeListArray.from_arrays(values, width)
            yield arrow.RecordBatch.from_arrays([arrow.array(names, arrow.string()), lists], schema=schema)

    return schema, batches(), len(rows)


def _library(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise VsimError(f"{package} is not installed: pip install 'vsim_fast[{extra}]' ({error})") from None
