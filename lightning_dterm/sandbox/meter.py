"""A deterministic cost for Python programs: operations counted by instrumenting the syntax tree. Standard library only.

The unit is one operation of the program's source: each node of the syntax tree counts once whenever its block runs.
That does not depend on the machine, its load, or the Python version. Work that built-in functions do in C is charged by
the size of what they read or make (a membership test by the list's length, a sort by n log n, a slice by what it
copies), one unit for as many elements as CPython handles in the time of one operation. Hardware counters would be more
exact, but containers rarely grant them; line or opcode events are blind to C and differ between versions.

A metered program is also held to what can be metered: it cannot reach frames, code objects, private names of modules,
or modules outside a list of algorithmic ones, so it cannot reach its own counter either (within this language; the
kernel's CPU time bounds what is left, see ``slot``). What cannot be metered has no cost.

Limits: backtracking inside one regular-expression match, collisions of hashes, and ``a == b == c`` on large values are
charged too little.
"""

from __future__ import annotations

import ast
import builtins
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast

from lightning_dterm.sandbox.meter_rules import (
    COMPARE_WITH,
    GROWING,
    IMPORTABLE,
    OPERATE,
    PUBLIC_DUNDERS,
    REFUSED_NAMES,
    SYS_NAMES,
    charge_for,
    integer_work,
    size_of,
)

