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
_CLOSING, _DEEP = 3, 4  # columns: what a closing fence may be further in; from where on text is code to CommonMark
_ITEM = re.compile(r"(?:[-*+]|[0-9]{1,9}[.)])(?:\s|$)")
_QUOTES, _LITERAL = "\"'", 200  # how far on its line the quotes around a tag are looked for
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
       ``</think>`` that nothing opened (chat templates open it in the prompt). A tag that touches a quote inside a
       string on one line, as in ``text.split("</think>")``, is text like any other.
    2. ``language="text"``: all that is left, without surrounding white space.
    3. With fenced blocks (three or more backticks or tildes on a line): the insides of the blocks whose tag names the
       language (with or without a version: ``python3.11``) or is empty, or of all blocks where there is none such.
       Behind a block that has the tag, those without are its output and not code. A block tagged ``markdown`` stands
       for the blocks inside it. The lines of the fences do not count; the line break that ends the last line of code
       does. Lines inside lose as much indentation as the opening fence has, where they have it (CommonMark 0.31, 4.5),
       so that code in a list is code. A closing fence is at most 3 columns further in than its opening; an opening one
       that is indented by 4 or more counts in a list or as the first line only: others stand in docstrings. Behind
       prose an opening fence counts where it has a known tag and is closed (``Here: ```python``). An unclosed block
       otherwise reaches to the end. Fences with nothing between them mean an empty program, not bare code.
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
    chosen = _chosen(_unwrapped(visible, blocks), _canonical(language))
    removed = _united([*thoughts, *(span for block in chosen for span in _indentation(visible, block))])
    return tuple(span for block in chosen for span in _subtract((block.start, block.end), removed, text))


def _chosen(blocks: list[_Block], wanted: str) -> list[_Block]:
    """Blocks of the language or without a tag, of these none behind the first that has it; all where none is such."""
    tagged = [_canonical(block.tag) == wanted for block in blocks]
    first = tagged.index(True) if any(tagged) else len(blocks)
    return [block for place, block in enumerate(blocks) if tagged[place] or (not block.tag and place < first)] or blocks


def _unwrapped(text: str, blocks: list[_Block]) -> list[_Block]:
    """The blocks, those tagged ``markdown`` replaced by the blocks inside them, where there are any."""
    found: list[_Block] = []
    for block in blocks:
        inner = _fenced_blocks(text[block.start : block.end]) if block.tag in ("markdown", "md") else None
        found += [one._replace(start=block.start + one.start, end=block.start + one.end) for one in inner or ()] or [
            block
        ]
    return found


def _canonical(tag: str) -> str:
    """The language that a tag names, with or without a version (``Python3.11``, ``c++17``); the tag where none."""
    word = tag.lower()
    return _LANGUAGE_OF.get(word) or _LANGUAGE_OF.get(word.rstrip("0123456789."), word)


def _thinking(text: str) -> list[CharSpan]:
    """Ranges of thinking text, tags included, ascending and disjoint."""
    found: list[CharSpan] = []
    opened: int | None = None
    first = True
    for match in _THINK.finditer(text):
        if _quoted(text, *match.span()):
            continue
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


def _quoted(text: str, start: int, end: int) -> bool:
    """Whether a tag stands beside a quote inside a string on one line: a program that handles tags."""
    around = text[max(start - 1, 0) : start] + text[end : end + 1]
    if not any(quote in around for quote in _QUOTES):
        return False
    before = text[max(start - _LITERAL, 0) : start].rpartition("\n")[2]
    after = text[end : end + _LITERAL].partition("\n")[0]
    return any(quote in around and before.count(quote) % 2 == 1 and quote in after for quote in _QUOTES)


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
    blocks, unclosed = _parsed(text, len(text))
    if unclosed is not None and unclosed.inline:  # prose that only looked like an opening
        blocks, unclosed = _parsed(text, unclosed.position)
    if unclosed is not None and unclosed.block.start <= len(text):
        blocks.append(unclosed.block)
    elif unclosed is None and not blocks:
        return None
    return [block for block in blocks if block.start < block.end]


class _Opening(NamedTuple):
    fence: str
    column: int  # of the fence, or of the line's text where the fence stands behind it
    block: _Block  # up to the end of the text
    position: int  # of the line
    inline: bool


def _parsed(text: str, inline_before: int) -> tuple[list[_Block], _Opening | None]:
    """The closed blocks and the opening that nothing closes; openings behind prose count up to ``inline_before``."""
    blocks: list[_Block] = []
    opening: _Opening | None = None
    lists = _Lists()
    position = 0
    for line in text.split("\n"):
        following = position + len(line) + 1
        stripped = line.strip()
        indent = len(line) - len(line.lstrip(" \t"))
        column = len(line[:indent].expandtabs(4))
        if opening is None:
            inside = lists.hold(stripped, column)
            found = _opened(stripped, position < inline_before) if inside else None
            if found is not None:
                fence, tag, inline = found
                opening = _Opening(fence, column, _Block(tag, indent, following, len(text)), position, inline)
        elif column <= opening.column + _CLOSING:
            fence = _fence_of(stripped)
            if fence and fence == stripped and fence.startswith(opening.fence):
                blocks.append(opening.block._replace(end=position))
                opening = None
        position = following
    return blocks, opening


class _Lists:
    """Which lines may open a block: those indented by 4 or more only in a list, or as the first line of all."""

    def __init__(self) -> None:
        self._above: list[tuple[int, bool]] = []  # column, and whether it is an item of a list that is no code itself

    def hold(self, stripped: str, column: int) -> bool:
        """Take in a line outside of blocks; whether a fence on it counts."""
        if not stripped:
            return False
        first = not self._above
        while len(self._above) > 1 and self._above[-1][0] >= column:
            self._above.pop()
        inside = not first and self._above[-1][0] < column and self._above[-1][1]
        counts = column < _DEEP or inside
        self._above.append((column, counts and _ITEM.match(stripped) is not None))
        return counts or first


def _opened(stripped: str, inline: bool) -> tuple[str, str, bool] | None:
    """Fence, tag and whether prose stands before it, where the line opens a block."""
    fence = _fence_of(stripped)
    info = stripped[len(fence) :]
    if fence and "`" not in info:
        return fence, _tag(info), False
    prose, mark, rest = stripped.partition("```")
    tag = rest.lstrip("`").strip()
    if not (inline and prose and mark) or "`" in prose or _canonical(tag) not in _ALIASES:
        return None
    return mark + rest[: len(rest) - len(rest.lstrip("`"))], tag.lower(), True


def _fence_of(line: str) -> str:
    """The run of three or more backticks or tildes a line starts with, or ``""``."""
    if not line.startswith(("```", "~~~")):
        return ""
    return line[: len(line) - len(line.lstrip(line[0]))]


def _tag(info: str) -> str:
    """The language word of a fence's info string: the first word, without the braces of ``{.python}``."""
    words = info.split()
    return words[0].strip("{}.,:").lower() if words else ""
