"""Predicates and mappings of numbers."""

from __future__ import annotations

from lightning_dterm.data.microcode.spec import Piece


def _adjective(
    name: str,
    py: str,
    js: str,
    words: tuple[str, ...],
    tag: str,
    k: tuple[int, int] | None = None,
    j: tuple[int, int] | None = None,
    relative: bool = False,
) -> Piece:
    """A number predicate whose wording is an adjective phrase."""
    plural = tuple("are " + word for word in words)
    return Piece(name, py, js, plural, tuple("is " + word for word in words), tag, k, j, relative)


NUMBER_PREDICATES = (
    _adjective("even", "{v} % 2 == 0", "{v} % 2 === 0", ("even", "divisible by 2"), "even"),
    _adjective("odd", "{v} % 2 != 0", "{v} % 2 !== 0", ("odd", "not even"), "odd"),
    _adjective(
        "multiple",
        "{v} % {k} == 0",
        "{v} % {k} === 0",
        ("divisible by {k}", "evenly divisible by {k}"),
        "divisible",
        (3, 6),
    ),
    _adjective(
        "rest", "{v} % {k} != 0", "{v} % {k} !== 0", ("not divisible by {k}", "indivisible by {k}"), "other", (3, 6)
    ),
    _adjective(
        "greater", "{v} > {k}", "{v} > {k}", ("greater than {k}", "above {k}", "larger than {k}"), "large", (1, 9)
    ),
    _adjective("less", "{v} < {k}", "{v} < {k}", ("less than {k}", "below {k}", "smaller than {k}"), "small", (2, 9)),
    _adjective("at_least", "{v} >= {k}", "{v} >= {k}", ("at least {k}", "no less than {k}"), "big", (2, 9)),
    _adjective("at_most", "{v} <= {k}", "{v} <= {k}", ("at most {k}", "no more than {k}"), "low", (2, 9)),
    _adjective("unlike", "{v} != {k}", "{v} !== {k}", ("not equal to {k}", "different from {k}"), "unlike", (1, 9)),
    _adjective(
        "between",
        "{k} <= {v} <= {j}",
        "{k} <= {v} && {v} <= {j}",
        ("between {k} and {j}", "from {k} to {j}"),
        "between",
        (1, 5),
        (2, 6),
        True,
    ),
    _adjective(
        "far",
        "abs({v}) > {k}",
        "Math.abs({v}) > {k}",
        ("farther than {k} from 0", "more than {k} away from 0"),
        "far",
        (2, 6),
    ),
    _adjective(
        "remainder",
        "{v} % {k} == {j}",
        "(({v} % {k}) + {k}) % {k} === {j}",
        ("equal to {j} modulo {k}", "congruent to {j} modulo {k}"),
        "modulo",
        (3, 5),
        (1, 1),
    ),
    _adjective(
        "square_below",
        "{v} * {v} < {k}",
        "{v} * {v} < {k}",
        ("below {k} when squared", "less than {k} when squared"),
        "near",
        (10, 60),
    ),
)
SIGN_PREDICATES = (
    _adjective("positive", "{v} > 0", "{v} > 0", ("positive", "greater than 0"), "positive"),
    _adjective("negative", "{v} < 0", "{v} < 0", ("negative", "less than 0"), "negative"),
)

NUMBER_MAPS = (
    Piece("same", "{v}", "{v}", ("",), ("{v}",), ""),
    Piece(
        "square",
        "{v} * {v}",
        "{v} * {v}",
        ("the squares of ", "the squared values of "),
        ("the square of {v}", "{v} squared"),
        "squares",
    ),
    Piece(
        "power",
        "{v}**{k}",
        "{v} ** {k}",
        ("power {k} of ", "the powers with exponent {k} of "),
        ("power {k} of {v}", "{v} to the power {k}"),
        "powers",
        (2, 3),
    ),
    Piece("double", "2 * {v}", "2 * {v}", ("twice ", "the doubles of "), ("twice {v}", "the double of {v}"), "doubles"),
    Piece(
        "times",
        "{v} * {k}",
        "{v} * {k}",
        ("{k} times ", "the {k}-fold of "),
        ("{k} times {v}", "{v} times {k}"),
        "multiples",
        (3, 9),
    ),
    Piece(
        "plus",
        "{v} + {k}",
        "{v} + {k}",
        ("{k} more than ", "{k} plus "),
        ("{k} more than {v}", "{k} plus {v}"),
        "raised",
        (1, 9),
    ),
    Piece(
        "less",
        "{v} - {k}",
        "{v} - {k}",
        ("{k} less than ", "{k} fewer than "),
        ("{k} less than {v}", "{v} minus {k}"),
        "lowered",
        (1, 9),
    ),
    Piece(
        "from",
        "{k} - {v}",
        "{k} - {v}",
        ("{k} minus ", "the differences of {k} and "),
        ("{k} minus {v}", "the difference of {k} and {v}"),
        "differences",
        (5, 20),
    ),
    Piece(
        "abs",
        "abs({v})",
        "Math.abs({v})",
        ("the absolute values of ", "the magnitudes of "),
        ("the absolute value of {v}", "the magnitude of {v}"),
        "sizes",
    ),
    Piece(
        "negate",
        "-{v}",
        "-{v}",
        ("the negatives of ", "the opposites of "),
        ("the negative of {v}", "the opposite of {v}"),
        "negatives",
    ),
    Piece(
        "quotient",
        "{v} // {k}",
        "Math.floor({v} / {k})",
        ("the floor quotients by {k} of ", "the rounded-down quotients by {k} of "),
        ("the floor quotient by {k} of {v}", "the rounded-down quotient by {k} of {v}"),
        "parts",
        (2, 5),
    ),
    Piece(
        "modulo",
        "{v} % {k}",
        "(({v} % {k}) + {k}) % {k}",
        ("the remainders modulo {k} of ", "the residues modulo {k} of "),
        ("the remainder modulo {k} of {v}", "the residue modulo {k} of {v}"),
        "remainders",
        (3, 7),
    ),
    Piece(
        "cap",
        "min({v}, {k})",
        "Math.min({v}, {k})",
        ("the minimum of {k} and ", "the smaller of {k} and "),
        ("the minimum of {k} and {v}", "the smaller of {k} and {v}"),
        "capped",
        (3, 9),
    ),
    Piece(
        "floor",
        "max({v}, {k})",
        "Math.max({v}, {k})",
        ("the maximum of {k} and ", "the larger of {k} and "),
        ("the maximum of {k} and {v}", "the larger of {k} and {v}"),
        "floored",
        (1, 6),
    ),
    Piece(
        "square_plus",
        "{v} * {v} + {k}",
        "{v} * {v} + {k}",
        ("{k} more than the squares of ", "{k} plus the squares of "),
        ("{k} more than the square of {v}", "{k} plus the square of {v}"),
        "values",
        (1, 9),
    ),
    Piece(
        "linear",
        "{k} * {v} + {j}",
        "{k} * {v} + {j}",
        ("{j} more than {k} times ", "{j} plus {k} times "),
        ("{j} more than {k} times {v}", "{j} plus {k} times {v}"),
        "values",
        (2, 5),
        (1, 9),
    ),
)
