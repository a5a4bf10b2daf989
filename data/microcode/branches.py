"""Families with two-way decisions: on one number, inside a loop, inside a list, and through a helper function."""

from __future__ import annotations

from lightning_dterm.data.microcode.conditions import Condition, bind_condition, draw_condition
from lightning_dterm.data.microcode.nodes import Count, Do, For, Function, If, Let, Program, Return, Update
from lightning_dterm.data.microcode.number_pieces import NUMBER_MAPS
from lightning_dterm.data.microcode.pipelines import Shape
from lightning_dterm.data.microcode.spec import Bound, Code, Draw, Piece, Segments, bind, by_name

_MAPS = by_name(NUMBER_MAPS)
_NAMES = tuple(piece.name for piece in NUMBER_MAPS)
_LISTS = (("xs", "x"), ("nums", "n"), ("values", "v"), ("numbers", "n"), ("data", "x"), ("items", "x"))
_IF = (" if ", " when ")
_ELSE = (", otherwise ", ", else ")


def _two_maps(draw: Draw) -> tuple[str, str]:
    first = draw.pick(_NAMES)
    second = draw.pick(_NAMES)
    while second == first:
        second = draw.pick(_NAMES)
    return first, second


def draw_branch(draw: Draw) -> Shape:
    """Structural choices of a decision on one number."""
    style = draw.pick(("early", "else", "ternary", "variable"))
    return ("branch", style, *_two_maps(draw), draw_condition(draw, "number", 0.3))


def build_branch(shape: Shape, draw: Draw) -> Program:
    """``if p(n): return a(n)``, then ``return b(n)``."""
    _, style, first, second, condition_shape = shape
    v = draw.pick(("n", "x", "value", "num", "amount"))
    yes, no = bind(_MAPS[str(first)], draw), bind(_MAPS[str(second)], draw)
    condition = bind_condition(condition_shape, "number", draw)  # type: ignore[arg-type]
    a, b, test = yes.code(v), no.code(v), condition.code(v)
    if style == "early":
        body: tuple[object, ...] = (If(test, (Return(a),)), Return(b))
    elif style == "else":
        body = (If(test, (Return(a),), (Return(b),)),)
    elif style == "ternary":
        body = (Return(Code(f"{a.py} if {test.py} else {b.py}", f"{test.js} ? {a.js} : {b.js}")),)
    else:
        body = (Let("result", b), If(test, (Update("result", "=", a),)), Return(Code("result", "result")))
    text: Segments = (yes.single(v), _IF, (f"{v} ",), *condition.single(v), _ELSE, no.single(v))
    name = f"{draw.pick(('adjust', 'change', 'convert', 'scale'))}_{condition.tag}"
    hints = condition.hints() + yes.hints() + no.hints()
    return Program("branch", (Function(name, (v,), body),), text, ("number",), hints)  # type: ignore[arg-type]


def draw_balance(draw: Draw) -> Shape:
    """Structural choices of a loop that adds on one branch and does something else on the other."""
    return (
        "balance",
        draw.pick(("subtract", "add", "list", "comprehension")),
        *_two_maps(draw),
        draw_condition(draw, "number", 0.15),
    )


