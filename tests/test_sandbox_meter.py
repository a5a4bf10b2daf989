"""The cost of programs: by hand, against complexity, alike on every run, in this process and in the sandbox."""

# ruff: noqa: E501 - programs in a table read better on one line

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.sandbox import Job, Limits, Sandbox
from lightning_dterm.sandbox.judge import Judged
from lightning_dterm.sandbox.result import Result, TestOutcome
from lightning_dterm.sandbox.steps import judge_job
from lightning_dterm.sandbox.wire import MAX_COST
from lightning_dterm.types import CallTest
from tests.metering import measure


@pytest.mark.parametrize(
    ("program", "argument", "cost"),
    [
        ("def f(x):\n    return x\n", 5, 2),  # return, x
        ("def f(x):\n    return x + 1\n", 5, 4),  # return, +, x, 1
        # for, i, range call (range, x): 5, return, x: 2, and 2 a turn: pass counts 1, its block nothing else
        ("def f(x):\n    for i in range(x):\n        pass\n    return x\n", 10, 7 + 10),
        ("def f(x):\n    if x:\n        return x\n    return 0\n", 3, 4 + 2),  # if, x, return, 0; return, x
    ],
)
def test_cost_by_hand(program: str, argument: int, cost: int) -> None:
    assert measure(program, argument)[1] == cost


def test_layout_names_and_comments_do_not_matter() -> None:
    one = "def f(n):\n    t = 0\n    for i in range(n):\n        t += i\n    return t\n"
    other = (
        "def f( number ):\n    # a comment\n    total=0; \\\n\n    for k in range(number): total+=k\n    return total"
    )
    assert measure(one, 50) == measure(other, 50)


SORTS = {
    "bubble": "def f(xs):\n    xs = list(xs)\n    for i in range(len(xs)):\n        for j in range(len(xs) - 1 - i):\n"
    "            if xs[j] > xs[j + 1]:\n                xs[j], xs[j + 1] = xs[j + 1], xs[j]\n    return xs\n",
    "built_in": "def f(xs):\n    return sorted(xs)\n",
}
PAIRS = {  # task: (linear or nearly so, quadratic), the quadratic work in Python or in C
    "loops": (
        "def f(xs):\n    seen = set()\n    for x in xs:\n        if x in seen:\n            return True\n        seen.add(x)\n    return False\n",
        "def f(xs):\n    for i in range(len(xs)):\n        for j in range(i):\n            if xs[i] == xs[j]:\n                return True\n    return False\n",
    ),
    "in": (
        "def f(xs):\n    seen = set()\n    for x in xs:\n        if x in seen:\n            return True\n        seen.add(x)\n    return False\n",
        "def f(xs):\n    seen = []\n    for x in xs:\n        if x in seen:\n            return True\n        seen.append(x)\n    return False\n",
    ),
    "count": (
        "from collections import Counter\ndef f(xs):\n    return max(Counter(xs).values())\n",
        "def f(xs):\n    return max(xs.count(x) for x in xs)\n",
    ),
    "index": (
        "def f(xs):\n    d = {x: i for i, x in enumerate(xs)}\n    return [d[x] for x in xs]\n",
        "def f(xs):\n    return [xs.index(x) for x in xs]\n",
    ),
    "slices": (
        "def f(xs):\n    t = 0\n    out = []\n    for x in xs:\n        t += x\n        out.append(t)\n    return out\n",
        "def f(xs):\n    return [sum(xs[: i + 1]) for i in range(len(xs))]\n",
    ),
    "map": (
        "def f(xs):\n    return len(set(xs))\n",
        "def f(xs):\n    return sum(map(lambda i: xs[i] not in xs[:i], range(len(xs))))\n",
    ),
    "concatenation": (
        "def f(xs):\n    out = []\n    for x in xs:\n        out.append(x)\n    return out\n",
        "def f(xs):\n    out = []\n    for x in xs:\n        out = out + [x]\n    return out\n",
    ),
    "remove": (
        "def f(xs):\n    return sorted(xs)\n",
        "def f(xs):\n    xs, out = list(xs), []\n    while xs:\n        m = min(xs)\n        xs.remove(m)\n        out.append(m)\n    return out\n",
    ),
    "starred": (
        "def f(xs):\n    out = []\n    for x in xs:\n        out.append(x)\n    return out\n",
        "def f(xs):\n    out = []\n    for x in xs:\n        out = [*out, x]\n    return out\n",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_quadratic_costs_more_than_linear_and_ever_more(name: str) -> None:
    linear, quadratic = PAIRS[name]
    ratios = []
    for n in (100, 400, 1600):
        xs = [(i * 7919) % 100_003 for i in range(n)]
        (value, low), (same, high) = measure(linear, xs), measure(quadratic, xs)
        assert value == same
        ratios.append(high / low)
    assert ratios[0] < ratios[1] < ratios[2]
    assert ratios[2] > 3
    assert ratios[2] / ratios[0] > 4  # 16 times the size; a constant factor would leave it at 1


def test_built_in_sorting_beats_sorting_by_hand() -> None:
    xs = [(i * 7919) % 1009 for i in range(500)]
    (value, slow), (same, quick) = (measure(SORTS[name], xs) for name in ("bubble", "built_in"))
    assert value == same
    assert slow > 100 * quick


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-50, 50), max_size=30), st.sampled_from([*PAIRS.values(), tuple(SORTS.values())]))
def test_metering_changes_no_value(xs: list[int], programs: tuple[str, str]) -> None:
    for program in programs:
        space: dict[str, Any] = {}
        exec(program, space)
        try:
            wanted = space["f"](list(xs))
        except ValueError:
            continue
        assert measure(program, list(xs))[0] == wanted


