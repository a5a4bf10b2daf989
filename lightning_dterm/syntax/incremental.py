"""Python prefixes in constant work per statement: what the grammar still knows of earlier lines, and no more.

Of a program's finished lines the grammar remembers only which blocks are open and, at each level, which clauses the
last compound statement had (an ``else`` needs its ``if``). So the lines before the open one shrink to one header per
open block, and a check costs what the open statement and the depth of nesting cost, however long the program is.

Nothing here decides on its own: a failure found on the short context is confirmed on the whole text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lightning_dterm.syntax.base import Checker, Session
from lightning_dterm.syntax.scan import Line, scan
from lightning_dterm.syntax.viability import viable

_WORD = re.compile(r"[^\W\d]\w*|@")
_CONTINUE = frozenset({"elif", "else", "except", "finally"})
_CHAINED = frozenset({"if", "for", "while", "try", "async", *_CONTINUE})  # a clause may follow their suites
_COMPOUND = frozenset({*_CHAINED, "with", "def", "class", "match", "case", "@"})


@dataclass(slots=True)
class _Level:
    """One open block: its indentation and the last statement's clauses in it, by first word.

    ``clauses`` map the word to the clause's text; a word met again (elif, except) replaces its earlier text, which the
    grammar has forgotten. The last one is open where a deeper level follows.
    """

    indent: str
    clauses: dict[str, str] = field(default_factory=dict)


class Context:
    """The finished logical lines of a program, shortened to what the grammar still needs.

    ``text`` is a program text that can be continued by exactly what the original lines can be continued by.
    """

    def __init__(self) -> None:
        self._levels = [_Level("")]
        self._open = False  # the last line was a header whose block is still to come
        self._text: str | None = ""

    def copy(self) -> Context:
        """An independent copy."""
        other = Context()
        other._levels = [_Level(level.indent, dict(level.clauses)) for level in self._levels]
        other._open, other._text = self._open, self._text
        return other

    @property
    def text(self) -> str:
        """The shortened lines."""
        if self._text is None:
            parts = []
            for depth, level in enumerate(self._levels):
                clauses = list(level.clauses.values())
                is_open = depth + 1 < len(self._levels) or self._open
                for place, clause in enumerate(clauses):
                    closed = clause.endswith(":") and not (is_open and place == len(clauses) - 1)
                    parts.append(f"{level.indent}{clause}{' pass' if closed else ''}\n")
            self._text = "".join(parts)
        return self._text

    def add(self, source: str, line: Line) -> None:
        """Take in one finished logical line of ``source``, which is viable."""
        if line.body is None:
            return
        indent = source[line.start : line.body]
        indent = indent[indent.rfind("\f") + 1 :]
        body = source[line.body : line.end].rstrip()
        match = _WORD.match(body)
        word = match.group() if match else ""
        self._enter(indent)
        level = self._levels[-1]
        self._open = line.colon is not None and word != "@"
        if word not in _COMPOUND:
            level.clauses = {"": "pass"}
        else:
            clause = source[line.body : line.colon] if line.colon is not None else body
            if word not in _CONTINUE and "@" not in level.clauses:
                level.clauses = {}
            level.clauses.pop(word, None)
            level.clauses[word] = clause
        self._text = None

    def _enter(self, indent: str) -> None:
        """Open the block of the last header, or close the blocks that this line's indentation ends."""
        if self._open:
            self._levels.append(_Level(indent))
            self._open = False
            return
        while len(self._levels) > 1 and self._levels[-1].indent != indent:
            self._levels.pop()
            _close(self._levels[-1])


def _close(level: _Level) -> None:
    """The suite of the level's last clause has ended."""
    word = next(reversed(level.clauses), "")
    if word not in _CHAINED:
        # def, class, with and match have no further clauses; what stands in a match must be a case
        level.clauses = {word: "case _:"} if word == "case" else {"": "pass"}


class PythonSession(Session):
    """Follows a growing Python program; one step costs what its open statement costs."""

    def __init__(self, checker: Checker, text: str = "") -> None:
        self._context = Context()
        self._start = 0  # of the logical line that is still open
        self._trusted = True  # the short context has not been wrong
        super().__init__(checker, text)

    def append(self, text: str) -> bool:
        """See :class:`Session`."""
        known = len(self.text)
        self.text += text
        if self.position is not None:
            return False
        if text and not self._viable(self.text):
            self._locate(known)
            return False
        self._commit()
        return True

    def probe(self, text: str) -> bool:
        """See :class:`Session`."""
        return self.position is None and (not text or self._viable(self.text + text))

    def _viable(self, text: str) -> bool:
        if self._trusted and viable(self._context.text + text[self._start :]):
            return True
        return self.checker.viable(text)

    def _commit(self) -> None:
        if "\n" not in self.text[self._start :] and "\r" not in self.text[self._start :]:
            return
        found = scan(self.text, self._start)
        for line in found.lines:
            self._context.add(self.text, line)
        self._start = found.start


def first_failing_line(program: str) -> tuple[int, int]:
    """Lengths ``(low, high)``: up to ``low`` all is viable, ``high`` ends the logical line that is not.

    In time linear in the program, on the short contexts; the caller confirms both.
    """
    found = scan(program)
    context = Context()
    for line in found.lines:
        if line.body is not None and not viable(context.text + program[line.start : line.end]):
            return line.start, line.end
        context.add(program, line)
    return found.start, len(program)
