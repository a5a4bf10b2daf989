"""MicroCode: determinism, disjoint splits, valid references, tests that mean something, formats, bad arguments."""

from __future__ import annotations

import ast
import copy
import hashlib
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.data.microcode import (
    ALL_TASK_TYPES,
    SPLITS,
    TASK_TYPES,
    MicroCode,
    grammar,
    split_of,
    structure_key,
)
from lightning_dterm.data.microcode.render_python import render_python
from lightning_dterm.data.microcode.spec import Draw
from lightning_dterm.data.microcode.structure import structure
from lightning_dterm.types import CodeTask

ROOT = Path(__file__).resolve().parent.parent
MARKERS = dict.fromkeys(ALL_TASK_TYPES, "### Python\n") | {"summarization": "### Summary\n"}


@pytest.fixture(scope="module")
def tasks() -> dict[str, list[CodeTask]]:
    """A sample of every split, all six types."""
    return {split: list(MicroCode(split, 600, seed=11, task_types=ALL_TASK_TYPES)) for split in SPLITS}


def all_of(tasks: dict[str, list[CodeTask]], *types: str) -> list[CodeTask]:
    return [task for rows in tasks.values() for task in rows if not types or task.task_type in types]


def program_of(task: CodeTask) -> str:
    """The whole reference program, put together from the task's own fields where it is code."""
    if task.task_type == "summarization":
        return str(task.metadata["program"])
    return task.prefix + task.reference


def run(program: str, task: CodeTask) -> list[object]:
    namespace: dict[str, object] = {}
    exec(compile(program, task.task_id, "exec"), namespace)
    function = namespace[task.entry_point or ""]
    return [function(*copy.deepcopy(test.args)) for test in task.tests]  # type: ignore[operator]


