"""Encoders by one string: `load_encoder("timm:vit_small_patch14_dinov2@random")`."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vsim_fast.encode.spec import KINDS, Spec
from vsim_fast.errors import EncoderError, UsageError

if TYPE_CHECKING:
    import torch

    from vsim_fast.encode.base import Encoder, Preprocess, Tokens

__all__ = ["Encoder", "Preprocess", "Spec", "Tokens", "known_encoders", "load_encoder"]


def __getattr__(name: str) -> Any:
    if name in ("Encoder", "Preprocess", "Tokens"):
        return getattr(import_module("vsim_fast.encode.base"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_encoder(
    spec: str,
    device: str | torch.device = "auto",
    precision: Literal["auto", "float32", "bfloat16", "float16", "float8"] = "auto",
    image_size: int | None = None,
    *,
    execution: Literal["eager", "compiled", "graphs", "compiled+graphs"] = "eager",
    fit: Literal["squash", "crop"] | None = None,
    offline: bool = False,
) -> Encoder:
    """The encoder that `spec` names, ready to encode.

    Args:
        spec: one of the forms in `spec.KINDS`. The hub is asked only where it names a hub model.
        device: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:N", "mps".
        precision: "auto" takes float16 (then bfloat16) on CUDA and bfloat16 on CPUs that have it natively, each only
            if a load-time check finds its patch cosines within 8e-3 of float32; a named one is taken as it is. "float8"
            (CUDA of capability 9.0) multiplies so in the linear layers of the transformer blocks, all else is bfloat16.
            `builtin` has no check: "auto" is float16 on CUDA, else float32.
        image_size: pixels per side, a multiple of the patch size; None is the model's own.
        execution: "eager" runs operator by operator. "compiled" has torch.compile fuse what lies between the matrix
            products of each transformer block, at the first batch; it needs a C++ compiler (CPU) or Triton (CUDA).
            "graphs" replays recorded CUDA graphs, which saves the launches, of models that read nothing back from the
            device as they run (VideoLLaMA3's does); "compiled+graphs" does both. The features are the same within the
            tolerance of their dtype. `builtin` is "eager" only.
        fit: "squash" (default) resizes the whole frame to the square; "crop" cuts the centre as the model's own
            evaluation does.
        offline: never ask the hub; a hub model must be in its local cache.
    Raises:
        EncoderError: unknown spec, missing library or weights, keys that do not match.
        UsageError: `image_size`, `precision`, `device`, `execution` or `fit` breaks its rule.
        DeviceError: the device, precision or execution cannot be used here.
    """
    parsed = Spec.parse(spec)
    if fit not in (None, "squash", "crop"):
        raise UsageError(f"fit must be squash or crop, got {fit!r}")
    from vsim_fast.encode.execution import check_execution
    from vsim_fast.encode.network import candidate_dtypes, resolve_device

    target = resolve_device(device)
    dtypes = candidate_dtypes(precision, target)
    if parsed.kind == "builtin" and execution != "eager":
        raise UsageError(f"execution: builtin has no network to compile or record; it takes eager, got {execution!r}")
    if parsed.kind == "builtin" and precision == "float8":
        raise UsageError("precision: builtin has no linear layers for float8; it takes float32, bfloat16, float16")
    check_execution(execution, target)
    try:
        module = import_module(f"vsim_fast.encode.{KINDS[parsed.kind].module}")
        if parsed.kind == "builtin":
            if fit == "crop":
                raise UsageError("fit: builtin covers the whole frame, it takes squash only")
            return module.load_builtin(target, dtypes[0 if target.type == "cuda" else -1], image_size)
        network = module.load(parsed, image_size=image_size, fit=fit or "squash", offline=offline)
        return network.settle(target, dtypes, execution)
    except ImportError as error:
        if (error.name or "").startswith("vsim_fast"):
            raise
        raise EncoderError(f"{spec}: a library it needs does not import ({error})") from None


def known_encoders() -> list[dict[str, Any]]:
    """One row per kind of spec: `spec`, `what`, `needs`, `available`, `reason`, `cached`. Imports no library.

    `cached` lists the hub models that can be named without network.
    """
    rows = []
    for kind, (forms, _, what, needs) in KINDS.items():
        package, *inside = needs.split("/")
        found = find_spec(package)
        here = found is not None and Path(found.origin).parent.joinpath(*inside).exists()
        reason = None if here else f"{needs.replace('/', '.')} is not installed"
        hub = {"timm": lambda repo: repo.startswith("timm/"), "hf": lambda repo: not repo.startswith("timm/")}.get(kind)
        cached = [repo for repo in cached_repos() if hub(repo)] if hub else []
        row = {"spec": " | ".join(forms), "what": what, "needs": package, "available": here, "reason": reason}
        rows.append({**row, "cached": cached})
    return rows


def hub_cache() -> Path:
    """Folder in which the hub's library keeps what it fetched."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def cached_repos() -> list[str]:
    """Hub models in the local cache, as OWNER/NAME."""
    folders = hub_cache().glob("models--*/snapshots/*")
    return sorted({folder.parts[-3].removeprefix("models--").replace("--", "/") for folder in folders})
