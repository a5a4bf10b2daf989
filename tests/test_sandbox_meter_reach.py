"""Honest programs that once had no cost: deep recursion, and modules that are not there."""

# ruff: noqa: E501 - programs in a table read better on one line

from __future__ import annotations

import sys

import pytest

from lightning_dterm.sandbox import Job, Sandbox
from lightning_dterm.types import CallTest
from tests.metering import measure

DOWN = "def g(n): return 0 if n == 0 else 1 + g(n - 1)\n"
CACHED = "from functools import lru_cache\n@lru_cache(None)\n" + DOWN
DEEP = {  # name: (program, depth)
    "plain": (DOWN, 900),
    "cached": (CACHED, 480),  # as deep as it goes without the meter
    # CPython 3.12 and later recurse some 500 deep in C, whatever the limit; 3.10 needs C's stack for every call
    "cached_deeper": ("import sys\nsys.setrecursionlimit(2000)\n" + CACHED, 900),
    "limit": ("import sys\nsys.setrecursionlimit(10000)\n" + DOWN, 5000),
    "nearly_the_limit": ("import sys\nsys.setrecursionlimit(10000)\n" + DOWN, 9900),
    "limit_of_millions": ("import sys\nsys.setrecursionlimit(10**7)\n" + DOWN, 30000),
    "no_limit_in_c": ("import sys\nsys.setrecursionlimit(2**31 - 1)\n" + DOWN, 2000),
    "method": ("class S:\n    def g(self, n): return 0 if n == 0 else 1 + self.g(n - 1)\ng = S().g\n", 900),
    "in_a_list": ("def g(n): return 0 if n == 0 else sum([g(x) for x in [n - 1]]) + 1\n", 300),
    "generator": ("def h(n):\n    if n: yield from h(n - 1)\n    yield n\ndef g(n): return len(list(h(n))) - 1\n", 900),
}


def test_recursion_as_deep_as_without_the_meter_has_a_cost() -> None:
    beyond = (
        "limit_of_millions" if sys.version_info < (3, 11) else "cached_deeper" if sys.version_info >= (3, 12) else ""
    )
    deep = {name: case for name, case in DEEP.items() if name != beyond}
    programs = [(program + "def f(n): return g(n)\n", depth) for program, depth in deep.values()]
    with Sandbox(slots=1) as sandbox:
        results = sandbox.run_many([Job(text, "f", (CallTest((depth,), depth),), True) for text, depth in programs])
    assert {name for name, result in zip(deep, results, strict=True) if not (result.passed and result.cost)} == set()
    cost = dict(zip(deep, (result.cost or 0 for result in results), strict=True))
    # A turn: return, the conditional expression, 0, ==, n, 0, +, 1, the call, g, -, n, 1.
    assert cost["nearly_the_limit"] - cost["limit"] == 13 * (9900 - 5000)


def test_endless_recursion_ends_as_without_the_meter() -> None:
    caught = "def g(n): return g(n + 1)\ndef f(n):\n    try: g(0)\n    except RecursionError: return n\n"
    limit = "import sys\ndef f(n):\n    sys.setrecursionlimit(n)\n    return sys.getrecursionlimit()\n"
    with Sandbox(slots=1) as sandbox:
        results = sandbox.run_many([Job(text, "f", (CallTest((1234,), 1234),), True) for text in (caught, limit)])
    assert all(result.passed and result.cost for result in results)


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("import collections\ndef f(): return isinstance([], collections.abc.Iterable)\n", True),
        ("import collections.abc\ndef f(): return collections.abc.Sized is not None and collections.deque([1])[0]\n", 1),
        ("import collections.abc as c\ndef f(): return issubclass(dict, c.Mapping)\n", True),
        ("from collections import abc\ndef f(): return issubclass(dict, abc.Mapping)\n", True),
        ("try:\n    import numpy\nexcept ImportError:\n    numpy = None\ndef f(): return numpy\n", None),
        ("try:\n    from numba.core import jit\nexcept ImportError:\n    jit = 3\ndef f(): return jit\n", 3),
        ("from operator import attrgetter\nclass P:\n    def __init__(s, x): s.x = x\ndef f(): return [p.x for p in sorted(map(P, [3, 1, 2]), key=attrgetter('x'))]\n", [1, 2, 3]),
        ("import operator\nclass P: x, y = 1, 1 + 2j\ndef f(): return operator.attrgetter('x', 'y.imag')(P)\n", (1, 2.0)),
    ],
)  # fmt: skip
def test_idioms_that_lead_nowhere_have_a_cost(program: str, value: object) -> None:
    found, cost = measure(program)
    assert found == value
    assert cost > 0
