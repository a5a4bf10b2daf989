"""A run whose loss or gradient is not finite on its last rank alone, started by ``test_nonfinite.py`` as a script."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from lightning_dterm.modules.actor_critic import CriticConfig
from lightning_dterm.modules.config import GenerationConfig, KLConfig, PPOConfig
from lightning_dterm.modules.distributed import Means, rank, world_size
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.types import Rollout
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_trainer


def poison(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
    """Let the gradient be NaN from the last hidden states back, the loss being as it was."""
    if output.last_hidden_state.requires_grad:
        output.last_hidden_state.register_hook(lambda gradient: gradient * torch.nan)


class Poisoned(PPOModule):
    """In the second rollout the last rank's loss is NaN, or its gradient while its loss is finite."""

    where: str

    def compute_advantages(self, rollout: Rollout, means: Means) -> torch.Tensor:
        mask = super().compute_advantages(rollout, means)
        if self.global_step == 1 and rank() == world_size() - 1:
            assert rollout.advantages is not None
            if self.where == "loss":
                rollout.advantages[-1] = torch.nan
            else:
                self.language_model.base_model.register_forward_hook(poison)
        return mask


def strategy_of(name: str, devices: int) -> Strategy | str:
    if name == "fsdp2":
        return ModelParallelStrategy(
            data_parallel_size=devices, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto"


def outcome(actor: str, folder: Path, where: str, devices: int, strategy: str) -> dict[str, object]:
    """What training said: the rollouts it did and its error."""
    torch.set_num_threads(1)
    module = Poisoned(
        actor=ActorConfig(path=actor),
        critic=CriticConfig(kind="shared"),
        generation=GenerationConfig(max_new_tokens=6, samples_per_prompt=2),
        ppo=PPOConfig(epochs=1, minibatches=2),
        kl=KLConfig(placement="none"),
    )
    module.where = where
    trainer = tiny_trainer(
        folder, [ScoreOf("share", share_of_a)], 4, devices=devices, strategy=strategy_of(strategy, devices)
    )
    error = ""
    try:
        trainer.fit(module, datamodule=TextData(batch_size=4, size=16))
    except FloatingPointError as raised:
        error = str(raised)
    return {"rollouts": trainer.global_step, "error": error}


if __name__ == "__main__":
    actor, out, strategy = sys.argv[1:]
    results = {where: outcome(actor, Path(out).parent, where, 2, strategy) for where in ("loss", "gradient")}
    Path(f"{out}.rank{rank()}").write_text(json.dumps(results))
