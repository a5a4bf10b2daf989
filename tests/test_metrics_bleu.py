from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from lightning_dterm.metrics import (
    bleu_from_statistics,
    bleu_statistics,
    codexglue_exact_match,
    corpus_bleu,
    exact_match,
)

SHARED = Path(os.environ.get("LIGHTNING_DTERM_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "codexglue"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"CodeXGLUE's files are not at {SHARED}")

lines = st.lists(st.sampled_from(["a", "b", "c", "if", "(", ")"]), max_size=9).map(" ".join)
corpora = st.lists(st.tuples(lines, lines), min_size=1, max_size=6)


def brute_force_bleu(pairs: list[tuple[str, str]], smooth: bool) -> float:
    """By the definition, n-gram by n-gram, with lists only."""
    product, found_length, wanted_length = 1.0, 0, 0
    for order in range(1, 5):
        matches = possible = 0
        for completion, reference in pairs:
            found, wanted = completion.split(), reference.split()
            left = [wanted[i : i + order] for i in range(len(wanted) - order + 1)]
            for i in range(len(found) - order + 1):
                possible += 1
                if found[i : i + order] in left:
                    left.remove(found[i : i + order])
                    matches += 1
        if smooth:
            matches, possible = matches + 1, possible + 1
        product *= matches / possible if possible else 0.0
    for completion, reference in pairs:
        found_length += len(completion.split())
        wanted_length += len(reference.split())
    if found_length == 0:
        return 0.0
    penalty = 1.0 if found_length > wanted_length else math.exp(1.0 - wanted_length / found_length)
    return 100.0 * product**0.25 * penalty


@given(corpora, st.booleans())
def test_corpus_bleu_equals_brute_force(pairs, smooth) -> None:
    if not any(text.split() for pair in pairs for text in pair):
        assert math.isnan(corpus_bleu(*zip(*pairs, strict=True), smooth))
    else:
        assert corpus_bleu(*zip(*pairs, strict=True), smooth) == pytest.approx(
            brute_force_bleu(pairs, smooth), abs=1e-9
        )


@given(corpora)
def test_unsmoothed_bleu_equals_sacrebleu(pairs) -> None:
    completions, references = map(list, zip(*pairs, strict=True))
    if not any(text for text in completions) or not any(references):
        return
    theirs = sacrebleu.corpus_bleu(completions, [references], tokenize="none", smooth_method="none", force=True)
    if theirs.sys_len and all(theirs.totals):
        assert corpus_bleu(completions, references, smooth=False) == pytest.approx(theirs.score, abs=1e-6)


def test_hand_computed() -> None:
    # 4 of 4, 2 of 3, 1 of 2, 0 of 1 after clipping; one added everywhere; lengths 4 and 5.
    assert bleu_statistics("a b c a", "a b c d a") == (4, 2, 1, 0, 4, 3, 2, 1, 4, 5)
    expected = 100 * (5 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * math.exp(1 - 5 / 4)
    assert corpus_bleu(["a b c a"], ["a b c d a"]) == pytest.approx(expected)
    assert corpus_bleu(["x"], ["x"]) == pytest.approx(100.0)
    assert corpus_bleu([""], ["x"]) == 0.0


def test_batched_statistics_give_each_row_its_score() -> None:
    pairs = [("a b c d e", "a b c d e f"), ("a", "b"), ("", "b")]
    scores = bleu_from_statistics(np.array([bleu_statistics(*pair) for pair in pairs]))
    assert scores == pytest.approx([brute_force_bleu([pair], True) for pair in pairs])


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        corpus_bleu(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("completion", "reference", "accepted", "published", "ours"),
    [
        ("return x;\n", "return x;", (), True, True),
        ("return  x;", "return x;", (), False, True),
        ("return\n\tx;", "return x;", (), False, True),
        ("returnx;", "return x;", (), False, False),
        ("b", "a", ("c", " b "), False, True),
        ("", "a", (), False, False),
    ],
)
def test_exact_match(completion, reference, accepted, published, ours) -> None:
    assert codexglue_exact_match(completion, reference) is published
    assert exact_match(completion, reference, accepted) is ours


@pytest.mark.parametrize(
    ("completion", "matches"),
    [
        ("t = 0\n    for x in xs:\n        t += x\n    return t", True),
        ("t  =  0\n\n    for x in  xs:  \n\tt += x\n    return t\n", True),  # blanks in lines, a tab of eight columns
        ("    t = 0\n    for x in xs:\n        t += x\n    return t", False),
        ("t = 0\n    for x in xs:\n        t += x\n        return t", False),  # returns in its first round
        ("t = 0 for x in xs: t += x return t", False),
        ("", False),
    ],
)
def test_in_python_exact_match_minds_indentation(completion: str, matches: bool) -> None:
    reference = "t = 0\n    for x in xs:\n        t += x\n    return t\n"
    assert exact_match(completion, reference, language="Python") is matches
    assert exact_match(completion, "z", [reference], "python") is matches
    assert exact_match(completion, reference, language="java") is bool(completion)


@needs_shared
@pytest.mark.parametrize(
    ("task", "bleu", "accuracy"),
    [("Code-Code/code-to-code-trans", 61.08, 50.0), ("Code-Code/code-refinement", 79.03, 40.0)],
)
def test_the_evaluators_own_examples(task, bleu, accuracy) -> None:
    """Figures from the READMEs of the two tasks."""
    with gzip.open(SHARED / "evaluator_samples.jsonl.gz", "rt", encoding="utf-8") as stream:
        files = {(row["task"], row["file"]): row["text"].splitlines() for row in map(json.loads, stream)}
    predictions, references = files[task, "predictions.txt"], files[task, "references.txt"]
    assert round(corpus_bleu(predictions, references), 2) == bleu
    matches = [codexglue_exact_match(*pair) for pair in zip(predictions, references, strict=True)]
    assert 100 * sum(matches) / len(matches) == accuracy


@needs_shared
def test_naive_copy_gives_the_published_figures() -> None:
    """18.54 and 18.69 are published for Java to C# and back; unsmoothed, they belong to the opposite directions."""
    with gzip.open(SHARED / "translation_java_cs_test.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    java, csharp = [row["java"] for row in rows], [row["cs"] for row in rows]
    assert len(rows) == 1000
    assert round(corpus_bleu(csharp, java, smooth=False), 2) == 18.54
    assert round(corpus_bleu(java, csharp, smooth=False), 2) == 18.69
    assert round(corpus_bleu(java, csharp), 2) == 18.69
    assert round(corpus_bleu(csharp, java), 2) == 18.55
    assert not any(map(codexglue_exact_match, java, csharp))
