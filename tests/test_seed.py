"""``seed_everything`` alone decides the rollouts; a module's own seed goes first; resume keeps the run's seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules import base
from lightning_dterm.modules.actor_critic import CriticConfig
from lightning_dterm.modules.config import GenerationConfig, resolve_seed
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.types import Rollout
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor, tiny_trainer


class Responses(RolloutCallback):
    """Token ids of every rollout."""

    def __init__(self) -> None:
        self.ids: list[list[list[int]]] = []

    def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        self.ids.append(rollout.response_ids.tolist())


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_actor(tmp_path_factory.mktemp("actor"))


def train(actor: Path, folder: Path, steps: int = 2, resume: Path | None = None, **options: Any) -> Responses:
    module = PPOModule(
        actor=ActorConfig(path=str(actor)),
        critic=CriticConfig(kind="shared"),
        generation=GenerationConfig(max_new_tokens=6, samples_per_prompt=2),
        **options,
    )
    seen = Responses()
    trainer = tiny_trainer(folder, [ScoreOf("share", share_of_a)], steps, callbacks=[seen])
    trainer.fit(module, datamodule=TextData(batch_size=4, size=16), ckpt_path=resume)
    trainer.save_checkpoint(folder / "end.ckpt")
    return seen


def test_seed_everything_alone_decides_the_rollouts(
    actor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(number: int | None, **options: Any) -> list[list[list[int]]]:
        if number is None:
            monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
        else:
            monkeypatch.setenv("PL_GLOBAL_SEED", "")  # so that what Lightning sets is undone
            L.seed_everything(number, verbose=False)
        return train(actor, tmp_path, **options).ids

    three = run(3)
    assert run(3) == three
    assert run(4) != three
    assert run(4, seed=3) == three  # the module's own seed goes first
    assert run(None) == run(0) == run(5, seed=0)


def test_a_resumed_run_keeps_its_seed(actor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    whole = train(actor, tmp_path, 4).ids
    train(actor, tmp_path / "half", 2)
    half = tmp_path / "half" / "end.ckpt"
    assert torch.load(half, weights_only=True)["lightning_dterm"]["seed"] == 3
    monkeypatch.delenv("PL_GLOBAL_SEED")
    with pytest.warns(UserWarning, match="the checkpoint's seed 3 instead of seed_everything's 0"):
        resumed = train(actor, tmp_path / "rest", 4, half).ids
    assert resumed == whole[2:]
    # what is written at the module has the last word
    assert train(actor, tmp_path / "other", 4, half, seed=9).ids != whole[2:]


@pytest.mark.parametrize(("given", "everything", "expected"), [(None, "7", 7), (2, "7", 2), (0, "7", 0)])
def test_ranks_that_were_seeded_differently_take_the_first_ones(
    actor: Path, monkeypatch: pytest.MonkeyPatch, given: int | None, everything: str, expected: int
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "8")
    module = PPOModule(actor=ActorConfig(path=str(actor)), seed=given)
    monkeypatch.setattr(base, "all_gather", lambda own: [int(everything), own])  # as rank 1 of 2 sees it
    module.setup("test")
    assert module.seed == expected


def test_a_seed_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "seven")
    assert resolve_seed(1) == 1
    with pytest.raises(ValueError, match="PL_GLOBAL_SEED must be a whole number, got 'seven'"):
        resolve_seed(None)
