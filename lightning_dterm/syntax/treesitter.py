"""Prefix viability in Java, C, C++, C# and JavaScript from tree-sitter's own LR automaton.

tree-sitter repairs errors, so ``has_error`` of a prefix says nothing. But its generalised LR parser has the
correct-prefix property: it takes a token only if some program goes on with it, and where *every* version of the parse
stack refuses the next token it says so (``detect_error`` then ``resume`` in its log) before it repairs anything. So a
prefix is viable iff the first refused token is the end of the text, or lies in the lexeme that is still being written.

This is exact for tree-sitter's grammar, which is not quite the language: it takes some programs that compilers refuse
(keywords as names, statements where only declarations may stand), and refuses a few that preprocessors make valid. Its
false alarms and misses are measured in ``benchmarks/results/syntax.json``; results carry the method's name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache

import tree_sitter

from lightning_dterm.syntax.base import CharSpan, Checker, Session, Verdict
from lightning_dterm.syntax.clike import LANGUAGES, Shortened, unfinished, unmatched_brace

_GRAMMARS = {
    "java": "tree_sitter_java", "c": "tree_sitter_c", "cpp": "tree_sitter_cpp", "csharp": "tree_sitter_c_sharp",
    "javascript": "tree_sitter_javascript",
}  # fmt: skip
# A lone method, as in CodeXGLUE, is judged as it is and inside a class; the better verdict counts.
_CLASS = ("class A {\n", "\n}")
_WRAPPERS: dict[str, tuple[tuple[str, str], ...]] = {"java": (_CLASS,), "csharp": (_CLASS,)}
_CHUNK = 1024
MAX_CHARS = 40_000  # hostile text costs up to a few seconds at this length


class GrammarError(RuntimeError):
    """A tree-sitter grammar is missing, or its log does not say what the flags need."""


@lru_cache(maxsize=8)
def _language(language: str) -> tree_sitter.Language:
    try:
        module = importlib.import_module(_GRAMMARS[language])
    except ImportError as error:
        package = _GRAMMARS[language].replace("_", "-")
        raise GrammarError(f"Syntax flags for {language} need the package {package}: pip install {package}.") from error
    return tree_sitter.Language(module.language())


class _Watch:
    """Listens to one parse for the first token that every version of the stack refuses."""

    def __init__(self) -> None:
        self.refused: tuple[int, int] | None = None  # row and byte column before the token's white space
        self.size = 0  # bytes of it, white space included
        self.at_end = False
        self.done = False
        self._place = (0, 0)
        self._sizes: dict[tuple[int, int], int] = {}

    def __call__(self, kind: object, message: str) -> None:
        first = message[0]
        if self.done or first in "cs":  # consume, skip, shift: most of the log
            return
        if first == "p" and message.startswith("process "):
            row, column = message.rsplit("row:", 1)[1].split(", col:")
            self._place = (int(row), int(column))
        elif first == "l" and message.startswith("lexed_lookahead "):
            self._sizes[self._place] = int(message.rsplit(":", 1)[1])
        elif first == "d" and message.startswith("detect_error "):
            if self.refused is None or self._place >= self.refused:
                self.refused, self.at_end = self._place, message == "detect_error lookahead:end"
                self.size = self._sizes.get(self._place, 1)
        elif first == "r" and message.startswith("resume "):
            self.done = True


def first_refused(source: str, language: str) -> CharSpan | None:
    """Character span of the first token that cannot stand where it does; None where there is none.

    The end of the text, where more was expected, is no such token.
    """
    data = source.encode("utf-8", "replace")
    watch = _Watch()
    parser = tree_sitter.Parser(_language(language))
    parser.logger = watch

    def read(offset: int, point: object) -> bytes:
        return b"" if watch.done else data[offset : offset + _CHUNK]  # the repair that follows is of no interest

    parser.parse(read)
    if not watch.done or watch.at_end or watch.refused is None:
        return None
    row, column = watch.refused
    start = 0
    for _ in range(row):
        start = data.index(b"\n", start) + 1
    start += column
    end = min(start + watch.size, len(data))
    token = data[start:end]
    start += len(token) - len(token.lstrip(b" \t\r\n\f\v\\"))
    low = len(data[:start].decode("utf-8", "replace"))
    return min(low, max(len(source) - 1, 0)), max(len(data[:end].decode("utf-8", "replace")), low + 1)


class TreeSitterChecker(Checker):
    """One of :data:`lightning_dterm.syntax.clike.LANGUAGES` by tree-sitter's automaton.

    Raises:
        GrammarError: the grammar's package is missing, or this tree-sitter's log is not understood.
        ValueError: no such language.
    """

    method = "tree-sitter"

    def __init__(self, language: str) -> None:
        if language not in _GRAMMARS:
            raise ValueError(f"No syntax flags for {language!r}: choose one of {', '.join(LANGUAGES)}.")
        self.language = language
        self.heads = (("", ""), *_WRAPPERS.get(language, ()))
        _self_test(language)

    def viable(self, prefix: str) -> bool:
        """Whether tree-sitter's grammar lets ``prefix`` go on, the lexeme still being written left aside."""
        return self.viable_as(prefix, prefix)

    def viable_as(self, shortened: str, prefix: str) -> bool:
        """:meth:`viable` of ``prefix``, judged on a shorter text with the same continuations."""
        if len(prefix) > MAX_CHARS:
            return False
        kept = unfinished(shortened, self.language)
        for head, _ in self.heads:
            refused = self._refused(head, shortened)
            if refused is None or refused[0] >= kept:
                return True
        return False

    def _refused(self, head: str, program: str) -> CharSpan | None:
        """The first refused token after ``head``; a brace that would close the head is one too."""
        found = first_refused(head + program, self.language)
        refused = None if found is None else (max(found[0] - len(head), 0), max(found[1] - len(head), 1))
        closing = unmatched_brace(program, self.language) if head else None
        if closing is not None and (refused is None or refused[0] > closing):
            return closing, closing + 1
        return refused

    def complete(self, program: str) -> bool:
        """Whether it parses without repair, as it is or inside a class."""
        if len(program) > MAX_CHARS:
            return False
        parser = tree_sitter.Parser(_language(self.language))
        for head, tail in self.heads:
            source = (head + program + tail).encode("utf-8", "replace")
            if not parser.parse(source).root_node.has_error:
                return not head or unmatched_brace(program, self.language) is None
        return False

    def check(self, program: str) -> Verdict:
        """One parse where all is well; otherwise the furthest first refused token."""
        if self.complete(program):
            return Verdict("ok", len(program))
        end = len(program)
        if self.viable(program):
            stop = len(program.rstrip())
            last = unfinished(program[:stop], self.language)
            span = (last if last < stop else max(stop - 1, 0), stop) if stop else None
            return Verdict("unfinished", end, span, "the program is not complete")
        spans = [self._refused(head, program[:MAX_CHARS]) for head, _ in self.heads]
        span = max((span for span in spans if span is not None), default=(max(end - 1, 0), end))
        position = self.first_failure(program, min(span[1], end))
        if self.viable(program[:position]):  # cannot happen while viable() is prefix-closed
            position = end
        return Verdict("error", position, span, f"unexpected {program[span[0] : span[1]]!r}")

    def session(self, text: str = "") -> Session:
        """A session that parses the open statements only."""
        return TreeSitterSession(self, text)


