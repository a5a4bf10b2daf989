"""What the meter charges for work done in C, by what it is done to (see ``meter_sizes``). Tables and pure functions."""

from __future__ import annotations

import math
import operator
import re
import types
from array import array
from collections import Counter, deque
from decimal import Context
from fractions import Fraction
from typing import Any

from lightning_dterm.sandbox.meter_numbers import GROWING, exact_work, integer_work, linear, squared
from lightning_dterm.sandbox.meter_regex import Uncounted
from lightning_dterm.sandbox.meter_sizes import (
    BITS,
    COPY,
    EXACT,
    FLAT_TYPES,
    MOVE,
    SCALARS,
    SCAN,
    SET_LIKE,
    SIZED,
    TEXT,
    deep,
    elements,
    long_work,
    reach,
    shown,
    size_of,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LIBRARY = 16  # a call of a function that the standard library has in Python, and a turn of a loop of its own
_COPIES = 32  # copying one thing deeply, likewise

CONSTANT_FUNCTIONS = _words("""
    len ord chr callable id iter next range enumerate zip map filter reversed type
    getattr setattr hasattr delattr abs object staticmethod classmethod property super bool
    partial lru_cache cache wraps count repeat cycle chain islice accumulate groupby starmap takewhile dropwhile
    filterfalse zip_longest pairwise tee compress itemgetter namedtuple random randint choice seed time perf_counter
    sqrt floor ceil log log2 log10 exp sin cos tan atan atan2 isclose isnan isinf fabs hypot degrees radians
    getrecursionlimit setrecursionlimit truth not_ is_ is_not length_hint wraps cast field
    attrgetter
""")
_CONSTANT_METHODS = _words("""
    append add discard get setdefault keys values items popleft appendleft popitem move_to_end clear
    is_integer bit_length bit_count group span start end send close
    __getitem__ __setitem__ __delitem__ __len__ __iter__ __next__ __hash__ __bool__
""")
_DEEP = _words("""
    deepcopy str repr format dumps print hash ascii
""")
_POOLS = _words("permutations combinations combinations_with_replacement product")
_LOOKS_UP = _words("get setdefault pop add discard move_to_end __delitem__")
_LOGARITHMIC = _words("""
    heappush heappop heapreplace heappushpop bisect bisect_left bisect_right insort insort_left insort_right
""")
OPERATE: dict[str, Any] = {
    name: getattr(operator, name)
    for plain in ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "xor", "matmul"]
    for name in (plain, "i" + plain)
}
OPERATE.update({"or_": operator.or_, "and_": operator.and_, "ior": operator.ior, "iand": operator.iand})
COMPARE_WITH: dict[str, Any] = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}


def scan_work(container: Any, item: Any) -> int:
    """Units of comparing an item with all that a container holds; of looking it up in one with hashes."""
    kind = type(container)
    if issubclass(kind, SET_LIKE):
        return deep(item) // SCAN if issubclass(type(item), (tuple, frozenset)) else 0
    if issubclass(kind, range) and type(item) in (int, bool):
        return 0
    return 1 + (elements(container) if issubclass(type(item), FLAT_TYPES) else reach(container)) // SCAN


def operation_work(name: str, left: Any, right: Any) -> int:
    """Units of an operator beyond the size of its result."""
    kind, other = type(left), type(right)
    if issubclass(kind, int):
        if issubclass(other, int):
            return integer_work(name, left, right)
        return exact_work(name, left, right) if issubclass(other, EXACT) else 0
    if kind is float or kind is complex:
        return 0
    if issubclass(kind, EXACT) or issubclass(other, EXACT):
        return exact_work(name, left, right)
    if issubclass(kind, SET_LIKE):
        return _set_work(name, left, right)
    return shown(right) if name in ("mod", "imod") and issubclass(kind, (str, bytes, bytearray)) else 0


def _set_work(name: str, left: Any, right: Any) -> int:
    mine, others = elements(left), elements(right)
    if issubclass(type(left), Counter):
        return mine + others  # written in Python
    if name in ("and_", "iand"):
        return (min(mine, others) if issubclass(type(right), SET_LIKE) else mine + others) // SCAN
    return {"sub": mine, "isub": others, "xor": mine + others, "ixor": others, "ior": others}.get(name, 0) // SCAN


def comparison_work(left: Any, right: Any) -> int:
    """Units of comparing two values."""
    kind, other = type(left), type(right)
    if issubclass(kind, int) and issubclass(other, int):
        return min(int.bit_length(left), int.bit_length(right)) // BITS
    if issubclass(kind, EXACT) or issubclass(other, EXACT):
        return exact_work("eq", left, right)
    if kind in SCALARS or other in SCALARS:
        return min(size_of(left), size_of(right))
    if elements(right) < elements(left):
        left, right = right, left
    least = reach(left)
    return min(least, reach(right, least)) // SCAN


