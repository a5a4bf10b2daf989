"""Travels as text into sandboxed processes and runs only there: a test program against a value-only stub.

Three roles. In the *test* process :func:`run_round` runs the (rewritten) test program; its candidate is a stub that
answers from recorded outcomes and notes which calls it still needs. In the *program's* process :func:`call` runs one
such call. Where values cannot stand for what a test needs, :func:`run_beside` runs both in one process.

Standard library only. Values cross as nested tuples of scalars that start with a tag, so that what JSON-like plain data
lacks (complex, ranges, types, iterators, mutated arguments) crosses too; identity and behaviour never do.
"""

from __future__ import annotations

import builtins
import collections
import copy
import decimal
import fractions
import random
import sys
from typing import Any, NoReturn

FILENAME = "<program>"
MAX_DRAINED = 20_000
MAX_DIGITS = 20_000
_FORMS: dict[str, tuple[tuple[int, ...], tuple[type, ...]]] = {
    "c": ((2,), (float,)), "r": ((3,), (int,)), "F": ((2,), (int,)), "D": ((1,), (str,)), "?": ((2,), (str, bool)),
}  # fmt: skip
_TAGS: dict[str, Any] = {
    "l": list, "t": tuple, "s": set, "f": frozenset, "q": collections.deque, "i": iter, "y": bytearray,
    "K": lambda items: dict.fromkeys(items).keys(), "V": lambda items: dict(enumerate(items)).values(),
}  # fmt: skip
_CONTAINERS: dict[type, str] = {
    list: "l", tuple: "t", set: "s", frozenset: "f", collections.deque: "q", bytearray: "y",
    type({}.keys()): "K", type({}.values()): "V",
}  # fmt: skip
_BASES: tuple[Any, ...] = (int, float, str, bytes, list, tuple, set, frozenset, dict)
_PLAIN = (bool, int, float, str, bytes, type(None))


class NotPlain(BaseException):
    """A test hands over something that is no value; past any ``except Exception`` of the test."""


class Blocked(BaseException):
    """The test needs the outcome of a call that is not known in this round."""


class Dead(BaseException):
    """The program's process ended during this call."""


class Opaque:
    """A returned object that is no plain value: it equals nothing and has a truth value, nothing more."""

    def __init__(self, kind: str, truth: bool) -> None:
        self._kind, self._truth = kind, truth

    def __bool__(self) -> bool:
        return self._truth

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return id(self)


def pack(value: Any, opaque: bool = False, owners: tuple[Any, ...] = ()) -> Any:
    """Nested tagged tuples for ``value``; subclasses of built-in types are demoted.

    Args:
        value: What to carry.
        opaque: Drain iterators and carry other objects as a name and a truth value, instead of refusing them.
        owners: Mutable arguments; a value that *is* one of them is carried as its place.

    Raises:
        NotPlain: not a value, and ``opaque`` is false.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    for place, owner in enumerate(owners):
        if value is owner:
            return ("a", place)
    if kind in _CONTAINERS:
        return (_CONTAINERS[kind], *[pack(item, opaque) for item in value])
    if kind is dict:
        return ("d", *[pack(part, opaque) for pair in value.items() for part in pair])
    if kind is complex:
        return ("c", value.real, value.imag)
    if kind is range:
        return ("r", value.start, value.stop, value.step)
    if kind is fractions.Fraction:
        return ("F", value.numerator, value.denominator)
    if kind is decimal.Decimal:
        return ("D", str(value))
    if kind is type and getattr(builtins, getattr(value, "__name__", ""), None) is value:
        return ("k", getattr(value, "__name__", ""))
    if kind is Pending:
        raise Blocked
    return _pack_other(value, kind, opaque)


def _pack_other(value: Any, kind: type, opaque: bool) -> Any:
    base: Any = next((base for base in _BASES if issubclass(kind, base)), None)
    if base is not None:
        if base in _PLAIN:
            return memoryview(value).tobytes() if base is bytes else getattr(base, f"__{base.__name__}__")(value)
        return pack(base(base.items(value) if base is dict else base.__iter__(value)), opaque)
    if not opaque:
        raise NotPlain(f"an argument of type {kind.__name__}")
    if hasattr(kind, "__next__"):
        items = []
        for item in value:
            items.append(pack(item, opaque))
            if len(items) > MAX_DRAINED:
                raise ValueError(f"an iterator of more than {MAX_DRAINED} items")
        return ("i", *items)
    return ("?", kind.__name__, bool(value))


def unpack(data: Any, owners: tuple[Any, ...] = ()) -> Any:
    """The value that :func:`pack` carried.

    Raises:
        ValueError: a form that :func:`pack` does not produce.
    """
    if type(data) is not tuple:
        return data
    if not data:
        raise ValueError("no tag")
    tag, items = data[0], data[1:]
    if tag in _TAGS:
        return _TAGS[tag]([unpack(item) for item in items])
    if tag == "d":
        values = [unpack(item) for item in items]
        return dict(zip(values[::2], values[1::2], strict=True))
    if tag == "a":
        return owners[items[0]]
    if tag in _FORMS and not (len(items) in _FORMS[tag][0] and all(type(item) in _FORMS[tag][1] for item in items)):
        raise ValueError("not what is packed under this tag")  # Fraction("1e99999999") would compute for hours
    if tag == "D" and len(items[0]) > MAX_DIGITS:
        raise ValueError("a number of too many digits")
    simple = {"c": complex, "r": range, "F": fractions.Fraction, "D": decimal.Decimal, "?": Opaque}
    if tag in simple:
        return simple[tag](*items)
    if tag == "k" and isinstance(getattr(builtins, items[0]), type):
        return getattr(builtins, items[0])
    raise ValueError("unknown tag")


def _mutable(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(item for item in arguments if type(item) in (list, dict, set))


def call(namespace: dict[str, Any], entry_point: str, request: tuple[Any, Any]) -> tuple[Any, ...]:
    """In the program's process: one call. ``("ok", value, changed arguments)`` or ``("raised", class, text, line)``."""
    arguments, keywords = unpack(request[0]), unpack(request[1])
    everything = (*arguments, *keywords.values())
    owners = _mutable(everything)
    before = [pack(owner, True) for owner in owners]
    try:
        value = pack(namespace[entry_point](*arguments, **keywords), True, owners)
    except Exception as error:
        return ("raised", *_describe(error), _changes(owners, before))
    return ("ok", value, _changes(owners, before))


