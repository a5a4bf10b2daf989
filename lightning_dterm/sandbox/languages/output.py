"""The parent's comparison of what a program printed or returned with what was expected. Pure."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

OutputRule = Literal["tokens", "lines", "exact"]
_MAX_DEPTH = 64
_MAX_DIGITS = 20_000


class Malformed(ValueError):
    """A claim that the driver would not have made."""


def same_output(printed: bytes, expected: str, rule: OutputRule = "tokens", tolerance: float | None = None) -> bool:
    """Whether a program printed what was expected.

    Args:
        printed: Standard output, UTF-8.
        expected: The expected output.
        rule: ``tokens``: white space folded; ``lines``: trailing blanks of lines and trailing lines ignored;
            ``exact``: byte for byte.
        tolerance: Relative and absolute tolerance of numbers, at least one of the two written as a float;
            None compares text. ``tokens`` only.

    Raises:
        ValueError: a tolerance with another rule, or a negative one.
    """
    if tolerance is not None and (rule != "tokens" or not tolerance >= 0):
        raise ValueError(
            f"same_output: tolerance must be at least 0 and needs rule 'tokens', got {tolerance}, {rule!r}."
        )
    if rule == "exact":
        return printed == expected.encode("utf-8", "surrogatepass")
    text = printed.decode("utf-8", "replace")
    if rule == "lines":
        return _lines(text) == _lines(expected)
    found, wanted = text.split(), expected.split()
    if len(found) != len(wanted):
        return False
    return all(one == other or _close(one, other, tolerance) for one, other in zip(found, wanted, strict=True))


def _lines(text: str) -> list[str]:
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n").split("\n")


def _close(found: str, wanted: str, tolerance: float | None) -> bool:
    if tolerance is None or not any(mark in word for word in (found, wanted) for mark in ".eE"):
        return False
    try:
        one, other = float(found), float(wanted)
    except ValueError:
        return False
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)


# --- values across languages ------------------------------------------------------------------------------------------


def encode(value: Any, depth: int = 0) -> Any:
    """Plain data as the JSON that drivers read: tuples are lists, everything JSON lacks is an object with one tag.

    Raises:
        ValueError: no plain data, or nested beyond 64.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"a value is nested deeper than {_MAX_DEPTH}")
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 53 else {"int": str(value)}
    if isinstance(value, float):
        return {"float": repr(value)}
    if isinstance(value, (list, tuple)):
        return [encode(item, depth + 1) for item in value]
    if isinstance(value, bytes):
        return list(value)
    if isinstance(value, (set, frozenset)):
        return {"set": [encode(item, depth + 1) for item in sorted(value, key=repr)]}
    if isinstance(value, dict):
        return {"map": [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in value.items()]}
    raise ValueError(f"{type(value).__name__} cannot be passed to a program in another language")


def decode(text: str) -> Any:
    """Parse one value that a driver printed; maps become lists of pairs under ``("map", ...)``, sets ``("set", ...)``.

    Raises:
        Malformed: not what a driver prints.
    """
    try:
        return _decode(json.loads(text, parse_int=_whole), 0)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"malformed value: {type(error).__name__}") from error


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise Malformed("number too long")
    return int(digits)


def _decode(data: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise Malformed("nested too deeply")
    if isinstance(data, list):
        return [_decode(item, depth + 1) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise Malformed("object without one tag")
    ((tag, content),) = data.items()
    if tag in ("int", "float"):
        if not isinstance(content, str):  # a number might be too large for a float
            raise Malformed("tagged number that is no text")
        return _whole(content) if tag == "int" else float(content)
    items = [_decode(item, depth + 1) for item in content] if isinstance(content, list) else None
    if tag not in ("set", "map") or items is None:
        raise Malformed("unknown tag")
    if tag == "map" and not all(isinstance(pair, list) and len(pair) == 2 for pair in items):
        raise Malformed("map without pairs")
    return (tag, items)


def same_value(returned: Any, expected: Any, language: str, tolerance: float = 1e-9) -> bool:
    """Whether a value from another language is the expected one.

    Sequences are equal whatever their kind; an integral number equals its float, since JavaScript has one kind of
    number; C has no booleans of its own, so 0 and 1 stand for them there; keys of JavaScript objects are strings. Text
    is never a number, a boolean never one outside C.
    """
    if isinstance(expected, bool):
        return returned is expected or (language in ("c", "cpp") and type(returned) is int and returned == expected)
    if expected is None:
        return returned is None
    if isinstance(expected, (int, float)):
        return _same_number(returned, expected, tolerance)
    if isinstance(expected, str):
        return isinstance(returned, str) and returned == expected
    if isinstance(expected, (list, tuple, bytes)):
        items = list(expected)
        return (
            isinstance(returned, list)
            and len(returned) == len(items)
            and all(same_value(one, other, language, tolerance) for one, other in zip(returned, items, strict=True))
        )
    if isinstance(expected, (set, frozenset)):
        return _tagged(returned, "set") and _matched(returned[1], list(expected), language, tolerance)
    if isinstance(expected, dict):
        pairs: list[Any] = [list(pair) for pair in expected.items()]
        if language == "javascript" and _tagged(returned, "map"):
            texts = all(isinstance(pair[0], str) for pair in returned[1])
            pairs = [[str(key) if texts else key, value] for key, value in pairs]
        return _tagged(returned, "map") and _matched(returned[1], pairs, language, tolerance)
    return False


def _tagged(value: Any, tag: str) -> bool:
    return isinstance(value, tuple) and value[0] == tag


def _same_number(returned: Any, expected: float, tolerance: float) -> bool:
    if isinstance(returned, bool) or not isinstance(returned, (int, float)):
        return False
    if isinstance(returned, int) and isinstance(expected, int):
        return returned == expected
    try:
        one, other = float(returned), float(expected)
    except OverflowError:
        return False
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    if isinstance(expected, int):
        return one == other
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=1e-12)


def _matched(found: list[Any], wanted: list[Any], language: str, tolerance: float) -> bool:
    """Equality of unordered collections, by taking away one match at a time."""
    if len(found) != len(wanted):
        return False
    rest = list(found)
    for one in wanted:
        match = next((i for i, other in enumerate(rest) if same_value(other, one, language, tolerance)), None)
        if match is None:
            return False
        del rest[match]
    return not rest
