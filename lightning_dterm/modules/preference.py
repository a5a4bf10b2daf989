"""Training a reward model from preference pairs, for the preference component (DTERM eq. 12)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW, Optimizer
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from lightning_dterm.callbacks.stop import stopped_by_signal
from lightning_dterm.data.preferences import PreferencePair
from lightning_dterm.modules.config import check_at_least, check_positive
from lightning_dterm.modules.distributed import Means, all_gather, all_sum, leave_process_group_at_exit
from lightning_dterm.modules.loading import save_tokenizer
from lightning_dterm.modules.sharding import data_parallel_mesh
from lightning_dterm.reward_model import CALIBRATION, bradley_terry_loss, encode, load_reward_model, logits_of

_MOMENTS_DECAY = 0.95  # of the running mean and square of logits: about the last 20 steps


class PreferenceModule(L.LightningModule):
    """Bradley-Terry training of a sequence classifier on pairs; its data is :class:`PreferenceDataModule`.

    Logs ``train/loss`` (nats a pair), ``train/accuracy`` (share of pairs whose chosen completion scores higher, a tie
    counting half), ``train/margin`` (mean difference of logits) and the same under ``val/`` and ``test/``. The exported
    folder is a transformers model; its ``config.json`` also holds the mean and standard deviation of the logits of the
    last 20 steps or so, by which :class:`~lightning_dterm.rewards.PreferenceReward` maps logits to [0, 1].

    Args:
        path: Folder, hub id or ``package:NAME`` of the model to begin with: an encoder, a decoder (the actor's own base
            is the usual choice), or a reward model to go on training.
        lr: Peak learning rate of AdamW.
        weight_decay: Of matrices; vectors (norms, biases) get none.
        warmup_steps: Steps over which the learning rate rises linearly.
        schedule: ``constant``, or ``linear`` down to zero at ``trainer.max_steps``.
        max_length: Tokens of prompt and completion together; longer ones are cut and counted in ``train/cut``.
        export_dir: Folder to which the model is written at the end of ``fit``.

    Raises:
        ValueError: If a setting is out of its range; the message names it.
        ActorLoadError: If the tokenizer or the model cannot be loaded.
    """

    def __init__(
        self,
        path: str = "package:quickstart",
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 20,
        schedule: str = "constant",
        max_length: int = 1024,
        export_dir: str | None = None,
    ) -> None:
        super().__init__()
        if schedule not in ("constant", "linear"):
            raise ValueError(f"schedule must be constant or linear, got {schedule!r}")
        check_positive({"lr": lr})
        check_at_least(0, {"weight_decay": weight_decay, "warmup_steps": warmup_steps})
        check_at_least(2, {"max_length": max_length})
        self.path, self.lr, self.weight_decay, self.warmup_steps = path, lr, weight_decay, warmup_steps
        self.schedule, self.max_length, self.export_dir = schedule, max_length, export_dir
        self.model: PreTrainedModel | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self._evaluated = Means()
        self.moments: Tensor  # running mean, mean square and their weight, of all ranks' logits
        self.register_buffer("moments", torch.zeros(3, dtype=torch.float64))
        self.cut: Tensor  # completions of training that were cut, of all ranks
        self.register_buffer("cut", torch.zeros((), dtype=torch.long))

    def configure_model(self) -> None:
        """Load the model once.

        Raises:
            ActorLoadError: If it cannot be loaded.
            ValueError: Under FSDP2: reward models are trained whole on every process.
        """
        if self.model is not None:
            return
        if data_parallel_mesh(self) is not None:
            raise ValueError("PreferenceModule is not sharded: use strategy ddp or a single process")
        with torch.random.fork_rng():
            torch.manual_seed(0)  # a new head is the same on every rank and in every run
            self.model, self.tokenizer = load_reward_model(self.path)
        self.model.train()

    def setup(self, stage: str) -> None:
        """Arrange for a clean end of the process group; refuse a schedule without an end.

        Raises:
            ValueError: If the schedule needs ``trainer.max_steps`` and that is not set.
        """
        leave_process_group_at_exit()
        if stage == "fit" and self.schedule == "linear" and self.trainer.max_steps <= 0:
            raise ValueError("schedule linear needs trainer.max_steps, which is not set")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, decaying matrices only, and the learning rate's schedule per step."""
        assert self.model is not None
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer: Optimizer = AdamW(groups, lr=self.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _lr_factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        return max(0.0, 1 - (step - self.warmup_steps) / max(1, self.trainer.max_steps - self.warmup_steps))

    def encode(self, pairs: Sequence[PreferencePair]) -> BatchEncoding:
        """The 2 B sequences of B pairs, ids and mask ``[2 B, L]``: the chosen first."""
        assert self.tokenizer is not None
        prompts = [pair.prompt for pair in pairs] * 2
        completions = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        return encode(self.tokenizer, prompts, completions, self.max_length)

    def forward(self, encoded: BatchEncoding) -> tuple[Tensor, Tensor]:
        """Logits ``[B]`` of the chosen and ``[B]`` of the rejected completions."""
        assert self.model is not None
        chosen, rejected = logits_of(self.model, encoded).chunk(2)
        return chosen, rejected

    def training_step(self, batch: list[PreferencePair], batch_idx: int) -> Tensor:
        """Mean loss of a batch.

        Raises:
            FloatingPointError: If it is not finite.
        """
        encoded = self.encode(batch)
        self.cut += all_sum(self.cut.new_tensor(sum(bool(one.overflowing) for one in encoded.encodings or ())))
        chosen, rejected = self(encoded)
        loss = bradley_terry_loss(chosen, rejected).mean()
        if not torch.isfinite(all_sum(loss.detach())):
            raise FloatingPointError(f"step {self.global_step}: the loss is not finite: lower lr")
        self._observe(torch.cat([chosen, rejected]).detach().double())
        means = Means()
        self._add(means, chosen, rejected)
        self._log("train", means)
        self.log("train/cut", self.cut.float())
        return loss

    def _observe(self, logits: Tensor) -> None:
        sums = all_sum(torch.stack([logits.sum(), logits.square().sum(), logits.new_tensor(float(len(logits)))]))
        fresh = sums / sums[2]
        self.moments.mul_(_MOMENTS_DECAY).add_((1 - _MOMENTS_DECAY) * fresh)

    def _add(self, means: Means, chosen: Tensor, rejected: Tensor) -> None:
        difference = (chosen - rejected).detach()
        means.add("loss", bradley_terry_loss(chosen, rejected).detach().sum(), len(difference))
        means.add("accuracy", (0.5 * (1 + torch.sign(difference))).sum(), len(difference))
        means.add("margin", difference.sum(), len(difference))

    def _log(self, stage: str, means: Means) -> None:
        """Log means over the pairs of all ranks; Lightning's own would be off where ranks have unequal numbers."""
        figures = {f"{stage}/{name}": value for name, value in means.reduce().items()}
        self.log_dict(figures, prog_bar=stage == "train", sync_dist=stage != "train")

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._evaluated = Means()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: list[PreferencePair], batch_idx: int) -> None:
        """Loss, accuracy and margin on pairs that are not trained on."""
        if batch:
            self._add(self._evaluated, *self(self.encode(batch)))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log them."""
        self._log("val", self._evaluated)

    def on_test_epoch_end(self) -> None:
        """Log them."""
        self._log("test", self._evaluated)

    def on_fit_end(self) -> None:
        """Export where a folder was named; not where a signal stopped the run."""
        unfinished = stopped_by_signal(self.trainer) or 0 < self.trainer.max_steps > self.global_step
        if self.export_dir is not None and not unfinished:
            self.export(self.export_dir)
            if self.trainer.is_global_zero:
                print(f"reward model written to {self.export_dir}")

    def export(self, path: str | Path, merge: bool = True) -> Path:
        """Write model, tokenizer and calibration with ``save_pretrained``; all processes must call.

        Args:
            path: Folder to write.
            merge: Of the interface of actors; there is no adapter here, and it changes nothing.
        """
        assert self.model is not None
        assert self.tokenizer is not None
        folder = Path(path)
        if self.trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            mean, square, weight = self.moments.tolist()
            if weight > 0:
                deviation = max(square / weight - (mean / weight) ** 2, 1e-12) ** 0.5
                setattr(self.model.config, CALIBRATION, [mean / weight, deviation])
            self.model.save_pretrained(folder)
            save_tokenizer(self.tokenizer, self.tokenizer.pad_token, folder)
        all_gather(None)  # the folder is complete when any rank returns
        return folder