def build_balance(shape: Shape, draw: Draw) -> Program:
    """A loop or list with a two-way decision per number."""
    _, style, first, second, condition_shape = shape
    p, v = draw.pick(_LISTS)
    yes, no = bind(_MAPS[str(first)], draw), bind(_MAPS[str(second)], draw)
    condition = bind_condition(condition_shape, "number", draw)  # type: ignore[arg-type]
    a, b, test = yes.code(v), no.code(v), condition.code(v)
    over = (f" for each {v} in {p}", f" over every {v} in {p}")
    decision: Segments = (yes.single(v), _IF, (f"{v} ",), *condition.single(v), _ELSE, no.single(v))
    source, target = Code(p, p), Code(v, v)
    if style in ("subtract", "add"):
        total = draw.pick(("total", "result", "score"))
        operator = "-=" if style == "subtract" else "+="
        choice = If(test, (Update(total, "+=", a),), (Update(total, operator, b),))
        body: tuple[object, ...] = (
            Let(total, Code("0", "0")),
            For(target, source, (choice,)),
            Return(Code(total, total)),
        )
        tag = draw.pick(("balance", "score", "tally"))
        if style == "add":
            text: Segments = (("the sum of ", "the total of "), *decision, over)
        else:
            text = (
                ("the total of adding ",),
                *decision[:-2],
                (", else subtracting ", ", otherwise subtracting "),
                no.single(v),
                over,
            )
    elif style == "list":
        out = draw.pick(("result", "out"))
        push, other = (Do(Code(f"{out}.append({c.py})", f"{out}.push({c.js})")) for c in (a, b))
        body = (Let(out, Code("[]", "[]")), For(target, source, (If(test, (push,), (other,)),)), Return(Code(out, out)))
        tag, text = draw.pick(("change", "convert")), (("a list of ", "the list of "), *decision, over)
    else:
        py = f"[{a.py} if {test.py} else {b.py} for {v} in {p}]"
        body = (Return(Code(py, f"{p}.map(({v}) => ({test.js} ? {a.js} : {b.js}))")),)
        tag, text = draw.pick(("change", "convert")), (("a list of ", "the list of "), *decision, over)
    hints = condition.hints() + yes.hints() + no.hints()
    function = Function(f"{tag}_{condition.tag}", (p,), body)  # type: ignore[arg-type]
    return Program("balance", (function,), text, ("numbers",), hints)


_REDUCERS = {
    "sum": ("sum({g})", "{c}.reduce((a, b) => a + b, 0)", ("the sum of ", "the total of ")),
    "list": ("[{g}]", "{c}", ("a list of ", "the list of ")),
    "max": ("max(({g}), default=0)", "Math.max(...{c}, -Infinity)", ("the largest of ", "the maximum of ")),
    "sorted": ("sorted({g})", "{c}.sort((a, b) => a - b)", ("a sorted list of ", "the ascending list of ")),
}


def draw_helper(draw: Draw) -> Shape:
    """Structural choices of a helper function called in a loop."""
    kind = draw.pick(("map", "map", "branch", "test"))
    if kind == "test":
        return (
            "helper",
            kind,
            draw.pick(("sum", "list", "sorted", "count")),
            draw.pick(_NAMES),
            "",
            draw_condition(draw, "number", 0.6),
        )
    first, second = _two_maps(draw)
    condition = draw_condition(draw, "number", 0.1)
    return ("helper", kind, draw.pick(("sum", "list", "sorted", "loop")), first, second, condition)


def _tested(reducer: str, yes: Bound, condition: Condition, p: str, v: str, draw: Draw) -> Program:
    """A helper that tests one number."""
    noun = (f"the numbers in {p}", f"the elements of {p}")
    helper = draw.pick(("keep", "wanted", "fits"))
    inner = Function(helper, (v,), (Return(condition.code(v)),))
    value, that = yes.code(v), ((" that ", " which "), *condition.plural())
    if reducer == "count":
        expression = Code(f"sum(1 for {v} in {p} if {helper}({v}))", f"{p}.filter({helper}).length")
        text: Segments = (("how many of ", "the count of those of "), noun, (" ",), *condition.plural())
    else:
        py, js, words = _REDUCERS[reducer]
        chain = f"{p}.filter({helper}).map(({v}) => {value.js})"
        expression = Code(py.format(g=f"{value.py} for {v} in {p} if {helper}({v})"), js.format(c=chain))
        text = (words, yes.plural(), noun, *that)
    entry = Function(f"{draw.pick(('pick', 'select'))}_{condition.tag}", (p,), (Return(expression),))
    return Program("helper", (inner, entry), text, ("numbers",), condition.hints() + yes.hints())


