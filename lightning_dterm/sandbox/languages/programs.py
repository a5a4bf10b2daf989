"""Runs compiled programs of several languages against stdin/stdout tests and call tests; the parent judges."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from lightning_dterm.sandbox.languages.backend import Backend
from lightning_dterm.sandbox.languages.compilers import Compilers, canonical
from lightning_dterm.sandbox.languages.diagnostics import Report
from lightning_dterm.sandbox.languages.drivers import (
    DRIVER_CLASS,
    asset,
    claims,
    driver_input,
    program_with_driver,
)
from lightning_dterm.sandbox.languages.output import Malformed, OutputRule, same_output, same_value
from lightning_dterm.sandbox.languages.process import Command, Ended, LauncherLost
from lightning_dterm.sandbox.result import CompileError, Limits, Result, Status, TestOutcome
from lightning_dterm.types import CallTest

_MAX_RESTARTS = 8
_OUT_OF_MEMORY = (b"std::bad_alloc", b"OutOfMemoryError", b"heap out of memory", b"Cannot allocate memory")


@dataclass(frozen=True, slots=True)
class IOTest:
    """Text for standard input and the text expected on standard output; ``visible`` as in :class:`CallTest`."""

    stdin: str
    expected: str
    visible: bool = True


@dataclass(frozen=True, slots=True)
class ProgramJob:
    """One program to build and judge.

    Attributes:
        language: Any name the registry knows, of a language whose programs can be run.
        program: Its source.
        tests: All :class:`IOTest`, or all :class:`CallTest` (C, C++, Java, JavaScript).
        entry_point: The function that call tests call.
        rule: How output is compared, see :func:`same_output`.
        tolerance: Tolerance of floats in output; None compares text.
        limits: Limits of this program's processes; default: those of :class:`Programs`.
    """

    language: str
    program: str
    tests: tuple[IOTest, ...] | tuple[CallTest, ...]
    entry_point: str | None = None
    rule: OutputRule = "tokens"
    tolerance: float | None = None
    limits: Limits | None = None

    def __post_init__(self) -> None:
        if not self.tests:
            raise ValueError("ProgramJob needs at least one test; to compile only, use Compilers.check.")
        if len({type(test) for test in self.tests}) > 1:
            raise ValueError("ProgramJob: tests must all be IOTest or all be CallTest.")
        if isinstance(self.tests[0], CallTest) and not self.entry_point:
            raise ValueError("ProgramJob has call tests but no entry_point: name the function that they call.")


class Programs:
    """Builds and runs programs in the exec profile of the sandbox.

    Limits hold for each process: one per :class:`IOTest`; one for all call tests, started again after the test in
    which it ended. After more than ``limits.restarts`` tests that ran into a time limit the rest counts as timed out.

    Args:
        compilers: Where programs are built and run; not closed here.
        limits: Limits of each process. JVM and node need more than a native program: their start is part of it.
    """

    def __init__(self, compilers: Compilers, limits: Limits | None = None) -> None:
        self.compilers, self.limits = compilers, limits or Limits()

    def run(self, job: ProgramJob) -> Result | None:
        """Judge one program; None where its compiler is not installed."""
        return self.run_many([job])[0]

    def run_many(self, jobs: Sequence[ProgramJob]) -> list[Result | None]:
        """Judge programs, as many at a time as the compilers have slots; in order.

        Raises:
            ValueError: a language whose programs cannot be run, or arguments that cannot be passed.
            LauncherUnavailable: they cannot be isolated as required.
        """
        for job in jobs:
            backend = self.compilers.backends.get(canonical(job.language))
            if backend is None or not backend.runs:
                known = sorted(name for name, one in self.compilers.backends.items() if one.runs)
                raise ValueError(f"Programs in {job.language!r} cannot be run here; known: {', '.join(known)}.")
        reports = self.compilers.build_many([self._source(job) for job in jobs])
        return list(self.compilers.map(lambda pair: self._judge(*pair), list(zip(jobs, reports, strict=True))))

    def _source(self, job: ProgramJob) -> tuple[str, str]:
        language = canonical(job.language)
        calls = [test for test in job.tests if isinstance(test, CallTest)]
        if calls and job.entry_point:
            return language, program_with_driver(language, job.program, job.entry_point, calls)
        return language, job.program

    def _judge(self, job: ProgramJob, report: Report | None) -> Result | None:
        if report is None:
            return None
        if report.status == "infra":
            return _all(job, "infra", report.reason)
        if report.artifact is None:
            return not_built(job.tests, report)
        backend = self.compilers.backends[canonical(job.language)]
        try:
            run = _Run(self, backend, job, report.artifact)
            return run.calls() if isinstance(job.tests[0], CallTest) else run.texts()
        except LauncherLost as error:
            return _all(job, "infra", str(error))


class _Run:
    """One built program and what its processes have used so far."""

    def __init__(self, owner: Programs, backend: Backend, job: ProgramJob, artifact: bytes) -> None:
        self.owner, self.backend, self.job, self.artifact = owner, backend, job, artifact
        self.language = canonical(job.language)
        self.outcomes: list[TestOutcome] = []
        self.exception: str | None = None
        self.cpu_s = self.wall_s = 0.0
        self.limits = job.limits or owner.limits
        self.peak, self.hangs, self.attempts, self.level = 0, 0, 0, "none"

    def texts(self) -> Result:
        """One process per test."""
        if self.language == "java" and not json.loads(self.artifact)["main"]:
            return _all(self.job, "error", "the program has no public static void main(String[])")
        for test in self.job.tests:
            assert isinstance(test, IOTest)
            if self.hangs > self.limits.restarts:
                self._note("timeout", test.visible)
                continue
            stdin = test.stdin.encode("utf-8", "replace")
            ended = self._start(self.backend.command(self.artifact, stdin, self.limits))
            status = _trouble(ended, self.limits)
            right = same_output(ended.stdout, test.expected, self.job.rule, self.job.tolerance)
            if status is None and self.language not in self.backend.any_exit and ended.code != 0:
                status = "error"
                self._explain(ended)
            self._note(status or ("passed" if right else "failed"), test.visible)
        return self._result()

    def calls(self) -> Result:
        """One process for all tests, started again behind the test in which it ended."""
        tests = [test for test in self.job.tests if isinstance(test, CallTest)]
        artifact, classes = self._with_driver()
        starts = 0
        while len(self.outcomes) < len(tests):
            starts += 1
            rest = [(number, test) for number, test in enumerate(tests)][len(self.outcomes) :]
            if self.hangs > self.limits.restarts or starts > _MAX_RESTARTS:
                status: Status = "timeout" if self.hangs > self.limits.restarts else "error"
                for _, test in rest:
                    self._note(status, test.visible)
                break
            mark = secrets.token_hex(16)
            stdin = driver_input(self.language, self.job.entry_point or "", classes, rest, mark)
            ended = self._start(self.backend.command(artifact, stdin, self.limits))
            try:
                found = claims(ended.stdout, mark, len(rest))
            except Malformed as error:
                return self._all("forged", str(error))
            for (value, exception), (_, test) in zip(found, rest[: len(found)], strict=True):
                self.exception = self.exception or exception
                right = exception is None and same_value(value, test.expected, self.language)
                self._note("error" if exception else "passed" if right else "failed", test.visible)
            if len(found) < len(rest):
                self._explain(ended)
                self._note(_trouble(ended, self.limits) or "exited", rest[len(found)][1].visible)
        return self._result()

    def _with_driver(self) -> tuple[bytes, list[str]]:
        """A Java program together with its driver's classes; others carry their driver already."""
        if self.language != "java":
            return self.artifact, []
        driver = self.owner.compilers.build("java", asset(f"{DRIVER_CLASS}.java"))
        if driver is None or driver.artifact is None:
            raise LauncherLost(f"the driver for Java does not compile: {driver}")
        bundle, ours = json.loads(self.artifact), json.loads(driver.artifact)
        classes = sorted(bundle["classes"], key=lambda name: (name not in ("Solution", "Main"), name))
        merged = {"main": DRIVER_CLASS, "classes": {**bundle["classes"], **ours["classes"]}}
        return json.dumps(merged).encode(), classes

    def _start(self, command: Command) -> Ended:
        ended, self.level = self.owner.compilers.run(command)
        if ended.error:
            raise LauncherLost(ended.error)
        self.attempts += 1
        self.cpu_s += ended.cpu_s
        self.wall_s += ended.wall_s
        self.peak = max(self.peak, ended.peak_rss)
        return ended

    def _note(self, status: Status, visible: bool) -> None:
        self.hangs += status == "timeout"
        self.outcomes.append(TestOutcome(status == "passed", status, visible))

    def _explain(self, ended: Ended) -> None:
        if self.exception is None:
            lines = [line for line in ended.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
            told = next((line for line in lines if "Error" in line or "Exception" in line), lines[-1] if lines else "")
            self.exception = told.strip()[:300] or f"exit code {ended.code}, signal {ended.signal}"

    def _result(self) -> Result:
        statuses = [one.status for one in self.outcomes if not one.passed]
        return self._made(cast(Status, statuses[0]) if statuses else "passed", tuple(self.outcomes), self.exception)

    def _all(self, status: Status, reason: str) -> Result:
        outcomes = tuple(TestOutcome(False, status, test.visible) for test in self.job.tests)
        return self._made(status, outcomes, reason[:300])

    def _made(self, status: Status, outcomes: tuple[TestOutcome, ...], exception: str | None) -> Result:
        return Result(
            status, outcomes, (), exception, self.cpu_s, self.wall_s, self.peak, self.level, attempts=self.attempts
        )


def _trouble(ended: Ended, limits: Limits) -> Status | None:
    """Why a process did not end by itself; None where it did."""
    if (limit := ended.limit(limits.cpu_s)) is not None:
        return limit
    if (ended.signal or ended.code) and any(words in ended.stderr for words in _OUT_OF_MEMORY):
        return "memory"
    return "killed" if ended.signal else None


def _all(job: ProgramJob, status: Status, reason: str) -> Result:
    return Result(status, tuple(TestOutcome(False, status, test.visible) for test in job.tests), exception=reason[:300])


def not_built(tests: Sequence[IOTest | CallTest], report: Report) -> Result:
    """A program that does not compile: its errors, those with a place, as the sandbox gives Python's."""
    errors = [
        CompileError(one.message, one.line, one.column or 1, one.end_line or one.line, one.end_column or 1)
        for one in report.errors
        if one.line is not None
    ]
    reason = report.reason or (report.errors[0].message if report.errors else "it does not compile")
    outcomes = tuple(TestOutcome(False, "error", test.visible) for test in tests)
    first = errors[0] if errors else None
    return Result("error", outcomes, exception=reason[:300], compile_error=first, further_errors=tuple(errors[1:5]))
