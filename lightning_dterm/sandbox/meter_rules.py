"""What the meter charges for work done in C. Tables and pure functions.

The divisors were calibrated on CPython 3.11: elements handled in the time of one counted operation (about 40 ns of
uninstrumented code): 4 where objects are compared, hashed or converted, 16 where references are copied, 128 where
memory is only moved, 64 characters of text.
"""

from __future__ import annotations

import operator
import types
from collections import deque
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SCAN, _COPY, _MOVE, _TEXT, _BITS = 4, 16, 128, 64, 1024

CONSTANT_FUNCTIONS = _words("""
    len isinstance issubclass ord chr callable id iter next range enumerate zip map filter reversed print type
    getattr setattr hasattr delattr abs hash object staticmethod classmethod property super bool float complex
    bin hex oct partial lru_cache cache wraps count repeat cycle chain islice accumulate groupby permutations
    combinations product combinations_with_replacement starmap takewhile dropwhile filterfalse zip_longest
    pairwise tee compress itemgetter namedtuple defaultdict random randint choice seed time perf_counter sqrt
    floor ceil log log2 log10 exp sin cos tan atan atan2 isclose isnan isinf fabs hypot degrees radians
    getrecursionlimit setrecursionlimit getitem setitem truth not_ is_ is_not length_hint wraps cast field
""")
_CONSTANT_METHODS = _words("""
    append add discard get setdefault keys values items popleft appendleft popitem move_to_end clear startswith
    endswith is_integer bit_length bit_count group span start end send close
    __getitem__ __setitem__ __delitem__ __len__ __iter__ __next__ __hash__ __bool__
""")
_DEEP = _words("""
    deepcopy str repr format dumps loads dump load pprint pformat asdict astuple sorted_json
""")
_LOGARITHMIC = _words("""
    heappush heappop heapreplace heappushpop bisect bisect_left bisect_right insort insort_left insort_right
""")
GROWING = frozenset({"mul", "imul", "pow", "ipow", "lshift", "ilshift", "mod", "imod", "floordiv", "ifloordiv"})
"""Operators whose work on large integers grows faster than their operands."""
OPERATE: dict[str, Any] = {
    name: getattr(operator, name)
    for plain in ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "xor", "matmul"]
    for name in (plain, "i" + plain)
}
OPERATE.update({"or_": operator.or_, "and_": operator.and_, "ior": operator.ior, "iand": operator.iand})
COMPARE_WITH: dict[str, Any] = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}


def size_of(value: Any) -> int:
    """Units for making or copying a value once."""
    kind = type(value)
    if issubclass(kind, int):
        return int.bit_length(value) // _BITS
    if issubclass(kind, (str, bytes, bytearray)):
        return elements(value) // _TEXT
    if issubclass(kind, (list, tuple, deque)):
        return elements(value) // _COPY
    return elements(value) // _SCAN if issubclass(kind, (set, frozenset, dict)) else 0


def integer_work(name: str, left: int, right: int) -> int:
    """Units of an operation on two integers: schoolbook multiplication and what builds on it."""
    bits, other = left.bit_length(), right.bit_length()
    if name in ("pow", "ipow") and right > 0:
        total = bits * min(right, 1 << 24)
        return total * total // (_BITS * 4096)
    if name in ("lshift", "ilshift"):
        return (bits + max(right, 0)) // _BITS
    return bits * other // (_BITS * 64)


_SIZED: tuple[Any, ...] = (
    list, tuple, set, frozenset, dict, str, bytes, bytearray, range, deque,
    type({}.keys()), type({}.values()), type({}.items()),
)  # fmt: skip


def elements(value: Any) -> int:
    """Length of a built-in container, text or range; 0 of anything else."""
    kind = type(value)
    if kind in _SIZED:
        return len(value)
    for base in _SIZED:
        if issubclass(kind, base):
            return int(base.__len__(value))  # whatever the subclass says
    return 0


_BOUND = (types.BuiltinMethodType, types.MethodType, types.MethodWrapperType)
_UNBOUND = (types.MethodDescriptorType, types.WrapperDescriptorType)
C_CALLABLES = (types.BuiltinMethodType, types.MethodWrapperType, *_UNBOUND, types.ClassMethodDescriptorType)
"""Types of functions written in C."""


def name_of(function: Any) -> str:
    """The name of a function or built-in class, from where a program cannot write it; else empty."""
    if type(function) in C_CALLABLES:
        name = function.__name__
    elif isinstance(function, type):
        mutable = function.__flags__ & 0x300 == 0x200  # Py_TPFLAGS_HEAPTYPE without Py_TPFLAGS_IMMUTABLETYPE
        name = "" if mutable else function.__name__
    elif type(function) is types.MethodType:
        return name_of(function.__func__)
    else:
        name = function.__code__.co_name if type(function) is types.FunctionType else ""
    return name if type(name) is str else ""


