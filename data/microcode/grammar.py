"""All program families, how often each is drawn, and the structure keys of their shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from lightning_dterm.data.microcode import branches, containers, numeric, optimization, pipelines
from lightning_dterm.data.microcode.conditions import ConditionShape, bind_condition
from lightning_dterm.data.microcode.nodes import Program
from lightning_dterm.data.microcode.pipelines import Shape
from lightning_dterm.data.microcode.render_python import render_python
from lightning_dterm.data.microcode.spec import HOLES, Draw, FirstChoices, bind
from lightning_dterm.data.microcode.structure import LineStructure, digest, expression_shape, split_of


class Family(NamedTuple):
    """A generator of programs: ``draw`` makes the structural choices, ``build`` the names and constants.

    Two programs of one shape have the same structure key, so that keys are computed once a shape.
    """

    draw: Callable[[Draw], Shape]
    build: Callable[[Shape, Draw], Program]
    weight: int


FAMILIES: dict[str, Family] = {
    "pipeline": Family(pipelines.draw_pipeline, pipelines.build_pipeline, 10),
    "branch": Family(branches.draw_branch, branches.build_branch, 3),
    "balance": Family(branches.draw_balance, branches.build_balance, 3),
    "helper": Family(branches.draw_helper, branches.build_helper, 3),
    "pair": Family(branches.draw_pair, branches.build_pair, 2),
    "dict": Family(containers.draw_dict, containers.build_dict, 3),
    "table": Family(containers.draw_table, containers.build_table, 2),
    "running": Family(containers.draw_running, containers.build_running, 2),
    "digits": Family(containers.draw_digits, containers.build_digits, 2),
    "numeric": Family(numeric.draw_numeric, numeric.build_numeric, 2),
    "position": Family(numeric.draw_position, numeric.build_position, 2),
}
_WHEEL = tuple(name for name, family in FAMILIES.items() for _ in range(family.weight))


_OPTIMIZATION = Family(optimization.draw_optimization, optimization.build_optimization, 1)


def draw_shape(draw: Draw, split: str, slow: bool = False) -> Shape:
    """A shape of ``split``, its family drawn by weight; with ``slow``, of a slow and fast pair."""
    family = _OPTIMIZATION if slow else FAMILIES[draw.pick(_WHEEL)]
    shape = family.draw(draw)
    while facts(shape).split != split:
        shape = family.draw(draw)
    return shape


def build(shape: Shape, draw: Draw) -> Program:
    """A program of ``shape``."""
    family = FAMILIES.get(str(shape[0]), _OPTIMIZATION)
    return family.build(shape, draw)


_line_structure = LineStructure()
_FIRST = FirstChoices()

# Where the shapes of a family name their mappings and their condition, for the families whose programs contain both as
# whole expressions: their syntax is composed from a template and the syntax of the pieces, instead of being parsed.
_SLOTS: dict[str, tuple[tuple[int, ...], int]] = {
    "pipeline": ((4,), 5),
    "branch": ((2, 3), 4),
    "balance": ((2, 3), 4),
    "helper": ((3, 4), 5),
    "pair": ((2, 3), 4),
    "dict": ((3,), 4),
    "table": ((2,), 3),
    "running": ((2,), 3),
    "digits": ((2,), 3),
}
_HOLE_SHAPES = tuple(expression_shape(piece.py) for piece in HOLES)


@functools.lru_cache(maxsize=1 << 12)
def _syntax(shape: Shape) -> str:
    """Normal form of the fast programs of ``shape``, from one of them."""
    return _line_structure(render_python(build(shape, _FIRST).functions))


@functools.lru_cache(maxsize=1 << 12)
def _piece_syntax(kind: str, name: str) -> str:
    """Normal form of a mapping of one value of ``kind``, or of two values."""
    if kind.startswith("pair"):
        a, b = ("a", "b") if kind == "pair" else ("a[i]", "b[i]")
        return expression_shape((branches.PAIR_MAP | branches.PAIR_TEST)[name].py.format(a=a, b=b))
    return expression_shape(bind(pipelines.MAPS_BY_NAME[kind][name], _FIRST).code("v").py)


@functools.lru_cache(maxsize=1 << 12)
def _condition_syntax(kind: str, condition: ConditionShape) -> str:
    """Normal form of a condition on one value of ``kind``."""
    return expression_shape(bind_condition(condition, kind, _FIRST).code("v").py)


def _kind(shape: Shape) -> str:
    """The kind of value that the mappings and the condition of ``shape`` take."""
    family = shape[0]
    if family == "pipeline" or family == "dict":
        return pipelines.SOURCES[str(shape[1 if family == "pipeline" else 2])].kind
    if family == "pair":
        return "pair" if shape[1] == "early" or shape[1] == "ternary" else "pair_at"
    return "natural" if family == "digits" else "number"


def _composed(shape: Shape) -> str:
    """:func:`_syntax`, composed where that is possible."""
    slots = _SLOTS.get(str(shape[0]))
    # A negated condition, and one joined with another test, depend on more of the condition than its syntax.
    if slots is None or shape[2:4] == ("loop", "all") or (shape[0] == "running" and len(shape[3]) > 1):  # type: ignore[arg-type]
        return _syntax(shape)
    maps, last = slots
    kind, condition = _kind(shape), shape[last]
    template, fillers = list(shape), []
    for hole, position in enumerate(maps, 1):
        name = str(shape[position])
        if name and name != "same":  # the form of some programs depends on whether they map at all
            template[position] = HOLES[hole].name
            fillers.append((_HOLE_SHAPES[hole], _piece_syntax(kind, name)))
    if isinstance(condition, str):
        template[last] = HOLES[0].name
        fillers.append((_HOLE_SHAPES[0], _piece_syntax(kind, condition)))
    elif condition:
        template[last] = (HOLES[0].name,)
        fillers.append((_HOLE_SHAPES[0], _condition_syntax(kind, condition)))
    syntax = _syntax(tuple(template))
    for hole_shape, filler in fillers:
        syntax = syntax.replace(hole_shape, filler)
    return syntax


class Facts(NamedTuple):
    """What all programs of a shape share.

    Attributes:
        key: Structure key of the program.
        slow_key: Structure key of the slow version, or empty.
        split: The split that holds the program (and its slow version), empty where the two disagree.
        nodes: Number of syntax-tree nodes.
    """

    key: str
    slow_key: str
    split: str
    nodes: int


@functools.lru_cache(maxsize=1 << 17)
def facts(shape: Shape) -> Facts:
    """Structure key, split and size of every program of ``shape``."""
    if shape[0] != "optimization":
        key, nodes = digest(_composed(shape))
        return Facts(key, "", split_of(key), nodes)
    program = build(shape, _FIRST)
    key, nodes = digest(_line_structure(render_python(program.functions)))
    slow_key, _ = digest(_line_structure(render_python(program.slow)))
    split = split_of(key)
    return Facts(key, slow_key, split if split_of(slow_key) == split else "", nodes)
