"""The judge's comparison of a returned value with the expected one: by type and by value."""

from __future__ import annotations

import math
from typing import Any

from lightning_dterm.sandbox.expect import Expectation

REL_TOL = 1e-9
ABS_TOL = 1e-12
HONOURS_EXPECTATIONS = True
"""An expected value that is an :class:`~lightning_dterm.sandbox.expect.Expectation` is asked, not compared."""


def equal(returned: Any, expected: Any) -> bool:
    """True where two values of plain data agree in type and value, recursively.

    ``True`` is not ``1``, ``1`` is not ``1.0``, a list is not a tuple. Floats agree within a relative 1e-9 (1e-12
    absolute, for results that should be zero); NaN agrees with NaN, ``-0.0`` with ``0.0``. Set members and dict keys
    must agree exactly (in type too); dict order is irrelevant. A ``frozenset`` inside a set is a set. An
    :class:`~lightning_dterm.sandbox.expect.Expectation` has a rule of its own.
    """
    if isinstance(expected, Expectation):
        return expected.accepts(returned)
    if isinstance(expected, float):
        return type(returned) is float and _close(returned, expected)
    if isinstance(expected, (set, frozenset)):
        return isinstance(returned, (set, frozenset)) and _key(returned) == _key(expected)
    if type(returned) is not type(expected):
        return False
    if isinstance(expected, (list, tuple)):
        return len(returned) == len(expected) and all(map(equal, returned, expected))
    if isinstance(expected, dict):
        found = {_key(key): value for key, value in returned.items()}
        wanted = {_key(key): value for key, value in expected.items()}
        return found.keys() == wanted.keys() and all(equal(found[key], value) for key, value in wanted.items())
    return bool(returned == expected)


def _close(returned: float, expected: float) -> bool:
    if math.isnan(expected) or math.isnan(returned):
        return math.isnan(expected) and math.isnan(returned)
    return math.isclose(returned, expected, rel_tol=REL_TOL, abs_tol=ABS_TOL)


def _key(value: Any) -> Any:
    """A hashable stand-in that is equal exactly where type and value are."""
    if isinstance(value, (set, frozenset)):
        return ("set", frozenset(_key(item) for item in value))
    if isinstance(value, tuple):
        return ("tuple", tuple(_key(item) for item in value))
    if isinstance(value, float) and math.isnan(value):
        return ("float", "nan")
    return (type(value).__name__, value)
