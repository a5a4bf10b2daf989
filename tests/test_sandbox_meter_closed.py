"""Ways out of the meter, and to work that it could not charge, are closed."""

# ruff: noqa: E501 - programs in a table read better on one line

from __future__ import annotations

import sys
import time

import pytest

from lightning_dterm.sandbox import Job, Sandbox
from lightning_dterm.sandbox.meter import Meter, Unmetered
from lightning_dterm.sandbox.meter_regex import Uncounted
from lightning_dterm.types import CallTest
from tests.metering import measure


@pytest.mark.parametrize(
    "program",
    [
        "import gc\n", "import os\n", "import sys, inspect\n", "from ctypes import *\n", "from . import x\n",
        "def f(): return f.__globals__\n", "def f(): return ().__class__.__bases__[0].__subclasses__()\n",
        "def f():\n    try: 1/0\n    except Exception as e: return e.__traceback__.tb_frame\n",
        "def f(): return (x for x in ()).gi_frame\n", "x = __m_tick__\n", "__m_tick__ = print\n", "def f(): eval('1')\n",
        "x = getattr(print, '__self__')\n", "x = globals()\n", "x = open\n", "import sys\nsys._getframe()\n",
        "import sys\nsys.settrace(None)\n", "import operator\noperator.attrgetter('a.__code__')\n", "import random\nrandom._os\n",
        "import typing\ntyping.sys\n", "class _A:\n    _os = 1\n    def g(s): s._os = 2\nimport random\nrandom._os.getpid()\n",
        "import string\nstring.Formatter()\n", "x = 1 in [1] in [[1]]\n", "def f(x): return x.__code__\n",
        "setattr(int, '__code__', 1)\n", "import importlib\n", "help()\n", "def __m_call__(*a): pass\n",
        "def f(__m_tick__): pass\n", "class __m_tick__: pass\n", "import math as __m_tick__\n",
        "import functools\nfunctools.singledispatch\n", "import functools\nfunctools.update_wrapper\n",
        "import functools\nfunctools.wraps(print, ['__globals__'], [])\n", "import functools\nfunctools.wraps(print)(len)\n",
        "import functools\nclass C: pass\nfunctools.wraps(print)(C())\n",
        "from dataclasses import dataclass\n@dataclass\nclass C:\n    __annotations__ = {'x=print(1)': int}\n",
        "from dataclasses import dataclass\ndataclass(type('C', (), {'__annotations__': {'x=print(1)': int}}))\n",
        "from dataclasses import dataclass, field\nclass L:\n    def __bool__(self): return True\n@dataclass(init=L())\nclass A:\n    x: int = 0\n",
        "from dataclasses import dataclass, field\nclass L:\n    def __bool__(self): return True\n@dataclass\nclass A:\n    x: int = field(default=0, init=L())\n",
        "from dataclasses import dataclass, field\nclass L:\n    def __get__(self, *a): return 0\n@dataclass\nclass A:\n    x: int = L()\n",
        "from dataclasses import dataclass, field\nclass L:\n    def __get__(self, *a): return 0\n@dataclass\nclass A:\n    x: int = field(default=L())\n",
        "from dataclasses import dataclass, field\nclass F(type(field())): pass\n@dataclass\nclass A:\n    x: int = F(0, None, True, True, None, True, None, False)\n",
        "super = type\nsuper('X', (), {})\n", "def h(super): return super('X', (), {})\n", "super = sorted\n", "from builtins import sorted as super\n",
        "type.__call__.__get__(type).__call__('X', (), {})\n", "[].count.__call__(5)\n",
        "import functools\ncp = functools.cached_property(lambda s: None)\ncp.attrname = 'gi_frame'\ncp.__get__(1)\n",
        "from dataclasses import asdict\n", "from dataclasses import make_dataclass\n", "import typing\ntyping.get_type_hints\n",
        "import inspect\n", "import pickle\n", "import enum\nenum.Enum('E', {'__match_args__': ('__globals__',)})\n",
        "import enum\nenum.EnumMeta\n", "class M(type): pass\n", "class C(metaclass=lambda *a: 1): pass\n",
        "list(map(type, ['C'], [()], [{}]))\n", "type.__call__(type, 'C', (), {})\n", "type.__call__.__get__(type)('C', (), {})\n",
        "import abc\nabc.ABCMeta('C', (), {})\n", "class C:\n    def __reduce_ex__(self, p): return 1\n",
        "class C:\n    def __getattribute__(self, n): return 1\n", "class C:\n    __match_args__ = ('__globals__',)\n",
        "def f(x):\n    match f:\n        case object(__globals__=g): return g\n",
        "class P:\n    gi_frame = 1\ndef f(x):\n    match (i for i in x):\n        case P(g): return g\n",
        "class A: pass\na = A()\na.gi_frame = 1\n(i for i in ()).gi_frame\n", "class A: pass\na = A()\na.f_back = 1\n",
        "class S(str):\n    def __str__(self): return 'real'\ngetattr(print, S('__self__'))\n",
        "class A: pass\nimport statistics\nstatistics.mean.__name__ = 'len'\n", "import statistics\nsetattr(statistics.mean, '__name__', 'len')\n",
        "import string\nstring.Template\n", "import operator\noperator.methodcaller('a')\n", "import copy\ncopy.copyreg\n",
        "x = __builtins__\n", "class C:\n    import math as __annotations__\n", "import enum\nclass E:\n    def _convert_(self): pass\nenum.Enum._convert_\n",
        "for __m_tick__ in (): pass\n", "def f():\n    global __m_tick__\n", "try: 1/0\nexcept Exception as __m_tick__: pass\n",
    ],
)  # fmt: skip
def test_ways_around_the_meter_are_closed(program: str) -> None:
    def load_and_call() -> None:
        code, space = Meter(10**9, lambda cost: None).prepare(program + "\n", "<test>")
        exec(code, space)
        if "f" in space:
            space["f"](*["x"] * space["f"].__code__.co_argcount)

    with pytest.raises((Unmetered, NameError, AttributeError, ImportError)):
        load_and_call()


