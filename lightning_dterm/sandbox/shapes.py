"""Which assertions say something about one call of the candidate: ``rule(views(candidate(*args)), expected)``.

Pure syntax: nothing of a test is run here, and no more than literals is evaluated.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from lightning_dterm.sandbox.expect import KINDS, VIEWS

_COMPARE: dict[type[ast.cmpop], tuple[str, str]] = {  # rule with the candidate on the left, and on the right
    ast.Eq: ("eq", "eq"), ast.NotEq: ("ne", "ne"), ast.Lt: ("lt", "gt"), ast.LtE: ("le", "ge"), ast.Gt: ("gt", "lt"),
    ast.GtE: ("ge", "le"), ast.In: ("in", "contains"), ast.NotIn: ("not_in", "lacks"), ast.Is: ("is", "is"),
    ast.IsNot: ("is_not", "is_not"),
}  # fmt: skip
_NEGATED = {
    "true": "false", "eq": "ne", "in": "not_in", "contains": "lacks", "is": "is_not",
    "false": "true", "ne": "eq", "not_in": "in", "lacks": "contains", "is_not": "is",
}  # fmt: skip
STRANGE = (ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await)
_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)
NO_LITERAL = object()
_PLAIN = (bool, int, float, str, bytes, type(None))


@dataclass(frozen=True, slots=True)
class Shape:
    """One assertion about one call."""

    call: ast.Call
    rule: str
    views: tuple[str, ...]
    expected: ast.expr


class Matcher:
    """Finds shapes.

    Args:
        candidates: Names that stand for the function under test.
        bound: Names that the test binds: they do not stand for built-ins.
        imports: What imported names stand for (``{"isclose": "math.isclose"}``).
    """

    def __init__(self, candidates: Collection[str], bound: Collection[str], imports: dict[str, str]) -> None:
        self.candidates, self.bound, self.imports = set(candidates), set(bound), imports

    def shapes(self, test: ast.expr) -> list[Shape] | None:
        """Shapes of one condition (several for ``a and b``, none for a true constant); None where it has none."""
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
            parts = [self.shapes(value) for value in test.values]
            return None if any(part is None for part in parts) else [shape for part in parts for shape in part or ()]
        if isinstance(test, ast.Constant):
            return [] if test.value else None
        negated = False
        while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            negated, test = not negated, test.operand
        shape = self._tolerance(test) or self._close(test) or self._instance(test) or self._comparison(test)
        if shape is None and (viewed := self._viewed(test)):
            shape = Shape(viewed[0], "true", viewed[1], ast.Constant(None))
        if shape is None or (negated and shape.rule not in _NEGATED):
            return None
        return [Shape(shape.call, _NEGATED[shape.rule] if negated else shape.rule, shape.views, shape.expected)]

    def _builtin(self, node: ast.expr) -> str | None:
        """The built-in that a name stands for, unless the test binds that name itself."""
        return node.id if isinstance(node, ast.Name) and node.id not in self.bound else None

    def _free(self, *roots: ast.expr) -> bool:
        """No candidate, and nothing that would not survive being moved."""
        nodes = [node for root in roots for node in ast.walk(root)]
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        return not names & self.candidates and not any(isinstance(node, STRANGE) for node in nodes)

    def _viewed(self, node: ast.expr) -> tuple[ast.Call, tuple[str, ...]] | None:
        """The candidate's call inside ``view(view(candidate(...)))``."""
        if not isinstance(node, ast.Call) or node.keywords:
            return None
        if isinstance(node.func, ast.Name) and node.func.id in self.candidates:
            return (node, ()) if self._free(*node.args) else None
        view = self._builtin(node.func)
        if view not in VIEWS or len(node.args) not in (1, 2):
            return None
        if len(node.args) == 2:
            digits = literal(node.args[1])
            if view != "round" or type(digits) is not int:
                return None
            view = f"round:{digits}"
        inner = self._viewed(node.args[0])
        return (inner[0], (*inner[1], view)) if inner else None

    def _comparison(self, node: ast.expr) -> Shape | None:
        if not isinstance(node, ast.Compare) or len(node.ops) != 1:
            return None
        sides = (node.left, node.comparators[0])
        for place, (ours, other) in enumerate((sides, sides[::-1])):
            viewed = self._viewed(ours)
            if viewed is None or not self._free(other):
                continue
            rule = _COMPARE[type(node.ops[0])][place]
            singleton = isinstance(other, ast.Constant) and (other.value is None or isinstance(other.value, bool))
            return Shape(viewed[0], rule, viewed[1], other) if singleton or not rule.startswith("is") else None
        return None

    def _tolerance(self, node: ast.expr) -> Shape | None:
        """``abs(candidate(...) - y) < eps`` in its variants."""
        if not isinstance(node, ast.Compare) or len(node.ops) != 1:
            return None
        small, large, operator = node.left, node.comparators[0], node.ops[0]
        if isinstance(operator, (ast.Gt, ast.GtE)):
            small, large = large, small
        elif not isinstance(operator, (ast.Lt, ast.LtE)):
            return None
        if not isinstance(small, ast.Call) or len(small.args) != 1 or small.keywords:
            return None
        if self._builtin(small.func) != "abs" and not self._from_math(small.func, "fabs"):
            return None
        difference = small.args[0]
        if not isinstance(difference, ast.BinOp) or not isinstance(difference.op, ast.Sub):
            return None
        rule = "within" if isinstance(operator, (ast.Lt, ast.Gt)) else "within_or_at"
        for ours, other in ((difference.left, difference.right), (difference.right, difference.left)):
            viewed = self._viewed(ours)
            if viewed and self._free(other, large):
                return Shape(viewed[0], rule, viewed[1], ast.Tuple([other, large], ast.Load()))
        return None

    def _from_math(self, function: ast.expr, name: str) -> bool:
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            module = function.value.id
            known = self.imports.get(module, module if module not in self.bound else "")
            return known == "math" and function.attr == name
        return isinstance(function, ast.Name) and self.imports.get(function.id) == f"math.{name}"

    def _close(self, node: ast.expr) -> Shape | None:
        """``math.isclose(candidate(...), y, rel_tol=..., abs_tol=...)``."""
        if not isinstance(node, ast.Call) or len(node.args) != 2 or not self._from_math(node.func, "isclose"):
            return None
        defaults: dict[str | None, ast.expr] = {"rel_tol": ast.Constant(1e-09), "abs_tol": ast.Constant(0.0)}
        given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg in defaults}
        if len(given) != len(node.keywords):
            return None
        values = [given.get(name, default) for name, default in defaults.items()]
        for ours, other in (node.args, node.args[::-1]):
            viewed = self._viewed(ours)
            if viewed and self._free(other, *values):
                return Shape(viewed[0], "isclose", viewed[1], ast.Tuple([other, *values], ast.Load()))
        return None

    def _instance(self, node: ast.expr) -> Shape | None:
        if not isinstance(node, ast.Call) or self._builtin(node.func) != "isinstance" or len(node.args) != 2:
            return None
        viewed = self._viewed(node.args[0])
        kinds = node.args[1].elts if isinstance(node.args[1], ast.Tuple) else [node.args[1]]
        names = [self._builtin(kind) for kind in kinds]
        if viewed is None or not all(name in KINDS for name in names):
            return None
        return Shape(viewed[0], "isinstance", viewed[1], ast.Tuple([ast.Constant(name) for name in names], ast.Load()))


