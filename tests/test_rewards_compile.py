"""The compile reward over real compilers: values by hand, evidence, masks, stages, batching, repair data."""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_dterm.rewards import CompileReward
from lightning_dterm.sandbox import Job, Limits, Result, Sandbox
from lightning_dterm.sandbox.languages import CompileLimits, Compilers, Report
from lightning_dterm.sandbox.result import CompileError
from lightning_dterm.types import CallTest, CodeTask, RewardResult, Sample
from tests.languages_common import children, folders, needs, own_temporary_folder

__all__ = ["own_temporary_folder"]
SHARED = Path(os.environ.get("LIGHTNING_DTERM_SHARED", Path(__file__).parents[2] / "shared"))
TRACER = SHARED / "data/repair/tracer_c_test.jsonl.gz"


@pytest.fixture(scope="module")
def reward(own_temporary_folder: None) -> Iterator[CompileReward]:
    component = CompileReward(lam=0.5, limits=CompileLimits(wall_s=900.0))
    component._options = {"slots": 1}
    yield component
    component.close()
    assert (children(), folders()) == ([], set())


def make(code: str, language: str, text: str | None = None, **changes: Any) -> Sample:
    fields: dict[str, Any] = {
        "task_id": "t", "task_type": "repair", "language": language, "prompt": "p", "description": "d", "reference": "",
    }  # fmt: skip
    text = code if text is None else text
    start = text.index(code)
    return Sample(CodeTask(**{**fields, **changes}), text, ((start, start + len(code)),))


def score(reward: CompileReward, *samples: Sample) -> list[RewardResult]:
    assert all(reward.applies_to(sample.task) for sample in samples)
    return reward.score(samples)


def test_values_and_evidence_in_one_batch(reward: CompileReward, monkeypatch: pytest.MonkeyPatch) -> None:
    for language in ("c", "java", "javascript"):
        needs(language)
    calls: list[int] = []
    original = Compilers.check_many

    def counted(self: Compilers, programs: Any) -> Any:
        calls.append(len(programs))
        return original(self, programs)

    monkeypatch.setattr(Compilers, "check_many", counted)
    samples = [
        make("int main(void) { return 0; }\n", "c"),
        make("int main(void) { int é = ; return x; }\n", "c"),
        make("  ", "c"),
        make("class A { int f() { return 1 } }", "java"),
        make("let x = = 1;", "javascript"),
        make("int main(void) { return 0; }\n", "c"),
    ]
    results = score(reward, *samples)
    assert calls == [5]
    values = [1.0, math.exp(-1.0), 0.0, math.exp(-0.5), math.exp(-0.5), 1.0]
    assert [result.value for result in results] == pytest.approx(values)
    assert [result.error for result in results] == [None] * 6
    blamed = [
        [sample.program[s.start : s.end] for s in result.spans] for sample, result in zip(samples, results, strict=True)
    ]
    assert blamed == [[], [";", "x"], [], [" "], ["="], []]
    assert results[1].details["errors"] == 2
    assert results[1].details["method"].startswith("gcc ")
    assert results[3].details["method"].endswith("(parse)")
    assert results[4].details["method"].startswith("node ")


def test_evidence_lands_in_the_text_around_the_code(reward: CompileReward) -> None:
    needs("c")
    text = "Here é is:\n```c\nint f(void) { return y; }\n```\n"
    sample = make("int f(void) { return y; }\n", "c", text, prefix="int z;\n")
    (result,) = score(reward, sample)
    (span,) = sample.spans_in_text(result.spans)
    assert text[span.start : span.end] == "y"


