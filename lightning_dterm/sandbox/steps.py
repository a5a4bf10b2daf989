"""What one job takes, process by process: visible tests first, the rest after a hang, a second pass for the cost."""

from __future__ import annotations

import secrets
import socket
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_dterm.sandbox import wire
from lightning_dterm.sandbox.judge import Judged, overall
from lightning_dterm.sandbox.result import Job, Limits, Result
from lightning_dterm.sandbox.wire import MAX_COST
from lightning_dterm.types import CallTest

# A count is plausible up to so many CPU seconds after the program was instrumented. What is free is its imports; on a
# machine with four times as many processes as cores honest programs took up to 9 ms, and 1.8 us a unit.
_PLAUSIBLE_S, _PLAUSIBLE_S_PER_UNIT = 0.03, 5e-6
_MAX_SUITES = 64


@dataclass(frozen=True, slots=True)
class Step:
    """One process's share: the tests from ``start`` to ``stop`` (in a suite's order), and whether to count the cost."""

    start: int
    stop: int
    metered: bool


class Suite:
    """The tests of a job in the order that they run in, visible ones first, with the calls packed once for all.

    Attributes:
        source: The tests in the job's order.
        order: Places in it, in the order of running.
        tests: The tests in that order.
    """

    def __init__(self, source: Sequence[CallTest]) -> None:
        self.source = source
        self.order = sorted(range(len(source)), key=lambda place: not source[place].visible)
        self.tests = tuple(source[place] for place in self.order)
        self.n_visible = sum(test.visible for test in source)
        self._packed: dict[int, bytes] = {}

    def part(self, step: Step) -> tuple[CallTest, ...]:
        """The tests of a step."""
        return self.tests[step.start : step.stop]

    def packed(self, step: Step) -> bytes:
        """The calls of a step, see :func:`wire.pack_calls`."""
        if step.start:  # after a hang: seldom the same twice
            return wire.pack_calls(test.args for test in self.part(step))
        if step.stop not in self._packed:
            self._packed[step.stop] = wire.pack_calls(test.args for test in self.part(step))
        return self._packed[step.stop]


