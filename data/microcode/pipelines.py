"""The main family: keep some values of a source, map each, reduce them; as a loop or as a comprehension."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_dterm.data.microcode.conditions import Condition, bind_condition, draw_condition
from lightning_dterm.data.microcode.nodes import Count, Do, For, Function, If, Let, Node, Program, Return, Update
from lightning_dterm.data.microcode.number_pieces import NUMBER_MAPS
from lightning_dterm.data.microcode.spec import Bound, Code, Draw, Piece, Segments, bind, by_name
from lightning_dterm.data.microcode.text_pieces import CHARACTER_MAPS, WORD_MAPS, WORD_MEASURES

Shape = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the values come from."""

    name: str
    kind: str
    domain: str
    names: tuple[tuple[str, str], ...]
    noun: tuple[str, ...]
    iterable: Code
    array: str


_LISTS = (("xs", "x"), ("nums", "n"), ("values", "v"), ("numbers", "n"), ("data", "x"), ("items", "x"))
SOURCES = {
    source.name: source
    for source in (
        Source(
            "list",
            "number",
            "numbers",
            _LISTS,
            ("the numbers in {p}", "the elements of {p}"),
            Code("{p}", "{p}"),
            "{p}",
        ),
        Source(
            "range",
            "natural",
            "count",
            (("n", "i"), ("limit", "i"), ("n", "k"), ("top", "i")),
            ("the integers from 1 to {p}", "the numbers 1 to {p}"),
            Code("range(1, {p} + 1)", ""),
            "Array.from({{ length: {p} }}, (_, j) => j + 1)",
        ),
        Source(
            "rest",
            "number",
            "numbers",
            _LISTS,
            ("the numbers in {p} after the first", "the elements of {p} from index 1 on"),
            Code("{p}[1:]", "{p}.slice(1)"),
            "{p}.slice(1)",
        ),
        Source(
            "second",
            "number",
            "numbers",
            _LISTS,
            ("the numbers in {p} at even indices", "every second element of {p}"),
            Code("{p}[::2]", "{p}.filter((_, i) => i % 2 === 0)"),
            "{p}.filter((_, i) => i % 2 === 0)",
        ),
        Source(
            "back",
            "number",
            "numbers",
            _LISTS,
            ("the numbers in {p} from last to first", "the elements of {p} in reverse"),
            Code("{p}[::-1]", "[...{p}].reverse()"),
            "[...{p}].reverse()",
        ),
        Source(
            "table",
            "number",
            "table",
            (("d", "v"), ("scores", "v"), ("stock", "n"), ("prices", "v")),
            ("the values in {p}", "the values of dict {p}"),
            Code("{p}.values()", "Object.values({p})"),
            "Object.values({p})",
        ),
        Source(
            "words",
            "word",
            "words",
            (("words", "w"), ("names", "s"), ("texts", "t"), ("words", "s")),
            ("the words in {p}", "the strings in {p}"),
            Code("{p}", "{p}"),
            "{p}",
        ),
        Source(
            "string",
            "character",
            "string",
            (("s", "c"), ("text", "c"), ("line", "c"), ("text", "ch")),
            ("the characters of {p}", "the characters in {p}"),
            Code("{p}", "{p}"),
            "[...{p}]",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Reduction:
    """How the mapped values become one result."""

    name: str
    text: tuple[str, ...]
    tail: tuple[str, ...]
    tag: tuple[str, ...]
    types: tuple[str, ...]
    styles: tuple[str, ...] = ("loop", "comprehension")
    k: tuple[int, int] | None = None


_NONE = ("", "")
REDUCTIONS = {
    item.name: item
    for item in (
        Reduction("sum", ("the sum of ", "the total of "), _NONE[:1], ("sum", "total"), ("int",)),
        Reduction("product", ("the product of ",), _NONE[:1], ("product",), ("int",), ("loop",)),
        Reduction("list", ("a list of ", "the list of "), _NONE[:1], ("list", "collect"), ("int", "str", "char")),
        Reduction(
            "max", ("the largest of ", "the maximum of "), (", or 0 if there are none",), ("max", "largest"), ("int",)
        ),
        Reduction(
            "min", ("the smallest of ", "the minimum of "), (", or 0 if there are none",), ("min", "smallest"), ("int",)
        ),
        Reduction(
            "first", ("the first of ",), (", or None if there are none",), ("first", "find"), ("int", "str", "char")
        ),
        Reduction(
            "last", ("the last of ",), (", or None if there are none",), ("last",), ("int", "str", "char"), ("loop",)
        ),
        Reduction(
            "sorted",
            ("a sorted list of ", "the ascending list of "),
            _NONE[:1],
            ("sorted", "ordered"),
            ("int", "str"),
            ("comprehension",),
        ),
        Reduction(
            "descending",
            ("the descending list of ", "the list from high to low of "),
            _NONE[:1],
            ("descending",),
            ("int",),
            ("comprehension",),
        ),
        Reduction(
            "lowest",
            ("the {k} smallest of ", "the ascending first {k} of "),
            _NONE[:1],
            ("lowest",),
            ("int",),
            ("comprehension",),
            (2, 4),
        ),
        Reduction(
            "distinct",
            ("the number of distinct values among ", "how many different values are among "),
            _NONE[:1],
            ("distinct",),
            ("int", "str"),
            ("comprehension",),
        ),
        Reduction(
            "join", ("the string made of ", "the concatenation of "), _NONE[:1], ("join", "concat"), ("str", "char")
        ),
        Reduction(
            "dashed",
            ("the string with dashes between ", "the dash-joined string of "),
            _NONE[:1],
            ("dashed",),
            ("str", "char"),
            ("comprehension",),
        ),
        Reduction(
            "longest",
            ("the first longest of ", "the earliest longest of "),
            (", or '' if there are none",),
            ("longest",),
            ("str",),
            ("comprehension",),
        ),
        Reduction("count", ("how many of ", "the count of those of "), _NONE[:1], ("count", "how_many"), ("test",)),
        Reduction("any", ("whether any of ", "whether at least one of "), _NONE[:1], ("any", "has"), ("test",)),
        Reduction("all", ("whether all of ", "whether every one of "), _NONE[:1], ("all", "only"), ("test",)),
    )
}
MAPS: dict[str, tuple[Piece, ...]] = {
    "number": NUMBER_MAPS,
    "natural": NUMBER_MAPS,
    "word": WORD_MAPS + WORD_MEASURES,
    "character": CHARACTER_MAPS,
}
MAPS_BY_NAME = {kind: by_name(pieces) for kind, pieces in MAPS.items()}
_MEASURES = {piece.name for piece in WORD_MEASURES}


def value_type(kind: str, mapping: str) -> str:
    """The type of a mapped value: ``int``, ``str`` (a word) or ``char``."""
    if kind in ("number", "natural"):
        return "int"
    if kind == "character":
        return "char"
    return "int" if mapping in _MEASURES else "str"


_BY_TYPE = {
    kind: tuple(item for item in REDUCTIONS.values() if kind in item.types) for kind in ("int", "str", "char", "test")
}
_SOURCE_NAMES = ("list", "list", "list", "range", "table", "words", "words", "string", "string")
_SLICED = ("rest", "second", "back")


def draw_pipeline(draw: Draw) -> Shape:
    """The structural choices: source, style, reduction, mapping, condition."""
    source = SOURCES[draw.pick(_SLICED if draw.chance(0.12) else _SOURCE_NAMES)]
    if draw.chance(0.3):
        reduction, mapping = draw.pick(_BY_TYPE["test"]), "same"
        condition = draw_condition(draw, source.kind)
    else:
        mapping = "same" if draw.chance(0.2) else draw.pick(MAPS[source.kind]).name
        reduction = draw.pick(_BY_TYPE[value_type(source.kind, mapping)])
        condition = draw_condition(draw, source.kind) if mapping == "same" or draw.chance(0.7) else ()
    return ("pipeline", source.name, draw.pick(reduction.styles), reduction.name, mapping, condition)


def segments(
    source: Source, parameter: str, reduction: Reduction, mapping: Bound, condition: Condition | None, k: int
) -> Segments:
    """The description of a pipeline."""
    head = tuple(text.format(k=k) for text in reduction.text)
    noun = tuple(text.format(p=parameter) for text in source.noun)
    parts: Segments = (head, mapping.plural(), noun)
    if condition is not None:
        joint = ((" ",),) if reduction.types == ("test",) else ((" that ", " which "),)
        parts += joint + condition.plural()
    return (*parts, reduction.tail)


def filtered(nodes: tuple[Node, ...], condition: Condition | None, variable: str) -> tuple[Node, ...]:
    """``nodes`` under ``condition`` where there is one."""
    return (If(condition.code(variable), nodes),) if condition is not None else nodes


def over(source: Source, parameter: str, variable: str, body: tuple[Node, ...]) -> Node:
    """A loop over the source."""
    if source.name == "range":
        return Count(variable, "1", Code(f"{parameter} + 1", f"<= {parameter}"), body)
    iterable = Code(source.iterable.py.format(p=parameter), source.iterable.js.format(p=parameter))
    return For(Code(variable, variable), iterable, body)


def loop_body(
    name: str, source: Source, p: str, v: str, value: Code, condition: Condition | None, draw: Draw
) -> tuple[Node, ...]:
    """The statements of a pipeline written as a loop."""

    def loop(*nodes: Node) -> Node:
        return over(source, p, v, filtered(nodes, condition, v))

    if name in ("sum", "count", "product", "join"):
        start = {"sum": "0", "count": "0", "product": "1", "join": '""'}[name]
        names = {"count": ("count", "found"), "join": ("out", "result")}.get(name, ("total", "result"))
        result = draw.pick(names)
        step = Code("1", "1") if name == "count" else value
        update = Update(result, "*=" if name == "product" else "+=", step)
        return Let(result, Code(start, start)), loop(update), Return(Code(result, result))
    if name in ("list", "max", "min"):
        result = draw.pick(("result", "out", "kept"))
        final = Code(result, result)
        if name != "list":
            final = Code(f"{name}({result}, default=0)", f"{result}.length ? Math.{name}(...{result}) : 0")
        push = Do(Code(f"{result}.append({value.py})", f"{result}.push({value.js})"))
        return Let(result, Code("[]", "[]")), loop(push), Return(final)
    if name == "first":
        return loop(Return(value)), Return(Code("None", "null"))
    if name == "last":
        return Let("last", Code("None", "null")), loop(Update("last", "=", value)), Return(Code("last", "last"))
    assert condition is not None
    yes, no = Code("True", "true"), Code("False", "false")
    if name == "any":
        return over(source, p, v, (If(condition.code(v), (Return(yes),)),)), Return(no)
    return over(source, p, v, (If(condition.negated(v), (Return(no),)),)), Return(yes)


def chain(source: Source, p: str, v: str, value: Code, condition: Condition | None, identity: bool) -> tuple[str, str]:
    """Python's generator text and JavaScript's filter/map chain."""
    iterable = source.iterable.py.format(p=p)
    py = f"{value.py} for {v} in {iterable}"
    js = source.array.format(p=p)
    if condition is not None:
        code = condition.code(v)
        py += f" if {code.py}"
        js += f".filter(({v}) => {code.js})"
    if not identity:
        js += f".map(({v}) => {value.js})"
    return py, js


_SIMPLE = {
    "sum": ("sum({g})", "{c}.reduce((a, b) => a + b, 0)"),
    "list": ("[{g}]", "{c}"),
    "sorted": ("sorted({g})", "{c}.sort((a, b) => a - b)"),
    "descending": ("sorted(({g}), reverse=True)", "{c}.sort((a, b) => b - a)"),
    "lowest": ("sorted({g})[:{k}]", "{c}.sort((a, b) => a - b).slice(0, {k})"),
    "distinct": ("len({{{g}}})", "new Set({c}).size"),
    "join": ('"".join({g})', '{c}.join("")'),
    "dashed": ('"-".join({g})', '{c}.join("-")'),
    "longest": ('max(({g}), key=len, default="")', '{c}.reduce((a, b) => (b.length > a.length ? b : a), "")'),
}


def comprehension_body(
    name: str, g: str, c: str, v: str, k: int, words: bool, condition: Condition | None
) -> tuple[Node, ...]:
    """The statements of a pipeline written as one expression."""
    if name in _SIMPLE:
        py, js = _SIMPLE[name]
        if name == "sorted" and words:
            js = "{c}.sort()"
        return (Return(Code(py.format(g=g, k=k), js.format(c=c, k=k))),)
    if name in ("max", "min"):
        js = f"found.length ? Math.{name}(...found) : 0"
        return (Return(Code(f"{name}(({g}), default=0)", js), (f"const found = {c};",)),)
    if name == "first":
        return (Return(Code(f"next(({g}), None)", "found.length ? found[0] : null"), (f"const found = {c};",)),)
    assert condition is not None
    code = condition.code(v)
    iterable = g.split(f" for {v} in ", 1)[1].split(" if ", 1)[0]
    array = c.rsplit(".filter(", 1)[0]
    if name == "count":
        return (Return(Code(f"sum(1 for {v} in {iterable} if {code.py})", f"{c}.length")),)
    method = "some" if name == "any" else "every"
    return (Return(Code(f"{name}({code.py} for {v} in {iterable})", f"{array}.{method}(({v}) => {code.js})")),)


def build_pipeline(shape: Shape, draw: Draw) -> Program:
    """A program of the given shape with names and constants drawn."""
    _, source_name, style, reduction_name, map_name, condition_shape = shape
    source, reduction = SOURCES[str(source_name)], REDUCTIONS[str(reduction_name)]
    p, v = draw.pick(source.names)
    mapping = bind(MAPS_BY_NAME[source.kind][str(map_name)], draw)
    condition = bind_condition(condition_shape, source.kind, draw) if condition_shape else None  # type: ignore[arg-type]
    k = draw.integer(*reduction.k) if reduction.k else 0
    value = mapping.code(v)
    words = value_type(source.kind, mapping.piece.name) != "int"
    if style == "loop":
        body = loop_body(reduction.name, source, p, v, value, condition, draw)
    else:
        g, c = chain(source, p, v, value, condition, mapping.piece.name == "same")
        body = comprehension_body(reduction.name, g, c, v, k, words, condition)
    tags = [tag for tag in (condition.tag if condition else "", mapping.piece.tag) if tag]
    name = f"{draw.pick(reduction.tag)}_{draw.pick(tags)}"
    hints = (condition.hints() if condition else ()) + mapping.hints()
    text = segments(source, p, reduction, mapping, condition, k)
    return Program("pipeline", (Function(name, (p,), tuple(body)),), text, (source.domain,), hints)