def test_warnings_cost_nothing_and_cascades_stop(reward: CompileReward) -> None:
    needs("c")
    warns = make("int main(void) { char *p = 5; return g(); }", "c")
    many = make("int main(void) {" + "".join(f"x{i}=1;" for i in range(99)) + "}", "c")
    bomb = make("#define A(x) x x x x x x x x\n#define B(x) A(A(A(A(A(x)))))\nint main(void) { B(B(;)) }", "c")
    results = score(reward, warns, many, bomb)
    assert [result.value for result in results] == pytest.approx([1.0, math.exp(-5.0), math.exp(-5.0)])
    assert len(results[1].spans) == 10
    assert results[2].spans == ()
    assert results[2].details["status"] in ("memory", "timeout")


def test_decay_by_language(reward: CompileReward) -> None:
    needs("c")
    needs("javascript")
    own = CompileReward(lam=1.0, lam_by_language={"c": 2.0, "JS": 0.25}, max_errors=3)
    own._compilers = reward.compilers
    results = own.score([make("int x = ;", "c"), make("let x = ;", "javascript"), make("a b c\n=\n;x y;z =;w =;", "c")])
    assert [result.value for result in results][:2] == pytest.approx([math.exp(-2.0), math.exp(-0.25)])
    assert results[2].value is not None
    assert results[2].value >= math.exp(-6.0)


def test_fragments_are_parsed_and_whole_programs_compiled(reward: CompileReward) -> None:
    needs("java")
    lone = "int f(int x) { return helper.g(x); }"
    fragment = make(lone, "java")
    program = make(lone, "java", tests=(CallTest((1,), 1),), entry_point="f")
    said = make(lone, "java", metadata={"standalone": True})
    results = score(reward, fragment, program, said)
    assert [result.value for result in results] == pytest.approx([1.0, math.exp(-0.5), math.exp(-0.5)])
    always = CompileReward(stage="parse")
    always._compilers = reward.compilers
    assert always.score([program])[0].value == 1.0


def test_a_missing_compiler_masks_and_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    from lightning_dterm.sandbox.languages import compilers as module

    module._warned.discard("php")
    with caplog.at_level(logging.WARNING):
        reward = CompileReward()
        reward.compilers.backends["php"].__dict__["path"] = None
        task = make("<?php", "php").task
        assert [reward.applies_to(task) for _ in range(3)] == [False] * 3
        reward.close()
    assert caplog.text.count("php-cli (for example") == 1


def test_tree_sitter_stands_in_and_says_so() -> None:
    reward = CompileReward(lam=1.0)
    reward.compilers.backends["csharp"].__dict__["path"] = None
    sample = make("public int F(int x) { return x }", "csharp")
    (result,) = score(reward, sample)
    assert result.value == pytest.approx(math.exp(-1))
    assert result.details["method"] == "tree-sitter"
    reward.fallback = False
    assert not reward.applies_to(sample.task)
    reward.close()


def test_our_own_failure_is_no_score(reward: CompileReward, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("c")
    lost = Report("c", "gcc 12", "infra", reason="launcher lost")
    monkeypatch.setattr(Compilers, "check_many", lambda self, programs: [lost for _ in programs])
    (result,) = reward.score([make("int x;", "c")])
    assert result.value is None
    assert "launcher lost" in (result.error or "")


def test_it_travels_without_its_processes(reward: CompileReward) -> None:
    copy = pickle.loads(pickle.dumps(reward))
    assert copy._compilers is None
    assert (copy.lam, copy.max_errors) == (reward.lam, reward.max_errors)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"lam": 0}, "lam"),
        ({"lam_by_language": {"c": -1}}, "lam"),
        ({"max_errors": 0}, "max_errors"),
        ({"stage": "x"}, "stage"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit):
        CompileReward(**options)


# Student programs in the manner of DeepFix, written for this test: the broken line, the mended line, errors in between.
REPAIRS = [
    ("  int sum = 0\n", "  int sum = 0;\n"),
    ('  printf("%d\\n", sum;\n', '  printf("%d\\n", sum);\n'),
    ("  for (i = 0; i < 3; i++ {\n", "  for (i = 0; i < 3; i++) {\n"),
    ("  if (sum > 2 || ) {\n", "  if (sum > 2) {\n"),
    ("  total = total + i;\n", "  sum = sum + i;\n"),
    ("  int a[3] = {1, 2, 3;\n", "  int a[3] = {1, 2, 3};\n"),
]


