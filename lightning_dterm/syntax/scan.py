"""A lexical scanner for unfinished Python text: logical lines, brackets, open strings and the last lexeme.

It never raises and never decides validity; CPython does (:mod:`lightning_dterm.syntax.viability`). Time is linear.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import Literal

NESTED_FSTRINGS = sys.version_info >= (3, 12)  # PEP 701: replacement fields hold any expression, quotes included
_PREFIX = r"(?:[rR][bBfF]?|[bBfF][rR]?|[uU])"
if sys.version_info >= (3, 14):  # PEP 750
    _PREFIX = r"(?:[rR][bBfFtT]?|[bBfFtT][rR]?|[uU])"
OPERATORS = (
    "**=", "//=", ">>=", "<<=", "...", "->", ":=", "**", "//", "<<", ">>", "<=", ">=", "==", "!=", "+=", "-=", "*=",
    "/=", "%=", "@=", "&=", "|=", "^=", "..", "+", "-", "*", "/", "%", "@", "&", "|", "^", "~", "<", ">", "(", ")",
    "[", "]", "{", "}", ",", ":", ".", ";", "=", "!",
)  # fmt: skip
_TOKEN = re.compile(
    r"(?P<space>[ \t\f]+)"
    r"|(?P<newline>\r\n?|\n)"
    r"|(?P<comment>\#[^\r\n]*)"
    r"|(?P<join>\\(?:\r\n?|\n|\Z))"
    rf"|(?P<string>{_PREFIX}?(?P<quote>'''|\"\"\"|'|\"))"
    r"|(?P<number>\.?[0-9](?:[eE][+-]?|[0-9a-zA-Z_.])*)"
    r"|(?P<name>[^\W\d]\w*)"
    rf"|(?P<operator>{'|'.join(re.escape(operator) for operator in OPERATORS)})"
    r"|(?P<other>.)",
    re.DOTALL,
)
_STRING_ENDS = {
    "'": re.compile(r"(?:[^'\\\r\n]+|\\(?:\r\n|.))*(?P<end>')?", re.DOTALL),
    '"': re.compile(r'(?:[^"\\\r\n]+|\\(?:\r\n|.))*(?P<end>")?', re.DOTALL),
    "'''": re.compile(r"(?:[^'\\]+|\\.|'(?!''))*(?P<end>''')?", re.DOTALL),
    '"""': re.compile(r'(?:[^"\\]+|\\.|"(?!""))*(?P<end>""")?', re.DOTALL),
}
_MAX_FIELDS = 32  # nested replacement fields and strings followed in f-strings

LexemeKind = Literal["name", "number", "operator", "string", "comment", "join", "space", "newline", "other", ""]


@dataclass(slots=True)
class Line:
    """One finished logical line: ``[start, end)`` with its line break; ``body`` is where its first lexeme starts.

    ``body`` is None for blank lines and lines that hold only a comment. ``colon`` is the end of the last lexeme where
    that is a colon: the header of a block whose suite follows.
    """

    start: int
    end: int
    body: int | None
    colon: int | None


@dataclass(slots=True)
class Scan:
    """What :func:`scan` found.

    Attributes:
        lines: Finished logical lines.
        start: Where the logical line that is still open starts.
        kind: Kind of the last lexeme.
        last: Where the last lexeme starts.
        open_string: The last lexeme is a string whose end is missing.
        broken: Where a string on one line meets the line's end: no continuation can mend it.
        fresh: The open logical line holds nothing but white space so far.
    """

    lines: list[Line] = field(default_factory=list)
    start: int = 0
    kind: LexemeKind = ""
    last: int = 0
    open_string: bool = False
    broken: int | None = None
    fresh: bool = True


def scan(text: str, start: int = 0) -> Scan:
    """Scan ``text`` from ``start``, which must be the start of a logical line."""
    found = Scan(start=start, last=start)
    depth, body, colon = 0, None, None
    at, end = start, len(text)
    while at < end:
        match = _TOKEN.match(text, at)
        assert match is not None  # the last alternative takes anything
        kind: LexemeKind = match.lastgroup if match.lastgroup != "quote" else "string"  # type: ignore[assignment]
        found.kind, found.last = kind, at
        stop = match.end()
        if kind == "string":
            closed, stop = string_end(text, at, stop)
            if not closed:
                found.open_string = stop >= end
                found.broken = None if stop >= end else stop
                found.fresh = False
                return found
        elif kind == "newline" and (depth == 0 or body is None):
            found.lines.append(Line(found.start, stop, body, colon))
            found.start, found.fresh, body, colon, depth = stop, True, None, None, 0
        elif kind == "operator":
            opened = text[at]
            depth = depth + 1 if opened in "([{" else max(depth - 1, 0) if opened in ")]}" else depth
        if kind not in ("space", "newline", "comment", "join"):
            body = at if body is None else body
            colon = stop if kind == "operator" and depth == 0 and text[at:stop] == ":" else None
            found.fresh = False
        elif kind == "join":
            found.fresh = False
        at = stop
    return found


def lexeme_end(text: str, start: int) -> int:
    """Where the lexeme that starts at ``start`` ends."""
    match = _TOKEN.match(text, start)
    if match is None:
        return start
    return string_end(text, start, match.end())[1] if match.group("string") else match.end()


def string_end(text: str, start: int, opened: int) -> tuple[bool, int]:
    """Whether the string literal at ``start`` (its quote ends at ``opened``) is closed, and where it stops.

    An unclosed literal stops at the text's end or, on one line, at the line break.
    """
    head = text[start:opened]
    quote = head.lstrip("rRbBuUfFtT")
    if NESTED_FSTRINGS and any(letter in "fFtT" for letter in head[: len(head) - len(quote)]):
        return _Nested(text).string(opened, quote, 0)
    match = _STRING_ENDS[quote].match(text, opened)
    assert match is not None  # every part is optional
    if match.group("end"):
        return True, match.end()
    return False, len(text) if len(quote) == 3 or _dangling(text, match.end()) else match.end()


def _dangling(text: str, at: int) -> bool:
    """The text ends here, perhaps in a backslash whose character is still to come."""
    return at >= len(text) or (at == len(text) - 1 and text[at] == "\\")


class _Nested:
    """f-strings (and t-strings) as CPython 3.12 reads them: strings within fields within strings."""

    def __init__(self, text: str) -> None:
        self.text = text

    def string(self, at: int, quote: str, level: int) -> tuple[bool, int]:
        """The literal part from ``at`` up to ``quote``."""
        text, end = self.text, len(self.text)
        while at < end:
            if text.startswith(quote, at):
                return True, at + len(quote)
            char = text[at]
            if char == "\\":
                # a backslash never escapes a brace: that opens a field all the same
                at += 1 if text[at + 1 : at + 2] in ("{", "}") else 3 if text.startswith("\r\n", at + 1) else 2
                at = self._named(at) if text.startswith("N{", at - 1) else at
            elif char in "\r\n" and len(quote) == 1:
                return False, at
            elif char == "{" and not text.startswith("{{", at):
                closed, at = self.field(at + 1, level + 1, quote)
                if not closed:
                    return False, at
            else:
                at += 2 if char == "{" or text.startswith("}}", at) else 1
        return False, end

    def _named(self, at: int) -> int:
        r"""Past the name of ``\N{...}`` (harmless in raw strings, where a field of that name is read the same)."""
        closing = self.text.find("}", at)
        return at if closing < 0 else closing + 1

    def field(self, at: int, level: int, quote: str) -> tuple[bool, int]:
        """A replacement field after its opening brace."""
        if level > _MAX_FIELDS:
            return False, len(self.text)
        depth, end = 0, len(self.text)
        while at < end:
            match = _TOKEN.match(self.text, at)
            assert match is not None
            kind, char, stop = match.lastgroup, self.text[at], match.end()
            if kind in ("string", "quote"):
                closed, stop = self._inner(at, stop, level)
                if not closed:
                    return False, stop
            elif char in "([{":
                depth += 1
            elif char == "}" and depth == 0:
                return True, at + 1
            elif char in ")]}":
                depth = max(depth - 1, 0)
            elif char == ":" and depth == 0:
                return self._format(at + 1, level, quote)
            at = stop
        return False, end

    def _inner(self, start: int, opened: int, level: int) -> tuple[bool, int]:
        head = self.text[start:opened]
        quote = head.lstrip("rRbBuUfFtT")
        if level <= _MAX_FIELDS and any(letter in "fFtT" for letter in head[: len(head) - len(quote)]):
            return self.string(opened, quote, level)
        match = _STRING_ENDS[quote].match(self.text, opened)
        assert match is not None
        if match.group("end"):
            return True, match.end()
        return False, len(self.text) if len(quote) == 3 or _dangling(self.text, match.end()) else match.end()

    def _format(self, at: int, level: int, quote: str) -> tuple[bool, int]:
        """A format specification up to the brace that closes its field."""
        text, end = self.text, len(self.text)
        while at < end:
            char = text[at]
            if char == "}":
                return True, at + 1
            if char == "{":
                closed, at = self.field(at + 1, level + 1, quote)
                if not closed:
                    return False, at
            elif char in "\r\n" and len(quote) == 1:
                return False, at
            else:
                at += 1
        return False, end
