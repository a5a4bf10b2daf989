"""Rows whose tests are texts or assertions: read right, or refused with file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from lightning_dterm.data import JsonlDataModule, RowError
from lightning_dterm.data.jsonl import task_from_row
from lightning_dterm.sandbox.languages import IOTest
from lightning_dterm.task_tests import AssertTest, declared_tests, has_calls, has_tests
from lightning_dterm.types import CallTest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def row(**changes: Any) -> dict[str, Any]:
    return {"task_id": "a", "task_type": "synthesis", "language": "python", "prompt": "p", **changes}


TEXT = {"stdin": "1 2", "expected": "3"}


def test_the_three_forms_of_a_test() -> None:
    task = task_from_row(
        row(
            entry_point="f",
            tests=[
                {"args": [1], "expected": None},
                {**TEXT, "visible": False},
                {"assert": "assert f(1) == 2"},
                TEXT,
                {"assert": "def check(candidate):\n    assert candidate(2) == 3", "visible": False},
            ],
            metadata={"test_context": "import math", "output_tolerance": 0, "note": 1},
        ),
        "x",
    )
    assert task.tests == (CallTest((1,), None),)
    assert task.success_metric == "tests"
    assert task.metadata["note"] == 1
    found = declared_tests(task)
    assert found.calls == task.tests
    assert found.texts == (IOTest("1 2", "3", visible=False), IOTest("1 2", "3"))
    assert [one.visible for one in found.asserts] == [True, False]
    assert found.asserts[0] == AssertTest("assert f(1) == 2")
    assert (found.context, found.rule, found.tolerance) == ("import math", "tokens", 0.0)
    assert has_calls(task)


def test_programs_on_text_need_no_entry_point_in_any_language() -> None:
    for language in ("c", "C++", "java", "javascript", "python", "cobol"):
        task = task_from_row(row(language=language, tests=[{**TEXT, "visible": False}]), "x")
        assert task.success_metric == "tests"
        assert (has_tests(task), has_tests(task, visible=True), has_tests(task, visible=False)) == (True, False, True)
        assert not has_calls(task)


def test_tests_may_be_given_in_the_metadata_and_in_parquet(tmp_path: Path) -> None:
    direct = task_from_row(row(metadata={"io_tests": [TEXT]}), "x")
    assert direct.success_metric == "tests"
    assert declared_tests(direct).texts == (IOTest("1 2", "3"),)
    mixed = [{**TEXT, "visible": True}, {"assert": "assert f(1)", "visible": False}]  # Arrow fills up with nulls
    datasets.Dataset.from_list([row(tests=mixed, entry_point="f")]).to_parquet(tmp_path / "a.parquet")
    data = JsonlDataModule(test_files=str(tmp_path / "a.parquet"))
    data.setup("test")
    (task,) = data.tasks("test")
    assert declared_tests(task).texts == (IOTest("1 2", "3"),)
    assert declared_tests(task).asserts == (AssertTest("assert f(1)", visible=False),)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"tests": [TEXT, {"stdin": "1"}]}, "tests[1]", '{"stdin": "...", "expected": "..."}'),
        ({"tests": [{**TEXT, "args": [1]}]}, "tests[0]", "write"),
        ({"tests": [{"stdin": 1, "expected": "3"}]}, "tests[0].stdin", "text is needed, found int"),
        ({"tests": [{"stdin": "1", "expected": 3}]}, "tests[0].expected", "text is needed, found int"),
        ({"tests": [{**TEXT, "visible": "no"}]}, "tests[0].visible", "true or false"),
        ({"tests": [{**TEXT, "literal": True}]}, "tests[0].literal", "known are stdin, expected, visible"),
        ({"tests": [{"assert": 3}], "entry_point": "f"}, "tests[0].assert", "text is needed, found int"),
        ({"tests": [{"assert": "assert f(1)"}]}, "entry_point", "name the function"),
        ({"tests": [{"assert": "assert f("}], "entry_point": "f"}, "tests", "does not parse, line 1"),
        ({"tests": [{"assert": "assert f(1)"}], "entry_point": "f", "language": "java"},
         "metadata.assert_tests", "assertions are Python"),
        ({"metadata": {"io_tests": TEXT}}, "metadata.io_tests", "a list is needed, found dict"),
        ({"metadata": {"io_tests": [{"stdin": "1"}]}}, "metadata.io_tests[0]", '"expected": "..."'),
        ({"metadata": {"io_tests": [{**TEXT, "name": 1}]}}, "metadata.io_tests[0].name", "no part of such a test"),
        ({"metadata": {"io_tests": [TEXT]}, "tests": [TEXT]}, "metadata.io_tests", "keep one of the two"),
        ({"tests": [TEXT], "metadata": {"output_rule": "fuzzy"}}, "metadata.output_rule", "none of tokens"),
        ({"tests": [TEXT], "metadata": {"output_rule": "exact", "output_tolerance": 0.1}},
         "metadata.output_tolerance", "with output_rule 'tokens'"),
        ({"tests": [TEXT], "metadata": {"output_tolerance": True}}, "metadata.output_tolerance", "found True"),
        ({"tests": [TEXT], "metadata": {"test_context": 1}}, "metadata.test_context", "Python source is needed"),
    ],
)  # fmt: skip
def test_malformed_tests_are_named(tmp_path: Path, changes: dict[str, Any], field: str, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(row(tests=[TEXT])) + "\n" + json.dumps(row(**changes)) + "\n")
    with pytest.raises(RowError) as caught:
        JsonlDataModule(test_files=str(path)).setup("test")
    assert f"bad.jsonl, line 2, field {field!r}: " in str(caught.value)
    assert words in str(caught.value)
