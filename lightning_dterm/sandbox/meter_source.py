"""The syntax tree of a metered program: ticks in every block, and calls in place of whatever costs by its operands."""

from __future__ import annotations

import ast
import copy
import os
import types
import warnings
from typing import Any, cast

from lightning_dterm.sandbox.meter_names import DEFINABLE, NEVER, PUBLIC_DUNDERS, READABLE_NAMES

# Names that end in underscores are not mangled inside classes.
_TICK, _CALL, _IN, _BINARY, _SIZED, _COMPARE, _REFUSE, _SHOWN, _EACH, _ITEM, _FIELD, _AUGMENT, _DECORATE = (
    f"__m_{name}__"
    for name in (
        "tick", "call", "in", "binary", "sized", "compare", "refuse", "shown", "each", "item", "field", "augment",
        "decorate",
    )
)  # fmt: skip
_CHAINED, _MOVED, _PARTS = "__m_chained__", "__m_moved__", "__m_parts__"
_OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv", ast.FloorDiv: "floordiv", ast.Mod: "mod",
    ast.Pow: "pow", ast.LShift: "lshift", ast.RShift: "rshift", ast.BitOr: "or_", ast.BitXor: "xor",
    ast.BitAnd: "and_", ast.MatMult: "matmul",
}  # fmt: skip
_IN_PLACE = {kind: {"or_": "ior", "and_": "iand"}.get(name, "i" + name) for kind, name in _OPERATORS.items()}
_COMPARISONS: dict[type[ast.AST], str] = {
    ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge",
}  # fmt: skip
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BUILT_IN = frozenset(
    ["bool", "bytearray", "bytes", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple"]
)


class Unmetered(Exception):
    """The program uses something that cannot be metered."""


def check_name(name: str, assigned: frozenset[str] = frozenset()) -> None:
    """Refuse an attribute that could lead out of the meter.

    Args:
        name: The attribute.
        assigned: Private names that the program itself sets.

    Raises:
        Unmetered: it could.
    """
    private = name.startswith("_") and name not in PUBLIC_DUNDERS and name not in assigned
    if private or name in NEVER:
        raise Unmetered(f"attribute {name!r} cannot be metered")


class _Instrumenter(ast.NodeTransformer):
    """Adds a tick to every block and wraps every operation whose cost depends on its operands."""

    def __init__(self, tree: ast.AST) -> None:
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) and any("__m_" in word for word in _words(node)):
                raise Unmetered("names with '__m_' cannot be metered")
            _check_words(node)
        self._bound = frozenset(
            word
            for node in ast.walk(tree)
            if not (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
            for word in _words(node)
        )
        self._assigned = frozenset(
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and not node.attr.endswith("__")
        ) | frozenset(
            node.name for node in ast.walk(tree) if isinstance(node, _FUNCTIONS) and not node.name.endswith("__")
        )

    def block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """A block with its tick, charged for all of it but the blocks inside."""
        weight = sum(_weight(statement) for statement in body)
        done: list[ast.stmt] = []
        for statement in body:
            done += _listed(self.visit(statement))
        at = 1 if body and _is_docstring(body[0]) else 0
        while at < len(body) and isinstance(body[at], ast.ImportFrom) and body[at].module == "__future__":  # type: ignore[attr-defined]
            at += 1
        return [*done[:at], ast.Expr(_charge(weight)), *done[at:]]

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name, value in ast.iter_fields(node):
            if name in ("body", "orelse", "finalbody") and isinstance(value, list):
                setattr(node, name, self.block(value) if value else value)
            elif isinstance(value, list):
                visited = [self.visit(item) if isinstance(item, ast.AST) else item for item in value]
                setattr(node, name, visited)
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if _is_special(node.id) and node.id not in READABLE_NAMES:
            return ast.Call(_name(_REFUSE), [ast.Constant(f"name {node.id!r} cannot be metered")], [])
        return node

    def visit_MatchClass(self, node: Any) -> ast.AST:
        for name in node.kwd_attrs:
            check_name(name, self._assigned)
        if node.patterns and not (isinstance(node.cls, ast.Name) and node.cls.id in _BUILT_IN - self._bound):
            raise Unmetered("a class pattern by position reads attributes whose names are not in the program")
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if not isinstance(node.ctx, ast.Load) and _is_special(node.attr) and node.attr != "__doc__":
            raise Unmetered(f"assignment to {node.attr!r} cannot be metered")
        try:
            check_name(node.attr, self._assigned)
        except Unmetered as error:
            if not isinstance(node.ctx, ast.Load):
                raise
            return ast.Call(_name(_REFUSE), [ast.Constant(str(error))], [])  # in vain, should it ever run
        return self.generic_visit(node)

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        weight = _weight(node.body)
        self.generic_visit(node.args)
        node.body = ast.BoolOp(ast.And(), [_charge(weight), self.visit(node.body)])
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        weight = 1 + sum(map(_weight, node.ifs))
        self._loop(node)
        node.ifs.insert(0, _charge(weight))
        return node

    def _comprehension(self, node: Any) -> ast.AST:
        weight = sum(_weight(getattr(node, name)) for name in ("elt", "key", "value") if hasattr(node, name))
        self.generic_visit(node)
        node.generators[-1].ifs.append(_charge(weight))
        return cast(ast.AST, node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        for keyword in node.keywords:
            if keyword.arg is None:
                keyword.value = _sized(keyword.value)
        if isinstance(node.func, ast.Name) and node.func.id == "super":
            return node
        return ast.Call(_name(_CALL), [node.func, *node.args], node.keywords)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        membership = [isinstance(operator, (ast.In, ast.NotIn)) for operator in node.ops]
        if len(node.ops) > 1:
            if any(membership):
                raise Unmetered("'in' inside a chain of comparisons cannot be metered")
            node.comparators = [
                part if isinstance(part, ast.Constant) else ast.Call(_name(_CHAINED), [part], [])
                for part in node.comparators
            ]
            return node
        operands: list[ast.expr] = [node.left, node.comparators[0]]
        if membership[0]:
            call: ast.expr = ast.Call(_name(_IN), operands, [])
            return ast.UnaryOp(ast.Not(), call) if isinstance(node.ops[0], ast.NotIn) else call
        operator = _COMPARISONS.get(type(node.ops[0]))
        return node if operator is None else ast.Call(_name(_COMPARE), [ast.Constant(operator), *operands], [])

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return _binary(_OPERATORS[type(node.op)], node.left, node.right)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            target = node.target.id
            return ast.Assign(
                [ast.Name(target, ast.Store())], _binary(_IN_PLACE[type(node.op)], _name(target), node.value)
            )
        place = node.target
        # What is there is read before the other operand is computed, as in Python.
        if isinstance(place, ast.Subscript):
            if any(isinstance(part, ast.Slice) for part in ast.walk(place.slice)):
                raise Unmetered("an operation in place on a slice cannot be metered")
            item = ast.Call(_name(_ITEM), [place.value, place.slice], [])
        elif not place.attr.startswith("__"):
            item = ast.Call(_name(_FIELD), [place.value, ast.Constant(place.attr)], [])
        else:  # its name depends on the class that it stands in
            if not _is_path(place.value):
                raise Unmetered(f"an operation in place on {place.attr!r} of an expression cannot be metered")
            read = ast.Attribute(copy.deepcopy(place.value), place.attr, ast.Load())
            return ast.Assign([place], _binary(_IN_PLACE[type(node.op)], read, node.value))
        return ast.Expr(ast.Call(_name(_AUGMENT), [ast.Constant(_IN_PLACE[type(node.op)]), item, node.value], []))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Not) and not isinstance(node.operand, ast.Constant):
            node.operand = _sized(node.operand)
        return node

    def visit_YieldFrom(self, node: ast.YieldFrom) -> ast.AST:
        self.generic_visit(node)
        node.value = ast.Call(_name(_EACH), [node.value], [])
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        self.generic_visit(node)
        node.values = [
            value if key is not None else _sized(value) for key, value in zip(node.keys, node.values, strict=True)
        ]
        return node

    def _decorated(self, node: Any) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list = [ast.Call(_name(_DECORATE), [one], []) for one in node.decorator_list]
        return cast(ast.AST, node)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _decorated

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        sliced = any(isinstance(part, ast.Slice) for part in ast.walk(node.slice))
        self.generic_visit(node)
        return _sized(node) if sliced and isinstance(node.ctx, ast.Load) else node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        sliced = any(isinstance(t, ast.Subscript) and isinstance(t.slice, ast.Slice) for t in node.targets)
        if sliced or any(map(_is_starred, node.targets)):
            node.value = _sized(node.value)
        for target in node.targets:
            if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Slice):
                target.value = ast.Call(_name(_MOVED), [target.value], [])
        return node

    def visit_Delete(self, node: ast.Delete) -> ast.AST:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Subscript):
                target.value = ast.Call(_name(_MOVED), [target.value], [])
        return node

    def _loop(self, node: Any) -> ast.AST:
        self.generic_visit(node)
        if _is_starred(node.target):
            if isinstance(node, ast.AsyncFor) or getattr(node, "is_async", False):
                raise Unmetered("a starred name in an asynchronous loop cannot be metered")
            node.iter = ast.Call(_name(_PARTS), [node.iter], [])
        return cast(ast.AST, node)

    visit_For = visit_AsyncFor = _loop

    def visit_withitem(self, node: ast.withitem) -> ast.AST:
        if node.optional_vars is not None and _is_starred(node.optional_vars):
            raise Unmetered("a starred name in a 'with' statement cannot be metered")
        return self.generic_visit(node)

    def visit_Match(self, node: Any) -> ast.AST:
        kinds = {type(part).__name__ for case in node.cases for part in ast.walk(case.pattern)}
        self.generic_visit(node)
        if "MatchValue" in kinds:  # a value may be as long as what it is compared with
            node.subject = ast.Call(_name(_CHAINED), [node.subject], [])
        elif kinds & {"MatchStar", "MatchMapping"}:
            node.subject = _sized(node.subject)
        return cast(ast.AST, node)

    def visit_Starred(self, node: ast.Starred) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            node.value = _sized(node.value)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self._formatted(node)
        return _sized(node)

    def _formatted(self, node: ast.JoinedStr) -> None:
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                part.value = ast.Call(_name(_SHOWN), [self.visit(part.value)], [])
                if isinstance(part.format_spec, ast.JoinedStr):
                    self._formatted(part.format_spec)