_DEFINED = type(re.compile("").search)  # "builtin_method", which types does not name; BuiltinMethodType before 3.11
_BOUND = (types.BuiltinMethodType, _DEFINED, types.MethodType, types.MethodWrapperType)
_UNBOUND = (types.MethodDescriptorType, types.WrapperDescriptorType)
C_CALLABLES = (types.BuiltinMethodType, _DEFINED, types.MethodWrapperType, *_UNBOUND, types.ClassMethodDescriptorType)
"""Types of functions written in C."""


def name_of(function: Any) -> str:
    """The name of a function or built-in class, from where a program cannot write it; else empty."""
    if type(function) in C_CALLABLES:
        name = function.__name__
    elif function is Counter:
        name = "Counter"
    elif isinstance(function, type):
        mutable = function.__flags__ & 0x300 == 0x200  # Py_TPFLAGS_HEAPTYPE without Py_TPFLAGS_IMMUTABLETYPE
        name = "" if mutable else function.__name__
    elif type(function) is types.MethodType:
        return name_of(function.__func__)
    else:
        name = function.__code__.co_name if type(function) is types.FunctionType else ""
    return name if type(name) is str else ""


def charge_for(function: Any, args: tuple[Any, ...]) -> tuple[int, int]:
    """Units to charge before a call of something that is not the program's own, and how often its result's size."""
    name = name_of(function)
    owner = getattr(function, "__self__", None) if type(function) in _BOUND else None
    if owner is not None and not isinstance(owner, (types.ModuleType, type)):
        units, results = _method(owner, name, args)
        library = type(function) is types.MethodType
        return (_LIBRARY * (units + 1), _LIBRARY * results) if library else (units, results)
    if type(function) in _UNBOUND and args:
        return _method(args[0], name, args[1:])
    if name in ("isinstance", "issubclass"):
        return long_work(args[-1]) if args else 0, 0
    if name in ("getitem", "setitem", "delitem"):
        return sum(map(long_work, args[1:2])), 0
    if name in _POOLS:
        return sum(max(elements(arg), arg if type(arg) is int else 0) for arg in args) // COPY, 0
    if name in CONSTANT_FUNCTIONS or (name == "hash" and isinstance(args[0] if args else None, int)):
        return linear(*args), 0
    if isinstance(function, type) and function.__module__ == "program" and not issubclass(function, SIZED[:-3]):
        return 1, 0  # its own __init__ counts for itself
    if name in _LOGARITHMIC:
        n = max(map(elements, args), default=0)
        ends = [
            list.__getitem__(heap, place)
            for heap in args[:1]
            if issubclass(type(heap), list) and elements(heap)
            for place in (0, -1)
        ]
        return (1 + max(map(long_work, [*args[1:], *ends]), default=0)) * n.bit_length() + (
            n // MOVE if name.startswith("insort") else 0
        ), 0
    if name in ("sorted", "min", "max", "heapify"):
        n = sum(map(reach, args))
        return _sorting(n) if name == "sorted" else n // SCAN, 1
    if name in _DEEP:
        units = sum(deep(arg, True) if name in ("deepcopy", "dumps") else shown(arg) for arg in args)
        return units * (_COPIES if name == "deepcopy" else 1), 1
    if name in ("pow", "fmod", "ldexp") and any(function is one for one in _OF_FLOATS):
        return linear(*args), 0
    if name in ("pow", "factorial", "comb", "perm") and all(isinstance(arg, int) for arg in args):
        return _number_theory(name, args), 1
    if name == "int" and args and isinstance(args[0], (str, bytes)):
        return len(args[0]) ** 2 // 8192, 1
    units = sum(elements(arg) // (TEXT if isinstance(arg, (str, bytes)) else SCAN) for arg in args)
    if name == "Counter":
        units += sum(elements(arg) for arg in args if isinstance(arg, str)) // SCAN
    if name in ("nlargest", "nsmallest", "merge") and not any(map(callable, args)):
        units = sum(map(reach, args)) // SCAN
    units += squared(*args) if name not in ("sum", "len", "bin", "hex", "oct", "float", "complex") else linear(*args)
    if any(isinstance(arg, EXACT) for arg in args):
        units += exact_work(name, *(arg for arg in args if isinstance(arg, (*EXACT, int))))
    return _in_python(function, name, args, units)


_OF_FLOATS = (math.pow, math.fmod, math.ldexp)


def _in_python(function: Any, name: str, args: tuple[Any, ...], units: int) -> tuple[int, int]:
    """A function of the standard library, or a class: what is written in Python takes longer."""
    if isinstance(function, type) and issubclass(function, Fraction):
        return units + _LIBRARY, _LIBRARY
    if name == "loads":
        return sum(map(elements, args)) // COPY, 1
    if not isinstance(function, types.FunctionType):
        return units, 1
    module = function.__globals__.get("__name__")
    if module == "copy" and name == "copy":
        return 0, 1
    if module == "re":
        return _LIBRARY + sum(map(elements, args[:1])) + _template(name, args[1:]) + units, 1
    return (4 * units + 1, 1) if module in ("heapq", "statistics") else (_LIBRARY * (units + 1), _LIBRARY)


def _method(owner: Any, name: str, args: tuple[Any, ...]) -> tuple[int, int]:
    n = elements(owner)
    plain = name.strip("_")
    if isinstance(owner, int):
        return _integer_method(owner, plain, args)
    if isinstance(owner, (*EXACT, Context)):
        return exact_work(plain, owner, *(arg for arg in args if isinstance(arg, (*EXACT, int, Context)))), 1
    if name in ("__getitem__", "__setitem__", "__len__", "__iter__"):
        return sum(map(long_work, args[:1])), 1
    if name == "format_map":
        return n // TEXT + sum(map(shown, args)), 1
    if name in ("startswith", "endswith"):
        return sum(long_work(arg) if isinstance(arg, tuple) else elements(arg) // TEXT for arg in args[:1]), 0
    if name == "__contains__" and issubclass(type(owner), SET_LIKE):
        return scan_work(owner, args[0]) if args else 0, 0
    if name in _LOOKS_UP and isinstance(owner, (dict, set)) and args:
        return long_work(args[0]), 0
    if name == "format" and isinstance(owner, str):
        return n // TEXT + sum(map(shown, args)), 1
    if name in ("scanner", "__reduce__", "__reduce_ex__"):
        raise Uncounted(f"{name!r} cannot be metered")
    read = sum(elements(arg) // (TEXT if isinstance(arg, (str, bytes)) else SCAN) for arg in args)
    if isinstance(owner, (list, deque, tuple, array, range)):
        return _sequence_method(owner, name, args, n, read)
    if name in _CONSTANT_METHODS or (name == "pop" and isinstance(owner, (dict, set))):
        return 0, 0
    if isinstance(owner, re.Pattern):
        return read + linear(*args) + _template(name, args), 1
    if isinstance(owner, (str, bytes, bytearray)):
        return n // TEXT * _needles(args) + read, 1
    if isinstance(owner, (set, frozenset, dict)):
        both = n if name not in ("update", "union", "intersection_update") else 0
        return both // SCAN + read, int(name not in ("update", "difference_update", "symmetric_difference_update"))
    return n // SCAN + read + linear(*args), 1


def _template(name: str, args: tuple[Any, ...]) -> int:
    """Units of reading what a match is replaced with, in Python, where it is more than a text."""
    text = args[0] if args and name in ("sub", "subn") else None
    special = "\\" in text if isinstance(text, str) else isinstance(text, bytes) and b"\\" in text
    return 4 * elements(text) if special else 0


def _needles(args: tuple[Any, ...]) -> int:
    """How often a text may be read where a longer one is looked for in it (CPython's two-way search has its limits)."""
    longest = max((elements(arg) for arg in args if isinstance(arg, (str, bytes, bytearray))), default=0)
    return 1 + min(longest, 100) // 16


def _integer_method(owner: int, plain: str, args: tuple[Any, ...]) -> tuple[int, int]:
    if args and isinstance(args[0], int):
        if plain == "pow" and len(args) == 2:
            return _number_theory("pow", (owner, *args)), 1
        operator = plain if plain in GROWING or plain == "divmod" else plain[1:]
        if operator in GROWING or operator == "divmod":
            return max(integer_work(operator, owner, args[0]), integer_work(operator, args[0], owner)), 1
    return squared(owner) if plain in ("str", "repr", "format") else linear(owner, *args), 1


def _sequence_method(owner: Any, name: str, args: tuple[Any, ...], n: int, read: int) -> tuple[int, int]:
    if name == "sort":
        return _sorting(reach(owner)), 0
    if name in ("remove", "index", "count", "__contains__"):
        return scan_work(owner, args[0] if args else None), 0
    if name == "insert" or (name in ("pop", "__delitem__") and args):
        return n // MOVE, 0
    copied = 0 if name in ("append", "pop", "popleft", "appendleft", "extend") else n // COPY
    return copied + read, 1


def _sorting(n: int) -> int:
    return n * n.bit_length() // SCAN


def _number_theory(name: str, args: tuple[int, ...]) -> int:
    numbers = [int.__int__(arg) for arg in args]
    first, second = numbers[0], numbers[1] if len(numbers) > 1 else 1
    if name == "pow" and len(numbers) == 3:
        bits = numbers[2].bit_length()
        return linear(first) + second.bit_length() * (1 + bits * bits // (BITS * 64)) // 2
    if name == "pow":
        return integer_work("pow", first, second)
    steps = max(0, first if name == "factorial" else min(first, abs(second)))
    return steps // 4 + steps * steps // 4096


HIGHER = _words("""
    map filter starmap reduce sorted min max sort accumulate partial takewhile dropwhile filterfalse groupby iter
    nsmallest nlargest merge bisect bisect_left bisect_right insort insort_left insort_right sub subn cmp_to_key
    lru_cache cache dumps loads decorating_function property staticmethod classmethod cached_property
""")
"""Functions that call what they are given, classes included."""
KEEPERS = _words("""
    isinstance issubclass callable id hash repr print str type hasattr getattr setattr wraps _wraps cast is_ is_not
    _getattr _hasattr _setattr
""")
"""Functions that do not call what they are given."""
