"""A plain function as a reward, by the conventions of TRL's reward functions."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from lightning_dterm.rewards.base import Logged, Progress, RewardComponent
from lightning_dterm.rewards.function_async import EventLoop, Ticket
from lightning_dterm.rewards.function_process import FunctionProcess
from lightning_dterm.task_tests import visible_metadata
from lightning_dterm.types import CodeTask, RewardResult, Sample


class FunctionReward(RewardComponent):
    """A TRL-style reward function, unchanged: ``f(prompts, completions, **columns) -> list[float | None]``.

    It is called once per batch, with keyword arguments; a function without ``**kwargs`` is given those it names:

    * ``prompts``, ``completions``: strings; lists of messages (``role``, ``content``) if ``conversational``.
    * ``completion_ids``: the completions' tokens as generated, the end-of-sequence token included.
    * columns, lists with an entry per sample: every field of :class:`CodeTask` but the prompt (``reference``,
      ``task_type``, ``tests``, ...) and every key of the tasks' ``metadata`` that is not such a field (None for tasks
      without it). ``tests``, ``io_tests`` and ``assert_tests`` hold the visible tests only.
    * ``trainer_state``: a :class:`transformers.TrainerState` (``global_step``, ``max_steps``, ``epoch``).
    * ``log_metric(name, value)``: a scalar to log, as ``reward_log/<component>/<name>`` (the mean of several calls);
      ``log_extra(column, values)``: a column, one value per completion, for the sample tables.

    ``None`` means not applicable. What it returns is mapped linearly, ``low`` to 0 and ``high`` to 1. A value beyond
    them is a failure of the reward (or, with ``clip``, counts as the bound), and so are NaN, text, and a wrong number
    of values. An ``async def`` runs in an event loop shared by all; it overlaps with forward passes and other rewards.

    Args:
        function: The function, or its import path ``package.module.name``.
        name: Column name; default: the function's.
        low: Value that becomes 0.
        high: Value that becomes 1.
        task_types: Task types it applies to; default: all.
        clip: Values below ``low`` or above ``high`` (infinite ones, too) count as ``low`` or ``high``.
        conversational: Give prompts and completions as lists of messages. The prompt's are ``metadata["messages"]``
            where the task has them, else one message of the user with the whole prompt.
        overlap: See :attr:`RewardComponent.overlaps`; default: for ``async def`` only.
        timeout_s: See :attr:`RewardComponent.timeout_s`.
        isolate: Call it in a process of its own, which imports it anew and is killed where the call takes too long: for
            what may crash, or hold Python's global lock (a regular expression that backtracks), which would keep
            everything else from going on, the timeout as well. Such a call may overlap with all else.

    Raises:
        ValueError: ``low`` is not below ``high``, ``timeout_s`` is not positive, the path names no function, or one
            that is to be isolated cannot be imported elsewhere (a lambda, a function of the main script).
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        name: str | None = None,
        low: float = 0.0,
        high: float = 1.0,
        task_types: Sequence[str] | None = None,
        clip: bool = False,
        conversational: bool = False,
        overlap: bool | None = None,
        timeout_s: float | None = None,
        isolate: bool = False,
    ) -> None:
        if not low < high or not math.isfinite(high - low):
            raise ValueError(f"FunctionReward: low must be below high, both finite, got {low} and {high}.")
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"FunctionReward: timeout_s must be positive, got {timeout_s}.")
        self.function = _resolve(function) if isinstance(function, str) else function
        self.name = name or str(getattr(self.function, "__name__", type(self.function).__name__))
        self.low, self.high, self.clip, self.conversational = low, high, clip, conversational
        self.task_types = None if task_types is None else frozenset(task_types)
        self.timeout_s = timeout_s
        self._process = FunctionProcess(self.function) if isolate else None
        self.overlaps = isolate or _is_async(self.function) if overlap is None else overlap
        self._accepted, self._needed = _parameters(self.function)
        self._progress = Progress()
        self._logged = _Log(0)
        self._ticket: tuple[EventLoop, Ticket] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ticket": None}

    def applies_to(self, task: CodeTask) -> bool:
        """Every task, or those of the given types."""
        return self.task_types is None or task.task_type in self.task_types

    def begin(self, progress: Progress) -> None:
        """Note what ``trainer_state`` says next."""
        self._progress = progress

    def logged(self) -> Logged | None:
        """What the function logged during the last call."""
        return self._logged.result()

    def cancel(self) -> None:
        """End an isolated call, cancel an asynchronous function; any other goes on until it returns."""
        if self._process is not None:
            self._process.kill()
        if (running := self._ticket) is not None:
            running[0].cancel(running[1])

    def close(self) -> None:
        """End the function's process."""
        if self._process is not None:
            self._process.close()

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Call the function once for the batch and rescale what it returns.

        Raises:
            TypeError: It returns no list, or needs an argument that there is not.
            ValueError: It returns another number of values than there are samples.
            Exception: Whatever the function raises.
        """
        if not samples:
            return []
        self._logged = _Log(len(samples))
        arguments = self._arguments(samples)
        if missing := sorted(self._needed - arguments.keys()):
            known = ", ".join(sorted(arguments))
            raise TypeError(
                f"{self.name} needs {', '.join(missing)}, which these tasks have not: add it to their metadata or give "
                f"the parameter a default. There are: {known}"
            )
        if self._accepted is not None:
            arguments = {key: value for key, value in arguments.items() if key in self._accepted}
        values = self._call(arguments)
        if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__"):
            raise TypeError(f"{self.name} returned {type(values).__name__} instead of a list of numbers")
        values = list(values)
        if len(values) != len(samples):
            raise ValueError(f"{self.name}: {len(values)} values for {len(samples)} completions")
        return [self._result(value) for value in values]

    def _call(self, arguments: dict[str, Any]) -> Any:
        if self._process is not None:
            return self._process.call(arguments)
        if not _is_async(self.function):
            found = self.function(**arguments)
            if not inspect.isawaitable(found):
                return found
            return self._await(lambda: found)
        return self._await(lambda: self.function(**arguments))

    def _await(self, make: Callable[[], Any]) -> Any:
        loop, ticket = EventLoop.shared(), Ticket(self.name)
        self._ticket = loop, ticket
        try:
            return loop.run(ticket, make)
        finally:
            self._ticket = None

    def _arguments(self, samples: Sequence[Sample]) -> dict[str, Any]:
        tasks = [sample.task for sample in samples]
        arguments: dict[str, Any] = _columns(tasks)
        arguments["completion_ids"] = [list(sample.token_ids) for sample in samples]
        arguments["log_extra"], arguments["log_metric"] = self._logged.log_extra, self._logged.log_metric
        if self.conversational:
            arguments["prompts"] = [_messages(task) for task in tasks]
            arguments["completions"] = [[{"role": "assistant", "content": sample.text}] for sample in samples]
        else:
            arguments["prompts"] = [task.prompt for task in tasks]
            arguments["completions"] = [sample.text for sample in samples]
        if self._accepted is None or "trainer_state" in self._accepted:
            from transformers import TrainerState

            now = self._progress
            arguments["trainer_state"] = TrainerState(
                global_step=now.step, max_steps=now.max_steps, epoch=float(now.epoch)
            )
        return arguments

    def _result(self, value: Any) -> RewardResult:
        if value is None:
            return RewardResult(None)
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            return RewardResult(None, error=f"value {value!r:.80} is not a number")
        if self.clip and not math.isnan(number):
            number = min(max(number, self.low), self.high)
        if not self.low <= number <= self.high:
            hint = "" if math.isnan(number) else "; set low and high to the function's range, or clip to true"
            return RewardResult(None, error=f"value {number} is outside of [{self.low}, {self.high}]{hint}")
        return RewardResult((number - self.low) / (self.high - self.low))


class _Log:
    """Takes what one call of a function logs."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._metrics: dict[str, list[float]] = {}
        self._columns: dict[str, list[Any]] = {}

    def log_metric(self, name: str, value: float) -> None:
        """Log a scalar."""
        self._metrics.setdefault(str(name), []).append(float(value))

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Log one value per completion."""
        found = list(values)
        if len(found) != self._size:
            raise ValueError(f"log_extra({column!r}): {len(found)} values for {self._size} completions")
        self._columns[str(column)] = found

    def result(self) -> Logged | None:
        """All of it; None for nothing."""
        if not self._metrics and not self._columns:
            return None
        return Logged({name: math.fsum(v) / len(v) for name, v in self._metrics.items()}, dict(self._columns))


def _columns(tasks: Sequence[CodeTask]) -> dict[str, list[Any]]:
    names = [field.name for field in fields(CodeTask) if field.name not in ("prompt", "tests")]
    columns: dict[str, list[Any]] = {name: [getattr(task, name) for task in tasks] for name in names}
    columns["tests"] = [tuple(test for test in task.tests if test.visible) for task in tasks]
    columns["metadata"] = metadata = [visible_metadata(task) for task in tasks]
    taken = {*columns, "prompt", "completion"}
    for key in sorted({key for one in metadata for key in one} - taken):
        columns[key] = [one.get(key) for one in metadata]
    return columns


def _messages(task: CodeTask) -> list[dict[str, Any]]:
    found = task.metadata.get("messages")
    return [dict(one) for one in found] if found else [{"role": "user", "content": task.prompt}]


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _parameters(function: Callable[..., Any]) -> tuple[frozenset[str] | None, frozenset[str]]:
    """Names that a function accepts (None: all) and those it cannot do without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in functions have none
        return None, frozenset()
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    everything = any(one.kind is one.VAR_KEYWORD for one in parameters)
    needed = frozenset(one.name for one in named if one.default is one.empty)
    return None if everything else frozenset(one.name for one in named), needed


def _resolve(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"FunctionReward: cannot import {path!r} ({error}); give package.module.function.") from error
    if not callable(function):
        raise ValueError(f"FunctionReward: {path!r} is not callable.")
    return function  # type: ignore[no-any-return]
