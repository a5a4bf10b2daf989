"""Syntax trees and data flow of programs in eight languages: what two programs have in common. No Lightning."""

from lightning_dterm.structure.alignment import differences
from lightning_dterm.structure.counts import MEASURES, Measure, Overlap
from lightning_dterm.structure.dataflow import DataFlow, data_flow, overlap, unmatched
from lightning_dterm.structure.parsing import (
    LANGUAGES,
    ParseLimits,
    ParserUnavailable,
    SyntaxTree,
    TreeParser,
    shared_parser,
)  # fmt: skip
from lightning_dterm.structure.subtrees import SubtreeReference

__all__ = [
    "LANGUAGES", "MEASURES", "DataFlow", "Measure", "Overlap", "ParseLimits", "ParserUnavailable", "SubtreeReference",
    "SyntaxTree", "TreeParser", "data_flow", "differences", "overlap", "shared_parser", "unmatched",
]  # fmt: skip
