"""Metrics: CodeXGLUE's BLEU-4 and exact match, CodeBLEU, bootstrap intervals, and the per-task-type table."""

from lightning_dterm.metrics.aggregate import FIGURES, SampleRecord, SampleTable
from lightning_dterm.metrics.bleu import bleu_from_statistics, bleu_statistics, corpus_bleu
from lightning_dterm.metrics.bootstrap import bootstrap_interval, percentile_interval, resampled_sums
from lightning_dterm.metrics.codebleu import CodeBLEU
from lightning_dterm.metrics.exact_match import codexglue_exact_match, exact_match, fold_white_space, fold_within_lines

__all__ = [
    "FIGURES",
    "CodeBLEU",
    "SampleRecord",
    "SampleTable",
    "bleu_from_statistics",
    "bleu_statistics",
    "bootstrap_interval",
    "codexglue_exact_match",
    "corpus_bleu",
    "exact_match",
    "fold_white_space",
    "fold_within_lines",
    "percentile_interval",
    "resampled_sums",
]
