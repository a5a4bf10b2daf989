"""Families around dicts, positions, running values and digits."""

from __future__ import annotations

from lightning_dterm.data.microcode.conditions import Condition, bind_condition, draw_condition
from lightning_dterm.data.microcode.nodes import Do, For, Function, If, Let, Node, Program, Return, Update, While
from lightning_dterm.data.microcode.number_pieces import NUMBER_MAPS
from lightning_dterm.data.microcode.pipelines import SOURCES, Shape, filtered
from lightning_dterm.data.microcode.spec import Bound, Code, Draw, Segments, bind, by_name
from lightning_dterm.data.microcode.text_pieces import WORD_MAPS, WORD_MEASURES

_NUMBER = by_name(NUMBER_MAPS)
_KEYS = by_name(WORD_MAPS + WORD_MEASURES)
_THAT = (" that ", " which ")


def _optional(draw: Draw, kind: str, probability: float = 0.7) -> tuple[str, ...]:
    return draw_condition(draw, kind, 0.15) if draw.chance(probability) else ()


def _that(condition: Condition | None) -> Segments:
    return (_THAT, *condition.plural()) if condition else ()


def _hints(condition: Condition | None, mapping: Bound | None = None) -> tuple[int | str, ...]:
    return (condition.hints() if condition else ()) + (mapping.hints() if mapping else ())


def draw_dict(draw: Draw) -> Shape:
    """Structural choices of counting or grouping into a dict."""
    source = draw.pick(("list", "words", "words", "string"))
    style = draw.pick(("count", "group", "total") if source != "string" else ("count",))
    if source == "string":
        key = "same"
    elif source == "list":
        key = draw.pick(("same", "modulo", "quotient", "abs", "square", "cap", "floor", "double"))
    else:
        key = draw.pick(("length", "prefix", "upper", "same", "reverse", "tail", "occurrences"))
    if style == "group" and key == "same":
        style = "count"
    return ("dict", style, source, key, _optional(draw, SOURCES[source].kind))


def build_dict(shape: Shape, draw: Draw) -> Program:
    """``counts[key] = counts.get(key, 0) + 1`` and its relatives."""
    _, style, source_name, key_name, condition_shape = shape
    source = SOURCES[str(source_name)]
    p, v = draw.pick(source.names)
    key = bind((_NUMBER if source.kind == "number" else _KEYS)[str(key_name)], draw)
    condition = bind_condition(condition_shape, source.kind, draw) if condition_shape else None  # type: ignore[arg-type]
    at = key.code(v)
    noun = tuple(text.format(p=p) for text in source.noun)
    if style == "count":
        d, tag = draw.pick((("counts", "count"), ("freq", "tally"), ("seen", "count")))
        step = Do(Code(f"{d}[{at.py}] = {d}.get({at.py}, 0) + 1", f"{d}[{at.js}] = ({d}[{at.js}] || 0) + 1"))
        head = ("a dict of how often each occurs of ", "a dict of the counts of ")
    elif style == "group":
        d, tag = draw.pick((("groups", "group"), ("table", "group")))
        step = Do(Code(f"{d}.setdefault({at.py}, []).append({v})", f"({d}[{at.js}] ||= []).push({v})"))
        head = ("a dict of lists grouped by ", "a dict that groups into lists by ")
    else:
        d, tag = draw.pick((("index", "index"), ("table", "map")))
        step = Do(Code(f"{d}[{v}] = {at.py}", f"{d}[{v}] = {at.js}"))
        head = ("a dict from each item to ", "a dict that maps each item to ")
    loop = For(Code(v, v), Code(p, f"[...{p}]" if source.name == "string" else p), filtered((step,), condition, v))
    body = (Let(d, Code("{}", "{}")), loop, Return(Code(d, d)))
    text: Segments = (head, key.plural(), noun, *_that(condition))
    name = f"{tag}_{key.piece.tag or (condition.tag if condition else source.name)}"
    return Program("dict", (Function(name, (p,), body),), text, (source.domain,), _hints(condition, key))


def draw_table(draw: Draw) -> Shape:
    """Structural choices of a program that reads a dict's items."""
    style = draw.pick(("keys", "keys_loop", "map", "map_loop", "sum"))
    mapping = "same" if style.startswith("keys") else draw.pick(NUMBER_MAPS[1:]).name
    return (
        "table",
        style,
        mapping,
        draw_condition(draw, "number", 0.3) if mapping == "same" else _optional(draw, "number"),
    )


def _keys_body(short: bool, p: str, v: str, condition: Condition, draw: Draw) -> tuple[Node, ...]:
    """The keys whose values satisfy the condition."""
    if short:
        js = f"Object.keys({p}).filter((k) => {condition.code(f'{p}[k]').js})"
        return (Return(Code(f"[k for k, {v} in {p}.items() if {condition.code(v).py}]", js)),)
    out = draw.pick(("keys", "result"))
    push = Do(Code(f"{out}.append(k)", f"{out}.push(k)"))
    return Let(out, Code("[]", "[]")), _items(p, v, filtered((push,), condition, v)), Return(Code(out, out))


