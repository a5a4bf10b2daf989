"""Supervised fine-tuning: the warm start from which RL begins (as in PPOCoder and CodeRL)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from lightning_dterm.callbacks.stop import stopped_by_signal
from lightning_dterm.modules.agreement import choose_route
from lightning_dterm.modules.base import CodeModule
from lightning_dterm.modules.checkpoints import check_actor, check_before_loading, number_by_module
from lightning_dterm.modules.config import GenerationConfig, check_at_least, check_positive
from lightning_dterm.modules.distributed import all_gather, all_sum, world_size
from lightning_dterm.modules.export import export_model
from lightning_dterm.modules.forward import BATCHED, JoinedBatch
from lightning_dterm.modules.loading import ActorConfig, fingerprint, load_causal_lm, not_recomputing, recompute
from lightning_dterm.modules.sharding import (
    adam_from_zero,
    as_forward,
    data_parallel_mesh,
    has_shards,
    shard,
    unsharded,
    whole,
)
from lightning_dterm.rl.generation import Responses, generate
from lightning_dterm.rl.logprobs import token_logprobs
from lightning_dterm.types import CodeTask

_KEY = "lightning_dterm_supervised"


class SupervisedModule(CodeModule):
    """Next-token training on the tasks' references, the loss on completion tokens and their end only.

    Args:
        actor: Model to train (all its weights).
        generation: Sampling settings of validation, test and prediction.
        lr: Peak learning rate of AdamW.
        weight_decay: Of matrices; vectors (norms, biases) get none.
        warmup_steps: Steps over which the learning rate rises linearly.
        schedule: ``constant`` or ``cosine`` down to a tenth at ``trainer.max_steps``.
        max_grad_norm: Gradient norm clip.
        micro_batch_size: Rows a forward and backward pass, sorted by length; None for the whole batch at once. Changes
            memory and speed, not the result.
        max_target_length: Longer references are cut, and counted in ``cut_references``.
        prompt_loss_weight: Weight of the prompt tokens' loss; 0 trains on completions alone.
        seed: For evaluation sampling; None follows ``seed_everything``.
        export_dir: Folder to which the model is written with ``save_pretrained`` at the end of ``fit``.

    Raises:
        ValueError: If a setting is out of its range; the message names it.
    """

    def __init__(
        self,
        actor: ActorConfig,
        generation: GenerationConfig | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        schedule: str = "cosine",
        max_grad_norm: float = 1.0,
        micro_batch_size: int | None = None,
        max_target_length: int = 512,
        prompt_loss_weight: float = 0.0,
        seed: int | None = None,
        export_dir: str | None = None,
    ) -> None:
        super().__init__(actor.path, generation or GenerationConfig(), seed)
        if schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be constant or cosine, got {schedule!r}")
        check_positive({"lr": lr, "max_grad_norm": max_grad_norm})
        at_least_0 = {"weight_decay": weight_decay, "warmup_steps": warmup_steps}
        check_at_least(0, {**at_least_0, "prompt_loss_weight": prompt_loss_weight})
        check_at_least(1, {"max_target_length": max_target_length})
        if micro_batch_size is not None:
            check_at_least(1, {"micro_batch_size": micro_batch_size})
        self.actor_config = actor
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.micro_batch_size = micro_batch_size
        self.max_target_length = max_target_length
        self.prompt_loss_weight = prompt_loss_weight
        self.export_dir = export_dir
        self.cut_references = 0
        self.automatic_optimization = False
        self.model: PreTrainedModel | None = None
        self.fingerprint = ""  # of the model as it was loaded
        self.route = BATCHED

    @property
    def language_model(self) -> PreTrainedModel:
        """The model in training."""
        assert self.model is not None, "configure_model has not run"
        return self.model

    def configure_model(self) -> None:
        """Load the model once, and shard it under FSDP2.

        Raises:
            ActorLoadError: If the model cannot be loaded, or generates by another distribution than training scores.
            ValueError: If the strategy asks for tensor parallelism.
        """
        if self.model is not None:
            return
        mesh = data_parallel_mesh(self)
        self.model = load_causal_lm(self.actor_config)
        self.route = choose_route(self.model, sharded=mesh is not None)
        self.fingerprint = fingerprint(self.model)
        recompute(self.model, self.actor_config.gradient_checkpointing)
        if mesh is not None:
            shard(self.model, mesh)
            check_before_loading(self, self._check)

    def generate_responses(self, *args: Any, **kwargs: Any) -> Responses:
        """Sample from the model, gathered on this rank for as long as that takes."""
        return as_forward(self.language_model, self._generate, *args, **kwargs)

    def _generate(self, *args: Any, **kwargs: Any) -> Responses:
        with not_recomputing(self.language_model), unsharded(self.language_model, self.language_model):
            return generate(self.language_model, *args, decoding=self.route.decoding, **kwargs)

    def configure_optimizers(self) -> Optimizer:
        """AdamW, decaying matrices only."""
        matrices = [p for p in self.language_model.parameters() if p.requires_grad and p.ndim > 1]
        vectors = [p for p in self.language_model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        adam = AdamW(groups, lr=self.lr, betas=(0.9, 0.98))
        return adam_from_zero(adam) if has_shards(self.language_model) else adam

    def setup(self, stage: str) -> None:
        """Refuse, before the model is loaded, what would train wrongly without a word.

        Raises:
            ValueError: Under loss scaling, with weights in half precision, or if the schedule needs
                ``trainer.max_steps`` and that is not set.
        """
        super().setup(stage)
        if stage == "fit":
            self.refuse_wrong_training("schedule", self.schedule)

    def encode(self, tasks: list[CodeTask]) -> tuple[Tensor, Tensor, Tensor]:
        """``ids``, attention ``mask`` and loss ``weights`` of targets, each ``[B, L]``, right-padded.

        What was cut is counted over all ranks, which is a collective.

        Raises:
            ValueError: If a task of any rank has no reference, on all of them: its target would be the end-of-sequence
                token alone, which teaches to answer nothing.
        """
        cut = torch.zeros(3, dtype=torch.long, device=self.device)
        rows: list[tuple[list[int], list[float]]] = []
        for task in tasks:
            prompt = self.tokenizer(task.prompt, add_special_tokens=True)["input_ids"]
            target = self.tokenizer(task.reference, add_special_tokens=False)["input_ids"]
            target = [*target, int(self.tokenizer.eos_token_id)]
            cut[0] += len(prompt) > self.generation.max_prompt_length
            cut[1] += len(target) > self.max_target_length
            prompt = prompt[-self.generation.max_prompt_length :]
            target = target[: self.max_target_length]
            cut[2] += not task.reference.strip()
            rows.append((prompt + target, [self.prompt_loss_weight] * len(prompt) + [1.0] * len(target)))
        overlong_prompts, cut_references, without_reference = all_sum(cut).tolist()
        if without_reference:
            own = [task.task_id for task in tasks if not task.reference.strip()]
            names = [name for part in all_gather(own) for name in part]
            raise ValueError(
                f"{without_reference} of the batch's tasks have no reference to learn ({', '.join(names[:3])}"
                f"{', ...' if len(names) > 3 else ''}): give them one, or leave them out of the training split"
            )
        self.overlong_prompts += overlong_prompts
        self.cut_references += cut_references
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([r + [self._pad_id] * (width - len(r)) for r, _ in rows])
        weights = torch.tensor([w + [0.0] * (width - len(w)) for _, w in rows])
        mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r, _ in rows])
        return ids.to(self.device), mask.to(self.device), weights.to(self.device)

    def micro_batches(self, tasks: list[CodeTask]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Rows of like length together, each micro-batch padded to its own longest row."""
        ids, mask, weights = self.encode(tasks)
        lengths = mask.sum(-1)
        parts = []
        for rows in lengths.argsort(stable=True).split(self.micro_batch_size or len(tasks)):
            width = int(lengths[rows].max())
            parts.append((ids[rows, :width], mask[rows, :width], weights[rows, :width]))
        return parts

    def loss_sum(self, ids: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        """Summed weighted negative log-likelihood of one micro-batch ``[B, L]``, in nats."""
        return as_forward(self.language_model, self._loss_sum, ids, mask, weights)

    def _loss_sum(self, ids: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        picked, labels = weights[:, 1:] > 0, ids[:, 1:]
        batch = JoinedBatch(ids, mask, mask.cumsum(-1) - 1, 1, picked, labels.shape[1])
        source, head = self.route.predict(self.language_model, batch)
        logprobs, _ = token_logprobs(head, source, labels[picked])
        return -(logprobs * weights[:, 1:][picked]).sum()

    def training_step(self, batch: list[CodeTask], batch_idx: int) -> None:
        """One optimizer step.

        Raises:
            ValueError: If no token of the batch, over all ranks, carries a loss.
            FloatingPointError: If the gradient is not finite.
        """
        optimizer = self.optimizers()
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] = self.lr * self._lr_factor(self.global_step)
        parts = self.micro_batches(batch)
        total = all_sum(sum(weights[:, 1:].sum() for _, _, weights in parts))  # type: ignore[arg-type]
        if not total > 0:
            raise ValueError(
                f"step {self.global_step}: there is no token to learn in the whole batch (this process has tasks "
                f"{', '.join(task.task_id for task in batch[:3])}): give the tasks a reference and a prompt"
            )
        optimizer.zero_grad()  # type: ignore[union-attr]
        losses = []
        for part in parts:
            # a share of the mean over all ranks' tokens; data-parallel strategies average gradients over ranks
            losses.append(self.loss_sum(*part) / total)
            self.manual_backward(losses[-1] * world_size())
            losses[-1] = losses[-1].detach()
        loss = all_sum(torch.stack(losses).sum())
        norm = whole(torch.nn.utils.clip_grad_norm_(self.language_model.parameters(), self.max_grad_norm))
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {self.global_step}: the gradient is not finite (loss {float(loss)})")
        optimizer.step()  # type: ignore[union-attr]
        figures = {
            "train/loss": float(loss),
            "train/grad_norm": float(norm),
            "train/overlong_prompts": float(self.overlong_prompts),
            "train/cut_references": float(self.cut_references),
        }
        self.log_step(figures, prog_bar=("train/loss", "train/grad_norm"))

    def _lr_factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self.trainer.max_steps - self.warmup_steps)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))

    def on_fit_end(self) -> None:
        """Export where a folder was named, also when a resumed run had no step left; not where a signal stopped it."""
        unfinished = stopped_by_signal(self.trainer) or 0 < self.trainer.max_steps > self.global_step
        if self.export_dir is not None and not unfinished:
            self.export(Path(self.export_dir))
            if self.trainer.is_global_zero:
                print(f"model written to {self.export_dir}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the counts, which are of all ranks, and which actor training began from."""
        number_by_module(self, checkpoint)
        checkpoint[_KEY] = {
            "overlong_prompts": self.overlong_prompts,
            "cut_references": self.cut_references,
            "actor": self.fingerprint,
            "actor_path": self.actor_config.path,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting; from 0 where the checkpoint is of an older version, which kept no counts.

        Raises:
            ResumeError: If it was trained from another actor; older versions did not say from which.
        """
        self._check(checkpoint)
        counts = checkpoint.get(_KEY, {})
        self.overlong_prompts = int(counts.get("overlong_prompts", 0))
        self.cut_references = int(counts.get("cut_references", 0))

    def _check(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get(_KEY, {})
        check_actor(state.get("actor", self.fingerprint), state.get("actor_path"), self.fingerprint, self.actor_config)

    def _export_model(self, folder: Path, merge: bool) -> None:
        export_model(self.language_model, folder, merge, self.actor_config)
