"""Which subtrees two programs share (CodeBLEU's syntactic match, Ren et al. 2020, section 3.2).

A subtree is a node with children, the root included, and all that is named below it: its shape, node types and field
names. Names, literals, operators, punctuation, comments and Python's docstrings are no part of it. Two subtrees are
equal iff tree-sitter prints them alike. CodeBLEU counts a subtree of the reference as found wherever the candidate has
it once; here it is found as often as the candidate has it, so that repetition neither helps nor hides what is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

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
    kinds, fields, stops = tree.kinds, tree.fields, tree.stops
    named, (comments, statements, _) = tree.grammar.named, _skipped(tree.grammar)
    numbers = [_UNKNOWN] * len(tree)
    subtrees: list[int] = []
    done: list[int] = []
    for node in range(len(tree) - 1, -1, -1):
        kind, stop, made_up = kinds[node], stops[node], fields[node] & MISSING
        if kind in comments or not (kind == ERROR_KIND or named[kind] or made_up):
            continue
        if kind in statements and is_docstring(tree, node):
            while subtrees and subtrees[-1] < stop:
                subtrees.pop()
            while done and done[-1] < stop:
                done.pop()
            continue
        if stop == node + 1 and node:
            numbers[node] = kind + (ERROR_KIND + 1 if made_up else 0)
            done.append(node)
            continue
        key, known = [kind], True
        while done and done[-1] < stop:
            child = done.pop()
            number = numbers[child]
            known = known and number >= 0
            key.append((fields[child] & ~MISSING) << 48 | (number & 0xFFFFFFFFFFFF))
        done.append(node)
        subtrees.append(node)
        if known:
            found = tuple(key)
            number = table.get(found, _UNKNOWN)
            if number < 0 and grow is not None:
                number = grow[found] = _FIRST + len(grow)
            numbers[node] = number
    return Numbering(numbers, subtrees)


class SubtreeReference:
    """A reference's subtrees, ready to be compared with many candidates.

    Args:
        tree: The reference.
    """

    def __init__(self, tree: SyntaxTree) -> None:
        self.tree = tree
        self.table: dict[Key, int] = {}
        self.numbering = number_subtrees(tree, self.table, self.table)
        self.counts = Counter(self.numbering.numbers[node] for node in self.numbering.subtrees)
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
        counts = Counter(numbering.numbers[node] for node in numbering.subtrees)
        matched = sum(min(count, counts[number]) for number, count in self.counts.items())
        return Overlap(matched, self.total, len(numbering.subtrees))

    def published_recall(self, numbering: Numbering) -> tuple[int, int]:
        """CodeBLEU's own count: subtrees of the reference that the candidate has at least once, and all of them."""
        present = {numbering.numbers[node] for node in numbering.subtrees}
        return sum(count for number, count in self.counts.items() if number in present), self.total
