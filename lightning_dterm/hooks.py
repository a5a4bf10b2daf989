"""Custom callback hooks of one PPO iteration, dispatched over the trainer's callbacks in their YAML order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_dterm.modules.distributed import together

if TYPE_CHECKING:
    from lightning_dterm.types import Rollout

HookName = Literal["on_generation_end", "on_rollout_end", "on_rewards_end", "on_update_end"]


class RolloutCallback(L.Callback):
    """A Lightning callback that also takes part in the PPO iteration. Override what you need.

    The hooks run inside ``training_step``, where no rollout is in flight at a checkpoint. Figures of one's own are put
    into ``rollout.metrics`` here (a number a name; what is logged is the mean over processes), or, in
    ``on_train_batch_end`` and later, given to ``pl_module.log_step({name: value})``, the same value on every process:
    both land with the package's own at the rollout's number k, counted from 1 as checkpoints count. Lightning's
    ``pl_module.log`` works as well, but counts from 0: in TensorBoard its points lie at k - 1.
    """

    def on_phase_start(self, trainer: L.Trainer, pl_module: L.LightningModule, phase: str) -> None:
        """A phase begins: ``rollout``, ``reward``, ``weighting``, ``attribution``, ``advantage``, ``update``."""

    def on_generation_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        """Completions are sampled but not yet scored by the models (``logprobs``, ``ref_logprobs`` and ``values`` are
        None): start what may go on beside these forward passes, outside of this thread, and collect it in
        :meth:`on_rollout_end`. No collectives here.
        """

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        """Completions are sampled; reward callbacks fill ``scores``, ``evidence`` and ``outcome`` here."""

    def on_rewards_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        """Scores and ``alpha`` are known; attribution callbacks fill ``token_rewards`` here."""

    def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        """The policy is updated; everything about the rollout is known, ``advantages`` and ``metrics`` included."""


def refuse_unheard(callbacks: Sequence[L.Callback]) -> None:
    """Refuse callbacks with a hook of rollouts that nothing would ever call.

    Raises:
        MisconfigurationException: one has such a hook and is no :class:`RolloutCallback`.
    """
    for callback in callbacks:
        unheard = [hook for hook in ("on_phase_start", *get_args(HookName)) if hasattr(callback, hook)]
        if unheard and not isinstance(callback, RolloutCallback):
            raise MisconfigurationException(
                f"{type(callback).__name__} has {', '.join(unheard)}, which is called on a "
                "lightning_dterm.hooks.RolloutCallback only: derive it from that"
            )


def dispatch(trainer: L.Trainer, pl_module: L.LightningModule, hook: HookName, rollout: Rollout) -> None:
    """Call ``hook`` on every :class:`RolloutCallback` that has it, inside the profiler's context.

    Where it fails on one rank, all ranks stop: each callback is followed by a small collective.
    """
    nothing = getattr(RolloutCallback, hook)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RolloutCallback):
            method = getattr(callback, hook)
            if getattr(method, "__func__", None) is nothing:
                continue
            with trainer.profiler.profile(f"[RolloutCallback]{callback.state_key}.{hook}"):  # type: ignore[attr-defined]
                together(method, trainer, pl_module, rollout)


def announce_phase(trainer: L.Trainer, pl_module: L.LightningModule, phase: str) -> None:
    """Tell every :class:`RolloutCallback` which phase begins."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RolloutCallback):
            callback.on_phase_start(trainer, pl_module, phase)
