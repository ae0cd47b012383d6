"""What an output folder holds, without changing it; and whether it is still what was written."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vsim_fast.batch.outputs import STORE
from vsim_fast.errors import OutputError
from vsim_fast.feature_store import Store


class Damaged(BaseModel):
    file: str
    """Relative to the output folder."""
    reason: str


class Verified(BaseModel):
    """What `vsim verify` found."""

    folder: str
    videos: int
    problems: list[Damaged]
    schema_version: int = 1


def batch_status(folder: str | Path, *, limit: int | None = 100) -> dict[str, Any]:
    """`Store.status` of an output folder of `embed`; also beside a run that works there.

    Raises: OutputError: there is none.
    """
    with Store(store_folder(folder)) as store:
        return store.status(limit=limit)


def verify(folder: str | Path) -> Verified:
    """Read every file that `embed` wrote and compare it with what was recorded. Nothing is changed where a run works;
    otherwise what is damaged is noted, and the next run makes it again.

    Raises: OutputError: no store there.
    """
    folder = Path(folder)
    with Store(store_folder(folder)) as store:
        problems = list(store.verify(folder))
        videos = len(store)
    if problems:
        with suppress(OutputError), Store(store_folder(folder), write=True) as store:
            store.forget(problems)
    damaged = [Damaged(file=f"{STORE}/{p.file}" if p.kind == "features" else p.file, reason=p.reason) for p in problems]
    return Verified(folder=str(folder), videos=videos, problems=damaged)


def store_folder(folder: str | Path) -> Path:
    """The store of an output folder, or the folder itself where it is a store."""
    inside = Path(folder) / STORE
    return inside if inside.is_dir() else Path(folder)
