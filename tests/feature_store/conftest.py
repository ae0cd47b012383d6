from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_store import SETTINGS

from vsim_fast.feature_store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    """New, opened for writing."""
    with Store(folder, write=True, settings=SETTINGS) as opened:
        yield opened
