"""The syntax tree of a metered program: ticks in every block, and calls in place of whatever costs by its operands."""

from __future__ import annotations

import ast
import copy
import os
import types
import warnings
from typing import Any, cast

from lightning_dterm.sandbox.meter_names import DEFINABLE, FORMATS, NEVER, PUBLIC_DUNDERS, READABLE_NAMES
from lightning_dterm.sandbox.meter_nodes import (
    AUGMENT,
    CALL,
    CHAINED,
    COMPARE,
    DECORATE,
    EACH,
    FIELD,
    IN,
    ITEM,
    METHOD,
    MOVED,
    PARTS,
    REFUSE,
    SHOWN,
    binary,
    charge,
    is_docstring,
    is_path,
    is_special,
    is_starred,
    key_node,
    listed,
    name_node,
    sized,
    spread,
    weight_of,
    words,
)

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
            if not isinstance(node, ast.Constant) and any("__m_" in word for word in words(node)):
                raise Unmetered("names with '__m_' cannot be metered")
            _check_words(node)
        self._called: set[ast.AST] = set()
        self._bound = frozenset(
            word
            for node in ast.walk(tree)
            if not (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
            for word in words(node)
        )
        if "super" in self._bound:
            raise Unmetered("a 'super' of the program's own cannot be metered")
        self._assigned = (
            frozenset(
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and not node.attr.endswith("__")
            )
            | frozenset(
                node.name for node in ast.walk(tree) if isinstance(node, _FUNCTIONS) and not node.name.endswith("__")
            )
            | frozenset(
                target.id
                for node in ast.walk(tree)
                if isinstance(node, ast.ClassDef)
                for statement in node.body
                if isinstance(statement, (ast.Assign, ast.AnnAssign))
                for target in ast.walk(statement)
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store) and not target.id.endswith("__")
            )
        )

    def block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """A block with its tick, charged for all of it but the blocks inside."""
        weight = sum(weight_of(statement) for statement in body)
        done: list[ast.stmt] = []
        for statement in body:
            done += listed(self.visit(statement))
        at = 1 if body and is_docstring(body[0]) else 0
        while at < len(body) and isinstance(body[at], ast.ImportFrom) and body[at].module == "__future__":  # type: ignore[attr-defined]
            at += 1
        return [*done[:at], ast.Expr(charge(weight)), *done[at:]]

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
        if is_special(node.id) and node.id not in READABLE_NAMES:
            return ast.Call(name_node(REFUSE), [ast.Constant(f"name {node.id!r} cannot be metered")], [])
        return node

    def visit_MatchClass(self, node: Any) -> ast.AST:
        for name in node.kwd_attrs:
            check_name(name, self._assigned)
            if name in FORMATS:
                raise Unmetered(f"a class pattern that reads {name!r} cannot be metered")
        if node.patterns and not (isinstance(node.cls, ast.Name) and node.cls.id in _BUILT_IN - self._bound):
            raise Unmetered("a class pattern by position reads attributes whose names are not in the program")
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if not isinstance(node.ctx, ast.Load) and is_special(node.attr) and node.attr != "__doc__":
            raise Unmetered(f"assignment to {node.attr!r} cannot be metered")
        try:
            check_name(node.attr, self._assigned)
        except Unmetered as error:
            if not isinstance(node.ctx, ast.Load):
                raise
            return ast.Call(name_node(REFUSE), [ast.Constant(str(error))], [])  # in vain, should it ever run
        self.generic_visit(node)
        if node.attr not in FORMATS or not isinstance(node.ctx, ast.Load) or node in self._called:
            return node
        return ast.Call(name_node(METHOD), [node], [])

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        weight = weight_of(node.body)
        self.generic_visit(node.args)
        node.body = ast.BoolOp(ast.And(), [charge(weight), self.visit(node.body)])
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        weight = 1 + sum(map(weight_of, node.ifs))
        self._loop(node)
        node.ifs.insert(0, charge(weight))
        return node

    def _comprehension(self, node: Any) -> ast.AST:
        weight = sum(weight_of(getattr(node, name)) for name in ("elt", "key", "value") if hasattr(node, name))
        self.generic_visit(node)
        if isinstance(node, ast.SetComp):
            node.elt = key_node(node.elt)
        elif isinstance(node, ast.DictComp):
            node.key = key_node(node.key)
        node.generators[-1].ifs.append(charge(weight))
        return cast(ast.AST, node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self._called.add(node.func)  # the call is looked at as it is made
        self.generic_visit(node)
        for keyword in node.keywords:
            if keyword.arg is None:
                keyword.value = sized(keyword.value)
        if isinstance(node.func, ast.Name) and node.func.id == "super":
            return node
        return ast.Call(name_node(CALL), [node.func, *node.args], node.keywords)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        membership = [isinstance(operator, (ast.In, ast.NotIn)) for operator in node.ops]
        if len(node.ops) > 1:
            if any(membership):
                raise Unmetered("'in' inside a chain of comparisons cannot be metered")
            node.comparators = [
                part if isinstance(part, ast.Constant) else ast.Call(name_node(CHAINED), [part], [])
                for part in node.comparators
            ]
            return node
        operands: list[ast.expr] = [node.left, node.comparators[0]]
        if membership[0]:
            call: ast.expr = ast.Call(name_node(IN), operands, [])
            return ast.UnaryOp(ast.Not(), call) if isinstance(node.ops[0], ast.NotIn) else call
        operator = _COMPARISONS.get(type(node.ops[0]))
        return node if operator is None else ast.Call(name_node(COMPARE), [ast.Constant(operator), *operands], [])

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return binary(_OPERATORS[type(node.op)], node.left, node.right)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            target = node.target.id
            return ast.Assign(
                [ast.Name(target, ast.Store())], binary(_IN_PLACE[type(node.op)], name_node(target), node.value)
            )
        place = node.target
        # What is there is read before the other operand is computed, as in Python.
        if isinstance(place, ast.Subscript):
            if any(isinstance(part, ast.Slice) for part in ast.walk(place.slice)):
                raise Unmetered("an operation in place on a slice cannot be metered")
            item = ast.Call(name_node(ITEM), [place.value, place.slice], [])
        elif not place.attr.startswith("__"):
            item = ast.Call(name_node(FIELD), [place.value, ast.Constant(place.attr)], [])
        else:  # its name depends on the class that it stands in
            if not is_path(place.value):
                raise Unmetered(f"an operation in place on {place.attr!r} of an expression cannot be metered")
            read = ast.Attribute(copy.deepcopy(place.value), place.attr, ast.Load())
            return ast.Assign([place], binary(_IN_PLACE[type(node.op)], read, node.value))
        return ast.Expr(ast.Call(name_node(AUGMENT), [ast.Constant(_IN_PLACE[type(node.op)]), item, node.value], []))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Not) and not isinstance(node.operand, ast.Constant):
            node.operand = sized(node.operand)
        return node

    def visit_YieldFrom(self, node: ast.YieldFrom) -> ast.AST:
        self.generic_visit(node)
        node.value = ast.Call(name_node(EACH), [node.value], [])
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        self.generic_visit(node)
        node.values = [
            value if key is not None else sized(value) for key, value in zip(node.keys, node.values, strict=True)
        ]
        node.keys = [key and key_node(key) for key in node.keys]
        return node

    def visit_Set(self, node: ast.Set) -> ast.AST:
        self.generic_visit(node)
        node.elts = [item if isinstance(item, ast.Starred) else key_node(item) for item in node.elts]
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.generic_visit(node)
        node.type = node.type and spread(node.type)
        return node

    def _decorated(self, node: Any) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list = [ast.Call(name_node(DECORATE), [one], []) for one in node.decorator_list]
        return cast(ast.AST, node)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _decorated

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        sliced = any(isinstance(part, ast.Slice) for part in ast.walk(node.slice))
        self.generic_visit(node)
        if not sliced:
            node.slice = key_node(node.slice)
        return sized(node) if sliced and isinstance(node.ctx, ast.Load) else node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        sliced = any(isinstance(t, ast.Subscript) and isinstance(t.slice, ast.Slice) for t in node.targets)
        if sliced or any(map(is_starred, node.targets)):
            node.value = sized(node.value)
        for target in node.targets:
            if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Slice):
                target.value = ast.Call(name_node(MOVED), [target.value], [])
        return node

    def visit_Delete(self, node: ast.Delete) -> ast.AST:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Subscript):
                target.value = ast.Call(name_node(MOVED), [target.value], [])
        return node

    def _loop(self, node: Any) -> ast.AST:
        self.generic_visit(node)
        if is_starred(node.target):
            if isinstance(node, ast.AsyncFor) or getattr(node, "is_async", False):
                raise Unmetered("a starred name in an asynchronous loop cannot be metered")
            node.iter = ast.Call(name_node(PARTS), [node.iter], [])
        return cast(ast.AST, node)

    visit_For = visit_AsyncFor = _loop

    def visit_withitem(self, node: ast.withitem) -> ast.AST:
        if node.optional_vars is not None and is_starred(node.optional_vars):
            raise Unmetered("a starred name in a 'with' statement cannot be metered")
        return self.generic_visit(node)

    def visit_Match(self, node: Any) -> ast.AST:
        kinds = {type(part).__name__ for case in node.cases for part in ast.walk(case.pattern)}
        self.generic_visit(node)
        if "MatchValue" in kinds:  # a value may be as long as what it is compared with
            node.subject = ast.Call(name_node(CHAINED), [node.subject], [])
        elif kinds & {"MatchStar", "MatchMapping"}:
            node.subject = sized(node.subject)
        return cast(ast.AST, node)

    def visit_Starred(self, node: ast.Starred) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            node.value = spread(node.value)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self._formatted(node)
        return sized(node)

    def _formatted(self, node: ast.JoinedStr) -> None:
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                part.value = ast.Call(name_node(SHOWN), [self.visit(part.value)], [])
                if isinstance(part.format_spec, ast.JoinedStr):
                    self._formatted(part.format_spec)


def _check_words(node: ast.AST) -> None:
    """Refuse special names that a program may not define: ``__annotations__``, ``__reduce__``, ``__match_args__``..."""
    if isinstance(node, (ast.Constant, ast.Attribute, ast.ImportFrom)):
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return
    allowed = DEFINABLE if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) else READABLE_NAMES | {"__future__"}
    for word in words(node):
        if is_special(word) and word not in allowed:
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
