"""One training run on 1 or 2 CPU processes, started by ``test_distributed.py`` as a script of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from lightning_dterm.checkpointing import AtomicCheckpointIO
from lightning_dterm.dterm import HypernetworkWeighting
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.actor_critic import CriticConfig, LoraSettings
from lightning_dterm.modules.config import GenerationConfig, KLConfig, OptimizerConfig, PPOConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.modules.sharding import is_sharded
from lightning_dterm.types import Rollout
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_trainer


class Record(RolloutCallback):
    """Everything that must not depend on the number of processes, as logged."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.lengths: list[list[int]] = []
        self.rollout: Rollout | None = None

    def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        self.rollout = rollout
        self.lengths.append(rollout.response_mask.sum(-1).tolist())

    def on_train_batch_end(self, *_: Any) -> None:
        # token shares are means of ranks' means; times differ from run to run
        left_out = ("time", "throughput", "attribution/")
        assert self.rollout is not None
        self.metrics.append({k: v for k, v in self.rollout.metrics.items() if not k.startswith(left_out)})


def strategy_of(name: str, devices: int) -> Strategy | str:
    if name == "fsdp2":
        return ModelParallelStrategy(
            data_parallel_size=devices, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto"


class EarlyEnds(PPOModule):
    """Every fourth token ends a response, so that lengths differ between samples and ranks."""

    @property
    def eos_ids(self) -> list[int]:
        return list(range(0, len(self.tokenizer), 4))


def build(args: argparse.Namespace) -> PPOModule:
    return EarlyEnds(
        actor=ActorConfig(path=args.actor),
        critic=CriticConfig(kind=args.critic),
        lora=LoraSettings(rank=4) if args.lora else None,
        generation=GenerationConfig(max_prompt_length=16, max_new_tokens=12, samples_per_prompt=2),
        ppo=PPOConfig(epochs=2, minibatches=2, shuffle=False, micro_batch_size=args.micro),
        kl=KLConfig(coef=0.1, target=0.5, horizon=100),
        optimizer=OptimizerConfig(actor_lr=1e-3, critic_lr=1e-3, weighting_lr=1e-2),
        weighting=HypernetworkWeighting(),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--actor", "--out", "--strategy"):
        parser.add_argument(name, required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--micro", type=int)
    parser.add_argument("--critic", default="separate")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--save")
    parser.add_argument("--checkpoints")
    parser.add_argument("--resume")
    args = parser.parse_args()
    torch.set_num_threads(1)
    module, record = build(args), Record()
    components = [ScoreOf("share", share_of_a), ScoreOf("long", lambda text: min(1.0, len(text) / 12))]
    callbacks: list[L.Callback] = [record]
    if args.checkpoints:
        callbacks.append(ModelCheckpoint(args.checkpoints, every_n_train_steps=1, save_last=True, save_top_k=1))
    trainer = tiny_trainer(
        Path(args.out).parent,
        components,
        args.steps,
        callbacks=callbacks,
        enable_checkpointing=bool(args.checkpoints),
        plugins=[AtomicCheckpointIO()],
        devices=args.devices,
        strategy=strategy_of(args.strategy, args.devices),
    )
    trainer.fit(module, datamodule=TextData(batch_size=8, size=64), ckpt_path=args.resume)
    if args.save:
        trainer.save_checkpoint(args.save)
    weights = {n: p.full_tensor() if is_sharded(p) else p for n, p in module.named_parameters() if p.requires_grad}
    result = {
        "weights": {n: p.detach().cpu().clone() for n, p in weights.items()},
        "metrics": record.metrics,
        "lengths": record.lengths,
        "kl_coef": module.kl_controller.coef,
        "sharded": sum(is_sharded(p) for p in module.parameters()),
        "global_step": trainer.global_step,
    }
    torch.save(result, f"{args.out}.rank{trainer.global_rank}")


if __name__ == "__main__":
    main()
