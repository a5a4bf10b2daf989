"""Assert-style tests (MBPP's ``test_list``, HumanEval's ``check``) as calls and expected values.

This is the part that only reads. Nothing of a test is run here: its text is parsed, and only literals are evaluated.
Three findings are possible:

* every assertion compares one call of the candidate, on literal arguments, with a literal: :attr:`Plan.tests`;
* every assertion has that shape but something must be computed first (arguments, expected values, loops):
  :attr:`Plan.emitter` is the test rewritten so that it computes them, with no candidate in reach;
* anything else: :attr:`Plan.program` is the test rewritten so that each assertion reports on its own, to be run
  against a stub of the candidate (:mod:`lightning_dterm.sandbox.stub`).
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lightning_dterm.sandbox.expect import Expectation
from lightning_dterm.sandbox.shapes import (
    NO_LITERAL,
    STRANGE,
    Matcher,
    Shape,
    bound_names,
    imported,
    in_order,
    is_plain,
    literal,
    report,
    rewrite,
)  # fmt: skip
from lightning_dterm.types import CallTest

_COPIES = frozenset({"deepcopy", "str", "int", "float", "bool", "len", "sum", "repr"})
_TRY_STAR: type[ast.AST] = getattr(ast, "TryStar", ast.Try)
_CATCHERS = (
    ast.Try, _TRY_STAR, ast.With, ast.AsyncWith, ast.AsyncFor, ast.ClassDef, ast.Lambda, ast.AsyncFunctionDef,
)  # fmt: skip
_RESERVED = "__t__"


class TestSyntaxError(ValueError):
    """A test that does not parse: names the place."""

    __test__ = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What reading a test found.

    Attributes:
        entry_point: Name of the function under test.
        n_sites: Number of ``assert`` statements.
        tests: Complete where everything is literal, otherwise None.
        emitter: Source that computes arguments and expected values, where every assertion has a shape; else None.
        rules: ``(rule, views)`` by place in ``emitter``.
        program: Source with each assertion reporting on its own.
        reason: Why ``emitter`` is None; empty otherwise.
    """

    entry_point: str
    n_sites: int
    tests: tuple[CallTest, ...] | None
    emitter: str | None
    rules: tuple[tuple[str, tuple[str, ...]], ...]
    program: str
    reason: str = ""


class _Site(NamedTuple):
    node: ast.Assert
    inside: bool  # its failure may be caught, or it may run more than once or never
    straight: bool  # it runs exactly once


def read_test(test: str, entry_point: str) -> Plan:
    """Read one test program.

    Args:
        test: Assert statements, or a function ``check(candidate)`` that holds them (it is called with the entry point).
        entry_point: Name of the function under test.

    Raises:
        TestSyntaxError: the test does not parse, or uses the reserved name ``__t__``.
    """
    if not entry_point.isidentifier():
        raise TestSyntaxError(f"The entry point {entry_point!r} is no name of a function.")
    try:
        tree = ast.parse(test)
        if any(isinstance(node, ast.Name) and node.id == _RESERVED for node in ast.walk(tree)):
            raise TestSyntaxError(f"The test of {entry_point!r} uses the reserved name {_RESERVED!r}: rename it.")
        return _Reader(tree, entry_point).plan()
    except SyntaxError as error:
        raise TestSyntaxError(
            f"The test of {entry_point!r} does not parse, line {error.lineno}: {error.msg}."
        ) from error
    except (RecursionError, MemoryError) as error:
        raise TestSyntaxError(f"The test of {entry_point!r} is nested too deeply to be read.") from error
    except ValueError as error:
        if isinstance(error, TestSyntaxError):
            raise
        raise TestSyntaxError(f"The test of {entry_point!r} does not parse: {error}.") from error


