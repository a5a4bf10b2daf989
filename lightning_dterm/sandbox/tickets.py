"""Jobs on their way to a judge and back: what a client keeps of each, and the verdicts in the order of the jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from lightning_dterm.sandbox.expect import Expectation
from lightning_dterm.sandbox.judge import Judged, Keep, overall
from lightning_dterm.sandbox.result import Job, Result


@dataclass(eq=False)
class Ticket:
    """One job on its way: where it stands, and at last its result or the error to raise.

    ``attempts`` counts judges lost while they had this job and no other, ``crashes`` those of them that nobody killed.
    """

    job: Job
    number: int = 0
    attempts: int = 0
    crashes: int = 0
    result: Result | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether it has been judged."""
        return self.result is not None or self.error is not None

    def portable(self) -> Job:
        """The job for another process: expected values that only this one can ask are left here."""
        if not any(_asks_here(test.expected) for test in self.job.tests):
            return self.job
        tests = tuple(replace(t, expected=Keep()) if _asks_here(t.expected) else t for t in self.job.tests)
        return replace(self.job, tests=tests)


class Results(Sequence[Result]):
    """Verdicts in the order of their jobs, each waited for when it is asked for; the judging goes on meanwhile."""

    def __init__(self, tickets: Sequence[Ticket], wait: Callable[[Ticket], Result]) -> None:
        self._tickets, self._wait = tickets, wait

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """The jobs on their way, in order."""
        return tuple(self._tickets)

    def __len__(self) -> int:
        return len(self._tickets)

    @overload
    def __getitem__(self, index: int) -> Result: ...

    @overload
    def __getitem__(self, index: slice) -> list[Result]: ...

    def __getitem__(self, index: int | slice) -> Result | list[Result]:
        if isinstance(index, slice):
            return [self._wait(ticket) for ticket in self._tickets[index]]
        return self._wait(self._tickets[index])

    def __iter__(self) -> Iterator[Result]:
        for ticket in self._tickets:
            yield self._wait(ticket)


def settle(ticket: Ticket, judged: Judged) -> None:
    """Give a ticket its result, asking the expected values that stayed in this process."""
    result = judged.result
    if judged.kept:
        outcomes = list(result.per_test)
        for place, value in judged.kept.items():
            if not ticket.job.tests[place].expected.accepts(value):
                outcomes[place] = replace(outcomes[place], passed=False, status="failed")
        status = overall([outcome.status for outcome in outcomes]) if result.status == "passed" else result.status
        result = replace(result, per_test=tuple(outcomes), status=status)
    ticket.result = result


def _asks_here(expected: Any) -> bool:
    """Whether an expected value is an object that only this process can ask."""
    return hasattr(expected, "accepts") and not isinstance(expected, Expectation)
