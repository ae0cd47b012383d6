"""The one string that names an encoder, taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vsim_fast.errors import EncoderError

FORMS = {  # kind -> accepted forms
    "builtin": ("builtin",),
    "timm": ("timm:NAME", "timm:NAME@CHECKPOINT", "timm:NAME@random"),
    "hf": ("hf:HUB-ID", "hf:FOLDER", "hf:FOLDER@random"),
    "videollama3": ("videollama3:FOLDER", "videollama3:FOLDER@random"),
}


@dataclass(frozen=True)
class Spec:
    """`kind:name`, `kind:name@source`."""

    kind: str
    name: str = ""
    """Model name, hub id or folder; empty for `builtin`."""
    source: str | None = None
    """What follows `@`: "random", or a checkpoint path (timm only)."""

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Raises EncoderError, naming the accepted forms, for anything else."""
        kind, colon, rest = text.partition(":")
        # model names hold no "@", folders may: for those only the suffix counts
        name, at, source = rest.partition("@") if kind == "timm" else (rest.removesuffix("@random"), "", "random")
        if not at and kind != "timm":
            at = "@" if rest.endswith("@random") else ""
        spec = cls(kind, name, source if at else None)
        if kind not in FORMS or (kind == "builtin") != (not colon) or (colon and not name) or (at and not source):
            forms = ", ".join(form for forms in FORMS.values() for form in forms)
            raise EncoderError(f"encoder {text!r} is none of: {forms}")
        return spec

    @property
    def random(self) -> bool:
        return self.source == "random"

    @property
    def portable_name(self) -> str:
        """The spec without local folders, equal on every machine."""
        name = Path(self.name).resolve().name if self.kind != "timm" and Path(self.name).is_dir() else self.name
        return f"{self.kind}:{name}{'@random' if self.random else ''}"

    def __str__(self) -> str:
        return self.kind + (f":{self.name}" if self.name else "") + (f"@{self.source}" if self.source else "")
