"""Inputs of tests: varied, near the program's own constants, with edge cases, deterministic."""

from __future__ import annotations

import random
from typing import Any

from lightning_dterm.data.microcode.spec import Draw

_WORDS = [
    "apple",
    "tea",
    "level",
    "on",
    "sand",
    "noon",
    "ink",
    "stone",
    "a",
    "cell",
    "radar",
    "lion",
    "boot",
    "tent",
    "bird",
    "else",
    "oval",
    "rain",
    "nest",
    "dot",
    "seed",
    "pier",
    "salt",
    "idea",
    "river",
    "corn",
    "deed",
    "bell",
    "icon",
    "trees",
    "actor",
    "cabin",
    "dance",
    "east",
    "inner",
    "list",
    "notes",
    "order",
    "robin",
    "solo",
    "trial",
    "blue",
    "car",
    "dear",
]
_SYMBOLS = "aaeeiouubcdlnrst" + "ADELT" + "0379" + " -"


def _number(draw: Draw, hints: list[int]) -> int:
    if hints and draw.chance(0.35):
        return draw.pick(hints) + draw.integer(-1, 1)
    return draw.integer(-9, 15)


def _numbers(draw: Draw, hints: list[int], length: int) -> list[int]:
    # The loop of _number, without its calls: half the time of a task's inputs is spent here.
    uniform, count, values = draw.uniform(), len(hints), []
    for _ in range(length):
        if count and uniform() < 0.35:
            values.append(hints[int(uniform() * count)] + int(uniform() * 3) - 1)
        else:
            values.append(int(uniform() * 25) - 9)
    if length > 2 and draw.chance(0.4):
        values[-1] = values[0]
    return values


def _word(draw: Draw, letters: list[str]) -> str:
    word = draw.pick(_WORDS)
    if letters and draw.chance(0.4):
        letter = draw.pick(letters)
        word = letter + word if draw.chance(0.5) else word + letter
    return word


def _words(draw: Draw, letters: list[str], length: int) -> list[str]:
    words = [_word(draw, letters) for _ in range(length)]
    if length > 2 and draw.chance(0.3):
        words[-1] = words[0]
    return words


def _string(draw: Draw, letters: list[str], length: int) -> str:
    symbols = _SYMBOLS + "".join(letters) * 3
    uniform, count = draw.uniform(), len(symbols)
    return "".join([symbols[int(uniform() * count)] for _ in range(length)])


def _near(draw: Draw, hints: list[int], low: int) -> int:
    value = draw.pick(hints) + draw.integer(-1, 1) if hints and draw.chance(0.3) else draw.integer(low, 14)
    return max(low, value)


def make_input(
    draw: Draw, domain: tuple[str, ...], numbers: list[int], letters: list[str], length: int
) -> tuple[Any, ...]:
    """One argument tuple; collections have ``length`` items, where 0 is the empty edge case."""
    values: list[Any] = []
    for kind in domain:
        if kind in ("numbers", "others"):
            values.append(_numbers(draw, numbers, length))
        elif kind == "few":
            values.append([draw.integer(-2, 4) for _ in range(length)])
        elif kind == "number":
            values.append(_number(draw, numbers) if length else 0)
        elif kind == "count":
            values.append(_near(draw, numbers, 1) if length else 0)
        elif kind == "positive":
            values.append(_near(draw, numbers, 1) if length else 1)
        elif kind == "digits":
            values.append(draw.integer(1, 10 ** min(length, 6)) if length else 10)
        elif kind == "words":
            values.append(_words(draw, letters, length))
        elif kind == "string":
            values.append(_string(draw, letters, length * 2))
        elif kind == "word":
            values.append(_word(draw, letters) if length else "")
        elif kind == "table":
            keys = draw.shuffled(_WORDS)[:length]
            values.append({key: _number(draw, numbers) for key in keys})
        else:
            raise ValueError(f"unknown input kind {kind!r}")
    return tuple(values)


def make_inputs(draw: Draw, domain: tuple[str, ...], hints: tuple[int | str, ...], count: int) -> list[tuple[Any, ...]]:
    """``count`` distinct argument tuples, the empty edge case among them."""
    numbers = [hint for hint in hints if isinstance(hint, int)]
    letters = [hint for hint in hints if isinstance(hint, str) and hint.isalpha()]
    found: dict[str, tuple[Any, ...]] = {}
    for attempt in range(20 * count):
        length = 0 if not attempt else draw.integer(1 if attempt < 4 else 3, 7)
        arguments = make_input(draw, domain, numbers, letters, length)
        found.setdefault(repr(arguments), arguments)
        if len(found) == count:
            break
    return draw.shuffled(list(found.values()))


def large_input(domain: tuple[str, ...], hints: tuple[int | str, ...], size: int, seed: int = 0) -> tuple[Any, ...]:
    """A larger input of the same kind, for measuring cost."""
    draw = Draw(random.Random(seed).getrandbits(32))
    numbers = [hint for hint in hints if isinstance(hint, int)]
    letters = [hint for hint in hints if isinstance(hint, str) and hint.isalpha()]
    values = make_input(draw, domain, numbers, letters, size)
    return tuple(size if kind in ("count", "positive") else value for kind, value in zip(domain, values, strict=True))
