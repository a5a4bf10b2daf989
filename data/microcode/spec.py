"""The vocabulary of MicroCode: paired Python / JavaScript / English pieces, and the random source that draws them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

T = TypeVar("T")

Segments = tuple[tuple[str, ...], ...]
"""A text as a sequence of slots; each slot lists interchangeable wordings, the canonical one first."""


class Draw:
    """A seeded source of choices, from ``random.Random.random`` alone, whose stream Python guarantees to be stable."""

    __slots__ = ("_next",)

    def __init__(self, seed: int) -> None:
        self._next: Callable[[], float] = random.Random(seed).random

    def uniform(self) -> Callable[[], float]:
        """The underlying source of floats in [0, 1), for loops that draw many choices themselves."""
        return self._next

    def pick(self, options: Sequence[T]) -> T:
        """One element, uniformly."""
        return options[int(self._next() * len(options))]

    def integer(self, low: int, high: int) -> int:
        """An integer in ``[low, high]``, uniformly."""
        return low + int(self._next() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._next() < probability

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """A random permutation, as a new list."""
        rest = list(options)
        for last in range(len(rest) - 1, 0, -1):
            other = int(self._next() * (last + 1))
            rest[last], rest[other] = rest[other], rest[last]
        return rest


class FirstChoices(Draw):
    """Draws the first option and the lowest constant always."""

    __slots__ = ()

    def __init__(self) -> None:
        self._next = float  # float() is 0.0


class Code(NamedTuple):
    """One expression in both languages."""

    py: str
    js: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A predicate or a mapping of one value.

    Attributes:
        name: Unique within its table; enters the shape of a program.
        py / js: Expression templates; ``{v}`` is the variable, ``{k}`` and ``{j}`` constants, ``{c}`` a letter.
        plural: Wordings about many values: a verb phrase for a predicate ("are even"), a prefix for a mapping
            ("the squares of ").
        single: Wordings about one value: "is even", "the square of {v}".
        tag: Word for function names.
        k / j: Ranges of the constants; ``j`` is added to ``k`` where ``relative`` is set.
        letters: Letters ``{c}`` is drawn from.
    """

    name: str
    py: str
    js: str
    plural: tuple[str, ...]
    single: tuple[str, ...]
    tag: str
    k: tuple[int, int] | None = None
    j: tuple[int, int] | None = None
    relative: bool = False
    letters: str = ""

    @property
    def constants(self) -> bool:
        """Whether any constant is drawn; the wordings of a piece without constants are fixed."""
        return bool(self.k or self.letters)


HOLES = tuple(Piece(f"hole{i}", f"(lambda {', '.join('abc'[:i])}: 0)", "", ("",), ("",), "hole") for i in range(3))
"""Stand-ins for any piece: expressions that no program contains, so that they can be found in a program's syntax."""


def by_name(pieces: Iterable[Piece]) -> dict[str, Piece]:
    """A table of ``pieces`` in which the stand-ins can be looked up, too."""
    return {piece.name: piece for piece in (*pieces, *HOLES)}


@dataclass(frozen=True, slots=True)
class Bound:
    """A piece with its constants drawn."""

    piece: Piece
    k: int
    j: int
    c: str

    def code(self, variable: str) -> Code:
        """The expression over ``variable`` in both languages."""
        piece = self.piece
        values = {"v": variable, "k": self.k, "j": self.j, "c": self.c}
        return Code(piece.py.format_map(values), piece.js.format_map(values))

    def plural(self) -> tuple[str, ...]:
        """Wordings about many values."""
        if not self.piece.constants:
            return self.piece.plural
        values = {"k": self.k, "j": self.j, "c": self.c}
        return tuple([text.format_map(values) for text in self.piece.plural])

    def single(self, variable: str) -> tuple[str, ...]:
        """Wordings about the value called ``variable``."""
        values = {"v": variable, "k": self.k, "j": self.j, "c": self.c}
        return tuple([text.format_map(values) for text in self.piece.single])

    def hints(self) -> tuple[int | str, ...]:
        """Constants that inputs should come near, so that tests tell this piece from its neighbours."""
        found: list[int | str] = []
        if self.piece.k is not None:
            found.append(self.k)
        if self.piece.j is not None:
            found.append(self.j)
        if self.piece.letters:
            found.append(self.c)
        return tuple(found)


def bind(piece: Piece, draw: Draw) -> Bound:
    """Draw the constants of ``piece``."""
    k = draw.integer(*piece.k) if piece.k else 0
    j = draw.integer(*piece.j) if piece.j else 0
    if piece.relative:
        j += k
    if piece.name == "remainder":
        j = draw.integer(1, k - 1)
    return Bound(piece, k, j, draw.pick(piece.letters) if piece.letters else "")
