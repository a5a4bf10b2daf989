"""What a compiler says: diagnostics with 1-based positions and character spans, and the report on one program."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_dterm.types import Span

Severity = Literal["error", "warning", "note"]
ReportStatus = Literal["ok", "errors", "timeout", "memory", "output", "crash", "infra"]
_MAX_MESSAGE = 400
_SEVERITIES: dict[str, Severity] = {
    "error": "error", "fatal error": "error", "sorry, unimplemented": "error", "internal compiler error": "error",
    "ice": "error", "permerror": "error", "pedwarn": "warning", "warning": "warning", "note": "note", "info": "note",
    "anachronism": "warning",
}  # fmt: skip
# gcc, clang and gofmt: ``file:line:col:{ranges}: severity: message``; the ranges are clang's.
_TEXT = re.compile(
    r"^(?P<file>[^\n:]*):(?P<line>\d+)(?::(?P<column>\d+))?:(?P<ranges>(?:\{[\d:\-]+\})*:?)[ \t]*"
    r"(?:(?P<severity>fatal error|error|warning|note|internal compiler error|sorry, unimplemented):[ \t]*)?"
    r"(?P<text>.*)$",
    re.MULTILINE,
)
_RANGE = re.compile(r"\{(\d+):(\d+)-(\d+):(\d+)\}")


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One message of a compiler.

    Attributes:
        severity: ``error``, ``warning`` or ``note``.
        message: At most 400 characters; may quote the program, so it is untrusted text.
        line / column: 1-based start, columns count characters; None where the compiler names no place in the program.
        end_line / end_column: 1-based end, exclusive.
    """

    severity: Severity
    message: str
    line: int | None = None
    column: int | None = None
    end_line: int | None = None
    end_column: int | None = None

    def span(self, text: Text) -> Span | None:
        """Its character range in the program; None where it has no place."""
        if self.line is None or self.column is None:
            return None
        low = text.offset(self.line, self.column)
        high = low if self.end_line is None or self.end_column is None else text.offset(self.end_line, self.end_column)
        low = min(low, max(len(text.source) - 1, 0))
        return Span(low, max(high, min(low + 1, len(text.source))))


@dataclass(frozen=True, slots=True)
class Report:
    """What compiling one program gave.

    Attributes:
        language: Canonical name.
        compiler: Who said it: ``gcc 12.2.0``, ``javac 17.0.15 (parse)``, ...
        status: ``ok``, ``errors``, or why the compiler gave up: ``timeout``, ``memory``, ``output``, ``crash``
            (all three blamed on the program), ``infra`` (our fault: mask it, never score it).
        diagnostics: In order, duplicates removed.
        cpu_s: CPU seconds of the compiler.
        artifact: What :meth:`Compilers.build` made; None after a mere check or without success.
        cached: The answer came from the cache.
        reason: Why, for a status that diagnostics do not explain.
    """

    language: str
    compiler: str
    status: ReportStatus
    diagnostics: tuple[Diagnostic, ...] = ()
    cpu_s: float = 0.0
    artifact: bytes | None = None
    cached: bool = False
    reason: str = ""

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """The diagnostics that are errors; warnings and notes are not."""
        return tuple(found for found in self.diagnostics if found.severity == "error")

    def count(self, cap: int) -> int:
        """Number of errors, at most ``cap``; ``cap`` itself where the program made the compiler give up."""
        if self.status in ("ok", "errors"):
            return min(max(len(self.errors), int(self.status == "errors")), cap)
        return cap


