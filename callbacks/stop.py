"""Ctrl-C that loses nothing: finish the rollout, save, exit."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info


class GracefulStop(L.Callback):
    """Stops training on SIGINT or SIGTERM at the end of a step; whatever ends a run, its last step is saved.

    The first signal lets the rollout in progress finish, writes ``last.ckpt`` (into the folder of the first
    ``ModelCheckpoint``, else ``<log_dir>/checkpoints``) at the point where a ``ModelCheckpoint`` would have, so that
    resuming is exact, and ends ``fit`` normally: exit status 0. ``min_steps`` and ``min_epochs`` do not hold it up;
    validation runs only if it was due at this very step. A second SIGINT raises ``KeyboardInterrupt`` at once. With
    several processes it is enough that one of them gets the signal: the decision is agreed on at every step.
    Lightning's own SIGTERM handler, which raises ``SIGTERMException`` without saving, is replaced while training runs.

    A run that ends by itself has its last step in the ``last.ckpt`` of every ``ModelCheckpoint`` with ``save_last``,
    also where that step is none of its interval's; it is written before other callbacks wind up (by an evaluation, for
    instance).

    Attributes:
        stopped: True once training was ended by a signal; ``stopped_by_signal(trainer)`` asks for it.
        checkpoint: The file written then.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.checkpoint: str | None = None
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Move behind the checkpoint callbacks: a stop must find what they saved at the same step."""
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals (Lightning has installed its own just before)."""
        self.stopped, self.checkpoint, self._received = False, None, None
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree across processes whether to stop; if so save and end the loop. Save also where the run ends here."""
        if not trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            if _ends(trainer):
                _save_end(trainer)
            return
        epoch_loop = trainer.fit_loop.epoch_loop
        # An unfinished epoch must not be recorded as finished: save here, not in a later hook.
        self.checkpoint = _save(trainer)
        validation_due = epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
        epoch_loop._skip_next_val = not validation_due
        epoch_loop.min_steps = None
        trainer.fit_loop.min_epochs = 0
        trainer.should_stop = True
        self.stopped = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Early stopping, which the validation decides, ends a run as well."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not self.stopped and _stops_early(trainer):
            _save_end(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the last step nothing is left to stop: give the signals back before other callbacks wind up."""
        steps, epochs = trainer.max_steps, trainer.max_epochs
        done = 0 <= steps <= trainer.global_step
        done = done or (epochs is not None and 0 <= epochs <= trainer.current_epoch + 1)
        if trainer.should_stop or done:
            self._restore()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say how to go on."""
        self._restore()
        if self.stopped:
            command = resume_command(self.checkpoint)
            rank_zero_info(f"\nStopped after step {trainer.global_step}. Resume with:\n  {command}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back; say what an interrupt has left."""
        self._restore()
        if isinstance(exception, KeyboardInterrupt):
            rank_zero_info(f"\nInterrupted after step {trainer.global_step}. {_what_is_left(trainer)}")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._received = number
        # os.write: print is not safe in a signal handler that may have interrupted a print.
        os.write(2, b"\nStopping after this rollout, with a checkpoint; Ctrl-C again stops at once.\n")


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stopped_by_signal(trainer: L.Trainer) -> bool:
    """True if a :class:`GracefulStop` of this trainer ended training before its time."""
    return any(isinstance(c, GracefulStop) and c.stopped for c in trainer.callbacks)  # type: ignore[attr-defined]


def _keepers(trainer: L.Trainer) -> list[ModelCheckpoint]:
    return [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]


def _stops_early(trainer: L.Trainer) -> bool:
    return bool(trainer.should_stop and trainer.fit_loop._can_stop_early)


def _ends(trainer: L.Trainer) -> bool:
    """Whether the step just done is the last one; the same on all ranks."""
    steps, epochs = trainer.max_steps, trainer.max_epochs
    last_epoch = epochs is not None and 0 <= epochs <= trainer.current_epoch + 1
    return 0 <= steps <= trainer.global_step or (last_epoch and trainer.is_last_batch) or _stops_early(trainer)


def _save_end(trainer: L.Trainer) -> None:
    """Bring the last checkpoint up to this step wherever one is kept; all ranks call it.

    Lightning does so at the end of training only where nothing was saved before, and then the loop's counters say that
    the epoch is finished, which need not be true.
    """
    for keeper in _keepers(trainer):
        if not keeper.save_last or keeper._should_skip_saving_checkpoint(trainer):
            continue
        saved = keeper._last_global_step_saved
        if keeper.save_last == "link":  # to the checkpoint before: a file of its own takes its place
            keeper._last_checkpoint_saved = ""
            if trainer.is_global_zero and Path(keeper.last_model_path).is_symlink():
                Path(keeper.last_model_path).unlink()
            trainer.strategy.barrier()
        keeper._save_last_checkpoint(trainer, keeper._monitor_candidates(trainer))
        validates = trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
        if trainer.is_last_batch or validates:
            keeper._last_global_step_saved = saved  # what it keeps after a validation or a whole epoch is still to come


def _what_is_left(trainer: L.Trainer) -> str:
    paths = [keeper.last_model_path or keeper._last_checkpoint_saved for keeper in _keepers(trainer)]
    found = next((path for path in paths if path), None)
    if found is None:
        return "No checkpoint has been written: there is nothing to resume from."
    return f"Resume with:\n  {resume_command(found)}"


def _save(trainer: L.Trainer) -> str:
    """Write the checkpoint to resume from, unless one of this very step is there; all ranks call it."""
    keepers = _keepers(trainer)
    for keeper in keepers:
        if keeper.save_last and keeper.last_model_path and keeper._last_global_step_saved == trainer.global_step:
            return keeper.last_model_path
    path = _target(trainer, keepers[0] if keepers else None)
    if keepers and keepers[0].save_last:
        keepers[0].last_model_path = path
    trainer.save_checkpoint(path)
    for keeper in keepers:
        # They would write once more at the end of the epoch, when the loop's counters say that it is finished.
        keeper._last_global_step_saved = trainer.global_step
        keeper._last_checkpoint_saved = path
    return path


def _target(trainer: L.Trainer, keeper: ModelCheckpoint | None) -> str:
    """``last.ckpt`` where checkpoints go; ``last-v1.ckpt`` and so on if another run's stands there."""
    if keeper is not None and keeper.save_last and keeper.last_model_path:
        return str(trainer.strategy.broadcast(keeper.last_model_path))
    folder = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
    if keeper is not None and keeper.dirpath:
        folder = Path(keeper.dirpath)
    path, version = folder / "last.ckpt", 0
    while path.exists():
        version += 1
        path = folder / f"last-v{version}.ckpt"
    return str(trainer.strategy.broadcast(str(path)))


def resume_command(checkpoint: str | None) -> str:
    """The command line of this process with ``--ckpt_path checkpoint``; the call to make where there is none."""
    if "fit" not in sys.argv[1:]:
        return f"trainer.fit(..., ckpt_path={str(checkpoint)!r})"
    arguments: list[str] = []
    skip = False
    for argument in sys.argv[1:]:
        if skip or argument == "--ckpt_path":
            skip = not skip
        elif not argument.startswith("--ckpt_path="):
            arguments.append(argument)
    program = sys.argv[0]
    name = ["python", program] if program.endswith(".py") else [Path(program).name]
    return shlex.join([*name, *arguments, "--ckpt_path", str(checkpoint)])
