"""Programs to syntax trees in flat arrays, by tree-sitter in a child process with limits."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from lightning_dterm.sandbox.languages import canonical
from lightning_dterm.structure import worker
from lightning_dterm.structure.worker import GRAMMARS, MISSING, REPLY, REQUEST, TYPECODES

ERROR_KIND = 0xFFFF
LANGUAGES = tuple(name for name, _, _ in GRAMMARS)
_PIPE = 60_000  # bytes that fit into a pipe without its reader: more could lock both sides
_INDEX = {name: index for index, name in enumerate(LANGUAGES)}


class ParserUnavailable(RuntimeError):
    """The parser process cannot be started at all: nothing was learnt about any program."""


@dataclass(frozen=True, slots=True)
class ParseLimits:
    """What one text may cost; beyond it the text counts as unparseable.

    Attributes:
        cpu_s: CPU seconds (a real 100 kB program takes 0.1 to 0.3).
        wall_s: Wall-clock backstop for a parser that hangs without computing.
        memory: Bytes of address space of the parser process.
        max_bytes: Longest text in bytes of UTF-8.
    """

    cpu_s: float = 2.0
    wall_s: float = 120.0
    memory: int = 1 << 30
    max_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the kind and field numbers of a language mean.

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
    loaded = worker.load(_INDEX[language])
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
        found, child, stop = [], node + 1, self.stops[node]
        while child < stop:
            found.append(child)
            child = self.stops[child]
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

    Raises:
        ValueError: a limit is not positive.
    """

    def __init__(self, limits: ParseLimits | None = None, cache_nodes: int = 1_000_000) -> None:
        self.limits = limits or ParseLimits()
        given = (self.limits.cpu_s, self.limits.wall_s, self.limits.memory, self.limits.max_bytes, cache_nodes)
        if min(given) <= 0:
            raise ValueError(f"TreeParser: every limit and cache_nodes must be positive, got {self.limits}.")
        self.cache_nodes = cache_nodes
        self.restarts = 0
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._busy = False
        self._received = bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._cache: OrderedDict[tuple[str, str], SyntaxTree | None] = OrderedDict()
        self._cached = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"limits": self.limits, "cache_nodes": self.cache_nodes, "restarts": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

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
        if unknown := sorted({language for language, _ in keys if language not in _INDEX}):
            raise ValueError(f"no grammar for {', '.join(unknown)}: supported are {', '.join(LANGUAGES)}.")
        if self._owner != os.getpid():  # a fork shares the parent's pipes
            self._reset()
        with self._lock:
            if self._busy:
                raise RuntimeError("TreeParser: take the trees of one stream before asking for more.")
            self._busy = True
            try:
                yield from self._stream(keys)
            finally:
                self._busy = False

    def _stream(self, keys: list[tuple[str, str]]) -> Iterator[SyntaxTree | None]:
        found = {key: self._cache[key] for key in keys if key in self._cache}
        for key in found:
            self._cache.move_to_end(key)
        fresh = self._parse([key for key in dict.fromkeys(keys) if key not in found])
        try:
            for key in keys:
                if key not in found:
                    found[key] = next(fresh)
                    self._keep(key, found[key])
                yield found[key]
        finally:
            fresh.close()

    def forget(self) -> None:
        """Empty the cache."""
        with self._lock:
            self._cache.clear()
            self._cached = 0

    def _keep(self, key: tuple[str, str], tree: SyntaxTree | None) -> None:
        self._cache[key] = tree
        self._cached += 1 if tree is None else len(tree)
        while self._cached > self.cache_nodes and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cached -= 1 if old is None else len(old)

    def _parse(self, keys: list[tuple[str, str]]) -> Generator[SyntaxTree | None, None, None]:
        sources = [_source(language, text) for language, text in keys]
        todo = [index for index, source in enumerate(sources) if len(source) <= self.limits.max_bytes]
        sent = answered = outstanding = 0
        try:
            for index, source in enumerate(sources):
                if len(source) > self.limits.max_bytes:
                    yield None
                    continue
                tree: SyntaxTree | None = None
                try:
                    process = self._ready()
                    while sent < len(todo) and (not outstanding or outstanding + len(sources[todo[sent]]) < _PIPE):
                        other = todo[sent]
                        _send(process, REQUEST.pack(_INDEX[keys[other][0]], len(sources[other])) + sources[other])
                        outstanding += len(sources[other]) + REQUEST.size
                        sent += 1
                    tree = _tree(keys[index], source, self._reply(process, time.monotonic() + self.limits.wall_s))
                    outstanding -= len(source) + REQUEST.size
                    answered += 1
                except (OSError, EOFError):
                    # Replies come in order, so the first that is missing belongs to the program that did it.
                    self._restart()
                    outstanding, answered = 0, answered + 1
                    sent = answered
                yield tree
        finally:
            if answered < sent:  # replies that nobody waits for any more
                self.close()

    def _restart(self) -> None:
        self.close()
        self.restarts += 1
        if not self._starts():
            raise ParserUnavailable("the tree-sitter process ends as soon as it starts") from None

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-I", worker.__file__, str(self.limits.cpu_s), str(self.limits.memory)]
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
                )
            except OSError as error:
                raise ParserUnavailable(f"cannot start the tree-sitter process: {error}") from error
        return self._process

    def _starts(self) -> bool:
        """Whether a fresh process answers the smallest of questions."""
        try:
            process = self._ready()
            _send(process, REQUEST.pack(0, 1) + b"a")
            self._reply(process, time.monotonic() + self.limits.wall_s)
        except (OSError, EOFError):
            self.close()
            return False
        return True

    def _reply(self, process: subprocess.Popen[bytes], deadline: float) -> list[array[int]]:
        (count,) = REPLY.unpack(self._receive(process, REPLY.size, deadline))
        arrays = [array(code) for code in TYPECODES]
        data = self._receive(process, count * sum(values.itemsize for values in arrays), deadline)
        place = 0
        for values in arrays:
            values.frombytes(data[place : place + count * values.itemsize])
            place += count * values.itemsize
        return arrays

    def _receive(self, process: subprocess.Popen[bytes], count: int, deadline: float) -> bytes:
        assert process.stdout is not None
        descriptor, buffer = process.stdout.fileno(), self._received
        while len(buffer) < count:
            if not select.select([descriptor], [], [], max(deadline - time.monotonic(), 0.0))[0]:
                raise EOFError("the parser is beyond its wall-clock limit")
            part = os.read(descriptor, 1 << 20)
            if not part:
                raise EOFError("the parser died")
            buffer += part
        data = bytes(buffer[:count])
        del buffer[:count]
        return data

    def close(self) -> None:
        """End the process; the next program starts another."""
        process, self._process = self._process, None
        self._received.clear()
        if process is not None and self._owner == os.getpid():
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            process.wait()

    def __del__(self) -> None:
        if contextlib is not None:  # the interpreter may be half gone
            with contextlib.suppress(Exception):
                self.close()


def _send(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    view = memoryview(data)
    while view:
        view = view[os.write(process.stdin.fileno(), view) :]


def _source(language: str, text: str) -> bytes:
    if language == "php":
        # The grammar without HTML around the code; blanking the tags keeps every offset.
        for tag in ("<?php", "<?=", "?>"):
            text = text.replace(tag, " " * len(tag))
    return text.encode("utf-8", "surrogatepass")


def _tree(key: tuple[str, str], source: bytes, arrays: list[array[int]]) -> SyntaxTree:
    language, text = key
    kinds, fields, starts, ends, stops = arrays
    if len(source) != len(text):
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
    return TreeParser()
