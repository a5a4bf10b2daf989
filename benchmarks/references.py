"""Every HumanEval and MBPP reference must pass our converted tests, and with one planted fault it must fail.

    python benchmarks/references.py --data FOLDER [--limit N] [--seed 0] [--out benchmarks/results/references.json]

``FOLDER`` holds ``humaneval/HumanEval.jsonl.gz`` and ``mbpp/mbpp_{fewshot,test,train,validation}.jsonl.gz``,
``mbpp/mbpp_sanitized_*``. The oracle is independent of the sandbox: program and original asserts, executed as they
stand in a child of a helper process. A fault that this oracle does not notice (an equivalent mutant, or one that the
tests miss) is no planted fault: another is tried, and our verdict must agree that it passes. One that runs into the
oracle's time limit is left out.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gzip
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import measured, write

MAX_MUTANTS = 12
PLAIN_CPU_S = 4
_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or,
    ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr, ast.LShift: ast.RShift,
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One benchmark task: ``program`` is the complete reference, ``test`` what runs after it in a plain run."""

    name: str
    dataset: str
    program: str
    entry_point: str
    test: str
    context: str = ""


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def humaneval(folder: Path) -> list[Task]:
    """HumanEval's tasks; the prompt with its helper functions is trusted context."""
    return [
        Task(
            row["task_id"], "HumanEval", row["prompt"] + row["canonical_solution"], row["entry_point"],
            f"{row['test']}\ncheck({row['entry_point']})\n", row["prompt"],
        )
        for row in _rows(folder / "humaneval" / "HumanEval.jsonl.gz")
    ]  # fmt: skip


def mbpp(folder: Path, sanitized: bool) -> list[Task]:
    """MBPP's tasks in the full or the sanitized edition: imports and set-up code belong to the test."""
    tasks = []
    prefix = "mbpp_sanitized_" if sanitized else "mbpp_"
    for split in ("fewshot", "test", "train", "validation"):
        for row in _rows(folder / "mbpp" / f"{prefix}{split}.jsonl.gz"):
            before = [*row.get("test_imports", ()), row.get("test_setup_code", "")]
            test = "\n".join([part for part in before if part] + row["test_list"]) + "\n"
            name = f"{'MBPP-sanitized' if sanitized else 'MBPP'}/{row['task_id']}"
            tasks.append(Task(name, name.split("/")[0], row["code"], entry_point(row["code"], test), test))
    return tasks


def entry_point(code: str, test: str) -> str:
    """The function of ``code`` that ``test`` calls first (MBPP does not name it)."""
    defined = {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}
    for statement in ast.parse(test).body:
        calls = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
        for function in calls:
            if isinstance(function, ast.Name) and function.id in defined:
                return function.id
    raise ValueError(f"no function of the program is called by its test: {test[:80]!r}")


def load_tasks(folder: Path) -> list[Task]:
    """All tasks of the three editions."""
    return [*humaneval(folder), *mbpp(folder, False), *mbpp(folder, True)]


def mutants(program: str, seed: int) -> Iterator[str]:
    """Programs with one planted fault each, in a random order: operators, constants, conditions, returned values."""
    tree = ast.parse(program)
    nodes = list(ast.walk(tree))
    places = [
        (place, kind)
        for place, node in enumerate(nodes)
        for kind in _faults(node)
        if any(
            node in ast.walk(function)
            for function in tree.body
            if isinstance(function, (ast.FunctionDef, ast.ClassDef))
        )
    ]
    random.Random(seed).shuffle(places)
    for place, kind in places:
        changed = copy.deepcopy(tree)
        _plant(list(ast.walk(changed))[place], kind)
        source = ast.unparse(ast.fix_missing_locations(changed)) + "\n"
        if source != ast.unparse(tree) + "\n":
            yield source


