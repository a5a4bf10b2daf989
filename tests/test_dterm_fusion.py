"""Images fused into task embeddings (eq. 10)."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lightning_dterm.dterm import FusedEncoder, HashingEncoder, HFEncoder, HypernetworkWeighting
from lightning_dterm.dterm.fusion import ResidualFusion
from lightning_dterm.types import CodeTask
from tests.tiny import text_task, tiny_text_encoder

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 8, "patch_size": 4, "projection_dim": 12}


def save_clip(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    if kind == "whole":
        text = {**TOWER, "vocab_size": 20, "max_position_embeddings": 8}
        CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)).save_pretrained(folder)
    else:
        model = {"projected": CLIPVisionModelWithProjection, "plain": CLIPVisionModel}[kind]
        model(CLIPVisionConfig(**VISION)).save_pretrained(folder)
    size = {"height": 8, "width": 8}
    CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_clip(tmp_path_factory.mktemp("clip"), "projected")


def picture(color: tuple[int, int, int] = (255, 0, 0), format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, format)
    return buffer.getvalue()


def task(image: str | bytes | None) -> CodeTask:
    return dataclasses.replace(text_task(3), image=image)


def fused(clip: Path, cache_dir: Path | None = None, **settings: Any) -> FusedEncoder:
    return FusedEncoder(str(clip), cache_dir=str(cache_dir) if cache_dir else None, **settings)


def disturb(encoder: FusedEncoder) -> FusedEncoder:
    """As after some training: no longer the identity."""
    torch.manual_seed(1)
    for parameter in encoder.fusion.parameters():
        torch.nn.init.normal_(parameter)
    return encoder


def seen(path: Path, color: tuple[int, int, int]) -> Tensor:
    """``CLIP_visual`` of a picture of one colour that needs no resizing, normalised by hand."""
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((torch.tensor(color) / 255 - mean) / std)[None, :, None, None].expand(1, 3, 8, 8)
    with torch.no_grad():
        result: Tensor = CLIPVisionModelWithProjection.from_pretrained(path).eval()(pixel_values=pixels).image_embeds[0]
    return result


def test_the_equation_by_hand(clip: Path) -> None:
    encoder = disturb(fused(clip))
    text = HashingEncoder().encode([text_task(3).description])[0]
    first, second = encoder.fusion.mlp[0], encoder.fusion.mlp[2]
    mlp = text + second.weight @ torch.nn.functional.gelu(first.weight @ text + first.bias) + second.bias
    visual = encoder.fusion.project.weight @ seen(clip, (255, 0, 0))
    expected = mlp + visual / visual.norm() * text.norm()
    assert torch.allclose(encoder.encode_tasks([task(picture())])[0], expected, atol=1e-5)


def test_it_starts_as_text_plus_picture_of_equal_weight() -> None:
    fusion = ResidualFusion(dim=6, visual_dim=6)
    text, visual = torch.randn(3, 6), 100 * torch.randn(3, 6)
    text[2] = 0.0
    difference = fusion(text, visual) - text
    assert torch.allclose(difference.norm(dim=-1), torch.tensor([*text[:2].norm(dim=-1), 1.0]), rtol=1e-5)
    assert torch.allclose(torch.cosine_similarity(difference, visual), torch.ones(3), atol=1e-5)
    before = torch.get_rng_state()
    again = [ResidualFusion(6, 4, seed=seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(again[0][name], again[1][name]) for name in again[0])
    assert not torch.equal(again[0]["project.weight"], again[2]["project.weight"])
    assert torch.equal(before, torch.get_rng_state())


def test_tasks_without_images_are_unchanged_to_the_bit(clip: Path) -> None:
    encoder = disturb(fused(clip))
    tasks = [text_task(1), task(picture()), text_task(2), text_task(3)]
    plain = HashingEncoder().encode([one.description for one in tasks])
    together = encoder.encode_tasks(tasks)
    assert [torch.equal(a, b) for a, b in zip(together, plain, strict=True)] == [True, False, True, True]
    assert torch.equal(encoder.encode([one.description for one in tasks]), plain)


def test_path_and_bytes_are_the_same_and_content_is_seen_once(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "c.jpg").write_bytes(picture((0, 0, 255), "JPEG"))
    tasks = [task(image) for image in (picture(), "a.png", str(tmp_path / "b.png"), "c.jpg")]
    cache = tmp_path / "cache"
    calls: list[int] = []
    encoder = fused(clip, cache, image_folder=str(tmp_path))
    encoder.vision.register_forward_hook(lambda *_: calls.append(1))
    rows = encoder.encode_tasks(tasks)
    assert len(calls) == 2
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert not torch.allclose(rows[0], rows[3])
    later = fused(clip, cache, image_folder=str(tmp_path))
    later.vision.register_forward_hook(lambda *_: pytest.fail("encoded again"))
    assert torch.equal(later.encode_tasks(tasks), rows)
    assert later.identity == encoder.identity
    monkeypatch.setattr(transformers, "__version__", "99.0")
    upgraded = fused(clip, cache, image_folder=str(tmp_path))
    assert upgraded.identity == encoder.identity
    assert torch.equal(upgraded.encode_tasks(tasks), rows)
    assert len(list(cache.glob("*.embeddings"))) == 2


@pytest.mark.parametrize(("kind", "width"), [("whole", 12), ("plain", 16)])
def test_any_clip_serves(clip: Path, tmp_path: Path, kind: str, width: int) -> None:
    path = save_clip(tmp_path, kind)
    encoder = disturb(fused(path))
    assert isinstance(encoder.fusion.project, torch.nn.Linear)
    assert encoder.fusion.project.in_features == width
    assert torch.isfinite(encoder.encode_tasks([task(picture())])).all()
    assert isinstance(fused(path, text=HashingEncoder(width)).fusion.project, torch.nn.Identity)


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 30,000 x 30,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", r"task t/3: its image .*/nowhere.png cannot be read .*No such file.*image_folder"),
        ("", r"task t/3: its image .* cannot be read .*directory"),
        ("a\0b.png", "task t/3: its image .* cannot be read"),
        (b"", r"task t/3: its image \(0 bytes\) is none that can be read.*PNG"),
        (b"<svg/>", r"task t/3: its image \(6 bytes\) is none"),
        (picture()[:45], r"task t/3: its image \(45 bytes\) is none"),
        (bomb(), r"is none that can be read \(DecompressionBomb"),
        (POSTSCRIPT, "is none that can be read"),
    ],
)
def test_an_image_that_cannot_be_read(clip: Path, tmp_path: Path, image: str | bytes, message: str) -> None:
    encoder = fused(clip, image_folder=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        encoder.encode_tasks([text_task(1), task(image)])


def test_errors_of_settings(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*preprocessor_config.json"):
        fused(tmp_path / "nowhere")
    text = tiny_text_encoder(tmp_path / "bert")
    CLIPImageProcessorPil().save_pretrained(text)
    with pytest.raises(FileNotFoundError, match=r"vision model .*bert"):
        fused(text)
    with pytest.raises(ValueError, match="hidden must be at least 1"):
        fused(clip, hidden=0)


def test_the_meta_objective_trains_the_fusion_and_the_text_encoder(clip: Path, tmp_path: Path) -> None:
    """Through groups observed before the fusion moved; the vision model and the memory of images stay as they are."""
    text = HFEncoder(str(tiny_text_encoder(tmp_path)), trainable=True)
    encoder = fused(clip, text=text).train()
    assert encoder.trains
    assert not encoder.vision.training
    torch.manual_seed(0)
    weighting = HypernetworkWeighting()
    weighting.configure(("a", "b"), encoder.dim)
    torch.nn.init.normal_(weighting.hypernetwork.mlp[-1].weight)  # type: ignore[union-attr, arg-type, index]
    tasks = [task(picture((i, 0, 0)) if i % 2 else None) for i in range(4)]
    outcome = torch.rand(8)
    weighting.observe(
        torch.stack([outcome, torch.rand(8)], 1), torch.ones(8, 2, dtype=torch.bool),
        encoder.features(tasks).repeat_interleave(2, 0), outcome, torch.arange(4).repeat_interleave(2), ["repair"] * 8,
    )  # fmt: skip
    disturb(encoder)
    weighting.meta_loss(encoder).backward()  # type: ignore[union-attr]
    touched = {name for name, p in encoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"fusion.project.weight", "fusion.mlp.0.weight", "fusion.mlp.2.bias"} <= touched
    assert "text.model.encoder.layer.0.output.dense.weight" in touched
    assert not any(name.startswith("vision.") for name in touched)
    assert {id(p) for p in encoder.pretrained_parameters()} == {id(p) for p in text.parameters()}
