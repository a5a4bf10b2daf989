"""Which checker a language has."""

from __future__ import annotations

from functools import lru_cache

from lightning_dterm.sandbox.languages import canonical
from lightning_dterm.syntax.base import Checker
from lightning_dterm.syntax.clike import LANGUAGES
from lightning_dterm.syntax.treesitter import TreeSitterChecker
from lightning_dterm.syntax.viability import PythonChecker


def supports(language: str) -> bool:
    """Whether :func:`checker_for` knows the language."""
    return canonical(language) in ("python", *LANGUAGES)


@lru_cache(maxsize=32)
def checker_for(language: str) -> Checker:
    """The checker of a language; one for the process, self-tested on first use.

    Raises:
        ValueError: no such language.
        SyntaxSelfTestError, GrammarError: the language's parser is not as needed.
    """
    name = canonical(language)
    return PythonChecker() if name == "python" else TreeSitterChecker(name)
