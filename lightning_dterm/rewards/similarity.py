"""Similarity to the reference: sentence BLEU-4 on code tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

from sacrebleu.metrics.bleu import BLEU

from lightning_dterm.rewards.base import PROSE, RewardComponent, is_empty
from lightning_dterm.types import CodeTask, RewardResult, Sample, Span

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


def mismatches(text: str, reference: str, language: str) -> list[tuple[int, int]]:
    """Character ranges of the tokens of ``text`` that keep it from being ``reference``.

    Tokens are aligned by matching blocks (Ratcliff and Obershelp, :mod:`difflib`). A token that is replaced or not in
    the reference is a mismatch; where reference tokens are missing, it is the token that follows the gap (the last
    one at the end), since there the writer went on too early.
    """
    pattern = _WORD if language == PROSE else _CODE_TOKEN
    matches = list(pattern.finditer(text))
    own, wanted = [match.group() for match in matches], pattern.findall(reference)
    wrong: set[int] = set()
    for kind, start, end, _, _ in SequenceMatcher(None, own, wanted, autojunk=False).get_opcodes():
        if kind == "insert":
            wrong.add(min(start, len(own) - 1))
        elif kind != "equal":
            wrong.update(range(start, end))
    return [matches[index].span() for index in sorted(wrong) if index >= 0]


class SimilarityReward(RewardComponent):
    """Sentence BLEU-4 / 100 against the reference, by sacrebleu.

    Clipped n-gram precisions of order 1 to 4 (``effective_order``: only the orders the completion is long enough
    for), brevity penalty, and ``exp`` smoothing (NIST's: the k-th precision without a match counts as ``1 / 2^k``
    of one match), so short programs do not drop to 0. Applies where there is a reference.

    Args:
        name: Name in logs and weights.
        blame: Evidence to which dense attribution charges the loss: ``all`` tokens that differ from the reference, the
            ``first`` of them (what follows a wrong token may be right in its place), or ``none`` (uniform).

    Raises:
        ValueError: If ``blame`` is none of these.
    """

    def __init__(self, name: str = "similarity", blame: Literal["all", "first", "none"] = "all") -> None:
        if blame not in ("all", "first", "none"):
            raise ValueError(f"SimilarityReward: blame must be all, first or none, got {blame!r}")
        self.name = name
        self.blame = blame
        self._bleu = BLEU(smooth_method="exp", effective_order=True, tokenize="none", force=True)

    def applies_to(self, task: CodeTask) -> bool:
        """Tasks with a non-empty reference."""
        return bool(task.reference.strip())

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """BLEU of each completion's code (or prose) on its own."""
        return [
            RewardResult(0.0) if is_empty(sample) else RewardResult(self._score(sample), self._evidence(sample))
            for sample in samples
        ]

    def _evidence(self, sample: Sample) -> tuple[Span, ...]:
        if self.blame == "none":
            return ()
        offset = len(sample.task.prefix)
        ranges = mismatches(sample.code, sample.task.reference, sample.task.language)
        kept = ranges[:1] if self.blame == "first" else ranges
        return tuple(Span(start + offset, end + offset) for start, end in kept)

    def _score(self, sample: Sample) -> float:
        language = sample.task.language
        hypothesis = " ".join(tokenize(sample.code, language))
        reference = " ".join(tokenize(sample.task.reference, language))
        return min(1.0, self._bleu.sentence_score(hypothesis, [reference]).score / 100.0)
