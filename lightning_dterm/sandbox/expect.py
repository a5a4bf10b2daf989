"""What a returned value must satisfy where a benchmark's own rule is not the judge's strict equality. Pure data.

A :class:`CallTest` may carry an :class:`Expectation` as its expected value; the judge then asks it instead of comparing
by type. Values are plain data of exact built-in types on both sides, so no code of a program can run in here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_dterm.sandbox import wire

VIEWS: dict[str, Callable[..., Any]] = {
    "tuple": tuple, "list": list, "set": set, "frozenset": frozenset, "sorted": sorted, "len": len, "abs": abs,
    "int": int, "float": float, "str": str, "bool": bool, "round": round, "sum": sum, "min": min, "max": max,
}  # fmt: skip
"""Built-in functions that an assertion may apply to the returned value before it compares."""

KINDS: dict[str, type] = {
    "bool": bool, "int": int, "float": float, "str": str, "bytes": bytes, "list": list, "tuple": tuple, "dict": dict,
    "set": set,
}  # fmt: skip
_HASHED = frozenset({"set", "frozenset"})
_MAX_SUM_BITS = 1 << 28  # numbers times bits of the widest: beyond it a sum takes seconds
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "is": operator.is_, "is_not": operator.is_not,
    "in": lambda value, expected: value in expected,
    "not_in": lambda value, expected: value not in expected,
    "contains": lambda value, expected: expected in value,
    "lacks": lambda value, expected: expected not in value,
}  # fmt: skip
RULES = frozenset({*_COMPARISONS, "true", "false", "isinstance", "within", "within_or_at", "isclose"})


@dataclass(frozen=True, slots=True)
class Expectation:
    """A rule for the returned value: ``rule(views(returned), value)``, with Python's own operators.

    Attributes:
        value: The expected value; ``(centre, tolerance)`` for ``within`` (``|v - centre| < tolerance``) and
            ``within_or_at`` (``<=``); ``(centre, rel_tol, abs_tol)`` for ``isclose``; a name or tuple of names of
            :data:`KINDS` for ``isinstance``; unused for ``true`` and ``false``.
        rule: One of :data:`RULES`. ``eq`` is Python's ``==``: ``1 == 1.0 == True``, exact floats.
        views: Names of :data:`VIEWS`, innermost first; ``"round:2"`` is ``round(v, 2)``.

    Raises:
        ValueError: for a rule or view that is not known.
    """

    value: Any
    rule: str = "eq"
    views: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = {view.partition(":")[0] for view in self.views} - VIEWS.keys()
        if unknown or self.rule not in RULES:
            raise ValueError(f"Expectation knows no {sorted(unknown) or self.rule!r}; rules: {sorted(RULES)}.")

    def accepts(self, returned: Any) -> bool:
        """True where the value satisfies the rule; a rule that raises (as the assertion would) accepts nothing."""
        try:
            return self._holds(self._viewed(returned))
        except Exception:
            return False

    def refusal(self, returned: Any) -> str | None:
        """Why a value was not looked at: it is made to stall whoever applies the views. None where it was."""
        try:
            self._viewed(returned)
        except wire.Forged as error:
            return f"Refused: {error}"
        except Exception:
            return None
        return None

    def _viewed(self, returned: Any) -> Any:
        for view in self.views:
            name, _, digits = view.partition(":")
            if name in _HASHED:
                returned = wire.spread(list(returned))
            elif name == "sum":
                _check_sum(returned)
            returned = VIEWS[name](returned, int(digits)) if digits else VIEWS[name](returned)
        return returned

    def _holds(self, value: Any) -> bool:
        if self.rule in ("true", "false"):
            return bool(value) is (self.rule == "true")
        if self.rule == "within":
            return bool(abs(value - self.value[0]) < self.value[1])
        if self.rule == "within_or_at":
            return bool(abs(value - self.value[0]) <= self.value[1])
        if self.rule == "isclose":
            return math.isclose(value, self.value[0], rel_tol=self.value[1], abs_tol=self.value[2])
        if self.rule == "isinstance":
            names = self.value if isinstance(self.value, tuple) else (self.value,)
            return isinstance(value, tuple(KINDS[name] for name in names))
        return bool(_COMPARISONS[self.rule](value, self.value))


def _check_sum(numbers: Any) -> None:
    bits = max((number.bit_length() for number in numbers if type(number) is int), default=0)
    if len(numbers) * bits > _MAX_SUM_BITS:
        raise wire.Forged(f"the sum of {len(numbers)} numbers of up to {bits} bits")


class Recorder:
    """Stands where an expected value would: keeps whatever was returned and accepts it. One per call."""

    def __init__(self) -> None:
        self.returned = False
        self.value: Any = None

    def accepts(self, returned: Any) -> bool:
        """Keep the value."""
        self.returned, self.value = True, returned
        return True
