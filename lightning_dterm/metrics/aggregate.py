"""Per-sample records, gathered over ranks and summed up per task type with bootstrap intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_dterm.metrics.bleu import STATISTICS, bleu_from_statistics
from lightning_dterm.metrics.bootstrap import RESAMPLES, percentile_interval, resampled_sums
from lightning_dterm.types import TaskType

FIGURES = ("success", "exact_match", "bleu", "compile_rate", "lint_per_100_lines", "length", "truncated")
"""What is reported per task type, in the table's order: ``bleu`` in [0, 100], ``length`` in tokens, rates in [0, 1]."""

_RATIOS = tuple(name for name in FIGURES if name != "bleu")
_COLUMNS = ("key", "task_type", "infrastructure", "success", "exact_match", "compiles", "violations", "lines", "length")


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """What was measured of one completion. None means not applicable (or unknown: infrastructure failed).

    Attributes:
        task_id: The task it answers.
        task_type: Groups the figures.
        length: Tokens of the completion.
        success: The task's own success metric, in [0, 1].
        exact_match: Equal to the reference (:func:`lightning_dterm.metrics.exact_match`).
        compiles: The program compiles or parses without error.
        violations: Linter's diagnostics.
        lines: Lines of code that the linter saw.
        truncated: Generation ran into the length limit.
        bleu: Statistics from ``bleu_statistics``; all zero where there is no reference.
        infrastructure: The sandbox failed, not the program: counted, and left out of success and compile rate.
        claimed: Tests ran in the program's own process, as a benchmark's own harness runs them: success is what the
            program claims. It counts, and so do such samples.
    """

    task_id: str
    task_type: str
    length: int
    success: float | None = None
    exact_match: bool | None = None
    compiles: bool | None = None
    violations: int | None = None
    lines: int = 0
    truncated: bool = False
    bleu: tuple[int, ...] = (0,) * STATISTICS
    infrastructure: bool = False
    claimed: bool = False


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _key(task_id: str) -> float:
    # 52 bits, exact in a double: one row order whatever the number of ranks, so one bootstrap interval.
    return float(int.from_bytes(hashlib.blake2b(task_id.encode(), digest_size=8).digest(), "big") >> 12)


class SampleTable(Metric):
    """Gathers :class:`SampleRecord` rows across ranks and computes every figure with its 95% interval.

    The state is the rows themselves, so the result does not depend on how samples were split over ranks or batches:
    corpus BLEU and its resampled interval come from summed n-gram counts, every rate from its own denominator.

    Args:
        task_types: Task types that may occur.
        confidence: Probability mass of the bootstrap intervals.
        resamples: Bootstrap resamples.
        seed: Bootstrap seed.
        **kwargs: Passed to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = None
    rows: list[Tensor] | Tensor

    def __init__(
        self,
        task_types: Sequence[str] = get_args(TaskType),
        confidence: float = 0.95,
        resamples: int = RESAMPLES,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.task_types = tuple(task_types)
        self.confidence, self.resamples, self.seed = confidence, resamples, seed
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, records: Sequence[SampleRecord]) -> None:
        """Add one batch of records; an empty one is fine.

        Raises:
            ValueError: for a task type that was not announced.
        """
        table = [self._row(record) for record in records]
        values = torch.tensor(table, dtype=torch.float64).reshape(len(table), len(_COLUMNS) + 2 + STATISTICS)
        assert isinstance(self.rows, list)
        self.rows.append(values.to(self.device))

    def _row(self, record: SampleRecord) -> tuple[float, ...]:
        if record.task_type not in self.task_types:
            raise ValueError(f"task {record.task_id}: unknown task type {record.task_type!r}, not in {self.task_types}")
        return (
            _key(record.task_id),
            float(self.task_types.index(record.task_type)),
            float(record.infrastructure),
            _number(record.success),
            _number(record.exact_match),
            _number(record.compiles),
            _number(record.violations),
            float(record.lines),
            float(record.length),
            float(record.truncated),
            *map(float, record.bleu),
            float(record.claimed),
        )

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # A rank without a single batch must still take part in the gather, with a table of no rows.
        if isinstance(self.rows, list) and not self.rows:
            self.update([])
        super()._sync_dist(*args, **kwargs)

    def table(self) -> NDArray[np.float64]:
        """All rows gathered so far, ``[N, columns]``, in an order that depends on their content only."""
        if isinstance(self.rows, list) and not self.rows:
            self.update([])
        rows = dim_zero_cat(self.rows).cpu().numpy()
        return rows[np.lexsort(np.nan_to_num(rows, nan=-1.0).T[::-1])]

    def compute(self) -> dict[str, Any]:
        """Figures over all samples and per task type.

        Returns:
            ``{"overall": group, "tasks": {task type: group}}`` with the task types that occur. A group holds the counts
            ``samples``, ``infrastructure_failures`` and ``claimed``, and for each of :data:`FIGURES` ``{"value", "low",
            "high"}``, None where the figure applies to no sample.
        """
        table = self.table()
        kinds = table[:, 1].astype(int)
        tasks = {self.task_types[kind]: self._group(table[kinds == kind]) for kind in np.unique(kinds)}
        return {"overall": self._group(table), "tasks": tasks}

    def _group(self, table: NDArray[np.float64]) -> dict[str, Any]:
        statistics = _additive(table)
        group: dict[str, Any] = {"samples": len(table), "infrastructure_failures": int(table[:, 2].sum())}
        group["claimed"] = int(table[:, -1].sum())
        values = _figures(statistics.sum(axis=0))
        drawn = _figures(resampled_sums(statistics, self.resamples, self.seed)) if len(table) else {}
        for name in FIGURES:
            value = float(values[name])
            if np.isnan(value):
                group[name] = {"value": None, "low": None, "high": None}
            else:
                low, high = percentile_interval(drawn[name], self.confidence)
                group[name] = {"value": value, "low": low, "high": high}
        return group


def _additive(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numerator and denominator of each ratio, then BLEU's counts: ``[N, 2 * 6 + 10]``, summable over samples."""
    success, exact, compiles, violations, lines, length, truncated = table[:, 3:10].T
    ones = np.ones(len(table))
    pairs = [
        (success, ones),
        (exact, ones),
        (compiles, ones),
        (100.0 * violations, lines),
        (length, ones),
        (truncated, ones),
    ]
    columns = []
    for numerator, denominator in pairs:
        applies = ~np.isnan(numerator)
        columns += [np.where(applies, numerator, 0.0), np.where(applies, denominator, 0.0)]
    return np.column_stack([*columns, table[:, 10 : 10 + STATISTICS]])


def _figures(sums: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
    """Every figure from summed statistics ``[..., 22]``; NaN where it applies to no sample."""
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = {name: sums[..., 2 * i] / sums[..., 2 * i + 1] for i, name in enumerate(_RATIOS)}
    # 0 / 0 is NaN already; violations in no line at all (an empty file) have no rate either.
    figures = {name: np.where(np.isinf(values), np.nan, values) for name, values in figures.items()}
    bleu = bleu_from_statistics(sums[..., 2 * len(_RATIOS) :])
    has_reference = sums[..., -1] > 0
    return {**figures, "bleu": np.where(has_reference, bleu, np.nan)}