def _map_body(short: bool, p: str, v: str, value: Code, condition: Condition | None, draw: Draw) -> tuple[Node, ...]:
    """A dict of mapped values."""
    if short:
        guard = f" if {condition.code(v).py}" if condition else ""
        rest = f".filter(([k, {v}]) => {condition.code(v).js})" if condition else ""
        js = f"Object.fromEntries(Object.entries({p}){rest}.map(([k, {v}]) => [k, {value.js}]))"
        return (Return(Code(f"{{k: {value.py} for k, {v} in {p}.items(){guard}}}", js)),)
    out = draw.pick(("out", "result"))
    put = Do(Code(f"{out}[k] = {value.py}", f"{out}[k] = {value.js}"))
    return Let(out, Code("{}", "{}")), _items(p, v, filtered((put,), condition, v)), Return(Code(out, out))


def _items(p: str, v: str, body: tuple[Node, ...]) -> Node:
    """A loop over a dict's keys and values."""
    return For(Code(f"k, {v}", f"[k, {v}]"), Code(f"{p}.items()", f"Object.entries({p})"), body)


def build_table(shape: Shape, draw: Draw) -> Program:
    """Keys by value, or a dict of mapped values."""
    _, style, map_name, condition_shape = shape
    p = draw.pick(("d", "scores", "stock", "prices", "ages"))
    v = draw.pick(("v", "value", "n"))
    mapping = bind(_NUMBER[str(map_name)], draw)
    condition = bind_condition(condition_shape, "number", draw) if condition_shape else None  # type: ignore[arg-type]
    value = mapping.code(v)
    where: Segments = ((" with values that ", " whose values "), *condition.plural()) if condition else ()
    if style in ("keys", "keys_loop"):
        assert condition is not None
        text: Segments = (("a list of ", "the list of "), (f"the keys of {p}", f"the keys in {p}"), *where)
        body = _keys_body(style == "keys", p, v, condition, draw)
    elif style == "sum":
        text = (
            ("the sum of ", "the total of "),
            mapping.plural(),
            (f"the values in {p}", f"the values of dict {p}"),
            *_that(condition),
        )
        step = Update("total", "+=", value)
        loop = For(Code(v, v), Code(f"{p}.values()", f"Object.values({p})"), filtered((step,), condition, v))
        body = (Let("total", Code("0", "0")), loop, Return(Code("total", "total")))
    else:
        text = (
            ("a dict from the keys to ", "a dict that maps the keys to "),
            mapping.plural(),
            (f"the values in {p}", f"the values of dict {p}"),
            *_that(condition),
        )
        body = _map_body(style == "map", p, v, value, condition, draw)
    tag = {"keys": "keys", "map": "map", "sum": "sum"}[str(style).split("_")[0]]
    name = f"{tag}_{condition.tag if condition else mapping.piece.tag}"
    return Program("table", (Function(name, (p,), body),), text, ("table",), _hints(condition, mapping))


def draw_running(draw: Draw) -> Shape:
    """Structural choices of a loop that carries state from item to item."""
    style = draw.pick(("sums", "unique", "maxima", "until", "steps"))
    mapping = "same" if style == "unique" and draw.chance(0.5) else draw.pick(NUMBER_MAPS).name
    always = style in ("unique", "until")
    return ("running", style, mapping, draw_condition(draw, "number", 0.2) if always else _optional(draw, "number"))


_RUNNING = {
    "sums": ("running", ("a list of the running sums of ", "the list of the running totals of "), ("",)),
    "maxima": (
        "peaks",
        ("a list of the running maxima, from 0 up, of ", "the list of the running maxima, from 0 up, of "),
        ("",),
    ),
    "unique": (
        "unique",
        ("a list of ", "the list of "),
        (" without repeated numbers", " at their first occurrence only"),
    ),
    "until": (
        "until",
        ("a list of ", "the list of "),
        (" before the first that ", " up to but without the first that "),
    ),
    "steps": (
        "steps",
        ("a list of the steps, starting at 0, between ", "the list of the increases, starting at 0, between "),
        ("",),
    ),
}


def _unseen(v: str, condition: Condition, push: Node) -> Node:
    """Keep a value that was not seen before and satisfies the condition."""
    code = condition.code(v)
    either = condition.operator == "or"
    test = Code(
        f"{v} not in seen and " + (f"({code.py})" if either else code.py),
        f"!seen.has({v}) && " + (f"({code.js})" if either else code.js),
    )
    return If(test, (Do(Code(f"seen.add({v})", f"seen.add({v})")), push))


