"""Feature files: tensors of one content and facts about it. The bytes depend on these alone.

A file is safetensors, or a folder of .npy. Its header holds the settings' hash, the facts, the digest of the data and
its own: so that stands for the whole file, a cut-off file shows without reading it, and a lost ledger can be made again
from the headers. numpy has no bfloat16: safetensors keep it and reading widens it to float32 (exact, a copy in memory);
.npy files hold the float32.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from vsim_fast.errors import VsimError
from vsim_fast.store import PARTIAL, atomic_path, output_errors, sync

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["safetensors", "npy"]
FORMAT = 1
HEADER = "header.json"
FEATURES = "features"
MOST_HEADER = 64 << 20
ALIGNMENT = 64
NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1", "BF16": "<u2",
}  # fmt: skip
"""Type names of safetensors -> numpy's, of bfloat16 the bits."""
NAMES = {np.dtype(numpy): name for name, numpy in reversed(NUMPY.items())}


class DamagedFeatures(VsimError):
    """A feature file is not what was written; computing the features again is the cure."""


class FeatureFile(NamedTuple):
    file: str
    """Relative to the store's folder."""
    size: int
    """Bytes, of a folder all its files'."""
    digest: str
    """BLAKE2b of the header, which holds that of the data."""


class _Part(NamedTuple):
    """One tensor's bytes."""

    kind: str
    shape: tuple[int, ...]
    data: np.ndarray
    """uint8 [bytes], without a copy where the tensor was contiguous and on the CPU."""


def feature_file(key: str, settings_hash: str, layout: Layout) -> str:
    """Where the features of a content lie, relative to the store's folder."""
    return f"{FEATURES}/{key[:2]}/{key}.{settings_hash}{'.safetensors' if layout == 'safetensors' else ''}"


def write_features(
    folder: str | Path,
    key: str,
    settings_hash: str,
    layout: Layout,
    tensors: Mapping[str, Tensor | np.ndarray],
    facts: Mapping[str, Any],
) -> FeatureFile:
    """Features of one content into a store's folder, from any process; the store learns of it by `Store.record`.

    Args:
        tensors: of any device. facts: JSON values.
    Raises:
        OutputError: the disk is full, or the folder cannot be written. What was there before stays.
    """
    file = feature_file(key, settings_hash, layout)
    path = Path(folder) / file
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"key": key, "settings": settings_hash, "facts": dict(facts)}
    return FeatureFile(file, *(write_tensors if layout == "safetensors" else _write_npy)(path, tensors, metadata))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | np.ndarray], metadata: Mapping[str, Any]
) -> tuple[int, str]:
    """A safetensors file, whole or not at all; returns (size, digest).  Raises: OutputError."""
    parts = {name: _part(tensor) for name, tensor in tensors.items()}
    names = sorted(parts, key=lambda name: (-np.dtype(NUMPY[parts[name].kind]).itemsize, name))  # each stays aligned
    digest = hashlib.blake2b(digest_size=16)
    header, start = {}, 0
    for name in names:
        kind, shape, data = parts[name]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, start + len(data)]}
        digest.update(data)
        start += len(data)
    about = _sealed({**metadata, "tensors": header, "data": digest.hexdigest()})
    del about["tensors"]
    text = _json({"__metadata__": {"vsim_fast": _json(about).decode()}, **header})
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with atomic_path(path) as partial, open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(parts[name].data)
    return 8 + len(text) + start, about["digest"]


def _write_npy(path: Path, tensors: Mapping[str, Tensor | np.ndarray], metadata: Mapping[str, Any]) -> tuple[int, str]:
    """A folder with a .npy per tensor and the header; returns (size, digest)."""
    partial = path.with_name(f".{path.name}{PARTIAL}{os.getpid()}-{threading.get_native_id()}")
    files, total = {}, 0
    try:
        with output_errors(path):
            partial.mkdir()
            for name, tensor in sorted(tensors.items()):
                if not name.isidentifier():
                    raise ValueError(f"a tensor's name must be an identifier to name a file, got {name!r}")
                np.save(partial / f"{name}.npy", _array(_part(tensor)), allow_pickle=False)
                sync(partial / f"{name}.npy")
                files[f"{name}.npy"] = file_digest(partial / f"{name}.npy")
                total += files[f"{name}.npy"][0]
            about = _sealed({**metadata, "data": files})
            text = _json(about)
            (partial / HEADER).write_bytes(text)
            sync(partial / HEADER)
            _replace_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return total + len(text), about["digest"]


