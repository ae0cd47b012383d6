"""Which stored videos are most like an image, a video or a vector, and which of them are alike among themselves.

query ─ store's encoder ─► unit vectors [F, D] ─┐
store ─► unit vectors [N, D], one per video or per frame ─ index: exact | faiss | lance ─► k best videos
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor

from vsim_fast.encode import load_encoder
from vsim_fast.encode.base import Encoder
from vsim_fast.encode.network import resolve_device
from vsim_fast.errors import OpenError, UsageError, VsimError
from vsim_fast.feature_store import Store, StoredVideo
from vsim_fast.inputs import path_id
from vsim_fast.ops import TopK, pairs_above, top_k
from vsim_fast.pipeline import encode_video, encode_videos
from vsim_fast.records import frames_in_memory
from vsim_fast.store import atomic_path, output_errors
from vsim_fast.video import IMAGE_SUFFIXES, Sampling, read_image

Level = Literal["video", "frame"]
Backend = Literal["exact", "faiss", "lance"]
Query = str | os.PathLike | np.ndarray | Tensor
DEFAULT_SAMPLING = Sampling(fps=1.0, max_frames=100)
LISTS_FROM = 20_000
"""Vectors from which on FAISS and LanceDB sort them into lists and look into some: faster, no longer exact."""
MOST_RESULTS = 10_000_000
"""Scores held at a time while looking for the best frames of k videos."""


class Hit(BaseModel):
    """A stored video, by how like the query it is."""

    rank: int
    """From 1."""
    path: str
    """The first of `paths`."""
    paths: list[str]
    """All files of this content."""
    name: str
    key: str
    score: float
    """Cosine: of the videos' embeddings, or of the best pair of frames."""
    pts_seconds: float | None = None
    """Of its frame most like the query; None where the store keeps no vectors of frames."""
    query_pts_seconds: float | None = None
    """Of the query's frame in that pair; None for an image or a vector, and at level "video"."""


class SearchResult(BaseModel):
    """The stored videos most like a query, best first."""

    schema_version: int = 1
    query: str
    """The file, or "vector"."""
    level: Level
    backend: Backend
    exact: bool
    """False: an index was asked that may miss some."""
    encoder: str
    """Id of the encoder of the store."""
    videos: int
    vectors: int
    """Searched: one per video, or all frames'."""
    hits: list[Hit]
    notes: list[str] = []


class NearDuplicate(NamedTuple):
    """Two stored videos, by path; the query is the one stored first."""

    query: str
    ref: str
    score: float
    """Cosine of their embeddings; 1 for two files of one content."""


class Index(Protocol):
    """Unit vectors, ready to be searched."""

    exact: bool

    def find(self, queries: np.ndarray, k: int) -> TopK:
        """The k best of each of queries float32 [Q, D]; an index of -1 stands for none."""


