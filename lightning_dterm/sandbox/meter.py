"""A deterministic cost for Python programs: operations counted by instrumenting the syntax tree. Standard library only.

The unit is one operation of the program's source: each node of the syntax tree counts once whenever its block runs.
That does not depend on the machine, its load, or the Python version. Work that built-in functions do in C is charged by
the size of what they read or make (a membership test by the list's length, a sort by n log n, a slice by what it
copies), one unit for as many elements as CPython handles in the time of one operation. Hardware counters would be more
exact, but containers rarely grant them; line or opcode events are blind to C and differ between versions.

Functions of C that are handed to others (``map(xs.count, xs)``, ``sorted(xs, key=xs.index)``) are charged call by call.

A metered program is also held to what can be metered: it cannot reach frames, code objects, private names, or anything
of the standard library that is not on a list (``meter_names``). Its counter has no name: the hooks are constants of its
code, and a second counter in C tells if the first was set back. The kernel's CPU time bounds what is left, see
``slot``. What cannot be metered has no cost.

Regular expressions are charged by their steps, which a matcher of ours counts (``meter_regex``), and numbers of any
length by their lengths (``meter_numbers``).

Limits: see docs/sandbox.md.
"""

from __future__ import annotations

import builtins
import functools
import itertools
import math
import operator
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from lightning_dterm.sandbox import meter_regex
from lightning_dterm.sandbox.meter_classes import Definitions, fields
from lightning_dterm.sandbox.meter_iterators import READERS, arguments
from lightning_dterm.sandbox.meter_names import BUILTINS, FORMATS, IMPORTABLE, public_copy
from lightning_dterm.sandbox.meter_numbers import WIDE
from lightning_dterm.sandbox.meter_reach import (
    BY_NAME,
    LIMITS,
    Stream,
    attrgetter,
    check_format,
    field_of,
    item_of,
    reads_names,
)
from lightning_dterm.sandbox.meter_regex import REGEX, regex_call
from lightning_dterm.sandbox.meter_rules import (
    C_CALLABLES,
    COMPARE_WITH,
    HIGHER,
    KEEPERS,
    OPERATE,
    charge_for,
    comparison_work,
    name_of,
    operation_work,
    scan_work,
)
from lightning_dterm.sandbox.meter_sizes import (
    COPY,
    MOVE,
    SCALARS,
    elements,
    long_work,
    shown,
    size_of,
)
from lightning_dterm.sandbox.meter_source import Unmetered, instrument

__all__ = ["Meter", "Unmetered"]

_FLAT = (int, float, bool, type(None))
_NUMBERS = (int, float, bool, complex)
_OPERATION = {getattr(operator, name): name for name in OPERATE}
_COMPARISON = {function: name for name, function in COMPARE_WITH.items()}


def _counter(cap: int, stop: Callable[[int], Any]) -> tuple[Callable[[int], bool], Callable[[], int]]:
    """A tick and the count, which is ``cap`` where it was set back: every tick is worth one unit at least."""
    total, turns = 0, itertools.count()
    advance = turns.__next__

    def tick(units: int) -> bool:
        nonlocal total
        if type(units) is not int or units < 0:  # a number that a program could make to say what it likes
            stop(cap)
        if units:
            total += units
            advance()
            if total >= cap:
                stop(cap)
        return True  # so that it can stand in a condition

    def read() -> int:
        return total if type(total) is int and total >= int(repr(turns)[6:-1]) else cap

    return tick, read


