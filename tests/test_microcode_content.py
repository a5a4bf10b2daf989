"""MicroCode's content: faults, JavaScript, optimization pairs, summaries, wording, style."""

from __future__ import annotations

import ast
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lightning_dterm.data.microcode import SPLITS, MicroCode
from lightning_dterm.data.microcode.execution import EndlessLoopError, load, run_calls
from lightning_dterm.data.microcode.faults import FAULT_KINDS
from lightning_dterm.types import CodeTask


def tasks_of(task_type: str, size: int, seed: int = 21) -> list[CodeTask]:
    return [task for split in SPLITS for task in MicroCode(split, size, seed=seed, task_types=[task_type])]


def compiles(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def test_faulty_programs_fail_a_visible_and_a_hidden_test() -> None:
    kinds: Counter[str] = Counter()
    for task in tasks_of("repair", 250):
        kind, faulty = task.metadata["fault"], task.buggy_code
        kinds[kind] += 1
        assert faulty is not None
        assert faulty in task.prompt
        assert faulty != task.reference
        assert compiles(faulty) == (kind != "syntax_slip")
        if kind == "syntax_slip":
            assert len(faulty) == len(task.reference) - 1
            continue
        values = run_calls(load(faulty, task.entry_point or ""), [test.args for test in task.tests])
        for visible in (True, False):
            half = [(value, test) for value, test in zip(values, task.tests, strict=True) if test.visible == visible]
            assert any(value != test.expected or type(value) is not type(test.expected) for value, test in half)
    assert set(kinds) == set(FAULT_KINDS)
    assert min(kinds.values()) > 20


def test_a_fault_changes_one_place() -> None:
    for task in tasks_of("repair", 150, seed=8):
        kind, faulty = task.metadata["fault"], task.buggy_code or ""
        before, after = task.reference.split("\n"), faulty.split("\n")
        if kind == "missing_return":
            assert len(before) - len(after) in (0, 1)
            continue
        assert len(before) == len(after)
        changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        assert len(changed) == 1 or (kind == "wrong_branch" and len(changed) == 2)


def test_execution_bounds_loops_and_marks_failures() -> None:
    assert run_calls(load("def f(n):\n    while n > 0:\n        n -= 1\n    return n\n", "f"), [(5,), ("x",)])[0] == 0
    values = run_calls(load("def f(n):\n    return 1 // n\n", "f"), [(1,), (0,)])
    assert values[0] == 1
    assert values[1] != values[1]
    with pytest.raises(EndlessLoopError):
        run_calls(load("def f(n):\n    while n == n:\n        n += 1\n", "f"), [(1,)])
    arguments = [1, 2]
    run_calls(load("def f(xs):\n    xs.append(3)\n", "f"), [(arguments,)])
    assert arguments == [1, 2]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not on PATH: JavaScript equivalence is not checked")
def test_javascript_computes_the_same_values() -> None:
    tasks = tasks_of("translation", 250)
    lines = ["const out = [];"]
    for task in tasks:
        calls = ", ".join(f"{task.entry_point}(...{json.dumps(test.args)})" for test in task.tests)
        lines.append(f"(() => {{\n'use strict';\n{task.metadata['source_code']}\nout.push([{calls}]);\n}})();")
    lines.append("console.log(JSON.stringify(out));")
    done = subprocess.run(["node", "-"], input="\n".join(lines), capture_output=True, text=True, check=True)
    for task, values in zip(tasks, json.loads(done.stdout), strict=True):
        assert values == json.loads(json.dumps([test.expected for test in task.tests])), task.prompt


def count_lines(source: str, entry_point: str, arguments: list[Any]) -> tuple[int, object]:
    """Executed line events of one call, and its value."""
    function, count = load(source, entry_point), 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        value = function(*arguments)
    finally:
        sys.settrace(previous)
    return count, value


def test_optimization_pairs_are_equivalent_and_the_fast_one_is_faster() -> None:
    draw = random.Random(3)
    tasks = tasks_of("optimization", 100)
    for task in tasks:
        slow = task.metadata["slow_program"]
        assert slow in task.prompt
        inputs = [test.args for test in task.tests]
        assert run_calls(load(slow, task.entry_point or ""), inputs) == [test.expected for test in task.tests]
        large = [[draw.randint(-5, 12) for _ in range(40)] if isinstance(item, list) else 40 for item in inputs[0]]
        slow_lines, slow_value = count_lines(slow, task.entry_point or "", [*large])
        fast_lines, fast_value = count_lines(task.reference, task.entry_point or "", [*large])
        assert slow_value == fast_value
        assert fast_lines < slow_lines, slow
    assert len({task.metadata["structure"] for task in tasks}) > 60


def test_summaries_accept_their_wordings() -> None:
    sizes = []
    for task in tasks_of("summarization", 200):
        accepted = task.metadata["accepted"]
        assert accepted[0] == task.reference
        assert len(set(accepted)) == len(accepted) <= 64
        assert all(text.startswith("Return ") and text.endswith(".") and "  " not in text for text in accepted)
        assert all("{" not in text and "\n" not in text for text in accepted)
        sizes.append(len(accepted))
    assert sorted(sizes)[len(sizes) // 2] >= 8


def test_one_program_has_one_summary_and_different_summaries_mean_different_behaviour() -> None:
    """Where two tasks of one signature share a summary, they must agree on each other's inputs."""
    by_text: dict[tuple[str, str], list[CodeTask]] = {}
    for task in tasks_of("summarization", 700, seed=2):
        by_text.setdefault((task.reference, task.entry_point or ""), []).append(task)
    pairs = [(group[0], other) for group in by_text.values() for other in group[1:]]
    assert len(pairs) > 20
    for one, other in pairs:
        inputs = [test.args for test in other.tests]
        assert run_calls(load(one.metadata["program"], one.entry_point or ""), inputs) == [
            test.expected for test in other.tests
        ], (one.metadata["program"], other.metadata["program"], one.reference)


def test_wording_varies() -> None:
    tasks = tasks_of("synthesis", 400)
    assert {task.prompt.split(" ")[0] for task in tasks} == {"Write", "Implement", "Define"}
    joined = " ".join(task.prompt for task in tasks)
    for wordings in (("the sum of", "the total of"), ("greater than", "above", "larger than"), ("odd", "not even")):
        assert all(wording in joined for wording in wordings)
    assert len({task.description for task in tasks}) > 0.9 * len(tasks)
    assert len({task.description.split(" return")[0] for task in tasks}) >= 3
    assert all("{" not in task.prompt and "  that" not in task.prompt for task in tasks)


def test_families_and_metadata() -> None:
    tasks = tasks_of("synthesis", 400, seed=6)
    assert len({task.metadata["family"] for task in tasks}) >= 10
    for task in tasks:
        program = task.metadata["program"]
        assert task.metadata["lines"] == len(program.splitlines())
        assert task.metadata["nodes"] > 5
        assert (task.metadata["benchmark"], task.metadata["split"], task.metadata["seed"]) == (
            "microcode",
            task.task_id.split("/")[1],
            6,
        )
    together = "\n".join(task.metadata["program"] for task in tasks)
    for construct in ("for ", "while ", " if ", "else", "break", "[", "{", ".get(", ".append(", "def is_prime", '"'):
        assert construct in together


def test_references_are_clean_and_formatted(tmp_path: Path) -> None:
    rows = [task for task_type in ("synthesis", "optimization") for task in tasks_of(task_type, 120)]
    for number, task in enumerate(rows):
        (tmp_path / f"program_{number}.py").write_text(task.metadata["program"])
    ruff = [sys.executable, "-m", "ruff"]
    check = subprocess.run(
        [*ruff, "check", "--isolated", "--no-cache", "--select", "E,F,W,B", "."],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert check.returncode == 0, check.stdout[-2000:]
    form = subprocess.run(
        [*ruff, "format", "--isolated", "--no-cache", "--check", "."], cwd=tmp_path, capture_output=True, text=True
    )
    assert form.returncode == 0, form.stdout[-2000:]


def test_speed_floor() -> None:
    """A generous floor for loaded machines; ``benchmarks/microcode.py`` measures the rate itself."""
    import time

    rows = MicroCode("train", 1500, seed=77)
    start = time.process_time()
    for _ in rows:
        pass
    assert 1500 / (time.process_time() - start) > 600
