"""A lexical scanner for unfinished text in Java, C, C++, C# and JavaScript, and statements shortened by its brackets.

It only decides where the last, unfinished lexeme starts and which finished statements may be left out of a parse;
whether text is viable is the parser's to say (:mod:`lightning_dterm.syntax.treesitter`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_COMMON = (
    r"(?P<space>[ \t\f\r\n\v]+)"
    r"|(?P<comment>//[^\n]*(?P<line_end>\n)?|/\*(?:[^*]+|\*(?!/))*(?P<block_end>\*/)?)"
)
_PLAIN = (
    r"|(?P<string>\"(?:[^\"\\\n]+|\\(?:.|\Z))*(?P<string_end>\"|\n)?"
    r"|'(?:[^'\\\n]+|\\(?:.|\Z))*(?P<char_end>'|\n)?)"
)
_TEXT_BLOCK = r'|(?P<block>"""(?:[^"\\]+|\\.|"(?!""))*(?P<text_end>""")?)'
_VERBATIM = r'|(?P<verbatim>(?:@\$?|\$@)"(?:[^"]+|"")*(?P<verbatim_end>"(?!"))?)'
_TEMPLATE = r"|(?P<template>`(?:[^`\\]+|\\.)*(?P<template_end>`)?)"
_RAW = r"|(?P<raw>R\"(?P<fence>[^\s()\\]{0,16})\((?:(?!\)(?P=fence)\").)*(?P<raw_end>\)(?P=fence)\")?)"
_DIRECTIVE = r"|(?P<directive>\#(?:[^\n\\]+|\\.)*(?P<directive_end>\n)?)"
_OPERATOR = r"[^\w\s()\[\]{};,\"'`$#]+"
_REST = (
    r"|(?P<word>[\w$]+(?:\.\d[\w.]*)?)|(?P<bracket>[()\[\]{};,])"
    rf"|(?P<operator>{_OPERATOR}?(?=//|/\*)|{_OPERATOR})|(?P<other>.)"
)
_REGEX = re.compile(r"/(?![*/])(?:[^/\\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\]?)+(/[a-z]*)?")
_BEFORE_REGEX = frozenset({"return", "typeof", "case", "in", "of", "delete", "void", "throw", "new", "do", "else"})
_LEXERS = {
    "java": re.compile(_COMMON + _TEXT_BLOCK + _PLAIN + _REST, re.DOTALL),
    "c": re.compile(_COMMON + _PLAIN + _DIRECTIVE + _REST, re.DOTALL),
    "cpp": re.compile(_COMMON + _RAW + _PLAIN + _DIRECTIVE + _REST, re.DOTALL),
    "csharp": re.compile(_COMMON + _VERBATIM + _TEXT_BLOCK + _PLAIN + _DIRECTIVE + _REST, re.DOTALL),
    "javascript": re.compile(_COMMON + _PLAIN + _TEMPLATE + _REST, re.DOTALL),
}
_EXTENSIBLE = frozenset({"word", "operator", "other"})
_LINKED = frozenset({"else", "catch", "finally", "while", "instanceof", "in", "of", "as", "is", "const", "noexcept"})
LANGUAGES = tuple(_LEXERS)


@dataclass(frozen=True, slots=True)
class Lexeme:
    """``[start, end)`` of the text; ``closed`` is False where it may still grow or its own end is missing."""

    kind: str
    start: int
    end: int
    closed: bool


def lexemes(text: str, language: str, start: int = 0) -> Iterator[Lexeme]:
    """The lexemes of ``text`` from ``start`` on, white space included, tiling it."""
    lexer = _LEXERS[language]
    at, end, before = start, len(text), ""
    while at < end:
        match = lexer.match(text, at)
        assert match is not None  # the last alternative takes anything
        kind, stop = str(match.lastgroup), match.end()
        if kind == "operator" and language == "javascript" and text[at] == "/" and _starts_regex(before):
            found = _REGEX.match(text, at)
            if found is not None:
                kind, stop = "regex", found.end()
                yield Lexeme(kind, at, stop, bool(found.group(1)) or stop < end)
                before, at = "x", stop
                continue
        yield Lexeme(kind, at, stop, stop < end or _is_closed(match, kind))
        if kind not in ("space", "comment"):
            before = text[at:stop]
        at = stop


def _starts_regex(before: str) -> bool:
    return not before or before in _BEFORE_REGEX or before[-1] in "([{,;=:!&|?+-*%<>~^"


def _is_closed(match: re.Match[str], kind: str) -> bool:
    """Whether a lexeme at the very end of the text is certainly finished."""
    if kind in ("space", "bracket"):
        return True
    if kind in _EXTENSIBLE:
        return False
    ends = [name for name in match.re.groupindex if name.endswith("_end")]
    return any(match.group(name) for name in ends)


def unfinished(text: str, language: str) -> int:
    """Where the last lexeme starts if it may still grow; the text's length where nothing is open.

    ``a .`` may become ``a ...``, ``retur`` may become ``return``, and an open comment or string is not judged yet.
    """
    last = None
    for last in lexemes(text, language):  # noqa: B007 - the last one is what is wanted
        pass
    return len(text) if last is None or last.closed else last.start


def unmatched_brace(text: str, language: str) -> int | None:
    """Where the first ``}`` stands that closes no ``{`` of the text."""
    depth = 0
    for lexeme in lexemes(text, language):
        if lexeme.kind == "bracket":
            depth += {"{": 1, "}": -1}.get(text[lexeme.start], 0)
            if depth < 0:
                return lexeme.start
    return None


class _Frame:
    """One open bracket: the text in it that the grammar still needs."""

    __slots__ = ("boundary", "braces", "keep", "label", "labelling", "raw", "text")

    def __init__(self, braces: bool, raw: int) -> None:
        self.braces, self.raw = braces, raw
        self.text = ""
        self.boundary = False  # a statement has just ended
        self.keep = False  # leaving statements out was wrong here
        self.label, self.labelling = "", False


class Shortened:
    """A growing text without the statements that are finished and followed by another one.

    In a block ``{ a; b; c`` the grammar needs ``c`` and, of ``b``, nothing once ``c`` is no ``else``, ``catch``,
    ``finally`` or ``while``. What it leaves out is a guess from brackets; :meth:`restore` takes it back.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._frames = [_Frame(True, 0)]
        self.consumed = 0  # characters of the text that are in the frames

    def render(self, text: str) -> str:
        """The shortened form of ``text``, which begins with what was fed."""
        return "".join(frame.text for frame in self._frames) + text[self.consumed :]

    def feed(self, text: str) -> None:
        """Take in the finished lexemes of ``text``, which begins with what was fed before."""
        for lexeme in lexemes(text, self.language, self.consumed):
            if not lexeme.closed or (lexeme.end == len(text) and lexeme.kind != "bracket"):
                return
            self._take(text[lexeme.start : lexeme.end], lexeme)
            self.consumed = lexeme.end

    def restore(self, text: str) -> None:
        """Put back all that was left out of the open blocks, and leave nothing out of them any more."""
        ends = [frame.raw for frame in self._frames[1:]] + [self.consumed]
        for frame, end in zip(self._frames, ends, strict=True):
            frame.text, frame.keep = text[frame.raw : end], True

    def _take(self, piece: str, lexeme: Lexeme) -> None:
        frame = self._frames[-1]
        if lexeme.kind == "comment":
            frame.text += "\n" if piece.endswith("\n") else " "
            return
        if lexeme.kind == "directive" and re.match(r"#\s*(?:if|el|end)", piece):
            frame.keep = True
        if frame.boundary and lexeme.kind != "space":
            self._next_statement(frame, piece, lexeme.kind)
        frame.text += piece
        if lexeme.kind == "operator" and frame.labelling and piece.endswith(":"):
            frame.label, frame.labelling = frame.text, False
        if lexeme.kind != "bracket":
            return
        if piece in "([{":
            self._frames.append(_Frame(piece == "{", lexeme.end))
        elif piece in ")]}" and len(self._frames) > 1:
            closed = self._frames.pop()
            outer = self._frames[-1]
            outer.text += closed.text
            outer.boundary = piece == "}" and outer.braces
        elif piece == ";":
            frame.boundary = frame.braces

    @staticmethod
    def _next_statement(frame: _Frame, piece: str, kind: str) -> None:
        frame.boundary = False
        if frame.keep or kind != "word" or piece in _LINKED:
            return
        if piece in ("case", "default"):
            frame.label, frame.labelling = "", True
        frame.text = frame.label
