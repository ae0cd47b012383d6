"""Weights: files in, matched state dicts and identities out. Nothing is unpickled and nothing is skipped silently."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vsim_fast.errors import EncoderError

SEED = 0  # of every `@random` model
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "teacher")
LFS_POINTER = b"version https://git-lfs"


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of one checkpoint file, on the CPU; the usual wrapper keys (`state_dict`, `model`, …) are opened.

    Raises:
        EncoderError: as `read_checkpoint`, or no tensors inside.
    """
    tensors = {key: value for key, value in opened(read_checkpoint(path))[-1].items() if isinstance(value, Tensor)}
    if not tensors:
        raise EncoderError(f"{path}: holds no tensors by name")
    return tensors


def opened(content: object) -> list[Mapping]:
    """`content` and the mapping inside each wrapper key, outermost first; what is no mapping counts as an empty one."""
    levels = [content if isinstance(content, Mapping) else {}]
    for key in WRAPPERS:
        if isinstance(levels[-1].get(key), Mapping):
            levels.append(levels[-1][key])
    return levels


def read_checkpoint(path: Path) -> object:
    """What one checkpoint file holds, tensors on the CPU.

    Raises:
        EncoderError: no such file, unknown suffix, a Git LFS pointer, or not readable without unpickling.
    """
    if not path.is_file():
        raise EncoderError(f"{path}: no such checkpoint file")
    if path.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        raise EncoderError(f"{path}: a checkpoint must end in .safetensors, .pt, .pth or .bin")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise EncoderError(f"{path}: a Git LFS pointer, not the weights themselves; fetch them with git lfs pull")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # on pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except UnpicklingError:  # torch's own message advises to unpickle
        raise EncoderError(
            f"{path}: not a checkpoint of tensors only; save its state dict as .safetensors where you trust it"
        ) from None
    except Exception as error:  # each reader has its own types: zip, pickle, header, size
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise EncoderError(f"{path}: not a readable tensor checkpoint ({reason[:200]})") from None


def read_folder(folder: Path, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, Tensor]:
    """Tensors of a model folder whose key is `wanted`: single or sharded safetensors, else pytorch_model.bin."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index = folder / f"{stem}{suffix}.index.json"
        if index.is_file():
            shards = sorted({file for key, file in json.loads(index.read_text())["weight_map"].items() if wanted(key)})
            files = [folder / Path(shard).name for shard in shards]  # a shard cannot leave the folder
        else:
            files = [folder / f"{stem}{suffix}"]
        if files and all(file.is_file() for file in files):
            return {key: value for file in files for key, value in read_state(file).items() if wanted(key)}
        if index.is_file():
            gone = [file.name for file in files if not file.is_file()]
            raise EncoderError(f"{folder}: {len(gone)} of {len(files)} weight shards are missing, e.g. {gone[:2]}")
    raise EncoderError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin (nor their shards)")


def read_config(folder: Path, name: str = "config.json") -> dict:
    """The folder's JSON configuration."""
    if not folder.is_dir():
        raise EncoderError(f"{folder}: no such model folder")
    if not (folder / name).is_file():
        raise EncoderError(f"{folder}: holds no {name}")
    try:
        config = json.loads((folder / name).read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise EncoderError(f"{folder / name}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise EncoderError(f"{folder / name}: must be a JSON object, got {type(config).__name__}")
    return config


def load_matching(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Load `state` into `model` in the model's dtype; every key must match, in name and in shape.

    Raises:
        EncoderError: with the counts of missing, unexpected and misshapen keys and an example of each.
    """
    own = model.state_dict()
    misshapen = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    check_keys(source, len(own), own.keys() - state.keys(), state.keys() - own.keys(), misshapen)
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(state[key])


def check_keys(source: object, total: int, missing: Iterable, unexpected: Iterable, misshapen: Iterable = ()) -> None:
    """Raise EncoderError unless all three are empty."""
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    found = {name: sorted(str(key) for key in keys) for name, keys in groups.items()}
    if any(found.values()):
        told = "; ".join(f"{len(keys)} {name} (e.g. {', '.join(keys[:2])})" for name, keys in found.items() if keys)
        raise EncoderError(f"{source}: weights do not fit the model, which has {total} tensors: {told}")


@contextmanager
def seeded() -> Iterator[None]:
    """Build a model from seed 0 and leave the caller's random state as it was; models are built on the CPU."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(SEED)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


class SkipInit(TorchFunctionMode):
    """Build a model without drawing the initial values of parameters that a checkpoint is about to replace."""

    DRAWS = frozenset({"uniform_", "normal_", "trunc_normal_", "erfinv_", "mul_", "add_", "div_", "clamp_"})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "") in self.DRAWS and isinstance(target, nn.Parameter):
            return target
        return func(*args, **kwargs)


def weights_digest(model: nn.Module, *facts: object) -> str:
    """12 hex digits over `facts` and a sample of every tensor: name, shape and 16 values spread over it.

    The same weights give the same digest wherever they lie and whatever file holds them.
    """
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // 16)][:16].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:12]


def hub_folder(repo: str, patterns: list[str], *, offline: bool) -> Path:
    """Local snapshot folder of a hub repository: what is new is fetched; offline, or with no network, the cache serves.

    Raises:
        EncoderError: not cached and offline, not reachable, no such repository, or gated.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=offline, etag_timeout=10))
    except Exception as error:  # network, authentication, naming: each has its own type, all mean "no weights"
        if offline:
            reason = "it is not in the local cache and offline is set: fetch it once online, or name a local path"
        else:
            told = next(iter(str(error).splitlines()), "")[:160]
            reason = f"the hub gave nothing ({type(error).__name__}: {told}); name a local path instead"
        raise EncoderError(f"{repo}: {reason}") from None
