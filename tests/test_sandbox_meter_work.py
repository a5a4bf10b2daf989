"""Work that a program leaves to functions of C is charged by its size, wherever it hides."""

# ruff: noqa: E501 - programs in a table read better on one line

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.sandbox import meter_regex
from lightning_dterm.sandbox.meter import _QUICK, _is_small
from lightning_dterm.sandbox.meter_numbers import WIDE
from lightning_dterm.sandbox.meter_rules import comparison_work, operation_work
from lightning_dterm.sandbox.meter_sizes import size_of
from tests.metering import measure

QUADRATIC_IN_C = {
    "map": "sum(map(xs.count, xs))",
    "map, unbound": "sum(map(list.count, [xs] * len(xs), xs))",
    "map of a deque's": "sum(map(collections.deque(xs).count, xs))",
    "sorted by key": "len(sorted(xs, key=xs.index))",
    "max by key": "max(xs, key=xs.count)",
    "sort by key": "list(xs).sort(key=xs.index)",
    "sum of lists": "len(sum([[x] for x in xs], []))",
    "sum of tuples": "len(sum(((x,) for x in xs), start=()))",
    "reduce": "len(functools.reduce(operator.add, [[x] for x in xs]))",
    "accumulate": "len(list(itertools.accumulate([[x] for x in xs]))[-1])",
    "starmap": "sum(itertools.starmap(operator.countOf, ((xs, x) for x in xs)))",
    "filter": "len(list(filter(xs.__contains__, xs)))",
    "takewhile": "len(list(itertools.takewhile(xs.__contains__, reversed(xs))))",
    "groupby": "len(list(itertools.groupby(xs, xs.index)))",
    "partial": "sum(map(functools.partial(operator.countOf, xs), xs))",
    "cache": "sum(map(functools.lru_cache(None)(xs.count), xs))",
    "iter": "len(list(zip(xs, iter(functools.partial(xs.count, 1), -1))))",
    "class": "len(list(map(set, [xs] * len(xs))))",
    "library": "len(list(map(statistics.fmean, [xs] * len(xs))))",
    "chain of comparisons": "sum(1 for x in xs if xs == ys == zs)",
    "nested": "max([xs] * 2, key=lambda q: sum(map(q.count, q)))[0]",
}
LINEAR_IN_C = {
    "map": "sum(map(abs, xs))",
    "key": "sorted(xs, key=dict(zip(xs, xs)).get)",
    "get item": "sum(map(xs.__getitem__, range(len(xs))))",
    "operator": "sum(map(operator.getitem, itertools.repeat(xs), range(len(xs))))",
    "set": "len(list(filter(set(xs).__contains__, xs)))",
    "reduce": "functools.reduce(operator.add, xs)",
    "itemgetter": "sorted(enumerate(xs), key=operator.itemgetter(1))",
    "append": "list(map([].append, xs))",
    "method": "[Box().first(xs) for x in xs]",
    "chain of comparisons": "sum(1 for x in xs if 0 <= x < 3)",
}
HEADER = (
    "import collections, functools, itertools, operator, statistics\nclass Box:\n    def first(self, xs): return xs[0]\n"
    "def f(xs):\n    ys, zs = list(xs), list(xs)\n    return "
)


def _growth(expression: str) -> float:
    costs = [measure(HEADER + expression + "\n", [i * 7919 % n for i in range(n)])[1] for n in (500, 500, 2000)]
    assert costs[0] == costs[1]
    return costs[2] / costs[0]


@pytest.mark.parametrize("name", QUADRATIC_IN_C)
def test_quadratic_work_of_functions_passed_on_counts_as_quadratic(name: str) -> None:
    assert 10 <= _growth(QUADRATIC_IN_C[name]) <= 22


@pytest.mark.parametrize("name", LINEAR_IN_C)
def test_linear_work_of_functions_passed_on_stays_linear(name: str) -> None:
    assert 3 <= _growth(LINEAR_IN_C[name]) <= 5.5


@pytest.mark.parametrize("expression", [*QUADRATIC_IN_C.values(), *LINEAR_IN_C.values()])
def test_charging_functions_passed_on_changes_no_value(expression: str) -> None:
    space: dict[str, Any] = {}
    exec(HEADER + expression + "\n", space)
    xs = [3, 1, 2, 1, 3, 5]
    assert measure(HEADER + expression + "\n", xs)[0] == space["f"](xs)


PLACES = {  # quadratic work in C, in places where nothing in the program's text says how much there is
    "values of a dict": "sum(x in d.values() for x in xs)",
    "an array": "sum(map(array.array('q', xs).count, xs))",
    "yield from": "sum(sum(pour(xs)) for _ in xs)",
    "tee": "sum(sum(itertools.tee(xs)[0]) for _ in xs)",
    "a keyword": "sum(statistics.fmean(data=xs) for _ in xs)",
    "a merge": "sum(len({**d}) for _ in xs)",
    "disjoint sets": "sum(len(set(xs) & others) for _ in xs)",
    "difference": "sum(len(others - others) for _ in xs)",
    "counters": "sum(len(counted & counted) for _ in xs)",
    "nested comparison": "sum(rows == more for _ in xs)",
    "text of a list": "sum(len(f'{xs}') for _ in xs)",
    "text by %": "sum(len('%s' % (xs,)) for _ in xs)",
    "unpacking": "sum(last(xs) for _ in xs)",
    "a regular expression": "len(re.findall('a+b', 'a' * len(xs)))",
    "a compiled expression": "len(re.compile('a+b').findall('a' * len(xs)))",
    "a method of an expression": "len(list(map(re.compile('a+b').search, ['a' * len(xs)])))",
    "a chain of nested comparisons": "sum(rows == more == rows for _ in xs)",
    "a slice replaced": "grow([], xs)",
    "a starred loop": "sum(len(tail) for _, *tail in [xs] * len(xs))",
    "a pattern": "sum(same(xs, Held) for _ in xs)",
    "a starred pattern": "sum(rest(xs) for _ in xs)",
    "a float in a range": "sum(0.5 in range(len(xs)) for _ in xs)",
    "a hash": "sum(hash(long) > 0 for _ in xs)",
}
PLACES_HEADER = """
import array, collections, itertools, re, statistics
def pour(xs): yield from iter(xs)
def last(xs):
    *_, x = xs
    return x
def grow(out, xs):
    for x in xs * 16: out[0:0] = [x] * 16
    return len(out)
class Held: pass
def same(xs, held):
    match xs:
        case held.values: return 1
def rest(xs):
    match xs:
        case [x, *others]: return len(others)
def f(xs):
    Held.values = list(xs)
    d, others = {x: x for x in xs}, {-1 - x for x in xs}
    counted, long = collections.Counter(xs), tuple(xs)
    rows, more = [[x] for x in xs], [[x] for x in xs]
    return """


