"""What a run changed: the test split before and after training, greedy and sampled, as a table and as JSON."""

from __future__ import annotations

import hashlib
import json
import math
import time
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_dterm.callbacks.rewards import RewardComputation
from lightning_dterm.callbacks.stop import stopped_by_signal
from lightning_dterm.evaluation import write_json
from lightning_dterm.hooks import RolloutCallback, announce_phase
from lightning_dterm.metrics import FIGURES, SampleTable
from lightning_dterm.modules.base import CodeModule
from lightning_dterm.modules.distributed import all_gather, all_sum, global_order, together
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.modules.scoring import score_responses

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from lightning_dterm.types import CodeTask

MODES = {"greedy": 0.0, "sampled": 1.0}
Table = dict[str, Any]  # what SampleTable.compute gives
Weights = dict[str, dict[str, float | None]]  # task type to component to its mean weight, None where it never applies


class BeforeAfterReport(RolloutCallback):
    """Evaluates a split before the first rollout and after the last, and writes ``summary.json``.

    Each task is answered greedily and, separately, by sampling at temperature 1. ``kl`` is the mean over the sampled
    answers of ``log actor - log reference``, in nats per sequence; null where the module keeps no reference, as
    ``SupervisedModule``. ``weights`` are the mean weights of the split's tasks by type, over the components that apply.

    Args:
        path: The JSON file; default ``<log_dir>/summary.json``.
        metrics: Columns of the printed table, of :data:`lightning_dterm.metrics.FIGURES`.
        split: The split; tune on ``validation``, report on ``test``.

    Raises:
        ValueError: For an unknown metric.
    """

    def __init__(
        self, path: str | None = None, metrics: list[str] | None = None, split: Literal["test", "validation"] = "test"
    ) -> None:
        unknown = [metric for metric in metrics or () if metric not in FIGURES]
        if unknown:
            raise ValueError(
                f"BeforeAfterReport: unknown metric {', '.join(unknown)}; metrics knows {', '.join(FIGURES)}"
            )
        self.path = Path(path) if path else None
        self.split = split
        self.metrics = metrics or ["success", "exact_match", "bleu", "compile_rate", "length"]
        self._before: dict[str, Table] = {}
        self._weights_before: Weights = {}
        self._tasks: list[str] = []
        self._checked = False
        self._train_seconds = 0.0
        self._started: float | None = None
        self._reported = False

    def state_dict(self) -> dict[str, Any]:
        """The first evaluation, its tasks and the time spent, so that a resumed run reports on the whole."""
        before = {"before": json.dumps(self._before), "weights": json.dumps(self._weights_before)}
        return {**before, "tasks": self._tasks, "train_seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._before = json.loads(state_dict["before"])
        self._weights_before = json.loads(state_dict.get("weights", "{}"))
        self._tasks = list(state_dict.get("tasks", []))
        if self._before and "tasks" not in state_dict:
            rank_zero_warn(
                "BeforeAfterReport: this older checkpoint does not say which tasks were evaluated before training; "
                "the report takes them to be this run's"
            )
        self._train_seconds = float(state_dict["train_seconds"])

    def _seconds(self) -> float:
        return self._train_seconds + (time.perf_counter() - self._started if self._started is not None else 0.0)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot be evaluated.

        Raises:
            ValueError: With a module of another kind than this package's, or without a DataModule.
        """
        if stage != "fit":
            return
        if not isinstance(pl_module, CodeModule):
            raise ValueError(f"BeforeAfterReport needs PPOModule or SupervisedModule, got {type(pl_module).__name__}")
        if trainer.datamodule is None:  # type: ignore[attr-defined]
            raise ValueError(f"BeforeAfterReport needs a DataModule, for its {self.split} split: give datamodule=")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the untrained actor, unless a resumed run brought that along.

        Raises:
            ValueError: If it did, and of other tasks than this run's.
        """
        self._check_tasks(trainer)
        if not self._before:
            self._before, _ = self._evaluate(trainer, pl_module)  # type: ignore[arg-type]
            self._weights_before = self._weights(trainer, pl_module)
        self._started = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the trained actor where the run reached its end, and write the summary."""
        self._train_seconds, self._started = self._seconds(), None
        if stopped_by_signal(trainer) or 0 < trainer.max_steps > trainer.global_step:
            return  # not the end of the run: it will be resumed
        if not self._checked:
            self._check_tasks(trainer)
        self._reported = True
        after, kl = self._evaluate(trainer, pl_module)  # type: ignore[arg-type]
        weights = self._weights(trainer, pl_module)
        folder = trainer.log_dir or trainer.default_root_dir  # asked on every rank: it is broadcast
        if not trainer.is_global_zero:
            return
        summary = summarise(self._before, after, kl, self._train_seconds)
        steps = _unit(pl_module)
        summary[steps] = trainer.global_step
        if weights:
            summary["weights"] = _join_weights(self._weights_before, weights)
        path = self.path or Path(folder) / "summary.json"
        write_json(path, summary)
        self._print(summary, f"{trainer.global_step} {steps}", path)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run resumed after its last rollout has no training left, only the report."""
        if self._before and not self._reported:
            self.on_train_end(trainer, pl_module)

    def _loader(self, trainer: L.Trainer) -> Any:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        datamodule.setup("test" if self.split == "test" else "validate")
        return datamodule.test_dataloader() if self.split == "test" else datamodule.val_dataloader()

    def _check_tasks(self, trainer: L.Trainer) -> None:
        """Remember the split's tasks, or compare them with those a resumed run evaluated before training."""
        own = together(lambda: [_identity(task) for batch in self._loader(trainer) for task in batch])
        tasks = global_order(all_gather(own))
        if self._before and self._tasks and tasks != self._tasks:
            raise ValueError(_different_tasks(self.split, self._tasks, tasks))
        self._tasks, self._checked = tasks, True

    def _evaluate(self, trainer: L.Trainer, module: CodeModule) -> tuple[dict[str, Table], float | None]:
        announce_phase(trainer, module, "evaluation")
        loader = self._loader(trainer)
        tables = {mode: SampleTable().to(module.device) for mode in MODES}
        kl = torch.zeros(2, dtype=torch.float64, device=module.device)
        for batch in loader:
            tasks: list[CodeTask] = together(list, batch)
            for mode, temperature in MODES.items():
                kl += self._answer(module, tasks, tables[mode], temperature)
        total = all_sum(kl)
        results = {mode: table.compute() for mode, table in tables.items()}
        return results, float(total[0] / total[1]) if total[1] > 0 else None

    @torch.no_grad()
    def _answer(self, module: CodeModule, tasks: list[CodeTask], table: SampleTable, temperature: float) -> Tensor:
        """Answer and record one batch; gives the sum of sequence log-ratios of sampled answers, and their number."""
        prompts = module.encode_prompts(tasks)
        keys = [(module.seed, "report", task.task_id) for task in tasks]
        responses = module.respond(*prompts, keys, temperature, 1.0, tasks, module.generation.eval_constrain)
        table.update(module.judge(tasks, module.as_completions(responses)))
        if temperature == 0 or not _has_reference(module):
            return torch.zeros(2, dtype=torch.float64, device=module.device)
        given = (*prompts, responses.ids, responses.mask)
        scores = score_responses(module, *given, temperature=temperature, support=responses.support)
        assert scores.logprobs is not None
        assert scores.ref_logprobs is not None
        ratio = ((scores.logprobs - scores.ref_logprobs) * responses.mask).sum()
        return torch.stack([ratio.double(), ratio.new_tensor(len(tasks)).double()])

    def _weights(self, trainer: L.Trainer, module: L.LightningModule) -> Weights:
        """Mean weights of the split's tasks, empty for a module without a weighting; a collective."""
        rewards = next((c for c in trainer.callbacks if isinstance(c, RewardComputation)), None)  # type: ignore[attr-defined]
        if rewards is None or not isinstance(module, PPOModule):
            return {}
        own = [rows for batch in self._loader(trainer) for rows in together(_weights_of, module, rewards, batch)]
        rows_of: dict[str, list[Tensor]] = {}
        for task_type, row in (pair for rank in all_gather(own) for pair in rank):
            rows_of.setdefault(task_type, []).append(row)
        means = {task_type: torch.stack(rows).double().nanmean(0).tolist() for task_type, rows in rows_of.items()}
        return {
            task_type: {
                name: value if math.isfinite(value) else None
                for name, value in zip(module.component_names, means[task_type], strict=True)
            }
            for task_type in sorted(means)
        }

    def _print(self, summary: dict[str, Any], when: str, path: Path) -> None:
        from rich.console import Console
        from rich.table import Table as RichTable

        for mode in MODES:
            part = summary if mode == "greedy" else summary["sampled"]
            table = RichTable(title=f"{self.split} split, {mode}: before -> after {when}")
            table.add_column("task type")
            for metric in self.metrics:
                table.add_column(metric, justify="right")
            for group, metrics in part["tasks"].items():
                table.add_row(group, *(_cell(metric, metrics[metric]) for metric in self.metrics))
            table.add_section()
            means = {"success": part["mean_success"]}
            table.add_row("mean", *(_cell(metric, means[metric]) if metric in means else "" for metric in self.metrics))
            Console(width=max(100, Console().width)).print(table)
        if "weights" in summary:
            Console(width=max(100, Console().width)).print(weights_table(summary["weights"], f"before -> after {when}"))
        print(
            f"KL to the reference {_nats(summary['kl'])} per sequence; trained {summary['train_seconds']:.0f} s\n"
            f"summary:     {path}\nsamples:     {path.parent / 'samples'}\n"
            f"TensorBoard: tensorboard --logdir {path.parent}"
        )


@torch.no_grad()
def _weights_of(module: PPOModule, rewards: RewardComputation, tasks: list[CodeTask]) -> list[tuple[str, Tensor]]:
    """Type and weights ``[n]`` of each task over the components that apply to it, NaN where one does not."""
    tasks = list(tasks)
    if not tasks:
        return []
    applicable = [[component.applies_to(task) for component in rewards.suite.components] for task in tasks]
    mask = torch.tensor(applicable, device=module.device)
    types = [task.task_type for task in tasks]
    alpha = module.weighting(module.task_encoder.encode_tasks(tasks).to(module.device), mask, types)
    return list(zip(types, alpha.masked_fill(~mask, math.nan).float().cpu(), strict=True))


def weights_table(weights: dict[str, Any], title: str) -> RichTable:
    """What ``summary.json`` has under ``weights``: a row per task type, a column per component."""
    from rich.table import Table as RichTable

    table = RichTable(title=f"weights of the reward components: {title}")
    table.add_column("task type")
    for name in next(iter(weights.values())):
        table.add_column(name, justify="right")
    for task_type, pairs in weights.items():
        cells = (["-" if pair[when] is None else f"{pair[when]:.2f}" for when in pair] for pair in pairs.values())
        table.add_row(task_type, *("-" if cell == ["-", "-"] else " -> ".join(cell) for cell in cells))
    return table


def _join_weights(before: Weights, after: Weights) -> dict[str, dict[str, dict[str, float | None]]]:
    return {
        task_type: {
            name: {"before": before.get(task_type, {}).get(name), "after": value} for name, value in row.items()
        }
        for task_type, row in after.items()
    }


def _has_reference(module: CodeModule) -> TypeGuard[PPOModule]:
    return isinstance(module, PPOModule) and module.kl.placement != "none"


def _unit(module: L.LightningModule) -> str:
    """What a step of the module's training is called."""
    return "rollouts" if isinstance(module, PPOModule) else "steps"


def _identity(task: CodeTask) -> str:
    """A task's id and a digest of what it asks, so that another data seed with the same ids is told apart."""
    asked = hashlib.blake2b("\x1f".join((task.prompt, task.reference)).encode("utf-8", "replace"), digest_size=6)
    return f"{task.task_id} {asked.hexdigest()}"


def _different_tasks(split: str, before: list[str], now: list[str]) -> str:
    pairs = zip_longest(before, now, fillvalue="none ")
    row, (old, new) = next((row, pair) for row, pair in enumerate(pairs) if pair[0] != pair[1])
    ids = old.rpartition(" ")[0], new.rpartition(" ")[0]
    what = f"{ids[0]} then, {ids[1]} now" if ids[0] != ids[1] else f"{ids[0]} has another prompt or reference"
    return (
        f"BeforeAfterReport: the checkpoint's evaluation before training was of other {split} tasks ({len(before)} "
        f"then, {len(now)} now; first difference in row {row}: {what}): restore the data's settings and the "
        "report's split, or start a new run without ckpt_path"
    )


def summarise(
    before: dict[str, Table], after: dict[str, Table], kl: float | None, train_seconds: float
) -> dict[str, Any]:
    """Join two evaluations; the greedy one at the top level, the sampled one under ``sampled``."""
    parts = {mode: _join(before[mode], after[mode]) for mode in MODES}
    if kl is not None and not math.isfinite(kl):
        rank_zero_warn(f"BeforeAfterReport: the KL to the reference is {kl}; the summary has null for it")
        kl = None
    return {**parts["greedy"], "sampled": parts["sampled"], "kl": kl, "train_seconds": round(train_seconds, 3)}


def _join(before: Table, after: Table) -> dict[str, Any]:
    tasks = {
        task_type: {
            figure: {
                "before": group[figure]["value"],
                "after": after["tasks"][task_type][figure]["value"],
                "before_interval": [group[figure]["low"], group[figure]["high"]],
                "after_interval": [after["tasks"][task_type][figure][side] for side in ("low", "high")],
            }
            for figure in FIGURES
        }
        for task_type, group in before["tasks"].items()
    }
    mean: dict[str, float | None] = {}
    for when in ("before", "after"):
        known = [figures["success"][when] for figures in tasks.values() if figures["success"][when] is not None]
        mean[when] = sum(known) / len(known) if known else None
    return {"mean_success": mean, "tasks": tasks}


def _nats(kl: float | None) -> str:
    return "-" if kl is None else f"{kl:.3f} nats"


def _cell(figure: str, pair: dict[str, Any]) -> str:
    """``before -> after``; rates as percentages, BLEU and lengths as they are."""
    if pair["before"] is None or pair["after"] is None:
        return "-"
    scale = 100 if figure in ("success", "exact_match", "compile_rate", "truncated") else 1
    return f"{scale * pair['before']:.1f} -> {scale * pair['after']:.1f}"
