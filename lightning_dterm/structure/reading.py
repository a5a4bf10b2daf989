"""What of a syntax tree has a part in data flow: its tokens, and the nodes that rules are about."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import compress

from lightning_dterm.structure.compiled import IGNORED_ROLE, LITERAL_ROLE, RULE_ROLE, Compiled
from lightning_dterm.structure.parsing import ERROR_KIND, SyntaxTree


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The nodes that data flow is made of.

    Attributes:
        order: Those nodes in preorder.
        words: The tokens among them, with their texts; no keywords, and nothing that the parser made up.
    """

    order: list[int] = field(default_factory=list)
    words: dict[int, str] = field(default_factory=dict)

    def tokens(self, ranges: Iterable[tuple[int, int]]) -> dict[int, str]:
        """The tokens in some ranges of nodes, with their texts."""
        order, words = self.order, self.words
        found = {}
        for node, stop in ranges:
            if stop == node + 1:
                if node in words:
                    found[node] = words[node]
                continue
            for place in range(bisect_left(order, node), bisect_left(order, stop)):
                node = order[place]
                if node in words:
                    found[node] = words[node]
        return found


def read_tokens(tree: SyntaxTree, compiled: Compiled) -> Reading:
    """Find tokens and nodes with a rule, outside comments and, in literals, where code is (``f"{x}"``: the ``x``)."""
    kinds, stops, starts, ends, text = tree.kinds.tolist(), tree.stops.tolist(), tree.starts, tree.ends, tree.text
    roles, spellings = compiled.roles, compiled.spellings
    chosen = list(compress(range(len(kinds)), map(roles.__getitem__, kinds)))
    reading = Reading()
    order, words = reading.order, reading.words
    todo = [(0, len(kinds))]
    while todo:
        node, stop = todo.pop()
        passed = node  # everything before it is done with
        for place in range(bisect_left(chosen, node), bisect_left(chosen, stop)):
            node = chosen[place]
            after = stops[node]
            if node < passed:
                continue
            kind = kinds[node]
            role = roles[kind]
            if after > node + 1:
                if role == RULE_ROLE:
                    order.append(node)
                if role < LITERAL_ROLE:
                    continue
                passed = after
                code = _code_inside(tree, compiled, node) if role == LITERAL_ROLE else []
                if code:
                    todo.append((after, stop))
                    todo.extend((child, stops[child]) for child in reversed(code))
                    break
            if role != IGNORED_ROLE:
                word = text[starts[node] : ends[node]]
                if word and spellings.get(kind) != word:
                    words[node] = word
                    order.append(node)
    return reading


def _code_inside(tree: SyntaxTree, compiled: Compiled, node: int) -> list[int]:
    """Children of a literal that are code."""
    kinds, named, contents = tree.kinds, compiled.grammar.named, compiled.contents
    return [
        child
        for child in tree.children(node)
        if kinds[child] == ERROR_KIND or (named[kinds[child]] and kinds[child] not in contents)
    ]
