"""Which classes a metered program may make: none whose methods or fields would be work, or names, past the meter.

Python calls special methods itself, so each has to be a function of the program's own, which counts for itself. What
the standard library writes for a class (enumerations, named tuples, data classes) is known, or charged here.
"""

from __future__ import annotations

import abc
import builtins
import copy
import dataclasses
import enum
import functools
import types
from collections.abc import Callable
from typing import Any

from lightning_dterm.sandbox.meter_names import DEFINABLE
from lightning_dterm.sandbox.meter_rules import C_CALLABLES, comparison_work
from lightning_dterm.sandbox.meter_sizes import deep, shown
from lightning_dterm.sandbox.meter_source import Unmetered, check_name

_FREE = 16  # definitions that cost nothing, as imports do: what an honest program declares
_CLASS, _NAMED_TUPLE, _DATA_CLASS = 500, 2_500, 20_000  # what further ones take
_LIBRARIES = frozenset({"enum", "typing", "abc"})  # which write methods for classes, all of them short
_NAMED = frozenset({"__new__", "__repr__"})
_COMPARISONS = ("__eq__", "__lt__", "__le__", "__gt__", "__ge__")
_WRAPPERS = (types.WrapperDescriptorType, types.MethodDescriptorType)
_DESCRIBED = (types.GetSetDescriptorType, types.MemberDescriptorType)


def _is_meta(value: Any) -> bool:
    return issubclass(type(value), type) and type.__subclasscheck__(type, value)


def _space_of(made: Any) -> Any:
    return type.__dict__["__dict__"].__get__(made)


class Definitions:
    """The classes that one program makes.

    Args:
        tick: Takes units.
        owns: Whether a function is the program's own.
    """

    def __init__(self, tick: Callable[[int], Any], owns: Callable[[Any], bool]) -> None:
        self._tick, self._owns = tick, owns
        self._made = 0

    def _declare(self, units: int) -> None:
        self._made += 1
        if self._made > _FREE:
            self._tick(units)

    def check_call(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse classes made by calls: their attributes would have names that are not in the program."""
        if name == "namedtuple":
            self._declare(_NAMED_TUPLE)
        if isinstance(function, enum.EnumMeta) and len(args) + len(kwargs) > 1:
            raise Unmetered("an enumeration made by a call cannot be metered")
        if len(args) + len(kwargs) < 2 or name in ("isinstance", "issubclass"):
            return
        owner = getattr(function, "__self__", None) if type(function) in (*C_CALLABLES, types.MethodType) else None
        if any(map(_is_meta, (function, owner, *args))):
            raise Unmetered("a class made by a call cannot be metered")

    def build_class(self, function: Any, name: str, /, *bases: Any, **options: Any) -> Any:
        """What a ``class`` statement calls: refuses metaclasses, and special methods that would work past the meter."""
        if any(map(_is_meta, bases)) or options.get("metaclass", type) not in (type, abc.ABCMeta):
            raise Unmetered("a metaclass cannot be metered")
        self._declare(_CLASS)
        made = builtins.__build_class__(function, name, *bases, **options)
        for name, value in _space_of(made).items() if isinstance(made, type) else ():
            # Other special names it cannot have set.
            if name.startswith("__") and name in DEFINABLE and not self._counts(made, name, value):
                raise Unmetered(f"{name!r} that is no function of the program's cannot be metered")
        return made

    def _counts(self, made: type, name: str, value: Any) -> bool:
        """Whether what Python would do with a special attribute is the program's own code, or nothing."""
        kind = type(value)
        if kind in (staticmethod, classmethod):
            value = value.__func__
            kind = type(value)
        if kind is types.FunctionType:
            module = value.__globals__.get("__name__")
            named = name in _NAMED and issubclass(made, tuple) and hasattr(made, "_fields")
            return self._owns(value) or module in _LIBRARIES or named
        if kind in _WRAPPERS:  # a base's own, which counts as that base's does
            return bool(value.__name__ == name and value.__objclass__ in type.mro(made))
        return kind not in _DESCRIBED and not callable(value) and not hasattr(kind, "__get__")

    def dataclass(self, cls: Any = None, /, **options: Any) -> Any:
        """``dataclasses.dataclass``, which writes code with the names of fields in it.

        Its methods compare, hash and show all fields at once, in C; they are charged for them.
        """
        if cls is None:
            return lambda made: self.dataclass(made, **options)
        if type(cls) not in (type, abc.ABCMeta):
            raise Unmetered("a data class of this kind cannot be metered")
        for base in type.mro(cls):
            space = _space_of(base)
            fields = space.get("__dataclass_fields__", {})
            names = [*space.get("__annotations__", {}), *fields, *(field.name for field in fields.values())]
            if base is not object and not all(type(name) is str and name.isidentifier() for name in names):
                raise Unmetered("fields whose names are no identifiers cannot be metered")
            for name in names:
                check_name(name.lstrip("_") or name)
        self._declare(_DATA_CLASS)
        _hold_still(cls, options)
        before = dict(_space_of(cls))
        made = dataclasses.dataclass(**options)(cls)
        after = _space_of(made)
        for name in (*_COMPARISONS, "__hash__", "__repr__"):
            method = after.get(name)
            if type(method) is types.FunctionType and method is not before.get(name):
                setattr(made, name, _charged(method, name, tuple(after["__dataclass_fields__"]), self._tick))
        return made


def _hold_still(cls: type, options: dict[str, Any]) -> None:
    """See to it that no code of the program's runs while ``dataclass`` writes code from fields that were checked.

    Raises:
        Unmetered: Where it would: truth values and descriptors of the program's own, or fields of a kind of its own.
    """
    space = _space_of(cls)
    if type(space.get("__annotations__", {})) is not dict:
        raise Unmetered("annotations of this kind cannot be metered")
    settings = list(options.values())
    for name, value in list(space.items()):
        default = value
        if isinstance(value, dataclasses.Field):
            if type(value) is not dataclasses.Field:
                raise Unmetered("a field of the program's own kind cannot be metered")
            settings += [value.init, value.repr, value.hash, value.compare, getattr(value, "kw_only", False)]
            default = value.default
            setattr(cls, name, copy.copy(value))  # what the program holds is not what the code is written from
        getters = [_space_of(base).get("__get__") for base in type.mro(type(default))]
        if any(getter is not None and type(getter) is not types.WrapperDescriptorType for getter in getters):
            raise Unmetered("a field whose default is a descriptor cannot be metered")
    if not all(type(one) is bool or one is None or one is dataclasses.MISSING for one in settings):
        raise Unmetered("a data class whose settings are not plain truth values cannot be metered")


def fields(owner: Any) -> tuple[Any, ...]:
    """``dataclasses.fields``: copies."""
    return tuple(map(copy.copy, dataclasses.fields(owner)))


def _charged(method: Any, name: str, names: tuple[str, ...], tick: Callable[[int], Any]) -> Any:
    """A method that a data class was given, charged for the fields that it reads."""

    def values(one: Any) -> tuple[Any, ...]:
        return tuple(getattr(one, field, None) for field in names)

    @functools.wraps(method)
    def charged(self: Any, *others: Any) -> Any:
        if name in _COMPARISONS:
            tick(1 + (comparison_work(values(self), values(*others)) if type(others[0]) is type(self) else 0))
        else:
            tick(1 + (deep(values(self)) // 4 if name == "__hash__" else shown(values(self))))
        return method(self, *others)

    return charged
