"""A progress display that says which phase the run is in."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.live import Live
from rich.text import Text

from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.types import Rollout

_STAGES = {"validate": "validation", "test": "test", "predict": "prediction", "sanity": "sanity check"}


class PhaseProgressBar(ProgressBar, RolloutCallback):
    """Shows rollout k of N, the phase, mean reward, success, KL, tokens/s and the time left, on one line.

    On a terminal the line is rewritten in place, at every phase; elsewhere (a log file, CI) a whole line is printed at
    most every ``interval`` seconds, and after the first and last step. Figures are those of rank 0's own samples; no
    thread is started.

    Args:
        interval: Seconds between two lines where the output is not a terminal; 0 prints every step.
    """

    def __init__(self, interval: float = 10.0) -> None:
        super().__init__()
        if interval < 0:
            raise ValueError(f"PhaseProgressBar: interval must not be negative, got {interval}")
        self.interval = interval
        self._enabled = True
        self._live: Live | None = None
        self._phase = ""
        self._phase_start = 0.0
        self._rollout_seconds = 0.0
        self._started = (0.0, 0)
        self._last_line = -math.inf
        self._figures: dict[str, float] = {}

    # --- what Lightning's progress bars must offer -----------------------------------------------------------------

    def enable(self) -> None:
        """Show (rank 0)."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing (other ranks)."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        if self._live is not None:
            self._live.console.print(*args)
        elif self._enabled:
            print(*args, **kwargs)

    # --- training ----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = (time.monotonic(), trainer.fit_loop.total_batch_idx + 1)
        self._figures, self._last_line = {}, -math.inf
        self._open()
        self._show(trainer, "start")

    def on_phase_start(self, trainer: L.Trainer, pl_module: L.LightningModule, phase: str) -> None:
        """Show the new phase; time rollouts."""
        now = time.monotonic()
        if self._phase == "rollout" and phase != "rollout":
            self._rollout_seconds = now - self._phase_start
        self._phase, self._phase_start = phase, now
        if self._live is not None:
            self._show(trainer, phase)

    def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        """Take the figures of the rollout."""
        self._figures = rollout_figures(rollout)
        if self._rollout_seconds > 0:
            self._figures["tok/s"] = float(rollout.response_mask.sum()) / self._rollout_seconds

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step, where the time has come."""
        step = trainer.fit_loop.total_batch_idx + 1
        due = time.monotonic() - self._last_line >= self.interval
        if self._live is not None or due or step in (self._started[1] + 1, total_steps(trainer)):
            self._show(trainer, self._phase or "training")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the last line standing."""
        if self._live is not None:
            self._show(trainer, "done")
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        self._close()

    # --- evaluation --------------------------------------------------------------------------------------------------

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Show the batch."""
        self._evaluated(trainer, "sanity" if trainer.sanity_checking else "validate", *args)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Show the batch."""
        self._evaluated(trainer, "test", *args)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Show the batch."""
        self._evaluated(trainer, "predict", *args)

    def _evaluated(
        self, trainer: L.Trainer, stage: str, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self._enabled:
            return
        totals = {
            "sanity": trainer.num_sanity_val_batches,
            "validate": trainer.num_val_batches,
            "test": trainer.num_test_batches,
            "predict": trainer.num_predict_batches,
        }[stage]
        total = totals[dataloader_idx] if isinstance(totals, list) else totals
        text = f"{_STAGES[stage]} {batch_idx + 1}/{_number(total)}"
        if self._live is not None:
            self._show(trainer, text)
        elif batch_idx + 1 == total or time.monotonic() - self._last_line >= self.interval:
            self._emit(text)

    # --- display -----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._enabled and sys.stdout.isatty() and self._live is None:
            self._live = Live(console=Console(), auto_refresh=False, transient=False)
            self._live.start()

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, trainer: L.Trainer, phase: str) -> None:
        if self._enabled:
            self._emit(self._line(trainer, phase))

    def _emit(self, line: str) -> None:
        self._last_line = time.monotonic()
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            print(line, flush=True)

    def _line(self, trainer: L.Trainer, phase: str) -> str:
        # The step in progress: global_step turns over in the middle of it.
        step, total = trainer.fit_loop.total_batch_idx + 1, total_steps(trainer)
        figures = self._figures or _logged(trainer)
        parts = [f"{'rollout' if self._phase else 'step'} {step}/{_number(total)}"]
        parts += [phase, *(f"{name} {value:.4g}" for name, value in figures.items())]
        begun, first = self._started
        if step > first and math.isfinite(total) and total > step:
            pace = (time.monotonic() - begun) / (step - first)
            parts.append(f"left {_clock(pace * (total - step))}")
        return " | ".join(parts)


def rollout_figures(rollout: Rollout) -> dict[str, float]:
    """Mean composite reward, success rate and KL to the reference (nats a sequence) of a rollout, where known."""
    figures: dict[str, float] = {}
    if rollout.weighed is not None and rollout.alpha is not None:
        figures["reward"] = float((rollout.alpha * rollout.weighed.nan_to_num(0.0)).sum(-1).mean())
    if rollout.outcome is not None and not rollout.outcome.isnan().all():
        figures["success"] = float(rollout.outcome.nanmean())
    if rollout.logprobs is not None and rollout.ref_logprobs is not None:
        difference = (rollout.logprobs - rollout.ref_logprobs) * rollout.response_mask
        figures["KL"] = float(difference.sum(-1).mean())
    return figures


def total_steps(trainer: L.Trainer) -> float:
    """Steps the run will have when it is over; infinite where nothing limits it."""
    limits = [math.inf]
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        limits.append(trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs * trainer.num_training_batches)
    return min(limits)


def _logged(trainer: L.Trainer) -> dict[str, float]:
    """What the module logged with ``prog_bar=True``."""
    metrics = trainer.progress_bar_metrics
    return {name: float(v) for name, v in metrics.items() if isinstance(v, (int, float, torch.Tensor))}


def _number(total: float) -> str:
    return str(int(total)) if math.isfinite(total) else "?"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
