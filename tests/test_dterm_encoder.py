from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import BertConfig, BertModel, T5Config, T5Model

from lightning_dterm.dterm import HashingEncoder, HFEncoder, TaskEncoder
from tests.tiny import text_task, tiny_text_encoder

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
    return tiny_text_encoder(tmp_path_factory.mktemp("bert"))


def frozen(path: Path, cache_dir: Path | None = None, **settings: Any) -> HFEncoder:
    return HFEncoder(str(path), cache_dir=str(cache_dir) if cache_dir else None, **settings)


def count_calls(encoder: HFEncoder) -> list[int]:
    """Grows by one at every pass through the model."""
    calls: list[int] = []
    encoder.model.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_hf_encoder_pools_the_last_hidden_state(tiny_bert: Path, pooling: str) -> None:
    encoder = frozen(tiny_bert, pooling=pooling)  # type: ignore[arg-type]
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
    encoder = frozen(tiny_bert, max_length=4).train()
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    calls = count_calls(encoder)
    together = encoder.encode(["fix the bug", "bug", "fix the bug"])
    assert len(calls) == 2
    assert torch.equal(encoder.encode(["bug", "fix the bug"]), together[[1, 0]])
    assert len(calls) == 2
    assert torch.equal(frozen(tiny_bert, max_length=4).encode(["bug"])[0], together[1])
    # cut to 4 tokens: [CLS] fix the [SEP]
    assert torch.equal(together[0], encoder.encode(["fix the"])[0])


def test_hf_encoder_errors(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*save_pretrained"):
        HFEncoder(str(tmp_path / "nowhere"), cache_dir=None)
    with pytest.raises(ValueError, match="unknown pooling 'max'"):
        frozen(tiny_bert, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_length"):
        frozen(tiny_bert, max_length=0)


def test_a_second_epoch_and_a_second_run_encode_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    """Descriptions recur in every epoch; a run that starts later, from a copy of the model even, finds them on disk."""
    tasks = [text_task(i) for i in range(12)]
    encoder = frozen(tiny_bert, tmp_path)
    calls = count_calls(encoder)
    first = encoder.encode_tasks(tasks)
    assert len(calls) == len({task.description for task in tasks}) == 5
    assert torch.equal(encoder.encode_tasks(tasks), first)
    assert len(calls) == 5

    copy = shutil.copytree(tiny_bert, tmp_path / "copy")
    script = """
import sys, torch
from lightning_dterm.dterm import HFEncoder
encoder = HFEncoder(sys.argv[1], cache_dir=sys.argv[2])
encoder.model.register_forward_hook(lambda *_: sys.exit("encoded again"))
torch.save(encoder.encode(sys.argv[4:]), sys.argv[3])
"""
    arguments = [str(copy), str(tmp_path), str(tmp_path / "out.pt"), *(task.description for task in tasks)]
    subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, check=True)
    assert torch.equal(torch.load(tmp_path / "out.pt"), first)


def test_the_disk_cache_knows_encoders_apart(tiny_bert: Path, tmp_path: Path) -> None:
    other = tiny_text_encoder(tmp_path / "other", seed=1)
    words = shutil.copytree(tiny_bert, tmp_path / "words")
    tokenizer = (words / "tokenizer.json").read_text()
    (words / "tokenizer.json").write_text(tokenizer.replace('"fix"', '"mend"'))
    encoders = [
        frozen(tiny_bert, tmp_path), frozen(tiny_bert, tmp_path, pooling="cls"),
        frozen(tiny_bert, tmp_path, max_length=3), frozen(other, tmp_path), frozen(words, tmp_path),
    ]  # fmt: skip
    rows = [encoder.encode(["fix the bug"])[0] for encoder in encoders]
    assert len({tuple(row.tolist()) for row in rows}) == len({encoder.identity for encoder in encoders}) == 5
    assert len(list(tmp_path.glob("*.embeddings"))) == 5
    without = frozen(tiny_bert)
    assert torch.equal(without.encode(["fix the bug"])[0], rows[0])
    assert without.identity == encoders[0].identity


def test_an_upgrade_of_transformers_changes_the_disk_cache_alone(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on with it, and embeddings are computed anew: by a new version, or with a new default setting."""
    before = frozen(tiny_bert, tmp_path)
    before.encode(["bug"])
    monkeypatch.setattr(transformers, "__version__", "99.0")
    after = frozen(tiny_bert, tmp_path)
    after.encode(["bug"])
    assert after.identity == before.identity
    assert len(list(tmp_path.glob("*.embeddings"))) == 2
    usual = BertConfig.to_dict
    monkeypatch.setattr(BertConfig, "to_dict", lambda self: {**usual(self), "setting_of_version_99": 1})
    latest = frozen(tiny_bert, tmp_path)
    latest.encode(["bug"])
    assert latest.identity == before.identity
    assert len(list(tmp_path.glob("*.embeddings"))) == 3


def test_another_setting_of_the_model_is_another_encoder(tiny_bert: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_bert, tmp_path / "other")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"num_attention_heads": 2', '"num_attention_heads": 4'))
    assert frozen(other).identity != frozen(tiny_bert).identity
    assert frozen(shutil.copytree(tiny_bert, tmp_path / "copy")).identity == frozen(tiny_bert).identity


def test_a_head_that_the_checkpoint_lacks_is_no_part_of_the_identity(tmp_path: Path) -> None:
    """transformers fills it with random numbers, others in every process."""
    path = tiny_text_encoder(tmp_path, add_pooling_layer=False)
    assert frozen(path).identity == frozen(path).identity


def test_an_encoder_with_random_weights_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_bert, tmp_path / "deeper")
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(FileNotFoundError, match=r"deeper.* lacks 16 of the encoder's weights, such as encoder.layer.2"):
        frozen(path)


def test_long_descriptions_are_cut_to_what_the_model_has_positions_for(tiny_bert: Path) -> None:
    encoder = frozen(tiny_bert, max_length=128)
    long = encoder.encode(["fix " * 100, "fix " * 30, "fix " * 29])
    assert torch.equal(long[0], long[1])
    assert not torch.equal(long[1], long[2])


def test_half_a_surrogate_pair_and_no_text_at_all(tiny_bert: Path) -> None:
    assert torch.isfinite(frozen(tiny_bert).encode(["", "\ud800 fix"])).all()


def test_an_encoder_decoder_serves_by_its_encoder(tiny_bert: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_bert, tmp_path / "t5")
    torch.manual_seed(0)
    T5Model(T5Config(vocab_size=7, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(path)
    encoder = frozen(path)
    model = T5Model.from_pretrained(path).encoder.eval()
    expected = model(input_ids=torch.tensor([[2, 4, 5, 3]])).last_hidden_state[0].mean(0)
    assert torch.allclose(encoder.encode(["fix the"])[0], expected, atol=1e-6)
