"""Families of numeric loops and of positions: divisors, Euclid, recurrences, primes, indices, neighbours."""

from __future__ import annotations

from lightning_dterm.data.microcode.branches import PAIR_TESTS
from lightning_dterm.data.microcode.conditions import Condition, bind_condition, draw_condition
from lightning_dterm.data.microcode.nodes import Count, Do, For, Function, If, Let, Node, Program, Return, Update, While
from lightning_dterm.data.microcode.number_pieces import NUMBER_MAPS
from lightning_dterm.data.microcode.pipelines import SOURCES, Shape, filtered
from lightning_dterm.data.microcode.spec import Bound, Code, Draw, Segments, bind

_MAPS = {piece.name: piece for piece in NUMBER_MAPS}
_NAMES = tuple(_MAPS)
# The formatter puts blanks around ** where its operand is no plain name.
_PLAIN_NAMES = tuple(name for name in _NAMES if name != "power")
_THAT = (" that ", " which ")
_ONE = Code("1", "1")
_ZERO = Code("0", "0")


def draw_numeric(draw: Draw) -> Shape:
    """Structural choices of a loop over one or two numbers."""
    style = draw.pick(("divisors", "divisors", "divisors", "gcd", "fibonacci", "steps", "prime", "prime"))
    if style == "steps":
        return ("numeric", style, draw.pick(("quotient", "less", "multiple")), "", ())
    reduction = draw.pick(("sum", "list", "count")) if style in ("divisors", "prime") else ""
    mapping = "same" if reduction == "count" else draw.pick(_NAMES)
    needs = style == "divisors" and reduction == "count"
    condition = draw_condition(draw, "natural", 0.2) if needs or (style == "divisors" and draw.chance(0.6)) else ()
    return ("numeric", style, mapping, reduction, condition)


def _accumulate(reduction: str, value: Code) -> tuple[str, Node, Node]:
    """The result's name, its start and its step."""
    if reduction == "list":
        return "out", Let("out", Code("[]", "[]")), Do(Code(f"out.append({value.py})", f"out.push({value.js})"))
    name = "count" if reduction == "count" else "total"
    return name, Let(name, _ZERO), Update(name, "+=", _ONE if reduction == "count" else value)


_HEADS = {
    "sum": ("the sum of ", "the total of "),
    "list": ("a list of ", "the list of "),
    "count": ("how many of ", "the count of those of "),
}


def _steps(rule: str, draw: Draw) -> Program:
    n = draw.pick(("n", "x", "num"))
    k = draw.integer(2, 5)
    if rule == "multiple":
        loop = While(
            Code(f"{n} % {k} == 0", f"{n} % {k} === 0"),
            (Do(Code(f"{n} //= {k}", f"{n} = Math.floor({n} / {k})")), Update("count", "+=", _ONE)),
        )
        text: Segments = ((f"how often {n} can be divided by {k} without rest", f"how many times {k} divides {n}"),)
        name = draw.pick(("count_factor", "times_divisible"))
        domain, hints = "positive", (k, k * k)
    else:
        j = draw.integer(1, 4)
        less = rule == "less"
        step = (
            Update(n, "-=", Code(str(k), str(k))) if less else Do(Code(f"{n} //= {k}", f"{n} = Math.floor({n} / {k})"))
        )
        loop = While(Code(f"{n} > {j}", f"{n} > {j}"), (step, Update("count", "+=", _ONE)))
        verb = f"lowering {n} by {k}" if less else f"floor-dividing {n} by {k}"
        text = (
            (
                f"how often {verb} is done until it is at most {j}",
                f"how many times {verb} is repeated while it is above {j}",
            ),
        )
        name = draw.pick(("count_steps", "steps"))
        domain, hints = "positive", (j, k)
    body = (Let("count", _ZERO), loop, Return(Code("count", "count")))
    return Program("numeric", (Function(name, (n,), body),), text, (domain,), hints)


