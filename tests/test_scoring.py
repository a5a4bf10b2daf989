"""Scoring in micro-batches: the numbers of one forward, the sizes of training, nothing for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dterm.callbacks.report import BeforeAfterReport
from lightning_dterm.modules.config import GenerationConfig, KLConfig, PPOConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.modules.scoring import score_responses
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor, tiny_trainer


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> PPOModule:
    """After one rollout, so that actor and reference differ."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("scoring")
    module = PPOModule(
        actor=ActorConfig(path=str(tiny_actor(folder / "actor"))),
        generation=GenerationConfig(max_prompt_length=16, max_new_tokens=8, samples_per_prompt=2),
        ppo=PPOConfig(micro_batch_size=3),
    )
    trainer = tiny_trainer(folder, [ScoreOf("share", share_of_a)], 1)
    trainer.fit(module, datamodule=TextData(batch_size=8, size=20))
    return module


def given(rows: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(4, 200, (rows, 5), generator=generator)
    response = torch.randint(4, 200, (rows, 6), generator=generator)
    mask = (torch.arange(6) < 1 + torch.arange(rows).unsqueeze(-1) % 6).long()
    return prompt, torch.ones_like(prompt), response, mask


def watch(module: PPOModule, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every scoring pass from now on."""
    sizes: list[int] = []
    forward = type(module.policy).forward

    def counted(self: Any, prompt_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(prompt_ids))
        return forward(self, prompt_ids, *args, **kwargs)

    monkeypatch.setattr(type(module.policy), "forward", counted)
    return sizes


def test_micro_batches_give_the_numbers_of_one_pass(module: PPOModule, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = given(8)
    with torch.no_grad():
        expected = module.policy(*rows, actor=True, reference=True, critic=True, temperature=0.7)
    sizes = watch(module, monkeypatch)
    scores = score_responses(module, *rows, temperature=0.7, critic=True)
    assert sizes == [3, 3, 2]
    for name in ("logprobs", "ref_logprobs", "values"):
        assert torch.allclose(getattr(scores, name), getattr(expected, name), atol=1e-5), name
    assert not torch.allclose(scores.logprobs, scores.ref_logprobs, atol=1e-4)
    assert score_responses(module, *rows, temperature=0.7).values is None


def test_no_rows_are_no_scores(module: PPOModule) -> None:
    scores = score_responses(module, *given(0), temperature=1.0, critic=True)
    assert scores.logprobs.shape == scores.values.shape == (0, 6)


def test_the_report_scores_no_more_rows_at_once_than_training(
    module: PPOModule, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = watch(module, monkeypatch)
    other = PPOModule(
        actor=module.actor_config,
        generation=GenerationConfig(max_prompt_length=16, max_new_tokens=8, samples_per_prompt=1),
        ppo=PPOConfig(micro_batch_size=3, epochs=1, minibatches=1),
        kl=KLConfig(placement="report"),
    )
    report = BeforeAfterReport(str(tmp_path / "summary.json"))
    trainer = tiny_trainer(tmp_path, [ScoreOf("share", share_of_a)], 1, callbacks=[report])
    trainer.fit(other, datamodule=TextData(batch_size=4, size=20))
    # 8 test tasks before training, 4 samples collected and trained on, 8 test tasks after
    assert sizes == [3, 3, 2, 3, 1, 3, 1, 3, 3, 2]