def test_fields_that_a_program_holds_are_not_those_that_code_is_written_from() -> None:
    """The name of a data class's field is part of the source that ``dataclass`` executes."""
    head = "from dataclasses import dataclass, field, fields\nran = []\nEVIL = 'x:(__import__(1))'\n"
    base = "held = field(init=False)\n@dataclass\nclass A:\n    a: int = held\n"
    late = "@dataclass\nclass B(A):\n    b: int = 0\nf = lambda: [one.name for one in fields(B)]\n"
    for change in ("held.name = EVIL\n", "fields(A)[0].name = EVIL\n"):
        code, space = Meter(10**9, lambda cost: None).prepare(head + base + change + late, "<test>")
        exec(code, space)
        assert space["f"]() == ["a", "b"]


@pytest.mark.parametrize(
    "program",
    [
        "class S:\n    _DIRS = [1, 2]\n    def g(self): return self._DIRS\ndef f(): return S().g()\n",
        "class T:\n    _END: int = 3\n    @classmethod\n    def g(cls): return cls._END\ndef f(): return T.g()\n",
        "from dataclasses import dataclass, field\n@dataclass\nclass Q:\n    _q: list = field(default_factory=list)\n"
        "    def g(self): return len(self._q)\ndef f(): return Q().g()\n",
    ],
)
def test_private_names_of_a_class_s_own_have_a_cost(program: str) -> None:
    value, cost = measure(program)
    assert value in ([1, 2], 3, 0)
    assert cost > 0


def test_a_comparison_with_what_is_empty_costs_the_meter_nothing_either() -> None:
    """The walk through the longer side stops where the shorter one has ended."""
    body = "def f(n):\n    stack = [((i, i), (i, i)) for i in range(n)]\n    k = 0\n    while stack != []:\n"
    body += "        stack.pop()\n        k += 1\n    return k\n"
    started = time.process_time()
    value, cost = measure(body, 3000)
    assert value == 3000
    assert cost < 60_000
    assert time.process_time() - started < 1.5  # 30 times what it takes; the walks took 4 s


