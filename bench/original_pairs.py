"""The flow of the original VFI-Similarity tool: the baseline of `vsim pair`, and nothing of vsim_fast.

For each pair both images are read and resized by PIL, encoded one by one in fp32, CLS and patches averaged, one cosine
taken. With --visualize both are read and encoded again, all patches matched through the whole similarity matrix, and
six figures drawn by matplotlib (PCA by scikit-learn). Prints its seconds per stage.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

SECONDS: dict[str, float] = defaultdict(float)


@contextmanager
def stage(name: str):
    start = time.perf_counter()
    yield
    SECONDS[name] += time.perf_counter() - start


with stage("import"):
    import matplotlib
    import numpy as np
    import timm
    import torch
    import torch.nn.functional as F
    from PIL import Image
    from sklearn.decomposition import PCA
    from torch import Tensor, nn

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def encode(model: nn.Module, path: str, size: int, device: torch.device) -> Tensor:
    """Tokens [1, 1 + P, D] of one image file, CLS first."""
    with stage("pixels"):
        image = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() / 255
        pixels = ((pixels - MEAN) / STD)[None].to(device)
    with stage("encode"):
        tokens = model.forward_features(pixels)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return tokens


def score(model: nn.Module, pair: dict, size: int, device: torch.device) -> dict:
    a, b = (encode(model, pair[side], size, device).mean(1) for side in ("image_a", "image_b"))  # [1, D]
    with stage("score"):
        similarity = F.cosine_similarity(a, b).item()
    return {
        **{side: Path(pair[side]).name for side in ("image_a", "image_b")},
        "cosine_similarity": similarity, "cosine_distance": 1 - similarity, "embedding_dim": a.shape[-1],
    }  # fmt: skip


def relative_mismatch(similarity: Tensor, mutual: Tensor) -> Tensor:
    """[P] 0 at the best match of the map, 1 at its worst, times 1.25 where the match is not mutual."""
    low, high = similarity.min(), similarity.max()
    mismatch = 1 - (similarity - low) / max(high - low, 1e-8)
    return mismatch * torch.where(mutual, 1.0, 1.25)


def visualize(model: nn.Module, pair: dict, folder: Path, args: argparse.Namespace) -> dict:
    """The six pictures of one pair, both images encoded anew; statistics of the maps."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = pair["image_a"], pair["image_b"]
    patches = [encode(model, path, args.resize, args.device)[0, 1:].float().cpu() for path in paths]  # [P, D]
    count, dim = patches[0].shape
    grid = math.isqrt(count)
    with stage("match"):
        unit_a, unit_b = (F.normalize(x, dim=-1) for x in patches)
        matrix = unit_a @ unit_b.T  # [P, P]
        similarity_ab, index_ab = matrix.max(1)
        similarity_ba, index_ba = matrix.T.max(1)
        here = torch.arange(count)
        mismatch_a = relative_mismatch(similarity_ab, index_ba[index_ab] == here)
        mismatch_b = relative_mismatch(similarity_ba, index_ab[index_ba] == here)
    with stage("heat maps"):
        heat_map(similarity_ab.view(grid, grid), "A→B Cosine Similarity", "viridis", folder / "similarity_A2B.png")
        heat_map(similarity_ba.view(grid, grid), "B→A Cosine Similarity", "viridis", folder / "similarity_B2A.png")
        heat_map(mismatch_a.view(grid, grid), "Mismatch Map A", "hot", folder / "mismatch_A.png")
        heat_map(mismatch_b.view(grid, grid), "Mismatch Map B", "hot", folder / "mismatch_B.png")
    with stage("vector field"):
        images = [np.array(Image.open(path).convert("RGB").resize((args.resize, args.resize))) for path in paths]
        vector_field(np.hstack(images), grid, index_ab, args.arrow_stride, folder / "vector_field.png")
    if not args.no_pca:
        with stage("pca"):
            pca_panels(patches, grid, folder / "pca_features.png")
    summary = {
        **{side: Path(pair[side]).name for side in ("image_a", "image_b")},
        "grid_size": grid, "num_patches": count, "embedding_dim": dim,
        "mean_similarity_a2b": similarity_ab.mean().item(), "mean_similarity_b2a": similarity_ba.mean().item(),
        "mean_mismatch_a": mismatch_a.mean().item(), "mean_mismatch_b": mismatch_b.mean().item(),
        "output_dir": str(folder),
    }  # fmt: skip
    with stage("write"):
        (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    return summary


def heat_map(values: Tensor, title: str, colors: str, path: Path) -> None:
    plt.figure(figsize=(5, 5))
    plt.imshow(values.numpy(), cmap=colors)
    plt.title(title, fontsize=10)
    plt.axis("off")
    plt.colorbar(shrink=0.8)
    plt.savefig(path, bbox_inches="tight", dpi=150)
    plt.close()


def vector_field(canvas: np.ndarray, grid: int, index_ab: Tensor, stride: int, path: Path) -> None:
    """Arrows from every `stride`-th patch of the left half of `canvas` to its match in the right half."""
    size = canvas.shape[0]
    centres = np.linspace(size / (2 * grid), size - size / (2 * grid), grid)
    plt.figure(figsize=(12, 6))
    plt.imshow(canvas)
    plt.axis("off")
    for row in range(0, grid, stride):
        for column in range(0, grid, stride):
            to_row, to_column = divmod(index_ab[row * grid + column].item(), grid)
            x, y = centres[column], centres[row]
            plt.arrow(
                x, y, centres[to_column] + size - x, centres[to_row] - y,
                head_width=6, head_length=4, linewidth=0.5, alpha=0.7, color="cyan",
            )  # fmt: skip
    plt.tight_layout()
    plt.savefig(path, bbox_inches="tight", dpi=150)
    plt.close()


def pca_panels(patches: list[Tensor], grid: int, path: Path) -> None:
    pca = PCA(n_components=3, whiten=True, random_state=42).fit(torch.cat(patches).numpy())
    _, axes = plt.subplots(1, 2, figsize=(10, 5))
    for axis, side, part in zip(axes, "AB", patches, strict=True):
        axis.imshow(1 / (1 + np.exp(-2 * pca.transform(part.numpy()).reshape(grid, grid, 3))))
        axis.set_title(f"Image {side} - PCA Features")
        axis.axis("off")
    plt.tight_layout()
    plt.savefig(path, bbox_inches="tight", dpi=150)
    plt.close()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help='pairs: a JSON list of {"image_a": PATH, "image_b": PATH}')
    parser.add_argument("--model-name", default="vit_base_patch14_dinov2.lvd142m")
    parser.add_argument("--random", action="store_true", help="seeded random weights, nothing is downloaded")
    parser.add_argument("--resize", type=int, default=518)
    parser.add_argument("--visualize", action="store_true")
    parser.add_argument("--arrow-stride", type=int, default=4)
    parser.add_argument("--no-pca", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("output"))
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    with stage("load_encoder"):
        torch.manual_seed(0)
        options = {"pretrained": not args.random, "num_classes": 0, "img_size": args.resize}
        model = timm.create_model(args.model_name, **options).eval().to(args.device)
    content = json.loads(args.config.read_text())
    results = []
    for number, pair in enumerate(content if isinstance(content, list) else content["pairs"], 1):
        result = score(model, pair, args.resize, args.device)
        if args.visualize:
            result |= visualize(model, pair, args.out / f"pair_{number:03d}", args)
        results.append(result)
    with stage("write"):
        (args.out / "results.json").write_text(json.dumps(results, indent=2))
    print(json.dumps({"pairs": len(results), "timings": {**SECONDS, "total": sum(SECONDS.values())}}))


if __name__ == "__main__":
    main()