def build_helper(shape: Shape, draw: Draw) -> Program:
    """A helper that maps or tests one number, and an entry point that applies it to a list."""
    _, kind, reducer, first, second, condition_shape = shape
    p, v = draw.pick(_LISTS)
    yes = bind(_MAPS[str(first)], draw)
    condition = bind_condition(condition_shape, "number", draw)  # type: ignore[arg-type]
    hints = condition.hints() + yes.hints()
    noun = (f"the numbers in {p}", f"the elements of {p}")
    if kind == "test":
        return _tested(str(reducer), yes, condition, p, v, draw)
    helper = draw.pick(("change", "score", "weight", "convert"))
    no = bind(_MAPS[str(second)], draw)
    if kind == "branch":
        inner = Function(helper, (v,), (If(condition.code(v), (Return(yes.code(v)),)), Return(no.code(v))))
        text = (
            yes.single(v),
            _IF,
            (f"{v} ",),
            *condition.single(v),
            _ELSE,
            no.single(v),
            (f" for each {v} in {p}", f" over every {v} in {p}"),
        )
        hints += no.hints()
        guard, guard_js = "", p
    else:
        inner = Function(helper, (v,), (Return(yes.code(v)),))
        text = (yes.plural(), noun, (" that ", " which "), *condition.plural())
        guard, guard_js = f" if {condition.code(v).py}", f"{p}.filter(({v}) => {condition.code(v).js})"
    if reducer == "loop":
        total = draw.pick(("total", "result"))
        step = Update(total, "+=", Code(f"{helper}({v})", f"{helper}({v})"))
        statement = If(condition.code(v), (step,)) if guard else step
        loop = For(Code(v, v), Code(p, p), (statement,))
        body: tuple[object, ...] = (Let(total, Code("0", "0")), loop, Return(Code(total, total)))
        words = ("the sum of ", "the total of ")
    else:
        py, js, words = _REDUCERS[str(reducer)]
        body = (
            Return(Code(py.format(g=f"{helper}({v}) for {v} in {p}{guard}"), js.format(c=f"{guard_js}.map({helper})"))),
        )
    entry = Function(f"{draw.pick(('apply', 'total', 'collect'))}_{helper}", (p,), body)  # type: ignore[arg-type]
    return Program("helper", (inner, entry), (words, *text), ("numbers",), hints)


_PAIR_MAPS = (
    Piece("product", "{a} * {b}", "{a} * {b}", ("the product of {a} and {b}", "{a} times {b}"), (), "products"),
    Piece("sum", "{a} + {b}", "{a} + {b}", ("the sum of {a} and {b}", "{a} plus {b}"), (), "sums"),
    Piece(
        "gap",
        "abs({a} - {b})",
        "Math.abs({a} - {b})",
        ("the distance of {a} and {b}", "the distance between {a} and {b}"),
        (),
        "gaps",
    ),
    Piece("difference", "{a} - {b}", "{a} - {b}", ("{a} minus {b}", "{a} less {b}"), (), "differences"),
    Piece(
        "larger",
        "max({a}, {b})",
        "Math.max({a}, {b})",
        ("the larger of {a} and {b}", "the maximum of {a} and {b}"),
        (),
        "larger",
    ),
    Piece(
        "smaller",
        "min({a}, {b})",
        "Math.min({a}, {b})",
        ("the smaller of {a} and {b}", "the minimum of {a} and {b}"),
        (),
        "smaller",
    ),
    Piece(
        "double_sum",
        "2 * ({a} + {b})",
        "2 * ({a} + {b})",
        ("twice the sum of {a} and {b}", "the double of the sum of {a} and {b}"),
        (),
        "sums",
    ),
    Piece(
        "squares",
        "{a} * {a} + {b} * {b}",
        "{a} * {a} + {b} * {b}",
        ("the sum of the squares of {a} and {b}", "the square of {a} plus the square of {b}"),
        (),
        "squares",
    ),
    Piece("first", "{a}", "{a}", ("{a}",), (), "first"),
)
PAIR_TESTS = (
    Piece("more", "{a} > {b}", "{a} > {b}", ("{a} is greater than {b}", "{a} is above {b}"), (), "more"),
    Piece("fewer", "{a} < {b}", "{a} < {b}", ("{a} is less than {b}", "{a} is below {b}"), (), "less"),
    Piece("differ", "{a} != {b}", "{a} !== {b}", ("{a} differs from {b}", "{a} is not equal to {b}"), (), "unlike"),
    Piece(
        "even_sum",
        "({a} + {b}) % 2 == 0",
        "({a} + {b}) % 2 === 0",
        ("the sum of {a} and {b} is even", "{a} plus {b} is even"),
        (),
        "even",
    ),
    Piece(
        "apart",
        "abs({a} - {b}) > 2",
        "Math.abs({a} - {b}) > 2",
        ("{a} and {b} are more than 2 apart", "{a} and {b} differ by more than 2"),
        (),
        "apart",
    ),
    Piece(
        "twice",
        "{a} > 2 * {b}",
        "{a} > 2 * {b}",
        ("{a} is greater than twice {b}", "{a} is above twice {b}"),
        (),
        "more",
    ),
)
PAIR_MAP = by_name(_PAIR_MAPS)
PAIR_TEST = by_name(PAIR_TESTS)