def student(line: str) -> str:
    lines = [
        "  int i;\n", "  int sum = 0;\n", "  int a[3] = {1, 2, 3};\n", "  for (i = 0; i < 3; i++) {\n",
        "  sum = sum + i;\n", "  }\n", "  if (sum > 2) {\n", "  }\n", '  printf("%d\\n", sum);\n', "  return 0;\n",
    ]  # fmt: skip
    place = next(i for i, (broken, mended) in enumerate(REPAIRS) if line in (broken, mended))
    body = "".join(line if one == REPAIRS[place][1] else one for one in lines)
    return "#include <stdio.h>\nint main() {\n" + body + "}\n"


def test_repair_programs_in_the_manner_of_deepfix(reward: CompileReward) -> None:
    needs("c")
    samples = [make(student(line), "c") for pair in REPAIRS for line in pair]
    values = [result.value for result in score(reward, *samples)]
    for broken, mended in zip(values[::2], values[1::2], strict=True):
        assert broken is not None
        assert broken < 1.0 == mended


def test_tracer_pairs(reward: CompileReward, capsys: pytest.CaptureFixture[str]) -> None:
    needs("c")
    if not TRACER.is_file():
        pytest.skip(f"{TRACER} is not there (LIGHTNING_DTERM_SHARED names the folder above data/)")
    with gzip.open(TRACER, "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file][:: int(os.environ.get("LIGHTNING_DTERM_TEST_STRIDE", "60"))]
    samples = [make(pair[side], "c") for pair in pairs for side in ("sourceText", "targetText")]
    values = [result.value or 0.0 for result in score(reward, *samples)]
    broken = sum(value < 1.0 for value in values[::2]) / len(pairs)
    mended = sum(value == 1.0 for value in values[1::2]) / len(pairs)
    with capsys.disabled():
        print(f"\nTRACER, {len(pairs)} pairs: broken rejected {broken:.1%}, mended accepted {mended:.1%}")
    assert broken > 0.9
    assert mended > 0.95


def test_a_program_too_much_for_cpythons_compiler_counts_the_most() -> None:
    """Ninety thousand signs in a row end its parser or its process, by whatever way."""
    with Sandbox(slots=1, limits=Limits(cpu_s=1.0, wall_s=5.0)) as box:
        deep = "x = a" + ".b" * 200_000 + "\n"
        programs = ["x = 1\n", "x = = 1\n", f"x = {'-' * 90_000}1\n", deep, "x = = 1\n" + deep]
        results = box.run_many([Job(program, None) for program in programs])
        samples = [make(program, "python") for program in programs]
        for sample, result in zip(samples, results, strict=True):
            sample.execution = result
        scored = CompileReward(lam=0.5, max_errors=7).score(samples)
    assert [result.details["errors"] for result in scored] == [0, 1, 7, 7, 7]
    assert [result.value for result in scored] == pytest.approx([1.0, math.exp(-0.5), *[math.exp(-3.5)] * 3])
    assert {result.details["status"] for result in scored[2:]} <= {"crash", "memory", "timeout"}
    lost = CompileReward().score([replace(samples[0], execution=Result("infra", exception="judge gone"))])[0]
    assert (lost.value, lost.error) == (None, "cpython: judge gone")


@pytest.mark.parametrize("message", ["the compiler ended abnormally", "MemoryError: ", "RecursionError: "])
def test_how_cpythons_compiler_gave_up_does_not_matter(message: str) -> None:
    sample = make("x = 1\n", "python")
    sample.execution = Result("killed", compile_error=CompileError(message, 1, 1, 1, 2))
    assert CompileReward(max_errors=4).score([sample])[0].value == pytest.approx(math.exp(-4))
