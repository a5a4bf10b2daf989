"""Compiler feedback: exp(-lambda k) for k errors (DTERM's first sub-reward)."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import tree_sitter

from lightning_dterm.rewards.base import EXECUTABLE, PROSE, RewardComponent, is_empty, line_starts, position_span
from lightning_dterm.types import CodeTask, RewardResult, Sample, Span

_GRAMMARS = {
    "java": "tree_sitter_java", "csharp": "tree_sitter_c_sharp", "c#": "tree_sitter_c_sharp",
    "c_sharp": "tree_sitter_c_sharp", "javascript": "tree_sitter_javascript", "js": "tree_sitter_javascript",
}  # fmt: skip
# A lone method (as in CodeXGLUE) stands inside a class.
_WRAPPERS = {"tree_sitter_java": ("class A {\n", "\n}"), "tree_sitter_c_sharp": ("class A {\n", "\n}")}
_log = logging.getLogger(__name__)


class CompileReward(RewardComponent):
    """``exp(-lam * k)`` for ``k`` compiler errors; warnings are not errors.

    Python: CPython itself, in a sandboxed process (compiling hostile text can crash an interpreter). It stops at the
    first error; further ones are found by blanking the offending line and compiling again, at most 5 in all.
    Java, C# and JavaScript: the number of tree-sitter ERROR and MISSING nodes, outermost only, the smaller of the
    program as it is and wrapped in a class; ``details["method"]`` says ``tree-sitter``. Evidence: each error's span.
    Not applicable to prose and to languages without a compiler or grammar.

    Args:
        name: Column name.
        lam: Decay per error, positive.
    """

    needs_execution: ClassVar[bool] = True

    def __init__(self, name: str = "compile", lam: float = 1.0) -> None:
        if not lam > 0:
            raise ValueError(f"CompileReward: lam must be positive, got {lam}.")
        self.name, self.lam = name, lam

    def applies_to(self, task: CodeTask) -> bool:
        """Tasks in Python or in a language with a grammar."""
        if task.language in EXECUTABLE or task.language in _GRAMMARS:
            return True
        if task.language != PROSE:
            _warn_once(self.name, task.language)
        return False

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Count each program's errors."""
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> RewardResult:
        if is_empty(sample):
            return RewardResult(0.0, details={"method": "empty"})
        if sample.task.language in EXECUTABLE:
            if sample.execution is None:
                return RewardResult(None, error="the program was not compiled")
            spans, method = _python_spans(sample), "cpython"
        else:
            spans, method = parse_errors(sample.program, sample.task.language), "tree-sitter"
        return RewardResult(math.exp(-self.lam * len(spans)), spans, {"method": method, "errors": len(spans)})


def _python_spans(sample: Sample) -> tuple[Span, ...]:
    assert sample.execution is not None
    program = sample.program
    starts = line_starts(program)
    return tuple(
        position_span(program, starts, (error.line, error.column), (error.end_line, error.end_column))
        for error in sample.execution.compile_errors
    )


def parse_errors(program: str, language: str) -> tuple[Span, ...]:
    """Spans (character offsets) of the outermost tree-sitter ERROR and MISSING nodes of a program.

    Raises:
        KeyError: no grammar for ``language``.
    """
    grammar = _GRAMMARS[language]
    candidates = [("", ""), *([_WRAPPERS[grammar]] if grammar in _WRAPPERS else [])]
    return min((_errors_in(program, grammar, head, tail) for head, tail in candidates), key=len)


def _errors_in(program: str, grammar: str, head: str, tail: str) -> tuple[Span, ...]:
    source = (head + program + tail).encode("utf-8", "replace")
    parser = tree_sitter.Parser(tree_sitter.Language(importlib.import_module(grammar).language()))
    spans = []
    pending = [parser.parse(source).root_node]
    while pending:
        node = pending.pop()
        if node.is_error or node.is_missing:
            spans.append(_to_span(source, node.start_byte, node.end_byte, len(head), len(program)))
        elif node.has_error:
            pending.extend(reversed(node.children))
    return tuple(spans)


def _to_span(source: bytes, start: int, end: int, offset: int, length: int) -> Span:
    """Byte range of ``source`` to a character range of the program, at least one character wide."""
    low = len(source[:start].decode("utf-8", "replace")) - offset
    high = len(source[:end].decode("utf-8", "replace")) - offset
    low = min(max(low, 0), max(length - 1, 0))
    return Span(low, min(max(high, low + 1), max(length, low + 1)))


@lru_cache(maxsize=256)
def _warn_once(name: str, language: str) -> None:
    _log.warning("%s: no compiler or grammar for %r; the component is masked for such tasks.", name, language)
