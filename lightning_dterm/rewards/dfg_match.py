"""Data-flow match with the reference: the share of variables that come from the same variables in both programs."""

from __future__ import annotations

from lightning_dterm.rewards.structural import StructuralReward
from lightning_dterm.structure import DataFlow, SyntaxTree, data_flow, overlap, unmatched
from lightning_dterm.types import RewardResult, Span


class DfgMatchReward(StructuralReward[DataFlow]):
    """Data-flow items that program and reference share, whatever the variables are called (PPOCoder; CodeBLEU).

    An item is a variable at one place with the variables it comes from (:mod:`lightning_dterm.structure.dataflow`).
    ``f1`` (the default) is hurt by data flow that is missing and by data flow that does not belong; ``recall`` alone is
    what CodeBLEU and PPOCoder measure. A reference without any data flow makes the component *not applicable*; a
    program without any scores 0, and so does one that tree-sitter cannot parse within its limits.

    Evidence: the tokens of the program's variables whose items the reference does not have. Where all of them match
    and some are missing, no place is to blame. For completion tasks both programs start with the task's prefix.
    """

    name = "dfg_match"

    def build(self, tree: SyntaxTree) -> DataFlow | None:
        """Extract the reference's data flow; None where it has none."""
        flow = data_flow(tree)
        return flow if flow.items else None

    def compare(self, tree: SyntaxTree, reference: DataFlow) -> RewardResult:
        """Count common items, and find the tokens of those that are not."""
        flow = data_flow(tree)
        spans = tuple(Span(low, high) for low, high in unmatched(flow, reference))
        return self.result(overlap(flow, reference), spans)
