"""Exact match of a completion with its reference: CodeXGLUE's and ours."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_dterm.sandbox.languages import canonical


def codexglue_exact_match(completion: str, reference: str) -> bool:
    """Equality of the stripped lines, as CodeXGLUE's code-to-code evaluator counts accuracy."""
    return completion.strip() == reference.strip()


def fold_white_space(text: str) -> str:
    """``text`` with every run of white space replaced by one blank, none at the ends."""
    return " ".join(text.split())


def fold_within_lines(text: str) -> str:
    """``text`` with white space folded inside its lines only: for languages where indentation means something.

    Blank lines and blanks at the ends of lines go, tabs count to the next multiple of eight columns.
    """
    lines = [line.expandtabs() for line in text.splitlines() if line.strip()]
    return "\n".join(" " * (len(line) - len(line.lstrip())) + fold_white_space(line) for line in lines)


def exact_match(completion: str, reference: str, accepted: Iterable[str] = (), language: str = "") -> bool:
    """Equality with the reference, or with any other accepted text, white space folded where it means nothing.

    In Python a statement moved out of its loop is another program, so there the lines and their indentation count.
    """
    fold = fold_within_lines if canonical(language) == "python" else fold_white_space
    folded = fold(completion)
    return any(folded == fold(text) for text in (reference, *accepted))