class TreeSitterSession(Session):
    """Follows a growing program; finished statements are left out of the parse, and failures confirmed without that."""

    checker: TreeSitterChecker

    def __init__(self, checker: TreeSitterChecker, text: str = "") -> None:
        self._short = Shortened(checker.language)
        super().__init__(checker, text)

    def append(self, text: str) -> bool:
        """See :class:`Session`."""
        known = len(self.text)
        self.text += text
        if self.position is not None:
            return False
        if text and not self._viable(self.text, mend=True):
            self._locate(known)
            return False
        self._short.feed(self.text)
        return True

    def probe(self, text: str) -> bool:
        """See :class:`Session`."""
        return self.position is None and (not text or self._viable(self.text + text, mend=False))

    def _viable(self, text: str, mend: bool) -> bool:
        if self.checker.viable_as(self._short.render(text), text):
            return True
        if not self.checker.viable(text):
            return False
        if mend:
            self._short.restore(text)
        return True


_PROBES: dict[str, Callable[[str], str]] = {
    "java": lambda x: f"class A {{ int f(int x) {{ return x + {x} }}",
    "csharp": lambda x: f"class A {{ int F(int x) {{ return x + {x} }}",
    "c": lambda x: f"int f(int x) {{ return x + {x} }}",
    "cpp": lambda x: f"int f(int x) {{ return x + {x} }}",
    "javascript": lambda x: f"function f(x) {{ return x + {x} }}",
}


@lru_cache(maxsize=8)
def _self_test(language: str) -> None:
    good, bad = (_PROBES[language](text) for text in ("1;", ")"))
    found = first_refused(bad, language)
    if first_refused(good, language) is not None or found is None or bad[found[0] : found[1]] != ")":
        raise GrammarError(
            f"This tree-sitter does not report the first refused token of {language} as expected: install the versions "
            "that this package was tested with (constraints.txt)."
        )
