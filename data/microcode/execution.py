"""Runs MicroCode's own programs: references, and their faulty versions under a bound on loop iterations."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

_WHILE = re.compile(r"^( *)while (.*):$", re.MULTILINE)
_MAX_ITERATIONS = 4000


class _Failed:
    """Stands for a call that raised; equal to no value."""

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0


FAILED = _Failed()


class EndlessLoopError(RuntimeError):
    """A program iterated far more often than any correct one does."""


def _copy(arguments: Sequence[Any]) -> list[Any]:
    return [value.copy() if isinstance(value, (list, dict)) else value for value in arguments]


def load(source: str, entry_point: str) -> Callable[..., Any]:
    """Compile and define a trusted program; its while-loops stop with an error after 4,000 iterations in all.

    Raises:
        SyntaxError: ``source`` does not compile.
    """
    namespace: dict[str, Any] = {}
    if "while " in source:
        ticks = [0]

        def tick() -> None:
            ticks[0] += 1
            if ticks[0] > _MAX_ITERATIONS:
                raise EndlessLoopError("a while-loop runs on")

        namespace["_tick"] = tick
        source = _WHILE.sub(r"\1while _tick() is None and (\2):", source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = compile(source, "<microcode>", "exec")
    exec(code, namespace)
    return namespace[entry_point]  # type: ignore[no-any-return]


def run_calls(function: Callable[..., Any], inputs: Sequence[Sequence[Any]]) -> list[Any]:
    """The value of each call, or :data:`FAILED` where it raises.

    Raises:
        EndlessLoopError: A while-loop of the program does not end.
    """
    values: list[Any] = []
    for arguments in inputs:
        try:
            values.append(function(*_copy(arguments)))
        except EndlessLoopError:
            raise
        except Exception:
            values.append(FAILED)
    return values
