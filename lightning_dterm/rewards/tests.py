"""Share of a task's visible unit tests that the program passes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lightning_dterm.execution import judge_for
from lightning_dterm.rewards.base import RewardComponent, is_empty, line_span, line_starts
from lightning_dterm.task_tests import has_tests
from lightning_dterm.types import CodeTask, RewardResult, Sample, Span

if TYPE_CHECKING:
    from lightning_dterm.sandbox import Sandbox

_log = logging.getLogger(__name__)


class TestsReward(RewardComponent):
    """``passed / visible tests``. Hidden tests never count: they are the success metric's.

    Tests are calls, Python assertions or text in against text out (:mod:`lightning_dterm.task_tests`), in Python, C,
    C++, Java and JavaScript (:mod:`lightning_dterm.execution`). Evidence: the lines where visible tests raised or hung,
    weighted by how many did; none where none did (uniform). ``details`` carry the sandbox's status, level and trust.
    Not applicable without visible tests, to prose, and to languages that cannot be run or whose compiler is not
    installed; a program that the sandbox could not judge (``infra``) is a failure of ours: masked. Masked, too, are
    tasks with a visible test that had to run in the program's own process (``trust="in_process"``): what it says is the
    program's claim, which a class that equals everything makes true. One warning names the first of them.

    Args:
        name: Column name.
        in_process: Score such claims too: the explicit opt-in, for programs that are not out to win.
    """

    __test__ = False  # not a pytest class
    needs_execution: ClassVar[bool] = True
    overlaps = True

    def __init__(self, name: str = "tests", in_process: bool = False) -> None:
        self.name, self.in_process = name, in_process
        self._sandbox: Sandbox | None = None
        self._warned = False

    def setup(self, sandbox: Sandbox | None = None) -> None:
        """Take the run's sandbox, whose judge knows what can be run."""
        self._sandbox = sandbox

    def applies_to(self, task: CodeTask) -> bool:
        """Tasks in a language that can be run here, with at least one visible test."""
        return has_tests(task, visible=True) and judge_for(self._sandbox).runs(task.language)

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Read the visible outcomes of ``Sample.execution``."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> RewardResult:
        if is_empty(sample):
            return RewardResult(0.0, details={"status": "empty"})
        result = sample.execution
        if result is None:
            return RewardResult(None, error="the program was not executed")
        if result.status == "infra":  # our fault: masked and counted, never 0
            return RewardResult(None, error=f"sandbox: {result.exception or 'infra'}")
        trust = "in_process" if result.claimed(visible=True) else "values"
        if trust == "in_process" and not self.in_process:
            self._say_masked(sample.task)
            return RewardResult(None, details={"trust": trust})
        visible = [outcome for outcome in result.per_test if outcome.visible]
        lines = Counter(outcome.line for outcome in visible if outcome.line is not None)
        details = {
            "passed": sum(outcome.passed for outcome in visible), "tests": len(visible), "status": result.status,
            "level": result.level, "trust": trust,
        }  # fmt: skip
        return RewardResult(result.share_passed(visible=True), _spans(sample.program, lines), details)

    def _say_masked(self, task: CodeTask) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s: a test of task %r needs the program's own process, where a program can claim what it likes: the "
                "task is masked, as all such tasks are. TestsReward(in_process=True) scores the claims.",
                self.name, task.task_id,
            )  # fmt: skip


def _spans(program: str, lines: Counter[int]) -> tuple[Span, ...]:
    starts = line_starts(program)
    found = (line_span(program, starts, line, float(count)) for line, count in sorted(lines.items()))
    return tuple(span for span in found if span is not None)
