"""The vocabulary of MicroCode: paired Python / JavaScript / English pieces, and the random source that draws them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

T = TypeVar("T")

Segments = tuple[tuple[str, ...], ...]
"""A text as a sequence of slots; each slot lists interchangeable wordings, the canonical one first."""


class Draw:
    """A seeded source of choices built on ``random.Random.random`` only, whose stream Python guarantees to be stable."""

    __slots__ = ("_next",)

    def __init__(self, seed: int) -> None:
        self._next = random.Random(seed).random

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


def _adjective(
    name: str, py: str, js: str, words: tuple[str, ...], tag: str, k: tuple[int, int] | None = None,
    j: tuple[int, int] | None = None, relative: bool = False,
) -> Piece:
    """A number predicate whose wording is an adjective phrase."""
    plural = tuple("are " + word for word in words)
    return Piece(name, py, js, plural, tuple("is " + word for word in words), tag, k, j, relative)


NUMBER_PREDICATES = (
    _adjective("even", "{v} % 2 == 0", "{v} % 2 === 0", ("even", "divisible by 2"), "even"),
    _adjective("odd", "{v} % 2 != 0", "{v} % 2 !== 0", ("odd", "not even"), "odd"),
    _adjective("multiple", "{v} % {k} == 0", "{v} % {k} === 0", ("divisible by {k}", "evenly divisible by {k}"), "divisible", (3, 6)),
    _adjective("rest", "{v} % {k} != 0", "{v} % {k} !== 0", ("not divisible by {k}", "indivisible by {k}"), "other", (3, 6)),
    _adjective("greater", "{v} > {k}", "{v} > {k}", ("greater than {k}", "above {k}", "larger than {k}"), "large", (1, 9)),
    _adjective("less", "{v} < {k}", "{v} < {k}", ("less than {k}", "below {k}", "smaller than {k}"), "small", (2, 9)),
    _adjective("at_least", "{v} >= {k}", "{v} >= {k}", ("at least {k}", "no less than {k}"), "big", (2, 9)),
    _adjective("at_most", "{v} <= {k}", "{v} <= {k}", ("at most {k}", "no more than {k}"), "low", (2, 9)),
    _adjective("unlike", "{v} != {k}", "{v} !== {k}", ("not equal to {k}", "different from {k}"), "unlike", (1, 9)),
    _adjective("between", "{k} <= {v} <= {j}", "{k} <= {v} && {v} <= {j}", ("between {k} and {j}", "from {k} to {j}"), "between", (1, 5), (2, 6), True),
    _adjective("far", "abs({v}) > {k}", "Math.abs({v}) > {k}", ("farther than {k} from 0", "more than {k} away from 0"), "far", (2, 6)),
    _adjective("remainder", "{v} % {k} == {j}", "(({v} % {k}) + {k}) % {k} === {j}", ("equal to {j} modulo {k}", "congruent to {j} modulo {k}"), "modulo", (3, 5), (1, 1)),
    _adjective("square_below", "{v} * {v} < {k}", "{v} * {v} < {k}", ("below {k} when squared", "less than {k} when squared"), "near", (10, 60)),
)
SIGN_PREDICATES = (
    _adjective("positive", "{v} > 0", "{v} > 0", ("positive", "greater than 0"), "positive"),
    _adjective("negative", "{v} < 0", "{v} < 0", ("negative", "less than 0"), "negative"),
)

NUMBER_MAPS = (
    Piece("same", "{v}", "{v}", ("",), ("{v}",), ""),
    Piece("square", "{v} * {v}", "{v} * {v}", ("the squares of ", "the squared values of "), ("the square of {v}", "{v} squared"), "squares"),
    Piece("power", "{v}**{k}", "{v} ** {k}", ("power {k} of ", "the powers with exponent {k} of "), ("power {k} of {v}", "{v} to the power {k}"), "powers", (2, 3)),
    Piece("double", "2 * {v}", "2 * {v}", ("twice ", "the doubles of "), ("twice {v}", "the double of {v}"), "doubles"),
    Piece("times", "{v} * {k}", "{v} * {k}", ("{k} times ", "the {k}-fold of "), ("{k} times {v}", "{v} times {k}"), "multiples", (3, 9)),
    Piece("plus", "{v} + {k}", "{v} + {k}", ("{k} more than ", "{k} plus "), ("{k} more than {v}", "{k} plus {v}"), "raised", (1, 9)),
    Piece("less", "{v} - {k}", "{v} - {k}", ("{k} less than ", "{k} fewer than "), ("{k} less than {v}", "{v} minus {k}"), "lowered", (1, 9)),
    Piece("from", "{k} - {v}", "{k} - {v}", ("{k} minus ", "the differences of {k} and "), ("{k} minus {v}", "the difference of {k} and {v}"), "differences", (5, 20)),
    Piece("abs", "abs({v})", "Math.abs({v})", ("the absolute values of ", "the magnitudes of "), ("the absolute value of {v}", "the magnitude of {v}"), "sizes"),
    Piece("negate", "-{v}", "-{v}", ("the negatives of ", "the opposites of "), ("the negative of {v}", "the opposite of {v}"), "negatives"),
    Piece("quotient", "{v} // {k}", "Math.floor({v} / {k})", ("the floor quotients by {k} of ", "the rounded-down quotients by {k} of "), ("the floor quotient by {k} of {v}", "the rounded-down quotient by {k} of {v}"), "parts", (2, 5)),
    Piece("modulo", "{v} % {k}", "(({v} % {k}) + {k}) % {k}", ("the remainders modulo {k} of ", "the residues modulo {k} of "), ("the remainder modulo {k} of {v}", "the residue modulo {k} of {v}"), "remainders", (3, 7)),
    Piece("cap", "min({v}, {k})", "Math.min({v}, {k})", ("the minimum of {k} and ", "the smaller of {k} and "), ("the minimum of {k} and {v}", "the smaller of {k} and {v}"), "capped", (3, 9)),
    Piece("floor", "max({v}, {k})", "Math.max({v}, {k})", ("the maximum of {k} and ", "the larger of {k} and "), ("the maximum of {k} and {v}", "the larger of {k} and {v}"), "floored", (1, 6)),
    Piece("square_plus", "{v} * {v} + {k}", "{v} * {v} + {k}", ("{k} more than the squares of ", "{k} plus the squares of "), ("{k} more than the square of {v}", "{k} plus the square of {v}"), "values", (1, 9)),
    Piece("linear", "{k} * {v} + {j}", "{k} * {v} + {j}", ("{j} more than {k} times ", "{j} plus {k} times "), ("{j} more than {k} times {v}", "{j} plus {k} times {v}"), "values", (2, 5), (1, 9)),
)

_LETTERS = "abcdeilnorst"
WORD_PREDICATES = (
    Piece("longer", "len({v}) > {k}", "{v}.length > {k}", ("have more than {k} letters", "are longer than {k}"), ("has more than {k} letters", "is longer than {k}"), "long", (2, 5)),
    Piece("shorter", "len({v}) < {k}", "{v}.length < {k}", ("have fewer than {k} letters", "are shorter than {k}"), ("has fewer than {k} letters", "is shorter than {k}"), "short", (3, 6)),
    Piece("sized", "len({v}) == {k}", "{v}.length === {k}", ("have exactly {k} letters", "have length {k}"), ("has exactly {k} letters", "has length {k}"), "sized", (2, 5)),
    Piece("even_length", "len({v}) % 2 == 0", "{v}.length % 2 === 0", ("have an even length", "have an even number of letters"), ("has an even length", "has an even number of letters"), "even"),
    Piece("starts", '{v}.startswith("{c}")', '{v}.startsWith("{c}")', ("start with '{c}'", "begin with '{c}'"), ("starts with '{c}'", "begins with '{c}'"), "starting", letters=_LETTERS),
    Piece("ends", '{v}.endswith("{c}")', '{v}.endsWith("{c}")', ("end with '{c}'", "end in '{c}'"), ("ends with '{c}'", "ends in '{c}'"), "ending", letters=_LETTERS),
    Piece("contains", '"{c}" in {v}', '{v}.includes("{c}")', ("contain '{c}'", "include '{c}'"), ("contains '{c}'", "includes '{c}'"), "with", letters=_LETTERS),
    Piece("lacks", '"{c}" not in {v}', '!{v}.includes("{c}")', ("do not contain '{c}'", "lack '{c}'"), ("does not contain '{c}'", "lacks '{c}'"), "without", letters=_LETTERS),
    Piece("palindrome", "{v} == {v}[::-1]", '{v} === [...{v}].reverse().join("")', ("are palindromes", "read the same backwards"), ("is a palindrome", "reads the same backwards"), "mirrored"),
)

WORD_MAPS = (
    Piece("same", "{v}", "{v}", ("",), ("{v}",), ""),
    Piece("upper", "{v}.upper()", "{v}.toUpperCase()", ("the upper-case forms of ", "the capital forms of "), ("{v} in upper case", "{v} in capitals"), "upper"),
    Piece("reverse", "{v}[::-1]", '[...{v}].reverse().join("")', ("the reverses of ", "the reversed forms of "), ("the reverse of {v}", "{v} reversed"), "reversed"),
    Piece("prefix", "{v}[:{k}]", "{v}.slice(0, {k})", ("the first {k} letters of ", "the leading {k} letters of "), ("the first {k} letters of {v}", "the leading {k} letters of {v}"), "prefixes", (1, 3)),
    Piece("tail", "{v}[{k}:]", "{v}.slice({k})", ("all but the first {k} letters of ", "what follows the first {k} letters of "), ("all but the first {k} letters of {v}", "what follows the first {k} letters of {v}"), "tails", (1, 2)),
    Piece("suffixed", '{v} + "{c}"', '{v} + "{c}"', ("'{c}' appended to ", "'{c}' added after "), ("'{c}' appended to {v}", "'{c}' added after {v}"), "suffixed", letters="sxyz"),
    Piece("prefixed", '"{c}" + {v}', '"{c}" + {v}', ("'{c}' put before ", "'{c}' added before "), ("'{c}' put before {v}", "'{c}' added before {v}"), "prefixed", letters="sxyz"),
    Piece("repeat", "{v} * {k}", "{v}.repeat({k})", ("{k} copies of ", "{k} repetitions of "), ("{k} copies of {v}", "{k} repetitions of {v}"), "repeated", (2, 3)),
)
WORD_MEASURES = (
    Piece("length", "len({v})", "{v}.length", ("the lengths of ", "the numbers of letters of "), ("the length of {v}", "the number of letters of {v}"), "lengths"),
    Piece("occurrences", '{v}.count("{c}")', '{v}.split("{c}").length - 1', ("the counts of '{c}' in ", "the numbers of '{c}' in "), ("the count of '{c}' in {v}", "the number of '{c}' in {v}"), "counts", letters=_LETTERS),
    Piece("length_plus", "len({v}) + {k}", "{v}.length + {k}", ("{k} more than the lengths of ", "{k} plus the lengths of "), ("{k} more than the length of {v}", "{k} plus the length of {v}"), "lengths", (1, 5)),
    Piece("length_times", "len({v}) * {k}", "{v}.length * {k}", ("{k} times the lengths of ", "the {k}-fold lengths of "), ("{k} times the length of {v}", "the {k}-fold length of {v}"), "lengths", (2, 5)),
)

CHARACTER_PREDICATES = (
    Piece("vowel", '{v} in "aeiou"', '"aeiou".includes({v})', ("are small vowels", "are one of 'aeiou'"), ("is a small vowel", "is one of 'aeiou'"), "vowels"),
    Piece("consonant", '{v} not in "aeiou"', '!"aeiou".includes({v})', ("are not small vowels", "are none of 'aeiou'"), ("is not a small vowel", "is none of 'aeiou'"), "others"),
    Piece("digit", "{v}.isdigit()", "/[0-9]/.test({v})", ("are digits", "are decimal digits"), ("is a digit", "is a decimal digit"), "digits"),
    Piece("letter", "{v}.isalpha()", "/[a-zA-Z]/.test({v})", ("are letters", "are alphabetic"), ("is a letter", "is alphabetic"), "letters"),
    Piece("capital", "{v}.isupper()", "/[A-Z]/.test({v})", ("are upper case", "are capital letters"), ("is upper case", "is a capital letter"), "capitals"),
    Piece("is", '{v} == "{c}"', '{v} === "{c}"', ("are '{c}'", "are equal to '{c}'"), ("is '{c}'", "is equal to '{c}'"), "equal", letters=_LETTERS),
    Piece("is_not", '{v} != "{c}"', '{v} !== "{c}"', ("are not '{c}'", "are different from '{c}'"), ("is not '{c}'", "is different from '{c}'"), "unlike", letters=_LETTERS),
    Piece("after", '{v} > "{c}"', '{v} > "{c}"', ("come after '{c}' in ASCII", "are greater than '{c}'"), ("comes after '{c}' in ASCII", "is greater than '{c}'"), "late", letters="deilno"),
    Piece("before", '{v} < "{c}"', '{v} < "{c}"', ("come before '{c}' in ASCII", "are less than '{c}'"), ("comes before '{c}' in ASCII", "is less than '{c}'"), "early", letters="deilno"),
)
CHARACTER_MAPS = (
    Piece("same", "{v}", "{v}", ("",), ("{v}",), ""),
    Piece("upper", "{v}.upper()", "{v}.toUpperCase()", ("the upper-case forms of ", "the capital forms of "), ("{v} in upper case", "{v} in capitals"), "upper"),
    Piece("lower", "{v}.lower()", "{v}.toLowerCase()", ("the lower-case forms of ", "the small forms of "), ("{v} in lower case", "{v} in small letters"), "lower"),
    Piece("repeat", "{v} * {k}", "{v}.repeat({k})", ("{k} copies of ", "{k} repetitions of "), ("{k} copies of {v}", "{k} repetitions of {v}"), "repeated", (2, 3)),
    Piece("marked", '{v} + "{c}"', '{v} + "{c}"', ("'{c}' appended to ", "'{c}' added after "), ("'{c}' appended to {v}", "'{c}' added after {v}"), "marked", letters="-_.*"),
    Piece("led", '"{c}" + {v}', '"{c}" + {v}', ("'{c}' put before ", "'{c}' added before "), ("'{c}' put before {v}", "'{c}' added before {v}"), "marked", letters="-_.*"),
)
