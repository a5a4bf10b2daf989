"""Statements of a tiny two-language program tree, and the program that holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from lightning_dterm.data.microcode.spec import Code, Segments


@dataclass(frozen=True, slots=True)
class Let:
    """Bind a new variable."""

    name: str
    value: Code


@dataclass(frozen=True, slots=True)
class Update:
    """Assign to an existing variable; ``operator`` is ``=``, ``+=``, ``-=`` or ``*=``."""

    name: str
    operator: str
    value: Code


@dataclass(frozen=True, slots=True)
class Do:
    """An expression statement or a form that each language writes in its own way."""

    code: Code


@dataclass(frozen=True, slots=True)
class Return:
    """Return a value; ``js_before`` are lines that JavaScript needs first."""

    value: Code
    js_before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class If:
    """A conditional with an optional other branch."""

    condition: Code
    body: tuple[Node, ...]
    orelse: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class For:
    """A loop over an iterable."""

    target: Code
    iterable: Code
    body: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """A loop of ``variable`` from ``start`` up to and without ``stop`` (Python's range)."""

    variable: str
    start: str
    stop: Code
    body: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class While:
    """A loop under a condition."""

    condition: Code
    body: tuple[Node, ...]


Node: TypeAlias = Let | Update | Do | Return | If | For | Count | While


@dataclass(frozen=True, slots=True)
class Function:
    """One function definition."""

    name: str
    parameters: tuple[str, ...]
    body: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """A program of one or two functions with everything a task needs; the last function is the entry point.

    Attributes:
        family: The generator family.
        functions: Definitions in order.
        text: What the entry point returns, as slots of wordings ("the sum of", ...), without "Return" and full stop.
        domain: The kind of each parameter's input (see ``inputs``).
        hints: Constants near which inputs should lie.
        slow: The inefficient functions of an optimization task.
    """

    family: str
    functions: tuple[Function, ...]
    text: Segments
    domain: tuple[str, ...]
    hints: tuple[int | str, ...] = ()
    slow: tuple[Function, ...] = field(default=())

    @property
    def entry(self) -> Function:
        """The function that tests call."""
        return self.functions[-1]