def charge_for(function: Any, args: tuple[Any, ...]) -> tuple[int, bool]:
    """Units to charge before a call of something that is not the program's own, and whether its result counts too."""
    name = name_of(function)
    owner = getattr(function, "__self__", None) if type(function) in _BOUND else None
    if owner is not None and not isinstance(owner, (types.ModuleType, type)):
        return _method(owner, name, args)
    if type(function) in _UNBOUND and args:
        return _method(args[0], name, args[1:])
    if name in CONSTANT_FUNCTIONS:
        return 0, False
    if isinstance(function, type) and function.__module__ == "program" and not issubclass(function, _SIZED[:-3]):
        return 1, False  # its own __init__ counts for itself
    first = args[0] if args else None
    if name in _LOGARITHMIC:
        return elements(first).bit_length() + (elements(first) // _MOVE if name.startswith("insort") else 0), False
    if name == "sorted":
        return _sorting(elements(first)), True
    if name in _DEEP:
        return _deep(first) // _SCAN + _digits(first), True
    if name in ("pow", "factorial", "comb", "perm") and all(isinstance(arg, int) for arg in args):
        return _number_theory(name, args), True
    if name == "int" and isinstance(first, str):
        return len(first) ** 2 // 8192, True
    units = sum(elements(arg) // (_TEXT if isinstance(arg, (str, bytes)) else _SCAN) for arg in args)
    return units * (4 if isinstance(function, types.FunctionType) else 1), True


def _method(owner: Any, name: str, args: tuple[Any, ...]) -> tuple[int, bool]:
    n = elements(owner)
    plain = name.strip("_")
    if plain in GROWING and type(owner) is int and len(args) == 1 and type(args[0]) is int:
        return integer_work(plain, owner, args[0]), True
    if name in ("__getitem__", "__setitem__", "__len__", "__iter__"):
        return 0, True
    if name == "__contains__" and not isinstance(owner, (list, tuple, deque, str, bytes, bytearray)):
        return 0, False
    read = sum(elements(arg) // (_TEXT if isinstance(arg, (str, bytes)) else _SCAN) for arg in args)
    if isinstance(owner, (list, deque)):
        if name == "sort":
            return _sorting(n), False
        if name in ("remove", "index", "count", "__contains__"):
            return n // _SCAN, False
        if name == "insert" or (name in ("pop", "__delitem__") and args):
            return n // _MOVE, False
        return (
            0 if name in ("append", "pop", "popleft", "appendleft") else n // _COPY if name != "extend" else 0
        ) + read, True
    if name in _CONSTANT_METHODS or (name == "pop" and isinstance(owner, (dict, set))):
        return 0, False
    if isinstance(owner, (str, bytes, bytearray)):
        return n // _TEXT + read, True
    if isinstance(owner, (set, frozenset, dict)):
        both = n if name not in ("update", "union", "intersection_update") else 0
        return both // _SCAN + read, name not in ("update", "difference_update", "symmetric_difference_update")
    return n // _SCAN + read, True


def _sorting(n: int) -> int:
    return n * n.bit_length() // _SCAN


def _number_theory(name: str, args: tuple[int, ...]) -> int:
    first, second = args[0], args[1] if len(args) > 1 else 1
    if name == "pow" and len(args) == 3:
        bits = args[2].bit_length()
        return second.bit_length() * (1 + bits * bits // (_BITS * 64)) // 2
    if name == "pow":
        return integer_work("pow", first, second)
    steps = max(0, first if name == "factorial" else min(first, abs(second)))
    return steps // 4 + steps * steps // 4096


def _digits(value: Any) -> int:
    return value.bit_length() ** 2 // (_BITS * 128) if isinstance(value, int) else 0


def _deep(value: Any) -> int:
    """Scalars and containers in a value, nested ones included; stops at a million."""
    count, pending, seen = 0, [value], set()
    while pending and count < 1_000_000:
        item = pending.pop()
        count += 1
        if isinstance(item, (str, bytes)):
            count += len(item) // _COPY
        elif isinstance(item, (list, tuple, set, frozenset, dict)) and id(item) not in seen:
            seen.add(id(item))
            pending += [*item, *(item.values() if isinstance(item, dict) else ())]
    return count


HIGHER = _words("""
    map filter starmap reduce sorted min max sort accumulate partial takewhile dropwhile filterfalse groupby iter
    nsmallest nlargest merge bisect bisect_left bisect_right insort insort_left insort_right sub subn cmp_to_key
    lru_cache cache dumps loads decorating_function
""")
"""Functions that call what they are given, classes included."""
KEEPERS = _words("""
    isinstance issubclass callable id hash repr print str type hasattr getattr setattr wraps _wraps cast is_ is_not
    _getattr _hasattr _setattr
""")
"""Functions that do not call what they are given."""
