"""Lists of pairs, as the original tool takes them: a JSON list, or an object with such a list under "pairs"."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vsim_fast.errors import UsageError
from vsim_fast.frame_pairs.records import Failure, Item

SPELLINGS = (("image_a", "image_b"), ("ref_img", "dist_img"))
TRIPLET_KEYS = ("image_0", "image_t", "image_1")


def read_config(path: str | os.PathLike) -> list[Item | Failure]:
    """Items of a JSON file, and a failure in the place of each that is none.

    An item is an object with image_a and image_b (or ref_img and dist_img), or with image_0, image_t and image_1; its
    `label` is handed on. Paths are looked for from the working directory, then from the folder of the file.

    Raises: UsageError: the file cannot be read, is not JSON, or holds no list of pairs.
    """
    path = Path(path)
    try:
        listed = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # UnicodeDecodeError among them
        raise UsageError(f"{path}: not JSON ({error})") from None
    if isinstance(listed, dict):
        listed = listed.get("pairs")
    if not isinstance(listed, list):
        raise UsageError(f'{path}: must be a JSON list of pairs, or an object with such a list under "pairs"')
    if not listed:
        raise UsageError(f"{path}: holds no pairs")
    return [_item(number, entry, path.parent) for number, entry in enumerate(listed, 1)]


def _item(number: int, entry: Any, folder: Path) -> Item | Failure:
    label = entry.get("label") if isinstance(entry, dict) else None
    if isinstance(entry, dict):
        images = [entry[key] for key in TRIPLET_KEYS if entry.get(key)]
        if len(images) != 3:
            images = [entry.get(first) or entry.get(second) for first, second in zip(*SPELLINGS, strict=True)]
        if all(isinstance(image, str) and image for image in images):
            return Item(number, tuple(_found(image, folder) for image in images), label)
    reason = f"must have image_a and image_b (or ref_img and dist_img), got {json.dumps(entry)[:200]}"
    return Failure(number=number, images=[], label=label, reason=reason)


def _found(image: str, folder: Path) -> str:
    beside = folder / image
    return str(beside) if not os.path.exists(image) and beside.exists() else image
