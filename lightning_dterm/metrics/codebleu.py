"""CodeBLEU (Ren et al. 2020, arXiv 2009.10297) as a torchmetrics metric: n-grams, weighted n-grams, syntax, data flow.

The definition is the published one, with four changes that its own implementations lack: data flow is that of
:mod:`lightning_dterm.structure.dataflow` (deterministic, no assignment form missing), a corpus without any data flow
is a case of its own and not silently 0 or 1, comments and docstrings are left out of the trees instead of being cut
out of the text, and of fewer than four candidate words in all only the orders that there are count (CodeXGLUE's
``bleu.py`` always takes four, the missing ones smoothed). All four parts are corpus scores from additive counts: no
split into batches or ranks matters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_dterm.sandbox.languages import canonical
from lightning_dterm.structure import (
    LANGUAGES,
    SubtreeReference,
    SyntaxTree,
    TreeParser,
    data_flow,
    overlap,
    shared_parser,
)
from lightning_dterm.structure.keywords import KEYWORDS

MissingDataFlow = Literal["renormalize", "zero", "one"]
Tokens = Sequence[str]

_ORDERS = 4
_OTHER_WEIGHT = 0.2  # of a word that is no keyword (keywords: 1), as CodeXGLUE has it
_SMOOTHING = 0.1  # added to an order without matches: method 1 of Chen and Cherry 2014
_COLUMNS = 4 * _ORDERS + 2 + 4


def _ngrams(tokens: Tokens, order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def ngram_counts(candidate: Tokens, references: Sequence[Tokens]) -> list[float]:
    """Matches and possible matches of orders 1 to 4: clipped precision of the candidate, one count per order each."""
    matches, possible = [], []
    for order in range(1, _ORDERS + 1):
        ours = _ngrams(candidate, order)
        best: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            best |= _ngrams(reference, order)
        matches.append(float(sum((ours & best).values())))
        possible.append(float(max(1, sum(ours.values()))))
    return [*matches, *possible]


def weighted_counts(candidate: Tokens, references: Sequence[Tokens], keywords: frozenset[str]) -> list[float]:
    """The same for the weighted match, a *recall* of the references whose single words are weighted."""
    matches, possible = [], []
    for order in range(1, _ORDERS + 1):
        ours, found, wanted = _ngrams(candidate, order), 0.0, 0.0
        for reference in references:
            theirs = _ngrams(reference, order)
            weights = {g: 1.0 if order > 1 or g[0] in keywords else _OTHER_WEIGHT for g in theirs}
            found += sum(weights[gram] * min(count, ours[gram]) for gram, count in theirs.items())
            wanted += max(1.0, sum(weights[gram] * count for gram, count in theirs.items()))
        matches.append(found)
        possible.append(wanted)
    return [*matches, *possible]


def bleu(counts: Sequence[float], candidate_length: float, reference_length: float) -> float:
    """BLEU-4 in [0, 1] from summed counts of :func:`ngram_counts` or :func:`weighted_counts`."""
    matches, possible = counts[:_ORDERS], counts[_ORDERS:]
    if matches[0] == 0 or candidate_length == 0:
        return 0.0
    orders = _ORDERS if candidate_length >= _ORDERS else int(candidate_length)
    ratios = [(m or _SMOOTHING) / p for m, p in zip(matches[:orders], possible[:orders], strict=True)]
    mean = torch.tensor(ratios, dtype=torch.float64).log().mean().item()
    brevity = min(0.0, 1.0 - reference_length / candidate_length)
    return float(torch.tensor(mean + brevity, dtype=torch.float64).exp())


class CodeBLEU(Metric):
    """Corpus CodeBLEU; all figures in [0, 1].

    Args:
        language: One of the eight (``python``, ``java``, ``c``, ``cpp``, ``csharp``, ``javascript``, ``go``, ``php``).
        weights: Of n-gram, weighted n-gram, syntax and data-flow match; CodeXGLUE's are a quarter each.
        missing_data_flow: Where no reference has any data flow: ``renormalize`` the other three weights (the default),
            count it ``zero`` (CodeXGLUE's script) or ``one`` (the codebleu package).
        tokenize: Splits a program into the words of the n-gram parts; default: at white space, as published, which
            suits tokenised corpora only.
        parser: Default: the one that the process shares.
        **kwargs: Passed to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: an unknown language, weights that are not four non-negative numbers with a positive sum over the
            first three, or an unknown ``missing_data_flow``.
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(
        self,
        language: str,
        weights: Sequence[float] = (0.25, 0.25, 0.25, 0.25),
        missing_data_flow: MissingDataFlow = "renormalize",
        tokenize: Callable[[str], list[str]] | None = None,
        parser: TreeParser | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.language = canonical(language)
        if self.language not in LANGUAGES:
            raise ValueError(f"CodeBLEU: no grammar for {language!r}: supported are {', '.join(LANGUAGES)}.")
        if len(weights) != 4 or min(weights) < 0 or sum(weights[:3]) <= 0:
            raise ValueError(f"CodeBLEU: weights must be four numbers >= 0, the first three not all 0, got {weights}.")
        if missing_data_flow not in get_args(MissingDataFlow):
            allowed = ", ".join(get_args(MissingDataFlow))
            raise ValueError(f"CodeBLEU: missing_data_flow must be one of {allowed}, got {missing_data_flow!r}.")
        self.weights, self.missing_data_flow = tuple(weights), missing_data_flow
        self.tokenize, self.parser = tokenize, parser
        self.add_state("counts", torch.zeros(_COLUMNS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, completions: Sequence[str], references: Sequence[str | Sequence[str]]) -> None:
        """Add programs and their references (one each, or several).

        Raises:
            ValueError: the lists differ in length, or a program has no reference.
            RuntimeError: a reference cannot be parsed within the parser's limits.
        """
        if len(completions) != len(references):
            raise ValueError(f"CodeBLEU: {len(completions)} completions for {len(references)} references")
        groups = [[r.strip()] if isinstance(r, str) else [one.strip() for one in r] for r in references]
        if any(not group for group in groups):
            raise ValueError("CodeBLEU: every completion needs at least one reference")
        texts = [text.strip() for text in completions]
        programs = [(text, self.language) for text in (*texts, *(one for group in groups for one in group))]
        trees = iter((self.parser or shared_parser()).parse_many(programs))
        own = [next(trees) for _ in texts]
        rows = [
            [*self._words(text, group), *self._structure(tree, [next(trees) for _ in group])]
            for text, group, tree in zip(texts, groups, own, strict=True)
        ]
        if rows:
            self.counts += torch.tensor(rows, dtype=torch.float64).sum(0).to(self.counts.device)

    def _words(self, text: str, references: list[str]) -> list[float]:
        """Counts of the two n-gram parts, and the lengths for the brevity penalty."""
        split = self.tokenize or str.split
        words, theirs = split(text), [split(reference) for reference in references]
        closest = min((len(reference) for reference in theirs), key=lambda n: (abs(n - len(words)), n))
        weighted = weighted_counts(words, theirs, KEYWORDS[self.language])
        return [*ngram_counts(words, theirs), *weighted, float(len(words)), float(closest)]

    @staticmethod
    def _structure(tree: SyntaxTree | None, references: list[SyntaxTree | None]) -> list[float]:
        """Subtrees found, subtrees, items matched, items; over all references."""
        sums = [0.0] * 4
        own = None if tree is None else data_flow(tree)
        for reference in references:
            if reference is None:
                raise RuntimeError("CodeBLEU: a reference cannot be parsed within the parser's limits")
            subtrees, flow = SubtreeReference(reference), data_flow(reference)
            sums[1] += subtrees.total
            sums[3] += len(flow.items)
            if tree is not None and own is not None:
                sums[0] += subtrees.published_recall(subtrees.number(tree))[0]
                sums[2] += overlap(own, flow).matched
        return sums

    def compute(self) -> dict[str, Tensor]:
        """``codebleu`` and its parts ``ngram``, ``weighted_ngram``, ``syntax`` and ``dataflow``.

        ``dataflow`` is NaN where no reference has any data flow; every figure is NaN before the first update.
        """
        sums = self.counts.tolist()
        found, wanted = sums[4 * _ORDERS : 4 * _ORDERS + 2]
        matched, subtrees, shared, items = sums[-4:]
        nan = float("nan")
        if not subtrees:
            parts = [nan] * 4
        else:
            parts = [
                bleu(sums[: 2 * _ORDERS], found, wanted),
                bleu(sums[2 * _ORDERS : 4 * _ORDERS], found, wanted),
                matched / subtrees,
                shared / items if items else nan,
            ]
        names = ("ngram", "weighted_ngram", "syntax", "dataflow")
        values = {"codebleu": self._combine(parts), **dict(zip(names, parts, strict=True))}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def _combine(self, parts: list[float]) -> float:
        weights, parts = list(self.weights), list(parts)
        if parts[3] != parts[3] and parts[2] == parts[2]:
            parts[3] = 1.0 if self.missing_data_flow == "one" else 0.0
            if self.missing_data_flow == "renormalize":
                scale = sum(weights) / sum(weights[:3])
                weights = [*(weight * scale for weight in weights[:3]), 0.0]
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))
