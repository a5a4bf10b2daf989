"""The user's own tasks from JSON lines or Parquet, in the schema of :class:`CodeTask`."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from lightning_dterm.data.base import CodeDataModule
from lightning_dterm.data.rows import Convert, RowError, TableTasks, expand_files, load_file, text_field
from lightning_dterm.sandbox.asserts import TestSyntaxError, read_test
from lightning_dterm.task_tests import TEST_LISTS, TaskTestError, declared_tests
from lightning_dterm.types import CallTest, CodeTask, SuccessMetric, TaskType

_REQUIRED = ("task_id", "task_type", "language", "prompt")
_OPTIONAL_TEXT = ("description", "reference", "source_language", "entry_point", "prefix", "buggy_code")
_FORMS = {
    "args": ("args", "expected", "visible", "literal"),
    "stdin": ("stdin", "expected", "visible"),
    "assert": ("assert", "visible"),
}
_HOW = (
    'write {"args": [...], "expected": ...}, {"stdin": "...", "expected": "..."} or {"assert": "..."}, each with '
    '"visible": false if it is hidden'
)
_FIELDS = (*_REQUIRED, *_OPTIONAL_TEXT, "image", "tests", "success_metric", "metadata")


def task_from_row(row: Mapping[str, Any], place: str) -> CodeTask:
    """Build a task from one row.

    Required fields: ``task_id``, ``task_type``, ``language``, ``prompt``. Optional: ``description`` (default: the
    prompt), ``reference`` (default: empty), ``source_language``, ``entry_point``, ``prefix``, ``buggy_code``,
    ``image`` (a path; in Parquet also bytes), ``success_metric`` (default: ``tests`` where there are tests, else
    ``exact_match``), ``metadata`` (an object) and ``tests``, a list in which each test has one of three forms:

    * ``{"args": [...], "expected": ...}`` calls ``entry_point``. For values that JSON cannot write, such as tuples and
      sets, a test with ``"literal": true`` gives ``args`` and ``expected`` as Python literals in text;
    * ``{"stdin": "1 2", "expected": "3"}`` runs the whole program. ``metadata.output_rule`` and
      ``metadata.output_tolerance`` say how output is compared;
    * ``{"assert": "assert f(1) == 2"}`` (Python only): assertions, or a function ``check(candidate)``.
      ``metadata.test_context`` is code that they build on.

    A test with ``"visible": false`` is hidden: read by the success metric, never by a reward. The last two forms become
    ``metadata["io_tests"]`` and ``metadata["assert_tests"]`` (see :mod:`lightning_dterm.task_tests`), which may also be
    given as such. In Parquet, ``tests`` and ``metadata`` may also be JSON text.

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
    if row.get("image") is not None:
        values["image"] = row["image"] if isinstance(row["image"], bytes) else text_field(row, "image", place)
    if values["task_type"] not in get_args(TaskType):
        raise RowError(place, "task_type", f"{values['task_type']!r} is none of {', '.join(get_args(TaskType))}")
    values.setdefault("description", values["prompt"])
    values.setdefault("reference", "")
    values["metadata"] = _container(row, "metadata", dict, place)
    _add_tests(values, _container(row, "tests", list, place), place)
    task = CodeTask(**values, success_metric=_success_metric(row, values, place))
    _check_tests(task, place)
    return task


def _add_tests(values: dict[str, Any], listed: Sequence[Any], place: str) -> None:
    """Put calls into ``tests`` and the tests of the other two forms into ``metadata``."""
    tests = [_test(test, index, place) for index, test in enumerate(listed)]
    values["tests"] = tuple(test for test in tests if isinstance(test, CallTest))
    for name in TEST_LISTS:
        found = [test[1] for test in tests if isinstance(test, tuple) and test[0] == name]
        if found and values["metadata"].get(name):
            raise RowError(place, f"metadata.{name}", "such tests are given in 'tests' as well; keep one of the two")
        if found:
            values["metadata"] = {**values["metadata"], name: found}


def _check_tests(task: CodeTask, place: str) -> None:
    """Refuse tests that would fail only when the first program is judged."""
    try:
        for one in declared_tests(task).asserts:
            read_test(one.test, task.entry_point or "")
    except TaskTestError as error:
        raise RowError(place, error.field, error.problem) from error
    except TestSyntaxError as error:
        raise RowError(place, "tests", str(error)) from error


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


def _test(test: Any, index: int, place: str) -> CallTest | tuple[str, dict[str, Any]]:
    """A call, or the list of the metadata that a test belongs in and its entry there."""
    field = f"tests[{index}]"
    forms = [form for form in _FORMS if isinstance(test, Mapping) and test.get(form) is not None]
    if len(forms) != 1 or (forms != ["assert"] and "expected" not in test):
        raise RowError(place, field, _HOW)
    known = _FORMS[forms[0]]
    given = {key for key, value in test.items() if key in known or value is not None}  # Parquet fills up with nulls
    if unknown := given - set(known):
        raise RowError(place, f"{field}.{min(unknown)}", f"no part of such a test; known are {', '.join(known)}")
    visible = test.get("visible", True)
    if not isinstance(visible, bool):
        raise RowError(place, f"{field}.visible", f"true or false is needed, found {visible!r}")
    if forms == ["args"]:
        return _call_test(test, field, visible, place)
    if forms == ["assert"]:
        return "assert_tests", {"test": _text(test, "assert", field, place), "visible": visible}
    texts = {key: _text(test, key, field, place) for key in ("stdin", "expected")}
    return "io_tests", {**texts, "visible": visible}


def _text(test: Mapping[str, Any], key: str, field: str, place: str) -> str:
    if not isinstance(test[key], str):
        raise RowError(place, f"{field}.{key}", f"text is needed, found {type(test[key]).__name__}")
    return str(test[key])


def _call_test(test: Mapping[str, Any], field: str, visible: bool, place: str) -> CallTest:
    args, expected = test["args"], test["expected"]
    if test.get("literal"):
        args, expected = _literal(args, f"{field}.args", place), _literal(expected, f"{field}.expected", place)
    if not isinstance(args, (list, tuple)):
        raise RowError(place, f"{field}.args", f"a list of arguments is needed, found {type(args).__name__}")
    return CallTest(tuple(args), expected, visible)


def _literal(value: Any, field: str, place: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise RowError(place, field, f"not a Python literal in text ({error})") from error


def _success_metric(row: Mapping[str, Any], values: Mapping[str, Any], place: str) -> SuccessMetric:
    some = bool(values["tests"] or any(values["metadata"].get(name) for name in TEST_LISTS))
    metric = row.get("success_metric") or ("tests" if some else "exact_match")
    if metric not in get_args(SuccessMetric):
        raise RowError(place, "success_metric", f"{metric!r} is none of {', '.join(get_args(SuccessMetric))}")
    if values["tests"] and not values.get("entry_point"):
        raise RowError(place, "entry_point", "missing; name the function that the tests call")
    if metric == "tests" and not some:
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

    convert: Convert = staticmethod(task_from_row)
    """Builds what a row stands for."""

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
        files, name = self.files[split], type(self).__name__
        if not files:
            raise ValueError(f"{name}: {split}_files is not set; name the {split} file(s) in the data config")
        paths = expand_files(files, f"{name} {split}_files")
        tasks = TableTasks([load_file(path, self.cache_dir) for path in paths], self.convert)
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
