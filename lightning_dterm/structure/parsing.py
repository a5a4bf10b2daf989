"""Programs to syntax trees in flat arrays, by tree-sitter in a child process with limits."""

from __future__ import annotations

import atexit
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, lru_cache
from threading import RLock
from typing import Any

from lightning_dterm.sandbox.languages import canonical
from lightning_dterm.structure.process import (
    LANGUAGES,
    TREE,
    Beyond,
    ParseLimits,
    ParserProcess,
    ParserUnavailable,
    language_of,
)  # fmt: skip
from lightning_dterm.structure.worker import MISSING, TYPECODES

__all__ = ["ERROR_KIND", "LANGUAGES", "Grammar", "ParseLimits", "ParserUnavailable", "SyntaxTree", "TreeParser",
           "grammar", "shared_parser"]  # fmt: skip

ERROR_KIND = 0xFFFF
_SIZES = tuple(array(code).itemsize for code in TYPECODES)
_NODE_SIZE = sum(_SIZES)


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """What the kind and field numbers of a language mean. One per language: see :func:`grammar`.

    Attributes:
        language: Name.
        kinds: Node type of each kind number.
        named: 1 where the kind is named (not punctuation or a keyword).
        fields: Field name of each field number.
    """

    language: str
    kinds: tuple[str, ...]
    named: bytes
    fields: tuple[str, ...]

    def kind(self, number: int) -> str:
        """Node type of a kind number."""
        return "ERROR" if number == ERROR_KIND else self.kinds[number]

    def is_named(self, number: int) -> bool:
        """Whether a kind is named."""
        return number == ERROR_KIND or bool(self.named[number])

    def numbers(self, name: str) -> tuple[int, ...]:
        """Kind numbers of the named node type ``name``; empty where this grammar has none."""
        return tuple(n for n, kind in enumerate(self.kinds) if kind == name and self.named[n])


