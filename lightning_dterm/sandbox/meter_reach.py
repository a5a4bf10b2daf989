"""What a metered program reads by names that are data, and the objects it is lent that would lead further.

``getattr`` and its like, the templates of ``str.format`` and the standard streams, whose classes would open any
descriptor. Whatever a program could not write as ``x.name`` it must not reach by a text either.
"""

from __future__ import annotations

import functools
import operator
import resource
import sys
from _string import formatter_field_name_split, formatter_parser  # type: ignore[import-not-found]
from collections.abc import Callable, Iterator
from typing import Any

from lightning_dterm.sandbox.meter_names import FORMATS
from lightning_dterm.sandbox.meter_rules import C_CALLABLES
from lightning_dterm.sandbox.meter_source import Unmetered, check_name

_DEEPER = 4  # what the interpreter counts for one call of a metered program: see the tests
_STACK = 64 << 20  # a metered call runs through C, where a plain one does not; the kernel leaves 128 MiB for a stack
_NESTED = 2  # replacement fields inside a format specification; CPython refuses deeper ones


def reads_names(value: Any) -> bool:
    """Whether it is ``str.format`` or ``str.format_map``, bound or not."""
    return type(value) in C_CALLABLES and value.__name__ in FORMATS


def check_format(function: Any, args: tuple[Any, ...]) -> None:
    """Refuse a call of ``str.format`` or ``str.format_map`` whose template reads what the program may not.

    Args:
        function: Whatever has such a name; others than those of texts pass, as the built-in ``format`` does.
        args: What it is called with: the template first where it is not bound to one.

    Raises:
        Unmetered: the template does.
    """
    owner = getattr(function, "__self__", None)
    template: Any = args[0] if owner is None and args else owner
    if issubclass(type(template), str):
        _check_template(template)


def _check_template(template: str, depth: int = 0) -> None:
    if depth == _NESTED or str.find(template, ".") < 0:
        return
    try:  # it reads fields in the order and up to the fault that ``str.format`` does
        for _, name, specification, _ in formatter_parser(template):
            if name is None:
                continue
            for by_name, key in formatter_field_name_split(name)[1]:
                if by_name:
                    check_name(key)
            _check_template(specification, depth + 1)
    except ValueError:
        return


class Stream:
    """A standard stream: what programs use of it, without the way to its file, its class or its descriptor."""

    def __init__(self, stream: Any) -> None:
        for name in ("write", "writelines", "flush", "read", "readline", "readlines", "isatty", "encoding"):
            if hasattr(stream, name):
                setattr(self, name, getattr(stream, name))

    @classmethod
    def of(cls, stream: Any) -> Any:
        """One with a ``buffer`` as the stream has; None for the stream of a process that has none."""
        if stream is None:
            return None
        lent: Any = cls(stream)
        if hasattr(stream, "buffer"):
            lent.buffer = cls(stream.buffer)
        return lent

    def __iter__(self) -> Iterator[Any]:
        return iter(self.readline, self.read(0))  # type: ignore[attr-defined]

    def __next__(self) -> Any:
        line = self.readline()  # type: ignore[attr-defined]
        if not line:
            raise StopIteration
        return line


def setrecursionlimit(limit: int) -> None:
    """As a metered program has it: for each call that it makes, the interpreter counts several."""
    sys.setrecursionlimit(min(limit * _DEEPER, 2**31 - 1) if type(limit) is int else limit)


def getrecursionlimit() -> int:
    """What the program would be told without the meter."""
    return sys.getrecursionlimit() // _DEEPER


def deepen() -> None:
    """Before a program runs in a process of its own: let it call as deep as it could without the meter."""
    setrecursionlimit(sys.getrecursionlimit())
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    size = _STACK if hard == resource.RLIM_INFINITY else min(_STACK, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (size, hard))


def item_of(container: Any, index: Any) -> tuple[Any, ...]:
    """How to store an item, and what it is now."""
    return operator.setitem, container, index, container[index]


def field_of(owner: Any, name: str) -> tuple[Any, ...]:
    """How to store an attribute, and what it is now."""
    return setattr, owner, name, _getattr(owner, name) if name in FORMATS else getattr(owner, name)


def _checked(name: Any, stored: bool = False) -> str:
    if type(name) is not str:  # a subclass may say one thing and be another
        raise Unmetered("an attribute whose name is no text cannot be metered")
    if stored and name.startswith("__"):
        raise Unmetered(f"assignment to {name!r} cannot be metered")
    check_name(name)
    return name


def _getattr(value: Any, name: str, *default: Any) -> Any:
    found = getattr(value, _checked(name), *default)
    if reads_names(found):
        raise Unmetered(f"{name!r} read by its name cannot be metered")
    return found


def _hasattr(value: Any, name: str) -> bool:
    return hasattr(value, _checked(name))


def _setattr(value: Any, name: str, new: Any) -> None:
    setattr(value, _checked(name, stored=True), new)


def _delattr(value: Any, name: str) -> None:
    delattr(value, _checked(name, stored=True))


def attrgetter(*names: str) -> Callable[[Any], Any]:
    """``operator.attrgetter`` of attributes that a program may read."""
    paths = [[_checked(part) for part in name.split(".")] for name in names if type(name) is str]
    if not paths or len(paths) < len(names):
        raise TypeError("attrgetter takes names of attributes")

    def attrgetter(owner: Any) -> Any:
        found = tuple(functools.reduce(_getattr, path, owner) for path in paths)
        return found if len(found) > 1 else found[0]

    return attrgetter


BY_NAME = {"getattr": _getattr, "hasattr": _hasattr, "setattr": _setattr, "delattr": _delattr}
"""The built-in functions that take names of attributes, as a metered program has them."""

LIMITS = {"getrecursionlimit": getrecursionlimit, "setrecursionlimit": setrecursionlimit}
"""What a metered program has in place of those of ``sys``."""
