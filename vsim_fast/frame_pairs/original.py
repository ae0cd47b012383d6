"""The calls of the tool VFI-Similarity, with its names, arguments and keys, on any encoder."""

from __future__ import annotations

import os
from typing import Any

import torch

from vsim_fast.encode import Spec, load_encoder
from vsim_fast.encode.base import Encoder, Tokens
from vsim_fast.errors import EncoderError, UsageError
from vsim_fast.frame_pairs.dense import compare_densely
from vsim_fast.frame_pairs.drawing import Folder, write_folder
from vsim_fast.frame_pairs.images import IMAGE_SIZE, frame_embeddings
from vsim_fast.pairs import cosine_distance
from vsim_fast.records import frames_in_memory
from vsim_fast.video import read_image

MODEL_NAME = "vit_base_patch14_dinov2.lvd142m"


class VFISimilarityModel:
    """An encoder of any input size, loaded when a size is first asked for.

    Attributes: spec, device.
    """

    def __init__(self, spec: str, device: torch.device, precision: str = "auto", offline: bool = False):
        self.spec, self.device, self._options = spec, device, dict(precision=precision, offline=offline)
        self._encoders: dict[tuple[str, int], Encoder] = {}

    def encoder(self, resize: int = IMAGE_SIZE, device: torch.device | str | None = None) -> Encoder:
        """For frames of `resize` pixels a side, a multiple of the patch.  Raises: as `load_encoder`."""
        key = str(device or self.device), resize
        if key not in self._encoders:
            self._encoders[key] = load_encoder(self.spec, key[0], image_size=resize, **self._options)
        return self._encoders[key]


def pick_device(choice: str = "auto") -> torch.device:
    """`choice`, or for "auto" the first there is of cuda, mps, cpu."""
    if choice != "auto":
        try:
            return torch.device(choice)
        except RuntimeError:
            raise UsageError(f"device must be auto, cpu, cuda, cuda:N or mps, got {choice!r}") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_model(
    checkpoint_path: str | os.PathLike | None = None,
    model_name: str | None = None,
    device: torch.device | str | None = None,
    *,
    precision: str = "auto",
    offline: bool = False,
) -> VFISimilarityModel:
    """The model that the calls below take.

    Args:
        checkpoint_path: a merged checkpoint; None takes the pretrained weights of `model_name`.
        model_name: of timm, default vit_base_patch14_dinov2.lvd142m; or any encoder spec, such as "builtin". With a
            checkpoint, which says itself what it holds, it must be that.
        device: None takes `pick_device("auto")`.
    Raises:
        EncoderError: no such checkpoint (the original went on without it), keys that do not match, another model.
    """
    device = pick_device("auto" if device is None else str(device))
    if checkpoint_path is None:
        name = model_name or MODEL_NAME
        spec = name if ":" in name or name == "builtin" else f"timm:{name}"
    else:
        spec = f"vfi:{os.fspath(checkpoint_path)}"
    model = VFISimilarityModel(str(Spec.parse(spec)), device, precision, offline)
    if checkpoint_path is not None:
        check_model_name(model.encoder(), model_name)
    return model


def check_model_name(encoder: Encoder, model_name: str | None) -> None:
    """Raises EncoderError where a checkpoint holds another model than `model_name`, of which the tag does not count."""
    held = encoder.checkpoint["tower"]
    if model_name is not None and model_name.removeprefix("timm:").partition(".")[0] != held:
        raise EncoderError(f"{encoder.spec}: holds a {held}, not the {model_name} that was named")


@torch.inference_mode()
def compute_cosine_distance(
    model: VFISimilarityModel,
    image_a: str | os.PathLike,
    image_b: str | os.PathLike,
    device: torch.device | str | None = None,
    resize: int = IMAGE_SIZE,
) -> dict[str, Any]:
    """Cosine distance of the mean tokens, CLS among them, of two images.

    Returns: image_a and image_b (names without folders), cosine_similarity, cosine_distance, embedding_dim.
    Raises: OpenError, UnsupportedVideo, CorruptVideo: an image.  UsageError: `resize`.
    """
    encoder = model.encoder(resize, device)
    tokens, _ = _encoded(encoder, image_a, image_b)
    return _named(image_a, image_b) | _distance(encoder, tokens)


@torch.inference_mode()
def run_visualization(
    model: VFISimilarityModel,
    image_a: str | os.PathLike,
    image_b: str | os.PathLike,
    output_dir: str | os.PathLike,
    device: torch.device | str | None = None,
    resize: int = IMAGE_SIZE,
    arrow_stride: int = 4,
    enable_pca: bool = True,
    *,
    compat: bool = False,
) -> dict[str, Any]:
    """Dense correspondence of two images: pictures and summary.json in `output_dir`.

    Args:
        compat: mismatch relative to each map, as the original's; see `pairs.mismatch`.
    Returns: what summary.json holds: the names, grid_size, num_patches, embedding_dim, mean_similarity_a2b and _b2a,
        mean_mismatch_a and _b, output_dir; and besides mutual_matches, mean_displacement and the distance.
    Raises: as `compute_cosine_distance`; OutputError.
    """
    encoder = model.encoder(resize, device)
    tokens, pixels = _encoded(encoder, image_a, image_b)
    pictures = [[encoder.picture(row, encoder.preprocess.size)] for row in pixels]
    options = dict(compat=compat, pca=enable_pca)
    ((facts, drawing),) = compare_densely(tokens.patches[:1], tokens.patches[1:], *pictures, encoder.grid, **options)
    summary = _named(image_a, image_b) | facts | _distance(encoder, tokens) | {"output_dir": os.fspath(output_dir)}
    write_folder(Folder(os.fspath(output_dir), drawing, summary, arrow_stride, compat))
    return summary


def _encoded(encoder: Encoder, *images: str | os.PathLike) -> tuple[Tokens, torch.Tensor]:
    """Tokens of the images, of one forward pass, and what the encoder saw of them."""
    pixels = torch.cat([encoder.pixels(frames_in_memory(read_image(image)[None])) for image in images])
    return encoder.forward_in_batches(pixels), pixels


def _named(image_a: str | os.PathLike, image_b: str | os.PathLike) -> dict[str, str]:
    return {"image_a": os.path.basename(image_a), "image_b": os.path.basename(image_b)}


def _distance(encoder: Encoder, tokens: Tokens) -> dict[str, Any]:
    embeddings = frame_embeddings(encoder, tokens.patches, tokens.cls, "all")
    distance = cosine_distance(embeddings[0], embeddings[1]).item()
    return {"cosine_similarity": 1 - distance, "cosine_distance": distance, "embedding_dim": encoder.dim}