class _Reader:
    """One pass over a test: finds the assertions, their shapes, and what stands in the way."""

    def __init__(self, tree: ast.Module, entry_point: str) -> None:
        self.tree, self.entry_point = tree, entry_point
        self.bound = bound_names(tree)
        self.imports = imported(tree)
        checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
        self.check = checks[0] if len(checks) == 1 and not checks[0].decorator_list else None
        self.parameters = {argument.arg for argument in self.check.args.args[:1]} if self.check else set()
        self.candidates = {entry_point} | self.parameters
        self.driver = self._drive() if self.check else None
        self.order = {id(node): place for place, node in enumerate(in_order(tree)) if isinstance(node, ast.expr)}
        self.sites = list(_find_sites(tree, self.check, False, True))
        for number, site in enumerate(self.sites):
            site.node.site = number  # type: ignore[attr-defined]
        self.match = Matcher(self.candidates, self.bound, self.imports)

    def _drive(self) -> ast.Name | None:
        """The candidate's name in the one call ``check(candidate)``, which is added where it is missing."""
        if not self._loads("check"):
            call = ast.parse(f"check({self.entry_point})").body[0]
            self.tree.body.append(call)
        for statement in self.tree.body:
            call_ = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(call_, ast.Call) and isinstance(call_.func, ast.Name) and call_.func.id == "check":
                plain = len(call_.args) == 1 and not call_.keywords and len(self._loads("check")) == 1
                name = call_.args[0] if plain else None
                return name if isinstance(name, ast.Name) and name.id == self.entry_point else None
        return None

    def _loads(self, name: str) -> list[ast.Name]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.Name) and node.id == name]

    def plan(self) -> Plan:
        """The finding."""
        found = [self.match.shapes(site.node.test) for site in self.sites]
        reason = self._obstacle(found)
        program = rewrite(self.tree, [self._reporting(number) for number in range(len(self.sites))])
        if reason:
            return Plan(self.entry_point, len(self.sites), None, None, (), program, reason)
        shapes = [part or [] for part in found]
        emitter, rules = self._emitter(shapes)
        return Plan(self.entry_point, len(self.sites), self._literal_tests(shapes), emitter, rules, program)

    def _obstacle(self, found: list[list[Shape] | None]) -> str:
        """Why the test cannot be taken apart into calls and values; empty where it can."""
        for site, shapes in zip(self.sites, found, strict=True):
            if shapes is None:
                return f"line {site.node.lineno}: the assertion is no comparison of one call with a value"
            if site.inside:
                return f"line {site.node.lineno}: the assertion stands where its failure may be caught"
        if self.check is not None and (self.driver is None or not _one_parameter(self.check)):
            return "check() is not called just once with the candidate"
        allowed = {id(shape.call.func) for shapes in found for shape in shapes or ()} | {id(self.driver)}
        for site in self.sites:
            allowed |= {id(node) for node in ast.walk(site.node.msg)} if site.node.msg is not None else set()
        for name in sorted(self.candidates):
            for node in self._loads(name):
                if id(node) not in allowed:
                    return f"line {node.lineno}: {name!r} is used outside of a simple assertion"
        if self._rebound():
            return "the name of the candidate is bound again"
        return ""

    def _rebound(self) -> bool:
        arguments = [node.arg for node in ast.walk(self.tree) if isinstance(node, ast.arg)]
        others = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name) and _binds(node)}
        defined = {n.name for n in ast.walk(self.tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        repeated = {name for name in arguments if arguments.count(name) > (1 if name in self.parameters else 0)}
        return bool(self.candidates & (others | defined | repeated | set(self.imports)))

    def _literal_tests(self, shapes: list[list[Shape]]) -> tuple[CallTest, ...] | None:
        """The tests, where nothing has to be computed and nothing but assertions does anything."""
        if not all(site.straight for site in self.sites) or not self._inert():
            return None
        tests = []
        for shape in (shape for part in shapes for shape in part):
            args, expected = literal(ast.Tuple(shape.call.args, ast.Load())), literal(shape.expected)
            if args is NO_LITERAL or expected is NO_LITERAL or not (is_plain(args) and is_plain(expected)):
                return None
            tests.append(CallTest(args, Expectation(expected, shape.rule, shape.views)))
        return tuple(tests) or None

    def _inert(self) -> bool:
        """Whether nothing but the assertions can have any effect."""
        body = [*self.tree.body, *(self.check.body if self.check else ())]
        return all(node is self.check or _is_inert(node, self.driver) for node in body)

    def _emitter(self, shapes: list[list[Shape]]) -> tuple[str, tuple[tuple[str, tuple[str, ...]], ...]]:
        """The test with each assertion replaced by a report of its arguments and expected value."""
        replacements: list[list[ast.stmt]] = []
        rules: list[tuple[str, tuple[str, ...]]] = []
        for part in shapes:
            statements: list[ast.stmt] = []
            for shape in part:
                arguments = ast.Tuple(shape.call.args, ast.Load())
                seen = ast.parse(repr(self._seen_again(shape)), mode="eval").body
                statements.append(report("emit", [ast.Constant(len(rules)), seen, arguments, shape.expected]))
                rules.append((shape.rule, shape.views))
            replacements.append(statements or [ast.Pass()])
        return rewrite(self.tree, replacements), tuple(rules)

    def _seen_again(self, shape: Shape) -> tuple[str, ...] | bool:
        """Variables that the test looks at after a candidate could have changed what they hold; True for any."""
        if not any(self._variables(argument, copied=True) for argument in shape.call.args):
            return False
        functions = [n for n in ast.walk(self.tree) if isinstance(n, (ast.FunctionDef, ast.Lambda))]
        loops = [n for n in ast.walk(self.tree) if isinstance(n, (ast.For, ast.While))]
        if len(functions) > (self.check is not None) or any(shape.call in ast.walk(loop) for loop in loops):
            return True
        last = max(self.order[id(node)] for node in ast.walk(shape.call) if isinstance(node, ast.expr))
        return tuple({node.id: None for node in self._variables(self.tree) if self.order[id(node)] > last})

    def _variables(self, root: ast.AST, copied: bool = False) -> list[ast.Name]:
        """Loads of variables of the test or its context; ``copied`` leaves out what only a copying call sees."""
        found: list[ast.Name] = []
        pending = [root]
        while pending:
            node = pending.pop()
            if copied and isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in _COPIES:
                    continue
            pending.extend(ast.iter_child_nodes(node))
            if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
                continue
            builtin = hasattr(builtins, node.id) and node.id not in self.bound
            if not builtin and node.id not in {*self.candidates, *self.imports, "check"}:
                found.append(node)
        return found

    def _reporting(self, number: int) -> list[ast.stmt]:
        """One assertion that reports on its own; its message, which may call the candidate again, is dropped."""
        site = self.sites[number]
        if any(isinstance(part, STRANGE) for part in ast.walk(site.node.test)):
            return [ast.Assert(site.node.test, None)]
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        condition = ast.Lambda(nothing, site.node.test)
        return [report("check", [ast.Constant(number), ast.Constant(site.inside), condition])]


def _binds(node: ast.Name) -> bool:
    return not isinstance(node.ctx, ast.Load)


def _one_parameter(function: ast.FunctionDef) -> bool:
    arguments = function.args
    others = (arguments.posonlyargs, arguments.kwonlyargs, arguments.vararg, arguments.kwarg, arguments.defaults)
    return len(arguments.args) == 1 and not any(others)


def _is_inert(node: ast.stmt, driver: ast.Name | None) -> bool:
    if isinstance(node, (ast.Assert, ast.Pass)):
        return True
    if isinstance(node, ast.Expr):
        driven = isinstance(node.value, ast.Call) and driver is not None and driver in node.value.args
        named = isinstance(node.value, ast.Name) and hasattr(builtins, node.value.id)
        return driven or named or isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Name) for target in node.targets) and literal(node.value) is not NO_LITERAL
    if isinstance(node, ast.Import):
        return all(alias.name.partition(".")[0] in sys.stdlib_module_names for alias in node.names)
    return False


def _find_sites(node: ast.AST, check: ast.FunctionDef | None, inside: bool, straight: bool) -> Iterator[_Site]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Assert):
            yield _Site(child, inside, straight)
        elif child is check:
            yield from _find_sites(child, check, inside, straight)
        elif isinstance(child, (ast.FunctionDef, *_CATCHERS)):
            yield from _find_sites(child, check, True, False)
        else:
            yield from _find_sites(child, check, inside, False)
