"""The tests reward: what it reads of a sandbox result, by hand."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from lightning_dterm.rewards import TestsReward
from lightning_dterm.sandbox import Result, TestOutcome
from lightning_dterm.types import CallTest, CodeTask, RewardResult, Sample

CODE = "def f(x):\n    while x:\n        pass\n    return 1 / x\n"
TESTS = tuple(CallTest((x,), x, visible=x < 3) for x in range(4))
TASK = CodeTask("t", "synthesis", "python", "p", "d", "def f(x):\n    return x\n", tests=TESTS, entry_point="f")


def score(result: Result | None) -> RewardResult:
    sample = Sample(TASK, CODE, ((0, len(CODE)),), execution=result)
    return TestsReward().score([sample])[0]


def outcomes(*rows: tuple[bool, str, int | None]) -> tuple[TestOutcome, ...]:
    return tuple(TestOutcome(passed, status, i < 3, line) for i, (passed, status, line) in enumerate(rows))


def test_share_of_visible_tests_with_the_lines_that_hung_or_raised() -> None:
    rows = outcomes((True, "passed", None), (False, "timeout", 3), (False, "error", 4), (False, "error", 4))
    result = score(Result("timeout", rows, (3, 4), level="kernel"))
    assert result.value == pytest.approx(1 / 3)
    assert [CODE[span.start : span.end] for span in result.spans] == ["pass", "return 1 / x"]
    assert result.details == {"passed": 1, "tests": 3, "status": "timeout", "level": "kernel", "trust": "values"}


@pytest.mark.parametrize("status", ["forged", "killed", "exited", "memory", "output"])
def test_what_ended_badly_earns_what_its_tests_earned(status: Any) -> None:
    rows = outcomes(*[(False, status, None)] * 4)
    assert score(Result(status, rows)).value == 0.0


def test_our_own_failures_are_masked_and_never_zero() -> None:
    rows = outcomes(*[(False, "infra", None)] * 4)
    result = score(Result("infra", rows, exception="the judge died"))
    assert result.value is None
    assert result.error == "sandbox: the judge died"
    assert score(None).error is not None


def test_lines_that_do_not_exist_are_no_evidence() -> None:
    rows = outcomes(*[(False, "error", 7_777_777)] * 4)
    assert score(Result("error", rows, (7_777_777,))).spans == ()


def test_a_programs_own_claim_earns_nothing_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    claim = Result("passed", outcomes(*[(True, "passed", None)] * 4), trust="in_process")
    samples = [Sample(replace(TASK, task_id=name), CODE, ((0, len(CODE)),), execution=claim) for name in ("a", "b")]
    with caplog.at_level(logging.WARNING):
        found = TestsReward().score(samples)
    assert [(one.value, one.error, one.details) for one in found] == [(None, None, {"trust": "in_process"})] * 2
    assert len(caplog.records) == 1
    assert "task 'a'" in caplog.text
    assert "in_process=True" in caplog.text
    asked = TestsReward(in_process=True).score(samples)[0]
    assert (asked.value, asked.details["trust"]) == (1.0, "in_process")
    assert len(caplog.records) == 1
