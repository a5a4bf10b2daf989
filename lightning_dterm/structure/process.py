"""The parent's side of :mod:`lightning_dterm.structure.worker`: a parser process that hostile text may kill."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from lightning_dterm.structure import worker
from lightning_dterm.structure.worker import BROKEN, ERRORS, GRAMMARS, REFUSED, REPLY, REQUEST, TREE

LANGUAGES = tuple(name for name, _, _ in GRAMMARS)
_PIPE = 60_000  # bytes that fit into a pipe without its reader: more could lock both sides
_INDEX = {name: index for index, name in enumerate(LANGUAGES)}

Reason = Literal["timeout", "crash", "length"]
Request = tuple[int, str, bytes]  # TREE, ERRORS, BROKEN or REFUSED; a name of LANGUAGES; the text in UTF-8

__all__ = ["BROKEN", "ERRORS", "LANGUAGES", "REFUSED", "TREE", "Beyond", "ParseLimits", "ParserProcess",
           "ParserUnavailable", "Reason", "Request", "byte_ranges", "language_of"]  # fmt: skip


class ParserUnavailable(RuntimeError):
    """The parser process cannot be started at all: nothing was learnt about any program."""


@dataclass(frozen=True, slots=True)
class Beyond:
    """What became of a text that its parser could not cope with.

    Attributes:
        reason: ``timeout``: its CPU seconds or the wall-clock backstop ran out. ``crash``: it ended the process, out
            of memory mostly, twice. ``length``: longer than ``max_bytes``, not even tried.
    """

    reason: Reason


@dataclass(frozen=True, slots=True)
class ParseLimits:
    """What one text may cost; beyond it the text counts as unparseable.

    Attributes:
        cpu_s: Most CPU seconds; a short text has fewer, see :func:`lightning_dterm.structure.worker.cpu_limit` (a real
            100 kB program takes 0.1 to 0.3).
        wall_s: Wall-clock backstop for a parser that hangs without computing.
        memory: Bytes of address space of the parser process.
        max_bytes: Longest text in bytes of UTF-8.
    """

    cpu_s: float = 2.0
    wall_s: float = 120.0
    memory: int = 1 << 30
    max_bytes: int = 1 << 20


@cache
def language_of(name: str) -> Any:
    """The tree-sitter language of one of :data:`LANGUAGES`.

    Raises:
        ParserUnavailable: its package is missing.
    """
    try:
        return worker.load(_INDEX[name])
    except ImportError as error:
        package = GRAMMARS[_INDEX[name]][1].replace("_", "-")
        raise ParserUnavailable(f"parsing {name} needs the package {package}: pip install {package}") from error


def byte_ranges(reply: bytes) -> list[tuple[int, int]]:
    """The byte ranges of an :data:`ERRORS` or :data:`REFUSED` reply."""
    places = array("I", reply)
    return list(zip(places[::2], places[1::2], strict=True))


class ParserProcess:
    """A process that parses texts one after the other, restarted when one exhausts or crashes it.

    A text that crashes it is tried once more, alone, in a fresh process, so that a process killed from outside is no
    text's fault; one that ran out of time is not. Thread-safe; pickled and forked copies start a process of their own.
    The process ends with :meth:`close`, and within two seconds of its parent's death.

    Args:
        limits: What one text may cost.

    Attributes:
        restarts: Times the process had to be started again.
        beyond: Texts that were beyond the limits, by reason.

    Raises:
        ValueError: a limit is not positive.
    """

    def __init__(self, limits: ParseLimits | None = None) -> None:
        self.limits = limits or ParseLimits()
        if min(self.limits.cpu_s, self.limits.wall_s, self.limits.memory, self.limits.max_bytes) <= 0:
            raise ValueError(f"every parse limit must be positive, got {self.limits}.")
        self._reset()

    def _reset(self) -> None:
        self.restarts = 0
        self.beyond: Counter[Reason] = Counter()
        self._lock = threading.RLock()
        self._busy = False
        self._received = bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"limits": self.limits}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def ask(self, requests: Sequence[Request]) -> list[bytes | Beyond]:
        """All replies at once; see :meth:`stream`."""
        return list(self.stream(requests))

    def stream(self, requests: Sequence[Request]) -> Generator[bytes | Beyond, None, None]:
        """Replies in order, each as soon as it is there while the process works on, or why a text has none.

        The process is the caller's until the last reply is taken or the iterator closed.

        Raises:
            ParserUnavailable: the process does not start, or a grammar is missing.
            RuntimeError: the process is used again, by the same thread, before that.
        """
        for language in {language for _, language, _ in requests}:
            language_of(language)
        if self._owner != os.getpid():  # a fork shares the parent's pipes
            self._reset()
        with self._lock:
            if self._busy:
                raise RuntimeError("TreeParser: take the trees of one stream before asking for more.")
            self._busy = True
            try:
                yield from self._stream(requests)
            finally:
                self._busy = False

    def _stream(self, requests: Sequence[Request]) -> Generator[bytes | Beyond, None, None]:
        todo = [index for index, (_, _, source) in enumerate(requests) if len(source) <= self.limits.max_bytes]
        sent = answered = outstanding = 0
        try:
            for _, _, source in requests:
                if len(source) > self.limits.max_bytes:
                    yield self._blame("length")
                    continue
                reply: bytes | Beyond
                try:
                    process = self._ready()
                    if outstanding < _PIPE // 2:
                        first = sent
                        while sent < len(todo) and (
                            not outstanding or outstanding + _size(requests[todo[sent]]) < _PIPE
                        ):
                            outstanding += _size(requests[todo[sent]])
                            sent += 1
                        # If it has died: the replies given before count, the first missing one is the culprit's.
                        with contextlib.suppress(BrokenPipeError):
                            _send(process, *(requests[index] for index in todo[first:sent]))
                    reply = self._reply(process)
                    outstanding -= REQUEST.size + len(source)
                except (OSError, EOFError) as error:
                    # Replies come in order, so the first that is missing belongs to the text that did it.
                    reply = self._again(requests[todo[answered]], error)
                    sent, outstanding = answered + 1, 0
                answered += 1
                yield reply
        finally:
            if answered < sent:  # replies that nobody waits for any more
                self._end()

    def _again(self, request: Request, error: Exception) -> bytes | Beyond:
        """After a failure: a fresh process, and the text once more unless its time ran out."""
        for attempt in range(2):
            timeout = isinstance(error, TimeoutError)  # the wall-clock limit: we end it ourselves
            timeout = (self._end() == -signal.SIGPROF) or timeout
            self.restarts += 1
            if not self._starts():
                raise ParserUnavailable("the tree-sitter process ends as soon as it starts") from None
            if timeout or attempt:
                return self._blame("timeout" if timeout else "crash")
            try:
                process = self._ready()
                _send(process, request)
                return self._reply(process)
            except (OSError, EOFError) as second:
                error = second
        raise AssertionError("unreachable")

    def _blame(self, reason: Reason) -> Beyond:
        self.beyond[reason] += 1
        return Beyond(reason)

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            numbers = (self.limits.cpu_s, self.limits.memory, os.getpid())
            command = [sys.executable, "-I", worker.__file__, *map(str, numbers)]
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
            _send(process, (BROKEN, LANGUAGES[0], b"a"))
            self._reply(process)
        except (OSError, EOFError):
            self._end()
            return False
        return True

    def _reply(self, process: subprocess.Popen[bytes]) -> bytes:
        self._receive(process, REPLY.size)
        count = REPLY.size + REPLY.unpack_from(self._received)[0]
        self._receive(process, count)
        data = bytes(self._received[REPLY.size : count])
        del self._received[:count]
        return data

    def _receive(self, process: subprocess.Popen[bytes], count: int) -> None:
        """Wait until ``count`` bytes of the reply are there."""
        assert process.stdout is not None
        descriptor, buffer, deadline = process.stdout.fileno(), self._received, 0.0
        while len(buffer) < count:
            deadline = deadline or time.monotonic() + self.limits.wall_s
            if not select.select([descriptor], [], [], max(deadline - time.monotonic(), 0.0))[0]:
                raise TimeoutError("the parser is beyond its wall-clock limit")
            part = os.read(descriptor, 1 << 20)
            if not part:
                raise EOFError("the parser died")
            buffer += part

    def close(self) -> None:
        """End the process, after the stream of another thread; the next text starts another."""
        if self._owner != os.getpid():
            return
        with self._lock:
            self._end()

    def _end(self) -> int | None:
        """End the process; how it ended (on its own, if it had)."""
        process, self._process = self._process, None
        self._received.clear()
        if process is None or self._owner != os.getpid():
            return None
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        # Its end of the pipe closes a moment before its exit status is there.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.2)
        process.kill()
        return process.wait()

    def __del__(self) -> None:
        if contextlib is not None:  # the interpreter may be half gone
            with contextlib.suppress(Exception):
                self._end()


def _size(request: Request) -> int:
    return REQUEST.size + len(request[2])


def _send(process: subprocess.Popen[bytes], *requests: Request) -> None:
    """Write some requests."""
    assert process.stdin is not None
    view = memoryview(
        b"".join(REQUEST.pack(task, _INDEX[language], len(source)) + source for task, language, source in requests)
    )
    while view:
        view = view[os.write(process.stdin.fileno(), view) :]
