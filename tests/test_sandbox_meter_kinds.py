"""Nothing that Python does in C is free: work that grows is charged as it grows, of every kind and however it is hidden."""

# ruff: noqa: E501 - programs in a table read better on one line

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import pytest

from lightning_dterm.sandbox.meter import Meter, Unmetered
from lightning_dterm.sandbox.meter_regex import Uncounted
from tests.metered_kinds import KINDS, program
from tests.metering import measure

SMALL, FACTOR = 64, 16
# Elements for which there must be a unit at least. A unit is some 20 ns of Python's own work; in that time C reads or
# copies this many characters, or moves this many references.
ELEMENTS, MOVED = 70, 150
MOVES = frozenset([
    "array.insert", "list.insert", "bytearray slice assigned", "del list[0]", "deque.insert", "list.pop(0)", "insort",
])  # fmt: skip


class Metered:
    """The kinds at one size."""

    def __init__(self, n: int) -> None:
        self.meter = Meter(10**9, lambda cost: None)
        code, space = self.meter.prepare(program(), "<kinds>")
        exec(code, space)
        self.kinds: dict[str, Callable[[int], None]] = space["f"](n)

    def cost(self, name: str) -> int:
        """Of one repetition."""
        counts = [self.meter.cost]
        for repetitions in (1, 3):
            with contextlib.redirect_stdout(io.StringIO()):
                self.kinds[name](repetitions)
            counts.append(self.meter.cost - counts[0])
        return (counts[2] - 2 * counts[1]) // 2


@pytest.fixture(scope="module")
def sizes() -> tuple[Metered, Metered]:
    return Metered(SMALL), Metered(SMALL * FACTOR)


def test_there_are_many_kinds() -> None:
    assert len(KINDS) >= 450


@pytest.mark.parametrize("name", KINDS)
def test_the_cost_grows_as_the_work_does(sizes: tuple[Metered, Metered], name: str) -> None:
    low, high = (size.cost(name) for size in sizes)
    assert high - low >= SMALL * (FACTOR - 1) / (MOVED if name in MOVES else ELEMENTS)