class Anonymous(ast.NodeTransformer):
    """An independent normaliser: rewrites the tree in place and leaves the text to ``ast.dump``."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.copy_location(ast.Name("x", node.ctx), node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg("x")

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(type(node.value).__name__)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        node.attr = "x"
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        self.generic_visit(node)
        node.arg = "x"
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.name = "x"
        return node


def independent_structure(program: str) -> str:
    return ast.dump(Anonymous().visit(ast.parse(program)))


def coarse_structure(program: str) -> str:
    """Names, builtins, attributes and constants of every type all alike: node kinds in order, nothing else."""
    kinds = [type(node).__name__ for node in ast.walk(ast.parse(program)) if not isinstance(node, ast.expr_context)]
    return " ".join(kinds)


def test_splits_are_disjoint_by_structure() -> None:
    seen: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for seed, size in ((0, 1500), (99, 500)):
            for task in MicroCode(split, size, seed=seed):
                seen[split].add(independent_structure(program_of(task)))
        for task in MicroCode(split, 150, seed=5, task_types=["optimization"]):
            seen[split].add(independent_structure(task.reference))
            seen[split].add(independent_structure(task.metadata["slow_program"]))
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    assert len(seen["train"]) > 800
    assert len(seen["test"]) > 300


def test_structure_key_sees_structure_and_nothing_else() -> None:
    base = "def total(xs):\n    return sum(x * 2 for x in xs if x > 3)\n"
    renamed = "def f(data):\n    return max(v * 7 for v in data if v > 0)\n"
    assert structure_key(base) == structure_key(renamed)
    for other in (base.replace("*", "+"), base.replace(">", "<"), base.replace(" if x > 3", ""), base + "\n\n" + base):
        assert structure_key(other) != structure_key(base)
    assert structure_key("f(a, k=b)") != structure_key("f(a, b)")
    assert structure_key("x = 1") == structure_key("y = 'text'")
    with pytest.raises(SyntaxError):
        structure_key("def f(:")


@pytest.mark.parametrize("family", [*grammar.FAMILIES.values(), grammar._OPTIMIZATION], ids=lambda f: f.draw.__name__)
def test_facts_of_a_shape_are_those_of_its_parsed_programs(family: grammar.Family) -> None:
    draw = Draw(17)
    for _ in range(150):
        shape = family.draw(draw)
        program, facts = family.build(shape, draw), grammar.facts(shape)
        assert (facts.key, facts.nodes) == structure(render_python(program.functions)), shape
        assert facts.slow_key == (structure_key(render_python(program.slow)) if program.slow else ""), shape
        splits = {split_of(key) for key in (facts.key, facts.slow_key) if key}
        assert facts.split == (splits.pop() if len(splits) == 1 else ""), shape


def test_structure_key_refines_no_less_than_the_independent_normaliser(tasks: dict[str, list[CodeTask]]) -> None:
    key_of: dict[str, str] = {}
    coarse_of: dict[str, set[str]] = {}
    for task in all_of(tasks):
        program = program_of(task)
        key = structure_key(program)
        assert key == task.metadata["structure"]
        assert key_of.setdefault(independent_structure(program), key) == key
        coarse_of.setdefault(key, set()).add(coarse_structure(program))
    assert all(len(kinds) == 1 for kinds in coarse_of.values())


def test_splits_follow_from_the_key(tasks: dict[str, list[CodeTask]]) -> None:
    for split, rows in tasks.items():
        for task in rows:
            assert split_of(structure_key(program_of(task))) == split
            if task.task_type == "optimization":
                assert split_of(structure_key(task.metadata["slow_program"])) == split
    shares = Counter(split_of(f"{number:016x}") for number in range(5000))
    assert 3800 < shares["train"] < 4200
    assert 400 < shares["test"] < 600


def test_every_reference_passes_all_its_tests(tasks: dict[str, list[CodeTask]]) -> None:
    for task in all_of(tasks):
        assert run(program_of(task), task) == [test.expected for test in task.tests], task.task_id


def test_tests_are_many_distinct_and_beyond_a_constant_function(tasks: dict[str, list[CodeTask]]) -> None:
    for task in all_of(tasks):
        visible = [test for test in task.tests if test.visible]
        hidden = [test for test in task.tests if not test.visible]
        assert len(visible) >= 3
        assert len(hidden) >= 3
        assert len({repr(test.args) for test in task.tests}) == len(task.tests)
        for half in (visible, hidden):
            assert any(test.expected != half[0].expected for test in half)


def plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    if isinstance(value, dict):
        return all(plain(key) and plain(item) for key, item in value.items())
    return value is None or (type(value) in (bool, int, float, str) and not (type(value) is int and abs(value) > 10**9))


def test_tests_and_metadata_are_plain_data_and_ints_small(tasks: dict[str, list[CodeTask]]) -> None:
    for task in all_of(tasks):
        assert all(plain(test.args) and plain(test.expected) for test in task.tests)
        assert plain(dict(task.metadata))


def test_digest_is_the_same_in_another_process_with_another_hash_seed() -> None:
    script = (
        "import hashlib, sys\n"
        "from lightning_dterm.data.microcode import ALL_TASK_TYPES, MicroCode\n"
        "rows = MicroCode('validation', 120, seed=4, task_types=ALL_TASK_TYPES)\n"
        "print(hashlib.sha256(repr([rows[i] for i in reversed(range(120))]).encode()).hexdigest())\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    rows = list(MicroCode("validation", 120, seed=4, task_types=ALL_TASK_TYPES))
    assert done.stdout.strip() == hashlib.sha256(repr(rows[::-1]).encode()).hexdigest()


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(SPLITS), st.integers(0, 10**6), st.integers(-(2**63), 2**63))
def test_rows_depend_on_seed_split_and_index_alone(split: str, index: int, seed: int) -> None:
    one = MicroCode(split, index + 1, seed=seed)
    other = pickle.loads(pickle.dumps(MicroCode(split, index + 1000, seed=seed)))
    other[(index * 7) % (index + 1000)]
    assert one[index] == other[index] == one[-1]
    assert one[index].task_id == f"microcode/{split}/{seed}/{index}/{TASK_TYPES[index % 5]}"


def test_types_are_balanced_ids_unique_and_seeds_differ(tasks: dict[str, list[CodeTask]]) -> None:
    assert {split: set(Counter(task.task_type for task in rows).values()) for split, rows in tasks.items()} == {
        split: {100} for split in SPLITS
    }
    ids = [task.task_id for task in all_of(tasks)]
    assert len(set(ids)) == len(ids)
    first, second = (list(MicroCode("train", 200, seed=seed)) for seed in (0, 1))
    assert sum(a.prompt == b.prompt for a, b in zip(first, second, strict=True)) < 5
    assert all(task.task_type != "optimization" for task in first)


def test_sequence_protocol() -> None:
    rows = MicroCode("test", 7, seed=2)
    assert len(rows) == 7
    assert rows[2:4] == [rows[2], rows[3]]
    assert list(rows)[-1] == rows[-1]
    with pytest.raises(IndexError, match="out of range"):
        rows[7]
    with pytest.raises(IndexError):
        rows[-8]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"split": "dev", "size": 3}, "validation"),
        ({"split": "train", "size": 0}, "at least 1"),
        ({"split": "train", "size": True}, "at least 1"),
        ({"split": "train", "size": 2.5}, "2.5"),
        ({"split": "train", "size": 3, "seed": "x"}, "seed"),
        ({"split": "train", "size": 3, "task_types": ["synthesis", "poetry"]}, "poetry"),
        ({"split": "train", "size": 3, "task_types": []}, "summarization"),
        ({"split": "train", "size": 3, "task_types": ["repair", "repair"]}, "distinct"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MicroCode(**arguments)  # type: ignore[arg-type]


def test_formats_and_lengths(tasks: dict[str, list[CodeTask]]) -> None:
    for task in all_of(tasks):
        assert len(task.prompt) <= 350
        assert len(task.reference) <= 200
        assert task.prompt.endswith(MARKERS[task.task_type] + task.prefix)
        assert task.prompt.count("### ") == 1
        assert task.language == ("text" if task.task_type == "summarization" else "python")
        assert task.success_metric == ("exact_match" if task.task_type == "summarization" else "tests")
        assert task.reference.endswith("\n") == (task.language == "python")
        # The answer must not stand in the question.
        assert task.reference not in task.prompt or task.task_type == "completion"
    for task in all_of(tasks, "synthesis", "completion", "repair"):
        assert f"{task.entry_point}(" in task.prompt.split("\n")[0]


def test_code_tasks_carry_their_sources(tasks: dict[str, list[CodeTask]]) -> None:
    for task in all_of(tasks, "translation"):
        assert task.source_language == "javascript"
        assert task.metadata["source_code"] in task.prompt
    for task in all_of(tasks, "summarization"):
        assert task.metadata["program"] in task.prompt
    for task in all_of(tasks, "completion"):
        assert 0 < len(task.prefix) < len(task.metadata["program"])
        assert task.prefix + task.reference == task.metadata["program"]
        assert task.prefix.count("def ") >= 1
