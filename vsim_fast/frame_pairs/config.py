"""Lists of pairs, as the original tool takes them: a JSON list, or an object with such a list under "pairs"."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from vsim_fast.errors import UsageError
from vsim_fast.frame_pairs.records import Failure, Item

SPELLINGS = (("image_a", "image_b"), ("ref_img", "dist_img"))
MOST_NESTED = 32
TRIPLET_KEYS = ("image_0", "image_t", "image_1")


def read_config(path: str | os.PathLike) -> list[Item | Failure]:
    """Items of a JSON file, and a failure in the place of each that is none.

    An item is an object with image_a and image_b (or ref_img and dist_img), or with image_0, image_t and image_1; its
    `label` is handed on. All paths are from the working directory, or all from the folder of the file where more of
    them exist there.

    Raises: UsageError: the file cannot be read, is not JSON, or holds no list of pairs.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: must be a file")
        listed = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_no_constant)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError among them
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}: not JSON ({str(error)[:200]})") from None
    if isinstance(listed, dict):
        listed = listed.get("pairs")
    if not isinstance(listed, list):
        raise UsageError(f'{path}: must be a JSON list of pairs, or an object with such a list under "pairs"')
    if not listed:
        raise UsageError(f"{path}: holds no pairs")
    items = [_item(number, entry) for number, entry in enumerate(listed, 1)]
    return _from_folder(items, path.parent)


def _item(number: int, entry: Any) -> Item | Failure:
    label = entry.get("label") if isinstance(entry, dict) else None
    if _depth(label) > MOST_NESTED:
        return Failure(number=number, images=[], reason=f"label must not be nested deeper than {MOST_NESTED} levels")
    if isinstance(entry, dict):
        images = [entry[key] for key in TRIPLET_KEYS if entry.get(key)]
        if len(images) != 3:
            images = [entry.get(first) or entry.get(second) for first, second in zip(*SPELLINGS, strict=True)]
        if all(isinstance(image, str) and image for image in images):
            return Item(number, tuple(images), label)
    reason = f"must have image_a and image_b (or ref_img and dist_img), got {json.dumps(entry)[:200]}"
    return Failure(number=number, images=[], label=label, reason=reason)


def _from_folder(items: list[Item | Failure], folder: Path) -> list[Item | Failure]:
    """The items with all paths from the working directory or all from `folder`: from where more of them exist."""
    images = {image for item in items if isinstance(item, Item) for image in item.images}
    beside = {image: os.path.join(folder, image) for image in images}
    if sum(map(os.path.exists, beside.values())) <= sum(map(os.path.exists, images)):
        return items
    return [
        replace(item, images=tuple(beside[image] for image in item.images)) if isinstance(item, Item) else item
        for item in items
    ]


def _depth(value: Any) -> int:
    levels, inside = 0, [value]
    while inside := [x for one in inside if isinstance(one, (dict, list)) for x in _parts(one)]:
        levels += 1
    return levels


def _parts(value: dict | list) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
