"""The user's own tasks from JSON lines or Parquet, in the schema of :class:`CodeTask`."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from lightning_dterm.data.base import CodeDataModule
from lightning_dterm.data.rows import RowError, TableTasks, expand_files, load_file, text_field
from lightning_dterm.types import CallTest, CodeTask, SuccessMetric, TaskType

_REQUIRED = ("task_id", "task_type", "language", "prompt")
_OPTIONAL_TEXT = ("description", "reference", "source_language", "entry_point", "prefix", "buggy_code", "image")
_FIELDS = (*_REQUIRED, *_OPTIONAL_TEXT, "tests", "success_metric", "metadata")


def task_from_row(row: Mapping[str, Any], place: str) -> CodeTask:
    """Build a task from one row.

    Required fields: ``task_id``, ``task_type``, ``language``, ``prompt``. Optional: ``description`` (default: the
    prompt), ``reference`` (default: empty), ``source_language``, ``entry_point``, ``prefix``, ``buggy_code``,
    ``image``, ``success_metric`` (default: ``tests`` where there are tests, else ``exact_match``), ``metadata`` (an
    object) and ``tests``: a list of ``{"args": [...], "expected": ..., "visible": true}``. For values that JSON cannot
    write, such as tuples and sets, a test with ``"literal": true`` gives ``args`` and ``expected`` as Python literals
    in text. In Parquet, ``tests`` and ``metadata`` may also be JSON text.

    Args:
        row: The row's fields.
        place: File and line, for messages.

    Raises:
        RowError: naming the place, the field and the remedy.
    """
    unknown = [str(name) for name in row if name not in _FIELDS]
    if unknown:
        raise RowError(
            place, unknown[0], f"no field of a task; put it in 'metadata' or use one of {', '.join(_FIELDS)}"
        )
    values: dict[str, Any] = {name: text_field(row, name, place) for name in _REQUIRED}
    values |= {name: text_field(row, name, place) for name in _OPTIONAL_TEXT if row.get(name) is not None}
    if values["task_type"] not in get_args(TaskType):
        raise RowError(place, "task_type", f"{values['task_type']!r} is none of {', '.join(get_args(TaskType))}")
    values.setdefault("description", values["prompt"])
    values.setdefault("reference", "")
    tests = _container(row, "tests", list, place)
    values["tests"] = tuple(_test(test, number, place) for number, test in enumerate(tests, 1))
    values["metadata"] = _container(row, "metadata", dict, place)
    values["success_metric"] = _success_metric(row, values, place)
    return CodeTask(**values)


def _container(row: Mapping[str, Any], field: str, kind: type, place: str) -> Any:
    value = row.get(field)
    if value is None:
        return kind()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowError(place, field, f"text that is not JSON ({error})") from error
    if not isinstance(value, kind):
        wanted = "a list" if kind is list else "an object"
        raise RowError(place, field, f"{wanted} is needed, found {type(value).__name__}")
    return value


def _test(test: Any, number: int, place: str) -> CallTest:
    field = f"tests[{number - 1}]"
    if not isinstance(test, Mapping) or not {"args", "expected"} <= test.keys():
        raise RowError(place, field, 'write {"args": [...], "expected": ..., "visible": true}')
    unknown = test.keys() - {"args", "expected", "visible", "literal"}
    if unknown:
        raise RowError(
            place, f"{field}.{min(unknown)}", "no part of a test; known are args, expected, visible, literal"
        )
    args, expected, visible = test["args"], test["expected"], test.get("visible", True)
    if test.get("literal"):
        args, expected = _literal(args, f"{field}.args", place), _literal(expected, f"{field}.expected", place)
    if not isinstance(args, (list, tuple)):
        raise RowError(place, f"{field}.args", f"a list of arguments is needed, found {type(args).__name__}")
    if not isinstance(visible, bool):
        raise RowError(place, f"{field}.visible", f"true or false is needed, found {visible!r}")
    return CallTest(tuple(args), expected, visible)


def _literal(value: Any, field: str, place: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise RowError(place, field, f"not a Python literal in text ({error})") from error


def _success_metric(row: Mapping[str, Any], values: Mapping[str, Any], place: str) -> SuccessMetric:
    metric = row.get("success_metric") or ("tests" if values["tests"] else "exact_match")
    if metric not in get_args(SuccessMetric):
        raise RowError(place, "success_metric", f"{metric!r} is none of {', '.join(get_args(SuccessMetric))}")
    if values["tests"] and not values.get("entry_point"):
        raise RowError(place, "entry_point", "missing; name the function that the tests call")
    if metric == "tests" and not values["tests"]:
        raise RowError(place, "tests", "missing, but success_metric is 'tests'; add tests or choose 'exact_match'")
    if metric == "exact_match" and not values["reference"] and not values["metadata"].get("accepted"):
        raise RowError(place, "reference", "missing, but success is exact match; add a reference or tests")
    return "tests" if metric == "tests" else "exact_match"


class JsonlDataModule(CodeDataModule):
    """Tasks from the user's JSONL, JSONL.gz or Parquet files, one task a row (fields: :func:`task_from_row`).

    Files are opened through ``datasets`` as memory-mapped Arrow tables; rows become tasks when they are used.

    Args:
        train_files: File, list of files, or pattern with ``*`` in the file name.
        validation_files: The same for validation; without it, ``fit`` runs without validation.
        test_files: The same for test and prediction.
        check_rows: Build every row once at set-up, so that a malformed one stops the run before it starts.
        cache_dir: Where ``datasets`` keeps its Arrow files; None is its default.
        **kwargs: See :class:`CodeDataModule`.

    Raises:
        FileNotFoundError: at set-up, naming the missing file.
        RowError: for a malformed row, naming file, line, field and remedy.
    """

    def __init__(
        self,
        train_files: str | list[str] | None = None,
        validation_files: str | list[str] | None = None,
        test_files: str | list[str] | None = None,
        check_rows: bool = True,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.files = {"train": train_files, "validation": validation_files, "test": test_files}
        self.check_rows, self.cache_dir = check_rows, cache_dir

    def _read(self, split: str) -> Sequence[CodeTask]:
        files = self.files[split]
        if not files:
            raise ValueError(f"JsonlDataModule: {split}_files is not set; name the {split} file(s) in the data config")
        paths = expand_files(files, f"JsonlDataModule {split}_files")
        tasks = TableTasks([load_file(path, self.cache_dir) for path in paths], task_from_row)
        if self.check_rows:
            tasks.check()
        return tasks

    def train_tasks(self) -> Sequence[CodeTask]:
        """Rows of ``train_files``."""
        return self._read("train")

    def validation_tasks(self) -> Sequence[CodeTask]:
        """Rows of ``validation_files``; without any, training runs without validation."""
        if not self.files["validation"] and self.stage == "fit":
            return []
        return self._read("validation")

    def test_tasks(self) -> Sequence[CodeTask]:
        """Rows of ``test_files``."""
        return self._read("test")
