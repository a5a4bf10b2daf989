"""All program families, how often each is drawn, and the structure keys of their shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from lightning_dterm.data.microcode import branches, containers, numeric, optimization, pipelines
from lightning_dterm.data.microcode.nodes import Program
from lightning_dterm.data.microcode.pipelines import Shape
from lightning_dterm.data.microcode.render_python import render_python
from lightning_dterm.data.microcode.spec import Draw
from lightning_dterm.data.microcode.structure import LineStructure, split_of


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


_structure = LineStructure()


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
    program = build(shape, Draw(0))
    key, nodes = _structure(render_python(program.functions))
    split = split_of(key)
    if not program.slow:
        return Facts(key, "", split, nodes)
    slow_key = _structure(render_python(program.slow))[0]
    return Facts(key, slow_key, split if split_of(slow_key) == split else "", nodes)