@pytest.mark.parametrize("name", PLACES)
def test_work_in_c_is_charged_wherever_it_hides(name: str) -> None:
    low, high = (measure(PLACES_HEADER + PLACES[name] + "\n", list(range(n)))[1] for n in (60, 480))
    assert 12 <= high / low <= 80  # 64 for eight times the size, less what is linear


NUMBERS = {
    "product": "n * n", "divmod": "divmod(n * n, n)[0]", "root": "math.isqrt(n)", "gcd": "math.gcd(n, n // 3 + 1)",
    "subclass": "Whole(n) * Whole(n)", "in place": "square([n])", "attribute": "square_of(Box(), n)",
    "attribute of an expression": "square_of([Box()], n)",
    "products": "math.prod([n, n])", "method": "n.__mul__(n)",
    "power": "int.__pow__(3, n & 255, n)", "Decimal": "decimal.Decimal(n) * decimal.Decimal(n)",
    "Fraction": "fractions.Fraction(n, n + 1) + 1",
}  # fmt: skip
NUMBERS_HEADER = """
import decimal, fractions, math
class Whole(int): pass
class Box: pass
def square(box):
    box[0] *= box[0]
    return box[0]
def square_of(box, n):
    if isinstance(box, list):
        box[0].n = n
        box[0].n *= box[0].n
        return box[0].n
    box.n = n
    box.n *= box.n
    return box.n
def f(bits):
    n = (1 << bits) - 12345
    return """


@pytest.mark.parametrize("name", NUMBERS)
def test_long_numbers_are_charged_by_their_length(name: str) -> None:
    low, high = (measure(NUMBERS_HEADER + NUMBERS[name] + " and 0\n", bits)[1] for bits in (8_000, 64_000))
    assert high > 8 * low  # superlinear for eight times the length
    assert high > 5_000


def test_decimals_are_charged_by_their_precision() -> None:
    program = "from decimal import *\ndef f(p, n):\n    with localcontext() as c:\n        c.prec = p\n        return Decimal(n).{}() > 0\n"
    for method in ("sqrt", "exp", "ln"):
        costs_ = [measure(program.format(method), precision, 2)[1] for precision in (28, 280, 2800)]
        assert costs_[2] > 20 * costs_[1] > 20 * costs_[0]


def test_backtracking_is_charged_step_by_step() -> None:
    program = "import re\ndef f(n):\n    return re.match('(a+)+$', 'a' * n + 'b')\n"
    costs_ = [measure(program, n)[1] for n in (4, 8, 12)]
    assert costs_[2] > 10 * costs_[1] > 60 * costs_[0] / 10
    plain = "import re\ndef f(n):\n    return len(re.findall(r'\\w+', 'word ' * n))\n"
    assert 3 <= measure(plain, 400)[1] / measure(plain, 100)[1] <= 4.1


PATTERNS = [
    r"a+b", r"(a|ab)(c|bcd)(d*)", r"(a+)+$", r"(?:ab)*?c", r"(\w)\1", r"^a.*b$", r"\bab\b", r"(?=a)(a|b)*", r"(?<=a)b",
    r"(?!b).", r"[^ab]+", r"(?i)A+", r"(a*)*b", r"(?:a|b){2,3}c?", r"(a)?(?(1)b|c)", r"(?P<x>a+?)b(?P=x)", r"(?s).+",
    r"(a*?)*c", r"((a|b)*)c\2", r"x*", r"(?m)^b",
    r"(?!(([ab]))\2)", r"(?i)(a)\1", r"\A(?:((?=(.)))|(\2))",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PATTERNS), st.text("abcdA \n", max_size=10))
def test_the_counting_matcher_finds_what_re_finds(source: str, text: str) -> None:
    pattern = re.compile(source)
    for method in ("match", "fullmatch"):
        search = meter_regex._Search(text, len(text), lambda units: None)
        found = getattr(pattern, method)(text)
        assert meter_regex._matcher(pattern, method == "fullmatch")(search, 0) == (found.end() if found else -1)


SMALL = st.integers(-(2**WIDE) + 1, 2**WIDE - 1) | st.floats()


@given(st.sampled_from(sorted(_QUICK)), SMALL, SMALL)
def test_the_short_way_of_small_numbers_charges_what_the_rules_charge(operator: str, left: float, right: float) -> None:
    assert _is_small(left)
    assert operation_work(operator, left, right) == comparison_work(left, right) == size_of(left) == 0