def _changes(owners: tuple[Any, ...], before: list[Any]) -> tuple[Any, ...]:
    after = [pack(owner, True) for owner in owners]
    return tuple((place, new) for place, new in enumerate(after) if not same(new, before[place]))


def same(one: Any, other: Any) -> bool:
    """Whether two packed values agree in type and value (NaN agrees with itself); no text is made of a large int."""
    if type(one) is not type(other):
        return False
    if type(one) is tuple:
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other) if type(one) is float else bool(one == other)


def _describe(error: BaseException) -> tuple[str, str, int | None]:
    name = next(kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind)
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return name, str(error)[:300], line


class Pending:
    """The unknown outcome of a call: may be passed around, but whoever looks at it is blocked."""

    def __getattr__(self, name: str) -> NoReturn:
        raise Blocked


def _blocked(*arguments: Any, **keywords: Any) -> NoReturn:
    raise Blocked


_DUNDERS = """
    eq ne lt le gt ge hash bool str repr format bytes int float complex index round trunc floor ceil len iter next
    reversed contains getitem setitem delitem call enter exit add radd sub rsub mul rmul truediv rtruediv floordiv
    rfloordiv mod rmod divmod rdivmod pow rpow lshift rlshift rshift rrshift and rand or ror xor rxor matmul rmatmul
    neg pos abs invert iadd isub imul iand ior ixor length_hint
"""
for _name in _DUNDERS.split():
    setattr(Pending, f"__{_name}__", _blocked)


