"""Python programs that read standard input and write standard output: a process per test, then one verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_dterm.sandbox import Job, Level, Limits, Result, TestOutcome
from lightning_dterm.sandbox.languages import IOTest
from lightning_dterm.sandbox.languages.output import OutputRule, same_output
from lightning_dterm.task_tests import TaskTests
from lightning_dterm.types import CallTest

_RUNTIME = f"exec({Path(__file__).with_name('sandbox').joinpath('text_runtime.py').read_text('utf-8')!r})\n"
_MOST_AT_ONCE = 8


@dataclass(frozen=True, slots=True, eq=False)
class _Printed:
    """Stands where an expected value would: accepts the bytes of the right output. Stays in this process."""

    test: IOTest
    rule: OutputRule
    tolerance: float | None

    def accepts(self, returned: Any) -> bool:
        """Whether that is the right output."""
        return type(returned) is bytes and same_output(returned, self.test.expected, self.rule, self.tolerance)


class TextRun:
    """One Python program against its texts, wave by wave; one that does not compile is not run."""

    def __init__(self, program: str, tests: TaskTests, broken: bool) -> None:
        self.program, self.tests, self.broken = program, tests, broken
        self.results: list[Result] = []
        self.size = 0

    def done(self, limits: Limits) -> bool:
        """Whether no test is left to run."""
        hangs = sum(result.status == "timeout" for result in self.results)
        lost = any(result.status in ("infra", "forged") for result in self.results)
        return self.broken or lost or hangs > limits.restarts or len(self.results) == len(self.tests.texts)

    def jobs(self, limits: Limits) -> list[Job]:
        """The next wave."""
        self.size = min(max(1, 2 * self.size), _MOST_AT_ONCE)
        return [self._job(test, limits) for test in self.tests.texts[len(self.results) :][: self.size]]

    def _job(self, test: IOTest, limits: Limits) -> Job:
        stdin = test.stdin.encode("utf-8", "replace")
        room = replace(limits, output_kb=limits.output_kb + len(stdin) // 1024, restarts=0)  # its input is a file too
        expected = _Printed(test, self.tests.rule, self.tests.tolerance)
        return Job(_RUNTIME, "run_text", (CallTest((self.program, stdin), expected, test.visible),), limits=room)

    def take(self, result: Result) -> None:
        """The result of the next test."""
        self.results.append(result)

    def result(self) -> Result:
        """The verdict; tests behind one too many that hung count as hung."""
        found = together(self.results) if self.results else Result("error")
        status = found.status if self.broken or found.status in ("infra", "forged") else "timeout"
        left = self.tests.texts[len(self.results) :]
        return replace(found, per_test=found.per_test + tuple(TestOutcome(False, status, one.visible) for one in left))


def together(parts: Sequence[Result]) -> Result:
    """One result of several runs of the same program: the first failure counts, ``infra`` and ``forged`` before any."""
    if len(parts) == 1:
        return parts[0]
    statuses = [part.status for part in parts]
    verdict = next((status for status in ("infra", "forged") if status in statuses), None)
    outcomes = tuple(outcome for part in parts for outcome in part.per_test)
    if verdict is not None:
        outcomes = tuple(replace(outcome, passed=False, status=verdict) for outcome in outcomes)
    broken = next((part for part in parts if part.compile_error is not None), None)
    failures = [part for part in parts if part.status == verdict or (verdict is None and part.status != "passed")]
    first = failures[0] if failures else parts[0]
    return Result(
        status=first.status,
        per_test=outcomes,
        lines=tuple(dict.fromkeys(line for part in parts for line in part.lines)),
        exception=first.exception or next((part.exception for part in parts if part.exception), None),
        cpu_s=sum(part.cpu_s for part in parts),
        wall_s=sum(part.wall_s for part in parts),
        peak_rss=max(part.peak_rss for part in parts),
        level=min((part.level for part in parts), key=Level.parse),
        compile_error=broken.compile_error if broken else None,
        cost=next((part.cost for part in parts if part.cost is not None), None),
        further_errors=broken.further_errors if broken else (),
        trust="in_process" if any(part.trust == "in_process" for part in parts) else "values",
        attempts=sum(part.attempts for part in parts),
    )
