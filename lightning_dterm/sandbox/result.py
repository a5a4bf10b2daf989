"""What the sandbox says of a program: statuses, limits, jobs and results. Plain frozen data, no execution here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_dterm.types import CallTest

Status = Literal["passed", "failed", "error", "timeout", "memory", "output", "exited", "killed", "forged", "infra"]
STATUSES: tuple[str, ...] = get_args(Status)
Trust = Literal["values", "in_process"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits of one program (all its tests together).

    Attributes:
        cpu_s: CPU seconds; the limit that bad programs are meant to hit, because load on the machine cannot move it.
        wall_s: Wall-clock seconds; generous, for programs that sleep or block.
        memory_mb: Address space in MiB (the interpreter itself takes about 40).
        output_kb: Bytes in KiB that may be written to any one file, standard output included.
        restarts: After a test that ran out of time, how many more processes (each with these limits) the tests that
            remain may have; 0 counts them as timed out too.
    """

    cpu_s: float = 2.0
    wall_s: float = 10.0
    memory_mb: int = 512
    output_kb: int = 64
    restarts: int = 1

    def __post_init__(self) -> None:
        for name in ("cpu_s", "wall_s", "memory_mb", "output_kb"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Limits.{name} must be positive, got {getattr(self, name)!r}.")
        if self.restarts < 0:
            raise ValueError(f"Limits.restarts must not be negative, got {self.restarts!r}.")
        if self.memory_mb < 64:
            raise ValueError(f"Limits.memory_mb must be at least 64 (the interpreter needs 40), got {self.memory_mb}.")


@dataclass(frozen=True, slots=True)
class Job:
    """One program to judge.

    Attributes:
        program: Python source.
        entry_point: The function that the tests call; ``None`` compiles the program without running any of it.
        tests: Calls and expected values. Only the arguments ever reach the program's process.
        measure_cost: Count operations over the visible tests in a second pass (if all of them passed).
        limits: Limits of this program; default: the sandbox's.
        trust: ``in_process`` where the tests themselves run in the program's process, so that the verdict is only a
            claim; stamped on the result.
    """

    program: str
    entry_point: str | None
    tests: tuple[CallTest, ...] = ()
    measure_cost: bool = False
    limits: Limits | None = None
    trust: Trust = "values"

    def __post_init__(self) -> None:
        if self.tests and self.entry_point is None:
            raise ValueError("Job has tests but entry_point is None: name the function that the tests call.")


@dataclass(frozen=True, slots=True)
class CompileError:
    """One compiler diagnostic; lines and columns are 1-based, columns count characters, the end is exclusive."""

    message: str
    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, slots=True)
class TestOutcome:
    """Outcome of one test.

    Attributes:
        passed: It returned the expected value.
        status: One of :data:`STATUSES`.
        visible: Whether a reward may see it.
        line: Program line (1-based) where it raised or hung; claimed by the program's own process.
        cpu_s: CPU seconds of the call; claimed likewise, None where it did not return.
        trust: As in :class:`Result`, of this test.
    """

    __test__ = False  # not a pytest class

    passed: bool
    status: str
    visible: bool
    line: int | None = None
    cpu_s: float | None = None
    trust: Trust = "values"


@dataclass(frozen=True, slots=True)
class Result:
    """Verdict on one program.

    Attributes:
        status: ``passed`` (every test), ``failed`` (a wrong value), ``error`` (does not compile, or raised),
            ``timeout`` (CPU or wall clock), ``memory``, ``output`` (wrote too much), ``exited`` (left on its own),
            ``killed`` (a signal), ``forged`` (broke the result protocol; no test passes), ``infra`` (our fault, after
            one retry: mask it, never score it 0).
        per_test: One outcome per test of the job, in the job's order.
        lines: Distinct program lines (1-based) where tests raised or hung. Diagnostics from the program's own process:
            untrusted, no reward may rest on a line number alone.
        exception: First exception as ``Type: message``, at most 300 characters; untrusted as well.
        cpu_s / wall_s / peak_rss: Usage of the program's process; seconds, seconds, bytes.
        level: Isolation it ran under, a label of :class:`lightning_dterm.sandbox.Level`.
        compile_error: The first compiler error, if the program does not compile.
        cost: Operations over the visible tests, see :mod:`lightning_dterm.sandbox.meter`; ``None`` unless asked for,
            unless those tests passed, and where the program cannot be metered.
        further_errors: Errors found after blanking the lines of the earlier ones, at most 4.
        trust: ``values``: the judge compared values; ``in_process``: the program's own process judged itself.
        attempts: Processes it took; more than one after a hang with tests left, or after an accident of ours.
    """

    status: Status
    per_test: tuple[TestOutcome, ...] = ()
    lines: tuple[int, ...] = ()
    exception: str | None = None
    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_rss: int = 0
    level: str = "none"
    compile_error: CompileError | None = None
    cost: int | None = None
    further_errors: tuple[CompileError, ...] = ()
    trust: Trust = "values"
    attempts: int = 1

    @property
    def passed(self) -> bool:
        """Every test passed."""
        return self.status == "passed"

    @property
    def compile_errors(self) -> tuple[CompileError, ...]:
        """All compiler errors found, the first one first."""
        return () if self.compile_error is None else (self.compile_error, *self.further_errors)

    def share_passed(self, *, visible: bool) -> float | None:
        """Share of the visible (or hidden) tests passed, in [0, 1]; ``None`` where there is no such test."""
        outcomes = [outcome.passed for outcome in self.per_test if outcome.visible == visible]
        return sum(outcomes) / len(outcomes) if outcomes else None

    def claimed(self, *, visible: bool | None = None) -> bool:
        """Whether a test (a visible one, a hidden one) ran in the program's own process, so that it is only a claim.

        Where no single test says so, :attr:`trust` speaks for all of them.
        """
        if self.trust == "values":
            return False
        marked = [outcome for outcome in self.per_test if outcome.trust == "in_process"]
        return not marked or any(visible in (None, outcome.visible) for outcome in marked)


def to_plain(result: Result) -> list[Any]:
    """A result as JSON-ready data, its fields in order."""
    per_test = [[test.passed, test.status, test.visible, test.line, test.cpu_s] for test in result.per_test]
    errors = [[e.message, e.line, e.column, e.end_line, e.end_column] for e in result.compile_errors]
    return [
        result.status, per_test, result.lines, result.exception, result.cpu_s, result.wall_s, result.peak_rss,
        result.level, errors, result.cost, result.trust, result.attempts,
    ]  # fmt: skip


def from_plain(data: Sequence[Any]) -> Result:
    """The result that :func:`to_plain` was given."""
    status, per_test, lines, exception, cpu_s, wall_s, peak_rss, level, errors, cost, trust, attempts = data
    found = tuple(CompileError(*error) for error in errors)
    outcomes = tuple(TestOutcome(*outcome) for outcome in per_test)
    return Result(
        status, outcomes, tuple(lines), exception, cpu_s, wall_s, peak_rss, level, found[0] if found else None, cost,
        found[1:], trust, attempts,
    )  # fmt: skip
