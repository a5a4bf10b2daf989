"""A count is held against the CPU time that the kernel measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from lightning_dterm.sandbox import Job, Limits, Sandbox, wire
from lightning_dterm.sandbox.judge import Exit, Judged, judge, parse_claims
from lightning_dterm.sandbox.result import Result, TestOutcome
from lightning_dterm.sandbox.steps import judge_job
from lightning_dterm.types import CallTest
from tests.rewards_common import sandbox_fixture

SUM = "def f(n):\n    total = 0\n    for i in range(n):\n        total += i\n    return total\n"
sandbox = sandbox_fixture(slots=1)


@pytest.mark.parametrize(("cpu_s", "cost"), [(0.029, 1000), (0.034, 1000), (0.036, None), (0.25, None)])
def test_a_count_that_cpu_time_contradicts_is_thrown_away(cpu_s: float, cost: int | None) -> None:
    passed = Result("passed", per_test=(TestOutcome(True, "passed", True),), cpu_s=cpu_s)

    def attempt(job: Job, tests: Sequence[CallTest], metered: bool) -> Judged:
        return Judged(replace(passed, cost=1000 if metered else None))

    assert judge_job(Job(SUM, "f", (CallTest((3,), 3),), measure_cost=True), Limits(), attempt).result.cost == cost


def test_time_before_the_program_begins_is_not_held_against_it() -> None:
    frames = [
        (wire.ACCEPTED, None),
        (wire.COMPILED, 200_000),
        (wire.LOADED, ["ok"]),
        (wire.TEST, ["ok", 3, 7]),
        (wire.DONE, 9),
    ]
    buffer = b"".join(wire.pack_frame(kind, i, bytes(16), wire.dumps(claim)) for i, (kind, claim) in enumerate(frames))
    exit_ = Exit(0, 0.21, 0.3, 1 << 20)
    result = judge(buffer, bytes(16), (CallTest((3,), 3),), True, exit_, Limits(), "process", metered=True).result
    assert (result.status, result.cost, round(result.cpu_s, 6)) == ("passed", 9, 0.01)
    with pytest.raises(wire.Forged, match="malformed time"):
        parse_claims(buffer.replace(wire.dumps(200_000), wire.dumps(-20_000)), bytes(16), 1, True, metered=True)


def test_a_long_program_is_not_refused_for_its_length(sandbox: Sandbox) -> None:
    part = "def g{}(xs):\n    return [x * 2 + 1 for x in xs if x % 3 == 0 and x not in (1, 2)]\n"
    source = "".join(part.format(i) for i in range(150)) + SUM
    job = Job(source, "f", (CallTest((3,), 3),), measure_cost=True)
    assert sandbox.run_many([job])[0].cost