RICH = '''
from __future__ import annotations
"""Much of the language, to see that metering leaves it alone."""
import functools, itertools, math, re, sys
from collections import Counter, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from enum import Enum

Point = namedtuple("Point", "x y")

class Colour(Enum):
    RED = 1

@dataclass
class Box:
    """A box."""
    items: list = field(default_factory=list)
    __slots_hint = 3

    def __add__(self, other):
        return Box(self.items + other.items)

    def __contains__(self, item):
        return item in self.items

    @property
    def _size(self):
        return len(self.items)

    @classmethod
    def of(cls, *items, **more):
        return cls([*items, *more.values()])

class Child(Box):
    def __init__(self, items):
        super().__init__(items)
        self.__hidden = 7

    def hidden(self):
        return self.__hidden

@functools.lru_cache(maxsize=None)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

def gen(n):
    while True:
        got = yield n
        n += got or 1
        if n > 20:
            return "done"

def outer():
    total = 0
    def inner(k, /, *, by=2):
        nonlocal total
        total += k * by
        return total
    return [inner(i) for i in range(4)], (lambda *a, **k: (a, k))(1, 2, z=3)

def f(n):
    g = gen(n)
    out = [next(g), g.send(5), list(itertools.islice(zip("abc", range(9)), 2))]
    try:
        {}["x"]
    except KeyError as error:
        out.append(str(error))
    else:
        out.append("no")
    finally:
        out.append("finally")
    first, *rest = out
    d = defaultdict(list)
    for i, ch in enumerate("banana"):
        d[ch].append(i)
    while n:
        n -= 1
        if n == 1:
            continue
    else:
        out.append("else")
    xs = list(range(10))
    del xs[0], xs[-1]
    xs[2:4] = [0]
    xs += [1]
    text = f"{n!r:>4}|{math.pi:.2f}|{len(xs)=}"
    if (m := re.match(r"(a+)(b)", "aab")) and 0 <= len(xs) < 100 != 3:
        out.append(m.group(1))
    pairs = {k: v for k, v in sorted(Counter("hello").items()) if v > 1 if k}
    box = Box.of(1, 2, three=3) + Child([4])
    q = deque([1, 2, 3]); q.rotate(1); q.append(9)
    with_match = None
    out += [rest[:1], dict(d), xs, text, pairs, box.items, 4 in box, 9 not in box, box._size, Child([1]).hidden(),
            list(q), Point(1, 2)._asdict(), Point(1, 2).x, Colour.RED.value, fib(25), outer(),
            [x for x in (y for y in range(5)) if x % 2], sum(map(int, "123")), list(map(str.upper, "ab")),
            max([3, 1], key=lambda v: -v), "a-b".split("-"), 2 ** 200 % 97, [*"ab", *range(2)], {**d, "z": 1}.keys() >= {"z"},
            any(v == 3 for v in xs), sorted("bca", reverse=True), list(reversed([1, 2])), not xs, -n, ~n, xs[::2],
            sys.maxsize > 5, "%s-%d" % ("a", 3), [i * j for i in range(3) for j in range(i)], type(box).__name__]
    assert out, "message"
    return out
'''


