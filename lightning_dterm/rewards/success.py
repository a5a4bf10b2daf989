"""The task's own success as a reward: a control, for experiments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_dterm.execution import judge_for
from lightning_dterm.rewards.base import RewardComponent, is_empty
from lightning_dterm.rewards.outcome import outcome_of
from lightning_dterm.task_tests import has_tests
from lightning_dterm.types import CodeTask, RewardResult, Sample

if TYPE_CHECKING:
    from lightning_dterm.sandbox import Sandbox


class SuccessReward(RewardComponent):
    """S, the training task's success metric, as a reward component (``configs/weighting/success_only.yaml``).

    The hypernetwork learns from S; this control pays S directly, so that a gain of learned weights can be told from
    mere access to S. It reads exactly what the hypernetwork's meta-objective reads
    (:func:`lightning_dterm.rewards.outcome.outcome_of`): the share of the *hidden* tests of the task that was sampled,
    or exact match with its reference, of training tasks alone. What is reported of a run is success on the tasks of
    another split, and their tests are read here in no way. It is the one component that reads hidden tests; where
    hidden tests of training tasks must stay unseen, leave it out.

    Not applicable where S is unknown: no hidden test, a language that cannot be run, tests in the program's process.

    Args:
        name: Column name.
    """

    def __init__(self, name: str = "success") -> None:
        self.name = name
        self._sandbox: Sandbox | None = None

    def setup(self, sandbox: Sandbox | None = None) -> None:
        """Take the run's sandbox, whose judge knows what can be run."""
        self._sandbox = sandbox

    def applies_to(self, task: CodeTask) -> bool:
        """Tasks with exact match as their metric, or with a hidden test in a language that can be run."""
        if task.success_metric == "exact_match":
            return True
        return has_tests(task, visible=False) and judge_for(self._sandbox).runs(task.language)

    def reads_execution(self, task: CodeTask) -> bool:
        """Where tests are the metric."""
        return task.success_metric == "tests"

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """S of each sample; an empty program has none."""
        values = [0.0 if is_empty(sample) else outcome_of(sample) for sample in samples]
        return [RewardResult(None if math.isnan(value) else value) for value in values]
