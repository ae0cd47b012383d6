"""The straightforward patch-similarity script: the end-to-end baseline, and nothing of vsim_fast.

Decode with PyAV, resize with PIL, one fp32 eager forward pass per frame with a hook on the last norm, Python loops of
normalise + matmul, `savez_compressed`, one matplotlib figure per picture at 300 dpi. Prints its seconds per stage.
"""

from __future__ import annotations

import argparse
import json
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
    import av
    import matplotlib
    import numpy as np
    import timm
    import torch
    import torch.nn.functional as F
    from PIL import Image

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt


def sample_frames(path: str, fps: float, max_frames: int) -> list[Image.Image]:
    """The frame on display at start + k / fps for every k, then `max_frames` of them evenly spread."""
    picks: list[Image.Image] = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        shown = start = None
        for frame in container.decode(stream):
            start = frame.time if start is None else start
            while shown is not None and frame.time > start + len(picks) / fps:
                picks.append(shown.to_image())
            shown = frame
        if shown.time + 1 / stream.average_rate > start + len(picks) / fps:  # the grid ends with the last frame
            picks.append(shown.to_image())
    keep = np.linspace(0, len(picks) - 1, min(max_frames, len(picks)), dtype=int)
    return [picks[i] for i in keep]


def heat_map(matrix: np.ndarray, title: str, path: Path) -> None:
    plt.figure(figsize=(10, 8))
    plt.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
    plt.colorbar(label="Cosine Similarity")
    plt.title(title)
    plt.savefig(path, dpi=300)
    plt.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video")
    parser.add_argument("--model", default="vit_small_patch14_dinov2")
    parser.add_argument("--fps", type=float, default=1)
    parser.add_argument("--max-frames", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--out", type=Path, default=Path("patch_analysis_results"))
    parser.add_argument("--random", action="store_true", help="seeded random weights, nothing is downloaded")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    size = args.image_size

    with stage("load_encoder"):
        torch.manual_seed(0)
        model = timm.create_model(args.model, pretrained=not args.random, num_classes=0, img_size=size)
        model.eval().to(args.device)
        config = timm.data.resolve_model_data_config(model)
        mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
        hooked: list[torch.Tensor] = []
        model.norm.register_forward_hook(lambda _module, _inputs, output: hooked.append(output.cpu()))
    with stage("decode"):
        frames = sample_frames(args.video, args.fps, args.max_frames)
    for image in frames:
        with stage("pixels"):
            small = torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BICUBIC)))
            pixels = ((small.permute(2, 0, 1) / 255 - mean) / std)[None].to(args.device)
        with stage("encode"), torch.no_grad():
            model(pixels)
    with stage("similarity"):
        patches = torch.cat(hooked)[:, model.num_prefix_tokens :]  # [T, P, D]
        frame = F.normalize(patches.mean(1), dim=-1)
        frame = (frame @ frame.T).numpy()  # [T, T]
        unit = F.normalize(patches, dim=-1)
        position = np.stack([(unit[:, p] @ unit[:, p].T).numpy() for p in range(unit.shape[1])])  # [P, T, T]
        intra = np.stack([(unit[t] @ unit[t].T).numpy() for t in range(unit.shape[0])])  # [T, P, P]
    with stage("write"):
        np.savez_compressed(args.out / "position_similarities.npz", position_similarities=position)
        np.savez_compressed(args.out / "intra_frame_similarities.npz", intra_frame_similarities=intra)
        np.save(args.out / "frame_similarity.npy", frame)
        with open(args.out / "statistics.txt", "w") as file:
            for name, array in (("Position-wise", position), ("Frame-wise", frame), ("Intra-Frame", intra)):
                file.write(f"{name} Similarities\nShape: {array.shape}\nMean: {array.mean():.4f}\n")
                file.write(f"Std: {array.std():.4f}\nMin: {array.min():.4f}\nMax: {array.max():.4f}\n\n")
    with stage("pictures"):
        heat_map(frame, "Frame similarity", args.out / "frame_similarity.png")
        columns = size // model.patch_embed.patch_size[0]
        for p in np.linspace(0, len(position) - 1, 10, dtype=int):
            row, column = divmod(int(p), columns)
            heat_map(position[p], f"Position {p}", args.out / f"position_{p:04d}_r{row}_c{column}.png")
        for t in np.linspace(0, len(intra) - 1, 5, dtype=int):
            heat_map(intra[t], f"Frame {t}", args.out / f"intra_frame_{t:04d}.png")
    print(json.dumps({"frames": len(frames), "timings": {**SECONDS, "total": sum(SECONDS.values())}}))


if __name__ == "__main__":
    main()
