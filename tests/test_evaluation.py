from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest
from rich.console import Console

from lightning_dterm.evaluation import Evaluator, format_table, write_completions_jsonl, write_json
from lightning_dterm.execution import TaskJudge
from lightning_dterm.metrics import FIGURES, SampleTable, bleu_statistics
from lightning_dterm.sandbox import Job, Limits, Result, Sandbox
from lightning_dterm.types import CallTest, CodeTask, Sample
from tests.languages_common import needs

SQUARES = tuple(CallTest((value,), value * value, visible=value < 2) for value in range(4))
SQUARE = "def square(x):\n    return x * x\n"


def task(**changes) -> CodeTask:
    fields = {
        "task_id": "t",
        "task_type": "synthesis",
        "language": "python",
        "prompt": "p",
        "description": "d",
        "reference": SQUARE,
        "tests": SQUARES,
        "entry_point": "square",
    }
    return CodeTask(**{**fields, **changes})


def clean(samples: Sequence[Sample]) -> list[tuple[int, int] | None]:
    return [(0, 1)] * len(samples)


class FakeSandbox:
    """Answers with prepared results and notes the jobs; no program runs."""

    def __init__(self, *results: Result) -> None:
        self.results, self.jobs, self.closed = list(results), [], False

    def run_many(self, jobs: Sequence[Job]) -> list[Result]:
        self.jobs.append(list(jobs))
        return [self.results.pop(0) for _ in jobs]

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def evaluator():
    with Sandbox(slots=1, limits=Limits(cpu_s=1.0)) as sandbox:
        yield Evaluator(sandbox)


def judge(evaluator: Evaluator, text: str, **changes):
    return evaluator.evaluate([task(**changes)], [text], [7], [False])[0]


def test_a_right_program_passes_and_a_hidden_failure_does_not(evaluator) -> None:
    right = judge(evaluator, SQUARE)
    assert (right.success, right.exact_match, right.compiles, right.violations) == (1.0, True, True, 0)
    assert (right.lines, right.length, right.infrastructure) == (2, 7, False)
    assert right.bleu == bleu_statistics(SQUARE, SQUARE)
    visible_only = judge(evaluator, "def square(x):\n    return x if x < 2 else 0\n")
    assert (visible_only.success, visible_only.exact_match, visible_only.compiles) == (0.0, False, True)


def test_a_program_that_does_not_compile_or_is_empty(evaluator) -> None:
    broken = judge(evaluator, "def square(x:\n    return x * x\n")
    assert (broken.success, broken.compiles) == (0.0, False)
    empty = judge(evaluator, " \n")
    assert (empty.success, empty.compiles, empty.violations, empty.exact_match) == (0.0, False, None, False)


def test_hostile_programs_fail_and_still_count_as_compiling(evaluator) -> None:
    endless = judge(evaluator, "def square(x):\n    while True:\n        pass\n")
    leaving = judge(evaluator, "import os\nos._exit(0)\n")
    assert [(record.success, record.compiles) for record in (endless, leaving)] == [(0.0, True), (0.0, True)]
    assert not any(record.infrastructure for record in (endless, leaving))


def test_prefix_and_fences_belong_to_the_program_as_they_should(evaluator) -> None:
    prefix = "def square(x):\n    return "
    done = judge(evaluator, "x * x\n", prefix=prefix, reference="x * x\n", task_type="completion")
    assert (done.success, done.exact_match) == (1.0, True)
    fenced = judge(evaluator, f"Sure:\n```python\n{SQUARE}```\nDone.")
    assert (fenced.success, fenced.exact_match) == (1.0, True)


def test_lint_counts_the_programs_violations_in_one_call(evaluator) -> None:
    untidy = judge(evaluator, "import os\n\n\ndef square(x):\n    unused = 1\n    return x * x\n")
    assert untidy.violations >= 2
    assert untidy.lines == 4
    assert judge(evaluator, "import os\ndef square(x:\n").violations is None
    calls: list[list[str]] = []

    def lint(samples: Sequence[Sample]) -> list[tuple[int, int] | None]:
        calls.append([sample.program for sample in samples])
        return [(len(sample.program), 3) for sample in samples]

    passed = Result("passed")
    counted = Evaluator(FakeSandbox(passed, passed), lint=lint)
    tasks = [task(), task(language="text", tests=()), task(), task()]
    records = counted.evaluate(tasks, ["a = 1", "prose", "bb = 1", ""], [1, 1, 1, 1])
    assert calls == [["a = 1", "bb = 1"]]
    assert [(record.violations, record.lines) for record in records] == [(5, 3), (None, 0), (6, 3), (None, 0)]