LEAKS = [  # each gives the value of a cell of the meter's, or a class that opens any descriptor
    "def f(): return '{0.__code__}'.format(f)\n", "def f(): return str.format('{0.__code__}', f)\n",
    "def f(): return '{a.__code__}'.format(a=f)\n", "def f(): return '{a.__code__}'.format_map({'a': f})\n",
    "def f(): return str.format_map('{a.__code__}', {'a': f})\n", "def f(): return '{:{0.__code__}}'.format(f)\n",
    "def f(): return '{.__code__} {'.format(f)\n", "def f(): return '{0[0].__code__!r:>3}'.format([f])\n",
    "def f(): return list(map('{0.__code__}'.format, [f]))\n", "def f(): return list(map(str.format, ['{0.__code__}'], [f]))\n",
    "import functools\ndef f(): return functools.partial('{0.__code__}'.format)(f)\n",
    "import functools\ndef f(): return functools.partial(str.format, '{0.__code__}')(f)\n",
    "import operator\ndef f(): return operator.attrgetter('gi_frame')(x for x in ())\n", "import operator\ndef f(): return operator.attrgetter('format')('{.__code__}')(f)\n",
    "import operator\nclass S(str): pass\ndef f(): return operator.attrgetter(S('__code__'))(f)\n",
    "def f(): return getattr('{0.__code__}', 'format')(f)\n", "def f(): return getattr(str, 'for' + 'mat')('{0.__code__}', f)\n",
    "class S(str):\n    show = str.format\ndef f(): return S('{0.__code__}').show(f)\n",
    "class S(str):\n    def __str__(self): return ''\n    __repr__ = find = __str__\ndef f(): return S('{0.__code__}').format(f)\n",
    "class S(str):\n    def go(self): return super().format(f)\ndef f(): return S('{0.__code__}').go()\n",
    "def f():\n    match '{0.__code__}':\n        case str(format=g): return g(f)\n",
    "class R:\n    def __radd__(self, other): raise KeyError(other)\ndef f():\n    s = '{0.__code__}'\n    try: s.format += R()\n    except KeyError as e: return e.args[0](f)\n",
    "import datetime\ndef g(): pass\nclass Z(datetime.tzinfo):\n    tzname = '{.tzinfo.g.__code__}'.format\ndef f():\n    z = Z()\n    z.g = g\n    return datetime.datetime(1, 1, 1, tzinfo=z).tzname()\n",
    "import enum\nclass E(enum.Enum):\n    A = 1\n    _missing_ = '{.__code__}'.format\ndef f(): return E(f)\n",
    "class M:\n    def __enter__(self): pass\n    def __exit__(self, k, e, t):\n        raise KeyError('{.tb_frame.f_globals}'.format(t))\ndef f():\n    with M(): 1 / 0\n",
    "def f(): return '{.gi_frame.f_back}'.format(x for x in ())\n", "x = '{.__loader__}'.format\nimport math\ndef f(): return x(math)\n",
    "f = '{0.__dict__}'.format\n", "@'{0.__code__}'.format\ndef g(): pass\ndef f(): return g\n",
    "import sys\ndef f(): return type(sys.stdout.buffer.raw)\n", "import sys\ndef f(): return sys.stdin.buffer.raw\n",
    "import sys\ndef f(): return sys.__stdout__\n", "import sys\ndef f(): return sys.stdout.detach()\n",
    "import sys\ndef f(): return type(sys.stderr.buffer)(3, 'wb')\n", "import sys\ndef f(): return sys.stdout.fileno()\n",
    "import sys\ndef f():\n    class Own(type(sys.stdout.buffer)): pass\n    return Own(3, 'wb').raw\n",
    "import sys\ndef f(): return sys.stdout.write.__self__\n", "import sys\ndef f(): return '{0.write.__self__}'.format(sys.stdout)\n",
]  # fmt: skip