class Text:
    r"""A program with its line table; lines end at ``\n``, ``\r\n`` or ``\r``."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.starts = [0]
        for match in re.finditer(r"\r\n?|\n", source):
            self.starts.append(match.end())

    def offset(self, line: int, column: int) -> int:
        """Character offset of a 1-based position, clipped to the program."""
        if line > len(self.starts):
            return len(self.source)
        return min(self.starts[max(line, 1) - 1] + max(column, 1) - 1, len(self.source))

    def position(self, offset: int) -> tuple[int, int]:
        """1-based (line, column) of a character offset."""
        offset = min(max(offset, 0), len(self.source))
        low, high = 0, len(self.starts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.starts[middle] <= offset else (low, middle)
        return low + 1, offset - self.starts[low] + 1

    def line(self, number: int) -> str:
        """The text of a 1-based line, its line end included."""
        high = self.starts[number] if number < len(self.starts) else len(self.source)
        return self.source[self.starts[number - 1] : high]

    def from_bytes(self, line: int, column: int) -> int | None:
        """Character column of a 1-based UTF-8 byte column; None outside the program."""
        if not 1 <= line <= len(self.starts):
            return None
        encoded = self.line(line).encode("utf-8", "replace")
        return len(encoded[: max(column, 1) - 1].decode("utf-8", "ignore")) + 1

    def from_utf16(self, line: int, column: int) -> int | None:
        """Character column of a 1-based UTF-16 column; None outside the program."""
        if not 1 <= line <= len(self.starts):
            return None
        encoded = self.line(line).encode("utf-16-le", "replace")
        return len(encoded[: 2 * (max(column, 1) - 1)].decode("utf-16-le", "ignore")) + 1


def utf16_offset(source: str, units: int) -> int:
    """Character offset of an offset in UTF-16 units."""
    if source.isascii():
        return min(units, len(source))
    return len(source.encode("utf-16-le", "replace")[: 2 * units].decode("utf-16-le", "ignore"))


def distinct(found: Sequence[Diagnostic], limit: int = 200, moved: bool = False) -> tuple[Diagnostic, ...]:
    """Repeated diagnostics removed, at most ``limit`` kept, errors before anything else if it must be cut.

    Args:
        found: In order.
        limit: Most to keep.
        moved: The program moved its own lines (:func:`moves_lines`): the places are its own word and blame no line, and
            what looks repeated need not be.
    """
    kept = [Diagnostic(one.severity, one.message) for one in found] if moved else list(dict.fromkeys(found))
    if len(kept) > limit:
        kept = [one for one in kept if one.severity == "error"][:limit]
    return tuple(kept)


_SPLICE = re.compile(r"\\[ \t]*(?:\r\n?|\n)")
_BLANKS = r"[ \t\f\v\0\xa0\ufeff]*"  # compilers skip zeros and byte order marks, too
_MOVES_LINES = {
    "c": re.compile(rf"(?:^|\*/){_BLANKS}(?:#|%:|\?\?=)[\s\0]*(?:line\b|\d|/\*|//)", re.MULTILINE),
    "csharp": re.compile(rf"(?:^|[\x85\u2028\u2029]){_BLANKS}#{_BLANKS}line\b", re.MULTILINE),
    "go": re.compile(r"//line |/\*line "),
}
_MOVES_LINES["cpp"] = _MOVES_LINES["c"]


def moves_lines(language: str, source: str) -> bool:
    """Whether a program may tell its compiler that its lines are others (``#line``); errs on the side of yes.

    What a compiler then says of places is the program's own word, names of files included, which may imitate any part
    of a diagnostic: its errors count, but blame no line.
    """
    pattern = _MOVES_LINES.get(language)
    if pattern is None:
        return False
    plain = source.replace("\r\n", "\n").replace("\r", "\n")
    return pattern.search(_SPLICE.sub("", plain) if language in ("c", "cpp") else plain) is not None


def parse_gcc_json(output: str, text: Text, name: str) -> list[Diagnostic] | None:
    """Diagnostics of ``gcc -fdiagnostics-format=json``; None where there is no such line.

    Args:
        output: Standard error.
        text: The program.
        name: The file name it was compiled under. Errors inside headers get no place: the notes name candidates, not
            the line that is to blame.
    """
    for line in output.splitlines():
        if line.startswith("["):
            try:
                entries = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entries, list):
                return [_from_gcc(entry, text, name) for entry in entries if isinstance(entry, dict)]
    return None


def _from_gcc(entry: dict[str, Any], text: Text, name: str) -> Diagnostic:
    severity = _SEVERITIES.get(str(entry.get("kind")), "note")
    message = str(entry.get("message", ""))[:_MAX_MESSAGE]
    for place in entry.get("locations", ()):
        low = place.get("start", place.get("caret", {}))
        high = place.get("finish", place.get("caret", {}))
        if low.get("file") != name or high.get("file") != name:
            continue
        column = text.from_bytes(low["line"], low.get("byte-column", low["column"]))
        end = text.from_bytes(high["line"], high.get("byte-column", high["column"]) + 1)
        if column is not None and end is not None:
            return Diagnostic(severity, message, low["line"], column, high["line"], end)
    return Diagnostic(severity, message)


def parse_text(output: str, text: Text, name: str, default: Severity = "error") -> list[Diagnostic]:
    """Diagnostics of the form ``file:line:column: severity: message`` (gcc, clang, as, ld, gofmt), bytes as columns."""
    found = []
    for match in _TEXT.finditer(output):
        if match["severity"] is None and match["file"] != name:
            continue
        severity = _SEVERITIES.get(match["severity"] or "", default)
        line = int(match["line"])
        column = text.from_bytes(line, int(match["column"] or 1))
        if match["file"] != name or column is None:
            found.append(Diagnostic(severity, match["text"][:_MAX_MESSAGE]))
            continue
        end_line, end = line, column + 1
        if ranges := _RANGE.search(match["ranges"] or ""):
            last = int(ranges[3]), int(ranges[4])
            end_line, end = last[0], text.from_bytes(*last) or end
            if (end_line, end) <= (line, column):
                end_line, end = line, column + 1
        if match["column"] is None:
            column, end = 1, max(2, len(text.line(line).rstrip()) + 1)
        found.append(Diagnostic(severity, match["text"][:_MAX_MESSAGE], line, column, end_line, end))
    return found