def test_other_languages_are_parsed(evaluator) -> None:
    method = "public int Size(){return n;}"
    translation = {
        "task_type": "translation", "language": "csharp", "reference": method, "tests": (), "entry_point": None,
        "success_metric": "exact_match",
    }  # fmt: skip
    right = judge(evaluator, "public int  Size(){return n;}\n", **translation)
    assert (right.success, right.exact_match, right.compiles, right.violations) == (1.0, True, True, None)
    broken = judge(evaluator, "public int Size({return n;}", **translation)
    assert (broken.success, broken.compiles) == (0.0, False)


def test_prose_is_matched_with_any_accepted_text_and_never_run() -> None:
    sandbox = FakeSandbox()
    evaluator = Evaluator(sandbox)
    summary = {"task_type": "summarization", "language": "text", "success_metric": "exact_match", "reference": "Get x."}
    record = judge(evaluator, " Give  x.\n", metadata={"accepted": ["Return it.", "Give x."]}, **summary)
    assert (record.success, record.exact_match, record.compiles, record.violations) == (1.0, True, None, None)
    assert judge(evaluator, "Give y.", metadata={"accepted": ["Give x."]}, **summary).success == 0.0
    assert sandbox.jobs == []


def test_infrastructure_failures_are_counted_and_never_a_wrong_program() -> None:
    sandbox = FakeSandbox(Result("infra"), Result("passed"), Result("failed"))
    evaluator = Evaluator(sandbox, lint=clean)
    records = evaluator.evaluate([task(task_id=str(index)) for index in range(3)], ["x = 1"] * 3, [1] * 3)
    assert [record.success for record in records] == [None, 1.0, 0.0]
    assert [record.compiles for record in records] == [None, True, True]
    table = SampleTable()
    table.update(records)
    overall = table.compute()["overall"]
    assert overall["success"]["value"] == 0.5
    assert overall["infrastructure_failures"] == 1
    evaluator.close()
    assert not sandbox.closed


def test_whether_a_killed_program_compiles_is_asked_again() -> None:
    """A bomb may go off in the compiler or in the program; the first verdict does not say."""
    sandbox = FakeSandbox(Result("memory"), Result("timeout"), Result("killed"), Result("passed"), Result("infra"))
    sandbox.results[3:3] = [Result("memory")]
    evaluator = Evaluator(sandbox, lint=clean)
    records = evaluator.evaluate([task()] * 3, ["x = 1", "y = 1", "z = 1"], [1] * 3)
    assert [record.compiles for record in records] == [False, True, None]
    assert [record.success for record in records] == [0.0, 0.0, 0.0]
    assert [[job.entry_point for job in jobs] for jobs in sandbox.jobs] == [["square"] * 3, [None] * 3]


def test_what_is_not_there_is_not_scored() -> None:
    evaluator = Evaluator(FakeSandbox(Result("passed")), lint=clean, parse_errors=lambda *_: None)
    record = judge(evaluator, "x = 1", tests=(), entry_point=None, reference="")
    assert (record.success, record.exact_match, record.compiles) == (None, None, True)
    assert set(record.bleu) == {0}
    foreign = judge(evaluator, "x", language="cobol")
    assert (foreign.success, foreign.compiles) == (None, None)
    assert evaluator.evaluate([], [], [], []) == []
    with pytest.raises(ValueError, match="got 1, 1 and 2 for 1 tasks"):
        evaluator.evaluate([task()], ["x"], [1], [True, False])


# --- output ----------------------------------------------------------------------------------------------------------


def results() -> dict:
    table = SampleTable(resamples=50)
    sandbox = FakeSandbox(*[Result("passed")] * 3, Result("infra"))
    evaluator = Evaluator(sandbox, lint=lambda samples: [(1, 2)] * len(samples))
    tasks = [task(task_id=str(index), task_type=kind) for index, kind in enumerate(["repair"] * 3 + ["synthesis"])]
    table.update(evaluator.evaluate(tasks, [SQUARE] * 4, [3, 4, 5, 6], [True, False, False, False]))
    return table.compute()


