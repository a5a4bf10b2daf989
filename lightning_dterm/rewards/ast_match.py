"""Syntactic match with the reference: the share of subtrees that the two programs have in common."""

from __future__ import annotations

from lightning_dterm.rewards.structural import StructuralReward
from lightning_dterm.structure import SubtreeReference, SyntaxTree, differences
from lightning_dterm.types import RewardResult


class AstMatchReward(StructuralReward[SubtreeReference]):
    """Subtrees of the reference that the program has, and of the program that the reference has (PPOCoder; CodeBLEU).

    A subtree is a node's shape without names, literals and operators
    (:mod:`lightning_dterm.structure.subtrees`), counted as often as it occurs, so neither repetition nor junk around
    a copy of the reference earns a full score. ``f1`` (the default) asks for all of the reference and nothing else;
    ``recall`` alone is what CodeBLEU and PPOCoder measure, and the reference with 40 junk lines after it scores 1.

    Evidence: what differs, at the deepest node that differs; what is missing, on its parent at the place of the gap
    (:func:`lightning_dterm.structure.differences`). Programs with syntax errors are compared as far as tree-sitter
    makes sense of them; one it cannot parse within its limits scores 0. For completion tasks both programs start with
    the task's prefix.
    """

    name = "ast_match"

    def build(self, tree: SyntaxTree) -> SubtreeReference:
        """Number the reference's subtrees."""
        return SubtreeReference(tree)

    def compare(self, tree: SyntaxTree, reference: SubtreeReference) -> RewardResult:
        """Count common subtrees, and find where the trees part."""
        numbering = reference.number(tree)
        overlap = reference.overlap(numbering)
        return self.result(overlap, differences(reference, tree, numbering))
