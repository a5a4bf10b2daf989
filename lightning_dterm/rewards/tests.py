"""Share of a task's visible unit tests that the program passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from lightning_dterm.rewards.base import EXECUTABLE, RewardComponent, is_empty, line_span, line_starts
from lightning_dterm.types import CodeTask, RewardResult, Sample, Span


class TestsReward(RewardComponent):
    """``passed / visible tests``. Hidden tests never count: they are the success metric's.

    Evidence: the lines where visible tests raised or hung, weighted by how many did; none where none did (uniform).
    ``details`` carry the sandbox's status, level and trust. Not applicable without visible tests, to prose, and to
    languages that cannot be run; a program that the sandbox could not judge (``infra``) is a failure of ours: masked.
    """

    __test__ = False  # not a pytest class
    needs_execution: ClassVar[bool] = True

    def __init__(self, name: str = "tests") -> None:
        self.name = name

    def applies_to(self, task: CodeTask) -> bool:
        """Tasks in a language that can be run, with at least one visible test."""
        return task.language in EXECUTABLE and any(test.visible for test in task.tests)

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Read the visible outcomes of ``Sample.execution``."""
        return [self._score(sample) for sample in samples]

    @staticmethod
    def _score(sample: Sample) -> RewardResult:
        if is_empty(sample):
            return RewardResult(0.0, details={"status": "empty"})
        result = sample.execution
        if result is None:
            return RewardResult(None, error="the program was not executed")
        if result.status == "infra":  # our fault: masked and counted, never 0
            return RewardResult(None, error=f"sandbox: {result.exception or 'infra'}")
        visible = [outcome for outcome in result.per_test if outcome.visible]
        lines = Counter(outcome.line for outcome in visible if outcome.line is not None)
        details = {
            "passed": sum(outcome.passed for outcome in visible), "tests": len(visible), "status": result.status,
            "level": result.level, "trust": result.trust,
        }  # fmt: skip
        return RewardResult(result.share_passed(visible=True), _spans(sample.program, lines), details)


def _spans(program: str, lines: Counter[int]) -> tuple[Span, ...]:
    starts = line_starts(program)
    found = (line_span(program, starts, line, float(count)) for line, count in sorted(lines.items()))
    return tuple(span for span in found if span is not None)
