"""Similarity to the reference: sentence BLEU-4 on code tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU

from lightning_dterm.rewards.base import PROSE, RewardComponent, is_empty
from lightning_dterm.types import CodeTask, RewardResult, Sample

# Longest operators first. Quotes are tokens of their own, so the words of a string or comment are compared one by one.
_CODE_TOKEN = re.compile(
    r"0[xX][0-9a-fA-F_]+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?\w*|[^\W\d]\w*"
    r"|>>>=|\*\*=|//=|<<=|>>=|>>>|===|!==|\?\?=|\.\.\.|->|=>|:=|==|!=|<=|>=|\+=|-=|\*=|/=|%=|&=|\|=|\^=|@="
    r"|\*\*|//|<<|>>|&&|\|\||\?\?|\?\.|\+\+|--|::|[^\w\s]"
)
_WORD = re.compile(r"\w+|[^\w\s]")


def tokenize(text: str, language: str) -> list[str]:
    """Split code into identifiers, numbers, operators and the words of strings; prose into words and punctuation.

    White space, Python's indentation included, is not a token.
    """
    return (_WORD if language == PROSE else _CODE_TOKEN).findall(text)


class SimilarityReward(RewardComponent):
    """Sentence BLEU-4 / 100 against the reference, by sacrebleu.

    Clipped n-gram precisions of order 1 to 4 (``effective_order``: only the orders the completion is long enough
    for), brevity penalty, and ``exp`` smoothing (NIST's: the k-th precision without a match counts as ``1 / 2^k``
    of one match), so short programs do not drop to 0. No evidence: uniform. Applies where there is a reference.
    """

    def __init__(self, name: str = "similarity") -> None:
        self.name = name
        self._bleu = BLEU(smooth_method="exp", effective_order=True, tokenize="none", force=True)

    def applies_to(self, task: CodeTask) -> bool:
        """Tasks with a non-empty reference."""
        return bool(task.reference.strip())

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """BLEU of each completion's code (or prose) on its own."""
        return [RewardResult(0.0 if is_empty(sample) else self._score(sample)) for sample in samples]

    def _score(self, sample: Sample) -> float:
        language = sample.task.language
        hypothesis = " ".join(tokenize(sample.code, language))
        reference = " ".join(tokenize(sample.task.reference, language))
        return min(1.0, self._bleu.sentence_score(hypothesis, [reference]).score / 100.0)