def draw_pair(draw: Draw) -> Shape:
    """Structural choices of a program on two numbers or two lists of equal length."""
    style = draw.pick(("early", "ternary", "sum", "list", "count", "sum_comprehension", "list_comprehension"))
    first, second = draw.pick(_PAIR_MAPS).name, draw.pick(_PAIR_MAPS).name
    while second == first:
        second = draw.pick(_PAIR_MAPS).name
    return ("pair", style, first, second, draw.pick(PAIR_TESTS).name)


def _pair_code(piece: Piece, a: str, b: str) -> Code:
    return Code(piece.py.format(a=a, b=b), piece.js.format(a=a, b=b))


def _pair_words(piece: Piece, a: str, b: str) -> tuple[str, ...]:
    return tuple(text.format(a=a, b=b) for text in piece.plural)


def build_pair(shape: Shape, draw: Draw) -> Program:
    """A decision on two numbers, or a walk along two lists by position."""
    _, style, first, second, test_name = shape
    one, two, test = PAIR_MAP[str(first)], PAIR_MAP[str(second)], PAIR_TEST[str(test_name)]

    if style in ("early", "ternary"):
        a, b = draw.pick((("a", "b"), ("x", "y"), ("m", "n"), ("left", "right")))
        yes, no, condition = _pair_code(one, a, b), _pair_code(two, a, b), _pair_code(test, a, b)
        body: tuple[object, ...] = (If(condition, (Return(yes),)), Return(no))
        if style == "ternary":
            body = (Return(Code(f"{yes.py} if {condition.py} else {no.py}", f"{condition.js} ? {yes.js} : {no.js}")),)
        text: Segments = (_pair_words(one, a, b), _IF, _pair_words(test, a, b), _ELSE, _pair_words(two, a, b))
        function = Function(f"{draw.pick(('combine', 'choose', 'merge'))}_{test.tag}", (a, b), body)  # type: ignore[arg-type]
        return Program("pair", (function,), text, ("number", "number"))
    a, b = draw.pick((("xs", "ys"), ("a", "b"), ("left", "right"), ("first", "second")))
    at_a, at_b = f"{a}[i]", f"{b}[i]"
    value, condition = _pair_code(one, at_a, at_b), _pair_code(test, at_a, at_b)
    kind = str(style).split("_")[0]
    heads = {
        "sum": ("the sum of ", "the total of "),
        "list": ("a list of ", "the list of "),
        "count": ("how often ", "the count of positions i where "),
    }
    tail = (" for each position i", " over all positions i")
    where: Segments = ((" where ",), _pair_words(test, at_a, at_b))
    text = (
        (heads[kind], _pair_words(one, at_a, at_b), tail, *where)
        if kind != "count"
        else (heads[kind], _pair_words(test, at_a, at_b), tail)
    )
    if style in ("sum_comprehension", "list_comprehension"):
        g = f"{value.py} for i in range(len({a})) if {condition.py}"
        c = f"{a}.map((_, i) => i).filter((i) => {condition.js}).map((i) => {value.js})"
        py, js, _words = _REDUCERS[kind]
        body = (Return(Code(py.format(g=g), js.format(c=c))),)
    else:
        out = draw.pick(("result", "out")) if kind == "list" else draw.pick(("total", "count"))
        start = Code("[]", "[]") if kind == "list" else Code("0", "0")
        push = Do(Code(f"{out}.append({value.py})", f"{out}.push({value.js})"))
        step = push if kind == "list" else Update(out, "+=", Code("1", "1") if kind == "count" else value)
        loop = Count("i", "0", Code(f"len({a})", f"< {a}.length"), (If(condition, (step,)),))
        body = (Let(out, start), loop, Return(Code(out, out)))
    function = Function(f"{kind}_{test.tag}", (a, b), body)
    return Program("pair", (function,), text, ("numbers", "others"))
