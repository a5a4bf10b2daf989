"""The five sub-rewards of DTERM and the function adapter, against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.rewards import (
    CompileReward,
    EfficiencyReward,
    FunctionReward,
    RewardComponent,
    SimilarityReward,
    StyleReward,
    TestsReward,
)
from lightning_dterm.rewards.base import line_span, line_starts, position_span
from lightning_dterm.rewards.compile import parse_errors
from lightning_dterm.rewards.similarity import tokenize
from lightning_dterm.rewards.style import code_lines
from lightning_dterm.sandbox import Job, Sandbox
from lightning_dterm.types import CodeTask, RewardResult, Sample, Span
from tests.rewards_common import SQUARE, TESTS, make_task, sandbox_fixture

sandbox = sandbox_fixture(slots=1)


def make_sample(code: str, task: CodeTask | None = None, box: Sandbox | None = None) -> Sample:
    sample = Sample(task or make_task(), code, ((0, len(code)),))
    if box is not None:
        entry = sample.task.entry_point if sample.task.tests else None
        sample.execution = box.run_many([Job(sample.program, entry, sample.task.tests, bool(sample.task.tests))])[0]
    return sample


def score_one(component: RewardComponent, sample: Sample) -> RewardResult:
    assert component.applies_to(sample.task)
    (result,) = component.score([sample])
    return result


def quoted(sample: Sample, result: RewardResult) -> list[str]:
    return [sample.program[span.start : span.end] for span in result.spans]


def test_every_component_gives_zero_to_an_empty_program(sandbox: Sandbox) -> None:
    for component in (CompileReward(), TestsReward(), SimilarityReward(), StyleReward(), EfficiencyReward()):
        component.setup(sandbox)
        for text in ("", "  \n\t"):
            # The prefix alone would pass every test.
            sample = make_sample(text, make_task(prefix=SQUARE), sandbox)
            assert score_one(component, sample).value == 0.0, component.name


@pytest.mark.parametrize(
    ("code", "errors", "blamed"),
    [
        (SQUARE, 0, []),
        ("def f(x:\n    return x\n", 1, ["("]),
        ("é = = 1\nb = 2\nc = = 3\n", 2, ["=", "="]),
        ("x = 'ü' ü = 2\n", 1, None),
    ],
)
def test_compile_python(sandbox: Sandbox, code: str, errors: int, blamed: list[str] | None) -> None:
    sample = make_sample(code, box=sandbox)
    result = score_one(CompileReward(lam=0.5), sample)
    assert result.value == pytest.approx(math.exp(-0.5 * errors))
    assert result.details["method"] == "cpython"
    if blamed is not None:
        assert quoted(sample, result) == blamed


def test_compile_without_tests_or_entry_point(sandbox: Sandbox) -> None:
    task = make_task(tests=(), entry_point=None)
    assert score_one(CompileReward(), make_sample("raise SystemExit", task, sandbox)).value == 1.0
    assert score_one(CompileReward(), make_sample("x = (", task, sandbox)).value == pytest.approx(math.exp(-1))
    assert score_one(CompileReward(), make_sample("x", task)).error is not None


@pytest.mark.parametrize(
    ("language", "code", "errors"),
    [
        ("java", "public int f(int x) { return x; }", 0),
        ("java", "class B { int f() { return 1; } }", 0),
        ("java", 'String f() { return "é" }', 1),
        ("csharp", "public int F(int x) { return x; }", 0),
        ("csharp", "public int F(int x) { return x }", 1),
        ("javascript", "function f(x) { return x }", 0),
        ("javascript", "function f(x { return x }", 1),
    ],
)
def test_compile_other_languages_counts_parse_errors(language: str, code: str, errors: int) -> None:
    result = score_one(CompileReward(), make_sample(code, make_task(language=language, tests=())))
    assert len(result.spans) == errors
    assert result.value == pytest.approx(math.exp(-errors))
    assert str(result.details["method"]).startswith(("tree-sitter", "javac", "node", "mcs"))


def test_parse_error_offsets_are_characters_of_the_unwrapped_program() -> None:
    code = 'void f() { String é = "üüü"; int y = 1 int z; }'
    (span,) = parse_errors(code, "java")
    assert code.index("1") <= span.start <= code.index("int z")
    code = "int g() { return 1; }\nint f() { return @@@; }"
    for span in parse_errors(code, "java"):
        assert code.index("return @") <= span.start < span.end <= len(code)


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="ab1(){};=+ \n\"'é\u20ac/*", max_size=60), st.sampled_from(["java", "csharp", "javascript"]))
def test_parse_error_spans_stay_inside_the_program(code: str, language: str) -> None:
    for span in parse_errors(code, language):
        assert 0 <= span.start < span.end <= max(len(code), 1)


def test_compile_applies_to_code_only() -> None:
    assert not CompileReward().applies_to(make_task(language="text"))
    assert not CompileReward().applies_to(make_task(language="cobol"))
    with pytest.raises(ValueError, match="lam"):
        CompileReward(lam=0)


def test_tests_reward_is_the_share_of_visible_tests(sandbox: Sandbox) -> None:
    only_two = "def f(x):\n    return 4 if x == 2 else 0\n"
    assert score_one(TestsReward(), make_sample(only_two, box=sandbox)).value == 0.5
    assert score_one(TestsReward(), make_sample(SQUARE, box=sandbox)).value == 1.0


@pytest.mark.parametrize("hidden", ["return 0", "raise ValueError", "while True: pass", "import os; os._exit(1)"])
def test_hidden_tests_reach_no_reward(sandbox: Sandbox, hidden: str) -> None:
    code = f"def f(x):\n    if x > 3:\n        {hidden}\n    return x * x\n"
    with Sandbox(slots=1) as box:
        good, bad = make_sample(SQUARE, box=box), make_sample(code, box=box)
    assert bad.execution is not None
    assert bad.execution.share_passed(visible=False) == 0.0
    for component in (TestsReward(), EfficiencyReward(sandbox=sandbox)):
        assert score_one(component, bad).spans == ()
    assert score_one(TestsReward(), bad).value == score_one(TestsReward(), good).value == 1.0
    # Operations over the 2 visible tests. Reference: def and x; return, *, x, x each time. Bad: if, >, x, 3 as well.
    assert score_one(EfficiencyReward(sandbox=sandbox), bad).value == pytest.approx((2 + 2 * 4) / (2 + 2 * 8))


def test_tests_reward_blames_the_line_that_raised(sandbox: Sandbox) -> None:
    code = "def g(x):\n    return [][x]\n\ndef f(x):\n    return g(x) if x == 3 else x * x\n"
    task = make_task(prefix="# é prefix\n")
    sample = make_sample(code, task, sandbox)
    result = score_one(TestsReward(), sample)
    assert result.value == 0.5
    assert quoted(sample, result) == ["return [][x]"]
    (span,) = sample.spans_in_text(result.spans)
    assert sample.text[span.start : span.end] == "return [][x]"


def test_tests_reward_applicability() -> None:
    assert not TestsReward().applies_to(make_task(tests=()))
    assert not TestsReward().applies_to(make_task(tests=TESTS[2:]))
    assert not TestsReward().applies_to(make_task(language="text"))
    assert not TestsReward().applies_to(make_task(language="go"))
    assert score_one(TestsReward(), make_sample("x")).error is not None


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("a b c d", 1.0),
        ("a b c e", (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25),  # no 4-gram matches: half a match
        ("a b c d e f", (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25),
        ("a b", math.exp(1 - 4 / 2)),  # perfect precision at orders 1 and 2, brevity penalty
        ("x", 0.0),
    ],
)
def test_similarity_by_hand(code: str, value: float) -> None:
    sample = make_sample(code, make_task(reference="a b c d"))
    assert score_one(SimilarityReward(), sample).value == pytest.approx(value)


def test_similarity_ignores_layout_and_splits_strings() -> None:
    assert tokenize("def f(x):\n  return x**2 != 'a b' # hé\n0xFF 1.5e-3 a?.b", "python") == [
        "def", "f", "(", "x", ")", ":", "return", "x", "**", "2", "!=", "'", "a", "b", "'", "#", "hé", "0xFF", "1.5e-3",
        "a", "?.", "b",
    ]  # fmt: skip
    sample = make_sample("def f( x ) :\n\treturn x*x", make_task())
    assert score_one(SimilarityReward(), sample).value == pytest.approx(1.0)
    assert tokenize("It's 1.5!", "text") == ["It", "'", "s", "1", ".", "5", "!"]
    assert not SimilarityReward().applies_to(make_task(reference=" \n"))


@given(st.text(max_size=80))
def test_tokens_keep_every_visible_character(text: str) -> None:
    assert "".join(tokenize(text, "python")) == "".join(char for char in text if not char.isspace())


@given(st.text(alphabet="ab (=", max_size=30), st.text(alphabet="ab (=", min_size=1, max_size=30))
def test_similarity_stays_in_range(code: str, reference: str) -> None:
    sample = make_sample(code, make_task(reference=reference + "x"))
    value = score_one(SimilarityReward(), sample).value
    assert value is not None
    assert 0 <= value <= 1


def test_style_by_hand() -> None:
    # F401 (1.0) on "os", E711 (0.5) on "None", over 4 code lines.
    code = "import os\n\n\n# a comment\ndef f(x):\n    é = x == None\n    return é\n"
    sample = make_sample(code)
    result = score_one(StyleReward(), sample)
    assert result.value == pytest.approx(1 - 1.5 / 4)
    assert quoted(sample, result) == ["os", "None"]
    assert [span.weight for span in result.spans] == [1.0, 0.5]
    assert score_one(StyleReward(), make_sample(SQUARE)).value == 1.0


def test_style_counts_the_completion_only() -> None:
    prefix = "import os\n\n\ndef f(x):\n"
    sample = make_sample("    y = 1\n    return x\n", make_task(prefix=prefix))
    result = score_one(StyleReward(), sample)
    assert result.value == pytest.approx(1 - 1.0 / 2)  # F841 on y, not F401 on os
    assert quoted(sample, result) == ["y"]
    assert [sample.text[s.start : s.end] for s in sample.spans_in_text(result.spans)] == ["y"]


def test_style_one_bad_program_does_not_touch_its_neighbours() -> None:
    style = StyleReward()
    batch = [make_sample(code) for code in (SQUARE, "def f(:\n", "", "import os\n", "-" * 100_000 + "1", "x = 1\n")]
    results = style.score(batch)
    assert [result.value for result in results] == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert results[1].details["syntax_error"] is True
    assert quoted(batch[1], results[1]) != []


def test_style_cannot_be_silenced_from_inside() -> None:
    bare = score_one(StyleReward(), make_sample("import os\nimport sys\n\nX = 1\n")).value
    for comment in ("# ruff: noqa", "# flake8: noqa"):
        assert (
            score_one(StyleReward(), make_sample(f"{comment}\nimport os  # noqa\nimport sys\n\nX = 1\n")).value == bare
        )
    assert code_lines("# a\n\nx = 1\r\ny = 2\n") == 2


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 6), st.integers(0, 5))
def test_style_never_rises_with_one_more_violation(lines: int, unused: int) -> None:
    body = "".join(f"A{i} = {i}\n" for i in range(lines))
    fewer, more = ("".join("A0 == None\n" if i < n else "A0 == 2\n" for i in range(6)) for n in (unused, unused + 1))
    first, second = StyleReward().score([make_sample(body + fewer), make_sample(body + more)])
    assert first.value is not None
    assert second.value is not None
    assert first.value >= second.value


def test_style_settings() -> None:
    unused = make_sample("import os\n\nX = 1\n")
    assert score_one(StyleReward(severity={"F": 0.5, "F401": 0.25}), unused).value == pytest.approx(1 - 0.25 / 2)
    assert score_one(StyleReward(ignore=["F401"]), unused).value == 1.0
    assert not StyleReward().applies_to(make_task(language="go"))
    with pytest.raises(ValueError, match="severities"):
        StyleReward(severity={"E": 2.0})
    with pytest.raises(RuntimeError, match="ruff failed"):
        score_one(StyleReward(select=["NOSUCH"]), unused)


def test_efficiency_by_hand(sandbox: Sandbox) -> None:
    slow = "def f(x):\n    t = 0\n    for _ in range(x):\n        t += x\n    return t\n"
    # Operations. Reference: def and x: 2; return, *, x, x for each of 2 tests. Slow: def and x; =, t, 0; for, _, call,
    # range, x; return, t: 10 for each test, and +=, t, x for each of 2 and 3 turns.
    component = EfficiencyReward()
    component.setup(sandbox)
    assert score_one(component, make_sample(slow, box=sandbox)).value == pytest.approx(10 / (2 + 2 * 10 + 3 * 5))
    assert score_one(component, make_sample(SQUARE, box=sandbox)).value == 1.0
    assert score_one(component, make_sample("f = abs\n", box=sandbox)).value == 0.0  # fails the tests
    quick = make_sample("f = lambda x: x * x\n", box=sandbox)
    assert score_one(component, quick).value == 1.0


def test_efficiency_measures_each_reference_once(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    component = EfficiencyReward(sandbox=sandbox)
    samples = [make_sample(SQUARE, box=sandbox) for _ in range(3)]
    calls = []
    run_many = sandbox.run_many
    monkeypatch.setattr(sandbox, "run_many", lambda jobs, **how: calls.append(len(jobs)) or run_many(jobs, **how))
    component.score(samples)
    component.score(samples)
    assert calls == [1]


def test_efficiency_reports_a_broken_reference_as_failure(sandbox: Sandbox) -> None:
    task = make_task(reference="def f(x):\n    return 0\n")
    assert "reference" in str(score_one(EfficiencyReward(sandbox=sandbox), make_sample(SQUARE, task, sandbox)).error)
    with pytest.raises(RuntimeError, match="no sandbox"):
        EfficiencyReward().score([make_sample(SQUARE, box=sandbox)])


def trl_reward(prompts: list[str], completions: list[str], reference: list[str], **kwargs: Any) -> list[float | None]:
    """As TRL documents it: lists in, a list of floats or None out."""
    assert len(prompts) == len(kwargs["task_type"]) == len(kwargs["difficulty"])
    assert all(test.visible for tests in kwargs["tests"] for test in tests)
    return [
        None if d is None else float(c == r)
        for c, r, d in zip(completions, reference, kwargs["difficulty"], strict=True)
    ]


def test_function_reward_is_trl_compatible() -> None:
    reward = FunctionReward(trl_reward)
    tasks = [make_task(metadata={"difficulty": 1}), make_task(metadata={"difficulty": 2}), make_task()]
    samples = [make_sample(code, task) for code, task in zip((SQUARE, "x", SQUARE), tasks, strict=True)]
    assert reward.name == "trl_reward"
    assert [result.value for result in reward.score(samples)] == [1.0, 0.0, None]
    assert reward.score([]) == []


def test_function_reward_without_kwargs_scaled_by_path_and_filtered() -> None:
    reward = FunctionReward(lambda completions, task_id: [len(c) for c in completions], "length", low=0, high=10)
    assert reward.score([make_sample("abcde")])[0].value == 0.5
    assert FunctionReward("math.fsum", task_types=["repair"]).applies_to(make_task()) is False
    with pytest.raises(ValueError, match="cannot import"):
        FunctionReward("math.no_such_function")
    with pytest.raises(ValueError, match="below"):
        FunctionReward("math.fsum", low=1, high=1)
    with pytest.raises(ValueError, match="2 values for 1"):
        FunctionReward(lambda completions: [0, 0], "two").score([make_sample("x")])


def test_positions_map_to_character_offsets() -> None:
    text = "é = 1\r\n  b = 'ü'\rc\n"
    starts = line_starts(text)
    assert [text[start] for start in starts[:3]] == ["é", " ", "c"]
    assert position_span(text, starts, (1, 5), (1, 6)) == Span(4, 5)
    assert position_span(text, starts, (99, 1), (99, 1)) == Span(len(text) - 1, len(text))
    assert line_span(text, starts, 2) == Span(9, 16)
    assert line_span(text, starts, 4) is None
    assert line_span(text, starts, 5) is None
