"""Pairs of a slow program and a fast equivalent, for the task type that is trained on only when asked for."""

from __future__ import annotations

from collections.abc import Callable

from lightning_dterm.data.microcode.conditions import Condition, bind_condition, draw_condition
from lightning_dterm.data.microcode.nodes import Count, Do, For, Function, If, Let, Node, Program, Return, Update
from lightning_dterm.data.microcode.number_pieces import NUMBER_MAPS
from lightning_dterm.data.microcode.pipelines import SOURCES, Shape, filtered
from lightning_dterm.data.microcode.spec import Bound, Code, Draw, Segments, bind

_MAPS = {piece.name: piece for piece in NUMBER_MAPS}
_NAMES = tuple(_MAPS)
_THAT = (" that ", " which ")
_HEADS = {
    "sum": ("the sum of ", "the total of "),
    "list": ("a list of ", "the list of "),
    "count": ("how many of ", "the count of those of "),
}


def _py(text: str) -> Code:
    """An expression of these Python-only programs."""
    return Code(text, "")


def _do(text: str) -> Do:
    return Do(_py(text))


def _each(variable: str, iterable: str, *body: Node) -> For:
    return For(_py(variable), _py(iterable), body)


def _if(test: str, *body: Node) -> If:
    return If(_py(test), body)


def _result(reduction: str, value: str) -> tuple[str, Node, Node, Node]:
    """Name, start, step and return of an accumulated result."""
    if reduction == "list":
        return "out", Let("out", _py("[]")), _do(f"out.append({value})"), Return(_py("out"))
    name = "count" if reduction == "count" else "total"
    return name, Let(name, _py("0")), Update(name, "+=", _py("1" if reduction == "count" else value)), Return(_py(name))


class _Parts:
    """What every pattern needs: names, a mapping, an optional condition and their code."""

    def __init__(self, shape: Shape, draw: Draw) -> None:
        _, _, reduction, map_name, condition_shape, style = shape
        self.draw = draw
        self.reduction = str(reduction)
        self.short = style == "comprehension"
        self.p, self.v = draw.pick(SOURCES["list"].names)
        self.mapping: Bound = bind(_MAPS[str(map_name)], draw)
        self.condition: Condition | None = (
            bind_condition(condition_shape, "number", draw) if condition_shape else None  # type: ignore[arg-type]
        )
        self.value = self.mapping.code(self.v).py
        self.hints = (self.condition.hints() if self.condition else ()) + self.mapping.hints()

    def guarded(self, *nodes: Node) -> tuple[Node, ...]:
        """``nodes`` under the condition, where there is one."""
        return filtered(nodes, self.condition, self.v)

    def short_form(self, value: str, test: str = "") -> str:
        """The reduction as one expression, under the condition and ``test``."""
        tests = [test] if test else []
        if self.condition:
            code = self.condition.code(self.v).py
            tests.insert(0, f"({code})" if test and self.condition.operator == "or" else code)
        value = "1" if self.reduction == "count" else value
        generator = f"{value} for {self.v} in {self.p}" + (f" if {' and '.join(tests)}" if tests else "")
        return f"[{generator}]" if self.reduction == "list" else f"sum({generator})"

    def phrase(self, relation: str = "") -> Segments:
        """The mapped values in words, ``relation`` (a verb phrase) before the condition."""
        noun = (f"the numbers in {self.p}", f"the elements of {self.p}")
        test = self.condition.plural() if self.condition else ()
        joint: Segments = ((" ",) if self.reduction == "count" else _THAT,)
        if relation:
            return (self.mapping.plural(), noun, *joint, (relation,), *(((" and ",), *test) if test else ()))
        return (self.mapping.plural(), noun, *((*joint, *test) if test else ()))

    def program(
        self,
        name: str,
        parameters: tuple[str, ...],
        slow: tuple[Node, ...],
        fast: tuple[Node, ...],
        text: Segments,
        domain: tuple[str, ...],
    ) -> Program:
        """The pair as a program."""
        return Program(
            "optimization",
            (Function(name, parameters, fast),),
            text,
            domain,
            self.hints,
            (Function(name, parameters, slow),),
        )


def _member(shape: Shape, draw: Draw) -> Program:
    """Nested-loop membership, against a set."""
    parts = _Parts(shape, draw)
    other = draw.pick(("ys", "others", "known", "allowed"))
    _, start, step, final = _result(parts.reduction, parts.value)
    inner = _each("y", other, _if(f"y == {parts.v}", step, _do("break")))
    slow = (start, _each(parts.v, parts.p, *parts.guarded(inner)), final)
    lookup, known = Let("lookup", _py(f"set({other})")), f"{parts.v} in lookup"
    if parts.short:
        fast: tuple[Node, ...] = (lookup, Return(_py(parts.short_form(parts.value, known))))
    else:
        fast = (lookup, start, _each(parts.v, parts.p, *parts.guarded(_if(known, step))), final)
    name = draw.pick(
        {"sum": ("sum_common", "sum_shared"), "list": ("common", "shared"), "count": ("count_common", "count_shared")}[
            parts.reduction
        ]
    )
    text = (_HEADS[parts.reduction], *parts.phrase(f"are in {other}"))
    return parts.program(name, (parts.p, other), slow, fast, text, ("few", "few"))


