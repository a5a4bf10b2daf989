"""The tests of a task, of all three kinds: calls of a function, Python assertions, and text in against text out.

Calls are :attr:`CodeTask.tests`. The other two, and how output is compared, are entries of :attr:`CodeTask.metadata`:

* ``io_tests``: ``[{"stdin": "1 2\\n", "expected": "3\\n", "visible": true}, ...]`` for whole programs that read
  standard input and write standard output; compared by ``output_rule`` (``tokens``, the default, folds white space;
  ``lines`` ignores trailing blanks; ``exact``) and ``output_tolerance`` (of floats, with ``tokens``);
* ``assert_tests``: ``[{"test": "assert f(1) == 2", "visible": true}, ...]``, Python only: assert statements, or a
  function ``check(candidate)``; ``test_context`` is trusted code that they build on (imports, helpers).

A *visible* test (the default) feeds rewards; the others are read by the success metric alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from lightning_dterm.sandbox.languages import IOTest, canonical
from lightning_dterm.sandbox.languages.output import OutputRule
from lightning_dterm.types import CallTest, CodeTask

TEST_LISTS = ("io_tests", "assert_tests")
"""Entries of ``metadata`` that hold tests."""


class TaskTestError(ValueError):
    """A task's tests are malformed: ``field`` names the culprit, ``problem`` says what is wrong and how to mend it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field {field!r}: {problem}")
        self.field, self.problem = field, problem


@dataclass(frozen=True, slots=True)
class AssertTest:
    """Python source that asserts; ``visible`` as in :class:`CallTest`."""

    test: str
    visible: bool = True


@dataclass(frozen=True, slots=True)
class TaskTests:
    """All tests of a task.

    Attributes:
        calls: Calls and the values they must return.
        asserts: Python assertions, of ``context``.
        texts: Text for standard input and the expected output, compared by ``rule`` and ``tolerance``.
        context: Trusted code that assertions build on.
        rule: How output is compared.
        tolerance: Of floats in output; None compares text.
    """

    calls: tuple[CallTest, ...] = ()
    asserts: tuple[AssertTest, ...] = ()
    texts: tuple[IOTest, ...] = ()
    context: str = ""
    rule: OutputRule = "tokens"
    tolerance: float | None = None

    def __bool__(self) -> bool:
        return bool(self.calls or self.asserts or self.texts)


def has_tests(task: CodeTask, visible: bool | None = None) -> bool:
    """Whether a task has a test at all, or one that is visible (or hidden); malformed entries count as visible."""
    if any(visible in (None, test.visible) for test in task.tests):
        return True
    return any(visible in (None, _shown(one)) for name in TEST_LISTS for one in _entries(task, name))


def has_calls(task: CodeTask) -> bool:
    """Whether a visible test calls a function (a call or an assertion), rather than running the whole program."""
    asserts = (_shown(one) for one in _entries(task, "assert_tests"))
    return any(test.visible for test in task.tests) or any(asserts)


def visible_metadata(task: CodeTask) -> dict[str, Any]:
    """A task's metadata without its hidden tests: what a reward may read."""
    shown = dict(task.metadata)
    for name in TEST_LISTS:
        if name in shown:
            shown[name] = [one for one in _entries(task, name) if _shown(one)]
    return shown


def _entries(task: CodeTask, name: str) -> Sequence[Any]:
    found = task.metadata.get(name) or ()
    return found if isinstance(found, (list, tuple)) else (found,)


def _shown(entry: Any) -> bool:
    return not isinstance(entry, Mapping) or entry.get("visible", True) is not False


def declared_tests(task: CodeTask) -> TaskTests:
    """Read all tests of a task.

    Raises:
        TaskTestError: a malformed entry, named as in ``metadata.io_tests[2].stdin``.
    """
    data = task.metadata
    texts = tuple(
        IOTest(_text(one, "stdin", place), _text(one, "expected", place), _visible(one, place))
        for one, place in _read(data, "io_tests", ("stdin", "expected"))
    )
    asserts = tuple(
        AssertTest(_text(one, "test", place), _visible(one, place))
        for one, place in _read(data, "assert_tests", ("test",))
    )
    context = data.get("test_context") or ""
    if not isinstance(context, str):
        raise TaskTestError("metadata.test_context", f"Python source is needed, found {type(context).__name__}")
    if asserts and canonical(task.language) != "python":
        raise TaskTestError(
            "metadata.assert_tests",
            f"assertions are Python, but the task's language is {task.language!r}: give calls (args, expected) or "
            "texts (stdin, expected)",
        )
    if (task.tests or asserts) and not task.entry_point:
        raise TaskTestError("entry_point", "missing; name the function that the tests call")
    rule, tolerance = _comparison(data)
    return TaskTests(task.tests, asserts, texts, context, rule, tolerance)


def _read(data: Mapping[str, Any], name: str, needed: tuple[str, ...]) -> list[tuple[Mapping[str, Any], str]]:
    found = data.get(name)
    if found is None:
        return []
    if not isinstance(found, (list, tuple)):
        raise TaskTestError(f"metadata.{name}", f"a list is needed, found {type(found).__name__}")
    read = []
    for number, one in enumerate(found):
        place = f"metadata.{name}[{number}]"
        if not isinstance(one, Mapping) or not set(needed) <= one.keys():
            wanted = ", ".join(f'"{key}": "..."' for key in needed)
            raise TaskTestError(place, f'write {{{wanted}, "visible": true}}')
        if unknown := sorted(map(str, one.keys() - {*needed, "visible"})):
            known = ", ".join((*needed, "visible"))
            raise TaskTestError(f"{place}.{unknown[0]}", f"no part of such a test; known are {known}")
        read.append((one, place))
    return read


def _text(one: Mapping[str, Any], key: str, place: str) -> str:
    value = one[key]
    if not isinstance(value, str):
        raise TaskTestError(f"{place}.{key}", f"text is needed, found {type(value).__name__}")
    return value


def _visible(one: Mapping[str, Any], place: str) -> bool:
    value = one.get("visible", True)
    if not isinstance(value, bool):
        raise TaskTestError(f"{place}.visible", f"true or false is needed, found {value!r}")
    return value


def _comparison(data: Mapping[str, Any]) -> tuple[OutputRule, float | None]:
    rule, tolerance = data.get("output_rule") or "tokens", data.get("output_tolerance")
    if rule not in get_args(OutputRule):
        raise TaskTestError("metadata.output_rule", f"{rule!r} is none of {', '.join(get_args(OutputRule))}")
    number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if tolerance is not None and not (number and tolerance >= 0 and rule == "tokens"):
        raise TaskTestError(
            "metadata.output_tolerance",
            f"a number of at least 0 is needed, with output_rule 'tokens', found {tolerance!r}",
        )
    return cast(OutputRule, rule), None if tolerance is None else float(tolerance)
