"""Fusion of a task's image into its embedding (DTERM eq. 10)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_dterm.dterm.embedding_cache import EmbeddingCache, EmbeddingFile
from lightning_dterm.dterm.encoder import CACHE_DIR, HashingEncoder, TaskEncoder, cache_key, model_identity
from lightning_dterm.types import CodeTask

# Decoders of pixels only: Pillow hands some other formats to further programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


class ResidualFusion(nn.Module):
    """``e = MLP(e_text) + CLIP_visual(I)`` (eq. 10), with an MLP that starts as the identity.

    ``MLP(e) = e + W_2 GELU(W_1 e + b_1) + b_2`` with ``W_2 = 0``, ``b_2 = 0`` at the start. Ours: a
    visual embedding of another width than d passes a learned linear map, and it is scaled to the norm of ``e_text``
    (to norm 1 where that is 0), because encoders differ in scale by orders of magnitude and the sum would be one of
    them alone.

    Args:
        dim: Width d of the text embedding and of the result.
        visual_dim: Width v of the visual embedding.
        hidden: Width of the MLP.
        seed: Of the initial parameters, so that they are equal in all processes.
    """

    def __init__(self, dim: int, visual_dim: int, hidden: int = 256, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), last := nn.Linear(hidden, dim))
            self.project = nn.Identity() if visual_dim == dim else nn.Linear(visual_dim, dim, bias=False)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, text: Tensor, visual: Tensor) -> Tensor:
        """Fused embeddings ``[B, d]`` of text embeddings ``[B, d]`` and visual embeddings ``[B, v]``, in float32."""
        with torch.autocast(text.device.type, enabled=False):
            norm = text.norm(dim=-1, keepdim=True)
            scale = torch.where(norm > 0, norm, 1.0)
            seen = nn.functional.normalize(self.project(visual), dim=-1)
            return cast("Tensor", text + self.mlp(text) + scale * seen)


class FusedEncoder(TaskEncoder):
    """A text encoder, and the residual fusion (eq. 10) of the image where a task has one.

    A task without an image keeps the text encoder's embedding, to the bit. The vision model is frozen; visual
    embeddings are computed once per distinct image content and kept on disk as text embeddings are. The meta-step
    trains the fusion, at ``optimizer.weighting_lr``, and the text encoder where that is trainable: the meta-objective
    remembers text features and visual embeddings and fuses them anew. Features ``[B, w + v + 1]`` are text features,
    visual embedding and whether there is an image.

    Args:
        vision: Folder or hub id of any CLIP (or CLIP vision) model with its ``preprocessor_config.json``.
        text: Encoder of the description; default :class:`HashingEncoder`.
        hidden: Width of the fusion's MLP.
        image_folder: Folder that relative paths in ``CodeTask.image`` start from.
        cache_size: Distinct images whose embeddings are kept in memory.
        cache_dir: Folder in which visual embeddings are kept; null keeps none.
        seed: Of the fusion's initial parameters.

    Raises:
        ValueError: ``hidden`` is not positive, or (later) a task's image cannot be read.
        FileNotFoundError: There is no CLIP model, or no image processor, at ``vision``.
    """

    def __init__(
        self,
        vision: str,
        text: TaskEncoder | None = None,
        hidden: int = 256,
        image_folder: str = ".",
        cache_size: int = 65536,
        cache_dir: str | None = CACHE_DIR,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        self.text: TaskEncoder = text if text is not None else HashingEncoder()
        self.dim = self.text.dim
        self.vision, self._processor = _load_vision(vision)
        self.vision.requires_grad_(False).eval()
        config = cast("Any", self.vision.config)
        self._visual_dim = int(config.projection_dim if _projects(self.vision) else config.hidden_size)
        self.fusion = ResidualFusion(self.dim, self._visual_dim, hidden, seed)
        self.image_folder = Path(image_folder).expanduser()
        self._vision_identity = model_identity(self.vision, self._processor.get_image_processor_dict(vision)[0])
        kept = None
        if cache_dir is not None:
            key = cache_key(self._vision_identity, self.vision, self._processor.to_json_string())
            kept = EmbeddingFile(cache_dir, key, self._visual_dim)
        self._images = EmbeddingCache(cache_size, kept)

    @property
    def identity(self) -> str:
        """Those of the text encoder and of the vision model."""
        return f"{self.text.identity} + {self._vision_identity}"

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The text encoder's."""
        return self.text.pretrained_parameters()

    def train(self, mode: bool = True) -> FusedEncoder:
        """The vision model stays in evaluation mode."""
        super().train(mode)
        self.vision.eval()
        return self

    def embed(self, description: str) -> Tensor:
        """The features ``[w + v + 1]`` of a description without an image."""
        return self.text_features([description])[0]

    def text_features(self, descriptions: Sequence[str]) -> Tensor:
        """Features ``[B, w + v + 1]`` of descriptions without images."""
        text = self.text.text_features(descriptions)
        return torch.cat([text, torch.zeros(len(text), self._visual_dim + 1)], -1)

    def features(self, tasks: Sequence[CodeTask]) -> Tensor:
        """Features ``[B, w + v + 1]`` of tasks.

        Raises:
            ValueError: A task's image is missing or unreadable; the message names both.
        """
        features = self.text_features([task.description for task in tasks])
        for row, task in enumerate(tasks):
            if task.image is not None:
                features[row, -1 - self._visual_dim : -1] = self._look(task)
                features[row, -1] = 1.0
        return features

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings ``[B, d]`` of features ``[B, w + v + 1]``, differentiable in the fusion."""
        device = next(self.fusion.parameters()).device
        text, visual, seen = features.to(device).split(
            [features.shape[1] - self._visual_dim - 1, self._visual_dim, 1], 1
        )
        embedding = self.text(text).to(device)
        return torch.where(seen > 0, self.fusion(embedding, visual), embedding)

    def _look(self, task: CodeTask) -> Tensor:
        """The visual embedding ``[v]`` of a task's image."""
        content = self._content(task)
        return self._images.get(content, lambda: self._see(task, content))

    def _content(self, task: CodeTask) -> bytes:
        if isinstance(task.image, bytes):
            return task.image
        path = self.image_folder / Path(cast("str", task.image)).expanduser()
        try:
            return path.read_bytes()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"task {task.task_id}: its image {path} cannot be read ({error}): correct the task's image, or the "
                "task_encoder's image_folder, which relative paths start from"
            ) from error

    @torch.no_grad()
    def _see(self, task: CodeTask, content: bytes) -> Tensor:
        """``CLIP_visual(I)``: the projected class embedding ``[v]``, unprojected where the model has no projection."""
        from PIL import Image

        name = task.image if isinstance(task.image, str) else f"{len(content)} bytes"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = Image.open(io.BytesIO(content), formats=_FORMATS).convert("RGB")
            pixels = self._processor(images=image, return_tensors="pt")["pixel_values"]
        except Exception as error:  # decoders raise whatever a malformed file makes them raise
            raise ValueError(
                f"task {task.task_id}: its image ({name}) is none that can be read ({type(error).__name__}: {error}): "
                f"give a whole {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file"
            ) from error
        parameter = next(self.vision.parameters())
        with torch.autocast(parameter.device.type, enabled=False):
            seen = self.vision(pixel_values=pixels.to(parameter))
        return cast("Tensor", (seen.image_embeds if _projects(self.vision) else seen.pooler_output)[0].float().cpu())


def _projects(vision: nn.Module) -> bool:
    return hasattr(vision, "visual_projection")


def _load_vision(path: str) -> tuple[nn.Module, Any]:
    """CLIP's vision model, with its projection where the weights have one, and its image processor.

    Raises:
        FileNotFoundError: Naming the path and the remedy.
    """
    from transformers import CLIPVisionModel, CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    try:
        processor = CLIPImageProcessorPil.from_pretrained(path)
        model, report = _quietly(CLIPVisionModelWithProjection, path)
        if "visual_projection.weight" in report["missing_keys"]:
            model, report = _quietly(CLIPVisionModel, path)
        if report["missing_keys"]:
            raise ValueError(f"these weights are missing: {', '.join(sorted(report['missing_keys'])[:3])}")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise FileNotFoundError(
            f"vision model {path!r} could not be loaded: give the folder of a CLIP model saved with save_pretrained "
            f"(with its preprocessor_config.json), or a hub id on a machine with network access ({error})"
        ) from error
    return model, processor


def _quietly(kind: Any, path: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model and what its checkpoint lacks; transformers would list all text weights of a whole CLIP as unexpected."""
    from transformers import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, report = kind.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    finally:
        logging.set_verbosity(level)
    return model, report