class Session:
    """The test program's view: the candidate, and where its assertions report."""

    def __init__(self, outcomes: list[Any], real: Any = None) -> None:
        self.outcomes, self.real = outcomes, real
        self.calls: list[Any] = []
        self.sites: dict[int, tuple[str, int | None]] = {}
        self.emitted: list[Any] = []
        self.pending = False
        self.refused = ""
        self.line: int | None = None
        self.last: tuple[str, int | None] = ("error", None)

    def candidate(self, *arguments: Any, **keywords: Any) -> Any:
        """Stands for the program's function."""
        if self.real is not None:
            return self.real(*arguments, **keywords)
        try:
            request = (pack(arguments), pack(keywords))
        except NotPlain as error:
            self.refused = str(error)
            raise
        index = len(self.calls)
        self.calls.append(request)
        if index < len(self.outcomes) and not same(self.outcomes[index][0], request):
            del self.outcomes[index:]  # another path than last round's: what follows is not known any more
        if index >= len(self.outcomes):
            self.pending = True
            return Pending()
        kind, *rest = self.outcomes[index][1]
        if kind == "dead":
            raise Dead(rest[0])
        owners = _mutable((*arguments, *keywords.values()))
        for place, packed in rest[-1]:
            _change(owners[place], unpack(packed))
        if kind == "raised":
            self.line = rest[2]
            raise _exception(rest[0], rest[1])  # a NameError of the program's has no name here
        return unpack(rest[0], owners)

    def check(self, site: int, inside: bool, condition: Any) -> None:
        """One assertion. Outside of anything that could catch its failure the run goes on, to judge the others too."""
        self.line = None
        try:
            holds = bool(condition())
        except (Blocked, NotPlain):
            if inside:
                raise
            return
        except Dead as error:
            self.sites[site] = self.last = (str(error), None)
            raise
        except Exception as error:
            self.last = ("error", self.line or _describe(error)[2])
            lacks_name = self.real is None and isinstance(error, NameError) and error.name is not None
            if inside or lacks_name:
                raise
            self.fail(site)
            return
        if not holds:
            self.last = ("failed", None)
            if inside:
                raise AssertionError
            self.fail(site)
        else:
            self.sites.setdefault(site, ("passed", None))

    def fail(self, site: int) -> None:
        """Keep an assertion's first failure."""
        if self.sites.get(site, ("passed", None))[0] == "passed":
            self.sites[site] = self.last

    def emit(self, place: int, seen: tuple[str, ...] | bool, arguments: tuple[Any, ...], expected: Any) -> None:
        """One assertion as call and expected value (no candidate is here to be called).

        ``seen`` names the variables that the test looks at afterwards (True: it could be any).
        """
        if seen and any(_may_change(argument) for argument in arguments):
            frame = sys._getframe(1)
            names = {**frame.f_globals, **frame.f_locals}
            if isinstance(seen, bool) or any(_may_change(names[name]) for name in seen if name in names):
                raise NotPlain("an argument may be looked at after the candidate could have changed it")
        strange = _strange(arguments) or _strange(expected)
        if strange:
            raise NotPlain(f"a value of type {strange}")
        self.emitted.append(copy.deepcopy((place, arguments, expected)))


def _exception(name: str, text: str) -> Exception:
    """The built-in exception that the program's process named; the name is a claim, and only names a class."""
    kind = getattr(builtins, name)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        raise ValueError("no exception")
    try:
        return kind(text)
    except TypeError:  # the Unicode errors want five arguments
        return kind.__new__(kind)


def _change(owner: Any, new: Any) -> None:
    if type(owner) is list:
        owner[:] = new
    else:
        owner.clear()
        owner.update(new)


def _may_change(value: Any) -> bool:
    if type(value) in (tuple, frozenset):
        return any(map(_may_change, value))
    return not isinstance(value, (*_PLAIN, complex, range, type(sys)))


def _strange(value: Any) -> str:
    """The first type in ``value`` that is no plain data; empty where there is none."""
    kind = type(value)
    if kind is dict:
        value = [part for pair in value.items() for part in pair]
    elif kind not in (list, tuple, set):
        return "" if kind in _PLAIN else kind.__name__
    return next(filter(None, map(_strange, value)), "")


def _run(session: Session, namespace: dict[str, Any], source: str, entry_point: str, seed: int) -> dict[str, Any]:
    namespace |= {entry_point: session.candidate, "__t__": session}
    random.seed(seed)
    ended, missing = "ok", None
    try:
        exec(compile(source, "<test>", "exec", dont_inherit=True), namespace)
    except Blocked:
        ended = "blocked"
    except NotPlain as error:
        ended = f"not plain: {error}"
    except Dead as error:
        ended = str(error)
    except NameError as error:
        ended, missing = "error", error.name
    except AssertionError:
        ended = "failed"
    except BaseException as error:
        ended = "exited" if isinstance(error, (SystemExit, KeyboardInterrupt)) else "error"
    if session.refused:
        ended = f"not plain: {session.refused}"
    return {
        "ended": ended, "missing": missing, "last": session.last, "pending": session.pending, "calls": session.calls,
        "sites": [(site, *found) for site, found in sorted(session.sites.items())], "emitted": session.emitted,
    }  # fmt: skip


def run_round(context: str, source: str, entry_point: str, seed: int, outcomes: list[Any]) -> dict[str, Any]:
    """In the test process: run the test with the outcomes known so far, as ``[(request, outcome), ...]``."""
    namespace: dict[str, Any] = {"__name__": "__test__"}
    exec(compile(context, "<context>", "exec", dont_inherit=True), namespace)
    return _run(Session(outcomes), namespace, source, entry_point, seed)


def run_beside(namespace: dict[str, Any], source: str, entry_point: str, seed: int) -> dict[str, Any]:
    """In the program's own process: the test with the real function, its verdict only a claim."""
    function = namespace[entry_point]
    session = Session([], function)
    try:
        return _run(session, namespace, source, entry_point, seed)
    finally:
        namespace[entry_point] = function
