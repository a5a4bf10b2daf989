"""How much there is of a value: of its elements, of what it holds, of its text. Pure functions.

The divisors were calibrated on CPython 3.11: elements handled in the time of one counted operation (about 40 ns of
uninstrumented code): 4 where objects are compared, hashed or converted, 16 where references are copied, 128 where
memory is only moved, 64 characters of text.
"""

from __future__ import annotations

import contextlib
import types
from array import array
from collections import deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

from lightning_dterm.sandbox.meter_numbers import squared, words

SCAN, COPY, MOVE, TEXT, BITS = 4, 16, 128, 64, 1024
_LONG_ITEMS = 16  # from which hashing or comparing a value once is more than an operation


def size_of(value: Any) -> int:
    """Units for making or copying a value once."""
    kind = type(value)
    if issubclass(kind, int):
        return int.bit_length(value) // BITS
    if issubclass(kind, (str, bytes, bytearray)):
        return elements(value) // TEXT
    if issubclass(kind, (list, tuple, deque, array)):
        return elements(value) // COPY
    if issubclass(kind, Decimal):
        return words(value) // COPY
    return elements(value) // SCAN if issubclass(kind, SET_LIKE) or kind is _VALUES else 0


_VALUES: type[Any] = type({}.values())
SIZED: tuple[Any, ...] = (
    list, tuple, set, frozenset, dict, str, bytes, bytearray, range, deque, array,
    type({}.keys()), _VALUES, type({}.items()),
)  # fmt: skip


def elements(value: Any) -> int:
    """Length of a built-in container, text or range; 0 of anything else."""
    kind = type(value)
    if kind in SIZED:
        return len(value)
    for base in SIZED:
        if issubclass(kind, base):
            return int(base.__len__(value))  # whatever the subclass says
    return 0


SCALARS = frozenset({int, float, bool, complex, str, bytes, type(None)})
FLAT_TYPES = (int, float, bool, complex, str, bytes, type(None), Decimal, Fraction)
SET_LIKE: tuple[Any, ...] = (set, frozenset, dict, type({}.keys()), type({}.items()))
EXACT = (Decimal, Fraction)


def reach(value: Any, most: int = 1_000_000) -> int:
    """Scalars that a comparison of a container may come to, nested ones included."""
    kind = type(value)
    if issubclass(kind, (list, tuple, set, frozenset, deque)):
        if elements(value) >= most:
            return most
        return elements(value) if SCALARS.issuperset(map(type, value)) else deep(value, most=most)
    return deep(value, most=most) if issubclass(kind, dict) else elements(value)


def shown(value: Any) -> int:
    """Units of turning a value into text."""
    kind = type(value)
    if issubclass(kind, (str, bytes, bytearray)):
        return elements(value) // TEXT
    if issubclass(kind, int):
        return squared(value)
    return words(value) if issubclass(kind, Decimal) else deep(value)


def deep(value: Any, instances: bool = False, most: int = 1_000_000) -> int:
    """Scalars and containers in a value, nested ones and the lengths of texts and numbers included; up to a million.

    Args:
        value: Anything.
        instances: Whether attributes of instances count too, as for whoever copies them.
    """
    count, pending, seen = 0, [value], set()
    while pending and count < most:
        item = pending.pop()
        count += 1
        kind = type(item)
        if kind is float or item is None or (kind is int and -_LONG < item < _LONG):
            continue
        if issubclass(kind, (str, bytes, bytearray)):
            count += len(item) // COPY
        elif kind is array:
            count += len(item)
        elif issubclass(kind, int):
            count += squared(item)
        elif issubclass(kind, EXACT):
            count += _IN_PYTHON if issubclass(kind, Fraction) else words(item) // 2
        elif issubclass(kind, _NESTING) and id(item) not in seen:
            seen.add(id(item))
            pending += [*item, *(item.values() if issubclass(kind, dict) else ())]
        if instances and kind.__module__ != "builtins" and id(item) not in seen:
            seen.add(id(item))
            pending += attributes(item)
    return count


def attributes(item: Any) -> list[Any]:
    """Values of an instance's attributes, whatever its class says they are."""
    values: list[Any] = []
    for base in type.mro(type(item)):
        for name, member in type.__dict__["__dict__"].__get__(base).items():
            if name == "__dict__" and type(member) is types.GetSetDescriptorType:
                values += member.__get__(item).values()
            elif type(member) is types.MemberDescriptorType:
                with contextlib.suppress(AttributeError):
                    values.append(member.__get__(item))
    return values


def long_work(value: Any) -> int:
    """Units of hashing a value, or comparing it once, beyond those of a short one.

    From eight parts on it is one unit: less would leave the walk that measures it, in Python, without a price.
    """
    kind = type(value)
    if kind in SCALARS or not issubclass(kind, _NESTING):
        return 0
    count = deep(value)
    return count // SCAN if count > _LONG_ITEMS else count // 8


_IN_PYTHON = 32  # an operation of Fraction's, in elements
_LONG = 1 << 256  # integers below it cost nothing by their length
_NESTING = (list, tuple, deque, _VALUES, *SET_LIKE)
