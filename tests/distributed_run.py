"""One training run on 1 or 2 CPU processes, started by ``test_distributed.py`` as a script of its own."""

from __future__ import annotations

import argparse
import atexit
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor

from lightning_dterm.callbacks.report import BeforeAfterReport
from lightning_dterm.checkpointing import AtomicCheckpointIO
from lightning_dterm.dterm import GradNormWeighting, HypernetworkWeighting, LookAhead, Weighting
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.actor_critic import CriticConfig, LoraSettings
from lightning_dterm.modules.base import CodeModule
from lightning_dterm.modules.config import GenerationConfig, KLConfig, OptimizerConfig, PPOConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.modules.sharding import is_sharded, whole
from lightning_dterm.modules.supervised import SupervisedModule
from lightning_dterm.types import CodeTask, Rollout
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_trainer

# Tokens of a prompt and of a reference in supervised runs. Not 1 and 1: attention over one token does not depend on
# queries and keys; their gradient is then rounding noise (3e-10), of which Adam makes steps of full size.
LIMIT = 8


class Record(RolloutCallback):
    """Everything that must not depend on the number of processes, as logged."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.lengths: list[list[int]] = []
        self.rollout: Rollout | None = None

    def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        self.rollout = rollout
        self.lengths.append(rollout.response_mask.sum(-1).tolist())

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.rollout is None:  # supervised
            self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")})
            return
        # token shares are means of ranks' means; times differ from run to run
        left_out = ("time", "throughput", "attribution/")
        self.metrics.append({k: v for k, v in self.rollout.metrics.items() if not k.startswith(left_out)})


class LateSuccess(RolloutCallback):
    """Success is known from one rollout on: the hypernetwork has no gradient before."""

    def __init__(self, first: int) -> None:
        self.first = first

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        known = pl_module.global_step >= self.first
        rollout.outcome = torch.tensor([1 / (1 + len(text)) if known else math.nan for text in rollout.texts])


def strategy_of(name: str, devices: int) -> Strategy | str:
    if name == "fsdp2":
        return ModelParallelStrategy(
            data_parallel_size=devices, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto"


def uneven_tasks(size: int = 32) -> list[CodeTask]:
    """Prompts and references of many lengths, some of them over ``LIMIT`` tokens."""
    rows = [(f"f({'x1' * (i % 5)})", f"return {'x+' * (i % 7)}{i % 3}") for i in range(size)]
    return [CodeTask(f"u/{i}", "synthesis", "text", p, f"number {i % 5}", r) for i, (p, r) in enumerate(rows)]


class UnevenData(TextData):
    """One epoch is four batches of eight, so that four steps see every task once."""

    def train_tasks(self) -> Sequence[CodeTask]:
        return uneven_tasks()


class EarlyEnds(PPOModule):
    """Every fourth token ends a response, so that lengths differ between samples and ranks."""

    @property
    def eos_ids(self) -> list[int]:
        return list(range(0, len(self.tokenizer), 4))


def length_if_judged(text: str) -> float:
    """Share of 12 characters; fails on some texts, which the suite masks and counts."""
    return math.nan if len(text) % 3 == 2 else min(1.0, len(text) / 12)


def build(args: argparse.Namespace) -> CodeModule:
    generation = GenerationConfig(max_new_tokens=12, samples_per_prompt=4 if args.lookahead else 2)
    if args.supervised:
        generation.max_prompt_length = LIMIT
        return SupervisedModule(
            ActorConfig(path=args.actor),
            generation,
            lr=1e-2,
            warmup_steps=0,
            micro_batch_size=args.micro,
            max_target_length=LIMIT,
        )
    generation.max_prompt_length = 1  # cuts every prompt, so that the count is not 0
    return EarlyEnds(
        actor=ActorConfig(path=args.actor),
        critic=CriticConfig(kind=args.critic),
        lora=LoraSettings(rank=args.lora_rank) if args.lora else None,
        generation=generation,
        # 16 samples in 3 minibatches: the ranks' shares of one differ in size
        ppo=PPOConfig(epochs=2, minibatches=3, micro_batch_size=args.micro),
        kl=KLConfig(coef=0.1, target=0.5, horizon=100),
        optimizer=OptimizerConfig(actor_lr=1e-3, critic_lr=1e-3, weighting_lr=1e-2),
        weighting=weighting_of(args),
    )


class Told(HypernetworkWeighting):
    """Is told that success is a score above the siblings' mean, which text tasks do not say."""

    def observe(self, *, scores: Tensor, **kwargs: Any) -> None:
        by_prompt = scores[:, 0].nan_to_num(0.0).view(-1, 4)
        kwargs["outcome"] = (by_prompt > by_prompt.mean(1, keepdim=True)).float().flatten()
        super().observe(scores=scores, **kwargs)


