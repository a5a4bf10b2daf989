"""Honest programs and cheats through the real sandbox: every verdict earned."""

from __future__ import annotations

import math
import sys
from typing import Any, ClassVar

import pytest

from lightning_dterm.sandbox import Job, Level, Limits, Sandbox
from lightning_dterm.sandbox.expect import Expectation
from lightning_dterm.types import CallTest
from tests.sandbox_common import HANG_AT_4, SQUARE, TESTS, assert_healthy, small_sandbox
from tests.sandbox_hostile import SECRET

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")


@pytest.fixture(scope="module")
def sandbox():
    with small_sandbox() as box:
        yield box


def test_honest_program_passes_with_usage(sandbox: Sandbox) -> None:
    result = sandbox.run(SQUARE, "f", TESTS)
    assert result.status == "passed"
    assert [outcome.passed for outcome in result.per_test] == [True] * 4
    assert [outcome.visible for outcome in result.per_test] == [True, True, False, False]
    assert Level.parse(result.level) == sandbox.level >= Level.KERNEL
    assert result.trust == "values"
    assert result.attempts == 1
    assert all(outcome.cpu_s is not None and outcome.cpu_s < 0.5 for outcome in result.per_test)
    assert 0 < result.cpu_s < 0.5
    assert result.wall_s > 0
    assert 1 << 20 < result.peak_rss < 256 << 20
    assert result.compile_error is None
    assert result.cost is None


def test_each_test_has_its_own_outcome_and_line(sandbox: Sandbox) -> None:
    program = "def f(x):\n    if x == 3:\n        return 10 // (x - 3)\n    return x * x if x < 5 else 0\n"
    result = sandbox.run(program, "f", TESTS)
    assert [(outcome.status, outcome.line) for outcome in result.per_test] == [
        ("passed", None), ("error", 3), ("passed", None), ("failed", None),
    ]  # fmt: skip
    assert result.status == "error"
    assert result.lines == (3,)
    assert result.exception is not None
    assert result.exception.startswith("ZeroDivisionError")


def test_outcomes_keep_the_jobs_order_although_visible_tests_run_first(sandbox: Sandbox) -> None:
    program = "seen = []\ndef f(x):\n    seen.append(x)\n    return list(seen)\n"
    tests = (
        CallTest((1,), [3, 4, 1], visible=False),
        CallTest((2,), [3, 4, 1, 2], visible=False),
        CallTest((3,), [3]),
        CallTest((4,), ["wrong"]),
    )
    result = sandbox.run(program, "f", tests)
    assert [outcome.passed for outcome in result.per_test] == [True, True, True, False]


@pytest.mark.parametrize(
    ("program", "line"),
    [(HANG_AT_4, (2, 3)), ("import time\ndef f(x):\n    if x == 4:\n        time.sleep(99)\n    return x * x\n", (4,)),
     ("import re\ndef f(x):\n    if x == 4:\n        re.match('(a+)+$', 'a' * 60 + 'b')\n    return x * x\n", (4,))],
)  # fmt: skip
def test_after_a_hang_the_remaining_tests_run(sandbox: Sandbox, program: str, line: tuple[int, ...]) -> None:
    result = sandbox.run(program, "f", TESTS, Limits(cpu_s=0.5, wall_s=3.0))
    assert [outcome.status for outcome in result.per_test] == ["passed", "passed", "timeout", "passed"]
    assert result.status == "timeout"
    assert result.attempts == 2
    assert result.per_test[2].line in line
    assert set(result.lines) <= set(line)


def test_restarts_are_bounded(sandbox: Sandbox) -> None:
    hang = "def f(x):\n    while x != 3: pass\n    return x * x\n"
    for restarts, statuses in ((0, ["timeout"] * 4), (1, ["timeout", "passed", "timeout", "timeout"])):
        result = sandbox.run(hang, "f", TESTS, Limits(cpu_s=0.2, wall_s=5.0, restarts=restarts))
        assert [outcome.status for outcome in result.per_test] == statuses
        assert result.attempts == restarts + 1
    broken = sandbox.run("while True: pass\n", "f", TESTS, Limits(cpu_s=0.2, wall_s=5.0))
    assert (broken.status, broken.attempts, broken.lines) == ("timeout", 1, (1,))


