"""Encoders by one string: `load_encoder("timm:vit_small_patch14_dinov2@random")`."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vsim_fast.encode.spec import FORMS, Spec
from vsim_fast.errors import EncoderError, UsageError

if TYPE_CHECKING:
    import torch

    from vsim_fast.encode.base import Encoder, Preprocess, Tokens

__all__ = ["FORMS", "Encoder", "Preprocess", "Spec", "Tokens", "known_encoders", "load_encoder"]

MODULES = {  # kind -> module with its loader, imported when asked for
    "builtin": "vsim_fast.encode.builtin",
    "timm": "vsim_fast.encode.timm_encoder",
    "hf": "vsim_fast.encode.hf_encoder",
    "videollama3": "vsim_fast.encode.videollama3",
}
WHAT = {  # kind -> (what it is, library module it needs)
    "builtin": ("deterministic patch descriptor, no weights", "torch"),
    "timm": ("timm ViT and EVA towers: DINOv2, DINOv3, SigLIP, CLIP, PE", "timm"),
    "hf": ("transformers towers: dinov2, dinov3_vit, clip, siglip, siglip2, video_llama_3", "transformers"),
    "videollama3": ("VideoLLaMA3 vision encoder, four checkpoint layouts", "transformers/models/video_llama_3"),
}


def __getattr__(name: str) -> Any:
    if name in ("Encoder", "Preprocess", "Tokens"):
        return getattr(import_module("vsim_fast.encode.base"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_encoder(
    spec: str,
    device: str | torch.device = "auto",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    image_size: int | None = None,
    *,
    fit: Literal["squash", "crop"] | None = None,
    offline: bool = False,
) -> Encoder:
    """The encoder that `spec` names, ready to encode.

    Args:
        spec: one of FORMS. Nothing is fetched unless it names a hub model that is not cached.
        device: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:N", "mps".
        precision: "auto" takes float16 (then bfloat16) on CUDA and bfloat16 on CPUs that have it natively, each only
            if a load-time check finds its patch cosines within 8e-3 of float32; a named one is taken as it is.
        image_size: pixels per side, a multiple of the patch size; None is the model's own.
        fit: "squash" (default) resizes the whole frame to the square; "crop" cuts the centre as the model's own
            evaluation does.
        offline: never fetch; a hub model must be cached.
    Raises:
        EncoderError: unknown spec, missing library or weights, keys that do not match.
        UsageError: `image_size`, `precision`, `device` or `fit` breaks its rule.
        DeviceError: the device or precision cannot be used here.
    """
    parsed = Spec.parse(spec)
    if fit not in (None, "squash", "crop"):
        raise UsageError(f"fit must be squash or crop, got {fit!r}")
    from vsim_fast.encode.network import candidate_dtypes, resolve_device

    target = resolve_device(device)
    dtypes = candidate_dtypes(precision, target)
    try:
        module = import_module(MODULES[parsed.kind])
    except ImportError as error:
        raise EncoderError(f"{spec}: cannot be loaded here ({error})") from None
    if parsed.kind == "builtin":
        return module.load_builtin(target, dtypes[0], image_size)
    return module.load(parsed, image_size=image_size, fit=fit or "squash", offline=offline).settle(target, dtypes)


def known_encoders() -> list[dict[str, Any]]:
    """One row per kind of spec: `spec`, `what`, `needs`, `available`, `reason`, `cached`. Imports no library.

    `cached` lists the hub models that can be named without network.
    """
    rows = []
    for kind, (what, needs) in WHAT.items():
        package, *inside = needs.split("/")
        found = find_spec(package)
        here = found is not None and Path(found.origin).parent.joinpath(*inside).exists()
        reason = None if here else f"{needs.replace('/', '.')} is not installed"
        hub = {"timm": lambda repo: repo.startswith("timm/"), "hf": lambda repo: not repo.startswith("timm/")}.get(kind)
        cached = [repo for repo in _cached_repos() if hub(repo)] if hub else []
        row = {"spec": " | ".join(FORMS[kind]), "what": what, "needs": package, "available": here, "reason": reason}
        rows.append({**row, "cached": cached})
    return rows


def _cached_repos() -> list[str]:
    """Hub models in the local cache, as OWNER/NAME."""
    import os

    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    folders = cache.glob("models--*/snapshots/*") if cache.is_dir() else ()
    return sorted({folder.parts[-3].removeprefix("models--").replace("--", "/") for folder in folders})
