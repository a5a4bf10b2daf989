"""The child process that runs tree-sitter: one request, one reply. It imports nothing of the package.

tree-sitter parses hostile text in the process that asks for it, and some 16 kB texts make current grammars take forty
seconds or several gigabytes between two of its progress callbacks (``a=>a=>...`` as Java). So a parser gets a process
of its own, with limits on memory, and on the CPU time of each text; it is expected to die now and then.

Request: ``<BBI`` (task, index into :data:`GRAMMARS`, length) and UTF-8 bytes. Reply: ``<I`` (bytes) and, by task:

* :data:`TREE`: five arrays of one length, in preorder: kind and field (uint16; :data:`MISSING` is set in the field of a
  token that the parser made up), start byte, end byte and the index after the node's last descendant (uint32).
* :data:`ERRORS`: start and end byte (uint32) of every outermost error or made-up token.
* :data:`BROKEN`: one byte, whether there is any.
* :data:`REFUSED`: start and end byte (uint32) of the first token that no program could have there; nothing if none.
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import select
import signal
import struct
import sys
from array import array
from typing import Any

GRAMMARS = (
    ("python", "tree_sitter_python", "language"), ("java", "tree_sitter_java", "language"),
    ("c", "tree_sitter_c", "language"), ("cpp", "tree_sitter_cpp", "language"),
    ("csharp", "tree_sitter_c_sharp", "language"), ("javascript", "tree_sitter_javascript", "language"),
    ("go", "tree_sitter_go", "language"), ("php", "tree_sitter_php", "language_php_only"),
)  # fmt: skip
REQUEST = struct.Struct("<BBI")
REPLY = struct.Struct("<I")
TYPECODES = "HHIII"
MISSING = 0x8000
TREE, ERRORS, BROKEN, REFUSED = range(4)
_CHUNK = 1024
_PATROL = 2.0  # seconds between looks at whether the parent still lives: a fork of it may hold our pipes open


def load(index: int) -> Any:
    """The tree-sitter language of one row of :data:`GRAMMARS`."""
    import tree_sitter

    _, module, function = GRAMMARS[index]
    return tree_sitter.Language(getattr(importlib.import_module(module), function)())


def flatten(tree: Any, identifier: int | None = None) -> tuple[array[int], ...]:
    """The nodes of a tree in preorder, as the five arrays of a reply.

    Nodes of the kind ``identifier`` are tokens: what stands below one (C#: the keyword that ``when`` is elsewhere) is
    left out.
    """
    kinds, fields, starts, ends = (array(code) for code in TYPECODES[:-1])
    stops = array(TYPECODES[-1], range(1, tree.root_node.descendant_count + 1))  # a leaf's
    cursor = tree.walk()
    first_child, next_sibling, parent = cursor.goto_first_child, cursor.goto_next_sibling, cursor.goto_parent
    open_nodes: list[int] = []
    index = 0
    while True:
        node = cursor.node
        start, end = node.start_byte, node.end_byte
        field = cursor.field_id or 0
        if start == end and node.is_missing:
            field |= MISSING
        kinds.append(kind := node.kind_id)
        fields.append(field)
        starts.append(start)
        ends.append(end)
        index += 1
        if kind != identifier and first_child():
            open_nodes.append(index - 1)
            continue
        while not next_sibling():
            if not parent():
                return kinds, fields, starts, ends, stops[:index]
            stops[open_nodes.pop()] = index


def errors(root: Any) -> array[int]:
    """Start and end byte of every outermost error or made-up token."""
    found = array("I")
    pending = [root]
    while pending:
        node = pending.pop()
        if node.is_error or node.is_missing:
            found.extend(node.byte_range)
        elif node.has_error:
            pending.extend(reversed(node.children))
    return found


class Watch:
    """Listens to one parse for the first token that every version of the stack refuses."""

    def __init__(self) -> None:
        self.refused: tuple[int, int] | None = None  # row and byte column before the token's white space
        self.size = 0  # bytes of it, white space included
        self.at_end = False
        self.done = False
        self._place = (0, 0)
        self._sizes: dict[tuple[int, int], int] = {}

    def __call__(self, kind: object, message: str) -> None:
        """Take one line of the parser's log."""
        first = message[0]
        if self.done or first in "cs":  # consume, skip, shift: most of the log
            return
        if first == "p" and message.startswith("process "):
            row, column = message.rsplit("row:", 1)[1].split(", col:")
            self._place = (int(row), int(column))
        elif first == "l" and message.startswith("lexed_lookahead "):
            self._sizes[self._place] = int(message.rsplit(":", 1)[1])
        elif first == "d" and message.startswith("detect_error "):
            if self.refused is None or self._place >= self.refused:
                self.refused, self.at_end = self._place, message == "detect_error lookahead:end"
                self.size = self._sizes.get(self._place, 1)
        elif first == "r" and message.startswith("resume "):
            self.done = True


def refused(parser: Any, data: bytes) -> array[int]:
    """Start and end byte of the first refused token; nothing where there is none or where it is the text's end."""
    watch = Watch()
    parser.logger = watch

    def read(offset: int, point: object) -> bytes:
        return b"" if watch.done else data[offset : offset + _CHUNK]  # the repair that follows is of no interest

    parser.parse(read)
    if not watch.done or watch.at_end or watch.refused is None:
        return array("I")
    row, column = watch.refused
    start = 0
    for _ in range(row):
        start = data.index(b"\n", start) + 1
    start += column
    end = min(start + watch.size, len(data))
    token = data[start:end]
    return array("I", (start + len(token) - len(token.lstrip(b" \t\r\n\f\v\\")), end))


class Worker:
    """Answers requests. The parsers of one language are one, except where somebody listens to its log."""

    def __init__(self) -> None:
        self.languages: dict[int, Any] = {}
        self.parsers: dict[int, Any] = {}

    def answer(self, task: int, index: int, source: bytes) -> bytes:
        """The reply's bytes."""
        import tree_sitter

        if index not in self.parsers:
            self.languages[index] = load(index)
            self.parsers[index] = tree_sitter.Parser(self.languages[index])
        if task == REFUSED:
            return refused(tree_sitter.Parser(self.languages[index]), source).tobytes()
        tree = self.parsers[index].parse(source)
        if task == TREE:
            identifier = self.languages[index].id_for_node_kind("identifier", True)
            return b"".join([values.tobytes() for values in flatten(tree, identifier)])
        return bytes([tree.root_node.has_error]) if task == BROKEN else errors(tree.root_node).tobytes()


class Pipes:
    """Standard input and output, for as long as the parent lives."""

    def __init__(self, parent: int) -> None:
        self.parent = parent
        self._given = bytearray()
        os.set_blocking(1, False)

    def _wait(self, writing: bool) -> None:
        while not any(select.select([] if writing else [0], [1] if writing else [], [], _PATROL)):
            if os.getppid() != self.parent:
                raise EOFError

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes.

        Raises:
            EOFError: the parent has closed its end, or is gone.
        """
        given = self._given
        while len(given) < count:
            self._wait(writing=False)
            if not (part := os.read(0, 1 << 16)):
                raise EOFError
            given += part
        data = bytes(given[:count])
        del given[:count]
        return data

    def write(self, data: bytes) -> None:
        """All of it.

        Raises:
            EOFError: the parent is gone.
        """
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(1, view) :]
            except BlockingIOError:
                self._wait(writing=True)
            except BrokenPipeError:
                raise EOFError from None


def cpu_limit(length: int, most: float) -> float:
    """CPU seconds that a text of ``length`` bytes may take: a batch of short hostile texts must not cost ``most`` each.

    Real programs, whole or cut off, took at most 12 us a byte with everybody listening, most of them 1.
    """
    return min(most, 0.25 + 40e-6 * length)


def main() -> None:
    """Serve standard input until it closes. Arguments: most CPU seconds a text, bytes of memory, the parent's pid."""
    import tree_sitter  # noqa: F401 - before the limits

    seconds, memory, parent = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; it closes the pipe
    gc.disable()  # nothing here is cyclic, and every node is an object
    worker, pipes = Worker(), Pipes(parent)
    while True:
        try:
            task, index, length = REQUEST.unpack(pipes.read(REQUEST.size))
            source = pipes.read(length)
            # CPU time of this process, so that a busy machine changes no score; SIGPROF ends the process.
            signal.setitimer(signal.ITIMER_PROF, cpu_limit(length, seconds))
            reply = worker.answer(task, index, source)
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            pipes.write(REPLY.pack(len(reply)) + reply)
        except EOFError:
            return


if __name__ == "__main__":
    main()