def _recurrence(style: str, map_name: str, draw: Draw) -> Program:
    mapping = bind(_MAPS[map_name], draw)
    if style == "gcd":
        a, b = draw.pick((("a", "b"), ("m", "n"), ("x", "y")))
        value = mapping.code(a)
        swap = Do(Code(f"{a}, {b} = {b}, {a} % {b}", f"[{a}, {b}] = [{b}, {a} % {b}]"))
        body: tuple[Node, ...] = (While(Code(f"{b} > 0", f"{b} > 0"), (swap,)), Return(value))
        noun = f"the greatest common divisor of {a} and {b}"
        other = f"the largest common divisor of {a} and {b}"
        name = draw.pick(("gcd", "common_divisor"))
        parameters: tuple[str, ...] = (a, b)
    else:
        n = draw.pick(("n", "count", "steps"))
        value = mapping.code("a")
        swap = Do(Code("a, b = b, a + b", "[a, b] = [b, a + b]"))
        first = Do(Code("a, b = 0, 1", "let [a, b] = [0, 1]"))
        loop = Count("_", "0", Code(n, f"< {n}"), (swap,))
        body = (first, loop, Return(value))
        noun, other = f"Fibonacci number {n} (number 0 is 0)", f"the Fibonacci number at index {n}"
        name, parameters = draw.pick(("fibonacci", "fib")), (n,)
    tag = mapping.piece.tag
    domain = ("positive", "positive") if style == "gcd" else ("count",)
    text = tuple(zip(mapping.single(noun), mapping.single(other), strict=True))
    slots: Segments = (tuple(wording for pair in text for wording in pair),)
    return Program(
        "numeric", (Function(f"{name}_{tag}" if tag else name, parameters, body),), slots, domain, mapping.hints()
    )


def _primes(mapping: Bound, reduction: str, draw: Draw) -> Program:
    """The primes of a list, through a helper function."""
    p, v = draw.pick(SOURCES["list"].names)
    test = Function(
        "is_prime",
        ("n",),
        (
            Count(
                "d", "2", Code("n", "< n"), (If(Code("n % d == 0", "n % d === 0"), (Return(Code("False", "false")),)),)
            ),
            Return(Code("n > 1", "n > 1")),
        ),
    )
    noun = (f"the numbers in {p}", f"the elements of {p}")
    value = mapping.code(v)
    call = Code(f"is_prime({v})", f"is_prime({v})")
    chain = f"{p}.filter(is_prime)" + ("" if mapping.piece.name == "same" else f".map(({v}) => {value.js})")
    g = f"{'1' if reduction == 'count' else value.py} for {v} in {p} if {call.py}"
    expression = {
        "sum": Code(f"sum({g})", f"{chain}.reduce((a, b) => a + b, 0)"),
        "list": Code(f"[{g}]", chain),
        "count": Code(f"sum({g})", f"{chain}.length"),
    }[reduction]
    joint: Segments = ((" ",),) if reduction == "count" else (_THAT,)
    text: Segments = (_HEADS[reduction], mapping.plural(), noun, *joint, ("are prime", "are prime numbers"))
    entry = Function(f"{reduction}_primes", (p,), (Return(expression),))
    return Program("numeric", (test, entry), text, ("numbers",), (2, 3, 5, 9, *mapping.hints()))


def build_numeric(shape: Shape, draw: Draw) -> Program:
    """Divisors of a number, Euclid's algorithm, Fibonacci numbers, repeated division, primes of a list."""
    _, style, map_name, reduction, condition_shape = shape
    if style == "steps":
        return _steps(str(map_name), draw)
    if style in ("gcd", "fibonacci"):
        return _recurrence(str(style), str(map_name), draw)
    mapping = bind(_MAPS[str(map_name)], draw)
    if style == "divisors":
        n, d = draw.pick((("n", "d"), ("num", "d"), ("n", "i")))
        condition: Condition | None = bind_condition(condition_shape, "natural", draw) if condition_shape else None  # type: ignore[arg-type]
        out, start, step = _accumulate(str(reduction), mapping.code(d))
        inner = If(Code(f"{n} % {d} == 0", f"{n} % {d} === 0"), filtered((step,), condition, d))
        body = (start, Count(d, "1", Code(f"{n} + 1", f"<= {n}"), (inner,)), Return(Code(out, out)))
        noun = (f"the divisors of {n}", f"the positive divisors of {n}")
        joint: Segments = ((" ",) if reduction == "count" else _THAT,)
        text: Segments = (
            _HEADS[str(reduction)],
            mapping.plural(),
            noun,
            *((*joint, *condition.plural()) if condition else ()),
        )
        name = f"{reduction}_divisors"
        hints = (condition.hints() if condition else ()) + mapping.hints() + (6, 12)
        return Program("numeric", (Function(name, (n,), body),), text, ("positive",), hints)
    return _primes(mapping, str(reduction), draw)


