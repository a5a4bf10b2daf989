"""Similarity's evidence: the tokens that differ from the reference."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.rewards.similarity import SimilarityReward, mismatches
from lightning_dterm.types import CodeTask, Sample


def words(text: str, reference: str, language: str = "python") -> list[str]:
    return [text[start:end] for start, end in mismatches(text, reference, language)]


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("return a + b", "return a + b", []),
        ("return a - b", "return a + b", ["-"]),
        ("return a + b + c", "return a + b", ["+", "c"]),
        ("return b", "return a + b", ["b"]),  # the gap is before b
        ("return a", "return a + b", ["a"]),  # the end came too early
        ("x", "y z", ["x"]),
        ("", "y", []),
        ("été = 1", "hiver = 1", ["été"]),
    ],
)
def test_by_hand(text: str, reference: str, expected: list[str]) -> None:
    assert words(text, reference) == expected


@settings(max_examples=200, deadline=None)
@given(st.text("ab +(\n", max_size=30), st.text("ab +(\n", max_size=30))
def test_spans_are_tokens_in_order(text: str, reference: str) -> None:
    spans = mismatches(text, reference, "python")
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert not mismatches(text, text, "python")


def test_evidence_is_in_program_offsets() -> None:
    task = CodeTask("t", "completion", "python", "", "", "return x + 1\n", prefix="def f(x):\n    ")
    text = "return x - 1\n"
    sample = Sample(task, text, ((0, len(text)),))
    (result,) = SimilarityReward().score([sample])
    (span,) = result.spans
    assert sample.program[span.start : span.end] == "-"
    assert SimilarityReward(blame="none").score([sample])[0].spans == ()
    assert result.value == SimilarityReward(blame="none").score([sample])[0].value


def test_only_the_first_can_be_blamed() -> None:
    task = CodeTask("t", "synthesis", "python", "", "", "return x + 1\n")
    text = "return y - 1\n"
    sample = Sample(task, text, ((0, len(text)),))
    blamed = {kind: SimilarityReward(blame=kind).score([sample])[0].spans for kind in ("all", "first")}  # type: ignore[arg-type]
    assert [text[s.start : s.end] for s in blamed["all"]] == ["y", "-"]
    assert [text[s.start : s.end] for s in blamed["first"]] == ["y"]
    with pytest.raises(ValueError, match="blame"):
        SimilarityReward(blame="some")  # type: ignore[arg-type]
