"""Exact match of a completion with its reference: CodeXGLUE's and ours."""

from __future__ import annotations

from collections.abc import Iterable


def codexglue_exact_match(completion: str, reference: str) -> bool:
    """Equality of the stripped lines, as CodeXGLUE's code-to-code evaluator counts accuracy."""
    return completion.strip() == reference.strip()


def fold_white_space(text: str) -> str:
    """``text`` with every run of white space replaced by one blank, none at the ends."""
    return " ".join(text.split())


def exact_match(completion: str, reference: str, accepted: Iterable[str] = ()) -> bool:
    """Equality with the reference, or with any other accepted text, white space folded."""
    folded = fold_white_space(completion)
    return any(folded == fold_white_space(text) for text in (reference, *accepted))
