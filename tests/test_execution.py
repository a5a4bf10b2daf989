"""One judge for every kind of test in every language: right fractions, and hidden tests kept out of rewards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from lightning_dterm import execution
from lightning_dterm.execution import judge_for
from lightning_dterm.rewards import EfficiencyReward, FunctionReward, RewardSuite, TestsReward
from lightning_dterm.sandbox import Sandbox
from lightning_dterm.sandbox.languages import canonical
from lightning_dterm.types import Sample
from tests.execution_common import CALLED, LIMITS, SUMS, assert_task, judged, scored, text_task
from tests.languages_common import needs
from tests.rewards_common import SQUARE, make_task


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(slots=1, limits=LIMITS) as box:
        yield box
        judge_for(box).close()


# --- the right fractions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", SUMS)
def test_programs_on_text_score_their_share(sandbox: Sandbox, language: str) -> None:
    needs(canonical(language))
    suite = RewardSuite([TestsReward()], sandbox)
    suite.setup()
    right = SUMS[language]
    programs = [right, right.replace("a + b", "a * b"), "syntax error (", ""]
    task = text_task(language)
    result = suite.score([Sample(task, program, ((0, len(program)),)) for program in programs])
    assert result.scores[:, 0].tolist() == [1.0, pytest.approx(1 / 3), 0.0, 0.0]
    assert result.outcome.tolist() == [1.0, 0.5, 0.0, 0.0]
    assert result.results[0]["tests"].details["level"] in ("kernel", "namespaces")
    assert suite.failures["tests"] == 0


@pytest.mark.parametrize("language", CALLED)
def test_calls_of_compiled_functions_score_their_share(sandbox: Sandbox, language: str) -> None:
    needs(canonical(language))
    right = CALLED[language]
    task = make_task(language=language)  # 2, 3 and hidden 4, 5
    found = scored(sandbox, task, right, right.replace("x * x", "x + x"), right.replace("x * x", "x +"))
    assert [one.value for one in found] == [1.0, 0.5, 0.0]


def test_output_is_compared_by_the_tasks_own_rule(sandbox: Sandbox) -> None:
    texts = [{"stdin": "", "expected": "1.5 2\n"}]
    program = "print(1.5000001,  '2')"
    assert scored(sandbox, text_task("python", io_tests=texts), program)[0].value == 0.0
    assert scored(sandbox, text_task("python", io_tests=texts, output_tolerance=1e-4), program)[0].value == 1.0
    exact = text_task("python", io_tests=texts, output_rule="exact")
    assert [one.value for one in scored(sandbox, exact, "print('1.5  2')", "print('1.5 2')")] == [0.0, 1.0]


@pytest.mark.parametrize(
    "program",
    [
        "import sys\na, b = map(int, sys.stdin.buffer.read().split())\nsys.stdout.buffer.write(b'%d' % (a + b))\n",
        "a, b = map(int, open(0).read().split())\nprint(a + b, flush=True)\n",
        "import os\na, b = map(int, os.read(0, 99).split())\nos.write(1, str(a + b).encode())\n",
        "import sys\ndef main():\n    print(sum(map(int, sys.stdin.readline().split())))\n    sys.exit(0)\n"
        "if __name__ == '__main__':\n    main()\n",
        "import sys, threading\nsys.setrecursionlimit(10**6)\ndef main():\n    print(sum(map(int, input().split())))\n"
        "threading.Thread(target=main).start()\n",
        "import atexit, io, sys\nbuffer = io.StringIO()\nsys.stdout = buffer\n"
        "atexit.register(lambda: sys.__stdout__.write(buffer.getvalue()))\nprint(sum(map(int, input().split())))\n",
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    a: int\n    b: int\n"
        "p = P(*map(int, input().split()))\nout = open(1, 'w')\nout.write(str(p.a + p.b))\n",
        "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))\n",
        "print(sum(map(int, input().split())))\nexit()\n",
        "print(sum(map(int, input().split())))\nquit(0)\nprint('no')\n",
        "import os, sys\nprint(sum(map(int, input().split())))\nsys.stdout.flush()\nos._exit(0)\nprint('no')\n",
        "import os, threading\ndef main():\n    print(sum(map(int, input().split())), flush=True)\n    os._exit(0)\n"
        "threading.Thread(target=main).start()\nthreading.Event().wait()\n",
        "import os\nprint(sum(map(int, input().split())), flush=True)\ntry:\n    os._exit(0)\nexcept BaseException:\n"
        "    print('no')\n",
    ],
)
def test_python_programs_read_and_write_as_programs_do(sandbox: Sandbox, program: str) -> None:
    assert scored(sandbox, text_task("python"), program)[0].value == 1.0


def test_leaving_at_once_loses_what_was_not_flushed_and_keeps_its_code(sandbox: Sandbox) -> None:
    told = "import os\nprint(sum(map(int, input().split())), flush=True)\nos._exit(%d)\n"
    found = judged(sandbox, text_task("python"), told % 0, told.replace(", flush=True", "") % 0, told % 3)
    assert [one.status for one in found] == ["passed", "failed", "exited"]
    wrong = told.replace("sum", "max") % 0  # right for none
    assert judged(sandbox, text_task("python"), wrong)[0].share_passed(visible=True) == 0.0


BY_NAME = {
    "python": "a, b = map(int, open('/dev/stdin').read().split())\nopen('/dev/stdout', 'w').write(str(a + b))\n",
    "c": '#include <stdio.h>\nint main(void) { int a, b; FILE *in = fopen("/dev/stdin", "r"), *out = '
         'fopen("/dev/stdout", "w"), *err = fopen("/dev/stderr", "w"); if (!in || !out || !err || fscanf(in, "%d %d", '
         '&a, &b) != 2) return 1; fprintf(out, "%d", a + b); return 0; }',
    "c++": "#include <fstream>\n#include <iostream>\nint main() { std::ifstream in(\"/dev/stdin\"); int a, b; "
           "in >> a >> b; std::cout << a + b; }",
    "java": "import java.io.*; import java.util.*; class Main { public static void main(String[] x) throws Exception { "
            "Scanner s = new Scanner(new FileInputStream(\"/dev/stdin\")); "
            "System.out.println(s.nextInt() + s.nextInt()); } }",
    "javascript": "const fs = require('fs');\nconst [a, b] = fs.readFileSync('/dev/stdin', 'utf8').split(' ')."
                  "map(Number);\nfs.writeFileSync('/dev/stdout', String(a + b));",
}  # fmt: skip


@pytest.mark.parametrize("namespaces", [True, False])
@pytest.mark.parametrize("language", BY_NAME)
def test_standard_streams_by_their_names(language: str, namespaces: bool) -> None:
    needs(canonical(language))
    with Sandbox(slots=1, limits=LIMITS, namespaces=namespaces) as box:
        assert [one.value for one in scored(box, text_task(language), BY_NAME[language])] == [1.0]
        judge_for(box).close()


def test_large_input_is_passed_and_counts_as_no_output(sandbox: Sandbox) -> None:
    many = " ".join(["7"] * 100_000)
    task = text_task("python", io_tests=[{"stdin": many, "expected": "700000"}])
    assert scored(sandbox, task, "print(sum(map(int, input().split())))")[0].value == 1.0


def test_the_line_that_raised_is_evidence_in_programs_on_text(sandbox: Sandbox) -> None:
    program = "a, b = map(int, input().split())\nif a == 40:\n    raise ValueError(a)\nprint(a + b)\n"
    (result,) = scored(sandbox, text_task("python"), program)
    assert result.value == pytest.approx(2 / 3)
    assert [program[span.start : span.end] for span in result.spans] == ["raise ValueError(a)"]


def test_assertions_of_every_kind_score_their_share_and_say_whom_they_trust(sandbox: Sandbox) -> None:
    plain = assert_task("assert f(2) == 4", "assert f(3) == 9", hidden=["assert f(4) == 16"])
    half = "def f(x):\n    return 4\n"
    found = scored(sandbox, plain, SQUARE, half, "def f(x):\n    return")
    assert [one.value for one in found] == [1.0, 0.5, 0.0]
    check = "def check(candidate):\n    for i in range(4):\n        assert candidate(i) == i * i\n"
    assert [one.value for one in scored(sandbox, assert_task(check), SQUARE, half)] == [1.0, 0.25]
    stub = assert_task("r = f(3)\nassert r == 9 or r == -9", "assert f(f(2)) == 16")
    found = scored(sandbox, stub, SQUARE, half, "def f(x):\n    return -x * x\n")
    assert [one.value for one in found] == [1.0, 0.0, 0.5]
    assert {one.details["trust"] for one in found} == {"values"}


OBJECTS = "class Box:\n    def __init__(self, x):\n        self.x = x\n\n\ndef f(x):\n    return Box(x * x)\n"


def test_what_must_run_in_the_programs_process_is_masked_unless_asked_for(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    task = assert_task("assert f(3).x == 9", "assert type(f(1)) is Box", reference=OBJECTS, task_id="boxes",
                       hidden=["assert f(4).x == 16"])  # fmt: skip
    programs = [OBJECTS, OBJECTS.replace("x * x", "x + x")]
    suite = RewardSuite([TestsReward()], sandbox)
    samples = [Sample(task, program, ((0, len(program)),)) for program in programs]
    result = suite.score(samples)
    assert result.scores.isnan().all()
    assert result.outcome.isnan().all()  # nor may the weighting learn from a claim
    assert suite.failures["tests"] == 0  # masked, no failure
    assert sum("task 'boxes' runs in" in record.getMessage() for record in caplog.records) == 2  # why: two reasons
    assert sum("'boxes'" in record.getMessage() and "masked" in record.getMessage() for record in caplog.records) == 1
    asked = RewardSuite([TestsReward(in_process=True)], sandbox).score(samples)
    found = [row["tests"] for row in asked.results]
    assert [(one.value, one.details["trust"]) for one in found] == [(1.0, "in_process"), (0.5, "in_process")]
    assert asked.outcome.isnan().all()
    cheat = assert_task("box = Box(1)\nassert f(box) == 5", task_id="cheat",
                        reference="class Box:\n    def __init__(self, x):\n        self.x = x\n\n\n"
                                  "def f(box):\n    return box.x + 4\n")  # fmt: skip
    yes = "class Box:\n    def __init__(self, x):\n        pass\n    __eq__ = lambda *_: True\n\n\n" \
          "def f(x):\n    return Box(x)\n"  # fmt: skip
    (result,) = judged(sandbox, cheat, yes)
    assert (result.status, result.trust) == ("passed", "in_process")
    assert scored(sandbox, cheat, yes)[0].value is None


def test_hidden_claims_mask_no_visible_test(sandbox: Sandbox) -> None:
    """Else the mask would tell a reward of the hidden tests."""
    reference = OBJECTS.replace("Box(x * x)", "Box(x) if x > 5 else x * x")
    task = assert_task("assert f(2) == 4", "assert f(3) == 9", hidden=["assert f(7).x == 7"], reference=reference)
    samples = [Sample(task, program, ((0, len(program)),)) for program in (reference, "def f(x):\n    return 4\n")]
    result = RewardSuite([TestsReward()], sandbox).score(samples)
    assert result.scores.flatten().tolist() == [1.0, 0.5]
    assert [row["tests"].details["trust"] for row in result.results] == ["values", "values"]
    assert result.outcome.isnan().all()
    (judgement,) = judged(sandbox, task, reference)
    assert (judgement.claimed(visible=True), judgement.claimed(visible=False), judgement.claimed()) == (
        False,
        True,
        True,
    )


def test_kinds_of_tests_mix_and_hidden_ones_decide_the_outcome_alone(sandbox: Sandbox) -> None:
    program = "def f(x):\n    return x * x\n\n\nif __name__ == '__main__':\n    print(f(int(input())))\n"
    task = make_task(metadata={
        "assert_tests": [{"test": "assert f(6) == 36"}, {"test": "assert f(7) == 0", "visible": False}],
        "io_tests": [{"stdin": "3", "expected": "9"}, {"stdin": "4", "expected": "no", "visible": False}],
    })  # fmt: skip
    (result,) = judged(sandbox, task, program)
    assert [(one.passed, one.visible) for one in result.per_test] == [
        (True, True), (True, True), (True, False), (True, False),  # calls
        (True, True), (False, False),  # assertions
        (True, True), (False, False),  # texts
    ]  # fmt: skip
    assert result.share_passed(visible=True) == 1.0
    assert result.share_passed(visible=False) == 0.5
    assert result.status == "failed"


# --- what rewards may see --------------------------------------------------------------------------------------------


def test_hidden_tests_never_reach_a_function_reward() -> None:
    seen: list[Any] = []

    def spy(completions: list[str], **columns: Any) -> list[float]:
        seen.append(columns)
        return [1.0 for _ in completions]

    secret = "s3cret"
    task = make_task(
        tests=(execution.CallTest((1,), 1), execution.CallTest((secret,), 1, visible=False)),
        metadata={
            "io_tests": [{"stdin": "open", "expected": "x"}, {"stdin": secret, "expected": "x", "visible": False}],
            "assert_tests": [{"test": "assert f(1)"}, {"test": f"assert f({secret!r})", "visible": False}],
            "note": "kept",
        },
    )
    FunctionReward(spy).score([Sample(task, SQUARE, ((0, len(SQUARE)),))])
    assert secret not in repr(seen)
    assert "open" in repr(seen[0]["io_tests"])
    assert seen[0]["note"] == ["kept"]


def test_hidden_tests_change_no_score(sandbox: Sandbox) -> None:
    """As for calls: the same visible tests with other hidden ones give the same scores and evidence."""
    suite = RewardSuite([TestsReward(), EfficiencyReward()], sandbox)
    suite.setup()
    first = assert_task("assert f(2) == 4", hidden=["assert f(4) == 16"])
    second = assert_task("assert f(2) == 4", hidden=["assert f(4) == 0", "assert f(5) == 1"])
    sample = [Sample(task, SQUARE, ((0, len(SQUARE)),)) for task in (first, second)]
    result = suite.score(sample)
    assert result.scores[0].tolist() == result.scores[1].tolist() == [1.0, 1.0]
    assert result.outcome[0] == 1.0
    assert result.outcome[1].isnan()  # the reference fails those tests: they would be judged by claims


# --- efficiency ------------------------------------------------------------------------------------------------------


def test_efficiency_counts_assertions_that_are_calls_and_says_where_it_cannot(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    slow = "def f(x):\n    n = 0\n    for _ in range(x):\n        for _ in range(x):\n            n += 1\n    return n"
    suite = RewardSuite([EfficiencyReward()], sandbox)
    suite.setup()
    calls = assert_task("assert f(20) == 400", "assert f(30) == 900")
    same = make_task(tests=(execution.CallTest((20,), 400), execution.CallTest((30,), 900)))
    stub = assert_task("assert f(f(2)) == 16")
    rows = [(calls, SQUARE), (calls, slow), (same, slow), (calls, "def f(x):\n    return 1\n"), (stub, SQUARE),
            (stub, "def f(x):\n    return 1\n"), (text_task("python"), SUMS["python"]),
            (text_task("c"), SUMS["c"])]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        result = suite.score([Sample(task, program, ((0, len(program)),)) for task, program in rows])
    values = result.scores.flatten()
    assert values[0].item() == 1.0
    assert 0.0 < values[1].item() < 0.05
    assert values[1].item() == values[2].item()  # counted over the same calls
    assert values[3].item() == 0.0
    assert values[4:].isnan().all()
    assert "no deterministic counter" in str(result.results[4]["efficiency"].details["reason"])
    assert suite.failures["efficiency"] == 0
    assert any("no deterministic counter" in record.getMessage() for record in caplog.records)


def test_conversion_is_done_once_and_is_the_same_on_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    task = assert_task("import random\nfor _ in range(3):\n    x = random.randrange(100)\n    assert f(x) == x * x")
    made: list[int] = []
    convert = execution.convert
    monkeypatch.setattr(execution, "convert", lambda *given: made.append(given[2]) or convert(*given))
    arguments = []
    for _ in range(2):  # two processes with a sandbox each
        with Sandbox(slots=1, limits=LIMITS) as box:
            for _ in range(2):
                (result,) = judged(box, task, SQUARE)
                assert result.passed
            arguments.append([test.args for test in judge_for(box).cost_tests(task)])
    assert len(made) == 2
    assert len(set(made)) == 1
    assert arguments[0] == arguments[1]
    assert len(arguments[0]) == 3
