"""Which variable each variable comes from (CodeBLEU's data-flow match, Ren et al. 2020, section 3.3).

Every token that is a variable or a value is a node: where it is read it *comes from* its own earlier occurrences; where
it is assigned it is *computed from* (or, declared, *comes from*) the tokens of the value. A node without sources counts
only where another one comes from it. A node with its relation and the names of its sources is an *item*; names are
numbered in the order in which items mention them, sources first. Two programs are compared by their items.

Which languages do what is data: :mod:`lightning_dterm.structure.tables`. Unlike the published implementation, sources
are a set (there an unordered set becomes a list, so scores change with the hash seed), a variable is its characters
(there byte columns cut text), and cost is bounded: nested loops are not repeated exponentially, and where programs nest
absurdly (loops beyond 16, branches beyond 64 levels) what lies deeper is read straight through.
"""

from __future__ import annotations

from lightning_dterm.structure.compiled import Compiled, compiled_for
from lightning_dterm.structure.counts import Overlap
from lightning_dterm.structure.machine import DataFlow, Item, Machine, Range
from lightning_dterm.structure.parsing import SyntaxTree

__all__ = ["DataFlow", "Item", "data_flow", "overlap", "unmatched"]


def data_flow(tree: SyntaxTree, compiled: Compiled | None = None) -> DataFlow:
    """Extract a program's data flow; ``compiled`` replaces the language's own table."""
    machine = Machine(tree, compiled or compiled_for(tree.grammar))
    machine.run()
    return machine.result()


def overlap(candidate: DataFlow, reference: DataFlow) -> Overlap:
    """Items in both, each as often as both have it."""
    theirs = reference.counts
    matched = sum(min(count, theirs[item]) for item, count in candidate.counts.items() if item in theirs)
    return Overlap(matched, len(reference.items), len(candidate.items))


def unmatched(candidate: DataFlow, reference: DataFlow) -> list[Range]:
    """Character ranges of the candidate's tokens whose items the reference does not have (any more)."""
    left = reference.counts.copy()
    found = []
    for item, place in zip(candidate.items, candidate.ranges, strict=True):
        if left[item] > 0:
            left[item] -= 1
        else:
            found.append(place)
    return found
