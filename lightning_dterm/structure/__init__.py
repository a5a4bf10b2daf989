"""Syntax trees and data flow of programs in eight languages: what two programs have in common. No Lightning."""

from lightning_dterm.structure.alignment import differences
from lightning_dterm.structure.counts import MEASURES, Measure, Overlap
from lightning_dterm.structure.dataflow import DataFlow, data_flow, overlap, unmatched
from lightning_dterm.structure.parsing import SyntaxTree, TreeParser, shared_parser
from lightning_dterm.structure.process import LANGUAGES, ParseLimits, ParserProcess, ParserUnavailable
from lightning_dterm.structure.subtrees import SubtreeReference

__all__ = [
    "LANGUAGES", "MEASURES", "DataFlow", "Measure", "Overlap", "ParseLimits", "ParserProcess", "ParserUnavailable",
    "SubtreeReference", "SyntaxTree", "TreeParser", "data_flow", "differences", "overlap", "shared_parser", "unmatched",
]  # fmt: skip