class Meter:
    """Counts the operations of one program.

    Args:
        cap: Count at which to stop.
        stop: Called with the count when it reaches the cap; must not return.
    """

    def __init__(self, cap: int, stop: Callable[[int], Any]) -> None:
        self.tick, self._read = _counter(cap, stop)
        self._space: dict[str, Any] = {}
        self._definitions = Definitions(self.tick, self._own)

    @property
    def cost(self) -> int:
        """Operations so far; the cap where the counter was tampered with."""
        return self._read()

    def prepare(self, program: str, filename: str) -> tuple[types.CodeType, dict[str, Any]]:
        """The instrumented program and the namespace to run it in.

        Raises:
            Unmetered: it uses what cannot be metered.
            SyntaxError: it does not parse.
        """
        hooks = {
            "tick": self.tick, "call": self._call, "in": self._in, "binary": self._binary, "sized": self._sized,
            "compare": self._compare, "refuse": _refuse, "shown": self._shown, "each": self._each, "item": item_of,
            "field": field_of, "augment": self._augment, "decorate": self._decorate, "chained": self._chained,
            "moved": self._moved, "parts": self._parts, "key": self._key, "spread": self._spread,
            "method": self._method,
        }  # fmt: skip
        code = instrument(program, filename, hooks)
        module = sys.modules["program"] = types.ModuleType("program")  # dataclasses look their module up
        self._space = module.__dict__
        self._space["__builtins__"] = {
            **{name: value for name, value in vars(builtins).items() if name in BUILTINS},
            "__import__": self._import, "__build_class__": self._definitions.build_class, "__name__": "builtins",
            **BY_NAME,
        }  # fmt: skip
        return code, self._space

    def _own(self, function: Any) -> bool:
        """Whether the function is the program's, or one of ours that charges for itself."""
        if type(function) is types.MethodType:
            function = function.__func__
        if type(function) is not types.FunctionType:
            return False
        return function.__globals__ is self._space or function.__code__ is _THROUGH

    def _call(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self._own(function):
            if type(function) is types.MethodType:  # through which CPython 3.12 and later would recurse in C
                return function.__func__(function.__self__, *args, **kwargs)
            return function(*args, **kwargs)
        if type(function) is types.BuiltinFunctionType and not kwargs and len(args) == 2:
            if function in _OPERATION:
                return self._binary(_OPERATION[function], *args)
            if function in _COMPARISON:
                return self._compare(_COMPARISON[function], *args)
            if function is operator.contains:
                return self._in(args[1], args[0])
        name = name_of(function)
        if len(args) > _MANY:  # each is looked at below
            self.tick(len(args) // 4)
        args = tuple(self._charged(arg, function, name) for arg in args)
        kwargs = {key: self._charged(arg, function, name) for key, arg in kwargs.items()}
        self._definitions.check_call(function, name, args, kwargs)
        if name in FORMATS:
            check_format(function, args)
        if function is sum and args and _sums_slowly(args[0], args[1] if args[1:] else kwargs.get("start", 0)):
            return self._sum("add", *args, **kwargs)
        if function is math.prod and args:
            return self._sum("mul", args[0], kwargs.get("start", 1))
        if name == "accumulate" and len(args) == 1 and "func" not in kwargs and _sums_slowly(args[0], 0):
            kwargs["func"] = functools.partial(self._binary, "add")
        if name == "itemgetter" and (len(args) > _ITEMS or any(map(long_work, args))):
            raise Unmetered("operator.itemgetter of many items cannot be metered")
        if name in REGEX:
            self._search(function, name, args, kwargs)
        before, after = charge_for(function, (*args, *kwargs.values()))
        if before:
            self.tick(before)
        if name in READERS:
            args, kwargs = arguments(name, args, kwargs, self._own, self.tick)
        result = function(*args, **kwargs)
        if type(result) in _FLAT and type(result) is not int:
            return result
        if after:
            self.tick(after * size_of(result))
        if name == "tee" and type(result) is tuple:
            return tuple(self._counted(copy, True) for copy in result)
        if hasattr(type(result), "__next__") and type(result) is not types.GeneratorType:
            return self._counted(result, type(result) in _PASSING)
        return result

    def _charged(self, value: Any, function: Any, name: str) -> Any:
        """An argument as it is passed on: a function of C such that every call of it is charged."""
        kind = type(value)
        if kind in C_CALLABLES or (kind in (types.FunctionType, types.MethodType) and not self._own(value)):
            owner = getattr(function, "__self__", None) if type(function) in C_CALLABLES else None
            if name in KEEPERS or (name not in HIGHER and issubclass(type(owner), _CONTAINERS)):
                return value
        elif name not in HIGHER or not callable(value) or kind is operator.itemgetter or self._own(value):
            return value
        return _through(self._call, self.tick, value)

    def _sum(self, operator: str, items: Any, /, start: Any = 0) -> Any:
        for item in items:
            self.tick(1)
            start = self._binary(operator, start, item)
        return start

    def _search(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count what a regular expression does with its text."""
        found = regex_call(function, name, args, kwargs)
        if found is not None:
            meter_regex.charge(*found, self.tick)

    def _counted(self, iterator: Iterator[Any], passes: bool) -> Iterator[Any]:
        """An iterator of C code (``map``, ``zip``...), each of whose items is charged, by size if it makes them."""
        for item in iterator:
            self.tick(2 if passes else 2 + size_of(item))
            yield item

    def _each(self, value: Any) -> Any:
        """What ``yield from`` goes through: iterators of C charge for their items, generators for themselves."""
        iterator = iter(value)
        return iterator if hasattr(type(iterator), "send") else self._counted(iterator, True)

    def _in(self, item: Any, container: Any) -> bool:
        self.tick(scan_work(container, item))
        return item in container

    def _compare(self, operator: str, left: Any, right: Any) -> Any:
        if not (_is_small(left) and _is_small(right)):
            self.tick(comparison_work(left, right))
        return COMPARE_WITH[operator](left, right)

    def _binary(self, operator: str, left: Any, right: Any) -> Any:
        if operator in _QUICK and _is_small(left) and _is_small(right):
            return OPERATE[operator](left, right)  # as the rules would have it, sooner
        self.tick(operation_work(operator, left, right))
        result = OPERATE[operator](left, right)
        if type(result) not in _FLAT:
            if operator in _UPDATES and result is left:
                self.tick(size_of(right) if operator == "iadd" else 0)
            else:
                text = operator in ("iadd", "add") and type(result) is str  # CPython appends in place
                self.tick(size_of(right if text else result))
        return result

    def _augment(self, operator: str, item: tuple[Callable[..., None], Any, Any, Any], right: Any) -> None:
        store, owner, key, left = item
        store(owner, key, self._binary(operator, left, right))

    def _chained(self, value: Any) -> Any:
        """An operand inside a chain of comparisons: what it is compared with is not looked at further than it goes."""
        if not _is_small(value):
            self.tick(comparison_work(value, value))
        return value

    def _key(self, value: Any) -> Any:
        """What is hashed, or an index."""
        if type(value) not in SCALARS and (units := long_work(value)):
            self.tick(units)
        return value

    def _spread(self, value: Any) -> Any:
        """What is taken apart item by item."""
        self.tick(elements(value) // COPY if type(value) is range else size_of(value))
        return value

    def _moved(self, value: Any) -> Any:
        """A container in which a slice is replaced: what follows may have to move."""
        self.tick(elements(value) // MOVE)
        return value

    def _parts(self, values: Any) -> Iterator[Any]:
        """Values each of which is taken apart into new lists."""
        for value in values:
            self.tick(size_of(value))
            yield value

    def _shown(self, value: Any) -> Any:
        self.tick(shown(value))
        return value

    def _method(self, value: Any) -> Any:
        """What was read under the name of a method that reads attributes, and may be called by anything later."""
        return _through(self._call, self.tick, value) if reads_names(value) else value

    def _decorate(self, decorator: Any) -> Any:
        return decorator if self._own(decorator) else _through(self._call, self.tick, decorator)

    def _sized(self, value: Any) -> Any:
        if not _is_small(value):
            self.tick(size_of(value))
        return value

    def _import(self, name: str, space: Any = None, local: Any = None, names: Any = (), level: int = 0) -> Any:
        if not level and name.partition(".")[0] not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)  # nor is there one without the meter
        if level or name not in IMPORTABLE:
            raise Unmetered(f"import of {name!r} cannot be metered")
        return self._public(name if names else name.partition(".")[0])

    def _public(self, name: str) -> types.ModuleType:
        copy = public_copy(builtins.__import__(name, None, None, ["_"]), IMPORTABLE[name])
        if name == "functools":
            copy.wraps = self._wraps  # type: ignore[attr-defined]
        elif name == "operator":
            copy.attrgetter = attrgetter  # type: ignore[attr-defined]
        elif name == "collections":
            copy.abc = self._public("collections.abc")  # type: ignore[attr-defined]
        elif name == "sys":
            for stream in ("stdin", "stdout", "stderr"):
                setattr(copy, stream, Stream.of(getattr(sys, stream)))
            vars(copy).update(LIMITS)
        elif name == "dataclasses":
            copy.dataclass = self._definitions.dataclass  # type: ignore[attr-defined]
            copy.fields = fields  # type: ignore[attr-defined]
        return copy

    def _wraps(self, wrapped: Any, /, *rest: Any, **named: Any) -> Callable[[Any], Any]:
        """``functools.wraps`` of the program's own functions, with the usual attributes."""
        if rest or named:
            raise Unmetered("functools.wraps with attributes of one's own cannot be metered")

        def decorate(wrapper: Any) -> Any:
            if not (type(wrapper) is types.FunctionType and wrapper.__globals__ is self._space):
                raise Unmetered("functools.wraps of anything but a function cannot be metered")
            return functools.wraps(wrapped)(wrapper)

        return decorate


_PASSING: tuple[type[Any], ...] = (
    filter, reversed, enumerate, type(iter([])), type(iter(())), type(iter({})), type(iter(set())), type(reversed([])),
    itertools.chain, itertools.compress, itertools.cycle, itertools.dropwhile, itertools.filterfalse, itertools.islice,
    itertools.repeat, itertools.takewhile,
)  # fmt: skip
"""Iterators whose items were there before."""
_CONTAINERS = (list, tuple, set, frozenset, dict, deque, str, bytes)
_MANY, _ITEMS = 32, 8
_TEXTS = (str, bytes, bytearray)
_UPDATES = ("iadd", "isub", "ior", "iand", "ixor")


_QUICK = frozenset(OPERATE) - {"pow", "ipow", "lshift", "ilshift"}
_SMALL = 1 << WIDE


def _is_small(value: Any) -> bool:
    """Whether it is a number with which arithmetic and comparisons cost nothing beyond the operation."""
    return (type(value) is int and -_SMALL < value < _SMALL) or type(value) is float


def _sums_slowly(items: Any, start: Any) -> bool:
    """Whether additions cost more than those of small numbers; texts are refused by ``sum`` itself."""
    if type(start) in _TEXTS:
        return False
    if type(start) not in _NUMBERS:
        return True
    if type(items) not in (list, tuple):
        return False
    kinds = set(map(type, items))
    if not kinds <= {*_NUMBERS}:
        return True
    return kinds == {int} and max(map(int.bit_length, items)) > WIDE


def _through(call: Callable[..., Any], tick: Callable[[int], bool], function: Any) -> Callable[..., Any]:
    def through(*args: Any, **kwargs: Any) -> Any:
        tick(1)
        return call(function, *args, **kwargs)

    return through


_THROUGH = _through(print, bool, print).__code__


def _refuse(message: str) -> NoReturn:
    raise Unmetered(message)