def test_arguments_are_fresh_for_each_call(sandbox: Sandbox) -> None:
    shared = [1]
    tests = (CallTest((shared,), [1, 0]), CallTest((shared,), [1, 0]))
    assert sandbox.run("def f(xs):\n    xs.append(0)\n    return xs\n", "f", tests).passed
    assert shared == [1]


@pytest.mark.parametrize(
    ("program", "line", "column", "count"),
    [
        ("def f(x)\n    return x\n", 1, 9, 1),
        ("x = 1\ny = (\n", 2, 5, 1),
        ("é = 'ü' 'ö' +\n", 1, 14, 1),
        ("a = 1 +\nb = 2\nc = = 3\n", 1, 8, 2),
        ("\n".join(["a = = 1"] * 9), 1, 5, 5),
    ],
)
def test_compile_errors_have_character_positions(
    sandbox: Sandbox, program: str, line: int, column: int, count: int
) -> None:
    result = sandbox.run(program, None)
    assert result.status == "error"
    assert result.compile_error is not None
    assert (result.compile_error.line, result.compile_error.column) == (line, column)
    assert len(result.compile_errors) == count


def test_compile_only_runs_nothing(sandbox: Sandbox) -> None:
    assert sandbox.run("import os\nos._exit(3)\n", None).status == "passed"
    assert sandbox.run("import os\nos._exit(3)\n", "f").status == "exited"


@pytest.mark.parametrize("program", ["(" * 5000, "-" * 60_000 + "1", "\0", "x = " + "[" * 3000 + "]" * 3000])
def test_text_that_hurts_compilers_is_a_compile_error(sandbox: Sandbox, program: str) -> None:
    result = sandbox.run(program, "f", TESTS)
    assert result.compile_error is not None
    assert not any(outcome.passed for outcome in result.per_test)
    assert_healthy(sandbox)


@pytest.mark.parametrize(
    ("expression", "expected", "passes"),
    [
        ("float('nan')", math.nan, True), ("float('nan')", 1.0, False), ("1.0", math.nan, False),
        ("-0.0", 0.0, True), ("0.1 + 0.2", 0.3, True), ("1.0 + 1e-6", 1.0, False), ("float('inf')", math.inf, True),
        ("True", 1, False), ("1", True, False), ("1", 1.0, False), ("1.0", 1, False), ("None", False, False),
        ("[1, 2]", (1, 2), False), ("(1, [2])", (1, [2]), True), ("{1, 2}", {2, 1}, True), ("{1}", {True}, False),
        ("{'b': 1, 'a': [2.0]}", {"a": [2.0], "b": 1}, True), ("{1: 2}", {True: 2}, False), ("b'\\xff'", b"\xff", True),
        ("2 ** 4000", 2**4000, True), ("2 ** 4000 + 1", 2**4000, False), ("-2 ** 70", -(2**70), True),
        ("'\\ud800é'", "\ud800é", True), ("frozenset({1})", {1}, True), ("{(1, 2): {3}}", {(1, 2): {3}}, True),
        ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}, True), ("''", b"", False),
        ("{frozenset({1}), frozenset({2})}", {frozenset({2}), frozenset({1})}, True),
    ],
)  # fmt: skip
def test_values_are_compared_by_type_and_value(
    sandbox: Sandbox, expression: str, expected: object, passes: bool
) -> None:
    result = sandbox.run(f"def f():\n    return {expression}\n", "f", (CallTest((), expected),))
    assert result.status == ("passed" if passes else "failed"), result


