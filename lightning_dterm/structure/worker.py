"""The child process that runs tree-sitter: one request, one flattened tree. It imports nothing of the package.

tree-sitter parses hostile text in the process that asks for it, and some 16 kB texts make current grammars take forty
seconds or several gigabytes between two of its progress callbacks (``a=>a=>...`` as Java). So a parser gets a process
of its own, with limits on memory, and on the CPU time of each text; it is expected to die now and then.

Request: ``<BI`` (index into :data:`GRAMMARS`, length) and UTF-8 bytes. Reply: ``<I`` (n nodes) and five arrays in
preorder: kind and field (uint16; :data:`MISSING` is set in the field of a token that the parser made up), start byte,
end byte and the index after the node's last descendant (uint32).
"""

from __future__ import annotations

import gc
import importlib
import resource
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
REQUEST = struct.Struct("<BI")
REPLY = struct.Struct("<I")
TYPECODES = "HHIII"
MISSING = 0x8000


def load(index: int) -> Any:
    """The tree-sitter language of one row of :data:`GRAMMARS`."""
    import tree_sitter

    _, module, function = GRAMMARS[index]
    return tree_sitter.Language(getattr(importlib.import_module(module), function)())


def flatten(tree: Any) -> tuple[array[int], ...]:
    """The nodes of a tree in preorder, as the five arrays of a reply."""
    kinds, fields, starts, ends, stops = (array(code) for code in TYPECODES)
    cursor = tree.walk()
    first_child, next_sibling, parent = cursor.goto_first_child, cursor.goto_next_sibling, cursor.goto_parent
    open_nodes: list[int] = []
    index = 0
    while True:
        node = cursor.node
        start, end = node.byte_range
        field = cursor.field_id or 0
        if start == end and node.is_missing:
            field |= MISSING
        kinds.append(node.kind_id)
        fields.append(field)
        starts.append(start)
        ends.append(end)
        stops.append(0)
        if first_child():
            open_nodes.append(index)
            index += 1
            continue
        index += 1
        stops[index - 1] = index
        while not next_sibling():
            if not parent():
                return kinds, fields, starts, ends, stops
            stops[open_nodes.pop()] = index


def main() -> None:
    """Serve requests from standard input until it closes. Arguments: CPU seconds a text, bytes of address space."""
    import tree_sitter

    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; it closes the pipe
    gc.disable()  # nothing here is cyclic, and every node is an object
    parsers: dict[int, Any] = {}
    given, out = sys.stdin.buffer, sys.stdout.buffer
    while len(head := given.read(REQUEST.size)) == REQUEST.size:
        index, length = REQUEST.unpack(head)
        source = given.read(length)
        if index not in parsers:
            parsers[index] = tree_sitter.Parser(load(index))
        # CPU time of this process, so that a busy machine changes no score; SIGPROF ends the process.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        arrays = flatten(parsers[index].parse(source))
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        out.write(b"".join([REPLY.pack(len(arrays[0])), *(values.tobytes() for values in arrays)]))
        out.flush()


if __name__ == "__main__":
    main()