HIDDEN = {  # each goes 60 times over 5,000 elements
    "staticmethod": "class A(list):\n    __getitem__ = staticmethod(set)\ndef f(xs):\n    a = A(xs); t = tuple(xs)\n    for _ in range(60): a[t]\n",
    "classmethod": "class A:\n    made = classmethod(lambda cls, xs: set(xs))\ndef f(xs):\n    for _ in range(60): A.made(xs)\n",
    "property": "class A(list):\n    p = property(set)\ndef f(xs):\n    a = A(xs)\n    for _ in range(60): a.p\n",
    "cached property": "import functools\nclass A(list):\n    p = functools.cached_property(set)\ndef f(xs):\n    for _ in range(60): A(xs).p\n",
    "a class by subscript": "class A:\n    __class_getitem__ = staticmethod(set)\ndef f(xs):\n    t = tuple(xs)\n    for _ in range(60): A[t]\n",
    "missing keys": "class D(dict):\n    __missing__ = staticmethod(set)\ndef f(xs):\n    d = D(); t = tuple(xs)\n    for _ in range(60): d[t]\n",
    "a generic alias": "def f(xs):\n    for _ in map(list[int], [xs] * 60): pass\n",
    "a class with a metaclass": "import abc\nclass S(set, abc.ABC): pass\ndef f(xs):\n    for _ in map(S, [xs] * 60): pass\n",
    "partial of a partial": "import functools\ndef f(xs):\n    p = functools.partial(functools.partial(set), xs)\n    for _ in range(60): p()\n",
    "kinds of errors": "T = (ValueError,) * 5000\ndef f(xs):\n    for _ in range(60):\n        try:\n            try: 1 / 0\n            except T: pass\n        except ZeroDivisionError: pass\n",
    "kinds of instances": "class A: pass\nT = (A,) * 5000\ndef f(xs):\n    for _ in range(60): isinstance(1, T)\n",
    "prefixes": "T = ('q',) * 5000\ndef f(xs):\n    for _ in range(60): 'abc'.startswith(T)\n",
    "factory of a dict": "from collections import defaultdict\ndef f(xs):\n    d = defaultdict(xs.copy)\n    for i in range(60): d[i]\n",
    "factory of a field": "from dataclasses import dataclass, field\nX = list(range(5000))\n@dataclass\nclass A:\n    x: list = field(default_factory=X.copy)\ndef f(xs):\n    for i in range(60): A()\n",
    "total ordering": "import functools\n@functools.total_ordering\nclass A:\n    def __init__(s, x): s.x = x\n    def __eq__(s, o): return s.x == o.x\n    def __lt__(s, o): return s.x < o.x\ndef f(xs):\n    a, b = A(xs), A(list(xs))\n    for i in range(60): a >= b\n",
    "data classes": "from dataclasses import dataclass\ndef f(xs):\n    for i in range(40):\n        @dataclass\n        class A:\n            x: int = 0\n",
    "enumerations": "from enum import Enum\ndef f(xs):\n    for i in range(60):\n        class E(Enum):\n            A = 1\n",
    "named tuples": "from collections import namedtuple\ndef f(xs):\n    for i in range(60): namedtuple('P', 'a b c')\n",
    "keys to be sorted by": "def f(xs):\n    l = [tuple(xs) for _ in range(5)]\n    for _ in range(60): max(range(5), key=lambda i: l[i])\n",
    "a generator to be sorted": "def f(xs):\n    l = [tuple(xs) for _ in range(8)]\n    for _ in range(60): sorted(t for t in l)\n",
    "a heap": "import heapq\ndef f(xs):\n    h = [tuple(xs) for _ in range(8)]\n    for _ in range(60): heapq.heappush(h, heapq.heappop(h))\n",
    "a loop over what is filtered": "def f(xs):\n    z = [0] * len(xs)\n    for _ in range(60):\n        for q in filter(None, z): pass\n",
    "text of an error": "def f(xs):\n    e = ValueError(xs)\n    for _ in range(60): str(e)\n",
    "text of a partial": "import functools\ndef f(xs):\n    p = functools.partial(print, xs)\n    for _ in range(60): repr(p)\n",
    "views in lists": "def f(xs):\n    a, b = [dict.fromkeys(xs).keys()], [dict.fromkeys(xs).keys()]\n    for _ in range(60): a == b\n",
    "a pattern with a value": "class K: v = None\ndef f(xs):\n    K.v = list(xs)\n    for _ in range(60):\n        match xs:\n            case K.v: pass\n",
    "a pattern with the rest": "def f(xs):\n    d = {i: i for i in xs}\n    for _ in range(60):\n        match d:\n            case {1: 1, **rest}: pass\n",
    "needles": "def f(xs):\n    s = 'a' * 25000; t = 'a' * 49 + 'b' + 'a' * 49\n    for _ in range(60): s.find(t)\n",
    "templates": "import re\ndef f(xs):\n    s = '\\\\n' * 5000\n    for i in range(60): re.sub('a', s + str(i), 'b')\n",
    "copies of slots": "import copy\nclass A: __slots__ = ('x',)\ndef f(xs):\n    a = A(); a.x = xs\n    for _ in range(3): copy.deepcopy(a)\n",
    "dates": "import datetime\ndef f(xs):\n    d = datetime.date(2020, 1, 1); s = '%Y' * 5000\n    for _ in range(60): f'{d:{s}}'\n",
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_work_is_charged(name: str) -> None:
    assert measure(HIDDEN[name], list(range(5000)))[1] >= 60 * 5000 / 16


REFUSED = {
    "bound method": "class A:\n    __contains__ = list(range(5000)).__contains__\n",
    "a class": "import abc\nclass S(set, abc.ABC): pass\nclass A:\n    __neg__ = S\n",
    "another class's method": "class A:\n    __len__ = list.__len__\n",
    "a slot": "class A:\n    __slots__ = ('__call__',)\n",
    "a property": "class A(list):\n    __iter__ = property(lambda self: self.copy)\n",
    "a bound function": "class A:\n    def g(self): pass\nclass B:\n    __call__ = A().g\n",
    "set_name": "class A:\n    __set_name__ = set\n",
    "class_getitem": "class A:\n    __class_getitem__ = set\n",
    "a library's function": "from collections import Counter\nclass A:\n    __add__ = Counter.__add__\n",
    "a generic alias": "class A:\n    __call__ = list[int]\n",
    "a false class": "class A(list):\n    __class__ = property(lambda self: dict)\n",
    "many items at once": "import operator\noperator.itemgetter(*range(1000))\n",
    "an item that is long": "import operator\noperator.itemgetter(tuple(range(1000)))\n",
    "bounds of a search": "import re\nclass I:\n    def __index__(self): return 0\nre.compile('(a+)+$').match('a', I())\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_hide_work_is_refused(name: str) -> None:
    with pytest.raises((Unmetered, Uncounted)):
        exec(*Meter(10**9, lambda cost: None).prepare(REFUSED[name], "<test>"))


HONEST = """
import enum, functools, typing
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
class Colour(enum.Enum):
    RED = 1
class Power(enum.Flag):
    A = 1
    B = 2
class Row(typing.NamedTuple):
    a: int
    b: int = 2
class Pair(namedtuple("Pair", "x y")):
    __slots__ = ()
    def __add__(self, other): return Pair(self.x + other.x, self.y + other.y)
@dataclass(order=True)
class Box:
    n: int
    items: list = field(default_factory=list)
    def __len__(self): return self.n
@dataclass(frozen=True)
class Key:
    n: int
class Both(typing.Generic[typing.TypeVar("T")]):
    __hash__ = None
    def __eq__(self, other): return True
    __ne__ = __eq__
    def __class_getitem__(cls, item): return item
class Sized(OrderedDict):
    __eq__ = OrderedDict.__eq__
    @staticmethod
    def __new__(cls, *a): return super().__new__(cls)
    __repr__ = lambda self: "sized"
class Proto(typing.Protocol):
    def run(self): ...
def f(n):
    box = Box(n)
    return [
        Colour(1).name, Power.A | Power.B, Row(n), Pair(1, 2) + Pair(3, 4), box == Box(n), box < Box(n + 1), box != Box(2), repr(box),
        len({Key(n), Key(n)}), Key(n) == Key(n), Both() == 1, Both[3], repr(Sized()), Sized() == {}, box == n, Box(1) >= Box(0), Box(n, [1]),
        list(filter(None, [0, n])), sorted([(2, 1), (1, 2)], key=lambda t: t[1]), max("abc", key="bca".index), {**{1: n}}, {(n, 1): 2}[n, 1],
    ]
"""


def test_honest_classes_are_left_alone() -> None:
    value, _ = measure(HONEST, 5)
    space: dict[str, Any] = {"__name__": "program"}
    exec(compile(HONEST, "<test>", "exec", dont_inherit=True), space)
    assert repr(value) == repr(space["f"](5))


@pytest.mark.parametrize(
    "work",
    [
        "(-1) ** n",
        "1 ** n",
        "0 ** n",
        "pow(-1, n)",
        "(-1).__pow__(n)",
        "math.pow(1, n)",
        "math.pow(3, 300)",
        "2.0 ** 9",
    ],
)
def test_powers_that_take_no_work_cost_none(work: str) -> None:
    assert measure(f"import math\ndef f(n):\n    return {work}\n", 10**6)[1] < 15


def test_powers_that_take_work_cost_it() -> None:
    costs = [measure("def f(n):\n    return 3 ** n > 0\n", n)[1] for n in (10_000, 40_000)]
    assert costs[1] > 8 * costs[0]


@pytest.mark.parametrize("text", ["b'ab' * n", "bytearray(b'ab' * n)", "array.array('b', b'ab' * n)"])
def test_backtracking_in_whatever_holds_bytes_is_charged(text: str) -> None:
    costs = [
        measure(f"import array, re\ndef f(n):\n    return re.findall(b'(a|b)+c', {text})\n", n)[1] for n in (20, 80)
    ]
    assert costs[1] > 10 * costs[0]


def test_groups_repeated_very_often_are_counted_or_refused_but_no_accident() -> None:
    source = "import re\ndef f(n):\n    return re.match('(?:(a)|b)*$', 'ab' * n).end()\n"
    costs = [measure(source, n) for n in (500, 2000)]
    assert [value for value, _ in costs] == [1000, 4000]
    assert 3.8 < costs[1][1] / costs[0][1] < 4.2
    with pytest.raises(Uncounted, match="nests too deeply"):
        measure(source, 60_000)
