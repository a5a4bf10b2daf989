"""Which characters of a completion are code: fenced blocks, bare code, thinking text removed."""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple

_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"
_THINK = re.compile(r"<think>|</think>")
_ALIASES: dict[str, frozenset[str]] = {
    "python": frozenset({"python", "py", "python3", "py3"}),
    "csharp": frozenset({"csharp", "c#", "cs", "c-sharp", "c_sharp"}),
    "javascript": frozenset({"javascript", "js", "node", "mjs", "jsx"}),
    "cpp": frozenset({"cpp", "c++", "cc", "cxx"}),
    "c": frozenset({"c", "h"}),
    "java": frozenset({"java"}),
    "go": frozenset({"go", "golang"}),
    "php": frozenset({"php"}),
}
_LANGUAGE_OF = {tag: language for language, tags in _ALIASES.items() for tag in tags}

CharSpan = tuple[int, int]


class _Block(NamedTuple):
    tag: str
    indent: int
    start: int
    end: int


def extract_code(text: str, language: str) -> tuple[CharSpan, ...]:
    r"""Find the characters of a completion that are code.

    1. Thinking is never code: ``<think>...</think>``, an unclosed ``<think>`` up to the end, and everything before a
       ``</think>`` that nothing opened (chat templates open it in the prompt).
    2. ``language="text"``: all that is left, without surrounding white space.
    3. With fenced blocks (three or more backticks or tildes on a line, indented or not): the insides of the blocks
       whose tag names the language or is empty, or of all blocks where there is none such. The lines of the fences do
       not count; the line break that ends the last line of code does. Lines inside lose as much indentation as the
       opening fence has, where they have it (CommonMark 0.31, 4.5), so that code in a list is code. An unclosed block
       reaches to the end. Fences with nothing between them mean an empty program, not bare code.
    4. Without a fence: the whole text.

    Args:
        text: The decoded completion.
        language: Language of the task (``python``, ``csharp``, ..., or ``text`` for prose).

    Returns:
        Half-open character ranges of ``text``, ascending, disjoint, none empty; ``()`` where only white space is left.
    """
    thoughts = _thinking(text)
    visible = _blank(text, thoughts)
    if language == "text":
        stripped = visible.strip()
        start = len(visible) - len(visible.lstrip())
        return _subtract((start, start + len(stripped)), thoughts, text)
    blocks = _fenced_blocks(visible)
    if blocks is None:
        return _subtract((0, len(text)), thoughts, text)
    wanted = _canonical(language)
    chosen = [block for block in blocks if not block.tag or _canonical(block.tag) == wanted] or blocks
    removed = _united([*thoughts, *(span for block in chosen for span in _indentation(visible, block))])
    return tuple(span for block in chosen for span in _subtract((block.start, block.end), removed, text))


def _canonical(tag: str) -> str:
    return _LANGUAGE_OF.get(tag.lower(), tag.lower())


def _thinking(text: str) -> list[CharSpan]:
    """Ranges of thinking text, tags included, ascending and disjoint."""
    found: list[CharSpan] = []
    opened: int | None = None
    first = True
    for match in _THINK.finditer(text):
        if match.group() == _THINK_OPEN:
            opened = match.start() if opened is None else opened
        elif opened is not None:
            found.append((opened, match.end()))
            opened = None
        elif first:
            found.append((0, match.end()))
        first = False
    if opened is not None:
        found.append((opened, len(text)))
    return found


def _blank(text: str, ranges: list[CharSpan]) -> str:
    """``text`` with the ranges overwritten by spaces, so that every other offset stays what it was."""
    pieces: list[str] = []
    position = 0
    for start, end in ranges:
        pieces += (text[position:start], " " * (end - start))
        position = end
    return "".join([*pieces, text[position:]])


def _indentation(text: str, block: _Block) -> list[CharSpan]:
    """The white space that the lines of an indented block share with its opening fence."""
    found: list[CharSpan] = []
    position = block.start
    while block.indent and position < block.end:
        stop = position
        while stop < min(position + block.indent, block.end) and text[stop] in " \t":
            stop += 1
        found.append((position, stop))
        position = text.find("\n", stop) + 1 or block.end
    return [span for span in found if span[0] < span[1]]


def _united(ranges: list[CharSpan]) -> list[CharSpan]:
    """Ascending disjoint ranges that cover the same characters."""
    found: list[CharSpan] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def _subtract(span: CharSpan, ranges: list[CharSpan], text: str) -> tuple[CharSpan, ...]:
    """What is left of ``span`` outside the ascending disjoint ranges; nothing at all where only white space is left."""
    left: list[CharSpan] = []
    position, end = span
    for low, high in ranges[max(bisect_right(ranges, (position, position)) - 1, 0) :]:
        if low >= end:
            break
        if position < low:
            left.append((position, low))
        position = max(position, high)
    if position < end:
        left.append((position, end))
    return tuple(left) if any(text[low:high].strip() for low, high in left) else ()


def _fenced_blocks(text: str) -> list[_Block] | None:
    """The fenced blocks (insides without the fence lines), or None where there is no fence at all."""
    blocks: list[_Block] = []
    opening: tuple[str, str, int, int] | None = None  # (fence, tag, indentation, offset of the first line inside)
    position = 0
    for line in text.split("\n"):
        following = position + len(line) + 1
        stripped = line.strip()
        fence = _fence_of(stripped)
        if opening is None:
            info = stripped[len(fence) :]
            if fence and "`" not in info:
                opening = (fence, _tag(info), len(line) - len(line.lstrip(" \t")), following)
        elif fence and fence == stripped and fence.startswith(opening[0]):
            blocks.append(_Block(*opening[1:], position))
            opening = None
        position = following
    if opening is not None and opening[3] <= len(text):
        blocks.append(_Block(*opening[1:], len(text)))
    elif opening is None and not blocks:
        return None
    return [block for block in blocks if block.start < block.end]


def _fence_of(line: str) -> str:
    """The run of three or more backticks or tildes a line starts with, or ``""``."""
    if not line.startswith(("```", "~~~")):
        return ""
    return line[: len(line) - len(line.lstrip(line[0]))]


def _tag(info: str) -> str:
    """The language word of a fence's info string: the first word, without the braces of ``{.python}``."""
    words = info.split()
    return words[0].strip("{}.,:").lower() if words else ""
