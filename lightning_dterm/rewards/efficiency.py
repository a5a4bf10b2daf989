"""Cost relative to the reference solution, from a deterministic counter."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from lightning_dterm.execution import TaskJudge, judge_for
from lightning_dterm.rewards.base import PROSE, RewardComponent, is_empty
from lightning_dterm.sandbox import Job, Result, Sandbox
from lightning_dterm.sandbox.languages import canonical
from lightning_dterm.sandbox.sandbox import judge_all
from lightning_dterm.sandbox.wire import MAX_COST
from lightning_dterm.task_tests import has_calls, has_tests
from lightning_dterm.types import CodeTask, RewardResult, Sample

_log = logging.getLogger(__name__)
_UNCOUNTED = "no deterministic counter: its visible tests are texts, or assertions that are no calls"


class EfficiencyReward(RewardComponent):
    """``min(1, cost of the reference / cost)`` for programs that pass every visible test, else 0.

    Cost is the number of operations over the visible tests, work of built-in functions included (see
    :mod:`lightning_dterm.sandbox.meter`): the same run after run, however loaded the machine is. A program that passes
    but cannot be metered (it reaches for frames, modules beyond the algorithmic ones...), or takes as many operations
    as are counted at most, gets 0. The reference's cost is measured once per task and kept. A reference that fails its
    own visible tests is a failure. Not applicable (``details["reason"]``) without visible tests or a reference, where
    the reference passes but cannot be metered or takes more operations than are counted (a program that fails gets 0
    all the same), and where there is no deterministic counter, which is said once: languages other than Python, whole
    programs on text, and assertions that cannot be made into calls. No evidence: uniform.

    Args:
        name: Column name.
        sandbox: Where references run; normally the run's own, given by :meth:`setup`.
    """

    needs_execution: ClassVar[bool] = True
    needs_cost: ClassVar[bool] = True
    overlaps = True
    timeout_s = 3600.0  # every process that it waits for has limits of its own

    def __init__(self, name: str = "efficiency", sandbox: Sandbox | None = None) -> None:
        self.name = name
        self._sandbox = sandbox
        self._references: dict[tuple[str, bytes], int | RewardResult] = {}

    def setup(self, sandbox: Sandbox | None = None) -> None:
        """Take the run's sandbox."""
        self._sandbox = sandbox or self._sandbox

    @property
    def _judge(self) -> TaskJudge:
        return judge_for(self._sandbox)

    def applies_to(self, task: CodeTask) -> bool:
        """Python tasks with a reference and a visible test that calls a function."""
        if not task.reference.strip() or not has_tests(task, visible=True):
            return False
        if task.language == PROSE:
            return False
        python = canonical(task.language) == "python"
        if not (python and has_calls(task)):
            _say_once(self.name, "programs on text" if python else f"programs in {task.language!r}")
            return False
        return True

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Compare each passing program's cost with its reference's."""
        judged = [sample for sample in samples if sample.execution is None or sample.execution.status != "infra"]
        counted = {id(sample.task): self._is_counted(sample.task) for sample in judged}
        self._measure_references([one.task for one in judged if _passes(one) and counted[id(one.task)]])
        return [self._score(sample, counted.get(id(sample.task), True)) for sample in samples]

    def _is_counted(self, task: CodeTask) -> bool:
        return any(test.visible for test in task.tests) or bool(self._judge.cost_tests(task))

    def _score(self, sample: Sample, counted: bool) -> RewardResult:
        result = sample.execution
        if not counted:
            return RewardResult(None, details={"reason": _UNCOUNTED})
        if is_empty(sample):
            return RewardResult(0.0)
        if result is None:
            return RewardResult(None, error="the program was not executed")
        if result.status == "infra":
            return RewardResult(None, error=f"sandbox: {result.exception or 'infra'}")
        if not _passes(sample):
            return RewardResult(0.0, details={"passes": False})
        reference = self._references.get(_key(sample.task))
        if reference is None:
            return RewardResult(None, error=f"the sandbox did not judge the reference of task {sample.task.task_id!r}")
        if isinstance(reference, RewardResult):
            return reference
        details = {"passes": True, "cost": result.cost, "reference_cost": reference}
        # It cannot be metered, or burned more CPU time than its count explains; no work costs nothing; or it was
        # stopped at the cap, and how much more it would cost nobody knows.
        if not result.cost or result.cost >= MAX_COST:
            return RewardResult(0.0, details=details)
        return RewardResult(min(1.0, reference / result.cost), details=details)

    def _measure_references(self, tasks: Sequence[CodeTask]) -> None:
        missing = {_key(task): task for task in tasks if _key(task) not in self._references}
        if not missing:
            return
        if self._sandbox is None:
            raise RuntimeError(f"{self.name}: no sandbox to run reference solutions in; call setup(sandbox) first.")
        jobs = [
            Job(task.prefix + task.reference, task.entry_point, self._judge.cost_tests(task), True)
            for task in missing.values()
        ]
        for (key, task), result in zip(missing.items(), judge_all(self._sandbox, jobs), strict=True):
            if result.status != "infra":  # an accident of ours is tried again next time
                self._references[key] = _reference_cost(task, result)


@lru_cache(maxsize=256)
def _say_once(name: str, what: str) -> None:
    _log.warning("Reward %r does not apply to %s: there is no deterministic counter of their work.", name, what)


def _reference_cost(task: CodeTask, reference: Result) -> int | RewardResult:
    """The cost of a task's reference, or what programs are given where it has none."""
    if reference.cost is not None and reference.cost < MAX_COST:
        return reference.cost
    if reference.cost is not None:  # slower programs would end at the same count
        return RewardResult(None, details={"reason": f"the reference takes more than {MAX_COST:,} operations"})
    if reference.share_passed(visible=True) != 1.0:
        error = f"the reference of task {task.task_id!r} does not pass its visible tests ({reference.status})"
        return RewardResult(None, error=error)
    return RewardResult(None, details={"reason": "the reference cannot be metered"})


def _passes(sample: Sample) -> bool:
    return sample.execution is not None and sample.execution.share_passed(visible=True) == 1.0


def _key(task: CodeTask) -> tuple[str, bytes]:
    """Task ids are unique within one benchmark only, so the reference itself is part of the key."""
    return task.task_id, hashlib.blake2b((task.prefix + task.reference).encode("utf-8", "replace")).digest()