def _words(node: ast.AST) -> list[str]:
    """The identifiers of a node."""
    values = [value for _, value in ast.iter_fields(node)]
    return [word for value in values for word in (value if isinstance(value, list) else [value]) if type(word) is str]


def _listed(node: Any) -> list[ast.stmt]:
    return node if isinstance(node, list) else [node]


def _is_starred(target: ast.AST) -> bool:
    return any(isinstance(part, ast.Starred) for part in ast.walk(target))


def _is_path(node: ast.expr) -> bool:
    """Names and attributes of them: what can be read twice."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def _name(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def _charge(weight: int) -> ast.expr:
    return ast.Call(_name(_TICK), [ast.Constant(weight)], [])


def _sized(value: ast.expr) -> ast.expr:
    return ast.Call(_name(_SIZED), [value], [])


def _binary(operator: str, left: ast.expr, right: ast.expr) -> ast.expr:
    return ast.Call(_name(_BINARY), [ast.Constant(operator), left, right], [])


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


_NOT_COUNTED = (ast.expr_context, ast.operator, ast.boolop, ast.unaryop, ast.cmpop, ast.arguments, ast.Load)


def _weight(node: ast.AST) -> int:
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


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _check_words(node: ast.AST) -> None:
    """Refuse special names that a program may not define: ``__annotations__``, ``__reduce__``, ``__match_args__``..."""
    if isinstance(node, (ast.Constant, ast.Attribute, ast.ImportFrom)):
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return
    allowed = DEFINABLE if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) else READABLE_NAMES | {"__future__"}
    for word in _words(node):
        if _is_special(word) and word not in allowed:
            raise Unmetered(f"a definition of {word!r} cannot be metered")


def instrument(source: str, filename: str, hooks: dict[str, Any]) -> types.CodeType:
    """The code of a program with the hooks among its constants.

    Nothing that runs can name them: not the program, nor whoever gets hold of its namespaces.

    Args:
        source: The program.
        filename: Its name in tracebacks.
        hooks: One function for each of the names of :data:`_HOOKS`.

    Raises:
        Unmetered: it uses what cannot be metered.
        SyntaxError: it does not parse.
    """
    tree = ast.parse(source, filename)
    tree.body = _Instrumenter(tree).block(tree.body)
    secret = os.urandom(16).hex()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.startswith("__m_"):
            node.func = ast.Constant(secret + node.func.id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        code = compile(ast.fix_missing_locations(tree), filename, "exec", dont_inherit=True)
    return _with_hooks(code, {f"{secret}__m_{name}__": hook for name, hook in hooks.items()})


def _with_hooks(code: types.CodeType, hooks: dict[str, Any]) -> types.CodeType:
    constants = [
        hooks.get(value, value)
        if type(value) is str
        else _with_hooks(value, hooks)
        if type(value) is types.CodeType
        else value
        for value in code.co_consts
    ]
    return code.replace(co_consts=tuple(constants))