def test_table_shows_every_figure() -> None:
    output = io.StringIO()
    Console(width=100, file=output).print(format_table(results()))
    lines = output.getvalue().splitlines()
    repair = next(line for line in lines if "repair" in line)
    synthesis = next(line for line in lines if "synthesis" in line)
    # n, success, exact match, BLEU, compiles, one violation in two lines, mean length
    assert repair.split() == ["repair", "3", "100.0", "100.0", "100.0", "100.0", "50.0", "4.0"]
    assert synthesis.split() == ["synthesis", "1", "-", "100.0", "100.0", "-", "50.0", "6.0"]
    below = lines[lines.index(repair) + 1].split()
    assert below[:5] == ["100-100"] * 4 + ["50.0-50.0"]
    assert 3.0 <= float(below[5].split("-")[0]) < 4.0 < float(below[5].split("-")[1]) <= 5.0
    total = next(line for line in lines if line.split()[:1] == ["all"])
    assert total.split()[:4] == ["all", "4", "100.0", "100.0"]
    assert any("sandbox failures: 1" in line for line in lines)


def test_json_round_trip(tmp_path) -> None:
    write_json(tmp_path / "deep" / "results.json", results())
    read = json.loads((tmp_path / "deep" / "results.json").read_text())
    assert read == results()
    assert set(read["tasks"]["repair"]) == {"samples", "infrastructure_failures", "claimed", *FIGURES}
    assert read["tasks"]["synthesis"]["success"]["value"] is None
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "nan.json", {"x": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_completions_are_in_the_format_that_evalplus_reads(tmp_path) -> None:
    rows = [{"task_id": "a/0", "completion": "x\u2028\n"}, {"task_id": "a/1", "completion": "", "more": "dropped"}]
    write_completions_jsonl(tmp_path / "out.jsonl", rows)
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [rows[0], {"task_id": "a/1", "completion": ""}]
    with pytest.raises(KeyError, match="completion"):
        write_completions_jsonl(tmp_path / "bad.jsonl", [{"task_id": "a"}])


# --- other languages and other tests, by the judge of the rewards ----------------------------------------------------


@pytest.mark.parametrize(
    ("language", "right"),
    [
        ("c", '#include <stdio.h>\nint main(void) { int n; scanf("%d", &n); printf("%d", n * n); return 0; }'),
        ("javascript", "const n = Number(require('fs').readFileSync(0, 'utf8'));\nconsole.log(n * n);"),
        ("python", "n = int(input())\nprint(n * n)\n"),
    ],
)
def test_programs_on_text_succeed_by_all_their_tests(evaluator, language: str, right: str) -> None:
    needs(language)
    texts = [{"stdin": "1", "expected": "1"}, {"stdin": "3", "expected": "9", "visible": False}]
    changes = {"language": language, "tests": (), "entry_point": None, "metadata": {"io_tests": texts}}
    records = [judge(evaluator, text, **changes) for text in (right, right.replace("n * n", "n"), right + "(", "")]
    assert [(record.success, record.compiles) for record in records] == [(1, True), (0, True), (0, False), (0, False)]
    matched = judge(evaluator, right, **{**changes, "success_metric": "exact_match", "reference": right})
    assert matched.success == 1.0


def test_assertions_decide_success(evaluator) -> None:
    tests = [{"test": "assert square(2) == 4"}, {"test": "assert square(3) == 9", "visible": False}]
    changes = {"tests": (), "metadata": {"assert_tests": tests}}
    assert judge(evaluator, SQUARE, **changes).success == 1.0
    assert judge(evaluator, "def square(x):\n    return 4\n", **changes).success == 0.0


def test_claims_of_the_programs_own_process_succeed_and_are_counted(evaluator) -> None:
    reference = (
        "class Box:\n    def __init__(self, x):\n        self.x = x\n\n\ndef square(x):\n    return Box(x * x)\n"
    )
    changes = {"tests": (), "reference": reference, "metadata": {"assert_tests": [{"test": "assert square(3).x == 9"}]}}
    right = judge(evaluator, reference, **changes)
    wrong = judge(evaluator, reference.replace("x * x", "x"), **changes)
    plain = judge(evaluator, SQUARE)
    assert [(record.success, record.claimed) for record in (right, wrong, plain)] == [(1, True), (0, True), (1, False)]
    table = SampleTable()
    table.update([right, wrong, plain])
    computed = table.compute()
    assert computed["overall"]["claimed"] == 2
    assert computed["overall"]["success"]["value"] == pytest.approx(2 / 3)
    shown = io.StringIO()
    Console(file=shown, width=200).print(format_table(computed))
    assert "own harness: 2" in shown.getvalue()


def test_success_is_unknown_where_the_compiler_is_missing(evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskJudge, "runs", lambda self, language: language == "python")
    changes = {"language": "java", "tests": (), "metadata": {"io_tests": [{"stdin": "", "expected": ""}]}}
    record = judge(evaluator, "class Main { }", **changes)
    assert (record.success, record.compiles, record.infrastructure) == (None, True, False)
