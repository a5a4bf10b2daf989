"""What a reward is: a component that scores a batch of samples, or a plain function made into one."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_dterm.task_tests import visible_metadata
from lightning_dterm.types import CodeTask, RewardResult, Sample, Span

if TYPE_CHECKING:
    from lightning_dterm.sandbox import Sandbox

PROSE = "text"


class RewardComponent(ABC):
    """One sub-reward. Subclasses set :attr:`name` and implement :meth:`applies_to` and :meth:`score`.

    Attributes:
        name: Column name; unique within a run.
        needs_execution: ``Sample.execution`` is filled in before :meth:`score`, for languages that can be run.
        needs_cost: ``Sample.execution.cost`` is measured too (implies execution).
        overlaps: :meth:`score` mostly waits for other processes, touches neither torch nor other ranks, and so may run
            in a thread while the policy's forward passes run. Where in doubt leave it False: it then runs after them.
    """

    name: str
    needs_execution: ClassVar[bool] = False
    needs_cost: ClassVar[bool] = False
    overlaps: ClassVar[bool] = False

    @abstractmethod
    def applies_to(self, task: CodeTask) -> bool:
        """Whether this component can score completions of ``task``; elsewhere it is masked."""

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Score samples whose tasks this component applies to, one result each, in order.

        Values lie in [0, 1]; an empty program gets 0. Hidden tests must not be read.

        Raises:
            Exception: Of any kind, if the component itself breaks: :class:`RewardSuite` counts these samples as failed
                and masks the component there. A failure of single samples belongs into their ``RewardResult.error``.
        """

    def reads_execution(self, task: CodeTask) -> bool:
        """Whether :meth:`score` reads ``Sample.execution`` for this task; without a verdict it is then masked."""
        return self.needs_execution or self.needs_cost

    def setup(self, sandbox: Sandbox | None = None) -> None:  # noqa: B027 - optional hook
        """Called once before the first :meth:`score`; ``sandbox`` is the run's, for components that execute more."""

    def close(self) -> None:  # noqa: B027 - optional hook
        """Release what :meth:`setup` took."""

    def state_dict(self) -> dict[str, Any]:
        """State to carry through a checkpoint, plain data and tensors only; none by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - optional hook
        """Restore :meth:`state_dict`'s state."""


def is_empty(sample: Sample) -> bool:
    """True where the completion holds no code at all; every component of this package scores it 0."""
    return not sample.code.strip()


def line_starts(text: str) -> list[int]:
    r"""Character offset of each line's start; lines end at ``\n``, ``\r\n`` or ``\r``, as compilers count them."""
    starts = [0]
    for index, char in enumerate(text):
        if char == "\n" or (char == "\r" and text[index + 1 : index + 2] != "\n"):
            starts.append(index + 1)
    return starts


def position_span(
    text: str, starts: Sequence[int], start: tuple[int, int], end: tuple[int, int], weight: float = 1.0
) -> Span:
    """Span between two 1-based (line, column) positions, clipped to ``text``; empty ranges grow by one character."""

    def offset(line: int, column: int) -> int:
        if line > len(starts):
            return len(text)
        return min(starts[max(line, 1) - 1] + max(column, 1) - 1, len(text))

    low = min(offset(*start), max(len(text) - 1, 0))
    return Span(low, max(offset(*end), min(low + 1, len(text))), weight)


def line_span(text: str, starts: Sequence[int], line: int, weight: float = 1.0) -> Span | None:
    """Span of a 1-based line without its indentation and line end; None where the line does not exist or is blank."""
    if not 1 <= line <= len(starts):
        return None
    low = starts[line - 1]
    high = starts[line] if line < len(starts) else len(text)
    content = text[low:high]
    stripped = content.strip()
    if not stripped:
        return None
    low += content.index(stripped)
    return Span(low, low + len(stripped), weight)


class FunctionReward(RewardComponent):
    """A TRL-style reward function, unchanged: ``f(prompts, completions, **columns) -> list[float | None]``.

    ``columns`` are lists, one entry per sample: every field of :class:`CodeTask` but the prompt (``reference``,
    ``task_type``, ``tests``, ...), and every key of the tasks' ``metadata`` that is not such a field. ``tests`` holds
    the visible tests only, and so do ``io_tests`` and ``assert_tests``. A function without ``**kwargs`` is given the
    columns it names. ``None`` means not applicable.

    Args:
        function: The function, or its import path ``package.module.name``.
        name: Column name; default: the function's.
        low: Value that becomes 0.
        high: Value that becomes 1. A value outside ``[low, high]`` is a failure of the reward, not clipped.
        task_types: Task types it applies to; default: all.

    Raises:
        ValueError: ``low >= high``, or the path names no function.
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        name: str | None = None,
        low: float = 0.0,
        high: float = 1.0,
        task_types: Sequence[str] | None = None,
    ) -> None:
        if not low < high:
            raise ValueError(f"FunctionReward: low must be below high, got {low} and {high}.")
        self.function = _resolve(function) if isinstance(function, str) else function
        self.name = name or str(getattr(self.function, "__name__", type(self.function).__name__))
        self.low, self.high = low, high
        self.task_types = None if task_types is None else frozenset(task_types)
        parameters = inspect.signature(self.function).parameters.values()
        self._accepts_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self._accepted = {parameter.name for parameter in parameters}

    def applies_to(self, task: CodeTask) -> bool:
        """Every task, or those of the given types."""
        return self.task_types is None or task.task_type in self.task_types

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Call the function once for the batch and rescale what it returns."""
        if not samples:
            return []
        columns = _columns([sample.task for sample in samples])
        columns.update(prompts=[sample.task.prompt for sample in samples], completions=[s.text for s in samples])
        if not self._accepts_all:
            columns = {key: column for key, column in columns.items() if key in self._accepted}
        values = list(self.function(**columns))
        if len(values) != len(samples):
            raise ValueError(f"{self.name}: {len(values)} values for {len(samples)} completions")
        return [RewardResult(None if value is None else self._rescale(float(value))) for value in values]

    def _rescale(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def _columns(tasks: Sequence[CodeTask]) -> dict[str, list[Any]]:
    names = [field.name for field in fields(CodeTask) if field.name not in ("prompt", "tests")]
    columns: dict[str, list[Any]] = {name: [getattr(task, name) for task in tasks] for name in names}
    columns["tests"] = [tuple(test for test in task.tests if test.visible) for task in tasks]
    columns["metadata"] = metadata = [visible_metadata(task) for task in tasks]
    taken = {*columns, "prompt", "prompts", "completions"}
    for key in sorted({key for one in metadata for key in one} - taken):
        columns[key] = [one.get(key) for one in metadata]
    return columns


def _resolve(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"FunctionReward: cannot import {path!r} ({error}); give package.module.function.") from error
    if not callable(function):
        raise ValueError(f"FunctionReward: {path!r} is not callable.")
    return function  # type: ignore[no-any-return]
