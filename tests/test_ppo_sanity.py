"""Tasks any PPO must solve from scratch, and must not solve when the advantage's sign is flipped."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch

from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.actor_critic import CriticConfig
from lightning_dterm.modules.config import GenerationConfig, KLConfig, OptimizerConfig, PPOConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.types import Rollout
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor, tiny_trainer

# Rollouts after which right and flipped sign are told apart. Measured from the 15th to the 24th: digits after letters,
# 8 seeds of actor and module: the right sign scores 0.18 to 0.33 on average and never below 0.12, the flipped one at
# most 0.01 and never above 0.03 (an untrained actor 0.02 to 0.04); the letter a, 3 seeds: 0.7 or more against 0.01.
APART = 24


class Curve(RolloutCallback):
    """Mean score of every rollout; ends the run once five in a row are above 0.9 on average: it is solved."""

    def __init__(self) -> None:
        self.scores: list[float] = []

    def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        assert rollout.scores is not None
        self.scores.append(float(rollout.scores.mean()))
        trainer.should_stop = solved(self.scores)


def solved(scores: list[float]) -> bool:
    return sum(scores[-5:]) / 5 > 0.9


class FlippedPPO(PPOModule):
    """PPO with the one mistake that this test must notice."""

    def compute_advantages(self, rollout, means):  # type: ignore[no-untyped-def]
        mask = super().compute_advantages(rollout, means)
        rollout.advantages = -rollout.advantages
        return mask


def train(tmp_path: Path, function, module_class=PPOModule, steps: int = 40, tokens: int = 4) -> list[float]:  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    actor = tiny_actor(tmp_path / "actor")
    module = module_class(
        actor=ActorConfig(path=str(actor)),
        critic=CriticConfig(kind="shared"),
        generation=GenerationConfig(max_prompt_length=16, max_new_tokens=tokens, samples_per_prompt=4),
        ppo=PPOConfig(epochs=4, minibatches=2),
        kl=KLConfig(placement="none"),
        optimizer=OptimizerConfig(actor_lr=3e-3, critic_lr=3e-3),
    )
    curve = Curve()
    trainer = tiny_trainer(tmp_path, [ScoreOf("letters", function)], steps, callbacks=[curve])
    trainer.fit(module, datamodule=TextData(batch_size=16, size=64))
    return curve.scores


def digits_after_lowercase(text: str) -> float:
    """1 for a lowercase letter followed by a digit: the digit pays only if the letter came first."""
    letter = "a" <= text[:1] <= "z"
    return (1.0 if "0" <= text[1:2] <= "9" else 0.2) if letter else 0.0


@pytest.mark.parametrize(("function", "steps"), [(share_of_a, 40), (digits_after_lowercase, 60)])
def test_ppo_solves_what_any_ppo_must(tmp_path: Path, function, steps: int) -> None:  # type: ignore[no-untyped-def]
    scores = train(tmp_path, function, steps=steps)
    assert sum(scores[:2]) / 2 < 0.1
    assert sum(scores[APART - 10 : APART]) / 10 > 0.12  # where the flipped sign has got nowhere
    assert solved(scores)


@pytest.mark.parametrize("function", [share_of_a, digits_after_lowercase])
def test_flipped_advantages_do_not_solve_it(tmp_path: Path, function) -> None:  # type: ignore[no-untyped-def]
    scores = train(tmp_path, function, FlippedPPO, steps=APART)
    assert len(scores) == APART
    assert max(scores[-10:]) < 0.06
    assert sum(scores[-10:]) / 10 < 0.025
