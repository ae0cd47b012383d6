"""The one string that names an encoder, taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vsim_fast.errors import EncoderError


class Kind(NamedTuple):
    forms: tuple[str, ...]
    module: str
    """Holds the loader; imported when asked for."""
    what: str
    needs: str
    """Package, or the place inside a package, without which the module does not import."""


KINDS = {  # the one table of encoders
    "builtin": Kind(("builtin",), "builtin", "deterministic patch descriptor, no weights", "torch"),
    "timm": Kind(
        ("timm:NAME", "timm:NAME@CHECKPOINT", "timm:NAME@random"), "timm_encoder",
        "timm ViT and EVA towers: DINOv2, DINOv3, SigLIP, CLIP, PE", "timm",
    ),
    "hf": Kind(
        ("hf:HUB-ID", "hf:FOLDER", "hf:FOLDER@random"), "hf_encoder",
        "transformers towers: dinov2, dinov3_vit, clip, siglip, siglip2, video_llama_3", "transformers",
    ),
    "videollama3": Kind(
        ("videollama3:FOLDER", "videollama3:FOLDER@random"), "videollama3",
        "VideoLLaMA3 vision encoder, four checkpoint layouts", "transformers/models/video_llama_3",
    ),
    "vfi": Kind(
        ("vfi:CHECKPOINT",), "vfi",
        "DINOv2 fine-tuned to judge interpolated frames: merged VFI-Similarity or NOVA checkpoint", "timm",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """`kind:name`, `kind:name@source`."""

    kind: str
    name: str = ""
    """Model name, hub id, folder or (vfi) checkpoint file; empty for `builtin`."""
    source: str | None = None
    """What follows `@`: "random", or a checkpoint path (timm only)."""

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Raises EncoderError, naming the accepted forms, for anything else."""
        kind, colon, rest = text.partition(":")
        # model names hold no "@", folders may: for those only the suffix counts
        if kind == "timm":
            name, at, source = rest.partition("@")
        elif kind != "vfi" and rest.endswith("@random"):
            name, at, source = rest.removesuffix("@random"), "@", "random"
        else:
            name, at, source = rest, "", ""
        spec = cls(kind, name, source if at else None)
        if kind not in KINDS or (kind == "builtin") != (not colon) or (colon and not name) or (at and not source):
            forms = ", ".join(form for known in KINDS.values() for form in known.forms)
            raise EncoderError(f"encoder {text!r} is none of: {forms}")
        return spec

    @property
    def random(self) -> bool:
        return self.source == "random"

    @property
    def portable_name(self) -> str:
        """The spec without local folders, equal on every machine."""
        name = self.name
        if self.kind == "vfi":
            name = Path(name).name
        elif self.kind != "timm" and Path(name).is_dir():
            name = Path(name).resolve().name
        return f"{self.kind}:{name}{'@random' if self.random else ''}"

    def __str__(self) -> str:
        return self.kind + (f":{self.name}" if self.name else "") + (f"@{self.source}" if self.source else "")
