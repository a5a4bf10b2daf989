"""``Sandbox(language=...)``: the same two calls for programs of other languages."""

from __future__ import annotations

import pickle

import pytest

from lightning_dterm.execution import TaskJudge
from lightning_dterm.sandbox import Job, Level, Sandbox, SandboxUnavailable
from lightning_dterm.sandbox.languages import Compilers, IOTest, ProgramJob, default_backends
from lightning_dterm.types import CallTest
from tests.execution_common import CALLED, LIMITS, SUMS
from tests.languages_common import needs

SQUARES = (CallTest((2,), 4), CallTest((3,), 9, visible=False))
SUM = (IOTest("2 2\n", "4\n"), IOTest("1 2\n", "3\n", visible=False))


@pytest.mark.parametrize("language", ["c", "c++", "java", "javascript"])
def test_calls_texts_and_compilation_in_other_languages(language: str) -> None:
    with Sandbox(language=language, slots=1, limits=LIMITS) as box:
        needs(box.language)
        right, text = CALLED[language], SUMS[language]
        found = box.run_many([
            Job(right, "f", SQUARES),
            Job(right.replace("x * x", "x + x"), "f", SQUARES),
            ProgramJob(language, text, SUM),
            ProgramJob(language, text.replace("a + b", "a * b"), SUM),
            Job(right, None),
            Job(right.replace("x * x", "x *"), None),
            Job(right.replace("x * x", "x *"), "f", SQUARES),
        ])  # fmt: skip
        assert [[one.passed for one in result.per_test] for result in found] == [
            [True, True], [True, False], [True, True], [True, False], [], [], [False, False],
        ]  # fmt: skip
        expected = ["passed", "failed", "passed", "failed", "passed", "error", "error"]
        assert [result.status for result in found] == expected
        assert box.run(text, tests=SUM).status == "passed"
        assert box.run(right, "f", SQUARES).status == "passed"
        assert box.level >= Level.KERNEL
        assert {result.level for result in found} == {box.level.label}  # the compiler's too
        lazy = pickle.loads(pickle.dumps(box)).run_many([Job(right, "f", SQUARES)], lazy=True)
        assert lazy[0].passed


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(ValueError, match=r"'cobol' cannot be run; known: python, c, cpp, java, javascript"):
        Sandbox(language="cobol")
    with pytest.raises(ValueError, match="'go' cannot be run"):
        Sandbox(language="go")
    with Sandbox(slots=1) as python, pytest.raises(ValueError, match="TaskJudge"):
        python.run("print(1)", tests=SUM)
    with Sandbox(language="c", slots=1) as box:
        with pytest.raises(ValueError, match="measure_cost"):
            box.run_many([Job(CALLED["c"], "f", SQUARES, measure_cost=True)])
        with pytest.raises(ValueError, match="a program in 'java'"):
            box.run_many([ProgramJob("java", SUMS["java"], SUM)])
        with pytest.raises(ValueError, match=r"take Sandbox\(\), not Sandbox\(language='c'\)"):
            TaskJudge(box)
        with pytest.raises(ValueError, match="must run Python"):
            Compilers(sandbox=box)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert all(backend.path is None for backend in default_backends())
    with Sandbox(language="java", slots=1) as box, pytest.raises(SandboxUnavailable, match=r"apt-get install .*jdk"):
        box.run(CALLED["java"], "f", SQUARES)


def test_less_isolation_than_asked_for_is_refused() -> None:
    needs("c")
    box = Sandbox(language="c", slots=1, min_level="namespaces", namespaces=False)
    with box, pytest.raises(SandboxUnavailable, match=r"mount.*Or accept .* min_level='kernel'"):
        box.run(CALLED["c"], "f", SQUARES)