# Names that end in underscores are not mangled inside classes.
_TICK, _CALL, _IN, _BINARY, _SIZED, _COMPARE, _REFUSE = (
    f"__m_{name}__" for name in ("tick", "call", "in", "binary", "sized", "compare", "refuse")
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
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_FRAMES = ("gi_", "cr_", "ag_", "tb_", "f_", "co_", "func_")
_FLAT = (int, float, bool, type(None))


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
    if private or (name.startswith(_FRAMES) and name not in assigned):
        raise Unmetered(f"attribute {name!r} cannot be metered")


class _Instrumenter(ast.NodeTransformer):
    """Adds a tick to every block and wraps every operation whose cost depends on its operands."""

    def __init__(self, tree: ast.AST) -> None:
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) and any("__m_" in word for word in _words(node)):
                raise Unmetered("names with '__m_' cannot be metered")
        self._assigned = frozenset(
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and not node.attr.endswith("__")
        ) | frozenset(
            node.name
            for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.endswith("__")
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

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
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
        self.generic_visit(node)
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
        if isinstance(node.func, ast.Name) and node.func.id == "super":
            return node
        return ast.Call(_name(_CALL), [node.func, *node.args], node.keywords)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        membership = [isinstance(operator, (ast.In, ast.NotIn)) for operator in node.ops]
        if len(node.ops) > 1:
            if any(membership):
                raise Unmetered("'in' inside a chain of comparisons cannot be metered")
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
        node.value = _sized(node.value)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        sliced = any(isinstance(part, ast.Slice) for part in ast.walk(node.slice))
        self.generic_visit(node)
        return _sized(node) if sliced and isinstance(node.ctx, ast.Load) else node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        if any(isinstance(t, ast.Subscript) and isinstance(t.slice, ast.Slice) for t in node.targets):
            node.value = _sized(node.value)
        return node

    def visit_Delete(self, node: ast.Delete) -> Any:
        values = [t.value for t in node.targets if isinstance(t, ast.Subscript) and isinstance(t.value, ast.Name)]
        if any(isinstance(t, ast.Subscript) for t in node.targets) and not values:
            raise Unmetered("del of an element of an expression cannot be metered")
        charges = [ast.Expr(_sized(_name(value.id))) for value in values]  # a list moves its tail
        return [*charges, self.generic_visit(node)]

    def visit_Starred(self, node: ast.Starred) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            node.value = _sized(node.value)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        for value in ast.walk(node):
            if isinstance(value, ast.FormattedValue):
                value.value = self.visit(value.value)
        return _sized(node)


def _words(node: ast.AST) -> list[str]:
    """The identifiers of a node."""
    values = [value for _, value in ast.iter_fields(node)]
    return [word for value in values for word in (value if isinstance(value, list) else [value]) if type(word) is str]


def _listed(node: Any) -> list[ast.stmt]:
    return node if isinstance(node, list) else [node]


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


class Meter:
    """Counts the operations of one program.

    Args:
        cap: Count at which to stop.
        stop: Called once with the count when it reaches the cap; must not return.

    Attributes:
        cost: Operations so far.
    """

    def __init__(self, cap: int, stop: Callable[[int], Any]) -> None:
        self.cost, self._cap, self._stop = 0, cap, stop

    def tick(self, units: int) -> bool:
        """Count; True, so that it can stand in a condition."""
        self.cost += units
        if self.cost >= self._cap:
            self._stop(self._cap)
        return True

    def prepare(self, program: str, filename: str) -> tuple[types.CodeType, dict[str, Any]]:
        """The instrumented program and the namespace to run it in.

        Raises:
            Unmetered: it uses what cannot be metered.
            SyntaxError: it does not parse.
        """
        code = self._compile(program, filename)
        module = sys.modules["program"] = types.ModuleType("program")  # dataclasses look their module up
        module.__dict__["__builtins__"] = self._builtins()
        return code, module.__dict__

    @staticmethod
    def _compile(source: str, filename: str) -> types.CodeType:
        tree = ast.parse(source, filename)
        tree.body = _Instrumenter(tree).block(tree.body)
        return compile(ast.fix_missing_locations(tree), filename, "exec", dont_inherit=True)

    def _builtins(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(builtins).items() if name not in REFUSED_NAMES}
        wrapped = {
            _TICK: self.tick, _CALL: self._call, _IN: self._in, _BINARY: self._binary, _SIZED: self._sized,
            _COMPARE: self._compare, _REFUSE: _refuse, "__import__": self._import, "getattr": _getattr,
            "hasattr": _hasattr, "setattr": _setattr, "delattr": _delattr, "__build_class__": builtins.__build_class__,
        }  # fmt: skip
        return {**kept, **wrapped}

    def _call(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if type(function) is types.FunctionType and function.__globals__.get("__name__") == "program":
            return function(*args, **kwargs)
        before, after = charge_for(function, args)
        if before:
            self.tick(before)
        result = function(*args, **kwargs)
        if type(result) in _FLAT:
            return result
        if after:
            self.tick(size_of(result))
        if hasattr(type(result), "__next__") and type(result) is not types.GeneratorType:
            return self._counted(result)
        return result

    def _counted(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """An iterator of C code (``map``, ``zip``, ``itertools``...), each of whose items is charged."""
        for item in iterator:
            self.tick(2 if type(item) in _FLAT else 2 + size_of(item))
            yield item

    def _in(self, item: Any, container: Any) -> bool:
        if isinstance(container, (list, tuple, str, bytes, bytearray)) or hasattr(container, "rotate"):
            self.tick(1 + len(container) // 4)
        return item in container

    def _compare(self, operator: str, left: Any, right: Any) -> Any:
        if type(left) not in _FLAT and type(right) not in _FLAT:
            self.tick(min(size_of(left), size_of(right)))
        return COMPARE_WITH[operator](left, right)

    def _binary(self, operator: str, left: Any, right: Any) -> Any:
        if operator in GROWING and type(left) is int and type(right) is int:
            self.tick(integer_work(operator, left, right))
            return OPERATE[operator](left, right)
        result = OPERATE[operator](left, right)
        if type(result) not in _FLAT:
            in_place = operator == "iadd" and result is left
            text = operator in ("iadd", "add") and type(result) is str  # CPython appends in place
            self.tick(size_of(right if in_place or text else result))
        elif type(left) is int and left.bit_length() > 128:
            self.tick(size_of(left))
        return result

    def _sized(self, value: Any) -> Any:
        self.tick(size_of(value))
        return value

    def _import(self, name: str, space: Any = None, local: Any = None, names: Any = (), level: int = 0) -> Any:
        if level or name not in IMPORTABLE:
            raise Unmetered(f"import of {name!r} cannot be metered")
        return _public(builtins.__import__(name, None, None, ["_"]), SYS_NAMES if name == "sys" else None)


def _public(module: types.ModuleType, only: frozenset[str] | None) -> types.ModuleType:
    """A module with the public functions and values of another, and no way to further modules."""
    copy = types.ModuleType(module.__name__)
    for name, value in vars(module).items():
        allowed = not name.startswith("_") and name not in REFUSED_NAMES if only is None else name in only
        if allowed and not isinstance(value, types.ModuleType):
            setattr(copy, name, value)
    return copy


def _refuse(message: str) -> NoReturn:
    raise Unmetered(message)


def _getattr(value: Any, name: str, *default: Any) -> Any:
    check_name(str(name))
    return getattr(value, name, *default)


def _hasattr(value: Any, name: str) -> bool:
    check_name(str(name))
    return hasattr(value, name)


def _setattr(value: Any, name: str, new: Any) -> None:
    check_name(str(name))
    setattr(value, name, new)


def _delattr(value: Any, name: str) -> None:
    check_name(str(name))
    delattr(value, name)