class VectorSearch:
    """A store opened for many searches: vectors, index and encoder are loaded once.

    Args:
        store: an open store, or its folder, or the folder that `vsim embed` wrote to.
        level: what is compared. "video": the embeddings of whole videos. "frame": every frame; a video counts by its
            best one, and against a query video by the best pair of frames.
        backend: "exact": all vectors, on the device. "faiss" and "lance" (extras) are exact below 20,000 vectors; from
            there on they look into some of many lists.
        encoder: made by `load_encoder`; by default the one that the store's settings name is loaded when needed.
        device, offline: see `load_encoder`. On a CUDA device "exact" keeps the vectors there.
        index_folder: where "faiss" and "lance" keep their index, to find it again; None makes it anew.
    Raises:
        OutputError: no store there.  UsageError: the store keeps nothing of that level; an encoder that is not the
        store's.  VsimError: a library is missing; the message names the extra.  DeviceError.
    """

    def __init__(
        self,
        store: Store | str | os.PathLike,
        *,
        level: Level = "video",
        backend: Backend = "exact",
        encoder: Encoder | None = None,
        device: str | torch.device = "auto",
        offline: bool = False,
        index_folder: str | os.PathLike | None = None,
    ):
        if level not in ("video", "frame"):
            raise UsageError(f'level must be "video" or "frame", got {level!r}')
        if backend not in BACKENDS:
            raise UsageError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self.store, self.level, self.backend = _opened(store), level, backend
        self.settings: dict[str, Any] = self.store.settings["encoder"]
        self._device, self._offline = device, offline
        if encoder is not None:
            self._check(encoder)
        self._encoder = encoder
        self.videos, vectors = self.store.embeddings()
        self._video_of = self._pts = None
        if level == "frame" and self.videos:
            vectors, self._video_of, self._pts = self.store.frame_vectors(self.videos)
        self.count, self.dim = vectors.shape
        name = hashlib.blake2b(
            "\n".join([level, self.store.settings_hash, *(video.key for video in self.videos)]).encode(), digest_size=8
        )
        folder = None if index_folder is None else Path(index_folder)
        self._index: Index | None = None
        if self.count:
            self._index = BACKENDS[backend](vectors, device, folder, f"{level}-{name.hexdigest()}")

    def search(self, query: Query, k: int = 10) -> SearchResult:
        """The `k` videos most like `query`.

        Args:
            query: an image or video file, read as the store's videos were; a .npy file, an array or a tensor [D]: a
                vector of this store's encoder.
        Raises:
            UsageError: k; a vector of another length, or of length 0.  OpenError, CorruptVideo, …: the file.
            EncoderError, DeviceError: the store's encoder cannot be loaded, or is not the same here.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise UsageError(f"k must be a whole number of at least 1, got {k!r}")
        result = SearchResult(
            query="vector" if isinstance(query, np.ndarray | Tensor) else path_id(query), level=self.level,
            backend=self.backend, exact=self._index is None or self._index.exact, encoder=self.settings["id"],
            videos=len(self.videos), vectors=self.count, hits=[], notes=list(self.store.notes),
        )  # fmt: skip
        if self._index is None:
            result.notes.append("the store holds no videos")
            return result
        if not result.exact:
            result.notes.append(f"{self.backend} looked into some of its lists only: it may have missed some")
        asked = self._asked(query)
        result.notes += asked.notes
        best = self._best(asked.vectors, k)
        for rank, (number, score, row, vector) in enumerate(best, start=1):
            video = self.videos[number]
            hit = Hit(
                rank=rank, path=video.paths[0], paths=list(video.paths), name=video.name, key=video.key, score=score
            )
            if self._pts is not None:
                hit.pts_seconds = float(self._pts[vector])
                hit.query_pts_seconds = None if asked.pts_seconds is None else float(asked.pts_seconds[row])
            else:
                hit.pts_seconds = self._best_frame(video, asked.vectors[0])
            result.hits.append(hit)
        return result

    @property
    def encoder(self) -> Encoder:
        """The store's encoder.  Raises: EncoderError, DeviceError, UsageError: it is not the same here."""
        if self._encoder is None:
            named = self.settings
            encoder = load_encoder(
                named["spec"], device=self._device, precision=named["dtype"], image_size=named["image_size"],
                offline=self._offline,
            )  # fmt: skip
            self._check(encoder)
            self._encoder = encoder
        return self._encoder

    def _check(self, encoder: Encoder) -> None:
        if encoder.id != self.settings["id"]:
            raise UsageError(
                f"{self.store.folder}: its vectors are of encoder {self.settings['id']}, which those of {encoder.id} "
                "cannot be compared with; take the store's encoder, or embed the videos again in another folder"
            )

    def _asked(self, query: Query) -> _Asked:
        if isinstance(query, str | os.PathLike):
            if is_image(query):
                return self._image(query)
            if Path(query).suffix.lower() != ".npy":
                return self._video(query)
            try:
                query = np.load(query, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise OpenError(query, f"no array that is read here ({error})") from None
        vector = np.asarray(query.detach().cpu() if isinstance(query, Tensor) else query)
        if vector.shape != (self.dim,) or vector.dtype.kind != "f":
            raise UsageError(
                f"a query vector must be {self.dim} floating-point numbers, as this store's, got {vector.dtype} "
                f"{list(vector.shape)}"
            )
        vector = vector.astype(np.float32)
        length = np.linalg.norm(vector)
        if not 0 < length < np.inf:
            raise UsageError(f"a query vector must have a length above 0, got {length}")
        return _Asked(vector[None] / length)

    def _image(self, path: str | os.PathLike) -> _Asked:
        frames = frames_in_memory(read_image(path)[None])
        (encoded,) = encode_video([frames], self.encoder)
        features = encoded.features
        pooled = features.patches.float().mean(1)
        vectors = pooled if self._takes_pooled or features.cls is None else features.cls.float()
        blank = bool(encoded.featureless)
        notes = ["the query image is black or featureless: what it is like means nothing"] if blank else []
        return _Asked(F.normalize(vectors, dim=1).cpu().numpy(), notes=notes)

    def _video(self, path: str | os.PathLike) -> _Asked:
        sampling = self.store.settings.get("sampling")
        sampling = DEFAULT_SAMPLING if sampling is None else Sampling(**sampling)
        (video,) = encode_videos([path], self.encoder, sampling, keep=("cls", "pooled"), workers=1, isolate=False)
        if video.error is not None:
            raise video.error
        shown, blank = ~video.featureless, int(video.featureless.sum())
        notes = [*video.info.notes, *video.report.notes()]
        if not shown.any():
            notes.append("the query video is black or featureless throughout: what it is like means nothing")
            shown[:] = True
        elif blank:
            notes.append(f"{blank} of {len(shown)} frames of the query are black or featureless, not compared")
        if self.level == "video":
            return _Asked(video.embedding[None].numpy(), notes=notes)
        vectors = video.pooled if self._takes_pooled or video.features.cls is None else video.features.cls
        vectors = F.normalize(vectors.float(), dim=1).cpu()[shown]
        return _Asked(vectors.numpy(), video.features.pts_seconds[shown].numpy(), notes)

    @property
    def _takes_pooled(self) -> bool:
        """Frames of the store are compared by their mean patch tokens, though the encoder may have a CLS token."""
        return self.level == "frame" and "cls" not in self.store.features(self.videos[0].key)

    def _best(self, queries: np.ndarray, k: int) -> list[tuple[int, float, int, int]]:
        """(video, score, row of `queries`, vector) of the k best videos, best first."""
        k = min(k, len(self.videos))
        best: dict[int, tuple[float, int, int]] = {}
        rows, wanted = np.arange(len(queries)), min(k if self._video_of is None else 4 * k, self.count)
        while len(rows):  # until every row has found k videos, or looked at all
            left = []
            for part in np.array_split(rows, max(1, len(rows) * wanted // MOST_RESULTS)):
                found = self._index.find(queries[part], wanted)
                for row, scores, vectors in zip(part, found.scores.numpy(), found.index.numpy(), strict=True):
                    scores, vectors = scores[vectors >= 0], vectors[vectors >= 0]
                    numbers = vectors if self._video_of is None else self._video_of[vectors]
                    numbers, first = np.unique(numbers, return_index=True)  # the first is the best
                    if len(numbers) < k and wanted < self.count and len(vectors) == wanted:
                        left.append(row)
                        continue
                    for number, place in zip(numbers.tolist(), first, strict=True):
                        if number not in best or scores[place] > best[number][0]:
                            best[number] = float(scores[place]), int(row), int(vectors[place])
            rows, wanted = np.array(left, dtype=np.int64), min(4 * wanted, self.count)
        ranked = sorted(best.items(), key=lambda item: (-item[1][0], item[0]))[:k]
        return [(number, *rest) for number, rest in ranked]

    def _best_frame(self, video: StoredVideo, query: np.ndarray) -> float | None:
        """Presentation time of the frame of a hit that is most like the query; None if its frames are not kept."""
        kept = self.store.features(video.key)
        name = next((name for name in ("cls", "pooled") if name in kept and kept[name].shape[1] == len(query)), None)
        if name is None or kept["featureless"].all():
            return None
        vectors = kept[name].astype(np.float32)
        scores = vectors @ query / np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
        return float(kept["pts_seconds"][np.where(kept["featureless"], -np.inf, scores).argmax()])


class _Asked(NamedTuple):
    """A query as vectors of length 1."""

    vectors: np.ndarray
    """float32 [F, D]"""
    pts_seconds: np.ndarray | None = None
    """float64 [F], of the frames of a video."""
    notes: list[str] = []  # noqa: RUF012 - never changed


def is_image(path: str | os.PathLike) -> bool:
    """By its name."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def search(query: Query, store: Store | str | os.PathLike, *, k: int = 10, **options: Any) -> SearchResult:
    """The `k` stored videos most like `query`: one search of `VectorSearch(store, **options)`, which see."""
    return VectorSearch(store, **options).search(query, k)


def near_duplicates(
    store: Store | str | os.PathLike,
    threshold: float = 0.95,
    *,
    most: int = 1_000_000,
    device: str | torch.device = "auto",
) -> list[NearDuplicate]:
    """All pairs of stored videos whose embeddings have a cosine of at least `threshold`, the most alike first.

    Files of one content are such pairs, too. Videos that are black or featureless throughout are left out.

    Raises:
        UsageError: threshold; more than `most` pairs.  OutputError: no store there.  DeviceError.
    """
    if not -1 <= threshold <= 1:
        raise UsageError(f"threshold must lie in -1 … 1, got {threshold}")
    store = _opened(store)
    videos, vectors = store.embeddings()
    shown = [n for n, video in enumerate(videos) if video.facts.get("featureless_frames", 0) < _frames(video)]
    pairs = [NearDuplicate(videos[n].paths[0], path, 1.0) for n in shown for path in videos[n].paths[1:]]
    if shown:
        vectors = vectors if len(shown) == len(videos) else vectors[shown]
        try:
            found = pairs_above(torch.from_numpy(vectors).to(resolve_device(device)), threshold, most=most)
        except ValueError as error:
            raise UsageError(f"{store.folder}: {error}") from None
        for (i, j), score in zip(found.index.tolist(), found.scores.tolist(), strict=True):
            pairs.append(NearDuplicate(videos[shown[i]].paths[0], videos[shown[j]].paths[0], min(score, 1.0)))
    return sorted(pairs, key=lambda pair: -pair.score)


def write_near_duplicates(path: str | os.PathLike, pairs: Iterable[NearDuplicate]) -> None:
    """CSV with the columns query_id, ref_id, score, as `vsim eval` reads it.  Raises: OutputError."""
    with atomic_path(Path(path)) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["query_id", "ref_id", "score"])
        writer.writerows((pair.query, pair.ref, f"{pair.score:.6f}") for pair in pairs)


def _frames(video: StoredVideo) -> int:
    return video.facts.get("frames", 1)


def _opened(store: Store | str | os.PathLike) -> Store:
    if isinstance(store, Store):
        return store
    folder = Path(store)
    inside = folder / "store"  # of a folder that `vsim embed` wrote to
    return Store(inside if inside.is_dir() and not (folder / "ledger.sqlite").exists() else folder)


# ---- indexes


class ExactIndex:
    """Every vector, by `ops.top_k`."""

    exact = True

    def __init__(self, vectors: np.ndarray, device: str | torch.device, folder: Path | None, name: str):
        self._vectors = torch.from_numpy(vectors).to(resolve_device(device))

    def find(self, queries: np.ndarray, k: int) -> TopK:
        asked = torch.from_numpy(queries).to(self._vectors.device, self._vectors.dtype)
        return TopK(*(part.cpu() for part in top_k(asked, self._vectors, k)))


class FaissIndex:
    """FAISS on the CPU in float32: flat, or inverted lists of which every 16th is looked into."""

    def __init__(self, vectors: np.ndarray, device: str | torch.device, folder: Path | None, name: str):
        faiss = _library("faiss", "faiss")
        self.exact = len(vectors) < LISTS_FROM
        file = None if folder is None else folder / f"{name}.faiss"
        if file is not None and file.exists():
            self._index = faiss.read_index(os.fspath(file))
            return
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        if not self.exact:
            lists = int(4 * len(vectors) ** 0.5)
            self._index = faiss.IndexIVFFlat(self._index, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
            self._index.train(vectors[:: max(1, len(vectors) // (64 * lists))].astype(np.float32))
            self._index.nprobe = max(1, lists // 16)
        for start in range(0, len(vectors), 1 << 16):
            self._index.add(vectors[start : start + (1 << 16)].astype(np.float32))
        if file is not None:
            with output_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(file) as partial:
                faiss.write_index(self._index, os.fspath(partial))

    def find(self, queries: np.ndarray, k: int) -> TopK:
        return TopK(*map(torch.from_numpy, self._index.search(queries, k)))


class LanceIndex:
    """A LanceDB table, with inverted lists of which every 16th is looked into where there are many vectors."""

    def __init__(self, vectors: np.ndarray, device: str | torch.device, folder: Path | None, name: str):
        lancedb, arrow = _library("lancedb", "lance"), _library("pyarrow", "lance")
        self.exact = len(vectors) < LISTS_FROM
        lists = int(4 * len(vectors) ** 0.5)
        self._probes = max(1, lists // 16)
        if folder is not None:
            with output_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        database = lancedb.connect("memory://" if folder is None else folder)
        if folder is not None and (folder / f"{name}.lance").exists():
            self._table = database.open_table(name)
            return
        dim = vectors.shape[1]
        schema = arrow.schema([("number", arrow.int64()), ("vector", arrow.list_(arrow.float32(), dim))])

        def batches():
            for start in range(0, len(vectors), 1 << 16):
                block = vectors[start : start + (1 << 16)].astype(np.float32)
                rows = arrow.FixedSizeListArray.from_arrays(arrow.array(block.reshape(-1)), dim)
                numbers = arrow.array(np.arange(start, start + len(block)))
                yield arrow.RecordBatch.from_arrays([numbers, rows], schema=schema)

        reader = arrow.RecordBatchReader.from_batches(schema, batches())
        self._table = database.create_table(name, reader, schema=schema)
        if not self.exact:
            config = _library("lancedb.index", "lance").IvfFlat(distance_type="dot", num_partitions=lists)
            self._table.create_index("vector", config=config)

    def find(self, queries: np.ndarray, k: int) -> TopK:
        scores, index = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        for row, query in enumerate(queries):
            asked = self._table.search(query).distance_type("dot").limit(k).nprobes(self._probes)
            found = asked.select(["number", "_distance"]).to_arrow()
            scores[row, : len(found)] = 1 - found["_distance"].to_numpy()
            index[row, : len(found)] = found["number"].to_numpy()
        return TopK(torch.from_numpy(scores), torch.from_numpy(index))


BACKENDS: dict[str, Callable[..., Index]] = {"exact": ExactIndex, "faiss": FaissIndex, "lance": LanceIndex}


def _library(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise VsimError(f"{name} does not import ({error}): pip install 'vsim_fast[{extra}]'") from None
