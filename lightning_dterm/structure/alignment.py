"""Where a candidate's tree leaves the reference's: evidence for the syntactic match."""

from __future__ import annotations

from difflib import SequenceMatcher

from lightning_dterm.structure.parsing import SyntaxTree
from lightning_dterm.structure.subtrees import Numbering, SubtreeReference, is_docstring
from lightning_dterm.types import Span

# Hostile programs are as wide, as deep and as different as they can be; evidence then gets coarser, never slow.
_MAX_CELLS = 10_000  # children compared with children; beyond it they are paired in order, by type alone
_MAX_STEPS = 2_000  # pairs of nodes compared; what is left is charged as a whole
_MAX_DEPTH = 100  # levels followed down to a node's first token


def differences(reference: SubtreeReference, candidate: SyntaxTree, numbering: Numbering) -> tuple[Span, ...]:
    """Character ranges of the candidate that keep it from having the reference's subtrees.

    Both trees are walked from the root as long as node types agree; children are aligned by equal subtrees first, then
    in order by type. A candidate's child without a partner is charged itself, also for what is missing in its place;
    where something is only missing, its parent in the candidate is charged at the place of the gap: the token after
    it, the parent's last one at the end. The weight is the number of subtrees that are too many or missing there.
    Nothing is found for equal trees.
    """
    walk = _Walk(reference, candidate, numbering)
    pending = [(0, 0)]
    for _ in range(_MAX_STEPS):
        if not pending:
            break
        pending.extend(walk.step(*pending.pop()))
    for _, node in pending:
        walk.charge(candidate.starts[node], candidate.ends[node], 1)
    return tuple(Span(low, high, float(weight)) for (low, high), weight in sorted(walk.charges.items()))


class _Walk:
    def __init__(self, reference: SubtreeReference, candidate: SyntaxTree, numbering: Numbering) -> None:
        self.theirs, self.wanted = reference.tree, reference.numbering.numbers
        self.ours, self.found = candidate, numbering.numbers
        self.sizes = _sizes(self.theirs, reference.numbering), _sizes(candidate, numbering)
        self.charges: dict[tuple[int, int], int] = {}

    def charge(self, low: int, high: int, weight: int) -> None:
        if low < high and weight:
            self.charges[low, high] = self.charges.get((low, high), 0) + weight

    def step(self, theirs: int, ours: int) -> list[tuple[int, int]]:
        """Compare one node of each tree, of one type; pairs of children to go on with."""
        if self.wanted[theirs] == self.found[ours]:
            return []
        left, right = _parts(self.theirs, theirs), _parts(self.ours, ours)
        before, pairs = len(self.charges), []
        for lost, extra, after in self._gaps(left, right):
            kept = self._pair_by_kind(lost, extra)
            pairs.extend(kept)
            partners, paired = {pair[0] for pair in kept}, {pair[1] for pair in kept}
            surplus = [node for node in extra if node not in paired]
            missing = sum(max(self._size(0, node), 1) for node in lost if node not in partners)
            for node in surplus:
                self.charge(self.ours.starts[node], self.ours.ends[node], max(self._size(1, node), 1))
            if surplus:  # it stands in the place of what is missing
                self.charge(self.ours.starts[surplus[0]], self.ours.ends[surplus[0]], missing)
            elif missing:
                self.charge(*self._gap(ours, after), missing)
        if not pairs and len(self.charges) == before:  # same children under other field names
            self.charge(self.ours.starts[ours], self.ours.ends[ours], 1)
        return pairs

    def _gaps(self, left: list[int], right: list[int]) -> list[tuple[list[int], list[int], int | None]]:
        """Stretches of children that have no equal partner, and the candidate's child that follows each."""
        wanted, found = [self.wanted[n] for n in left], [self.found[n] for n in right]
        if len(left) * len(right) > _MAX_CELLS:
            return [(left, right, None)]
        # Unknown subtrees of the candidate (-1) equal nothing: the reference's are all known.
        blocks = SequenceMatcher(None, wanted, found, autojunk=False).get_opcodes()
        return [
            (left[a:b], right[c:d], right[d] if d < len(right) else None)
            for kind, a, b, c, d in blocks
            if kind != "equal"
        ]

    def _pair_by_kind(self, lost: list[int], extra: list[int]) -> list[tuple[int, int]]:
        pairs: list[tuple[int, int]] = []
        start = 0
        for node in extra:
            kind = self.ours.kinds[node]
            for place in range(start, min(len(lost), start + 64)):
                if self.theirs.kinds[lost[place]] == kind:
                    pairs.append((lost[place], node))
                    start = place + 1
                    break
        return pairs

    def _gap(self, parent: int, after: int | None) -> tuple[int, int]:
        """The token at a gap: the first of the child that follows it, or the parent's last."""
        tree = self.ours
        if after is not None:
            leaf = after
            while tree.stops[leaf] > leaf + 1 and leaf < after + _MAX_DEPTH:
                leaf += 1
            return tree.starts[leaf], tree.ends[leaf]
        for leaf in range(tree.stops[parent] - 1, parent - 1, -1):
            if tree.stops[leaf] == leaf + 1 and tree.starts[leaf] < tree.ends[leaf]:
                return tree.starts[leaf], tree.ends[leaf]
        return tree.starts[parent], tree.ends[parent]

    def _size(self, side: int, node: int) -> int:
        tree = (self.theirs, self.ours)[side]
        sizes = self.sizes[side]
        return sizes[tree.stops[node]] - sizes[node]


def _parts(tree: SyntaxTree, node: int) -> list[int]:
    """Children that subtrees are made of."""
    grammar = tree.grammar
    return [
        child
        for child in tree.children(node)
        if grammar.is_named(tree.kinds[child])
        and not grammar.kind(tree.kinds[child]).endswith("comment")
        and not is_docstring(tree, child)
    ]


def _sizes(tree: SyntaxTree, numbering: Numbering) -> list[int]:
    """Prefix sums over nodes: how many subtrees start before each."""
    marks = bytearray(len(tree))
    for node in numbering.subtrees:
        marks[node] = 1
    sums = [0]
    for mark in marks:
        sums.append(sums[-1] + mark)
    return sums
