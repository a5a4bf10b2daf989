"""Conditions of one value: a single predicate, or two joined by and / or, drawn by name and bound to constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_dterm.data.microcode.number_pieces import NUMBER_PREDICATES, SIGN_PREDICATES
from lightning_dterm.data.microcode.spec import Bound, Code, Draw, Piece, Segments, bind, by_name
from lightning_dterm.data.microcode.text_pieces import CHARACTER_PREDICATES, WORD_PREDICATES

ConditionShape = tuple[str, ...]
"""``()``, ``(name,)`` or ``(name, "and" | "or", name)``."""

PREDICATES: dict[str, tuple[Piece, ...]] = {
    "number": NUMBER_PREDICATES + SIGN_PREDICATES,
    "natural": NUMBER_PREDICATES,
    "word": WORD_PREDICATES,
    "character": CHARACTER_PREDICATES,
}
_BY_NAME = {kind: by_name(pieces) for kind, pieces in PREDICATES.items()}

# Pairs in which one predicate implies or excludes the other for most constants make degenerate programs.
_CLASHES = (
    {"even", "odd", "multiple", "rest", "remainder"},
    {"greater", "at_least", "positive", "between", "less", "at_most", "negative", "far", "square_below"},
    {"longer", "shorter", "sized", "even_length"},
    {"vowel", "consonant", "digit", "letter", "capital", "is", "is_not", "after", "before"},
)


def _pair_allowed(first: str, operator: str, second: str) -> bool:
    if first == second:
        return False
    if {first, second} <= {"vowel", "digit", "capital", "is", "before"}:
        return operator == "or"
    if {first, second} in ({"greater", "negative"}, {"at_least", "negative"}):
        return operator == "or"
    return not any({first, second} <= clash for clash in _CLASHES)


def _pairs(pieces: Sequence[Piece]) -> tuple[ConditionShape, ...]:
    names = [piece.name for piece in pieces]
    return tuple(
        (first, operator, second)
        for operator in ("and", "or")
        for first in names
        for second in names
        if _pair_allowed(first, operator, second)
    )


_OPPOSITES = (("==", "!="), ("!=", "=="), (">=", "<"), ("<=", ">"), (">", "<="), ("<", ">="))


def _flip_in(text: str) -> str:
    if " not in " in text:
        return text.replace(" not in ", " in ")
    return text.replace(" in ", " not in ")


_SINGLES = {kind: tuple((piece.name,) for piece in pieces) for kind, pieces in PREDICATES.items()}
_PAIRS = {kind: _pairs(pieces) for kind, pieces in PREDICATES.items()}


def draw_condition(draw: Draw, kind: str, pair: float = 0.2) -> ConditionShape:
    """A condition on a ``kind`` of value, compound with probability ``pair``."""
    return draw.pick(_PAIRS[kind] if draw.chance(pair) else _SINGLES[kind])


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition with its constants."""

    parts: tuple[Bound, ...]
    operator: str = ""

    def code(self, variable: str) -> Code:
        """The expression over ``variable``."""
        first = self.parts[0].code(variable)
        if not self.operator:
            return first
        second = self.parts[1].code(variable)
        symbol = "&&" if self.operator == "and" else "||"
        return Code(f"{first.py} {self.operator} {second.py}", f"{first.js} {symbol} {second.js}")

    def plural(self) -> Segments:
        """Wordings about many values ("are even and are above 3")."""
        return self._join([part.plural() for part in self.parts])

    def single(self, variable: str) -> Segments:
        """Wordings about one value ("is even and is above 3")."""
        return self._join([part.single(variable) for part in self.parts])

    def _join(self, wordings: list[tuple[str, ...]]) -> Segments:
        if not self.operator:
            return (wordings[0],)
        return (wordings[0], (f" {self.operator} ",), wordings[1])

    def hints(self) -> tuple[int | str, ...]:
        """Constants of all parts."""
        return tuple(hint for part in self.parts for hint in part.hints())

    def negated(self, variable: str) -> Code:
        """The opposite condition."""
        code = self.code(variable)
        words = code.py.split(" ")
        for word, opposite in _OPPOSITES:
            # A single comparison flips its operator; a chain or a compound condition is negated as a whole.
            if not self.operator and words.count(word) == 1 and words[-2] == word:
                script = {"==": ("===", "!=="), "!=": ("!==", "===")}.get(word, (word, opposite))
                return Code(
                    code.py.replace(f" {word} ", f" {opposite} "), code.js.replace(f" {script[0]} ", f" {script[1]} ")
                )
        if not self.operator and " " not in code.py:
            return Code(f"not {code.py}", f"!{code.js}")
        if not self.operator and " in " in code.py:
            return Code(_flip_in(code.py), f"!({code.js})")
        return Code(f"not ({code.py})", f"!({code.js})")

    @property
    def tag(self) -> str:
        """Word for function names."""
        return self.parts[0].piece.tag


def bind_condition(shape: ConditionShape, kind: str, draw: Draw) -> Condition:
    """Draw the constants of the condition ``shape``."""
    pieces = _BY_NAME[kind]
    parts = tuple([bind(pieces[name], draw) for name in shape[::2]])
    return Condition(parts, shape[1] if len(shape) > 1 else "")