def _running(shape: Shape, draw: Draw) -> Program:
    """A sum begun anew at every position, against a running total."""
    parts = _Parts(shape, draw)
    p, v = parts.p, parts.v
    add = parts.guarded(Update("total", "+=", _py(parts.value)))
    zero, push, start, final = (
        Let("total", _py("0")),
        _do("out.append(total)"),
        Let("out", _py("[]")),
        Return(_py("out")),
    )
    slow = (start, Count("i", "0", _py(f"len({p})"), (zero, _each(v, f"{p}[: i + 1]", *add), push)), final)
    fast = (start, zero, _each(v, p, *add, push), final)
    text = (
        ("a list with, at each index, the sum up to there of ", "the list with, at every index, the sum so far of "),
        *parts.phrase(),
    )
    return parts.program(draw.pick(("running_sums", "sums_so_far", "cumulative")), (p,), slow, fast, text, ("numbers",))


def _hoist(shape: Shape, draw: Draw) -> Program:
    """A total recomputed for every item, against one computed before the loop."""
    parts = _Parts(shape, draw)
    p, v = parts.p, parts.v
    k = draw.integer(2, 6)
    y = "y" if v != "y" else "z"
    inner_value = parts.mapping.code(y).py
    other = (
        If(parts.condition.code(y), (Update("total", "+=", _py(inner_value)),))
        if parts.condition
        else Update("total", "+=", _py(inner_value))
    )
    zero, rebuilt = Let("total", _py("0")), _each(y, p, other)
    _, start, step, final = _result(parts.reduction, v)
    if parts.reduction == "sum":
        start, step, final = Let("result", _py("0")), Update("result", "+=", _py(v)), Return(_py("result"))
    choose = _if(f"{v} * {k} > total", step)
    slow = (start, _each(v, p, zero, rebuilt, choose), final)
    fast: tuple[Node, ...] = (zero, rebuilt, start, _each(v, p, choose), final)
    if parts.short:
        test = f"{v} * {k} > total"
        value = "1" if parts.reduction == "count" else v
        generator = f"{value} for {v} in {p} if {test}"
        fast = (zero, rebuilt, Return(_py(f"[{generator}]" if parts.reduction == "list" else f"sum({generator})")))
    noun = (f"the numbers in {p}", f"the elements of {p}")
    joint = (" ",) if parts.reduction == "count" else _THAT
    inner = _Parts.phrase(parts)
    if parts.reduction == "count":
        inner = inner[:2] + ((_THAT, *parts.condition.plural()) if parts.condition else ())
    text = (
        _HEADS[parts.reduction],
        noun,
        joint,
        (f"times {k} exceed the sum of ", f"times {k} are above the sum of "),
        *inner,
    )
    name = draw.pick(
        {"sum": ("sum_above", "sum_top"), "list": ("above", "top"), "count": ("count_above", "count_top")}[
            parts.reduction
        ]
    )
    return parts.program(name, (p,), slow, fast, text, ("numbers",))


def _counting(shape: Shape, draw: Draw) -> Program:
    """Every item counted by a walk over the whole list, against one dict of counts."""
    parts = _Parts(shape, draw)
    p, v = parts.p, parts.v
    y = "y" if v != "y" else "z"
    start, final = Let("counts", _py("{}")), Return(_py("counts"))
    key, other = parts.value, parts.mapping.code(y).py
    match = f"{other} == {key}"
    test = If(_py(match), (Update("n" if v != "n" else "m", "+=", _py("1")),))
    number = "n" if v != "n" else "m"
    inner: Node = If(parts.condition.code(y), (test,)) if parts.condition else test
    slow = (
        start,
        _each(v, p, *parts.guarded(Let(number, _py("0")), _each(y, p, inner), _do(f"counts[{key}] = {number}"))),
        final,
    )
    fast = (start, _each(v, p, *parts.guarded(_do(f"counts[{key}] = counts.get({key}, 0) + 1"))), final)
    text = (("a dict of how often each occurs of ", "a dict of the counts of "), *parts.phrase())
    return parts.program(draw.pick(("count_each", "tally", "frequencies")), (p,), slow, fast, text, ("few",))


def _copying(shape: Shape, draw: Draw) -> Program:
    """A list copied for every added item, against a comprehension."""
    parts = _Parts(shape, draw)
    p, v = parts.p, parts.v
    copy = (
        Let("copy", _py("[]")),
        _each("y", "out", _do("copy.append(y)")),
        _do(f"copy.append({parts.value})"),
        Update("out", "=", _py("copy")),
    )
    slow = (Let("out", _py("[]")), _each(v, p, *parts.guarded(*copy)), Return(_py("out")))
    fast: tuple[Node, ...] = (Return(_py(parts.short_form(parts.value))),)
    if not parts.short:
        fast = (
            Let("out", _py("[]")),
            _each(v, p, *parts.guarded(_do(f"out.append({parts.value})"))),
            Return(_py("out")),
        )
    text = (_HEADS["list"], *parts.phrase())
    return parts.program(draw.pick(("collect", "build_list", "gather")), (p,), slow, fast, text, ("numbers",))


