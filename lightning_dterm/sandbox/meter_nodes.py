"""Parts of syntax trees that the meter puts in or looks for. Pure functions."""

from __future__ import annotations

import ast
from typing import Any

# What stands for the hooks until the code is made; names that end in underscores are not mangled inside classes.
TICK, CALL, IN, BINARY, SIZED, COMPARE, REFUSE, SHOWN, EACH, ITEM, FIELD, AUGMENT, DECORATE, CHAINED, MOVED, PARTS = (
    f"__m_{name}__"
    for name in (
        "tick", "call", "in", "binary", "sized", "compare", "refuse", "shown", "each", "item", "field", "augment",
        "decorate", "chained", "moved", "parts",
    )
)  # fmt: skip
KEY, SPREAD, METHOD = "__m_key__", "__m_spread__", "__m_method__"


def words(node: ast.AST) -> list[str]:
    """The identifiers of a node."""
    values = [value for _, value in ast.iter_fields(node)]
    return [word for value in values for word in (value if isinstance(value, list) else [value]) if type(word) is str]


def listed(node: Any) -> list[ast.stmt]:
    """What a visit gave, as statements."""
    return node if isinstance(node, list) else [node]


def is_starred(target: ast.AST) -> bool:
    """Whether part of a target takes all the rest."""
    return any(isinstance(part, ast.Starred) for part in ast.walk(target))


def is_path(node: ast.expr) -> bool:
    """Names and attributes of them: what can be read twice."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def name_node(name: str) -> ast.expr:
    """A name that is read."""
    return ast.Name(name, ast.Load())


def charge(weight: int) -> ast.expr:
    """A tick."""
    return ast.Call(name_node(TICK), [ast.Constant(weight)], [])


def sized(value: ast.expr) -> ast.expr:
    """A value that is charged by its size."""
    return ast.Call(name_node(SIZED), [value], [])


def key_node(value: ast.expr) -> ast.expr:
    """What is hashed: charged where it may be long, which what is computed on the spot was charged for."""
    if isinstance(value, (ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.JoinedStr, ast.Slice)):
        return value
    return ast.Call(name_node(KEY), [value], [])


def spread(value: ast.expr) -> ast.expr:
    """Something that is taken apart, item by item."""
    return ast.Call(name_node(SPREAD), [value], [])


def binary(operator: str, left: ast.expr, right: ast.expr) -> ast.expr:
    """An operator's call."""
    return ast.Call(name_node(BINARY), [ast.Constant(operator), left, right], [])


def is_docstring(node: ast.stmt) -> bool:
    """Whether a statement is a text alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


_NOT_COUNTED = (ast.expr_context, ast.operator, ast.boolop, ast.unaryop, ast.cmpop, ast.arguments, ast.Load)


def weight_of(node: ast.AST) -> int:
    """Nodes of a statement or expression, without the blocks inside, which charge for themselves."""
    count, pending = 0, [node]
    while pending:
        item = pending.pop()
        if not isinstance(item, _NOT_COUNTED):
            count += 1
        for name, value in ast.iter_fields(item):
            nested = isinstance(item, ast.stmt) and name in ("body", "orelse", "finalbody", "handlers", "cases")
            if nested or (isinstance(item, ast.Lambda) and name == "body") or isinstance(item, ast.comprehension):
                continue
            if name in ("elt", "key", "value") and hasattr(item, "generators"):
                continue
            pending += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, ast.AST)]
    return count


def is_special(name: str) -> bool:
    """Whether Python may give the name a meaning."""
    return name.startswith("__") and name.endswith("__")
