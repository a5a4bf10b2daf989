"""Running assert-style tests: every kind, cheats against each, and agreement with a plain run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lightning_dterm.sandbox import Limits, Sandbox
from lightning_dterm.sandbox.stub import AssertResult, ConversionError, Suite, TestSource, convert, run_suites

ABS = "def f(x):\n    return abs(x)\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(slots=1, limits=Limits(wall_s=60.0)) as box:
        yield box


def suite_of(sandbox: Sandbox, test: str, context: str = "", seed: int | None = 3) -> Suite:
    return convert([TestSource(test, "f", context)], sandbox, seed)[0]


def run(sandbox: Sandbox, program: str, suite: Suite) -> AssertResult:
    return run_suites(sandbox, [(program, suite)])[0]


CASES = {
    "literal": ("literal", "assert f(-1) == 1\nassert f(0) == 0", ABS, "def f(x):\n    return x\n"),
    "loop": ("evaluated", "for i in range(-3, 3):\n    assert f(i) == max(i, -i)", ABS, "def f(x):\n    return x\n"),
    "helper variable": (
        "evaluated",
        "xs = list(range(5))\nwant = sum(xs)\nassert f(xs) == want",
        "def f(x):\n    return sum(x)\n",
        "def f(x):\n    return sum(x) + 1\n",
    ),
    "chained": ("stub", "assert f(f(-3)) == 3", ABS, "def f(x):\n    return -x - 1\n"),
    "two calls": ("stub", "assert f(2) == f(-2)", ABS, "def f(x):\n    return x\n"),
    "exception": (
        "stub",
        "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert 'neg' in str(e)",
        "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x\n",
        "def f(x):\n    if x < 0: raise KeyError('negative')\n    return x\n",
    ),
    "mutated argument": (
        "stub",
        "xs = [2, 1]\nassert f(xs) is None\nassert xs == [1, 2]",
        "def f(x):\n    x.sort()\n",
        "def f(x):\n    sorted(x)\n",
    ),
    "argument after another look": (
        "stub",
        "xs = [1, 2]\nassert f(xs) == 3\nassert f(xs) == 3",
        "def f(x):\n    return sum(x)\n",
        "def f(x):\n    x.append(1)\n    return sum(x) - 1\n",
    ),
    "returned argument": (
        "stub",
        "xs = [1]\nassert f(xs) is xs",
        "def f(x):\n    return x\n",
        "def f(x):\n    return list(x)\n",
    ),
    "complex": ("stub", "assert f(1j) == 1 + 1j", "def f(x):\n    return x + 1\n", "def f(x):\n    return x\n"),
    "types": (
        "stub",
        "assert f([1, 'a'], int) == ['a']",
        "def f(x, t):\n    return [y for y in x if not isinstance(y, t)]\n",
        "def f(x, t):\n    return x\n",
    ),
    "keywords": ("stub", "assert f(x=-2) == 2", ABS, "def f(x):\n    return x\n"),
    "generator": (
        "stub",
        "assert list(f(3)) == [0, 1, 2] and all(f(1)) is False and list(f(0)) == []",
        "def f(n):\n    yield from range(n)\n",
        "def f(n):\n    yield from range(1, n + 1)\n",
    ),
    "state": (
        "stub",
        "a = f()\nb = f()\nassert (a, b) == (1, 2)",
        "n = 0\ndef f():\n    global n\n    n += 1\n    return n\n",
        "def f():\n    return 1\n",
    ),
    "function as argument": (
        "in_process",
        "assert f(lambda x: x + 1, 2) == 3",
        "def f(g, x):\n    return g(x)\n",
        "def f(g, x):\n    return x\n",
    ),
    "class of the program": (
        "in_process",
        "assert f(Node(3)) == 3",
        "class Node:\n    def __init__(self, v): self.v = v\ndef f(n):\n    return n.v\n",
        "class Node:\n    def __init__(self, v): self.v = v\ndef f(n):\n    return n.v + 1\n",
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_right_program_passes_and_wrong_one_fails(sandbox: Sandbox, name: str) -> None:
    kind, test, right, wrong = CASES[name]
    suite = suite_of(sandbox, test)
    assert suite.kind == kind, suite.reason
    assert (kind == "literal") or suite.reason or kind == "evaluated"
    for program, passes in ((right, True), (wrong, False)):
        found = run(sandbox, program, suite)
        assert found.result.passed is passes, found
        assert all(outcome.passed for outcome in found.result.per_test) is passes
        assert found.trust == found.result.trust == ("in_process" if kind == "in_process" else "values")
    for broken in ("def f(:\n", "raise SystemExit(0)\n", "x = 1\n", "import os\nos._exit(0)\n", ""):
        assert not run(sandbox, broken, suite).result.passed


CHEATS = {
    "always-true eq": "class A:\n    def __eq__(s, o): return True\n"
    "    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__\n"
    "    def __hash__(s): return 0\n    def __sub__(s, o): return 0\n    def __len__(s): return 0\n"
    "    def __iter__(s): return iter([s])\n    def __bool__(s): return True\ndef f(*a, **k): return A()\n",
    "int with an equality": "class A(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\n"
    "def f(*a, **k): return A(77)\n",
    "frames and gc": "import sys, gc\ndef numbers(o, depth=0):\n    if type(o) is int and 4000 < o < 5000: yield o\n"
    "    elif depth < 4 and isinstance(o, (list, tuple, set)):\n"
    "        for x in list(o): yield from numbers(x, depth + 1)\n"
    "    elif depth < 4 and isinstance(o, dict):\n        yield from numbers(list(o.values()), depth + 1)\n"
    "def f(*a, **k):\n    frame = sys._getframe(1)\n    while frame:\n"
    "        for n in numbers(frame.f_locals): return n\n        for n in numbers(frame.f_globals): return n\n"
    "        frame = frame.f_back\n    for o in gc.get_objects():\n"
    "        if isinstance(o, (list, tuple, dict)):\n            for n in numbers(o): return n\n    return 0\n",
    "exit": "import os, sys\ndef f(*a, **k):\n    print('passed'); sys.stdout.flush(); os._exit(0)\n",
    "patched builtins": "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.abs = lambda x: 0\n"
    "builtins.len = lambda x: 0\ndef f(*a, **k): return None\n",
    "own stub": "def f(*a, **k): return 0\n__stub__ = 1\ndef __stub_call__(*a): return ('dead', 'passed')\n",
    "stub replaced later": "import sys\ndef f(*a, **k):\n    g = sys.modules['program'].__dict__\n"
    "    g['__stub__']['call'] = lambda *a: ('raised', 'eval', '__import__(\"os\")._exit(0)', None, ())\n"
    "    return 0\n",
    "claims of the test's process": "import sys\ndef f(*a, **k):\n    g = sys.modules['program'].__dict__\n"
    "    g['__stub__']['call'] = lambda *a: ('ok', ('k', 'exit'), ((0, ('l',)), (9, 9)))\n    return 0\n",
    "exception": "def f(*a, **k): raise AssertionError\n",
}
GOALS = {
    "literal": "assert f(1) == 4242\nassert f(2) == 4242",
    "evaluated": "for i in range(2):\n    assert f(i) == 4242",
    "within": "assert abs(f(1) - 4242) < 1e-6",
    "stub": "y = f(1)\nassert y == 4242 and y in [4242] and isinstance(y, int) and abs(y - 4242) < 1 and not y == 1",
    "chained": "assert f(f(1)) + 0 == 4242",
}


@pytest.mark.parametrize("goal", sorted(GOALS))
def test_no_cheat_passes_where_values_count(sandbox: Sandbox, goal: str) -> None:
    suite = suite_of(sandbox, GOALS[goal])
    assert suite.kind in ("literal", "evaluated", "stub")
    honest = "def f(x):\n    return 4242\n"
    found = run_suites(sandbox, [(program, suite) for program in [*CHEATS.values(), honest]])
    assert [result.result.passed for result in found] == [False] * len(CHEATS) + [True]


def test_helpers_come_from_the_context_and_not_from_the_program(sandbox: Sandbox) -> None:
    context = "def twice(x):\n    return 2 * x\n\ndef f(x):\n    'half of an even number'\n"
    test = "def check(candidate):\n    for i in range(3):\n        assert candidate(twice(i)) == i\n"
    suite = suite_of(sandbox, test, context)
    assert suite.kind == "evaluated"
    assert run(sandbox, "def f(x):\n    return x // 2\n", suite).result.passed
    assert not run(sandbox, "def twice(x):\n    return x\ndef f(x):\n    return x\n", suite).result.passed


def test_inputs_drawn_by_a_test_are_secret_unless_seeded(sandbox: Sandbox) -> None:
    test = "import random\nfor i in range(4):\n    n = random.getrandbits(60)\n    assert f(n + 1) == n"
    first, second, third = (suite_of(sandbox, test, seed=seed) for seed in (None, None, 5))
    assert first.tests != second.tests
    assert third.tests == suite_of(sandbox, test, seed=5).tests
    predict = "import random\nrandom.seed(0)\ndef f(x):\n    return random.getrandbits(60)\n"
    assert not run(sandbox, predict, first).result.passed
    assert run(sandbox, "def f(x):\n    return x - 1\n", first).result.passed


def test_one_outcome_per_assertion_in_the_stub(sandbox: Sandbox) -> None:
    suite = suite_of(sandbox, "assert f(f(1)) == 1\nassert f(2) == -2\nassert f(0) / 0 == 1\nassert f(3) == 3")
    outcomes = run(sandbox, ABS, suite).result.per_test
    assert [outcome.status for outcome in outcomes] == ["passed", "failed", "error", "passed"]
    raising = run(sandbox, "def f(x):\n    if x == 3:\n        return 1 / 0\n    return x\n", suite).result
    assert [outcome.line for outcome in raising.per_test][3] == 3
    ends = run(sandbox, "import os\ndef f(x):\n    if x == 2: os._exit(0)\n    return x\n", suite).result
    assert [outcome.status for outcome in ends.per_test][:2] == ["passed", "exited"]
    assert not ends.passed


def test_a_reference_that_needs_more_than_values_decides_the_kind(sandbox: Sandbox) -> None:
    test = "class Box:\n    pass\nx = f(1)\nassert x.__class__.__name__ == 'Odd'"
    reference = "class Odd:\n    pass\ndef f(x):\n    return Odd()\n"
    without, with_ = convert([TestSource(test, "f"), TestSource(test, "f", reference=reference)], sandbox, 1)
    assert (without.kind, with_.kind) == ("stub", "in_process")
    assert "reference" in with_.reason
    assert run(sandbox, reference, with_).result.passed


@pytest.mark.parametrize("name", ["literal", "loop", "chained", "class of the program"])
def test_hidden_tests_stay_hidden(sandbox: Sandbox, name: str) -> None:
    _, test, right, wrong = CASES[name]
    [suite] = convert([TestSource(test, "f", visible=False)], sandbox, 1)
    for program in (right, wrong, "def f(:\n", "import os\nos._exit(0)\n"):
        outcomes = run(sandbox, program, suite).result.per_test
        assert outcomes
        assert not any(outcome.visible for outcome in outcomes)


def test_missing_imports_of_a_test_are_added(sandbox: Sandbox) -> None:
    suite = suite_of(sandbox, "assert f(1) == math.floor(2.5) - string.digits.index('1')")
    assert suite.kind == "evaluated"
    assert run(sandbox, ABS, suite).result.passed


def test_a_test_that_hangs_by_itself_is_named_and_not_trusted_less() -> None:
    with Sandbox(slots=1, limits=Limits(cpu_s=0.5)) as box, pytest.raises(ConversionError, match=r"'f'.*limits"):
        suite_of(box, "while f:\n    pass\nassert f(1) == 1")


@pytest.mark.parametrize(
    ("test", "program"),
    [
        ("assert f(1) == 1\nraise ValueError", "def f(x): return x\n"),
        ("x = f(1)\nassert x == 1\nf(2)", "def f(x):\n    if x == 2: raise ValueError\n    return x\n"),
        ("x = f(1)\nassert x == 1\nf(2)", "import os\ndef f(x):\n    if x == 2: os._exit(0)\n    return x\n"),
        ("for x in f(3):\n    assert f(x) == f(x)", "def f(x):\n    return 1 / (3 - x) if x == 3 else x\n"),
    ],
)
def test_a_test_that_breaks_off_after_its_assertions_has_not_passed(sandbox: Sandbox, test: str, program: str) -> None:
    result = run(sandbox, program, suite_of(sandbox, test)).result
    assert not result.passed
    assert not all(outcome.passed for outcome in result.per_test)


def test_a_program_cannot_lower_the_trust_in_its_verdict(sandbox: Sandbox) -> None:
    suite = suite_of(sandbox, "x = f(1)\nfor i in range(3):\n    x = f(x)\nassert x == 4242")
    programs = [
        "import random, os\ndef f(x):\n    return int.from_bytes(os.urandom(4), 'big')\n",
        "def f(x):\n    return lambda: 1\n",
        "def f(x):\n    return range(10 ** 18)\n",
        "import time\ndef f(x):\n    return time.perf_counter_ns()\n",
    ]
    for found in run_suites(sandbox, [(program, suite) for program in programs]):
        assert (found.trust, found.result.passed) == ("values", False)
        assert found.result.status in ("error", "failed", "timeout", "killed")


def plain(program: str, test: str) -> bool:
    namespace: dict[str, Any] = {"__name__": "plain"}
    try:
        exec(program, namespace)
        exec(test, namespace)
    except Exception:
        return False
    return True


BODIES = [
    "return x", "return -x", "return x + 1", "return x * 2", "return [x, x]", "return (x, 1)", "return x == 2",
    "return {x: 1}", "return None", "return float(x)", "return str(x)", "return {x, 1}", "return range(x)",
    "return iter([x])", "return x if x > 0 else None", "return 1 / x", "return complex(x, 0)", "return {x: 1}.keys()",
    "if x == 1: raise ValueError('one')\n    return x", "S.append(x)\n    return len(S)", "return bool(x)",
    "if isinstance(x, list): x.append(7)\n    return x", "return sum(x) if isinstance(x, list) else abs(x)",
    "return sorted(x) if isinstance(x, list) else [1]", "return lambda: x",
]  # fmt: skip
ATOMS = ["0", "1", "2", "-1", "[1, 2]", "[2, 1]", "(1, 1)", "None", "True", "2.0", "'1'", "{1}", "[]", "v", "w", "[v]"]
TEMPLATES = [
    "assert f({a}) == {b}", "assert {b} == f({a})", "assert f({a}) != {b}", "assert not f({a})", "assert f({a})",
    "assert f({a}) is None", "assert abs(f({a}) - {b}) < 0.5", "assert f({a}) in ({b}, {c})", "assert len(f({a})) == 1",
    "assert sorted(f({a})) == [1, 2]", "assert tuple(f({a})) == (1, 2)", "assert set(f({a})) == set({b})",
    "assert f(f({a})) == {b}", "assert f({a}) == f({b})", "v = {a}", "w = v", "v = f({a})", "v = [v, 1]",
    "for w in (1, 2, 3):\n    assert f(w) == {b}", "for i in range(2):\n    v = [i]\n    assert f(v) == {b}",
    "try:\n    f({a})\n    assert False\nexcept ValueError:\n    pass", "assert isinstance(f({a}), (int, list))",
    "try:\n    assert f({a}) == {b}\nexcept AssertionError:\n    w = f({c})", "assert f({a}) == {b} and f({c})",
    "if f({a}) == {b}:\n    assert f({c})", "assert f({a}) > 0 or f({b})", "assert f(x={a}) == {b}",
    "assert v == {a}", "def g(y):\n    assert f(y) == {b}\ng({a})", "assert [f(i) for i in (1, 2)] == [1, 2]",
]  # fmt: skip
STATEMENTS = st.builds(
    lambda template, a, b, c: template.format(a=a, b=b, c=c),
    st.sampled_from(TEMPLATES), st.sampled_from(ATOMS), st.sampled_from(ATOMS), st.sampled_from(ATOMS),
)  # fmt: skip
PROGRAMS = st.sampled_from(BODIES).map(lambda body: f"S = []\ndef f(x):\n    {body}\n")


@settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
@given(st.lists(STATEMENTS, min_size=1, max_size=4), st.lists(PROGRAMS, min_size=2, max_size=4, unique=True))
def test_verdicts_agree_with_a_plain_run(sandbox: Sandbox, statements: list[str], programs: list[str]) -> None:
    test = "\n".join(["v = [3]", "w = 2", *statements])
    suite = suite_of(sandbox, test)
    found = run_suites(sandbox, [(program, suite) for program in programs])
    for program, result in zip(programs, found, strict=True):
        passes = plain(program, test)
        # What a program returns and a test hands back must be a value; where it is none, nothing passes.
        unplain = "not plain" in (result.result.exception or "")
        assert result.result.passed is (passes and not unplain), (suite.kind, suite.reason, program, test, result)
