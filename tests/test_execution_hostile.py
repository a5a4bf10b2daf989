"""The judge against hostile programs, missing compilers and accidents of ours: never a reward, never a silent zero."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from lightning_dterm import execution
from lightning_dterm.execution import Request, TaskJudge, judge_for
from lightning_dterm.rewards import RewardSuite, TestsReward
from lightning_dterm.sandbox import Job, Level, Limits, Result, Sandbox, SandboxUnavailable, TestOutcome
from lightning_dterm.sandbox.languages import ProgramJob, Programs, default_backends
from lightning_dterm.types import Sample
from tests.execution_common import CALLED, LIMITS, SUMS, assert_task, judged, scored, text_task
from tests.languages_common import needs
from tests.rewards_common import SQUARE, make_task


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(slots=1, limits=LIMITS) as box:
        yield box
        judge_for(box).close()


# --- hostile programs ------------------------------------------------------------------------------------------------

HOSTILE = {
    "c": [
        '#include <stdlib.h>\n#include <stdio.h>\nint main(void) { puts("passed"); _Exit(0); }',
        "#include <stdio.h>\nint main(void) { for (;;) puts(\"3\"); }",
        "int main(void) { for (;;); }",
        "int main(void) { return *(volatile int *)0; }",
        '#include <stdio.h>\nint main(void) { FILE *f = fopen("/proc/self/maps", "r"); int c; '
        "while (f && (c = getc(f)) != EOF) putchar(c); }",
    ],
    "java": [
        "class Main { public static void main(String[] a) { System.out.print(\"passed\"); System.exit(0); } }",
        "class Main { public static void main(String[] a) { Runtime.getRuntime().halt(0); } }",
        "class Main { public static void main(String[] a) { for (;;) System.out.println(3); } }",
        "class Main { public static void main(String[] a) { System.setOut(null); throw new Error(); } }",
    ],
    "javascript": [
        "console.log('passed'); process.exit(0);",
        "process.reallyExit(0);",
        "for (;;) process.stdout.write('3\\n');",
        "process.abort();",
        "console.log(Object.getOwnPropertyNames(globalThis).join()); process.kill(process.pid, 'SIGKILL');",
    ],
    "python": [
        "import os\nprint('passed', flush=True)\nos._exit(0)\n",
        "raise SystemExit(0)\n",
        "print(int(input().split()[0]) + 2)\nraise SystemExit(3)\n",
        "while True:\n    print(3)\n",
        "while True:\n    pass\n",
        "import sys\nframe = sys._getframe()\nwhile frame:\n    print(frame.f_locals, frame.f_globals)\n"
        "    frame = frame.f_back\n",
        "import gc\nfor thing in gc.get_objects():\n    print(thing)\n",
        "import sys\nfor frame in list(sys._current_frames().values()):\n    while frame:\n"
        "        frame.f_globals['run_text'] = lambda *_: True\n        frame = frame.f_back\n",
        "class Yes(bytes):\n    def __eq__(self, other):\n        return True\n    def split(self):\n"
        "        return self\nimport os\nos.read = lambda *_: Yes()\n",
        "import os\nos.closerange(0, 64)\n",
        "import io\nio.TextIOWrapper.write = lambda *_: 1\nimport builtins\nbuiltins.exec = builtins.compile = None\n",
        "import os\nfor fd in range(3, 32):\n    try:\n        os.write(fd, b'T' * 64)\n    except OSError:\n"
        "        pass\n",
    ],
}  # fmt: skip


@pytest.mark.parametrize("language", HOSTILE)
def test_hostile_programs_earn_nothing_and_spoil_nothing(language: str) -> None:
    """No test is right by chance: the expected text is not what any of them prints."""
    needs(language)
    with Sandbox(slots=1, limits=Limits(cpu_s=1.0, wall_s=300.0)) as box:
        task = text_task(language)
        found = scored(box, task, *HOSTILE[language], SUMS[language])
        assert [one.value for one in found] == [0.0] * len(HOSTILE[language]) + [1.0]
        assert all(one.details["status"] not in ("passed", "infra") for one in found[:-1])
        judge_for(box).close()


def test_a_program_that_hangs_is_not_given_every_test_to_hang_in(sandbox: Sandbox) -> None:
    texts = [{"stdin": "", "expected": "x"}] * 40
    quick = Limits(cpu_s=0.3, wall_s=300.0, restarts=1)
    with Sandbox(slots=1, limits=quick) as box:
        (result,) = judged(box, text_task("python", io_tests=texts), "while True:\n    pass\n")
    assert [one.status for one in result.per_test] == ["timeout"] * 40
    assert result.cpu_s < 3 * 0.3 + 1.0  # three of forty were tried: one, then two
    assert result.attempts == 4  # and one process compiled it


# --- what is missing, and accidents of ours --------------------------------------------------------------------------


def test_a_missing_compiler_is_not_applicable_and_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *a, **k: None if "java" in name else which(name, *a, **k))
    monkeypatch.setattr(execution, "_said", set())
    assert next(one for one in default_backends() if "java" in one.languages).path is None
    with Sandbox(slots=1, limits=LIMITS) as box:
        suite = RewardSuite([TestsReward()], box)
        suite.setup()
        java, python = text_task("java"), text_task("python")
        with caplog.at_level(logging.WARNING):
            samples = [
                Sample(task, SUMS[name], ((0, len(SUMS[name])),))
                for task, name in ((java, "java"), (python, "python"), (java, "java"))
            ]
            result = suite.score(samples)
        assert result.scores.isnan().flatten().tolist() == [True, False, True]
        assert result.outcome.isnan().tolist() == [True, False, True]
        assert suite.failures["tests"] == 0
        assert judge_for(box).run([Request(java, SUMS["java"])]) == [None]
        suite.close()
    told = [record.getMessage() for record in caplog.records if "java" in record.getMessage()]
    assert len(told) == 1
    assert "apt-get install" in told[0]
    assert "jdk" in told[0]


def test_languages_that_are_only_compiled_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    execution._said.clear()
    with caplog.at_level(logging.WARNING):
        assert [TestsReward().applies_to(text_task("go")) for _ in range(3)] == [False] * 3
    assert len(caplog.records) == 1
    assert "'go'" in caplog.text
    assert not TestsReward().applies_to(text_task("text"))


class Lost:
    """A sandbox that judges nothing."""

    def run_many(self, jobs: Sequence[Job]) -> list[Result]:
        return [Result("infra", tuple(TestOutcome(False, "infra", one.visible) for one in job.tests)) for job in jobs]


def test_our_own_accidents_are_masked_and_counted_in_all_kinds() -> None:
    suite = RewardSuite([TestsReward()], Lost(), max_failures=1.0)  # type: ignore[arg-type]
    tasks = [text_task("python"), make_task(), assert_task("assert f(2) == 4")]
    result = suite.score([Sample(task, SQUARE, ((0, len(SQUARE)),)) for task in tasks])
    assert result.scores.isnan().all()
    assert result.outcome.isnan().all()
    assert suite.failures["tests"] == 3


def test_accidents_with_compiled_programs_are_retried_then_masked(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("c")
    run_many, calls = Programs.run_many, []

    def flaky(self: Programs, jobs: Sequence[ProgramJob]) -> list[Result | None]:
        calls.append(len(jobs))
        found = run_many(self, jobs)
        return [replace(found[0], status="infra") if found[0] else None, *found[1:]] if len(calls) == 1 else found

    monkeypatch.setattr(Programs, "run_many", flaky)
    wrong = SUMS["c"].replace("+", "-")
    assert [one.value for one in scored(sandbox, text_task("c"), SUMS["c"], wrong)] == [1.0, 0.0]
    assert calls == [2, 1]
    monkeypatch.setattr(Programs, "run_many", lambda self, jobs: [Result("infra", exception="lost") for _ in jobs])
    (masked,) = scored(sandbox, text_task("c"), SUMS["c"])
    assert masked.value is None
    assert "lost" in str(masked.error)


def test_malformed_tests_and_impossible_arguments_fail_their_own_sample_only(sandbox: Sandbox) -> None:
    needs("c")
    broken = text_task("python", io_tests=[{"stdin": 1, "expected": ""}])
    no_syntax = assert_task("assert f(")
    unpassable = make_task(language="c", tests=(execution.CallTest(({},), 1),))
    suite = RewardSuite([TestsReward()], sandbox, max_failures=1.0)
    suite.setup()
    programs = [SQUARE, SQUARE, CALLED["c"], SQUARE, CALLED["c"]]
    tasks = [broken, no_syntax, unpassable, make_task(), make_task(language="c")]
    result = suite.score([Sample(t, p, ((0, len(p)),)) for t, p in zip(tasks, programs, strict=True)])
    assert result.scores.flatten().isnan().tolist() == [True, True, True, False, False]
    assert result.scores[3:].flatten().tolist() == [1.0, 1.0]
    errors = [str(row["tests"].error) for row in result.results[:3]]
    assert "metadata.io_tests[0].stdin" in errors[0]
    assert "does not parse" in errors[1]
    assert "cannot be passed" in errors[2]


def test_less_isolation_than_asked_for_is_refused(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Result("passed", (TestOutcome(True, "passed", True),), wall_s=0.1, level="syscalls")
    monkeypatch.setattr(Programs, "run_many", lambda self, jobs: [ran for _ in jobs])
    with pytest.raises(SandboxUnavailable, match="'syscalls' at most, below min_level 'kernel'"):
        judge_for(sandbox).run([Request(text_task("c"), SUMS["c"])])
    monkeypatch.setattr(sandbox, "min_level", Level.SYSCALLS)  # the opt-in
    (result,) = judged(sandbox, text_task("c"), SUMS["c"])
    assert result.level == "syscalls"


def test_one_judge_for_a_sandbox_and_none_without_one() -> None:
    one, other = Sandbox(slots=1), Sandbox(slots=1)
    assert judge_for(one) is judge_for(one) is not judge_for(other)
    judge: TaskJudge = judge_for(one)
    del one
    with pytest.raises(RuntimeError, match="its sandbox is gone"):
        judge.run([Request(make_task(), SQUARE)])
    assert judge_for(None).runs("python")