def _replace_folder(partial: Path, path: Path) -> None:
    """No rename replaces a folder, so for a moment there is none; a kill then is found and mended."""
    old = partial.with_name(f"{partial.name}-old")
    while True:
        with suppress(FileNotFoundError):
            os.replace(path, old)
            shutil.rmtree(old)
        try:
            return os.replace(partial, path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another writer came between
                raise


class FeatureReader:
    """A feature file's header; its tensors are mapped into memory on demand.

    Attributes:
        metadata: key, settings, facts.  names: of the tensors.  stored: size and digest, as the writer told them.
    Raises:
        DamagedFeatures: missing, cut off, or not a feature file.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            read = _read_npy_header if path.is_dir() else _read_header
            self.metadata, self._tensors, self._size = read(path)
            self.names = sorted(self._tensors)
            self.stored = (self._size, self.metadata["digest"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFeatures(f"{path.name}: damaged features ({error})") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises: KeyError: there is no such tensor."""
        return tuple(self._tensors[name]["shape"])

    def arrays(self, names: Iterable[str] | None = None, *, mmap: bool = True) -> dict[str, np.ndarray]:
        """Tensors by name. A mapped one may be written to, which changes memory alone; bfloat16 comes as float32.

        Raises: DamagedFeatures.  KeyError: there is no such tensor.
        """
        wanted = self.names if names is None else list(names)
        if unknown := [name for name in wanted if name not in self._tensors]:
            raise KeyError(f"{self.path.name} has no {', '.join(unknown)}; it has {', '.join(self.names)}")
        try:
            if self.path.is_dir():
                found = {name: np.load(self.path / f"{name}.npy", "c", allow_pickle=False) for name in wanted}
            else:
                data = self._mapped()
                found = {name: _array(_Part(*self._span(name, data))) for name in wanted}
        except (OSError, ValueError) as error:
            raise DamagedFeatures(f"{self.path.name}: damaged features ({error})") from None
        return found if mmap else {name: np.array(array) for name, array in found.items()}

    def check(self) -> None:
        """Read everything.  Raises: DamagedFeatures: the data are not what was written."""
        try:
            if self.path.is_dir():
                whole = all(list(file_digest(self.path / name)) == told for name, told in self.metadata["data"].items())
            else:
                data = self._mapped()[self._start :]
                whole = hashlib.blake2b(data, digest_size=16).hexdigest() == self.metadata["data"]
        except OSError as error:
            raise DamagedFeatures(f"{self.path.name}: damaged features ({error})") from None
        if not whole:
            raise DamagedFeatures(f"{self.path.name}: the checksum does not fit")

    @property
    def _start(self) -> int:
        return self._size - max((entry["data_offsets"][1] for entry in self._tensors.values()), default=0)

    def _mapped(self) -> np.ndarray:
        with open(self.path, "rb") as file:
            if os.fstat(file.fileno()).st_size != self._size:  # touching what is not there would end the process
                raise ValueError("its size changed")
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)

    def _span(self, name: str, data: np.ndarray) -> tuple[str, tuple[int, ...], np.ndarray]:
        entry = self._tensors[name]
        start, end = entry["data_offsets"]
        return entry["dtype"], tuple(entry["shape"]), data[self._start + start : self._start + end]


def _sealed(metadata: dict[str, Any]) -> dict[str, Any]:
    """With the format and its own digest."""
    metadata = json.loads(_json({**metadata, "format": FORMAT, "digest": ""}))  # as it will be read: keys are text
    return metadata | {"digest": hashlib.blake2b(_json(metadata), digest_size=16).hexdigest()}


def _require_sealed(metadata: dict[str, Any]) -> None:
    if metadata["format"] != FORMAT:
        raise ValueError(f"format {metadata['format']}, not {FORMAT}: written by another version")
    if _sealed(metadata)["digest"] != metadata["digest"]:
        raise ValueError("the header's checksum does not fit")


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(metadata, tensors, bytes of the whole file)."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length or length > MOST_HEADER:
            raise ValueError(f"{size} bytes are less than its header")
        text = file.read(length)
    tensors = json.loads(text)
    metadata = json.loads(tensors.pop("__metadata__")["vsim_fast"])
    _require_sealed({**metadata, "tensors": tensors})
    end = 0
    for entry in sorted(tensors.values(), key=lambda entry: entry["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start != end or stop - start != math.prod(entry["shape"]) * np.dtype(NUMPY[entry["dtype"]]).itemsize:
            raise ValueError("its header contradicts itself")
        end = stop
    if size != 8 + length + end:
        raise ValueError(f"{size:,} bytes, {8 + length + end:,} were written")
    return metadata, tensors, size


def _read_npy_header(path: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    text = (path / HEADER).read_bytes()
    metadata = json.loads(text)
    _require_sealed(metadata)
    tensors: dict[str, Any] = {}
    for name, (size, _) in metadata["data"].items():
        found = os.stat(path / name).st_size
        if found != size:
            raise ValueError(f"{name}: {found:,} bytes, {size:,} were written")
        tensors[name.removesuffix(".npy")] = {"shape": np.load(path / name, "r", allow_pickle=False).shape}
    return metadata, tensors, len(text) + sum(size for size, _ in metadata["data"].values())


def _part(tensor: Tensor | np.ndarray) -> _Part:
    if isinstance(tensor, np.ndarray):
        kind = NAMES[tensor.dtype.newbyteorder("<")]
        return _Part(kind, tensor.shape, np.ascontiguousarray(tensor, NUMPY[kind]).reshape(-1).view(np.uint8))
    import torch

    tensor = tensor.detach().cpu().contiguous()
    data = tensor.reshape(-1).view(torch.uint8).numpy()
    if tensor.dtype == torch.bfloat16:
        return _Part("BF16", tuple(tensor.shape), data)
    return _Part(NAMES[np.dtype(str(tensor.dtype).removeprefix("torch."))], tuple(tensor.shape), data)


def _array(part: _Part) -> np.ndarray:
    array = part.data.view(NUMPY[part.kind]).reshape(part.shape)
    return (array.astype("<u4") << 16).view("<f4") if part.kind == "BF16" else array


def file_digest(path: str | Path) -> tuple[int, str]:
    """(size, BLAKE2b) of a whole file, as `Done.outputs` wants them.  Raises: OSError."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
