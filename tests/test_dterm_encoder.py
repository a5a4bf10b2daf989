from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from lightning_dterm.dterm import HashingEncoder, HFEncoder, TaskEncoder

ROOT = Path(__file__).resolve().parent.parent


class Counting(TaskEncoder):
    def __init__(self, cache_size: int = 65536) -> None:
        super().__init__(cache_size)
        self.dim = 2
        self.seen: list[str] = []

    def embed(self, description: str) -> Tensor:
        self.seen.append(description)
        return torch.tensor([float(len(description)), 1.0])


def test_each_distinct_description_is_encoded_once() -> None:
    encoder = Counting()
    first = encoder.encode(["a", "bb", "a"])
    assert first.tolist() == [[1, 1], [2, 1], [1, 1]]
    assert torch.equal(encoder.encode(["bb", "a"]), first[[1, 0]])
    assert encoder.seen == ["a", "bb"]
    assert encoder.encode([]).shape == (0, 2)


def test_cache_drops_the_least_recently_used() -> None:
    encoder = Counting(cache_size=2)
    encoder.encode(["a", "b", "a", "c", "a", "b"])
    assert encoder.seen == ["a", "b", "c", "b"]
    with pytest.raises(ValueError, match="cache_size"):
        Counting(cache_size=0)


def test_hashing_encoder_by_hand() -> None:
    dim = 1 << 20  # wide enough that nothing collides
    vector = HashingEncoder(dim).encode(["Fix THE fix"])[0]
    counts = {"fix": 2, "the": 1, "fix the": 1, "the fix": 1}
    assert float(vector.norm()) == pytest.approx(1.0)
    assert int((vector != 0).sum()) == 4
    for feature, count in counts.items():
        code = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
        sign = 1 if code & 1 else -1
        assert float(vector[(code >> 1) % dim]) == pytest.approx(sign * count / math.sqrt(7))


def test_hashing_encoder_edges() -> None:
    encoder = HashingEncoder()
    assert encoder.encode(["", "x"]).norm(dim=-1).tolist() == pytest.approx([0.0, 1.0])
    assert torch.isfinite(encoder.encode(["\ud800 lone surrogate 😀"])).all()
    assert not list(encoder.state_dict())
    with pytest.raises(ValueError, match="dim"):
        HashingEncoder(0)


def test_hashing_encoder_ignores_the_hash_seed() -> None:
    script = "from lightning_dterm.dterm import HashingEncoder; print(HashingEncoder(64).encode(['a b c'])[0].tolist())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, cwd=ROOT, check=True,
            capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert outputs == {f"{HashingEncoder(64).encode(['a b c'])[0].tolist()}\n"}


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "fix", "the", "bug"])}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=7, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_hf_encoder_pools_the_last_hidden_state(tiny_bert: Path, pooling: str) -> None:
    encoder = HFEncoder(str(tiny_bert), pooling=pooling)  # type: ignore[arg-type]
    encoder.train()
    got = encoder.encode(["fix the bug", "bug"])
    model = BertModel.from_pretrained(tiny_bert).eval()
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([[2, 4, 5, 6, 3]])).last_hidden_state[0]
    expected = hidden.mean(0) if pooling == "mean" else hidden[0]
    assert encoder.dim == 16
    assert got.dtype == torch.float32
    assert torch.allclose(got[0], expected, atol=1e-6)


def test_hf_encoder_is_frozen_cached_and_independent_of_its_batch(tiny_bert: Path) -> None:
    encoder = HFEncoder(str(tiny_bert), max_length=4).train()
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    calls: list[int] = []
    encoder.model.register_forward_hook(lambda *_: calls.append(1))
    together = encoder.encode(["fix the bug", "bug", "fix the bug"])
    assert len(calls) == 2
    assert torch.equal(encoder.encode(["bug", "fix the bug"]), together[[1, 0]])
    assert len(calls) == 2
    assert torch.equal(HFEncoder(str(tiny_bert), max_length=4).encode(["bug"])[0], together[1])
    # cut to 4 tokens: [CLS] fix the [SEP]
    assert torch.equal(together[0], encoder.encode(["fix the"])[0])


def test_hf_encoder_errors(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*save_pretrained"):
        HFEncoder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="unknown pooling 'max'"):
        HFEncoder(str(tiny_bert), pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_length"):
        HFEncoder(str(tiny_bert), max_length=0)