DUPLICATE_FRAMES = """
import gc
channel = next(o for o in gc.get_objects() if type(o).__name__ == "Channel")
def f(x):
    channel.send(b"T", ["ok", x * x, 0])
    return x * x
"""
FIND_IN_MEMORY = """
import gc, sys
def f(x):
    seen, frame = [], sys._getframe()
    while frame:
        seen += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    for o in gc.get_objects() + seen:
        items = o if type(o) in (list, tuple, set) else list(o.values()) if type(o) is dict else [o]
        if any(type(i) is int and i - 1 == 8675308 for i in items):
            return True
    return False
"""


def test_a_forged_pass_of_values_it_knows_is_still_forged(sandbox: Sandbox) -> None:
    result = sandbox.run(DUPLICATE_FRAMES, "f", TESTS)
    assert result.status == "forged"
    assert {outcome.status for outcome in result.per_test} == {"forged"}


def test_state_does_not_leak_between_programs(sandbox: Sandbox) -> None:
    sandbox.run(
        "import math, os, sys\nmath.pi = 3\nopen('left', 'w').close()\nsys.modules['re'] = None\ndef f(): 0\n", "f"
    )
    program = "import math, os, re\ndef f(): return [math.pi > 3.1, os.listdir('.'), dict(os.environ), __name__]\n"
    result = sandbox.run(program, "f", (CallTest((), [True, [], {}, "program"]),))
    assert result.passed, result


def test_expected_values_are_not_in_the_programs_process(sandbox: Sandbox) -> None:
    found = sandbox.run("HOARD = [8675309]\n" + FIND_IN_MEMORY, "f", (CallTest((1,), True),))
    assert found.passed, "the search itself must work"
    tests = (CallTest((1,), False), CallTest((2,), SECRET), CallTest((3,), [SECRET], visible=False))
    result = sandbox.run(FIND_IN_MEMORY, "f", tests)
    assert [outcome.passed for outcome in result.per_test] == [True, False, False]


def test_tests_that_are_not_plain_data_are_refused_by_name(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="not plain data: complex"):
        sandbox.run(SQUARE, "f", [CallTest((1j,), 1)])
    assert_healthy(sandbox)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SQUARE, TESTS), r"entry_point must be a str or None, got tuple.*tests=\.\.\."),
        ((SQUARE, list(TESTS)), r"entry_point must be a str or None, got list.*tests=\.\.\."),
        ((SQUARE, Limits()), "entry_point must be a str or None, got Limits"),
        ((SQUARE, "f", Limits()), "tests must be a sequence of CallTest or IOTest, got Limits"),
        ((SQUARE, "f", "tests"), "tests must be a sequence of CallTest or IOTest, got str"),
        ((SQUARE, "f", [(2, 4)]), "tests must be a sequence of CallTest or IOTest, got list with a tuple"),
        ((SQUARE, "f", TESTS, {"cpu_s": 1}), "limits must be Limits or None, got dict"),
        ((SQUARE.encode(), "f", TESTS), "program must be a str, got bytes"),
        ((None,), "program must be a str, got NoneType"),
    ],
)
def test_arguments_of_another_kind_are_refused_by_name(arguments: tuple[Any, ...], message: str) -> None:
    box = Sandbox(slots=1)
    with box, pytest.raises(TypeError, match=message):
        box.run(*arguments)


def test_expected_values_may_have_rules_of_their_own(sandbox: Sandbox) -> None:
    class Odd:
        seen: ClassVar[list[object]] = []

        def accepts(self, value: object) -> bool:
            self.seen.append(value)
            return value == 9

    tests = (CallTest((2,), Expectation(4.0)), CallTest((3,), Odd(), visible=False), CallTest((4,), Odd()))
    result = sandbox.run(SQUARE, "f", tests)
    assert [outcome.passed for outcome in result.per_test] == [True, True, False]
    assert result.status == "failed"
    assert sorted(Odd.seen) == [9, 16]


def test_trust_is_stamped(sandbox: Sandbox) -> None:
    job = Job(SQUARE, "f", TESTS, trust="in_process")
    assert sandbox.run_many([job])[0].trust == "in_process"
