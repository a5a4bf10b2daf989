"""Lightning's Trainer with defaults that suit rollouts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy, Strategy

from lightning_dterm.callbacks.progress import PhaseProgressBar
from lightning_dterm.callbacks.rewards import RewardComputation
from lightning_dterm.callbacks.stop import GracefulStop
from lightning_dterm.checkpointing import AtomicCheckpointIO

_FSDP1 = (
    "strategy fsdp (FSDP1) cannot train this: under manual optimization training_step runs inside the forward of its "
    "root module, so the actor cannot be called there; use FSDP2 instead: --config configs/strategy/fsdp2.yaml"
)

# Lightning would go on in bf16-mixed after a warning, while on a GPU training refuses 16-mixed.
_NO_FP16 = "trainer.precision 16-mixed is not supported: use bf16-mixed or 32-true"

_PARTIAL_STRATEGY = (
    "trainer.strategy cannot be changed in part: give it whole, with its full class_path and all init_args, either in "
    'a copy of the overlay (configs/strategy/fsdp2.yaml) or as --trainer.strategy \'{"class_path": '
    '"lightning.pytorch.strategies.ModelParallelStrategy", "init_args": {"data_parallel_size": 4, '
    '"tensor_parallel_size": 1, "save_distributed_checkpoint": false}}\''
)


class DTermTrainer(L.Trainer):
    """Lightning's Trainer with defaults that suit rollouts.

    A progress bar that names the phase, :class:`GracefulStop`, atomic checkpoint files, TensorBoard logs, and data that
    shards itself are there unless others are given; ``export`` is a further entry point. Of several
    :class:`RewardComputation` callbacks the last one acts, so that overlays can append theirs.

    Args:
        use_distributed_sampler: Off, because the package's DataModules shard by themselves.
        default_root_dir: Where logs and checkpoints go if the logger does not say.
        max_epochs: Without it, ``max_steps`` and ``max_time``, training goes on until it is stopped (Ctrl-C).
        cpu_threads: torch threads a process on CPU; by default OMP_NUM_THREADS, else 1: more slow small models down.
    """

    def __init__(
        self,
        *,
        use_distributed_sampler: bool = False,
        default_root_dir: str = "runs",
        max_epochs: int | None = None,
        cpu_threads: int | None = None,
        **kwargs: Any,
    ) -> None:
        strategy = kwargs.get("strategy", "auto")
        if isinstance(strategy, FSDPStrategy) or (isinstance(strategy, str) and strategy.startswith("fsdp")):
            raise MisconfigurationException(_FSDP1)
        if not isinstance(strategy, (str, Strategy)):  # the parser lets a single argument of a class through
            raise MisconfigurationException(_PARTIAL_STRATEGY)
        if cpu_threads is not None and cpu_threads < 1:
            raise ValueError(f"trainer.cpu_threads must be at least 1, got {cpu_threads}")
        fast = bool(kwargs.get("barebones"))
        if not fast:
            kwargs["callbacks"] = _with_defaults(
                kwargs.get("callbacks"), kwargs.get("enable_progress_bar") is not False
            )
            kwargs["plugins"] = _with_atomic_io(kwargs.get("plugins"), strategy)
            if kwargs.get("logger") in (None, True):
                kwargs["logger"] = TensorBoardLogger(save_dir=default_root_dir, name=None)
        super().__init__(
            use_distributed_sampler=use_distributed_sampler,
            default_root_dir=default_root_dir,
            max_epochs=-1 if max_epochs is None else max_epochs,  # Lightning's 1000 come with a warning
            **kwargs,
        )
        if kwargs.get("precision") in ("16-mixed", "16", 16) and self.precision == "bf16-mixed":
            raise MisconfigurationException(_NO_FP16)
        if self.strategy.root_device.type == "cpu":
            torch.set_num_threads(cpu_threads or int(os.environ.get("OMP_NUM_THREADS") or 1))

    def export(
        self,
        model: L.LightningModule,
        output: str,
        ckpt_path: str,
        merge: bool = True,
        weights_only: bool | None = True,
        datamodule: L.LightningDataModule | None = None,
    ) -> None:
        """Write the trained actor of a checkpoint for plain transformers.

        Args:
            model: A module with ``export(path, merge=...)``.
            output: Folder to write with ``save_pretrained``.
            ckpt_path: Checkpoint of a training run.
            merge: Fold LoRA weights into the base model; with false the adapter alone is written, for peft.
            weights_only: Load the checkpoint as data; false lets it run code, so only for files of one's own.
            datamodule: Not needed.

        Raises:
            MisconfigurationException: If the checkpoint is a folder of shards or the model cannot export.
            ResumeError: If the checkpoint was not written by this module, or for another actor or other parts.
        """
        if Path(ckpt_path).is_dir():
            raise MisconfigurationException(
                f"{ckpt_path} is a folder of shards, which cannot be exported: train with "
                "save_distributed_checkpoint: false, as configs/strategy/fsdp2.yaml does"
            )
        export = getattr(model, "export", None)
        if export is None:
            raise MisconfigurationException(f"{type(model).__name__} has no method export(path, merge=...)")
        checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=weights_only is not False, mmap=True)
        model.trainer = self
        self.strategy.connect(model)
        model.configure_model()
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
        export(output, merge=merge)
        print(f"exported: {output}")


def _with_defaults(callbacks: Any, progress: bool) -> list[L.Callback]:
    given = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks] if callbacks is not None else []
    given = _with_last_rewards(given)
    if progress and not any(isinstance(c, ProgressBar) for c in given):
        given.append(PhaseProgressBar())
    if not any(isinstance(c, GracefulStop) for c in given):
        given.append(GracefulStop())
    return given


def _with_last_rewards(callbacks: list[L.Callback]) -> list[L.Callback]:
    """Only the last :class:`RewardComputation`, which an overlay appended, in the place of the first.

    The others leave the list before anything of theirs is started, so that a checkpoint has one reward callback's
    state under its usual key, whether the rewards came from an overlay or not.
    """
    rewards = [callback for callback in callbacks if isinstance(callback, RewardComputation)]
    if len(rewards) < 2:
        return callbacks
    kept = [callback for callback in callbacks if callback not in rewards[1:]]
    return [rewards[-1] if callback is rewards[0] else callback for callback in kept]


def _with_atomic_io(plugins: Any, strategy: Any) -> list[Any]:
    given = list(plugins) if isinstance(plugins, Sequence) and not isinstance(plugins, str) else [plugins]
    given = [plugin for plugin in given if plugin is not None]
    own = isinstance(strategy, Strategy) and strategy._checkpoint_io is not None
    if not own and not any(isinstance(plugin, CheckpointIO) for plugin in given):
        given.append(AtomicCheckpointIO())
    return given
