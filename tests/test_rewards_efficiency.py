"""The efficiency reward: relative, capped, for passing programs only, and the same on every run."""

from __future__ import annotations

# ruff: noqa: E501 - programs read better on one line
from dataclasses import replace

import pytest

from lightning_dterm.rewards import EfficiencyReward
from lightning_dterm.sandbox import Job, Result, Sandbox, TestOutcome
from lightning_dterm.sandbox.wire import MAX_COST
from lightning_dterm.types import CallTest, CodeTask, RewardResult, Sample
from tests.rewards_common import sandbox_fixture

LINEAR = "def f(xs):\n    seen = set()\n    for x in xs:\n        if x in seen:\n            return True\n        seen.add(x)\n    return False\n"
QUADRATIC = LINEAR.replace("set()", "[]").replace(".add", ".append")
LADDER = (50, 200, 800)


def task(n: int) -> CodeTask:
    tests = (CallTest((list(range(n)),), False), CallTest(([1, 2, 1],), True, visible=False))
    return CodeTask(f"n{n}", "synthesis", "python", "p", "d", LINEAR, tests=tests, entry_point="f")


sandbox = sandbox_fixture(slots=1)


def score(box: Sandbox, code: str, about: CodeTask) -> RewardResult:
    execution = box.run_many([Job(code, "f", about.tests, measure_cost=True)])[0]
    return EfficiencyReward(sandbox=box).score([Sample(about, code, ((0, len(code)),), execution=execution)])[0]


def test_quadratic_falls_behind_on_a_ladder_of_sizes(sandbox: Sandbox) -> None:
    assert [score(sandbox, LINEAR, task(n)).value for n in LADDER] == [1.0] * 3
    values = [score(sandbox, QUADRATIC, task(n)).value or 0.0 for n in LADDER]
    assert values[0] > values[1] > values[2]
    assert values[2] < 0.15  # 800 elements: 200 units a look-up instead of 1


def test_the_same_program_scores_the_same(sandbox: Sandbox) -> None:
    assert len({score(sandbox, QUADRATIC, task(200)).value for _ in range(5)}) == 1


@pytest.mark.parametrize(
    "code",
    ["def f(xs):\n    return True\n", "def f(xs):\n    raise ValueError\n", "def f(xs:\n", "import os\nos._exit(0)\n"],
)
def test_only_programs_that_pass_earn_any(sandbox: Sandbox, code: str) -> None:
    assert score(sandbox, code, task(50)).value == 0.0


def test_what_cannot_be_metered_earns_nothing(sandbox: Sandbox) -> None:
    code = "import os\n\ndef f(xs):\n    return len(set(xs)) < len(xs)\n"
    result = score(sandbox, code, task(50))
    assert result.value == 0.0
    assert result.details["passes"] is True


def test_a_cost_of_nothing_earns_nothing(sandbox: Sandbox) -> None:
    about = task(50)
    free = Result("passed", tuple(TestOutcome(True, "passed", test.visible) for test in about.tests), cost=0)
    result = EfficiencyReward(sandbox=sandbox).score([Sample(about, LINEAR, ((0, len(LINEAR)),), execution=free)])[0]
    assert result.value == 0.0


def test_our_own_failures_are_masked_and_never_zero(sandbox: Sandbox) -> None:
    lost = Result("infra", (TestOutcome(False, "infra", True),), exception="the judge died")
    about = task(50)
    result = EfficiencyReward(sandbox=sandbox).score([Sample(about, LINEAR, ((0, len(LINEAR)),), execution=lost)])[0]
    assert result.value is None
    assert result.error == "sandbox: the judge died"


def test_a_reference_that_cannot_be_metered_makes_it_inapplicable_and_a_broken_one_fails(sandbox: Sandbox) -> None:
    unmetered = "import os\n\ndef f(xs):\n    return len(set(xs)) < len(xs)\n"
    about = replace(task(50), reference=unmetered)
    result = score(sandbox, LINEAR, about)
    assert (result.value, result.error) == (None, None)
    assert result.details["reason"] == "the reference cannot be metered"
    assert score(sandbox, "def f(xs):\n    return True\n", about).value == 0.0
    broken = score(sandbox, LINEAR, replace(task(50), reference="def f(xs):\n    return 1\n"))
    assert broken.value is None
    assert "reference of task 'n50' does not pass" in str(broken.error)


COUNTS = "def f(xs):\n    n = 4_000_000\n    while n:\n        n -= 1\n    return len(set(xs)) < len(xs)\n"


def test_a_reference_that_reaches_the_cap_makes_it_inapplicable(sandbox: Sandbox) -> None:
    slower = COUNTS.replace("4_000", "4_500")
    result = score(sandbox, slower, replace(task(50), reference=COUNTS))
    assert (result.value, result.error) == (None, None)
    assert result.details["reason"] == "the reference takes more than 10,000,000 operations"


def test_a_program_stopped_at_the_cap_earns_nothing(sandbox: Sandbox) -> None:
    result = score(sandbox, COUNTS, task(50))
    assert (result.value, result.details["cost"]) == (0.0, MAX_COST)