def _running_step(
    style: str, mapping: Bound, condition: Condition | None, v: str, out: str
) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """What stands before the loop, and what the loop does with each value."""
    value = mapping.code(v)
    push = Do(Code(f"{out}.append({value.py})", f"{out}.push({value.js})"))
    if style == "sums":
        add = Do(Code(f"{out}.append(total)", f"{out}.push(total)"))
        return (Let("total", Code("0", "0")),), filtered((Update("total", "+=", value), add), condition, v)
    if style == "maxima":
        raise_best = Update("best", "=", Code(f"max(best, {value.py})", f"Math.max(best, {value.js})"))
        add = Do(Code(f"{out}.append(best)", f"{out}.push(best)"))
        return (Let("best", Code("0", "0")),), filtered((raise_best, add), condition, v)
    if style == "steps":
        now = v if mapping.piece.name == "same" else "now"
        first: tuple[Node, ...] = () if now == v else (Let("now", value),)
        add = Do(Code(f"{out}.append({now} - last)", f"{out}.push({now} - last)"))
        step = (*first, add, Update("last", "=", Code(now, now)))
        return (Let("last", Code("0", "0")),), filtered(step, condition, v)
    assert condition is not None
    if style == "unique":
        return (Let("seen", Code("set()", "new Set()")),), (_unseen(v, condition, push),)
    return (), (If(condition.code(v), (Do(Code("break", "break")),)), push)


def build_running(shape: Shape, draw: Draw) -> Program:
    """Running sums, first occurrences, running maxima, a prefix up to a condition, steps between neighbours."""
    _, style, map_name, condition_shape = shape
    p, v = draw.pick(SOURCES["list"].names)
    mapping = bind(_NUMBER[str(map_name)], draw)
    condition = bind_condition(condition_shape, "number", draw) if condition_shape else None  # type: ignore[arg-type]
    out = draw.pick(("result", "out"))
    before, step = _running_step(str(style), mapping, condition, v, out)
    body = (*before, Let(out, Code("[]", "[]")), For(Code(v, v), Code(p, p), step), Return(Code(out, out)))
    tag, head, tail = _RUNNING[str(style)]
    name = f"{tag}_{condition.tag if condition else mapping.piece.tag or 'numbers'}"
    noun = (f"the numbers in {p}", f"the elements of {p}")
    rest = (tail, *condition.single(v)) if style == "until" and condition else (*_that(condition), tail)
    text: Segments = (head, mapping.plural(), noun, *rest)
    return Program("running", (Function(name, (p,), body),), text, ("numbers",), _hints(condition, mapping))


def draw_digits(draw: Draw) -> Shape:
    """Structural choices of a loop over decimal digits."""
    style = draw.pick(("sum", "count", "list", "string_sum", "string_list"))
    mapping = "same" if style == "count" else draw.pick(NUMBER_MAPS).name
    needed = style == "count" or mapping == "same"
    return ("digits", style, mapping, draw_condition(draw, "natural", 0.2) if needed else _optional(draw, "natural"))


def build_digits(shape: Shape, draw: Draw) -> Program:
    """Digits of a number by ``% 10`` and ``// 10``, or through ``str``."""
    _, style, map_name, condition_shape = shape
    n = draw.pick(("n", "number", "num"))
    mapping = bind(_NUMBER[str(map_name)], draw)
    condition = bind_condition(condition_shape, "natural", draw) if condition_shape else None  # type: ignore[arg-type]
    kind = str(style).split("_")[-1]
    out = "digits" if kind == "list" else draw.pick(("total", "result"))
    value = Code("1", "1") if kind == "count" else mapping.code("d")
    push = Do(Code(f"{out}.append({value.py})", f"{out}.push({value.js})"))
    step: Node = push if kind == "list" else Update(out, "+=", value)
    rest = filtered((step,), condition, "d")
    start = Let(out, Code("[]", "[]") if kind == "list" else Code("0", "0"))
    if str(style).startswith("string"):
        order = ""
        loop: Node = For(
            Code("c", "c"), Code(f"str({n})", f"String({n})"), (Let("d", Code("int(c)", "Number(c)")), *rest)
        )
    else:
        order = " from last to first"
        digit = Let("d", Code(f"{n} % 10", f"{n} % 10"))
        drop = Do(Code(f"{n} //= 10", f"{n} = Math.floor({n} / 10)"))
        loop = While(Code(f"{n} > 0", f"{n} > 0"), (digit, *rest, drop))
    noun = (
        f"the digits of {n}{order}" if kind == "list" else f"the digits of {n}",
        f"the decimal digits of {n}{order}" if kind == "list" else f"the decimal digits of {n}",
    )
    if kind == "count":
        assert condition is not None
        text: Segments = (("how many of ", "the count of those of "), noun, (" ",), *condition.plural())
    else:
        head = ("a list of ", "the list of ") if kind == "list" else ("the sum of ", "the total of ")
        text = (head, mapping.plural(), noun, *_that(condition))
    name = f"{'digits' if kind == 'list' else kind + '_digits'}_{condition.tag if condition else mapping.piece.tag}"
    body = (start, loop, Return(Code(out, out)))
    return Program("digits", (Function(name, (n,), body),), text, ("digits",), _hints(condition, mapping))
