"""What a regular expression costs: its steps, counted by a matcher of our own. Standard library only.

``re`` has no counter, and no bound on its work follows from the sizes of what it is given: ``(a+)+$`` doubles it with
every character. So the search is done once more here, with the same order of alternatives and the same backtracking
as ``re``'s, only to be counted; the values are those of ``re``. Single characters, classes and positions are decided by
``re`` itself, one by one. Source: Cox, "Regular Expression Matching Can Be Simple And Fast" (2007), on backtracking.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

try:
    from re import _compiler, _parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_compile as _compiler
    import sre_parse as _parser

# Of the matcher's own recursion: beyond it an expression is not counted. From CPython 3.11 on it takes no stack of C's.
_DEPTH = 300_000 if sys.version_info >= (3, 11) else 6000
_STEPS_PER_UNIT, _BATCH = 2, 1024
_RUN = 16  # characters of a run that count as one step
_SINGLE = frozenset({"LITERAL", "NOT_LITERAL", "ANY", "IN"})
_REPEATS = frozenset({"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"})
_LOCAL = re.IGNORECASE | re.MULTILINE | re.DOTALL | re.ASCII | re.LOCALE | re.UNICODE

Match = Callable[["_Search", int], int]
"""Goes on at a place to the end of the match: where that is, or -1."""


class Uncounted(Exception):
    """The expression is of a kind, or the text of a length, that this matcher does not follow."""


class _Search:
    """One text that is searched, and what has been spent."""

    def __init__(self, text: Any, end: int, tick: Callable[[int], Any]) -> None:
        self.text, self.end, self.tick = text, end, tick
        self.steps = 0
        self.groups: dict[int, tuple[int, int]] = {}
        self.loops: dict[int, tuple[int, int]] = {}

    def step(self, count: int = 1) -> None:
        self.steps += count
        if self.steps >= _BATCH:
            self.tick(self.steps // _STEPS_PER_UNIT)
            self.steps %= _STEPS_PER_UNIT


class _Builder:
    """Turns a parsed expression into a matcher; ``flags`` are those in force at a node."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.numbers = 0

    def sequence(self, items: Any, flags: int, then: Match) -> Match:
        for item in reversed(list(items)):
            then = self.node(item, flags, then)
        return then

    def node(self, item: Any, flags: int, then: Match) -> Match:
        name, argument = str(item[0]), item[1]
        if name in _SINGLE:
            return self._one(self._accepts(item, flags), then)
        if name == "AT":
            return self._at(item, flags, then)
        if name == "BRANCH":
            return self._branch([self.sequence(part, flags, then) for part in argument[1]])
        if name == "SUBPATTERN":
            group, add, remove, inner = argument
            return self._group(group, inner, (flags | add) & ~remove, then)
        if name in _REPEATS:
            low, high, inner = argument
            if len(inner) == 1 and str(inner[0][0]) in _SINGLE:
                return self._run(name, low, int(high), self._accepts(inner[0], flags), then)
            if name == "POSSESSIVE_REPEAT":
                return self._ahead(self._loop("MAX_REPEAT", low, int(high), inner, flags, _accept), then)
            return self._loop(name, low, int(high), inner, flags, then)
        if name in ("ASSERT", "ASSERT_NOT"):
            return self._look(name == "ASSERT", argument[0], argument[1], flags, then)
        if name == "ATOMIC_GROUP":
            return self._ahead(self.sequence(argument, flags, _accept), then)
        if name == "GROUPREF":
            return self._reference(argument, bool(flags & re.IGNORECASE), then)
        if name == "GROUPREF_EXISTS":
            group, yes, no = argument
            return self._either(group, self.sequence(yes, flags, then), self.sequence(no or (), flags, then))
        raise Uncounted(f"{name} in a regular expression cannot be metered")

    def _alone(self, item: Any, flags: int) -> Any:
        """A pattern of ``re``'s for one node that holds no group."""
        state = _parser.State()
        state.str = self.tree.state.str
        state.flags = flags
        return _compiler.compile(_parser.SubPattern(state, [item]), flags)

    def _accepts(self, item: Any, flags: int) -> Callable[[Any], bool]:
        known: dict[Any, bool] = {}
        match = self._alone(item, flags).fullmatch

        def accepts(character: Any) -> bool:
            found = known.get(character)
            if found is None:
                found = known[character] = match(character) is not None
            return found

        return accepts

    def _one(self, accepts: Callable[[Any], bool], then: Match) -> Match:
        def one(search: _Search, at: int) -> int:
            search.step()
            if at < search.end and accepts(search.text[at : at + 1]):
                return then(search, at + 1)
            return -1

        return one

    def _at(self, item: Any, flags: int, then: Match) -> Match:
        match = self._alone(item, flags).match

        def place(search: _Search, at: int) -> int:
            search.step()
            return then(search, at) if match(search.text, at, search.end) is not None else -1

        return place

    def _branch(self, parts: list[Match]) -> Match:
        def branch(search: _Search, at: int) -> int:
            for part in parts:
                search.step()
                if (found := part(search, at)) >= 0:
                    return found
            return -1

        return branch

    def _group(self, group: int | None, inner: Any, flags: int, then: Match) -> Match:
        if group is None:
            return self.sequence(inner, flags, then)
        opened: list[int] = []

        def close(search: _Search, at: int) -> int:
            before, start = search.groups.get(group), opened.pop()
            search.groups[group] = (start, at)
            try:
                found = then(search, at)
            finally:
                opened.append(start)
            if found < 0:
                if before is None:
                    del search.groups[group]
                else:
                    search.groups[group] = before
            return found

        body = self.sequence(inner, flags, close)

        def open_(search: _Search, at: int) -> int:
            opened.append(at)
            try:
                return body(search, at)
            finally:
                opened.pop()

        return open_

    def _run(self, name: str, low: int, high: int, accepts: Callable[[Any], bool], then: Match) -> Match:
        """Repeats of single characters, which ``re`` runs through in a loop."""

        def run(search: _Search, at: int) -> int:
            text, most = search.text, min(search.end, at + high)
            stop, least = at, at + low
            while stop < most and (name != "MIN_REPEAT" or stop < least) and accepts(text[stop : stop + 1]):
                stop += 1
            search.step(1 + (stop - at) // _RUN)
            if stop < least:
                return -1
            if name == "POSSESSIVE_REPEAT":
                return then(search, stop)
            if name == "MAX_REPEAT":
                for place in range(stop, least - 1, -1):
                    search.step()
                    if (found := then(search, place)) >= 0:
                        return found
                return -1
            while True:
                search.step()
                if (found := then(search, stop)) >= 0:
                    return found
                if stop >= most or not accepts(text[stop : stop + 1]):
                    return -1
                stop += 1

        return run

    def _loop(self, name: str, low: int, high: int, inner: Any, flags: int, then: Match) -> Match:
        """Repeats of anything longer; ``search.loops`` has how often, and where the last turn began."""
        self.numbers += 1
        key, greedy = self.numbers, name == "MAX_REPEAT"

        def again(search: _Search, at: int) -> int:
            search.step()
            count, last = here = search.loops[key]
            more = count < low or (count < high and at != last)

            def turn() -> int:
                search.loops[key] = (count + 1, at)
                found = body(search, at)
                search.loops[key] = here
                return found

            if count < low:
                return turn()
            if greedy and more and (found := turn()) >= 0:
                return found
            if (found := then(search, at)) >= 0 or greedy or not more:
                return found
            return turn()

        def enter(search: _Search, at: int) -> int:
            before = search.loops.get(key, (0, -1))
            search.loops[key] = (0, -1)
            found = again(search, at)
            search.loops[key] = before
            return found

        body = self.sequence(inner, flags, again)
        return enter

    def _ahead(self, inner: Match, then: Match) -> Match:
        """Something that is not gone back into once it has matched."""

        def ahead(search: _Search, at: int) -> int:
            search.step()
            before = search.groups.copy()
            found = inner(search, at)
            if found >= 0 and (found := then(search, found)) < 0:
                search.groups = before
            return found

        return ahead

    def _look(self, wanted: bool, direction: int, inner: Any, flags: int, then: Match) -> Match:
        body = self.sequence(inner, flags, _accept)
        back = inner.getwidth()[0] if direction < 0 else 0

        def look(search: _Search, at: int) -> int:
            search.step()
            before = search.groups.copy()
            matches = at >= back and body(search, at - back) >= 0
            found = then(search, at) if matches == wanted else -1
            if found < 0:
                search.groups = before
            return found

        return look

    def _reference(self, group: int, fold: bool, then: Match) -> Match:
        def reference(search: _Search, at: int) -> int:
            start, stop = search.groups.get(group, (-1, -1))
            search.step(1 + (stop - start) // _RUN)
            after = at + stop - start
            if start < 0 or after > search.end:
                return -1
            before, here = search.text[start:stop], search.text[at:after]
            same = before.lower() == here.lower() if fold else before == here
            return then(search, after) if same else -1

        return reference

    def _either(self, group: int, yes: Match, no: Match) -> Match:
        return lambda search, at: (yes if group in search.groups else no)(search, at)


def _accept(search: _Search, at: int) -> int:
    return at


def _to_the_end(search: _Search, at: int) -> int:
    return at if at == search.end else -1


@lru_cache(maxsize=512)
def _matcher(pattern: re.Pattern[Any], whole: bool) -> Match:
    tree = _parser.parse(pattern.pattern, int(pattern.flags) & int(_LOCAL | re.VERBOSE))
    flags = tree.state.flags & int(_LOCAL)
    return _Builder(tree).sequence(tree, flags, _to_the_end if whole else _accept)


def charge(
    pattern: re.Pattern[Any], method: str, text: Any, bounds: tuple[int, int], tick: Callable[[int], Any]
) -> None:
    """Charge for what a method of a pattern does with a text.

    Args:
        pattern: The pattern.
        method: ``match``, ``fullmatch``, ``search``, or one that goes through the whole text.
        text: A string, or bytes.
        bounds: Where it starts and ends.
        tick: Takes units, from time to time.

    Raises:
        Uncounted: an expression that cannot be followed.
    """
    start, end = max(0, bounds[0]), min(len(text), bounds[1])
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEPTH))
    try:
        matcher, at = _matcher(pattern, method == "fullmatch"), start
        search = _Search(text, end, tick)
        while at <= end:
            search.step()
            found = matcher(search, at)
            search.groups.clear()
            if method in ("match", "fullmatch") or (method == "search" and found >= 0):
                break
            at = found if found > at else at + 1
        tick(search.steps // _STEPS_PER_UNIT)
    except RecursionError as error:
        raise Uncounted("a regular expression that nests too deeply in its text cannot be metered") from error
    finally:
        sys.setrecursionlimit(limit)


REGEX = frozenset(["match", "fullmatch", "search", "findall", "finditer", "split", "sub", "subn"])
_FUNCTIONS = {getattr(re, name): name for name in REGEX}
_TEXT_AT = {"sub": 1, "subn": 1}  # after the replacement


def regex_call(
    function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[re.Pattern[Any], str, Any, tuple[int, int]] | None:
    """Pattern, method, text and bounds of a call that searches; None for any other call of such a name."""
    owner = getattr(function, "__self__", None)
    rest = list(args)
    if type(owner) is re.Pattern:
        pattern = owner
    elif _is_unbound(function, name) and rest and type(rest[0]) is re.Pattern:
        pattern = rest.pop(0)
    elif isinstance(function, type(_is_unbound)) and _FUNCTIONS.get(function) == name:
        source = rest.pop(0) if rest else kwargs.get("pattern")
        flags = kwargs.get("flags", rest[_FLAGS_AT[name]] if len(rest) > _FLAGS_AT[name] else 0)
        pattern = re.compile(source, flags)
        text = rest[_TEXT_AT.get(name, 0)] if len(rest) > _TEXT_AT.get(name, 0) else kwargs.get("string")
        return _checked(pattern, name, text, (0, sys.maxsize))
    else:
        return None
    place = _TEXT_AT.get(name, 0)
    text = rest[place] if len(rest) > place else kwargs.get("string")
    bounds = (0, sys.maxsize)
    if name in ("match", "fullmatch", "search", "findall", "finditer"):
        start = rest[1] if len(rest) > 1 else kwargs.get("pos", 0)
        stop = rest[2] if len(rest) > 2 else kwargs.get("endpos", sys.maxsize)
        bounds = (start, stop)
    return _checked(pattern, name, text, bounds)


_FLAGS_AT = {"match": 1, "fullmatch": 1, "search": 1, "findall": 1, "finditer": 1, "split": 2, "sub": 3, "subn": 3}


def _is_unbound(function: Any, name: str) -> bool:
    return bool(function == getattr(re.Pattern, name))


def _checked(
    pattern: re.Pattern[Any], name: str, text: Any, bounds: tuple[Any, Any]
) -> tuple[re.Pattern[Any], str, Any, tuple[int, int]] | None:
    if isinstance(text, str) != isinstance(pattern.pattern, str):
        return None  # ``re`` itself will refuse it
    try:
        exact: Any = str.__str__(text) if isinstance(text, str) else memoryview(text).tobytes()
    except TypeError:
        return None  # likewise
    if not all(isinstance(bound, int) for bound in bounds):
        raise Uncounted("the bounds of a search that are no integers cannot be metered")
    return pattern, name, exact, (int.__int__(bounds[0]), int.__int__(bounds[1]))
