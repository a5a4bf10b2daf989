"""What reaches the loggers: this step's figures and no other's, at the step's own number, the same over a resume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_dterm.callbacks import SampleTableLogger
from lightning_dterm.dterm import HypernetworkWeighting
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.config import GenerationConfig, KLConfig, OptimizerConfig, PPOConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.modules.supervised import SupervisedModule
from lightning_dterm.types import CodeTask, Rollout
from tests.tiny import ScoreOf, TextData, share_of_a, text_task, tiny_actor, tiny_fit, tiny_ppo

Series = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_actor(tmp_path_factory.mktemp("actor"))


def ppo(actor: Path, **overrides: Any) -> PPOModule:
    settings: dict[str, Any] = {
        "generation": GenerationConfig(max_prompt_length=8, max_new_tokens=4, samples_per_prompt=2),
        "ppo": PPOConfig(epochs=1, minibatches=1),
        "optimizer": OptimizerConfig(actor_lr=1e-3, critic_lr=1e-3),
        "weighting": HypernetworkWeighting(),
    }
    return tiny_ppo(actor, **{**settings, **overrides})


class RareRepair(TextData):
    """Two prompts a rollout, few of them repairs."""

    def train_tasks(self) -> Sequence[CodeTask]:
        return [text_task(i, task_type="repair" if i % 5 == 0 else "synthesis") for i in range(self.size)]


def series(folder: Path) -> Series:
    """All scalars of a run's event files that are no times."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    names = [n for n in events.Tags()["scalars"] if not n.startswith(("time", "throughput"))]
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}


def fit(root: Path, module: L.LightningModule, steps: int, resume: Path | None = None, **kwargs: Any) -> L.Trainer:
    logger = TensorBoardLogger(root, name="logs", version="", default_hp_metric=False)
    validation = {"limit_val_batches": 1.0, "val_check_interval": 2, "check_val_every_n_epoch": None}
    settings = {"log_every_n_steps": 1, "num_sanity_val_steps": 1, "logger": logger, **validation, **kwargs}
    data = RareRepair(batch_size=2, size=20)
    return tiny_fit(root, module, [ScoreOf("share", share_of_a)], steps, data, resume, **settings)


def test_tensorboard_holds_each_rollouts_own_figures_at_its_number(actor: Path, tmp_path: Path) -> None:
    seen: list[set[str]] = []

    class Types(SampleTableLogger):
        def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Any) -> None:
            super().on_update_end(trainer, pl_module, rollout)
            seen.append({task.task_type for task in rollout.tasks})

    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    callbacks = [Types(every_n_rollouts=1), saver]
    trainer = fit(tmp_path, ppo(actor), 6, callbacks=callbacks, enable_checkpointing=True)
    logged = series(tmp_path / "logs")
    with_repair = [k for k, types in enumerate(seen, 1) if "repair" in types]
    assert 0 < len(with_repair) < 6
    assert [step for step, _ in logged["weight/repair/share"]] == with_repair
    assert [step for step, _ in logged["reward/total"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in logged["val/bleu"]] == [2, 4, 6]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [f"step={k}.ckpt" for k in range(1, 7)]
    events = EventAccumulator(str(tmp_path / "logs"), size_guidance={"tensors": 0})
    events.Reload()
    assert [event.step for event in events.Tensors("samples/text_summary")] == [1, 2, 3, 4, 5, 6]
    assert trainer.logged_metrics["reward/total"] == pytest.approx(logged["reward/total"][-1][1])


def test_figures_of_a_users_callback_lie_where_its_docstring_says(actor: Path, tmp_path: Path) -> None:
    class Own(RolloutCallback):
        def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
            rollout.metrics["mine/in_the_rollout"] = 10.0 * (pl_module.global_step + 1)

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            pl_module.log_step({"mine/after_it": 10.0 * pl_module.global_step})
            pl_module.log("mine/by_lightning", 10.0 * pl_module.global_step)

    fit(tmp_path, ppo(actor), 3, callbacks=[Own()], limit_val_batches=0)
    logged = series(tmp_path / "logs")
    assert logged["mine/in_the_rollout"] == logged["mine/after_it"] == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert logged["mine/by_lightning"] == [(0, 10.0), (1, 20.0), (2, 30.0)]


def test_a_resumed_run_logs_what_a_whole_one_does(actor: Path, tmp_path: Path) -> None:
    fit(tmp_path / "whole", ppo(actor), 6)
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, filename="half")
    fit(tmp_path / "parts", ppo(actor), 3, callbacks=[saver], enable_checkpointing=True)
    fit(tmp_path / "parts", ppo(actor), 6, resume=tmp_path / "half.ckpt")
    whole, parts = series(tmp_path / "whole" / "logs"), series(tmp_path / "parts" / "logs")
    assert {"weight/repair/share", "val/bleu", "kl/token", "epoch"} <= whole.keys()
    assert parts == whole