class Suites:
    """The suites last used, by the identity of the jobs' tests: many programs come with the same tests."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, Suite] = OrderedDict()

    def of(self, tests: Sequence[CallTest]) -> Suite:
        """The suite of these tests."""
        suite = self._known.get(id(tests))
        if suite is None:  # each keeps its tests alive, so an identity is not used twice
            suite = self._known[id(tests)] = Suite(tests)
            if len(self._known) > _MAX_SUITES:
                self._known.popitem(last=False)
        return suite


@dataclass(eq=False)
class Run:
    """One process's worth of a job.

    Attributes:
        program / entry_point / limits: See :class:`Job`.
        suite: Its tests.
        step: Which of them, and whether to count the cost.
        settle: Called with the verdict, or with what kept us from one.
        task: What it belongs to, for whoever has to run it elsewhere.
    """

    program: str
    entry_point: str | None
    limits: Limits
    suite: Suite
    step: Step
    settle: Callable[[Judged | Exception], None]
    task: Any = None

    def __post_init__(self) -> None:
        metered = self.step.metered
        self.number = 0
        self.nonce = secrets.token_bytes(16)
        self.cpu_s = self.limits.cpu_s + (4.0 if metered else 0.0)  # metering is slower; the count itself is capped
        self.wall_s = self.limits.wall_s + (8.0 if metered else 0.0)
        self.ours: socket.socket | None = None
        self.unsent = memoryview(b"")
        self.received = bytearray()
        self.since = 0.0  # when it was its turn
        self.open, self.stopped = True, False

    def payload(self) -> bytes:
        """What its process is sent.

        Raises:
            ValueError: an argument is no plain data.
        """
        calls = self.suite.packed(self.step)
        return wire.pack_job(self.nonce, self.step.metered, self.program, self.entry_point, calls)

    def send(self) -> None:
        """Send what the socket takes of the payload; a dead child shows elsewhere."""
        assert self.ours is not None
        try:
            while self.unsent:
                self.unsent = self.unsent[self.ours.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent = self.unsent[:0]

    def drain(self) -> bool:
        """Take the claims that are there; False at their end."""
        assert self.ours is not None
        while len(self.received) <= wire.MAX_CLAIMS:
            try:
                chunk = self.ours.recv(1 << 16)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not chunk:
                return False
            self.received += chunk
        return True


Steps = Generator[Step, Judged, Judged]


def steps_of(job: Job, suite: Suite, default: Limits) -> Steps:
    """Yields what to run in a process of its own and is sent how it was judged; returns the verdict.

    Args:
        job: The job.
        suite: Its tests.
        default: Limits of jobs without their own.
    """
    judged = yield from _to_the_end(len(suite.tests), (job.limits or default).restarts)
    result = judged.result if job.trust == judged.result.trust else replace(judged.result, trust=job.trust)
    n_visible = suite.n_visible
    if job.measure_cost and n_visible and all(outcome.passed for outcome in result.per_test[:n_visible]):
        # On visible tests alone: a hidden test must not reach any reward, not even through a cost.
        again = yield Step(0, n_visible, True)
        result = replace(result, cost=_plausible(again.result))
        if again.result.status == "infra":  # an accident of ours is no lack of a cost
            result = replace(result, status="infra", exception=again.result.exception)
    if n_visible in (0, len(suite.tests)):
        return replace(judged, result=result)
    per_test = list(result.per_test)
    for place, index in enumerate(suite.order):
        per_test[index] = result.per_test[place]
    kept = {suite.order[place]: value for place, value in judged.kept.items()}
    return Judged(replace(result, per_test=tuple(per_test)), kept)


def judge_job(job: Job, default: Limits, attempt: Callable[[Job, Sequence[CallTest], bool], Judged]) -> Judged:
    """The verdict on a job whose processes ``attempt`` runs: some tests, with or without the cost."""
    suite = Suite(job.tests)
    steps = steps_of(job, suite, default)
    step = next(steps)
    while True:
        try:
            step = steps.send(attempt(job, suite.part(step), step.metered))
        except StopIteration as end:
            judged: Judged = end.value
            return judged


def _to_the_end(n_tests: int, restarts: int) -> Steps:
    judged = yield Step(0, n_tests, False)
    hung = judged.hung
    while hung is not None and hung + 1 < n_tests and restarts > 0:
        restarts -= 1
        again = yield Step(hung + 1, n_tests, False)
        judged = _merge(judged, again, hung + 1)
        hung = None if again.hung is None else hung + 1 + again.hung
    return judged


def _plausible(again: Result) -> int | None:
    """The cost, unless the CPU time that the kernel measured says that a process claims too little."""
    if again.cost is None or not (again.passed or again.cost == MAX_COST):
        return None
    enough = again.cpu_s <= _PLAUSIBLE_S + _PLAUSIBLE_S_PER_UNIT * again.cost
    return again.cost if enough or again.cost == MAX_COST else None


def _merge(first: Judged, second: Judged, start: int) -> Judged:
    """One verdict from two processes, the second of which ran the tests from ``start`` on."""
    one, two = first.result, second.result
    per_test = one.per_test[:start] + two.per_test
    if two.status == "forged":
        per_test = tuple(replace(outcome, passed=False, status="forged") for outcome in per_test)
    result = replace(
        one, status=two.status if two.status in ("forged", "infra") else overall([o.status for o in per_test]),
        per_test=per_test, lines=tuple(dict.fromkeys(one.lines + two.lines)), cpu_s=one.cpu_s + two.cpu_s,
        wall_s=one.wall_s + two.wall_s, peak_rss=max(one.peak_rss, two.peak_rss), attempts=one.attempts + two.attempts,
    )  # fmt: skip
    return Judged(result, {**first.kept, **{start + place: value for place, value in second.kept.items()}})
