"""Marks -> skips in one place, seed, NaN-poisoned allocation, tiny generated clips."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:  # before any kernel module is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTHONSAFEPATH", "1")  # child processes import the installed package, not the source tree

MEDIA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)

BROWSER_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def _has_playwright() -> bool:
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return False
    return True


def _no_nvdec() -> str | None:
    if not HAS_CUDA:
        return "no CUDA device"
    from vsim_fast.video import _nvdec

    library = _nvdec.library()
    return library if isinstance(library, str) else None


REASONS = {  # mark -> why it cannot run here, or None
    "needs_cuda": None if HAS_CUDA else "no CUDA device",
    "needs_nvdec": _no_nvdec(),
    "needs_nvcc": None if shutil.which("nvcc") else "nvcc not found",
    "needs_browser": None if CHROMIUM and _has_playwright() else "Chromium or playwright not found",
    "real_media": None if MEDIA.is_dir() else f"no real clips at {MEDIA}",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require", action="append", default=[], metavar="MARK", help="fail instead of skipping MARK")


def pytest_runtest_setup(item: pytest.Item) -> None:
    unmet = {mark: reason for mark, reason in REASONS.items() if reason and item.get_closest_marker(mark)}
    for mark in item.config.getoption("--require"):
        if mark in unmet:
            pytest.fail(f"{mark} is required: {unmet[mark]}")
    for reason in unmet.values():
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` returns NaN (or a sentinel), so a kernel that leaves output unwritten fails loudly."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor.fill_(111) if tensor.dtype != torch.bool else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: on small tensors starting others takes longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo clip: 8 s of 640×360 at 24 frames/s, four shots, the third back in the first scene."""
    from vsim_fast.video.demo import write_demo_clip

    path = tmp_path_factory.mktemp("clips") / "demo.mp4"
    write_demo_clip(path)
    return path


@pytest.fixture(scope="session")
def media() -> Path:
    """Folder of the real clips; use with the mark `real_media`."""
    return MEDIA


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; for tests marked `needs_browser`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()
