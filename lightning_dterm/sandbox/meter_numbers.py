"""What the meter charges for arithmetic with numbers of any length. Tables and pure functions.

Calibrated on CPython 3.11 as ``meter_rules`` is. The algorithms are those of the interpreter's own arithmetic: linear
addition, schoolbook products and quotients (an upper bound where Karatsuba's or a transform is used), and series that
take as many products as there are words.
"""

from __future__ import annotations

from decimal import Context, Decimal, getcontext
from fractions import Fraction
from typing import Any

BITS = 1024  # that are added in the time of one operation
WIDE = 128  # bits from which an integer's size matters
_SQUARE = 1 << 16  # products of one bit with one bit, likewise
_FRACTION = 20  # Fraction is written in Python
_DIGITS_PER_WORD = 19
_SMALL_WORDS = 4  # of a Decimal that needs no memory of its own
_EMPTY = Decimal.__sizeof__(Decimal(0))
GROWING = frozenset({"mul", "imul", "pow", "ipow", "lshift", "ilshift", "mod", "imod", "floordiv", "ifloordiv"})
"""Operators whose work on large integers grows faster than their operands."""
_NUMERATOR, _DENOMINATOR = (vars(Fraction)[name].__get__ for name in ("_numerator", "_denominator"))


def integer(value: int) -> int:
    """The exact integer in an instance of a subclass, whatever the subclass says."""
    return int.__int__(value)


def integer_work(name: str, left: int, right: int) -> int:
    """Units of an operation on two integers."""
    left, right = integer(left), integer(right)
    bits, other = left.bit_length(), right.bit_length()
    if bits <= WIDE and other <= WIDE and name not in GROWING:
        return 0
    if name in ("pow", "ipow") and bits <= 1:
        return 0  # of 0, 1 and -1
    if name in ("pow", "ipow") and right > 0:
        total = bits * min(right, 1 << 24)
        return total * total // (BITS * 4096)
    if name in ("lshift", "ilshift"):
        return (bits + max(right, 0)) // BITS
    if name in ("mul", "imul"):
        return max(bits, other) * (min(bits, other) + 64) // _SQUARE
    if name in GROWING or name in ("divmod", "truediv", "itruediv"):
        return bits * max(other, 256) // _SQUARE
    return max(bits, other) // BITS


def squared(*values: Any) -> int:
    """Units of a function of integers (``gcd``, ``isqrt``, text in decimal...) that does no more than products."""
    bits = sum(int.bit_length(value) for value in values if isinstance(value, int))
    return bits * bits // _SQUARE


def linear(*values: Any) -> int:
    """Units of reading integers once."""
    return sum(int.bit_length(value) for value in values if isinstance(value, int)) // (BITS // 4)


def words(value: Any) -> int:
    """Words of memory of a Decimal; of anything else, what it would need as one."""
    if isinstance(value, Decimal):
        return _SMALL_WORDS + max(0, Decimal.__sizeof__(value) - _EMPTY) // 8
    return _SMALL_WORDS + int.bit_length(value) // 64 if isinstance(value, int) else _SMALL_WORDS


def fraction_bits(value: Any) -> int:
    """Bits of a fraction, or of an integer next to one."""
    if isinstance(value, Fraction):
        return int.bit_length(_NUMERATOR(value)) + int.bit_length(_DENOMINATOR(value))
    return int.bit_length(value) if isinstance(value, int) else 64


def exact_work(name: str, *values: Any) -> int:
    """Units of an operation on Decimals or Fractions (also by their methods, or a Context's)."""
    if any(isinstance(value, (Decimal, Context)) for value in values):
        return _decimal_work(name.strip("_"), values)
    bits = sum(map(fraction_bits, values))
    if name.strip("_") in ("pow", "ipow") and isinstance(values[-1], int):
        bits *= 1 + min(abs(integer(values[-1])), 1 << 24)
    return _FRACTION + bits * bits // _SQUARE


def _decimal_work(name: str, values: tuple[Any, ...]) -> int:
    contexts = [value for value in values if isinstance(value, Context)]
    precision = max(context.prec for context in [getcontext(), *contexts]) // _DIGITS_PER_WORD + 1
    size = sum(words(value) for value in values if not isinstance(value, Context))
    plain = name[1:] if name[:1] in ("i", "r") and name not in ("is_nan", "is_zero") else name
    if plain in ("add", "sub", "eq", "ne", "lt", "le", "gt", "ge", "or_", "and_") or name in _READERS:
        return size
    if plain in ("mul", "multiply"):
        return size * size // 16
    if plain in ("pow", "power") and values[1:] and isinstance(values[-1], int):
        return 2 * min(integer(values[-1]).bit_length(), 64) * (1 + (size + precision) ** 2 // 16)
    if plain in ("truediv", "floordiv", "mod", "divmod", "divide", "div"):
        return (size + precision) ** 2 // 4
    if name in ("sqrt", "quantize", "scaleb", "fma", "normalize", "round"):
        return 4 * (size + precision) ** 2 if name == "sqrt" else size + precision
    return (size + precision) ** 3  # exp, ln, log10, powers, and whatever else there may be


_NAMES = """
    add subtract compare copy_abs copy_negate copy_sign abs neg pos adjusted as_tuple as_integer_ratio
    conjugate is_nan is_zero is_finite is_infinite is_normal is_signed is_snan is_qnan is_subnormal
    is_canonical max min max_mag min_mag number_class canonical to_integral to_integral_value
    to_integral_exact to_eng_string to_sci_string create_decimal create_decimal_from_float from_float copy
    logb radix same_quantum next_minus next_plus clear_flags clear_traps bool float trunc floor ceil hash
"""
_READERS = frozenset(_NAMES.split())
"""Names of methods that do no more than read their operands."""