def weighting_of(args: argparse.Namespace) -> Weighting:
    if args.lookahead:
        return Told(objective=LookAhead(sketch=8))
    return GradNormWeighting(normalize=True) if args.gradnorm else HypernetworkWeighting()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--actor", "--out", "--strategy"):
        parser.add_argument(name, required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--micro", type=int)
    parser.add_argument("--late", type=int)
    parser.add_argument("--lora_rank", type=int, default=4)
    parser.add_argument("--critic", default="separate")
    for flag in ("--supervised", "--gradnorm", "--lookahead", "--lora", "--validate", "--report", "--evaluate"):
        parser.add_argument(flag, action="store_true")
    for path in ("--checkpoints", "--resume", "--export"):
        parser.add_argument(path)
    return parser.parse_args()


def evaluate(trainer: L.Trainer, module: CodeModule) -> None:
    """Test on a single row, so that one of two ranks has none; predict five, so that the last batch is uneven."""
    trainer.test(module, datamodule=TextData(limit_test=1))
    trainer.predict(module, datamodule=TextData(limit_test=5, eval_batch_size=2))


def note_an_open_process_group(path: Path) -> None:
    """Registered first, so run last: what is open then is torn down together with the interpreter."""
    if dist.is_initialized():
        path.touch()


def main() -> None:
    args = options()
    atexit.register(note_an_open_process_group, Path(f"{args.out}.open"))
    torch.set_num_threads(1)
    module, record, root = build(args), Record(), Path(args.out).parent
    components = [ScoreOf("share", share_of_a), ScoreOf("long", length_if_judged)]
    callbacks: list[L.Callback] = [record]
    if args.late is not None:
        callbacks.append(LateSuccess(args.late))
    if args.report:
        callbacks.append(BeforeAfterReport(str(root / "summary.json")))
    if args.checkpoints:
        callbacks.append(
            ModelCheckpoint(args.checkpoints, filename="{step}", every_n_train_steps=1, save_last=True, save_top_k=-1)
        )
    trainer = tiny_trainer(
        root,
        components,
        args.steps,
        callbacks=callbacks,
        enable_checkpointing=bool(args.checkpoints),
        plugins=[AtomicCheckpointIO()],
        devices=args.devices,
        strategy=strategy_of(args.strategy, args.devices),
        **({"limit_val_batches": 1, "val_check_interval": 1, "num_sanity_val_steps": 0} if args.validate else {}),
    )
    data = (UnevenData if args.supervised else TextData)(batch_size=8, size=64, limit_test=1)
    trainer.fit(module, datamodule=data, ckpt_path=args.resume)
    global_step = trainer.global_step
    weights = {n: whole(p).detach().cpu().clone() for n, p in module.named_parameters() if p.requires_grad}
    if args.export:
        module.export(args.export)
    if args.evaluate:
        evaluate(trainer, module)
    result = {
        "weights": weights,
        "metrics": record.metrics,
        "lengths": record.lengths,
        "kl_coef": module.kl_controller.coef if isinstance(module, PPOModule) else None,
        "sharded": sum(is_sharded(p) for p in module.parameters()),
        "global_step": global_step,
    }
    torch.save(result, f"{args.out}.rank{trainer.global_rank}")


if __name__ == "__main__":
    main()
