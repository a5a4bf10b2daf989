"""From a process's claims and its exit to a verdict. Pure: bytes and numbers in, :class:`Result` out."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_dterm.sandbox import wire
from lightning_dterm.sandbox.compare import equal
from lightning_dterm.sandbox.result import CompileError, Limits, Result, Status, TestOutcome
from lightning_dterm.types import CallTest

NOT_FENCED = 120  # exit code of a child that failed before it ran anything
MAX_COST = 2_000_000
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


@dataclass(slots=True)
class Claims:
    """What the child said, in the order an honest harness says it."""

    accepted: bool = False
    compiled: bool = False
    compile_errors: tuple[CompileError, ...] = ()
    load_failure: tuple[Status, str, int | None] | None = None
    returned: list[tuple[Status | None, Any, int | None]] = field(default_factory=list)
    done: bool = False
    cut: bool = False
    cost: int | None = None


def parse_claims(buffer: bytes, nonce: bytes, n_tests: int, runs: bool) -> Claims:
    """Parse the bytes a child sent; accepts a prefix of the honest sequence and nothing else.

    Args:
        buffer: All bytes received.
        nonce: The 16 bytes given to this child.
        n_tests: Number of calls it was given.
        runs: False where the program was only to be compiled.

    Raises:
        wire.Forged: malformed, duplicate, oversized, missing or unexpected frame.
    """
    claims = Claims()
    frames, claims.cut = wire.split_frames(buffer, nonce)
    expected = wire.ACCEPTED
    for kind, claim in frames:
        capped = kind == wire.DONE and claim == MAX_COST and claims.compiled and not claims.done
        if kind != expected and not capped:
            raise wire.Forged("frame out of order")
        if kind == wire.ACCEPTED:
            claims.accepted, expected = True, wire.COMPILED
        elif kind == wire.COMPILED:
            claims.compiled, claims.compile_errors = True, _compile_errors(claim)
            expected = wire.DONE if claims.compile_errors or not runs else wire.LOADED
        elif kind == wire.LOADED:
            claims.load_failure = None if claim == ["ok"] else _failure(claim)
            expected = wire.DONE if claims.load_failure or not n_tests else wire.TEST
        elif kind == wire.TEST:
            claims.returned.append(_returned(claim))
            expected = wire.DONE if len(claims.returned) == n_tests else wire.TEST
        else:
            claims.done, claims.cost, expected = True, _cost(claim), b""
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


def _returned(claim: Any) -> tuple[Status | None, Any, int | None]:
    """``(None, value, None)`` for a returned value, ``(status, message, line)`` otherwise."""
    if type(claim) is list and len(claim) == 2 and claim[0] == "ok":
        return None, wire.decode(claim[1]), None
    if type(claim) is list and len(claim) == 3 and claim[0] == "refused":
        return "failed", _text(claim[1]), None
    return _failure(claim)


def _cost(claim: Any) -> int | None:
    if claim is None:
        return None
    if type(claim) is not int or not 0 <= claim <= MAX_COST:
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
    if exit_.timed_out or -code in (signal.SIGXCPU, signal.SIGPROF):
        return "timeout", "wall-clock limit" if exit_.timed_out else "CPU limit"
    if -code == signal.SIGKILL and exit_.cpu_s >= limits.cpu_s:
        return "timeout", "CPU limit"
    if -code == signal.SIGXFSZ:
        return "output", "output limit"
    if code < 0:
        return "killed", f"signal {-code}"
    return "exited", f"exit code {code}"


def judge(
    buffer: bytes, nonce: bytes, tests: Sequence[CallTest], runs: bool, exit_: Exit, limits: Limits, level: str
) -> Result:
    """The verdict on one run.

    Args:
        buffer: What the child sent.
        nonce: Its nonce.
        tests: The tests in the order their calls were sent.
        runs: False where the program was only to be compiled.
        exit_: How the process ended.
        limits: The limits it ran under.
        level: Isolation level to stamp on the result.
    """
    usage: dict[str, Any] = {
        "cpu_s": exit_.cpu_s, "wall_s": exit_.wall_s, "peak_rss": exit_.peak_rss, "level": level
    }  # fmt: skip
    clean = exit_.wait_status == 0
    try:
        if exit_.stopped:
            raise wire.Forged("more output on the result channel than any program may send")
        claims = parse_claims(buffer, nonce, len(tests), runs)
        if (claims.done and not clean) or (claims.cut and clean):
            raise wire.Forged("claims that do not agree with how the process ended")
    except wire.Forged as error:
        outcomes = tuple(TestOutcome(False, "forged", test.visible) for test in tests)
        return Result("forged", outcomes, exception=f"Forged: {error}", **usage)
    if not claims.accepted:
        outcomes = tuple(TestOutcome(False, "infra", test.visible) for test in tests)
        message = f"the child ended before its program started ({_ended(exit_, limits)[1]})"
        return Result("infra", outcomes, exception=message, **usage)
    return _verdict(claims, tests, exit_, limits, usage)


def _verdict(claims: Claims, tests: Sequence[CallTest], exit_: Exit, limits: Limits, usage: dict[str, Any]) -> Result:
    rest: Status = "error"
    reason, exception, load_line = "", None, None
    if not claims.done:
        rest, reason = _ended(exit_, limits)
    errors = claims.compile_errors
    if not claims.compiled:
        errors = (CompileError(f"the compiler ended abnormally: {reason}", 1, 1, 1, 1),)
    if errors:
        exception = f"SyntaxError: {errors[0].message}"
    elif claims.load_failure:
        rest, exception, load_line = claims.load_failure
    lines = [load_line] if load_line else []
    outcomes = []
    for test, (status, value, line) in zip(tests, claims.returned, strict=False):
        if status is None:
            passed = equal(value, test.expected)
            outcomes.append(TestOutcome(passed, "passed" if passed else "failed", test.visible))
            continue
        exception = exception or value
        lines += [line] if line and line not in lines else []
        outcomes.append(TestOutcome(False, status, test.visible, line))
    outcomes += [TestOutcome(False, rest, test.visible, load_line) for test in tests[len(outcomes) :]]
    return Result(
        _overall(claims, [outcome.status for outcome in outcomes], rest, bool(errors)),
        tuple(outcomes), tuple(lines), exception or reason or None, **usage,
        compile_error=errors[0] if errors else None, cost=claims.cost, further_errors=errors[1:],
    )  # fmt: skip


def _overall(claims: Claims, statuses: Sequence[str], rest: Status, broken: bool) -> Status:
    if not claims.done or broken or claims.load_failure:
        return rest
    ranked: tuple[Status, ...] = ("memory", "exited", "error", "failed")
    return next((status for status in ranked if status in statuses), "passed")
