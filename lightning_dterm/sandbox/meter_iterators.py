"""What is charged item by item: what iterators of C pass over, and long values that are hashed or compared in C."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

from lightning_dterm.sandbox.meter_sizes import SCALARS, SCAN, elements, long_work


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


Tick = Callable[[int], Any]
_READ_AT = {
    "islice": 0, "compress": 0, "groupby": 0, "from_iterable": 0, "filter": 1, "filterfalse": 1, "takewhile": 1,
    "dropwhile": 1,
}  # fmt: skip
"""Iterators that pass over items, and which of their arguments they read."""
_DECIDES_AT = {"filter": 0, "filterfalse": 0, "takewhile": 0, "dropwhile": 0, "groupby": 1}
_HASHERS = _words("""
    set frozenset Counter dict fromkeys OrderedDict update union difference intersection symmetric_difference
    difference_update intersection_update symmetric_difference_update issubset issuperset isdisjoint subtract
    defaultdict
""")
_SORTERS = _words("sorted sort min max nsmallest nlargest merge heapify")
READERS = _HASHERS | _SORTERS | frozenset(_READ_AT)
"""Names of all functions that :func:`arguments` is for."""
_COMPARED = 8  # times that a value is compared with another while many are sorted
_AS_THEY_ARE = (str, bytes, bytearray, dict, set, frozenset, range)


def arguments(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], owns: Callable[[Any], bool], tick: Tick
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a function of C, such that what it reads of them one by one is charged as it does.

    Args:
        name: The function's.
        args / kwargs: What it was to be called with.
        owns: Whether a function is the program's own, which charges for itself.
        tick: Takes units.
    """
    if name in _READ_AT:
        place = _READ_AT[name]
        decides = (
            args[_DECIDES_AT[name]] if name in _DECIDES_AT and len(args) > _DECIDES_AT[name] else kwargs.get("key")
        )
        if not owns(decides):
            args = tuple(read(arg, tick, name) if at == place else arg for at, arg in enumerate(args))
            kwargs = {key: read(arg, tick, name) if key in ("iterable", "data") else arg for key, arg in kwargs.items()}
    elif name in _HASHERS or name in _SORTERS:
        times = _COMPARED if name in _SORTERS else 1
        args = tuple(looked_at(arg, tick, times) for arg in args) if name != "heapify" else args
        if callable(key := kwargs.get("key")):
            kwargs = {**kwargs, "key": _keyed(key, tick, times)}
        elif len(args) > 2 and name in ("nsmallest", "nlargest") and callable(args[2]):
            args = (*args[:2], _keyed(args[2], tick, times))
    return args, kwargs


def read(items: Any, tick: Tick, name: str) -> Any:
    """An argument of an iterator that may pass over items: each is charged when it is read."""
    if type(items) is types.GeneratorType or not hasattr(type(items), "__iter__"):
        return items  # charges for itself; or is refused by whoever gets it
    return _read(iter(items), tick, name == "groupby")


def _read(items: Iterator[Any], tick: Tick, compared: bool) -> Iterator[Any]:
    for place, item in enumerate(items):
        if not place % SCAN:
            tick(1)
        if compared and type(item) not in SCALARS:
            tick(long_work(item))
        yield item


def looked_at(items: Any, tick: Tick, times: int) -> Any:
    """An argument each of whose items is hashed or compared: long ones are charged."""
    kind = type(items)
    if kind is types.GeneratorType:
        return _looked_at(items, tick, times)
    if issubclass(kind, _AS_THEY_ARE) or not elements(items) or times > 1 or SCALARS.issuperset(map(type, items)):
        return items  # what is sorted is charged by all that it holds
    return _looked_at(items, tick, times)


def _looked_at(items: Any, tick: Tick, times: int) -> Iterator[Any]:
    for item in items:
        if type(item) not in SCALARS and (units := long_work(item)):
            tick(times * units)
        yield item


def _keyed(key: Any, tick: Tick, times: int) -> Callable[[Any], Any]:
    def keyed(item: Any) -> Any:
        value = key(item)
        if type(value) not in SCALARS and (units := long_work(value)):
            tick(times * units)
        return value

    return keyed
