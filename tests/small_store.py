"""A store of a few tiny videos, for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from vsim_fast.feature_store import Done, FeatureFile, Store, file_digest

SETTINGS = {"encoder": {"spec": "builtin", "image_size": 224}, "sampling": {"fps": 1.0}, "keep": ["pooled"]}


def tensors(seed: int = 0, count: int = 4) -> dict[str, torch.Tensor]:
    """As of a video of `count` frames, the first of them featureless."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "embedding": torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0),
        "pooled": torch.randn(count, 8, generator=generator).half(),
        "pts_seconds": torch.arange(count).double(), "featureless": torch.arange(count) == 0,
    }  # fmt: skip


def key_of(n: int) -> str:
    return f"{n:032x}-{n}"


def path_of(n: int) -> str:
    return f"/videos/{n}.mp4"


def done(store: Store, n: int, root: Path | None = None, stored: FeatureFile | None = None) -> Done:
    """Video `n` with its features written, unless they are `stored`, and with an output below `root`."""
    stored = stored or store.write_features(key_of(n), tensors(n), {"n": n})
    outputs = {}
    if root:
        (root / f"{n}_embedding.npy").write_bytes(bytes([n]) * 100)
        outputs = {f"{n}_embedding.npy": file_digest(root / f"{n}_embedding.npy")}
    return Done(key_of(n), path_of(n), {"n": n}, stored, outputs)


def files(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Relative name -> (time, inode, bytes) of everything below `folder`."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }
