"""From a process's claims and its exit to a verdict. Pure: bytes and numbers in, :class:`Result` out."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_dterm.sandbox import wire
from lightning_dterm.sandbox.compare import equal
from lightning_dterm.sandbox.expect import Expectation
from lightning_dterm.sandbox.result import CompileError, Limits, Result, Status, TestOutcome
from lightning_dterm.types import CallTest

MAX_COST = wire.MAX_COST
_MAX_MICROSECONDS = 1 << 42
OOM_SHARE = 0.75  # of the limit: a program killed above it brought the machine's out-of-memory killer on itself
_KINDS: dict[str, Status] = {"raised": "error", "memory": "memory", "exited": "exited"}


@dataclass(frozen=True, slots=True)
class Exit:
    """How the child ended, from the kernel by way of the zygote: the part that cannot be forged."""

    wait_status: int
    cpu_s: float
    wall_s: float
    peak_rss: int
    timed_out: bool = False
    stopped: bool = False
    flooded: bool = False
    hang_line: int | None = None


class Keep:
    """Stands for an expected value that the trainer itself will judge: whatever is returned passes and is kept."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict and what it takes to go on after a hang.

    Attributes:
        result: The verdict.
        kept: Returned values of the tests that expect :class:`Keep`, by place.
        hung: Place of the test that ran out of time, None where none did.
    """

    result: Result
    kept: dict[int, Any] = field(default_factory=dict)
    hung: int | None = None


@dataclass(slots=True)
class Claims:
    """What the child said, in the order an honest harness says it."""

    accepted: bool = False
    compiled: bool = False
    loaded: bool = False
    compile_errors: tuple[CompileError, ...] = ()
    load_failure: tuple[Status, str, int | None] | None = None
    returned: list[tuple[Status | None, Any, int | None, float]] = field(default_factory=list)
    done: bool = False
    cut: bool = False
    cost: int | None = None
    prepared_s: float = 0.0


def parse_claims(buffer: bytes, nonce: bytes, n_tests: int, runs: bool, metered: bool = False) -> Claims:
    """Parse the bytes a child sent; accepts a prefix of the honest sequence and nothing else.

    Args:
        buffer: All bytes received.
        nonce: The 16 bytes given to this child.
        n_tests: Number of calls it was given.
        runs: False where the program was only to be compiled.
        metered: Whether it was to count its cost, which ends early at :data:`MAX_COST`.

    Raises:
        wire.Forged: malformed, duplicate, oversized, missing or unexpected frame.
    """
    claims = Claims()
    frames, claims.cut = wire.split_frames(buffer, nonce)
    expected = wire.ACCEPTED
    for kind, claim in frames:
        capped = metered and kind == wire.DONE and claim == MAX_COST and claims.compiled and not claims.done
        if kind != expected and not capped:
            raise wire.Forged("frame out of order")
        if kind == wire.ACCEPTED:
            claims.accepted, expected = True, wire.COMPILED
        elif kind == wire.COMPILED:
            claims.compiled = True
            if metered:  # said before anything of the program's runs
                claims.prepared_s = _seconds(claim)
            else:
                claims.compile_errors = _compile_errors(claim)
            expected = wire.DONE if claims.compile_errors or not runs else wire.LOADED
        elif kind == wire.LOADED:
            claims.load_failure = None if claim == ["ok"] else _failure(claim)
            claims.loaded = claims.load_failure is None
            expected = wire.DONE if claims.load_failure or not n_tests else wire.TEST
        elif kind == wire.TEST:
            claims.returned.append(_returned(claim))
            expected = wire.DONE if len(claims.returned) == n_tests else wire.TEST
        else:
            claims.done, claims.cost, expected = True, _cost(claim, metered), b""
    return claims


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > 400:
        raise wire.Forged("malformed message")
    return value


def _line(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 < value < 1 << 31:
        raise wire.Forged("malformed line number")
    return value


def _failure(claim: Any) -> tuple[Status, str, int | None]:
    if type(claim) is not list or len(claim) != 3 or type(claim[0]) is not str or claim[0] not in _KINDS:
        raise wire.Forged("malformed failure")
    return _KINDS[claim[0]], _text(claim[1]), _line(claim[2])


def _seconds(microseconds: Any) -> float:
    if type(microseconds) is not int or not 0 <= microseconds < _MAX_MICROSECONDS:
        raise wire.Forged("malformed time")
    return microseconds / 1e6


def _returned(claim: Any) -> tuple[Status | None, Any, int | None, float]:
    """``(None, value, None, seconds)`` for a returned value, ``(status, message, line, seconds)`` otherwise."""
    if type(claim) is not list or len(claim) not in (3, 4):
        raise wire.Forged("malformed claim")
    seconds = _seconds(claim[-1])
    if len(claim) == 3 and claim[0] == "ok":
        return None, wire.decode(claim[1]), None, seconds
    if len(claim) == 4 and claim[0] == "refused":
        return "failed", _text(claim[1]), None, seconds
    return *_failure(claim[:-1]), seconds


def _cost(claim: Any, metered: bool) -> int | None:
    if claim is None:
        return None
    if not metered or type(claim) is not int or not 0 <= claim <= MAX_COST:
        raise wire.Forged("malformed cost")
    return claim


def _compile_errors(claim: Any) -> tuple[CompileError, ...]:
    if type(claim) is not list or len(claim) > 5:
        raise wire.Forged("malformed compiler errors")
    errors = []
    for item in claim:
        if type(item) is not list or len(item) != 5 or any(type(number) is not int for number in item[1:]):
            raise wire.Forged("malformed compiler error")
        line, column, end_line, end_column = (min(max(number, 0), 1 << 31) for number in item[1:])
        line, column = max(line, 1), max(column, 1)
        end = max((line, column), (end_line, end_column))
        errors.append(CompileError(_text(item[0]), line, column, *end))
    return tuple(errors)


def _ended(exit_: Exit, limits: Limits) -> tuple[Status, str]:
    """Status and description of a process that ended before it was done."""
    code = os.waitstatus_to_exitcode(exit_.wait_status)
    if exit_.flooded:
        return "output", "too many files, or too large"
    if exit_.timed_out or -code in (signal.SIGXCPU, signal.SIGPROF):
        return "timeout", "wall-clock limit" if exit_.timed_out and exit_.cpu_s < limits.cpu_s else "CPU limit"
    if -code == signal.SIGKILL and exit_.cpu_s >= limits.cpu_s:
        return "timeout", "CPU limit"
    if -code == signal.SIGXFSZ:
        return "output", "output limit"
    if code < 0:
        return "killed", f"signal {-code}"
    return "exited", f"exit code {code}"


def judge(
    buffer: bytes,
    nonce: bytes,
    tests: Sequence[CallTest],
    runs: bool,
    exit_: Exit,
    limits: Limits,
    level: str,
    fenced: bool = True,
    metered: bool = False,
) -> Judged:
    """The verdict on one run.

    Args:
        buffer: What the child sent.
        nonce: Its nonce.
        tests: The tests in the order their calls were sent.
        runs: False where the program was only to be compiled.
        exit_: How the process ended.
        limits: The limits it ran under.
        level: Isolation level to stamp on the result.
        fenced: A program cannot send SIGKILL, so one that neither we nor a limit sent came from outside: ``infra``.
        metered: Whether the run was to count its cost.
    """
    result = Result("infra", cpu_s=exit_.cpu_s, wall_s=exit_.wall_s, peak_rss=exit_.peak_rss, level=level)
    clean = exit_.wait_status == 0
    try:
        if exit_.stopped:
            raise wire.Forged("more output on the result channel than any program may send")
        claims = parse_claims(buffer, nonce, len(tests), runs, metered)
        result = replace(result, cpu_s=max(0.0, exit_.cpu_s - claims.prepared_s))  # the program's own, where metered
        status, reason = _ended(exit_, limits)
        murdered = fenced and reason == f"signal {signal.SIGKILL:d}"
        if (
            claims.done and not clean and status == "timeout"
        ):  # threads left behind may use up the time before the process can end
            return Judged(_all(replace(result, exception=f"{reason}, after the last test"), tests, "timeout"))
        if (claims.done and not clean and not murdered) or (claims.cut and clean):
            raise wire.Forged("claims that do not agree with how the process ended")
    except wire.Forged as error:
        return Judged(_all(replace(result, exception=f"Forged: {error}"), tests, "forged"))
    if not claims.accepted:
        return Judged(_all(replace(result, exception=f"the child ended before its program started ({reason})"), tests))
    if murdered and exit_.peak_rss < OOM_SHARE * (limits.memory_mb << 20):
        return Judged(_all(replace(result, exception="the child was killed from outside"), tests))
    verdict = _verdict(claims, tests, exit_, limits, result)
    hung = len(claims.returned) if status == "timeout" and claims.loaded and not claims.done else None
    kept = {
        i: row[1] for i, row in enumerate(claims.returned) if row[0] is None and isinstance(tests[i].expected, Keep)
    }
    return Judged(verdict, kept, hung if hung is not None and hung < len(tests) else None)


def _all(result: Result, tests: Sequence[CallTest], status: Status = "infra") -> Result:
    return replace(result, status=status, per_test=tuple(TestOutcome(False, status, test.visible) for test in tests))


def _verdict(claims: Claims, tests: Sequence[CallTest], exit_: Exit, limits: Limits, base: Result) -> Result:
    rest: Status = "error"
    reason, exception, load_line = "", None, None
    if not claims.done:
        rest, reason = _ended(exit_, limits)
        load_line = exit_.hang_line if rest == "timeout" else None
    errors = claims.compile_errors
    if not claims.compiled:
        errors = (CompileError(f"the compiler ended abnormally: {reason}", 1, 1, 1, 1),)
    if errors:
        exception = f"SyntaxError: {errors[0].message}"
    elif claims.load_failure:
        rest, exception, load_line = claims.load_failure
    outcomes = []
    for test, (status, value, line, seconds) in zip(tests, claims.returned, strict=False):
        if status is None:
            passed = isinstance(test.expected, Keep) or equal(value, test.expected)
            outcomes.append(TestOutcome(passed, "passed" if passed else "failed", test.visible, None, seconds))
            if not passed and exception is None and isinstance(test.expected, Expectation):
                exception = test.expected.refusal(value)
            continue
        exception = exception or value
        outcomes.append(TestOutcome(False, status, test.visible, line, seconds))
    blamed = len(outcomes) if claims.loaded else len(tests)  # a hang is one test's, a failure to load every test's
    outcomes += [
        TestOutcome(False, rest, test.visible, load_line if place <= blamed else None)
        for place, test in enumerate(tests[len(outcomes) :], len(outcomes))
    ]
    lines = [outcome.line for outcome in outcomes if outcome.line is not None] or ([load_line] if load_line else [])
    return replace(
        base, status=_overall(claims, [outcome.status for outcome in outcomes], rest, bool(errors)),
        per_test=tuple(outcomes), lines=tuple(dict.fromkeys(lines)), exception=exception or reason or None,
        compile_error=errors[0] if errors else None, cost=claims.cost, further_errors=errors[1:],
    )  # fmt: skip


RANKED: tuple[Status, ...] = ("timeout", "output", "killed", "memory", "exited", "error", "failed")
"""What a program's status is where its tests ended differently: the first of these."""


def overall(statuses: Sequence[str]) -> Status:
    """The status of a program whose tests ended like this."""
    return next((status for status in RANKED if status in statuses), "passed")


def _overall(claims: Claims, statuses: Sequence[str], rest: Status, broken: bool) -> Status:
    return rest if not claims.done or broken or claims.load_failure else overall(statuses)
