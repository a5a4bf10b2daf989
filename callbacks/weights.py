"""What the weighting learns: weights and attention on fixed validation tasks, the rank loss there, and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lightning_dterm.callbacks.heatmap import in_turn
from lightning_dterm.callbacks.rewards import RewardComputation
from lightning_dterm.checkpointing import atomic_write
from lightning_dterm.dterm.canvas import Picture
from lightning_dterm.dterm.objective import Groups, concatenate, split_groups
from lightning_dterm.dterm.pictures import attention_picture, curves_picture, weights_picture
from lightning_dterm.dterm.pool import BETA, PoolFigures, judge_weights, mean_known
from lightning_dterm.hooks import RolloutCallback, announce_phase
from lightning_dterm.modules.distributed import all_gather, global_order, together
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.types import CodeTask, Rollout

_MAX_POINTS = 1000  # of a curve; beyond, every second one is dropped, so that checkpoints stay small
_ROWS = 64  # samples generated at a time


class WeightLogger(RolloutCallback):
    """Judges the weighting on a fixed pool after every rollout, and draws what it learned.

    Before the first rollout the untrained policy answers ``num_tasks`` validation tasks, ``samples_per_task`` times
    each, and the reward components score the answers. This pool of scores and success never changes, is part of the
    checkpoint, and nothing is trained on it. (Resumed from a checkpoint without one, the policy of that step answers.)
    After every rollout it gives

    * ``pool/rank_loss`` (mean over task types, and ``/<task type>``): the ranking loss at a fixed beta of 2, 0.693 for
      weights that tell nothing (the paper's Figure 4), and ``pool/pair_accuracy``;
    * ``pool/weight/<task type>/<component>``: the mean weight over the type's tasks;
    * ``attention/<task type>/<prototype>``, where a hypernetwork attends to prototypes.

    Pictures go to TensorBoard (tags ``weights``, ``rank_loss``, ``attention``) every ``every_n_rollouts`` and, when
    training ends, as SVG and PNG files to ``folder``. Training is not touched: answers draw randomness of their own,
    and the components' counts are put back.

    Args:
        num_tasks: Validation tasks in the pool; task types take turns.
        samples_per_task: Answers to each, at the training temperature.
        every_n_rollouts: Rollouts between two pictures in TensorBoard.
        folder: Where the files go; default ``<log_dir>/pictures``.

    Raises:
        ValueError: A number is out of range; later, if the run has no rewards or no validation tasks.
    """

    def __init__(
        self, num_tasks: int = 40, samples_per_task: int = 4, every_n_rollouts: int = 20, folder: str | None = None
    ) -> None:
        limits = {"num_tasks": (num_tasks, 1), "samples_per_task": (samples_per_task, 2)}
        for name, (value, low) in {**limits, "every_n_rollouts": (every_n_rollouts, 1)}.items():
            if value < low:
                raise ValueError(f"WeightLogger: {name} must be at least {low}, got {value}")
        self.num_tasks, self.samples_per_task = num_tasks, samples_per_task
        self.every_n_rollouts = every_n_rollouts
        self.folder = folder
        self.pool: dict[str, Groups] = {}
        self.steps: list[int] = []
        self.weights: list[Tensor] = []  # [F, n] at each of the steps
        self.losses: list[Tensor] = []  # [F]
        self._stride = 1

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The pool and the curves so far, as plain tensors."""
        curves = {"weights": self.weights, "losses": self.losses}
        return {
            "pool": {name: list(lot) for name, lot in self.pool.items()},
            "steps": list(self.steps),
            "stride": self._stride,
            **{name: torch.stack(rows) if rows else torch.zeros(0) for name, rows in curves.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.pool = {name: Groups(*columns) for name, columns in state_dict["pool"].items()}
        self.steps, self._stride = list(state_dict["steps"]), int(state_dict["stride"])
        self.weights, self.losses = list(state_dict["weights"].unbind()), list(state_dict["losses"].unbind())

    # --- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a run that has no pool.

        Raises:
            ValueError: With another module than PPOModule, without RewardComputation or without a DataModule.
        """
        if stage != "fit":
            return
        if not isinstance(pl_module, PPOModule):
            raise ValueError(f"WeightLogger needs PPOModule, got {type(pl_module).__name__}")
        if not any(isinstance(c, RewardComputation) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError("WeightLogger needs RewardComputation among trainer.callbacks")
        if trainer.datamodule is None:  # type: ignore[attr-defined]
            raise ValueError("WeightLogger needs a DataModule, for its validation tasks: give datamodule=")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collect the pool, unless a resumed run brought it along."""
        if self.pool:
            return
        announce_phase(trainer, pl_module, "evaluation")
        self.pool = all_gather(self._collect(trainer, pl_module))[0]  # type: ignore[arg-type]
        self._remember(trainer.global_step, self._judge(pl_module))  # type: ignore[arg-type]

    def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        """Judge the weights that this rollout's meta-step left."""
        step = trainer.fit_loop.total_batch_idx + 1
        figures = self._judge(pl_module)  # type: ignore[arg-type]
        rollout.metrics.update(scalars(figures, rollout.component_names))
        self._remember(step, figures)
        if step % self.every_n_rollouts == 0:
            self._show(trainer, self.pictures(figures, rollout.component_names), step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the pictures."""
        if not self.pool:
            return  # training failed before it began
        folder = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "pictures")
        if not trainer.is_global_zero:
            return
        pictures = self.pictures(self._judge(pl_module), pl_module.component_names)  # type: ignore[arg-type]
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            for suffix, content in (("svg", picture.svg().encode()), ("png", picture.png())):
                with atomic_write(folder / f"{name}.{suffix}") as file:
                    file.write(content)
        self._show(trainer, pictures, trainer.global_step)

    # --- the pool ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _collect(self, trainer: L.Trainer, module: PPOModule) -> dict[str, Groups]:
        """Answer and score the validation tasks; a collective in which all ranks do the same."""
        rewards = next(c for c in trainer.callbacks if isinstance(c, RewardComputation))  # type: ignore[attr-defined]
        tasks, per_task = self._tasks(trainer), self.samples_per_task
        lots: list[dict[str, Groups]] = []
        size = max(1, _ROWS // per_task)
        for start in range(0, len(tasks), size):
            part = tasks[start : start + size]
            rollout = _answer(module, part, per_task)
            together(rewards.score_aside, rollout)
            assert rollout.scores is not None
            assert rollout.outcome is not None
            features = together(module.task_encoder.features, part).repeat_interleave(per_task, 0)
            types = [task.task_type for task in rollout.tasks]
            mask = ~rollout.scores.isnan()
            lots.append(split_groups(rollout.scores, mask, features, rollout.outcome, rollout.group, types))
        names = dict.fromkeys(name for lot in lots for name in lot)
        pool = {name: concatenate([lot[name] for lot in lots if name in lot]) for name in names}
        pool = {name: groups.select(groups.mask.any(1)) for name, groups in pool.items()}
        pool = {name: groups for name, groups in pool.items() if len(groups.mask)}
        if not pool:
            raise ValueError("WeightLogger: no reward component applies to any of its validation tasks")
        return pool

    def _tasks(self, trainer: L.Trainer) -> list[CodeTask]:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        datamodule.setup("validate")
        own = together(lambda: [task for batch in datamodule.val_dataloader() for task in batch])
        tasks: list[CodeTask] = global_order(all_gather(own))
        if not tasks:
            raise ValueError("WeightLogger: the data has no validation tasks: give some, or leave this callback out")
        return in_turn(tasks, self.num_tasks)

    def _judge(self, module: PPOModule) -> PoolFigures:
        return judge_weights(self.pool, module.weighting, module.task_encoder, module.device)

    def _remember(self, step: int, figures: PoolFigures) -> None:
        if step % self._stride:
            return
        self.steps.append(step)
        self.weights.append(torch.stack(list(figures.weights.values())))
        self.losses.append(torch.tensor(list(figures.rank_loss.values())))
        if len(self.steps) > _MAX_POINTS:
            self._stride *= 2
            kept = [place for place, step in enumerate(self.steps) if step % self._stride == 0]
            self.steps = [self.steps[place] for place in kept]
            self.weights = [self.weights[place] for place in kept]
            self.losses = [self.losses[place] for place in kept]

    # --- pictures ----------------------------------------------------------------------------------------------------

    def pictures(self, figures: PoolFigures, names: Sequence[str]) -> dict[str, Picture]:
        """``weights`` (Figure 3), ``rank_loss`` (Figure 4; where any success varies) and ``attention``, if there is.

        Args:
            figures: The present ones.
            names: The n components.
        """
        curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
        losses: dict[str, list[tuple[float, float]]] = {}
        for row, task_type in enumerate(self.pool):
            applicable = self.pool[task_type].mask.any(0).tolist()
            curves[task_type] = {
                name: [(step, float(at[row, column])) for step, at in zip(self.steps, self.weights, strict=True)]
                for column, name in enumerate(names)
                if applicable[column]
            }
            loss = [(float(step), float(at[row])) for step, at in zip(self.steps, self.losses, strict=True)]
            if math.isfinite(loss[-1][1]):
                losses[task_type] = loss
        found = {"weights": weights_picture(curves, names)}
        if losses:
            mean = [(step, float(at.nanmean())) for step, at in zip(self.steps, self.losses, strict=True)]
            title = (
                f"Rank loss on the fixed validation pool (beta {BETA:g}; {math.log(2):.3f}: weights that tell nothing)"
            )
            found["rank_loss"] = curves_picture(title, losses, mean)
        if figures.attention:
            found["attention"] = attention_picture({name: row.tolist() for name, row in figures.attention.items()})
        return found

    @staticmethod
    def _show(trainer: L.Trainer, pictures: dict[str, Picture], step: int) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    for name, picture in pictures.items():
                        logger.experiment.add_image(name, picture.pixels(), step, dataformats="HWC")


def _answer(module: PPOModule, tasks: Sequence[CodeTask], per_task: int) -> Rollout:
    """``per_task`` answers to each task, sampled as in training, with randomness of their own."""
    prompt_ids, prompt_mask = (part.repeat_interleave(per_task, 0) for part in module.encode_prompts(tasks))
    rows = [task for task in tasks for _ in range(per_task)]
    keys = [(module.seed, "weight pool", task.task_id, index % per_task) for index, task in enumerate(rows)]
    settings = module.generation
    responses = module.respond(prompt_ids, prompt_mask, keys, settings.temperature, 1.0, rows, settings.constrain)
    return Rollout(
        tasks=rows,
        group=torch.arange(len(tasks)).repeat_interleave(per_task),
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=responses.ids,
        response_mask=responses.mask,
        finished=responses.finished,
        texts=module.decode(responses),
    )


def scalars(figures: PoolFigures, names: Sequence[str]) -> dict[str, float]:
    """The figures by the names under which they are logged; what is not known is left out.

    Args:
        figures: By task type.
        names: The n components.
    """
    found = {"pool/rank_loss": mean_known(figures.rank_loss), "pool/pair_accuracy": mean_known(figures.pair_accuracy)}
    for task_type, weights in figures.weights.items():
        found[f"pool/rank_loss/{task_type}"] = figures.rank_loss[task_type]
        for name, weight in zip(names, weights.tolist(), strict=True):
            found[f"pool/weight/{task_type}/{name}"] = weight
    for task_type, attention in figures.attention.items():
        for prototype, share in enumerate(attention.tolist()):
            found[f"attention/{task_type}/{prototype}"] = share
    return {name: value for name, value in found.items() if math.isfinite(value)}