def test_the_language_is_left_alone() -> None:
    value, cost = measure(RICH, 3)  # first, so that the module "program" is there for dataclasses
    space: dict[str, Any] = {"__name__": "program"}
    exec(compile(RICH, "<test>", "exec"), space)
    assert repr(value) == repr(space["f"](3))
    assert cost > 100


UPDATES = """
class Box:
    n = 1
    _m = [1]
    __k = 2
    def more(self):
        self.__k += 1
        self._m += [self.__k]
        return self._m
log = []
def say(x):
    log.append(x)
    return x
def f(xs):
    box, d = Box(), {"a": 1, "b": [0, 1], "c": 2}
    box.n += 1
    [box][say(0)].n *= say(7)
    d["a"] -= say(3)
    d["b"][say(0)] += say(2)
    d["b"] += say([5])
    del d["c"], d["b"][1:2]
    xs[1:1] = xs[:2]
    xs[say(0)] |= say(8)
    for a, *b in [xs, "pq"]:
        log.append((a, b))
    return box.n, box.more(), [b for _, *b in [xs]], log, d, xs, 1 < say(2) <= say(2) < 3 < say(1) < say(9)
"""


def test_updates_in_place_are_those_of_the_language() -> None:
    space: dict[str, Any] = {}
    exec(UPDATES, space)
    assert measure(UPDATES, [1, 2, 3])[0] == space["f"]([1, 2, 3])


MATCH = (
    "def f(x):\n    match x:\n        case [a, *_] if a > 1:\n            return a\n        case {'k': v}:\n            return v\n"
    "        case _:\n            return None\n"
)


@pytest.mark.parametrize("value", [[3, 4], {"k": 5}, "z"])
def test_pattern_matching(value: Any) -> None:
    space: dict[str, Any] = {}
    exec(MATCH, space)
    assert measure(MATCH, value)[0] == space["f"](value)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(slots=1, limits=Limits(cpu_s=3.0, wall_s=20.0)) as box:
        yield box


def costs(sandbox: Sandbox, *programs: str, tests: tuple[CallTest, ...]) -> list[int | None]:
    return [result.cost for result in sandbox.run_many([Job(p, "f", tests, measure_cost=True) for p in programs])]


SUM = "def f(n):\n    total = 0\n    for i in range(n):\n        total += i\n    return total\n"


