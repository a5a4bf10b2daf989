"""Cost relative to the reference solution, from a deterministic counter."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

from lightning_dterm.rewards.base import EXECUTABLE, RewardComponent, is_empty
from lightning_dterm.sandbox import Job, Sandbox
from lightning_dterm.types import CodeTask, RewardResult, Sample


def visible_tests_of(task: CodeTask) -> bool:
    """Whether the task has a visible test."""
    return any(test.visible for test in task.tests)


class EfficiencyReward(RewardComponent):
    """``min(1, cost of the reference / cost)`` for programs that pass every visible test, else 0.

    Cost is the number of operations over the visible tests, work of built-in functions included (see
    :mod:`lightning_dterm.sandbox.meter`): the same run after run, however loaded the machine is. A program that passes
    but cannot be metered (it reaches for frames, modules beyond the algorithmic ones...) gets 0. The reference's cost
    is measured once per task and kept. Not applicable without visible tests, without a reference that can be metered,
    to prose, and to languages that cannot be run. No evidence: uniform.

    Args:
        name: Column name.
        sandbox: Where references run; normally the run's own, given by :meth:`setup`.
    """

    needs_execution: ClassVar[bool] = True
    needs_cost: ClassVar[bool] = True

    def __init__(self, name: str = "efficiency", sandbox: Sandbox | None = None) -> None:
        self.name = name
        self._sandbox = sandbox
        self._reference_cost: dict[tuple[str, bytes], int | None] = {}

    def setup(self, sandbox: Sandbox | None = None) -> None:
        """Take the run's sandbox."""
        self._sandbox = sandbox or self._sandbox

    def applies_to(self, task: CodeTask) -> bool:
        """Tasks in a language that can be run, with a reference and a visible test."""
        return task.language in EXECUTABLE and bool(task.reference.strip()) and visible_tests_of(task)

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Compare each passing program's cost with its reference's."""
        self._measure_references([sample.task for sample in samples if _passes(sample)])
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> RewardResult:
        result = sample.execution
        if is_empty(sample):
            return RewardResult(0.0)
        if result is None:
            return RewardResult(None, error="the program was not executed")
        if result.status == "infra":
            return RewardResult(None, error=f"sandbox: {result.exception or 'infra'}")
        if not _passes(sample):
            return RewardResult(0.0, details={"passes": False})
        reference = self._reference_cost.get(_key(sample.task))
        if reference is None:
            return RewardResult(
                None,
                error=f"the reference of task {sample.task.task_id!r} fails its visible tests, or cannot be metered",
            )
        if result.cost is None:  # cannot be metered, or burned more CPU time than its count explains
            return RewardResult(0.0, details={"passes": True, "cost": None, "reference_cost": reference})
        details = {"passes": True, "cost": result.cost, "reference_cost": reference}
        return RewardResult(min(1.0, reference / max(result.cost, 1)), details=details)

    def _measure_references(self, tasks: Sequence[CodeTask]) -> None:
        missing = {_key(task): task for task in tasks if _key(task) not in self._reference_cost}
        if not missing:
            return
        if self._sandbox is None:
            raise RuntimeError(f"{self.name}: no sandbox to run reference solutions in; call setup(sandbox) first.")
        jobs = [
            Job(task.prefix + task.reference, task.entry_point, tuple(t for t in task.tests if t.visible), True)
            for task in missing.values()
        ]
        for key, result in zip(missing, self._sandbox.run_many(jobs), strict=True):
            if result.status != "infra":  # an accident of ours is tried again next time
                self._reference_cost[key] = result.cost


def _passes(sample: Sample) -> bool:
    return sample.execution is not None and sample.execution.share_passed(visible=True) == 1.0


def _key(task: CodeTask) -> tuple[str, bytes]:
    """Task ids are unique within one benchmark only, so the reference itself is part of the key."""
    return task.task_id, hashlib.blake2b((task.prefix + task.reference).encode("utf-8", "replace")).digest()
