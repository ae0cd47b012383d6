"""`check_builtin`: its rows hold for the built-in encoder and fail for one that is blind."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from vsim_fast.encode.base import Encoder, Preprocess, Tokens
from vsim_fast.encode.builtin import load_builtin
from vsim_fast.errors import UsageError
from vsim_fast.models import check_builtin, encode, gaussian_blur, noisy, reencoded, render_rows, shifted


class ColourEncoder(Encoder):
    """Mean colour of 14-pixel patches: what a descriptor without centring and gradients amounts to."""

    spec = id = "colour"
    device, dtype = torch.device("cpu"), torch.float32
    preprocess = Preprocess((224, 224), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    patch_size, grid, dim = 14, (16, 16), 3

    def forward(self, pixels):
        patches = torch.nn.functional.avg_pool2d(pixels, 14).flatten(2).mT
        return Tokens(patches, None, None)


@pytest.fixture(scope="module")
def rows():
    return check_builtin()


def test_every_claim_holds_on_generated_clips(rows):
    assert len(rows) == 8
    assert [row.claim for row in rows if not row.ok] == []
    assert all(np.isfinite(value) for row in rows for value in row.values.values())


@pytest.mark.real_media
def test_every_claim_holds_on_real_clips(media):
    rows = check_builtin(media)
    assert [row.claim for row in rows if not row.ok] == []


def test_a_blind_encoder_is_found_out():
    rows = check_builtin(encoder=ColourEncoder())
    failed = " ".join(row.claim for row in rows if not row.ok)
    assert "blurred" in failed and "unrelated" in failed


def test_missing_media_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"must hold videos/.* missing"):
        check_builtin(tmp_path)


def test_rows_become_a_table(rows):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render_rows(rows[:2]))
    text = console.export_text()
    assert "CLS within" in text and "yes" in text


def test_copies_are_what_they_say():
    frame = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    assert np.array_equal(shifted(frame, 8, 0)[:, 8:], frame[:, :-8])
    assert np.array_equal(shifted(frame, 0, -8)[:-8], frame[8:])
    flat = np.full((40, 50, 3), 128, np.uint8)
    assert np.array_equal(gaussian_blur(flat, 3.0), flat) and gaussian_blur(frame, 3.0).std() < frame.std() / 5
    assert abs(noisy(flat, 15.0).astype(float).std() - 15) < 0.5
    assert reencoded(np.stack([flat[:32, :48]] * 3)).shape == (3, 32, 48, 3)


def test_a_frame_in_memory_is_encoded_like_any_other():
    features = encode(load_builtin(), np.zeros((2, 30, 40, 3), np.uint8))
    assert features.patches.shape == (2, 256, 384) and features.grid == (16, 16)
