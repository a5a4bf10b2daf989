from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_dterm.attribution import extract_code
from lightning_dterm.callbacks.attribution import TokenAttribution
from lightning_dterm.types import CodeTask, Rollout, Sample, Span

TASK = CodeTask("t", "synthesis", "python", "p", "d", "r")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({t: i for i, t in enumerate(["<pad>", "</s>", *alphabet])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>")


def rollout_of(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Rollout:
    rows = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    length = max(map(len, rows)) + 1
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    batch = len(texts)
    return Rollout(
        tasks=[TASK] * batch,
        group=torch.arange(batch),
        prompt_ids=torch.zeros(batch, 1),
        prompt_mask=torch.ones(batch, 1),
        response_ids=ids,
        response_mask=mask,
        finished=torch.ones(batch, dtype=torch.bool),
        texts=texts,
        samples=[Sample(TASK, text, extract_code(text, "python")) for text in texts],
        component_names=("compile", "style"),
        scores=torch.tensor([[1.0, 0.5]] * batch),
        evidence=[{} for _ in texts],
        alpha=torch.tensor([[0.25, 0.75]] * batch),
    )


def run(
    callback: TokenAttribution, tokenizer: Any, rollout: Rollout, world_size: int = 1, strategy: Any = None
) -> None:
    trainer = SimpleNamespace(world_size=world_size, strategy=strategy, callbacks=[callback])
    callback.on_rewards_end(trainer, SimpleNamespace(tokenizer=tokenizer), rollout)  # type: ignore[arg-type]


def test_dense_lands_on_the_violating_characters(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Ok:\n```python\nx=é\n```\n"
    rollout = rollout_of(tokenizer, [text, "y = 1"])
    at = text.index("é")
    rollout.evidence[0]["style"] = [Span(at, at + 1)]
    run(TokenAttribution(), tokenizer, rollout)
    rewards = rollout.token_rewards
    assert rewards is not None
    assert rewards.dtype == torch.float32
    # code "x=é\n": one token a byte, the character é belongs to its second byte, so four code tokens of five bytes
    first = len("Ok:\n```python\n")
    expected = torch.zeros(rewards.shape[1])
    expected[[first, first + 1, first + 3, first + 4]] = 0.25
    expected[first + 3] -= 0.75 * 0.5
    assert torch.allclose(rewards[0], expected, atol=1e-6)
    assert torch.allclose(rewards.sum(-1), torch.tensor(0.25 + 0.375).expand(2))
    tokens = int(rollout.response_mask.sum())
    assert rollout.metrics["attribution/code_token_share"] == pytest.approx((4 + 5) / tokens)
    assert rollout.metrics["attribution/span_share"] == 0.5


def test_terminal_and_no_code(tokenizer: PreTrainedTokenizerFast) -> None:
    rollout = rollout_of(tokenizer, ["ab", ""])
    run(TokenAttribution(mode="terminal"), tokenizer, rollout)
    assert rollout.token_rewards is not None
    assert rollout.token_rewards.nonzero().tolist() == [[0, 2], [1, 0]]
    run(TokenAttribution(mode="dense"), tokenizer, rollout)
    assert rollout.token_rewards.nonzero().tolist() == [[0, 0], [0, 1], [1, 0]]


def test_length_normalisation_uses_the_mean_of_all_processes(tokenizer: PreTrainedTokenizerFast) -> None:
    class TwoProcesses:
        """The other process holds one sample of 10 code tokens."""

        def reduce(self, tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
            assert reduce_op == "sum"
            return tensor + torch.tensor([10.0, 1.0], dtype=torch.float64)

    rollout = rollout_of(tokenizer, ["abcd"])
    run(TokenAttribution(length_normalize=True), tokenizer, rollout)
    assert rollout.token_rewards is not None
    assert float(rollout.token_rewards.sum()) == pytest.approx(0.625)
    run(TokenAttribution(length_normalize=True), tokenizer, rollout, 2, TwoProcesses())
    assert float(rollout.token_rewards.sum()) == pytest.approx(0.625 * 7 / 4)


def test_errors(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="unknown attribution mode 'sparse'"):
        TokenAttribution(mode="sparse")  # type: ignore[arg-type]
    rollout = rollout_of(tokenizer, ["ab", "cd"])
    rollout.texts[1] = "cX"
    with pytest.raises(ValueError, match=r"sample 1: .* from character 1"):
        run(TokenAttribution(), tokenizer, rollout)
    rollout.alpha = None
    with pytest.raises(ValueError, match="put RewardComputation before it"):
        run(TokenAttribution(), tokenizer, rollout)
    rollout = rollout_of(tokenizer, ["ab"])
    rollout.samples = []
    with pytest.raises(ValueError, match="0 samples for 1 responses"):
        run(TokenAttribution(), tokenizer, rollout)


def test_is_a_lightning_callback_without_state(tmp_path: Path) -> None:
    callback = TokenAttribution()
    trainer = L.Trainer(
        callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    assert callback in trainer.callbacks  # type: ignore[attr-defined]
    assert callback.state_dict() == {}
