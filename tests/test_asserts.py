"""Reading assert-style tests: what is found, and that nothing is run. Oracles: hand-written expectations."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.sandbox.asserts import Plan, TestSyntaxError, read_test
from lightning_dterm.sandbox.expect import RULES, Expectation, Recorder
from lightning_dterm.types import CallTest


def literal_tests(source: str, entry_point: str) -> list[CallTest]:
    plan = read_test(source, entry_point)
    assert plan.tests is not None, plan.reason or plan.emitter
    return list(plan.tests)


@pytest.mark.parametrize(
    ("source", "args", "rule", "views", "expected"),
    [
        ("assert f(1, 'a') == [2]", (1, "a"), "eq", (), [2]),
        ("assert [2] == f(-1)", (-1,), "eq", (), [2]),
        ("assert f() != 3", (), "ne", (), 3),
        ("assert not f(1) == 3", (1,), "ne", (), 3),
        ("assert not not f(1) == 3", (1,), "eq", (), 3),
        ("assert f(1)", (1,), "true", (), None),
        ("assert not f(1)", (1,), "false", (), None),
        ("assert f(1) is True", (1,), "is", (), True),
        ("assert f(1) is not None", (1,), "is_not", (), None),
        ("assert None is f(1)", (1,), "is", (), None),
        ("assert 3 < f(1)", (1,), "gt", (), 3),
        ("assert f(1) <= 3", (1,), "le", (), 3),
        ("assert f(1) in (1, 2)", (1,), "in", (), (1, 2)),
        ("assert 'x' in f(1)", (1,), "contains", (), "x"),
        ("assert not 'x' in f(1)", (1,), "lacks", (), "x"),
        ("assert abs(f(1) - 2.5) < 1e-6", (1,), "within", (), (2.5, 1e-6)),
        ("assert abs(2.5 - f(1)) <= 1e-6", (1,), "within_or_at", (), (2.5, 1e-6)),
        ("assert 1e-6 > abs(f(1) - 2.5)", (1,), "within", (), (2.5, 1e-6)),
        ("import math\nassert math.fabs(f(1) - 2.5) < 1e-6", (1,), "within", (), (2.5, 1e-6)),
        ("import math as m\nassert m.isclose(f(1), 2.5, rel_tol=0.1)", (1,), "isclose", (), (2.5, 0.1, 0.0)),
        ("assert math.isclose(2.5, f(1))", (1,), "isclose", (), (2.5, 1e-09, 0.0)),
        ("assert sorted(f([2, 1])) == [1, 2]", ([2, 1],), "eq", ("sorted",), [1, 2]),
        ("assert tuple(sorted(f(1))) == (1, 2)", (1,), "eq", ("sorted", "tuple"), (1, 2)),
        ("assert len(f(1)) == 2", (1,), "eq", ("len",), 2),
        ("assert round(f(1), 2) == 0.33", (1,), "eq", ("round:2",), 0.33),
        ("assert isinstance(f(1), (int, float))", (1,), "isinstance", (), ("int", "float")),
        ("assert f(1) == 2, 'message ' + str(f(1))", (1,), "eq", (), 2),
    ],
)
def test_one_literal_assertion(source: str, args: Any, rule: str, views: Any, expected: Any) -> None:
    [test] = literal_tests(source, "f")
    assert test.args == args
    assert test.expected == Expectation(expected, rule, views)


def test_check_function_and_conjunction_are_taken_apart() -> None:
    source = (
        "METADATA = {'author': 'x'}\n\ndef check(candidate):\n    'doc'\n    print\n"
        "    assert candidate(1) == 2 and candidate(2) == 3\n    assert True, 'nothing'\n"
    )
    assert [(test.args, test.expected.value) for test in literal_tests(source, "g")] == [((1,), 2), ((2,), 3)]


@pytest.mark.parametrize(
    "source",
    [
        "for i in range(3):\n    assert f(i) == i",
        "x = [1]\nassert f(x) == 1",
        "assert f(3 * 5) == 2",
        "assert f(1) == str(2)",
        "assert f(*[1]) == 1",
        "import numpy\nassert f(1) == 2",
        "assert set(f(1)) == set([1])",
    ],
)
def test_what_must_be_computed_is_left_to_the_sandbox(source: str) -> None:
    plan = read_test(source, "f")
    assert plan.tests is None
    assert plan.emitter is not None
    assert "f(" not in plan.emitter.replace("emit(", "").replace("set(", "").replace("if(", "")


@pytest.mark.parametrize(
    "source",
    [
        "assert f(f(1)) == 2",
        "assert f(1) == f(2)",
        "y = f(1)\nassert y == 2",
        "try:\n    f(1)\n    assert False\nexcept ValueError:\n    pass",
        "try:\n    assert f(1) == 2\nexcept AssertionError:\n    pass",
        "def check(candidate):\n    g = candidate\n    assert g(1) == 2",
        "def check(candidate):\n    def inner():\n        assert candidate(1) == 2\n    inner()",
        "f = len\nassert f([1]) == 1",
        "sorted = tuple\nassert sorted(f(1)) == (1,)",
        "assert f(1, key=2) == 3",
        "assert 1 < f(1) < 3",
        "assert f(1) is 5",
        "assert (y := f(1)) == 2",
        "assert f(1) == 2 or f(1) == 3",
        "assert all(f(x) for x in (1, 2))",
        "def check(candidate):\n    assert candidate(1) == 1\ncheck(f)\ncheck(f)",
        "def check(candidate, n):\n    assert candidate(1) == 1\ncheck(f, 1)",
    ],
)
def test_what_has_no_shape_says_why(source: str) -> None:
    plan = read_test(source, "f")
    assert plan.tests is None
    assert plan.emitter is None
    assert plan.reason
    compile(plan.program, "<test>", "exec")


@pytest.mark.parametrize("source", ["assert f(1) ==", "assert f('\0')", "(" * 5000, "__t__ = 1\nassert f(1) == 1"])
def test_unreadable_test_is_one_clear_error(source: str) -> None:
    with pytest.raises(TestSyntaxError, match="'f'"):
        read_test(source, "f")


def test_entry_point_must_be_a_name() -> None:
    with pytest.raises(TestSyntaxError, match="no name"):
        read_test("assert f(1) == 2", "f(1); import os")


@pytest.mark.parametrize(
    ("expectation", "accepted", "refused"),
    [
        (Expectation(1), [1, 1.0, True], [2, "1", None]),
        (Expectation([1, (2,)]), [[1, (2,)], [True, (2.0,)]], [[1, [2]], (1, (2,))]),
        (Expectation(0.3), [0.3], [0.1 + 0.2]),
        (Expectation(float("nan")), [], [float("nan")]),
        (Expectation((0.3, 1e-6), "within"), [0.1 + 0.2, 0.3], [0.4, "a", None, float("nan"), [1]]),
        (Expectation((1, 1), "within_or_at"), [2, 0], [3]),
        (Expectation((100, 0.01, 0.0), "isclose"), [100.5], [102, "x"]),
        (Expectation({1, 2}, "eq", ("set",)), [[2, 1, 1], (1, 2)], [[1], 3]),
        (Expectation(None, "true"), [1, [0]], [0, [], None]),
        (Expectation(None, "false"), [0, ""], ["x"]),
        (Expectation(True, "is"), [True], [1, 1.0]),
        (Expectation([1, 2], "in"), [1], [3]),
        (Expectation("x", "contains"), ["axb", ["x"]], ["b", 5]),
        (Expectation("int", "isinstance"), [1, True], [1.0]),
    ],
)
def test_expectation_follows_python(expectation: Expectation, accepted: list[Any], refused: list[Any]) -> None:
    assert all(map(expectation.accepts, accepted))
    assert not any(map(expectation.accepts, refused))


def test_expectation_refuses_unknown_rules() -> None:
    with pytest.raises(ValueError, match="knows no"):
        Expectation(1, "almost")
    with pytest.raises(ValueError, match="knows no"):
        Expectation(1, "eq", ("eval",))


def test_recorder_keeps_the_value() -> None:
    recorder = Recorder()
    assert not recorder.returned
    assert recorder.accepts([1])
    assert recorder.value == [1]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=5,
)
CONDITIONS = {
    "eq": "v == y", "ne": "v != y", "lt": "v < y", "ge": "v >= y", "in": "v in y", "contains": "y in v",
    "true": "v", "false": "not v",
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(VALUES, VALUES, st.sampled_from(sorted(CONDITIONS)), st.sampled_from(["", "sorted", "len", "tuple", "str"]))
def test_expectation_agrees_with_the_plain_condition(value: Any, expected: Any, rule: str, view: str) -> None:
    condition = CONDITIONS[rule].replace("v", f"{view}(v)" if view else "v")
    try:
        plain = bool(eval(condition, {"v": value, "y": expected}))
    except Exception:
        plain = False
    assert Expectation(expected, rule, (view,) if view else ()).accepts(value) is plain
    assert rule in RULES


NAMES = st.sampled_from(["f", "candidate", "check", "x", "abs", "math", "sorted"])


def expressions() -> st.SearchStrategy[str]:
    atoms = NAMES | st.sampled_from(["1", "'a'", "[1, 2]", "(1,)", "{}", "{1}", "None", "True", "2.5", "1j", "..."])

    def compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.builds("{}({})".format, inner, inner),
            st.builds("({} == {})".format, inner, inner),
            st.builds("({} - {} < {})".format, inner, inner, inner),
            st.builds("(not {})".format, inner),
            st.builds("({} and {})".format, inner, inner),
            st.builds("(lambda {}=1: {})".format, st.sampled_from("fx"), inner),
            st.builds("[{} for {} in {}]".format, inner, st.sampled_from("fx"), inner),
            st.builds("math.isclose({}, {}, rel_tol={})".format, inner, inner, inner),
            st.builds("({} if {} else {})".format, inner, inner, inner),
            st.builds("(x := {})".format, inner),
        )

    return st.recursive(atoms, compound, max_leaves=6)


def sources() -> st.SearchStrategy[str]:
    simple = st.one_of(
        st.builds("assert {}".format, expressions()),
        st.builds("assert f({}) == {}".format, expressions(), expressions()),
        st.builds("assert {}, {}".format, expressions(), expressions()),
        st.builds("x = {}".format, expressions()),
        st.builds("{}".format, expressions()),
        st.sampled_from(["import math", "from math import isclose as f", "pass", "del x", "global x"]),
    )

    def indent(text: str) -> str:
        return "\n".join("    " + line for line in text.splitlines())

    def blocks(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        body = st.lists(inner, min_size=1, max_size=3).map("\n".join)
        heads = [
            "def check(candidate):",
            "for x in (1, 2):",
            "while x:",
            "with x:",
            "class f:",
            "if x:",
            "def g(f, *a):",
        ]
        return st.one_of(
            st.builds(lambda head, text: f"{head}\n{indent(text)}", st.sampled_from(heads), body),
            st.builds(lambda a, b: f"try:\n{indent(a)}\nexcept ValueError as f:\n{indent(b)}", body, body),
        )

    return st.lists(st.recursive(simple, blocks, max_leaves=4), max_size=4).map("\n".join)


def read(source: str) -> Plan | None:
    """The plan, or None where the source is refused with a message that names the entry point."""
    try:
        return read_test(source, "f")
    except TestSyntaxError as error:
        if "'f'" not in str(error):
            raise RuntimeError("the message names no entry point") from error
        return None


def parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


@settings(max_examples=400, deadline=None)
@given(sources())
def test_any_source_is_read_or_refused(source: str) -> None:
    plan = read(source)
    assert (plan is not None) == parses(source)
    if plan is None:
        return
    assert (plan.emitter is None) == bool(plan.reason)
    assert plan.tests is None or plan.emitter is not None
    assert "assert" not in plan.program or ":=" in plan.program
    if plan.emitter is not None:
        loads = [node for node in ast.walk(ast.parse(plan.emitter)) if isinstance(node, ast.Name) and node.id == "f"]
        assert len(loads) == ("check(f)" in plan.emitter)  # no candidate but the one that drives check()
    assert all(isinstance(test.expected, Expectation) for test in plan.tests or ())


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(source: str) -> None:
    assert (read(source) is not None) == parses(source)