def _unique(shape: Shape, draw: Draw) -> Program:
    """Repetitions searched for in the result, against a set of what was seen."""
    parts = _Parts(shape, draw)
    p, v = parts.p, parts.v
    start, final = Let("kept", _py("[]")), Return(_py("kept"))
    key = parts.value
    search = (
        Let("found", _py("False")),
        _each("y", "kept", _if(f"y == {key}", Update("found", "=", _py("True")))),
        _if("not found", _do(f"kept.append({key})")),
    )
    slow = (start, _each(v, p, *parts.guarded(*search)), final)
    add = _if(f"{key} not in seen", _do(f"seen.add({key})"), _do(f"kept.append({key})"))
    fast = (Let("seen", _py("set()")), start, _each(v, p, *parts.guarded(add)), final)
    text = (
        ("a list without repetitions, in order, of ", "the list, each only once and in order, of "),
        *parts.phrase(),
    )
    return parts.program(draw.pick(("unique", "without_repeats", "distinct")), (p,), slow, fast, text, ("few",))


_FORMULAS = {
    "same": "{n} * ({n} + 1) // 2",
    "double": "{n} * ({n} + 1)",
    "times": "{k} * {n} * ({n} + 1) // 2",
    "plus": "{n} * ({n} + 1) // 2 + {k} * {n}",
    "less": "{n} * ({n} + 1) // 2 - {k} * {n}",
    "from": "{k} * {n} - {n} * ({n} + 1) // 2",
    "negate": "-({n} * ({n} + 1) // 2)",
    "square": "{n} * ({n} + 1) * (2 * {n} + 1) // 6",
    "square_plus": "{n} * ({n} + 1) * (2 * {n} + 1) // 6 + {k} * {n}",
    "linear": "{k} * {n} * ({n} + 1) // 2 + {j} * {n}",
}


def _formula(shape: Shape, draw: Draw) -> Program:
    """A sum over a range, against its closed form."""
    parts = _Parts(shape, draw)
    n, i = draw.pick(SOURCES["range"].names)
    mapping = parts.mapping
    value = mapping.code(i).py
    if parts.reduction == "list":
        slow: tuple[Node, ...] = (Return(_py(f"sum([{value} for {i} in range(1, {n} + 1)])")),)
    else:
        slow = (
            Let("total", _py("0")),
            Count(i, "1", _py(f"{n} + 1"), (Update("total", "+=", _py(value)),)),
            Return(_py("total")),
        )
    fast = (Return(_py(_FORMULAS[mapping.piece.name].format(n=n, k=mapping.k, j=mapping.j))),)
    text = (_HEADS["sum"], mapping.plural(), (f"the integers from 1 to {n}", f"the numbers 1 to {n}"))
    return parts.program(draw.pick(("sum_to", "total_to", "series")), (n,), slow, fast, text, ("count",))


_PATTERNS: dict[str, tuple[Callable[[Shape, Draw], Program], tuple[str, ...], tuple[str, ...]]] = {
    "member": (_member, ("sum", "list", "count"), _NAMES),
    "running": (_running, ("list",), _NAMES),
    "hoist": (_hoist, ("sum", "list", "count"), _NAMES),
    "counting": (_counting, ("list",), _NAMES),
    "copying": (_copying, ("list",), _NAMES),
    "unique": (_unique, ("list",), _NAMES),
    "formula": (_formula, ("sum", "list"), tuple(_FORMULAS)),
}
_WHEEL = (
    "member",
    "member",
    "running",
    "running",
    "hoist",
    "hoist",
    "counting",
    "copying",
    "copying",
    "unique",
    "unique",
    "formula",
)


def draw_optimization(draw: Draw) -> Shape:
    """Structural choices of a slow and fast pair."""
    pattern = draw.pick(_WHEEL)
    _, reductions, names = _PATTERNS[pattern]
    reduction = draw.pick(reductions)
    mapping = "same" if pattern != "hoist" and reduction == "count" else draw.pick(names)
    condition = draw_condition(draw, "number", 0.5) if pattern != "formula" and draw.chance(0.75) else ()
    style = draw.pick(("loop", "comprehension")) if pattern in ("member", "hoist", "copying") else ""
    return ("optimization", pattern, reduction, mapping, condition, style)


def build_optimization(shape: Shape, draw: Draw) -> Program:
    """A pair of the given shape; ``functions`` is the fast program, ``slow`` the slow one."""
    return _PATTERNS[str(shape[1])][0](shape, draw)
