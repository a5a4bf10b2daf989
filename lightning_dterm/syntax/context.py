"""What CPython's compiler still refuses in Python that parses: a ``return`` outside a function and the like.

The parser does not look at these, and running the whole compiler on hostile text is not wise: it copies ``finally``
suites for every way out of them, so a few thousand characters of nested ``try`` grow to gigabytes of bytecode. The tree
and the symbol table are linear.
"""

from __future__ import annotations

import ast
import re
import symtable
import warnings
from collections.abc import Iterator
from typing import NamedTuple

_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_WORDS = {
    ast.Return: "return", ast.Break: "break", ast.Continue: "continue", ast.Yield: "yield", ast.YieldFrom: "yield",
    ast.Await: "await", ast.AsyncFor: "async", ast.AsyncWith: "async",
}  # fmt: skip


class Misplaced(NamedTuple):
    """A statement where it may not stand: character span of its keyword, and what is wrong."""

    start: int
    end: int
    message: str


def misplaced(program: str) -> Misplaced | None:
    """The first misplaced keyword of a Python program that parses, or None.

    Sees ``return``, ``yield`` and ``await`` outside functions, ``break`` and ``continue`` outside loops, and what the
    symbol table refuses (``nonlocal`` without a binding, a parameter twice, a name used before its ``global``).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(program)
            found = min(_walk(tree, program), default=None)
            if found is None:
                symtable.symtable(program, "<completion>", "exec")
        except SyntaxError as error:
            return _from_error(program, error)
        except (RecursionError, MemoryError, ValueError, OverflowError, SystemError) as error:
            return Misplaced(0, max(len(program), 1), f"{type(error).__name__}: {error}")
    return found


def _from_error(program: str, error: SyntaxError) -> Misplaced:
    starts = _line_starts(program)
    line = min(max(error.lineno or 1, 1), len(starts))
    start = min(starts[line - 1] + max((error.offset or 1) - 1, 0), max(len(program) - 1, 0))
    same_line = error.end_lineno == error.lineno and error.end_offset and error.end_offset > (error.offset or 1)
    length = (error.end_offset or 0) - (error.offset or 1) if same_line else 1
    return Misplaced(start, min(start + max(length, 1), max(len(program), 1)), str(error.msg))


def _line_starts(program: str) -> list[int]:
    return [0, *(match.end() for match in re.finditer(r"\r\n?|\n", program))]


class _Scope(NamedTuple):
    function: bool
    is_async: bool
    loop: bool
    comprehension: bool = False


def _walk(tree: ast.Module, program: str) -> Iterator[Misplaced]:
    starts = _line_starts(program)
    lines = [program[a:b] for a, b in zip(starts, [*starts[1:], len(program)], strict=True)]
    pending: list[tuple[ast.AST, _Scope]] = [(tree, _Scope(False, False, False))]
    while pending:
        node, scope = pending.pop()
        complaint = _complaint(node, scope)
        if complaint:
            assert isinstance(node, (ast.stmt, ast.expr))
            column = len(lines[node.lineno - 1].encode()[: node.col_offset].decode("utf-8", "replace"))
            start = starts[node.lineno - 1] + column
            yield Misplaced(start, min(start + len(_WORDS[type(node)]), len(program)), complaint)
        pending += _children(node, scope)


def _complaint(node: ast.AST, scope: _Scope) -> str:
    if isinstance(node, (ast.Break, ast.Continue)):
        return "" if scope.loop else f"'{_WORDS[type(node)]}' outside loop"
    if isinstance(node, (ast.Return, ast.Yield, ast.YieldFrom)):
        if not scope.function:
            return f"'{_WORDS[type(node)]}' outside function"
        return "'yield from' inside async function" if isinstance(node, ast.YieldFrom) and scope.is_async else ""
    if isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith)) and not scope.is_async and not scope.comprehension:
        return f"'{_WORDS[type(node)]}' outside async function"
    return ""


def _children(node: ast.AST, scope: _Scope) -> list[tuple[ast.AST, _Scope]]:
    """A node's children and the scope that each stands in."""
    if isinstance(node, _FUNCTIONS):
        inner = _Scope(True, isinstance(node, ast.AsyncFunctionDef), False)
        body = node.body if isinstance(node.body, list) else [node.body]
        outer: list[ast.AST] = [node.args, *getattr(node, "decorator_list", [])]
        return [*((child, inner) for child in body), *((child, scope) for child in outer)]
    if isinstance(node, ast.ClassDef):
        inner = _Scope(False, False, False)
        outer = [*node.bases, *node.keywords, *node.decorator_list]
        return [*((child, inner) for child in node.body), *((child, scope) for child in outer)]
    if isinstance(node, _LOOPS):
        inside = scope._replace(loop=True)
        rest = [child for child in ast.iter_child_nodes(node) if child not in node.body]
        return [*((child, inside) for child in node.body), *((child, scope) for child in rest)]
    if isinstance(node, _COMPREHENSIONS):
        # their own rules differ by version: only what is certain is said
        scope = scope._replace(comprehension=True)
    return [(child, scope) for child in ast.iter_child_nodes(node)]
