"""``seed_everything`` alone decides the rollouts; a module's own seed goes first; resume keeps the run's seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import pytest
import torch

from lightning_dterm.data import MicroCodeDataModule
from lightning_dterm.data import base as data_base
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules import base
from lightning_dterm.modules.actor_critic import CriticConfig
from lightning_dterm.modules.config import GenerationConfig, resolve_seed
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.types import CodeTask, Rollout
from tests.tiny import ScoreOf, TextData, share_of_a, text_task, tiny_actor, tiny_trainer


class Responses(RolloutCallback):
    """Token ids and tasks of every rollout."""

    def __init__(self) -> None:
        self.ids: list[list[list[int]]] = []
        self.tasks: list[list[str]] = []

    def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        self.ids.append(rollout.response_ids.tolist())
        self.tasks.append([task.task_id for task in rollout.tasks])


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_actor(tmp_path_factory.mktemp("actor"))


class SeededData(TextData):
    """Other training tasks with another seed, as MicroCode has."""

    def train_tasks(self) -> Sequence[CodeTask]:
        return [text_task(i + 100 * self.seed) for i in range(self.size)]


def train(
    actor: Path,
    folder: Path,
    steps: int = 2,
    resume: Path | None = None,
    seed: int | None = None,
    data_seed: int | None = None,
) -> Responses:
    module = PPOModule(
        actor=ActorConfig(path=str(actor)),
        critic=CriticConfig(kind="shared"),
        generation=GenerationConfig(max_new_tokens=6, samples_per_prompt=2),
        seed=seed,
    )
    seen = Responses()
    trainer = tiny_trainer(folder, [ScoreOf("share", share_of_a)], steps, callbacks=[seen])
    trainer.fit(module, datamodule=SeededData(batch_size=4, size=16, seed=data_seed), ckpt_path=resume)
    trainer.save_checkpoint(folder / "end.ckpt")
    return seen


def test_seed_everything_alone_decides_the_rollouts(
    actor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(number: int | None, seed: int | None = None) -> tuple[list[list[list[int]]], list[list[str]]]:
        if number is None:
            monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
        else:
            monkeypatch.setenv("PL_GLOBAL_SEED", "")  # so that what Lightning sets is undone
            L.seed_everything(number, verbose=False)
        seen = train(actor, tmp_path, seed=seed, data_seed=seed)
        return seen.ids, seen.tasks

    three = run(3)
    assert run(3) == three
    four = run(4)
    assert four[0] != three[0]
    assert four[1] != three[1]
    assert run(4, seed=3) == three  # seeds of their own go first
    assert run(None) == run(0) == run(5, seed=0)


def test_a_resumed_run_keeps_its_seed(actor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    whole = train(actor, tmp_path, 4)
    train(actor, tmp_path / "half", 2)
    half = tmp_path / "half" / "end.ckpt"
    assert torch.load(half, weights_only=True)["lightning_dterm"]["seed"] == 3
    monkeypatch.delenv("PL_GLOBAL_SEED")
    said = "the checkpoint's {}seed 3 instead of seed_everything's 0"
    with pytest.warns(match=said.format("")), pytest.warns(match=said.format("data ")):
        resumed = train(actor, tmp_path / "rest", 4, half)
    assert (resumed.ids, resumed.tasks) == (whole.ids[2:], whole.tasks[2:])
    # what is written has the last word; at the data that is a refusal, for its position means nothing in another order
    assert train(actor, tmp_path / "other", 4, half, seed=9, data_seed=3).ids != whole.ids[2:]
    with pytest.raises(ValueError, match=r"seed=3, this run has seed=9.*data\.init_args\.seed"):
        train(actor, tmp_path / "other", 4, half, data_seed=9)


@pytest.mark.parametrize(("given", "everything", "expected"), [(None, "7", 7), (2, "7", 2), (0, "7", 0)])
def test_ranks_that_were_seeded_differently_take_the_first_ones(
    actor: Path, monkeypatch: pytest.MonkeyPatch, given: int | None, everything: str, expected: int
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "8")
    module, data = PPOModule(actor=ActorConfig(path=str(actor)), seed=given), SeededData(seed=given)
    for file in (base, data_base):
        monkeypatch.setattr(file, "all_gather", lambda own: [int(everything), own])  # as rank 1 of 2 sees it
    module.setup("test")
    data.setup("fit")
    assert module.seed == data.seed == expected
    assert data.tasks("train")[0].task_id == f"t/{100 * expected}"


def test_seed_everything_chooses_the_training_tasks_and_never_those_of_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def splits(number: int | None, seed: int | None = None) -> dict[str, list[CodeTask]]:
        if number is None:
            monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
        else:
            monkeypatch.setenv("PL_GLOBAL_SEED", "")
            L.seed_everything(number, verbose=False)
        data = MicroCodeDataModule(train_size=20, validation_size=10, test_size=10, seed=seed)
        data.setup("fit")
        data.setup("test")
        return {split: list(data.tasks(split)) for split in ("train", "validation", "test")}

    zero, three = splits(0), splits(3)
    assert {task.prompt for task in zero["train"]}.isdisjoint(task.prompt for task in three["train"])
    assert zero["validation"] == three["validation"]
    assert zero["test"] == three["test"]
    assert splits(None) == zero == splits(3, seed=0)  # the quickstart's
    assert splits(0, seed=3) == three


def test_a_seed_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "seven")
    assert resolve_seed(1) == 1
    with pytest.raises(ValueError, match="PL_GLOBAL_SEED must be a whole number, got 'seven'"):
        resolve_seed(None)