@pytest.mark.parametrize("program", LEAKS)
def test_names_that_are_data_and_streams_lead_nowhere(program: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    def load_and_call() -> None:
        code, space = Meter(10**9, lambda cost: None).prepare(program, "<test>")
        exec(code, space)
        space["f"](*[5] * (program.startswith("f =")))

    with pytest.raises((Unmetered, AttributeError, TypeError)) as caught:
        load_and_call()
    assert "<code" not in str(caught.value)


def test_formats_and_streams_that_are_harmless_work(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    program = """
import sys
class P:
    x, y = 1.5, "a"
def f(p):
    sys.stdout.write("{:>4}|".format("ab"))
    print("on stderr", file=sys.stderr, flush=True)
    sys.stdout.buffer.write(b"")
    return ["{0.x:.2f} {0.y!r} {1[0]} {k:{w}}".format(P(), [7], k=3, w=2), "{x.x}".format_map({"x": P}),
            list(map("{:02d}".format, [1, 2])), str.format("{}.{}", 1, 2), format(1.25, ".1f"), "{{.__x}}".format()]
"""
    value, _ = measure(program, 0)
    assert value == ["1.50 'a' 7  3", "1.5", ["01", "02"], "1.2", "1.2", "{.__x}"]
    sys.stdout.flush()
    written = capfdbinary.readouterr()
    assert (written.out, written.err) == (b"  ab|", b"on stderr\n")


FORGERY = r"""
import sys, struct

def g(x):
    return x + 1

def work(n):
    total = 0
    for i in range(n):
        for j in range(100):
            total += 1
    return total // 100

def f(n):
    result = work(n)
    here = '{0.__code__.co_consts[1].__closure__[2].cell_contents.__closure__[0].cell_contents.'
    try:
        nonce_text = (here + '_nonce!r}').format(g)
        sequence = int((here + '_sequence}').format(g))
        fd = int((here + '_descriptor}').format(g))
    except Exception:
        return result          # the plain pass: nothing to tamper with
    digits = {'\\': 92, "'": 39, '"': 34, 't': 9, 'n': 10, 'r': 13}
    body, nonce, i = nonce_text[2:-1], [], 0
    while i < len(body):
        if body[i] != '\\':
            nonce.append(ord(body[i]))
            i += 1
        elif body[i + 1] == 'x':
            nonce.append(int(body[i + 2:i + 4], 16))
            i += 4
        else:
            nonce.append(digits[body[i + 1]])
            i += 2
    buffer = sys.stdout.buffer
    File = type(buffer.raw) if hasattr(buffer, 'raw') else type(buffer)
    made = []
    class Own(File):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)
    def frame(kind, seq, payload):
        return struct.pack('!cI16sI', kind, seq, bytes(nonce), len(payload)) + payload
    Own(fd, 'wb')
    made[0].write(frame(b'T', sequence, ('["ok",%d,5]' % result).encode()) + frame(b'D', sequence + 1, b'1'))
    made[0].close()
    for k in range(20):
        Own('x%d' % k, 'wb')
        if made[-1].fileno() == fd:
            break
    f.keep = made
    return result
"""
"""Reads the result channel's secrets out of the meter's own cells and says over it that it took one operation."""


def test_a_program_cannot_send_a_cost_of_its_own() -> None:
    with Sandbox(slots=1) as sandbox:
        result = sandbox.run_many([Job(FORGERY, "f", (CallTest((60,), 60),), True)])[0]
    assert result.passed
    assert result.cost is None or result.cost > 60 * 100


EVASIONS = [
    "class A:\n    __getitem__ = [1].index\n", "class A(list):\n    __getitem__ = list.count\n",
    "import functools\nclass A:\n    __add__ = functools.partial(max)\n", "class A:\n    __contains__ = sum\n",
    "import statistics\nclass A:\n    __call__ = statistics.mean\n", "from collections import UserList\n",
    "import re\nre.compile('a').scanner('a')\n", "def f(xs): xs[1:] += xs\n", "with open as (a, *b): pass\n",
    "class A:\n    def f(self): [self][0].__n += 1\n",
]  # fmt: skip


@pytest.mark.parametrize("program", EVASIONS)
def test_work_that_could_not_be_charged_is_refused(program: str) -> None:
    with pytest.raises((Unmetered, Uncounted, ImportError)):
        exec(*Meter(10**9, lambda cost: None).prepare(program, "<test>"))


def test_a_number_cannot_set_the_counter_back() -> None:
    program = "class Evil(int):\n    def bit_length(self): return -500\ndef f(n):\n    t = 0\n    for i in range(n):\n        t += i * 1 + 0\n    {}\n    return n\n"
    honest, evil = (measure(program.format(line), 100)[1] for line in ("pow(2, 3, 7)", "pow(2, Evil(3), Evil(7))"))
    assert evil >= honest


def test_a_counter_set_back_reads_as_the_cap() -> None:
    meter = Meter(10**6, lambda cost: None)
    for _ in range(5):
        meter.tick(3)
    assert meter.cost == 15
    cells = dict(zip(meter.tick.__code__.co_freevars, meter.tick.__closure__ or (), strict=True))
    cells["total"].cell_contents = 0
    assert meter.cost == 10**6


def test_the_hooks_have_no_name_in_the_programs_namespaces() -> None:
    meter = Meter(10**9, lambda cost: None)
    code, space = meter.prepare("def f(x):\n    return [x + 1 for _ in 'ab']\n", "<test>")
    exec(code, space)
    values = [*space.values(), *space["__builtins__"].values()]
    assert not any(value == meter.tick or getattr(value, "__func__", None) is Meter._call for value in values)