def _faults(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        return ["operator"] if type(node.op) in _OPERATORS else []
    if isinstance(node, ast.Compare):
        return ["comparison"] if type(node.ops[0]) in _OPERATORS else []
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        return ["constant"]
    if isinstance(node, (ast.If, ast.IfExp)):
        return ["condition"]
    return ["return"] if isinstance(node, ast.Return) and node.value is not None else []


def _plant(node: Any, kind: str) -> None:
    if kind == "operator":
        node.op = _OPERATORS[type(node.op)]()
    elif kind == "comparison":
        node.ops[0] = _OPERATORS[type(node.ops[0])]()
    elif kind == "constant":
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    elif kind == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    else:
        node.value = ast.List([node.value], ast.Load())


class Plain:
    """The oracle: a helper process that executes program and test, as they stand, in a child each."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--plain"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, program: str, test: str) -> str:
        """``passed``, ``failed``, or ``undecided`` where a time limit ended it (the machine may be busy)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([program, test]) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """End the helper."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve_plain() -> None:
    """The helper's loop, a line is ``[program, test]``. Its children run references and mutants, never a model's."""
    for line in sys.stdin:
        program, test = json.loads(line)
        child = os.fork()
        if child == 0:
            _plain_child(program, test)
        _, status = os.waitpid(child, 0)
        timed_out = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL)
        print("undecided" if timed_out else "passed" if status == 0 else "failed", flush=True)


def _plain_child(program: str, test: str) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    resource.setrlimit(resource.RLIMIT_CPU, (PLAIN_CPU_S, PLAIN_CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    signal.alarm(20 * PLAIN_CPU_S)
    sys.setrecursionlimit(1000)
    try:
        namespace: dict[str, Any] = {"__name__": "__plain__"}
        exec(compile(program, "<program>", "exec", dont_inherit=True), namespace)
        exec(compile(test, "<test>", "exec", dont_inherit=True), namespace)
    except BaseException:
        os._exit(1)
    os._exit(0)


@dataclass
class Trial:
    """One mutant of one task: what the oracle says, and what we say."""

    task: int
    program: str
    plain: bool
    ours: str = ""


def plant_faults(tasks: Sequence[Task], seed: int) -> list[Trial]:
    """For each task mutants up to the first that the oracle fails (at most :data:`MAX_MUTANTS`)."""
    plain = Plain()
    trials = []
    for index, task in enumerate(tasks):
        for number, program in enumerate(mutants(task.program, seed + index)):
            verdict = plain.run(program, task.test)
            trials += [Trial(index, program, verdict == "passed")] if verdict != "undecided" else []
            if verdict == "failed" or number + 1 == MAX_MUTANTS:
                break
        if index % 100 == 99:
            print(f"faults planted in {index + 1} of {len(tasks)} tasks", file=sys.stderr, flush=True)
    plain.close()
    return trials


def judge_all(tasks: Sequence[Task], trials: list[Trial], seed: int) -> tuple[list[Any], list[Any]]:
    """Convert all tests, judge all references (converted without knowing them) and all mutants."""
    from lightning_dterm.sandbox import Limits, Sandbox
    from lightning_dterm.sandbox.stub import TestSource, convert, run_suites

    with Sandbox(limits=Limits(cpu_s=PLAIN_CPU_S, wall_s=20 * PLAIN_CPU_S)) as sandbox:
        suites = convert([TestSource(task.test, task.entry_point, task.context) for task in tasks], sandbox, seed)
        print("tests converted", file=sys.stderr, flush=True)
        references = run_suites(sandbox, [(task.program, suite) for task, suite in zip(tasks, suites, strict=True)])
        print("references judged", file=sys.stderr, flush=True)
        found = run_suites(sandbox, [(trial.program, suites[trial.task]) for trial in trials])
        for trial, verdict in zip(trials, found, strict=True):
            trial.ours = verdict.result.status
    return suites, references


def report(
    tasks: Sequence[Task], suites: Sequence[Any], references: Sequence[Any], trials: list[Trial]
) -> dict[str, Any]:
    """Figures by data set, and the lists that a reader wants to see."""
    by_dataset: dict[str, Any] = {}
    for dataset in dict.fromkeys(task.dataset for task in tasks):
        mine = [i for i, task in enumerate(tasks) if task.dataset == dataset]
        faults = [trial for trial in trials if trial.task in set(mine) and not trial.plain]
        beside = sum(suites[i].kind == "in_process" for i in mine)
        by_dataset[dataset] = {
            "tasks": len(mine),
            "kinds": dict(Counter(suites[i].kind for i in mine)),
            "in_process_share": beside / len(mine),
            "references_passed": sum(references[i].result.passed for i in mine),
            "tasks_with_a_planted_fault": len({trial.task for trial in faults}),
            "planted_faults_failed": sum(trial.ours not in ("passed", "infra") for trial in faults),
            "status_of_faults": dict(Counter(trial.ours for trial in faults)),
        }
    listed = {
        kind: [{"task": tasks[i].name, "reason": s.reason} for i, s in enumerate(suites) if s.kind == kind]
        for kind in ("in_process", "stub")
    }
    planted = {trial.task for trial in trials if not trial.plain}
    return {
        "datasets": by_dataset,
        **listed,
        "references_not_passed": [
            {"task": task.name, "status": found.result.status, "exception": found.result.exception}
            for task, found in zip(tasks, references, strict=True)
            if not found.result.passed
        ],
        "tasks_without_a_planted_fault": [task.name for i, task in enumerate(tasks) if i not in planted],
        "mutants_run": len(trials),
        "mutants_that_the_oracle_passes": sum(trial.plain for trial in trials),
        "disagreements_with_the_oracle": [
            {**asdict(trial), "task": tasks[trial.task].name}
            for trial in trials
            if trial.plain != (trial.ours == "passed")
        ],
    }


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with humaneval/ and mbpp/")
    parser.add_argument("--limit", type=int, default=0, help="only every n-th task, so that about this many run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the planted faults and of the tests' own draws")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/references.json"))
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        serve_plain()
        return
    if options.data is None:
        parser.error("--data is needed")
    started = time.time()
    tasks = load_tasks(options.data)
    tasks = tasks[:: max(1, len(tasks) // options.limit)] if options.limit else tasks
    trials = plant_faults(tasks, options.seed)
    figures = report(tasks, *judge_all(tasks, trials, options.seed), trials)
    command = ["python benchmarks/references.py --data FOLDER", f"--limit {options.limit}" if options.limit else ""]
    figures = {
        **measured(),
        "command": " ".join([*command, f"--seed {options.seed}"]).replace("  ", " "),
        "seconds": round(time.time() - started),
        **figures,
    }
    write(options.out, figures)
    print(json.dumps(figures["datasets"], indent=1))


if __name__ == "__main__":
    main()
