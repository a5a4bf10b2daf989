"""Heat maps of a fixed set of validation tasks while a run trains: HTML for people, JSON for ``attribution.show``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch
from torch import Tensor

from lightning_dterm.attribution.distribute import CharSpan, code_token_mask
from lightning_dterm.attribution.heatmap import HeatMap, HeatMapRow, to_json
from lightning_dterm.attribution.render import html_page
from lightning_dterm.callbacks.attribution import TokenAttribution, attribution_of
from lightning_dterm.callbacks.rewards import RewardComputation
from lightning_dterm.checkpointing import atomic_write
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.distributed import all_gather, global_order, together
from lightning_dterm.modules.scoring import score_responses
from lightning_dterm.rl.gae import generalized_advantages
from lightning_dterm.rl.kl import kl_estimate
from lightning_dterm.types import CodeTask, Rollout

if TYPE_CHECKING:
    from lightning_dterm.modules.ppo import PPOModule


class HeatMapLogger(RolloutCallback):
    """Every ``every_n_rollouts`` answers the same validation tasks and writes what each token of the answers got.

    One map a task: a row per component (attributed weighted score), then KL (where it is part of the reward), the total
    that GAE sees (missing-EOS penalty included), the advantage before baseline and whitening, and the critic's value.
    ``<folder>/step_XXXXXX.html`` needs nothing but a browser; ``step_XXXXXX.json`` beside it is what
    ``python -m lightning_dterm.attribution.show`` reads. ``validate`` writes one, too. Under several processes all
    answer the tasks and rank 0 writes.

    Neither training nor its counters are touched: randomness is counter-based, and the components' counts are put back.

    Args:
        every_n_rollouts: Rollouts between two maps; the first rollout has one.
        num_tasks: Tasks; task types take turns, in the order of the validation data.
        task_ids: Show these tasks of the validation data instead.
        temperature: Sampling temperature of the answers; 0 is greedy. The randomness is the same each time.
        folder: Where to write; default ``<log_dir>/heatmaps``.

    Raises:
        ValueError: A number is out of range, or both ``num_tasks`` and ``task_ids`` are given.
    """

    def __init__(
        self,
        every_n_rollouts: int = 50,
        num_tasks: int | None = None,
        task_ids: list[str] | None = None,
        temperature: float = 0.0,
        folder: str | None = None,
    ) -> None:
        if num_tasks is not None and task_ids is not None:
            raise ValueError("HeatMapLogger: give num_tasks or task_ids, not both")
        self.num_tasks = 4 if num_tasks is None else num_tasks
        for name, value in (("every_n_rollouts", every_n_rollouts), ("num_tasks", self.num_tasks)):
            if value < 1:
                raise ValueError(f"HeatMapLogger: {name} must be at least 1, got {value}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"HeatMapLogger: temperature must not be negative, got {temperature}")
        if task_ids is not None and not task_ids:
            raise ValueError("HeatMapLogger: task_ids is empty")
        self.every_n_rollouts = every_n_rollouts
        self.task_ids = task_ids
        self.temperature = temperature
        self.folder = folder
        self._tasks: list[CodeTask] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a run that cannot fill a map.

        Raises:
            ValueError: The rewards or attribution callback is missing.
        """
        if stage in ("fit", "validate"):
            _callbacks(trainer)

    def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        """Write maps where some are due (counted from the start of the run, so that a resumed run keeps step)."""
        index = trainer.fit_loop.total_batch_idx
        if index % self.every_n_rollouts == 0:
            self.write(trainer, pl_module, index + 1)  # type: ignore[arg-type]

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write maps of the checkpoint that ``validate`` was given."""
        if trainer.state.fn == "validate":
            together(self.write, trainer, pl_module, trainer.global_step)  # the other hook is called so

    def write(self, trainer: L.Trainer, module: PPOModule, step: int) -> None:
        """Answer the tasks and write both files; a collective."""
        if self._tasks is None:
            self._tasks = self._choose(trainer)
        title = f"Step {step}: {'greedy' if self.temperature == 0 else f'sampled at {self.temperature:g}'}"
        maps = heat_maps(trainer, module, self._tasks, self.temperature)
        folder = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "heatmaps")
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, document in (("json", to_json(title, maps)), ("html", html_page(title, maps))):
            with atomic_write(folder / f"step_{step:06d}.{suffix}") as file:
                file.write(document.encode("utf-8", "replace"))

    def _choose(self, trainer: L.Trainer) -> list[CodeTask]:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if datamodule is None:
            raise ValueError("HeatMapLogger needs a DataModule: its validation tasks are shown")

        def read() -> list[CodeTask]:
            datamodule.setup("validate")
            return [task for batch in datamodule.val_dataloader() for task in batch]

        own = together(read)
        tasks: list[CodeTask] = global_order(all_gather(own))
        if self.task_ids is None:
            return in_turn(tasks, self.num_tasks)
        known = {task.task_id: task for task in tasks}
        missing = [name for name in self.task_ids if name not in known]
        if missing:
            some = ", ".join(list(known)[:5])
            raise ValueError(f"HeatMapLogger: no validation task {', '.join(missing)}; there are {some}, ...")
        return [known[name] for name in self.task_ids]


def in_turn(tasks: Sequence[CodeTask], count: int) -> list[CodeTask]:
    """The first ``count`` tasks, task types taking turns in the order they first appear in.

    Raises:
        ValueError: There is no task.
    """
    queues: dict[str, list[CodeTask]] = {}
    for task in tasks:
        queues.setdefault(task.task_type, []).append(task)
    if not queues:
        raise ValueError("HeatMapLogger: the data has no validation tasks to show")
    ranked = sorted(
        ((rank, order, task) for order, queue in enumerate(queues.values()) for rank, task in enumerate(queue)),
        key=lambda item: item[:2],
    )
    return [task for _, _, task in ranked[:count]]


@torch.no_grad()
def heat_maps(trainer: L.Trainer, module: PPOModule, tasks: Sequence[CodeTask], temperature: float) -> list[HeatMap]:
    """Answer ``tasks`` with the module's present policy and map rewards, advantages and values; a collective.

    Args:
        trainer: With :class:`RewardComputation` and :class:`TokenAttribution` among its callbacks.
        module: The policy, on its device.
        tasks: The tasks, the same on every rank.
        temperature: Of sampling; 0 is greedy.
    """
    rewards, attribution = _callbacks(trainer)
    rollout = _answer(module, tasks, temperature)
    spans = together(_reward, rewards, attribution, module, rollout)  # attribution may be a collective
    parts = attribution.attribution(trainer, module, rollout, spans).components().to(module.device)
    estimates = _estimates(module, rollout, parts.sum(1))
    code = code_token_mask(spans, [sample.code_spans for sample in rollout.samples], rollout.response_mask)
    return [
        _map(module, rollout, row, spans[row], code[row], [*_rows(rollout, row, parts, estimates)])
        for row in range(len(tasks))
    ]


def _callbacks(trainer: L.Trainer) -> tuple[RewardComputation, TokenAttribution]:
    rewards = next((c for c in trainer.callbacks if isinstance(c, RewardComputation)), None)  # type: ignore[attr-defined]
    attribution = attribution_of(trainer)
    if rewards is None or attribution is None:
        raise ValueError("HeatMapLogger needs RewardComputation and TokenAttribution among trainer.callbacks")
    return rewards, attribution


def _answer(module: PPOModule, tasks: Sequence[CodeTask], temperature: float) -> Rollout:
    """One response a task with log-probabilities and values, as a rollout; scores under the training temperature."""
    prompt_ids, prompt_mask = module.encode_prompts(tasks)
    keys = [(module.seed, "heat map", task.task_id) for task in tasks]
    settings, support = module.generation, None
    responses = module.respond(prompt_ids, prompt_mask, keys, temperature, 1.0, tasks, settings.constrain)
    if temperature > 0:  # a greedy answer is shown with the log-probabilities of sampling
        support = responses.support
    given = (prompt_ids, prompt_mask, responses.ids, responses.mask)
    scores = score_responses(module, *given, temperature=settings.temperature, critic=True, support=support)
    return Rollout(
        tasks=list(tasks),
        group=torch.arange(len(tasks)),
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=responses.ids,
        response_mask=responses.mask,
        finished=responses.finished,
        texts=module.decode(responses),
        logprobs=scores.logprobs,
        ref_logprobs=scores.ref_logprobs,
        values=scores.values,
    )


def _reward(
    rewards: RewardComputation, attribution: TokenAttribution, module: PPOModule, rollout: Rollout
) -> list[list[CharSpan]]:
    """Score and weigh the answers; gives the characters of their tokens."""
    rewards.score_aside(rollout)
    assert rollout.scores is not None
    types = [task.task_type for task in rollout.tasks]
    rollout.embeddings = module.task_encoder.encode_tasks(rollout.tasks).to(module.device)
    rollout.alpha = module.weighting(rollout.embeddings, ~rollout.scores.isnan(), types)
    rollout.rewards, rollout.ceilings = module.weighting.rewards(rollout.scores, rollout.embeddings, None, types)
    return attribution.token_spans(module, rollout)


def _estimates(module: PPOModule, rollout: Rollout, attributed: Tensor) -> dict[str, Tensor]:
    """``kl`` (where it is part of the reward), ``total``, ``advantage`` and ``value``, each ``[B, T]``."""
    assert rollout.values is not None
    mask = rollout.response_mask.bool()
    rows: dict[str, Tensor] = {}
    total = attributed.clone()
    if module.ppo.missing_eos == "penalty":
        last = rollout.response_mask.sum(-1).sub(1).clamp(min=0)
        each = torch.arange(len(rollout), device=total.device)
        total[each, last] -= module.ppo.missing_eos_penalty * (~rollout.finished).float()
    if module.kl.placement == "reward" and rollout.ref_logprobs is not None and rollout.logprobs is not None:
        estimate = kl_estimate(rollout.logprobs, rollout.ref_logprobs, module.kl.estimator)
        rows["kl"] = -module.kl_controller.coef * estimate * mask
        total = total + rows["kl"]
    advantages, _ = generalized_advantages(total, rollout.values, mask, module.ppo.gamma, module.ppo.lam)
    return {**rows, "total": total, "advantage": advantages, "value": rollout.values * mask}


def _rows(rollout: Rollout, row: int, parts: Tensor, estimates: Mapping[str, Tensor]) -> Iterator[HeatMapRow]:
    assert rollout.weighed is not None
    assert rollout.alpha is not None
    inside = rollout.response_mask[row].bool()
    for column, name in enumerate(rollout.component_names):
        score, alpha = float(rollout.weighed[row, column]), float(rollout.alpha[row, column])
        values = tuple(parts[row, column, inside].double().tolist())
        yield HeatMapRow(name, values, None if math.isnan(score) else score, alpha)
    for name, estimate in estimates.items():
        yield HeatMapRow(name, tuple(estimate[row, inside].double().tolist()))


def _map(
    module: PPOModule, rollout: Rollout, row: int, spans: Sequence[CharSpan], code: Tensor, rows: Sequence[HeatMapRow]
) -> HeatMap:
    inside = rollout.response_mask[row].bool()
    task, text = rollout.tasks[row], rollout.texts[row]
    outcome = float(rollout.outcome[row]) if rollout.outcome is not None else math.nan
    return HeatMap(
        task_id=task.task_id,
        task_type=task.task_type,
        prompt=task.prompt,
        tokens=tuple(text[slice(*spans[column])] for column in inside.nonzero().squeeze(-1).tolist()),
        pieces=tuple(map(str, module.tokenizer.convert_ids_to_tokens(rollout.response_ids[row, inside].tolist()))),
        code=tuple(code[inside].tolist()),
        rows=tuple(rows),
        finished=bool(rollout.finished[row]),
        success=None if math.isnan(outcome) else outcome,
    )