@cache
def grammar(language: str) -> Grammar:
    """The grammar of one of :data:`LANGUAGES`."""
    loaded = language_of(language)
    count = loaded.node_kind_count
    return Grammar(
        language,
        tuple(loaded.node_kind_for_id(n) or "" for n in range(count)),
        bytes(loaded.node_kind_is_named(n) for n in range(count)),
        tuple(loaded.field_name_for_id(n) or "" if n else "" for n in range(loaded.field_count + 1)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class SyntaxTree:
    """One parsed program: its nodes in preorder, parallel arrays.

    Attributes:
        grammar: What the numbers mean.
        text: The program.
        kinds: Kind number per node, :data:`ERROR_KIND` where the parser gave up.
        fields: Field number per node, 0 for none; with ``MISSING`` for a token the parser made up.
        starts: Character offset of each node's start in ``text``.
        ends: Character offset after each node.
        stops: Index after each node's last descendant.
    """

    grammar: Grammar
    text: str
    kinds: array[int]
    fields: array[int]
    starts: array[int]
    ends: array[int]
    stops: array[int]

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def has_error(self) -> bool:
        """Whether the parser gave up somewhere or made up a token."""
        return ERROR_KIND in self.kinds or any(field & MISSING for field in self.fields)

    def children(self, node: int) -> list[int]:
        """Indices of a node's children."""
        stops = self.stops
        found, child, stop = [], node + 1, stops[node]
        while child < stop:
            found.append(child)
            child = stops[child]
        return found

    def token(self, node: int) -> str:
        """Text of a node."""
        return self.text[self.starts[node] : self.ends[node]]


class TreeParser:
    """Parses programs in a child process, which is restarted when a program exhausts or crashes it.

    Thread-safe; pickled and forked copies start a process of their own. Trees are cached by content.

    Args:
        limits: What one program may cost.
        cache_nodes: Nodes of all cached trees together; the least recently used trees go first.

    Attributes:
        process: The process, for whoever needs less than a tree.

    Raises:
        ValueError: a limit is not positive.
    """

    def __init__(self, limits: ParseLimits | None = None, cache_nodes: int = 1_000_000) -> None:
        self.process = ParserProcess(limits)
        if cache_nodes <= 0:
            raise ValueError(f"TreeParser: cache_nodes must be positive, got {cache_nodes}.")
        self.cache_nodes = cache_nodes
        self._reset()

    def _reset(self) -> None:
        self._lock = RLock()
        self._cache: OrderedDict[tuple[str, str], SyntaxTree | None] = OrderedDict()
        self._cached = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"process": self.process, "cache_nodes": self.cache_nodes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def limits(self) -> ParseLimits:
        """What one program may cost."""
        return self.process.limits

    @property
    def restarts(self) -> int:
        """Times the process had to be started again."""
        return self.process.restarts

    def parse(self, text: str, language: str) -> SyntaxTree | None:
        """One program's tree; None where it is beyond the limits."""
        return self.parse_many([(text, language)])[0]

    def parse_many(self, programs: Sequence[tuple[str, str]]) -> list[SyntaxTree | None]:
        """Trees of ``(text, language)`` pairs, equal pairs parsed once; None where one is beyond the limits.

        Raises:
            ValueError: an unsupported language.
            ParserUnavailable: the parser process does not start.
        """
        return list(self.stream(programs))

    def stream(self, programs: Sequence[tuple[str, str]]) -> Iterator[SyntaxTree | None]:
        """As :meth:`parse_many`, but each tree as soon as it is there, while the process parses on.

        The parser is the caller's until the last tree is taken or the iterator closed.

        Raises:
            RuntimeError: this parser is used again, by the same thread, before that.
        """
        keys = [(canonical(language), text) for text, language in programs]
        if unknown := sorted({language for language, _ in keys if language not in LANGUAGES}):
            raise ValueError(f"no grammar for {', '.join(unknown)}: supported are {', '.join(LANGUAGES)}.")
        with self._lock:
            found = {key: self._cache[key] for key in keys if key in self._cache}
            for key in found:
                self._cache.move_to_end(key)
        fresh = [key for key in dict.fromkeys(keys) if key not in found]
        sources = [_source(language, text) for language, text in fresh]
        requests = [(TREE, key[0], source) for key, source in zip(fresh, sources, strict=True)]
        with closing(self.process.stream(requests)) as replies:
            waiting = iter(sources)
            for key in keys:
                if key not in found:
                    reply = next(replies)
                    found[key] = _tree(key, len(next(waiting)), reply)
                    self._keep(key, found[key])
                yield found[key]

    def forget(self) -> None:
        """Empty the cache."""
        with self._lock:
            self._cache.clear()
            self._cached = 0

    def _keep(self, key: tuple[str, str], tree: SyntaxTree | None) -> None:
        with self._lock:
            if key in self._cache:  # another thread was faster
                return
            self._cache[key] = tree
            self._cached += 1 if tree is None else len(tree)
            while self._cached > self.cache_nodes and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._cached -= 1 if old is None else len(old)

    def close(self) -> None:
        """End the process; the next program starts another."""
        self.process.close()


def _source(language: str, text: str) -> bytes:
    if language == "php":
        # The grammar without HTML around the code; blanking the tags keeps every offset.
        for tag in ("<?php", "<?=", "?>"):
            text = text.replace(tag, " " * len(tag))
    return text.encode("utf-8", "surrogatepass")


def _tree(key: tuple[str, str], size: int, reply: bytes | Beyond) -> SyntaxTree | None:
    if isinstance(reply, Beyond):
        return None
    language, text = key
    count, place = len(reply) // _NODE_SIZE, 0
    arrays = []
    for code, width in zip(TYPECODES, _SIZES, strict=True):
        arrays.append(array(code, reply[place : place + count * width]))
        place += count * width
    kinds, fields, starts, ends, stops = arrays
    if size != len(text):
        positions = _positions(text)
        starts = array("I", [positions[byte] for byte in starts])
        ends = array("I", [positions[byte] for byte in ends])
    return SyntaxTree(grammar(language), text, kinds, fields, starts, ends, stops)


def _positions(text: str) -> array[int]:
    """Character offset of every byte offset of a text's UTF-8 form."""
    positions = array("I")
    for index, char in enumerate(text):
        size = 1 if char < "\x80" else 2 if char < "\u0800" else 3 if char < "\U00010000" else 4
        positions.extend((index,) * size)
    positions.append(len(text))
    return positions


@lru_cache(maxsize=1)
def shared_parser() -> TreeParser:
    """The parser that this process's components and metrics share, so that no program is parsed twice."""
    parser = TreeParser()
    atexit.register(parser.close)
    return parser