def draw_position(draw: Draw) -> Shape:
    """Structural choices of a program about indices or neighbours in a list."""
    style = draw.pick(("first_index", "last_index", "indices", "indices_loop", "weighted", "adjacent", "adjacent"))
    if style == "adjacent":
        reduction = draw.pick(("sum", "list", "count"))
        return (
            "position",
            style,
            "same" if reduction == "count" else draw.pick(_PLAIN_NAMES),
            reduction,
            draw.pick(PAIR_TESTS).name,
        )
    condition = draw_condition(draw, "number", 0.3) if style != "weighted" or draw.chance(0.7) else ()
    return ("position", style, draw.pick(_NAMES) if style == "weighted" else "same", "", condition)


_TAGS = {"first_index": "find", "last_index": "last", "indices": "where", "indices_loop": "where", "weighted": "weigh"}


def _adjacent(p: str, mapping: Bound, reduction: str, test_name: str, draw: Draw) -> Program:
    """Neighbours in a list compared."""
    test = next(piece for piece in PAIR_TESTS if piece.name == test_name)
    here, before = f"{p}[i]", f"{p}[i - 1]"
    out, start, step = _accumulate(reduction, mapping.code(here))
    compare = Code(test.py.format(a=here, b=before), test.js.format(a=here, b=before))
    loop: Node = Count("i", "1", Code(f"len({p})", f"< {p}.length"), (If(compare, (step,)),))
    where = tuple(wording.format(a=here, b=before) for wording in test.plural)
    tail = (" over all i from 1", " for each i from 1")
    if reduction == "count":
        text: Segments = (("how often ", "the count of cases that "), where, tail)
    else:
        text = (_HEADS[reduction], mapping.single(here), tail, (" where ",), where)
    body: tuple[Node, ...] = (start, loop, Return(Code(out, out)))
    return Program(
        "position",
        (Function(f"{reduction}_{draw.pick(('rises', 'moves'))}", (p,), body),),
        text,
        ("numbers",),
        mapping.hints(),
    )


def build_position(shape: Shape, draw: Draw) -> Program:
    """Index of the first or last match, all such indices, sums weighted by index, comparisons of neighbours."""
    _, style, map_name, reduction, rest = shape
    p, v = draw.pick(SOURCES["list"].names)
    mapping = bind(_MAPS[str(map_name)], draw)
    if style == "adjacent":
        return _adjacent(p, mapping, str(reduction), str(rest), draw)
    condition = bind_condition(rest, "number", draw) if rest else None  # type: ignore[arg-type]
    pairs, items = Code(f"i, {v}", f"[i, {v}]"), Code(f"enumerate({p})", f"{p}.entries()")
    noun = (f"the numbers in {p}", f"the elements of {p}")
    that: Segments = (_THAT, *condition.plural()) if condition else ()
    index, none = Code("i", "i"), (", or -1 if there are none",)
    minus = Code("-1", "-1")
    if style == "first_index":
        body: tuple[Node, ...] = (For(pairs, items, filtered((Return(index),), condition, v)), Return(minus))
        text: Segments = (("the index of the first of ", "the first index of "), noun, *that, none)
    elif style == "last_index":
        body = (
            Let("last", minus),
            For(pairs, items, filtered((Update("last", "=", index),), condition, v)),
            Return(Code("last", "last")),
        )
        text = (("the index of the last of ", "the last index of "), noun, *that, none)
    elif style == "indices":
        assert condition is not None
        test_code = condition.code(v)
        js = f"{p}.map((_, i) => i).filter((i) => {condition.code(f'{p}[i]').js})"
        body = (Return(Code(f"[i for i, {v} in enumerate({p}) if {test_code.py}]", js)),)
        text = (("a list of the indices of ", "the list of the indices of "), noun, *that)
    elif style == "indices_loop":
        loop = For(pairs, items, filtered((Do(Code("out.append(i)", "out.push(i)")),), condition, v))
        body = (Let("out", Code("[]", "[]")), loop, Return(Code("out", "out")))
        text = (("a list of the indices of ", "the list of the indices of "), noun, *that)
    else:
        value = mapping.code(v)
        simple = value.py == v or value.py.endswith(")")
        product = Code(f"i * {value.py}", f"i * {value.js}")
        if not simple:
            product = Code(f"i * ({value.py})", f"i * ({value.js})")
        loop = For(pairs, items, filtered((Update("total", "+=", product),), condition, v))
        body = (Let("total", _ZERO), loop, Return(Code("total", "total")))
        text = (("the sum, each times its index, of ", "the index-weighted sum of "), mapping.plural(), noun, *that)
    tag = _TAGS[str(style)]
    name = f"{tag}_{condition.tag if condition else mapping.piece.tag or 'numbers'}"
    hints = (condition.hints() if condition else ()) + mapping.hints()
    return Program("position", (Function(name, (p,), body),), text, ("numbers",), hints)
