"""Which subtrees two programs share (CodeBLEU's syntactic match, Ren et al. 2020, section 3.2).

A subtree is a node with children, the root included, and all that is named below it: its shape, node types and field
names. Names, literals, operators, punctuation, comments and Python's docstrings are no part of it. Two subtrees are
equal iff tree-sitter prints them alike. An identifier is a token, also where C#'s grammar has a keyword below it
(``var``). CodeBLEU counts a subtree of the reference as found wherever the candidate has it once; here it is found as
often as the candidate has it, so that repetition neither helps nor hides what is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import compress

from lightning_dterm.structure.counts import Overlap
from lightning_dterm.structure.parsing import ERROR_KIND, Grammar, SyntaxTree
from lightning_dterm.structure.worker import MISSING

_UNKNOWN = -1
_FIRST = 1 << 17  # below: leaves, by kind and whether the parser made them up

Key = tuple[int, ...]


@cache
def _skipped(grammar: Grammar) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    """Kinds of comments, of statements that may be docstrings, and of strings."""
    comments = {n for name in ("comment", "line_comment", "block_comment") for n in grammar.numbers(name)}
    python = grammar.language == "python"
    statements = grammar.numbers("expression_statement") if python else ()
    return frozenset(comments), frozenset(statements), frozenset(grammar.numbers("string") if python else ())


@cache
def _parts(grammar: Grammar) -> bytes:
    """Per kind number: whether subtrees are made of it."""
    comments, _, _ = _skipped(grammar)
    return bytes(
        kind == ERROR_KIND or (kind < len(grammar.kinds) and grammar.is_named(kind) and kind not in comments)
        for kind in range(ERROR_KIND + 1)
    )


def is_docstring(tree: SyntaxTree, node: int) -> bool:
    """Whether a node is a Python statement that is a string and nothing else."""
    _, statements, strings = _skipped(tree.grammar)
    return (
        tree.kinds[node] in statements and tree.kinds[node + 1] in strings and tree.stops[node + 1] == tree.stops[node]
    )


@dataclass(frozen=True, slots=True, eq=False)
class Numbering:
    """Equal subtrees have equal numbers.

    Attributes:
        numbers: Per node of the tree: its number, -1 for a subtree that is not in the table (and for what is no part
            of any subtree).
        subtrees: Nodes that are subtrees, in preorder reversed.
    """

    numbers: list[int]
    subtrees: list[int]


def number_subtrees(tree: SyntaxTree, table: Mapping[Key, int], grow: dict[Key, int] | None = None) -> Numbering:
    """Number every subtree, from the leaves up, in time linear in the nodes.

    Args:
        tree: A program.
        table: Known subtrees: (kind, field and number of each child...) to number.
        grow: The table itself where unknown subtrees are to be entered; None: they get -1.
    """
    kinds, fields, stops = tree.kinds.tolist(), tree.fields.tolist(), tree.stops.tolist()
    nodes, (_, statements, _) = _nodes(tree), _skipped(tree.grammar)
    numbers = [_UNKNOWN] * len(kinds)
    subtrees: list[int] = []
    done: list[int] = []  # roots of what is numbered and has no parent yet, and how they enter the parent's key
    codes: list[int] = []
    for node in reversed(nodes):
        kind, field, stop = kinds[node], fields[node], stops[node]
        if stop == node + 1 and node:
            number = kind + (ERROR_KIND + 1 if field & MISSING else 0)
        else:
            place = len(done)
            while place and done[place - 1] < stop:
                place -= 1
            if kind in statements and is_docstring(tree, node):
                del done[place:], codes[place:]
                while subtrees and subtrees[-1] < stop:
                    subtrees.pop()
                continue
            key = (kind, *codes[place:])  # without its own number an unknown child makes the key unknown
            del done[place:], codes[place:]
            subtrees.append(node)
            number = table.get(key, _UNKNOWN)
            if number < 0 and grow is not None:
                number = grow[key] = _FIRST + len(grow)
        numbers[node] = number
        done.append(node)
        codes.append(number << 15 | field & ~MISSING)
    return Numbering(numbers, subtrees)


def _nodes(tree: SyntaxTree) -> list[int]:
    """Nodes that are part of a subtree, in preorder; those of docstrings too."""
    if max(tree.fields) & MISSING:  # then also made-up punctuation
        named, (comments, _, _) = tree.grammar.is_named, _skipped(tree.grammar)
        return [
            node
            for node, (kind, field) in enumerate(zip(tree.kinds, tree.fields, strict=True))
            if kind not in comments and (named(kind) or field & MISSING)
        ]
    return list(compress(range(len(tree)), map(_parts(tree.grammar).__getitem__, tree.kinds)))


class SubtreeReference:
    """A reference's subtrees, ready to be compared with many candidates.

    Args:
        tree: The reference.
    """

    def __init__(self, tree: SyntaxTree) -> None:
        self.tree = tree
        self.table: dict[Key, int] = {}
        self.numbering = number_subtrees(tree, self.table, self.table)
        self.counts = Counter(map(self.numbering.numbers.__getitem__, self.numbering.subtrees))
        self.total = len(self.numbering.subtrees)

    def number(self, candidate: SyntaxTree) -> Numbering:
        """Number a candidate's subtrees as the reference's are.

        Raises:
            ValueError: the candidate is in another language.
        """
        if candidate.grammar is not self.tree.grammar:
            raise ValueError(f"cannot compare {candidate.grammar.language} with {self.tree.grammar.language}.")
        return number_subtrees(candidate, self.table)

    def overlap(self, numbering: Numbering) -> Overlap:
        """Matches of a numbered candidate, each subtree at most as often as both have it."""
        counts = Counter(map(numbering.numbers.__getitem__, numbering.subtrees))
        matched = sum(min(counts[number], count) for number, count in self.counts.items() if number in counts)
        return Overlap(matched, self.total, len(numbering.subtrees))

    def published_recall(self, numbering: Numbering) -> tuple[int, int]:
        """CodeBLEU's own count: subtrees of the reference that the candidate has at least once, and all of them."""
        present = {numbering.numbers[node] for node in numbering.subtrees}
        return sum(count for number, count in self.counts.items() if number in present), self.total