def test_the_same_program_costs_the_same_under_load(sandbox: Sandbox) -> None:
    linear, quadratic = PAIRS["in"]
    tests = (CallTest((list(range(300)),), False),)
    quiet = costs(sandbox, linear, quadratic, tests=tests)
    stop = time.monotonic() + 1.5
    threads = [
        threading.Thread(target=lambda: [None for _ in iter(lambda: time.monotonic() < stop, False)]) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    loud = [costs(sandbox, linear, quadratic, tests=tests) for _ in range(4)]
    for thread in threads:
        thread.join()
    with Sandbox(slots=1, namespaces=False) as other:  # another zygote, another address layout
        loud.append(costs(other, linear, quadratic, tests=tests))
    assert None not in quiet
    for seen in loud:
        for one, two in zip(quiet, seen, strict=True):
            assert one is not None
            assert two is not None
            assert abs(one - two) <= 0.02 * one
    assert quiet[1] > 5 * quiet[0]  # type: ignore[operator]


def test_cost_needs_passed_visible_tests_but_no_hidden_ones(sandbox: Sandbox) -> None:
    alone = costs(sandbox, SUM, tests=(CallTest((3,), 3),))
    assert costs(sandbox, SUM, tests=(CallTest((3,), 3), CallTest((4,), 7, visible=False))) == alone
    assert costs(sandbox, SUM, tests=(CallTest((3,), 4), CallTest((4,), 6, visible=False))) == [None]
    assert costs(sandbox, SUM, tests=(CallTest((3,), 3, visible=False),)) == [None]


def test_an_accident_in_the_metered_pass_is_no_lack_of_a_cost() -> None:
    passed = Result("passed", per_test=(TestOutcome(True, "passed", True),))

    def attempt(job: Job, tests: Sequence[CallTest], metered: bool) -> Judged:
        return Judged(Result("infra", exception="the judge died") if metered else passed)

    result = judge_job(Job(SUM, "f", (CallTest((3,), 3),), measure_cost=True), Limits(), attempt).result
    assert (result.status, result.exception, result.cost) == ("infra", "the judge died", None)


def test_cost_is_capped(sandbox: Sandbox) -> None:
    slow = "def f(n):\n    while n:\n        n -= 1\n    return 0\n"
    assert costs(sandbox, slow, tests=(CallTest((4_000_000,), 0),)) == [MAX_COST]


FORGED_COST = """
def f(n):
    try:
        import gc
        next(o for o in gc.get_objects() if type(o).__name__ == "Meter").cost = -10 ** 6
    except BaseException:
        pass
    return sum(range(n))
"""


SUMMED = "def f(n):\n    t = 0\n    for i in range(n):\n        t += i\n    return t\n"
DISPATCHED = (
    "import functools\n@functools.singledispatch\ndef g(x): return 0\n"
    "def h(x: '__m_tick__.__self__.__dict__.update(cost=0) or int'): pass\n"
    + SUMMED.replace("    return t", "    try: g.register(h)\n    except NameError: pass\n    return t")
)
WRAPPED = (
    "import functools\nL = []\nclass C:\n    def __setattr__(self, n, v): L.append(v)\nclass F: pass\n"
    + SUMMED.replace(
        "    return t",
        "    functools.update_wrapper(C(), f, ['__globals__'], [])\n"
        "    tick = L[0]['__builtins__']['__' + 'm_tick__']\n"
        "    functools.update_wrapper(C(), tick, ['__self__'], [])\n    F.cost = 0\n"
        "    functools.update_wrapper(L[1], F, ['cost'], [])\n    return t",
    )
)


def test_counters_reached_through_the_standard_library_give_no_cost(sandbox: Sandbox) -> None:
    honest, *forged = costs(sandbox, SUMMED, DISPATCHED, WRAPPED, tests=(CallTest((1000,), 499500),))
    assert honest
    assert forged == [None, None]


def test_a_program_that_goes_after_its_counter_has_no_low_cost(sandbox: Sandbox) -> None:
    tests = (CallTest((1000,), 499500),)
    forged, honest = costs(sandbox, FORGED_COST, "def f(n):\n    return sum(range(n))\n", tests=tests)
    assert honest is not None
    assert forged is None or forged >= honest
    backtracks = "import re\ndef f(n):\n    re.match('(a+)+$', 'a' * 16 + 'b')\n    return 499500\n"
    assert costs(sandbox, backtracks, tests=tests)[0] > 2**15  # type: ignore[operator]
    hidden_work = (  # numbers with one hash
        "XS = [i * (2**61 - 1) for i in range(6000)]\ndef f(n):\n    for _ in range(4): set(XS)\n    return 499500\n"
    )
    assert costs(sandbox, hidden_work, tests=tests) == [None]  # more CPU time than the count can explain
    quits = "def f(n):\n    return 499500 if n == 1000 else 0\nimport os\n"
    assert costs(sandbox, quits, tests=tests) == [None]