@pytest.mark.parametrize(("every", "expected"), [(2, [2, 4]), (0, [])])
def test_log_every_n_steps(actor: Path, tmp_path: Path, every: int, expected: list[int]) -> None:
    fit(tmp_path, ppo(actor), 5, log_every_n_steps=every, limit_val_batches=0)
    assert [step for step, _ in series(tmp_path / "logs").get("reward/total", [])] == expected


def test_monitors_read_the_rollouts_figures(actor: Path, tmp_path: Path) -> None:
    """The checkpoint that is kept is that of the highest value among those logged."""
    saver = ModelCheckpoint(tmp_path / "best", monitor="reward/total", mode="max", every_n_train_steps=1)
    fit(tmp_path, ppo(actor), 5, callbacks=[saver], enable_checkpointing=True, limit_val_batches=0)
    logged = series(tmp_path / "logs")["reward/total"]
    best = max(logged, key=lambda point: point[1])
    assert len({value for _, value in logged}) > 1
    assert f"step={best[0]}.ckpt" in Path(saver.best_model_path).name
    assert float(saver.best_model_score) == pytest.approx(best[1])


def test_supervised_steps_count_from_one(actor: Path, tmp_path: Path) -> None:
    module = SupervisedModule(
        ActorConfig(path=str(actor)), GenerationConfig(max_prompt_length=8, max_new_tokens=4), warmup_steps=0
    )
    trainer = fit(tmp_path, module, 4)
    logged = series(tmp_path / "logs")
    assert [step for step, _ in logged["train/loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in logged["val/bleu"]] == [2, 4]
    assert trainer.progress_bar_metrics["train/loss"] == pytest.approx(logged["train/loss"][-1][1])
    assert trainer.validate(module, datamodule=RareRepair(batch_size=2), verbose=False)[0].keys() >= {"val/bleu"}


@pytest.mark.parametrize(("placement", "estimator"), [("reward", "k1"), ("loss", "k2")])
def test_the_logged_kl_coefficient_is_the_one_in_use(
    actor: Path, tmp_path: Path, placement: Any, estimator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_dterm.modules import ppo as ppo_file
    from lightning_dterm.modules import update

    used: list[float] = []
    loss, penalty = update.PPOUpdate._loss, PPOModule._kl_penalty

    def in_loss(self: Any, *args: Any) -> Any:
        used.append(self.module.kl_controller.coef)
        return loss(self, *args)

    def in_reward(self: Any, *args: Any) -> Any:
        used.append(self.kl_controller.coef)
        return penalty(self, *args)

    if placement == "loss":
        monkeypatch.setattr(update.PPOUpdate, "_loss", in_loss)
    else:
        monkeypatch.setattr(ppo_file.PPOModule, "_kl_penalty", in_reward)
    kl = KLConfig(placement=placement, estimator=estimator, coef=0.5, target=0.01, horizon=4)
    fit(tmp_path, ppo(actor, kl=kl), 3, limit_val_batches=0)
    assert [value for _, value in series(tmp_path / "logs")["kl/coef"]] == pytest.approx(used)
    assert len(set(used)) == 3
