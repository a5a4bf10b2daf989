"""Runs in which one thing goes wrong on the last rank alone; ``test_rank_failures.py`` starts this as a script."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from lightning_dterm.callbacks import HeatMapLogger, TokenAttribution
from lightning_dterm.callbacks.attribution import attribution_of
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.actor_critic import CriticConfig
from lightning_dterm.modules.config import GenerationConfig, KLConfig, PPOConfig
from lightning_dterm.modules.distributed import Means, rank, world_size
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.types import CodeTask, Rollout
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_trainer

NUMBERS = ("loss", "gradient", "generation")
HOOKS = ("on_generation_end", "on_rollout_end", "on_rewards_end", "on_update_end")
MAPPED = ("attribution", "heat map")  # before a collective of their own
PLACES = (*NUMBERS, *HOOKS, *MAPPED, "row", "prompt", "encoder", "evaluation")
BATCH = 4


def due(step: int) -> bool:
    """In the second rollout, on the last rank."""
    return step == 1 and rank() == world_size() - 1


def poison(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
    """Let the gradient be NaN from the last hidden states back, the loss being as it was."""
    if output.last_hidden_state.requires_grad:
        output.last_hidden_state.register_hook(lambda gradient: gradient * torch.nan)


def spoil(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
    """Let the logits that generation draws from be NaN."""
    output.logits.fill_(torch.nan)


def broken(*_: Any, **__: Any) -> Any:
    raise OSError("no space left on device")


class Failing(PPOModule):
    """In the second rollout one of its parts, a heat map or the evaluation after it fails on the last rank."""

    where: str

    def collect(self, batch: list[CodeTask]) -> Rollout:
        if due(self.global_step):
            if self.where == "generation":
                self.language_model.register_forward_hook(spoil)
            if self.where == "encoder":
                self.task_encoder.features = broken  # type: ignore[method-assign]
            if self.where == "attribution":
                attribution_of(self.trainer).token_spans = broken  # type: ignore[union-attr, method-assign]
            if self.where == "heat map":  # nothing else in training calls it
                self.task_encoder.encode_tasks = broken  # type: ignore[method-assign]
            if self.where == "evaluation":
                self.evaluator.evaluate = broken  # type: ignore[method-assign]
        return super().collect(batch)

    def compute_advantages(self, rollout: Rollout, means: Means) -> torch.Tensor:
        mask = super().compute_advantages(rollout, means)
        if due(self.global_step):
            assert rollout.advantages is not None
            if self.where == "loss":
                rollout.advantages[-1] = torch.nan
            if self.where == "gradient":
                self.language_model.base_model.register_forward_hook(poison)
        return mask


class Hook(RolloutCallback):
    """A callback of the user's own, one of whose hooks fails."""

    def __init__(self, name: str) -> None:
        setattr(self, name, self._fail)

    def _fail(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        if due(pl_module.global_step):
            raise KeyError("no such column")


class Rows(Sequence[CodeTask]):
    """Tasks, one of which cannot be read or has no prompt."""

    def __init__(self, tasks: Sequence[CodeTask], where: str, bad: int) -> None:
        self.tasks, self.where, self.bad = tasks, where, bad

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: Any) -> Any:
        if index == self.bad and self.where == "row":
            raise ValueError("tasks.jsonl, line 7: prompt must be a text, got 3")
        return replace(self.tasks[index], prompt="") if index == self.bad else self.tasks[index]


class Data(TextData):
    """Its second training batch has the bad row, in the share of the last rank."""

    where = ""

    def train_tasks(self) -> Sequence[CodeTask]:
        tasks = super().train_tasks()
        if self.where not in ("row", "prompt"):
            return tasks
        self._tasks["train"] = tasks
        order = self._sampler("train").order(0)
        return Rows(tasks, self.where, int(order[2 * BATCH - 1]))


def strategy_of(name: str, devices: int) -> Strategy | str:
    if name == "fsdp2":
        return ModelParallelStrategy(
            data_parallel_size=devices, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto"


def outcome(actor: str, folder: Path, where: str, devices: int, strategy: str) -> dict[str, object]:
    """What training said: the rollouts it did and its error."""
    torch.set_num_threads(1)
    module = Failing(
        actor=ActorConfig(path=actor),
        critic=CriticConfig(kind="shared"),
        generation=GenerationConfig(max_new_tokens=6, samples_per_prompt=2),
        ppo=PPOConfig(epochs=1, minibatches=2),
        kl=KLConfig(placement="none"),
    )
    module.where = where
    data = Data(batch_size=BATCH, size=16)
    data.where = where
    callbacks: list[L.Callback] = [Hook(where)] if where in HOOKS else []
    if where in MAPPED:
        length = TokenAttribution(mode="uniform", length_normalize=True)
        callbacks = [length, HeatMapLogger(every_n_rollouts=1, num_tasks=2)]
    trainer = tiny_trainer(
        folder,
        [ScoreOf("share", share_of_a)],
        4,
        devices=devices,
        strategy=strategy_of(strategy, devices),
        callbacks=callbacks,
        limit_val_batches=int(where == "evaluation"),
        val_check_interval=2,
        num_sanity_val_steps=0,
    )
    error = ""
    try:
        trainer.fit(module, datamodule=data)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    return {"rollouts": trainer.global_step, "error": error}


if __name__ == "__main__":
    actor, out, strategy, *places = sys.argv[1:]
    results = {where: outcome(actor, Path(out).parent, where, 2, strategy) for where in places}
    Path(f"{out}.rank{rank()}").write_text(json.dumps(results))