def literal(node: ast.expr) -> Any:
    """The value of a literal, or :data:`NO_LITERAL`."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return NO_LITERAL


def is_plain(value: Any) -> bool:
    """Plain data of the kinds that a call test may hold."""
    kind = type(value)
    if kind in (list, tuple, set):
        return all(map(is_plain, value))
    if kind is dict:
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    return kind in _PLAIN


def bound_names(tree: ast.AST) -> set[str]:
    """Every name that a test binds, in any scope."""
    found = set(imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, _NAMED) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            found.add(node.rest)
    return found


def imported(tree: ast.AST) -> dict[str, str]:
    """What imported names stand for."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else (alias.name.partition(".")[0])
                )
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def in_order(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, in source order."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from in_order(child)


def rewrite(tree: ast.Module, replacements: list[list[ast.stmt]]) -> str:
    """Source of ``tree`` with its assertions, which carry their number as ``site``, replaced."""

    class Replace(ast.NodeTransformer):
        def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
            return replacements[getattr(node, "site")]  # noqa: B009 - not an attribute of the class

    return ast.unparse(ast.fix_missing_locations(Replace().visit(copy.deepcopy(tree))))


def report(method: str, arguments: list[ast.expr]) -> ast.stmt:
    """``__t__.method(arguments)``: a statement that talks to the session in the test's process."""
    function = ast.Attribute(ast.Name("__t__", ast.Load()), method, ast.Load())
    return ast.Expr(ast.Call(function, arguments, []))
