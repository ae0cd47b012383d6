"""What the HTML pages share: one file, no library, nothing fetched, scripts and styles pinned by hash."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

TEMPLATES = Path(__file__).parents[1] / "templates"


def render(
    name: str, filters: Mapping[str, Callable[..., Any]] | None = None, *, base: bool = False, **context: Any
) -> bytes:
    """The page of templates/`name`.html.j2 with its .css and .js inside, after base.css if `base`, UTF-8. All of
    `context` is escaped."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"show": _show, "seconds": lambda value: f"{value:.2f} s", **(filters or {})}
    style, script = ((TEMPLATES / f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    if base:
        style = (TEMPLATES / "base.css").read_text(encoding="utf-8") + style
    page = environment.get_template(f"{name}.html.j2").render(
        **context, style=Markup(style), script=Markup(script), style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
    )  # fmt: skip
    return page.encode("utf-8", "backslashreplace")  # a file name may hold bytes that are no text


def to_base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _show(value: Any) -> str:
    """A table cell."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_show(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_show, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
