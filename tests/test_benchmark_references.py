"""The proof that references pass and planted faults fail: its parts on small fixtures, and a sample of the real data.

The sample needs the benchmark files and is skipped without them: LIGHTNING_DTERM_SHARED names the folder above data/.
"""

from __future__ import annotations

import ast
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.references import Plain, Task, entry_point, judge_all, load_tasks, mutants, plant_faults, report
from benchmarks.sandbox import CHEATS, tree_cpu

ADD = "def add(a, b):\n    if a > 0:\n        return a + b\n    return b + a\n"
NODE = "class Node:\n    def __init__(self, v):\n        self.v = v\n\ndef value(n):\n    return n.v * 2\n"
TASKS = [
    Task("a/1", "a", ADD, "add", "assert add(1, 2) == 3\nassert add(-1, 2) == 1\n"),
    Task("a/2", "a", ADD, "add", "assert add(add(1, 2), 3) == 6\n"),
    Task("b/1", "b", NODE, "value", "assert value(Node(2)) == 4\n"),
]


@pytest.fixture(scope="module")
def plain() -> Iterator[Plain]:
    oracle = Plain()
    yield oracle
    oracle.close()


def test_mutants_are_single_faults_and_repeatable() -> None:
    found = list(mutants(ADD, 3))
    assert found == list(mutants(ADD, 3))
    assert sorted(found) == sorted(mutants(ADD, 4))
    original = ast.unparse(ast.parse(ADD)).splitlines()
    for mutant in found:
        changed = [pair for pair in zip(original, mutant.splitlines(), strict=True) if pair[0] != pair[1]]
        assert len(changed) == 1
    # By hand: > to >=, 0 to 1, the condition negated, + to - twice, two returned values wrapped.
    assert len(found) == len(set(found)) == 7


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        (ADD, "passed"),
        (ADD.replace("+", "-"), "failed"),
        ("def add(:\n", "failed"),
        ("import os\nos._exit(1)\n", "failed"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGALRM)\n", "undecided"),
        ("import sys\nprint('passed')\nsys.exit(0)\n", "failed"),
    ],
)
def test_the_oracle_runs_programs_as_they_stand(plain: Plain, program: str, verdict: str) -> None:
    assert plain.run(program, TASKS[0].test) == verdict


def test_figures_of_small_tasks() -> None:
    trials = plant_faults(TASKS, seed=0)
    assert {trial.task for trial in trials if not trial.plain} == {0, 1, 2}
    figures = report(TASKS, *judge_all(TASKS, trials, seed=0), trials)
    assert figures["datasets"]["a"]["kinds"] == {"literal": 1, "stub": 1}
    assert figures["datasets"]["b"]["in_process_share"] == 1.0
    assert [(entry["task"], "Node" in entry["reason"]) for entry in figures["in_process"]] == [("b/1", True)]
    for dataset in figures["datasets"].values():
        assert dataset["references_passed"] == dataset["planted_faults_failed"] == dataset["tasks"]
    assert not figures["disagreements_with_the_oracle"]
    assert not figures["references_not_passed"]


def test_a_verdict_that_differs_from_the_oracle_is_reported() -> None:
    trials = plant_faults(TASKS[:1], seed=0)
    suites, references = judge_all(TASKS[:1], trials, seed=0)
    trials[-1].ours = "passed"
    figures = report(TASKS[:1], suites, references, trials)
    assert figures["datasets"]["a"]["planted_faults_failed"] == 0
    assert [entry["program"] for entry in figures["disagreements_with_the_oracle"]] == [trials[-1].program]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_tasks_are_read_from_the_published_forms(tmp_path: Path) -> None:
    prompt = "def helper(x):\n    return x\n\ndef add(a, b):\n    'adds'\n"
    test = "def check(candidate):\n    assert candidate(1, 2) == helper(3)\n"
    row = {"task_id": "HumanEval/0", "prompt": prompt, "canonical_solution": "    return a + b\n", "entry_point": "add"}
    write(tmp_path / "humaneval" / "HumanEval.jsonl.gz", [{**row, "test": test}])
    full = {"task_id": 1, "code": ADD, "test_setup_code": "x = 1", "test_list": ["assert abs(add(x, 1)) == 2"]}
    clean = {"task_id": 1, "code": ADD, "test_imports": ["import math"], "test_list": ["assert add(1, 1) == 2"]}
    for split in ("fewshot", "test", "train", "validation"):
        write(tmp_path / "mbpp" / f"mbpp_{split}.jsonl.gz", [full] if split == "train" else [])
        write(tmp_path / "mbpp" / f"mbpp_sanitized_{split}.jsonl.gz", [clean] if split == "test" else [])
    tasks = load_tasks(tmp_path)
    assert [(task.name, task.entry_point) for task in tasks] == [
        ("HumanEval/0", "add"), ("MBPP/1", "add"), ("MBPP-sanitized/1", "add"),
    ]  # fmt: skip
    oracle = Plain()
    assert [oracle.run(task.program, task.test) for task in tasks] == ["passed"] * 3
    oracle.close()
    assert tasks[1].test.startswith("x = 1\n")
    assert tasks[2].test.startswith("import math\n")


def test_a_test_without_the_programs_function_is_named() -> None:
    with pytest.raises(ValueError, match="no function of the program"):
        entry_point(ADD, "assert sub(1, 2) == 3")


def test_cheats_are_programs_and_cpu_is_counted() -> None:
    for cheat in CHEATS.values():
        assert "def ENTRY(" in cheat
        compile(cheat, "<cheat>", "exec")
    before = tree_cpu(os.getpid())
    sum(i * i for i in range(600_000))
    assert tree_cpu(os.getpid()) > before


def test_sample_of_the_benchmarks() -> None:
    folder = Path(os.environ.get("LIGHTNING_DTERM_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not (folder / "humaneval" / "HumanEval.jsonl.gz").is_file():
        pytest.skip(f"the benchmarks' files are not at {folder} (LIGHTNING_DTERM_SHARED names the folder above)")
    every = load_tasks(folder)
    special = {"HumanEval/32", "HumanEval/33", "HumanEval/38", "HumanEval/151", "MBPP/367", "MBPP/533", "MBPP/590"}
    tasks = [task for i, task in enumerate(every) if i % 40 == 0 or task.name in special]
    trials = plant_faults(tasks, seed=1)
    figures = report(tasks, *judge_all(tasks, trials, seed=1), trials)
    assert not figures["references_not_passed"]
    assert not figures["disagreements_with_the_oracle"]
    assert [entry["task"] for entry in figures["in_process"]] == ["MBPP/367"]
