"""Which classes a metered program may make: none whose methods or fields would be work, or names, past the meter."""

from __future__ import annotations

import abc
import builtins
import dataclasses
import enum
import functools
import types
from typing import Any

from lightning_dterm.sandbox.meter_rules import C_CALLABLES
from lightning_dterm.sandbox.meter_source import Unmetered, check_name


def _is_meta(value: Any) -> bool:
    return issubclass(type(value), type) and type.__subclasscheck__(type, value)


def check_class(function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse classes made by calls: their attributes would have names that are not in the program."""
    if isinstance(function, enum.EnumMeta) and len(args) + len(kwargs) > 1:
        raise Unmetered("an enumeration made by a call cannot be metered")
    if len(args) + len(kwargs) < 2 or name in ("isinstance", "issubclass"):
        return
    owner = getattr(function, "__self__", None) if type(function) in (*C_CALLABLES, types.MethodType) else None
    if any(map(_is_meta, (function, owner, *args))):
        raise Unmetered("a class made by a call cannot be metered")


def build_class(function: Any, name: str, /, *bases: Any, **options: Any) -> Any:
    """What a ``class`` statement calls: refuses metaclasses, and special methods that would work past the meter."""
    if any(map(_is_meta, bases)) or options.get("metaclass", type) not in (type, abc.ABCMeta):
        raise Unmetered("a metaclass cannot be metered")
    made = builtins.__build_class__(function, name, *bases, **options)
    for name, value in type.__dict__["__dict__"].__get__(made).items() if isinstance(made, type) else ():
        if name.startswith("__") and name not in ("__class__", "__doc__") and _hides_work(name, value):
            raise Unmetered(f"{name!r} that is no function of the program's cannot be metered")
    return made


def _hides_work(name: str, value: Any) -> bool:
    """Whether a special method is some function that Python itself would call, past the meter."""
    if type(value) in C_CALLABLES or type(value) in _CALLERS:
        return getattr(value, "__name__", "") != name
    if type(value) is types.FunctionType and value.__globals__.get("__name__") in _LIBRARIES:
        return True
    return type(value) is type


_CALLERS = (functools.partial, types.MethodType, type(functools.lru_cache(len)))
_LIBRARIES = frozenset({"statistics", "heapq", "random", "copy", "textwrap", "re", "json", "string"})


def dataclass(cls: Any = None, /, **options: Any) -> Any:
    """``dataclasses.dataclass``, which writes code with the names of fields in it."""
    if cls is None:
        return lambda made: dataclass(made, **options)
    if type(cls) not in (type, abc.ABCMeta):
        raise Unmetered("a data class of this kind cannot be metered")
    for base in type.mro(cls):
        space = type.__dict__["__dict__"].__get__(base)
        fields = space.get("__dataclass_fields__", {})
        names = [*space.get("__annotations__", {}), *fields, *(field.name for field in fields.values())]
        if base is not object and not all(type(name) is str and name.isidentifier() for name in names):
            raise Unmetered("fields whose names are no identifiers cannot be metered")
        for name in names:
            check_name(name.lstrip("_") or name)
    return dataclasses.dataclass(**options)(cls)
