"""What a run changed: the test split before and after training, greedy and sampled, as a table and as JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
from torch import Tensor

from lightning_dterm.callbacks.stop import stopped_by_signal
from lightning_dterm.hooks import RolloutCallback, announce_phase
from lightning_dterm.metrics import FIGURES, SampleTable
from lightning_dterm.modules.distributed import all_sum

if TYPE_CHECKING:
    from lightning_dterm.modules.ppo import PPOModule
    from lightning_dterm.types import CodeTask

MODES = {"greedy": 0.0, "sampled": 1.0}
Table = dict[str, Any]  # what SampleTable.compute gives


class BeforeAfterReport(RolloutCallback):
    """Evaluates a split before the first rollout and after the last, and writes ``summary.json``.

    Each task is answered greedily and, separately, by sampling at temperature 1. ``kl`` is the mean over the sampled
    answers of ``log actor - log reference``, in nats per sequence.

    Args:
        path: The JSON file; default ``<log_dir>/summary.json``.
        metrics: Columns of the printed table.
        split: The split; tune on ``validation``, report on ``test``.
    """

    def __init__(
        self, path: str | None = None, metrics: list[str] | None = None, split: Literal["test", "validation"] = "test"
    ) -> None:
        self.path = Path(path) if path else None
        self.split = split
        self.metrics = metrics or ["success", "exact_match", "bleu", "compile_rate", "length"]
        self._before: dict[str, Table] = {}
        self._train_seconds = 0.0
        self._started: float | None = None
        self._reported = False

    def state_dict(self) -> dict[str, Any]:
        """The first evaluation and the time spent, so that a resumed run reports on the whole."""
        return {"before": json.dumps(self._before), "train_seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        self._before = json.loads(state_dict["before"])
        self._train_seconds = float(state_dict["train_seconds"])

    def _seconds(self) -> float:
        return self._train_seconds + (time.perf_counter() - self._started if self._started is not None else 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the untrained actor, unless a resumed run brought that along."""
        if not self._before:
            self._before, _ = self._evaluate(trainer, pl_module)  # type: ignore[arg-type]
        self._started = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the trained actor where the run reached its end, and write the summary."""
        self._train_seconds, self._started = self._seconds(), None
        if stopped_by_signal(trainer) or 0 < trainer.max_steps > trainer.global_step:
            return  # not the end of the run: it will be resumed
        self._reported = True
        after, kl = self._evaluate(trainer, pl_module)  # type: ignore[arg-type]
        folder = trainer.log_dir or trainer.default_root_dir  # asked on every rank: it is broadcast
        if not trainer.is_global_zero:
            return
        summary = summarise(self._before, after, kl, self._train_seconds)
        summary["rollouts"] = trainer.global_step
        path = self.path or Path(folder) / "summary.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(summary, indent=2) + "\n")
        self._print(summary, trainer, path)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run resumed after its last rollout has no training left, only the report."""
        if self._before and not self._reported:
            self.on_train_end(trainer, pl_module)

    def _evaluate(self, trainer: L.Trainer, module: PPOModule) -> tuple[dict[str, Table], float | None]:
        announce_phase(trainer, module, "evaluation")
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        datamodule.setup("test" if self.split == "test" else "validate")
        loader = datamodule.test_dataloader() if self.split == "test" else datamodule.val_dataloader()
        tables = {mode: SampleTable().to(module.device) for mode in MODES}
        kl = torch.zeros(2, dtype=torch.float64, device=module.device)
        for batch in loader:
            tasks = list(batch)
            for mode, temperature in MODES.items():
                kl += self._answer(module, tasks, tables[mode], temperature)
        total = all_sum(kl)
        results = {mode: table.compute() for mode, table in tables.items()}
        return results, float(total[0] / total[1]) if total[1] > 0 else None

    @torch.no_grad()
    def _answer(self, module: PPOModule, tasks: list[CodeTask], table: SampleTable, temperature: float) -> Tensor:
        """Answer and record one batch; gives the sum of sequence log-ratios of sampled answers, and their number."""
        device = module.device
        if not tasks:
            module.idle()
            if temperature > 0 and module.kl.placement != "none":
                module.score_nothing()
            table.update([])
            return torch.zeros(2, dtype=torch.float64, device=device)
        prompt_ids, prompt_mask = module.encode_prompts(tasks)
        keys = [(module.seed, "report", task.task_id) for task in tasks]
        responses = module.respond(prompt_ids, prompt_mask, keys, temperature, 1.0)
        lengths, truncated = responses.mask.sum(-1).tolist(), (~responses.finished).tolist()
        table.update(module.evaluator.evaluate(tasks, module.decode(responses), lengths, truncated))
        if temperature == 0 or module.kl.placement == "none":
            return torch.zeros(2, dtype=torch.float64, device=device)
        assert module.policy is not None
        scores = module.policy(prompt_ids, prompt_mask, responses.ids, responses.mask, actor=True, reference=True)
        ratio = ((scores.logprobs - scores.ref_logprobs) * responses.mask).sum()
        return torch.stack([ratio.double(), ratio.new_tensor(len(tasks)).double()])

    def _print(self, summary: dict[str, Any], trainer: L.Trainer, path: Path) -> None:
        from rich.console import Console
        from rich.table import Table as RichTable

        for mode in MODES:
            part = summary if mode == "greedy" else summary["sampled"]
            table = RichTable(title=f"{self.split} split, {mode}: before -> after {trainer.global_step} rollouts")
            table.add_column("task type")
            for metric in self.metrics:
                table.add_column(metric, justify="right")
            for group, metrics in part["tasks"].items():
                table.add_row(group, *(_cell(metric, metrics[metric]) for metric in self.metrics))
            table.add_section()
            means = {"success": part["mean_success"]}
            table.add_row("mean", *(_cell(metric, means[metric]) if metric in means else "" for metric in self.metrics))
            Console(width=max(100, Console().width)).print(table)
        print(
            f"KL to the reference {_nats(summary['kl'])} per sequence; trained {summary['train_seconds']:.0f} s\n"
            f"summary:     {path}\nsamples:     {path.parent / 'samples'}\n"
            f"TensorBoard: tensorboard --logdir {path.parent}"
        )


def summarise(
    before: dict[str, Table], after: dict[str, Table], kl: float | None, train_seconds: float
) -> dict[str, Any]:
    """Join two evaluations; the greedy one at the top level, the sampled one under ``sampled``."""
    parts = {mode: _join(before[mode], after[mode]) for mode in MODES}
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
