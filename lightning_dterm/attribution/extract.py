"""Which characters of a completion are code: fenced blocks, bare code, thinking text removed."""

from __future__ import annotations

import ast
import re
import warnings
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
_DEEP = 4  # columns: an opening fence that far in, or a closing one that much further in, may stand in a docstring
_LITERAL = 200  # characters: how far on its line the quotes around a tag are looked for
_OPENING_QUOTE = re.compile(r"""(?<![\w)\]}"'])[bfruBFRU]{0,2}$""")  # what stands before a quote that opens a string
_TRIPLE = re.compile(r"'''|\"\"\"")
_CLOSING_TAGS = re.compile(r"(?:\s*</[A-Za-z][\w-]{0,40}>)*")
_MARKDOWN = ("markdown", "md")
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
       string on one line, as in ``text.split("</think>")``, is text like any other; in a thought, one between quotes.
    2. ``language="text"``: all that is left, without surrounding white space.
    3. With fenced blocks (three or more backticks or tildes on a line): the insides of the blocks whose tag names the
       language (with or without a version: ``python3.11``) or is empty, or of all blocks where there is none such.
       Behind a block that has the tag, those without are its output and not code, but for those that parse as Python
       and define something (or import it), where that is the language. A block tagged ``markdown`` stands for the
       blocks inside it. The lines of the fences do not count; the line break that ends the last line of code does.
       Lines inside lose as much indentation as the opening fence has, where they have it (CommonMark 0.31, 4.5), so
       that code in a list is code. An opening fence 4 or more columns in, or a closing one that much further in than
       its opening, counts outside of strings in triple quotes only: those inside stand in docstrings. Behind prose an
       opening fence counts where it has a known tag and is closed (``Here: ```python``); behind a closing one there may
       be closing tags (``</answer>``). An unclosed block otherwise reaches to the end. Fences with nothing between them
       mean an empty program, not bare code.
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
    chosen = _chosen(visible, _unwrapped(visible, blocks), _canonical(language))
    removed = _united([*thoughts, *(span for block in chosen for span in _indentation(visible, block))])
    return tuple(span for block in chosen for span in _subtract((block.start, block.end), removed, text))


def _chosen(text: str, blocks: list[_Block], wanted: str) -> list[_Block]:
    """Blocks of the language or without a tag, of these only definitions behind the first that has it; else all."""
    found: list[_Block] = []
    tagged = False
    for block in blocks:
        if _canonical(block.tag) == wanted:
            tagged = True
            found.append(block)
        elif not block.tag and (not tagged or (wanted == "python" and _defines(text, block))):
            found.append(block)
    return found or blocks


def _defines(text: str, block: _Block) -> bool:
    """Whether a block is Python that defines or imports a name; neither output nor a call that shows some."""
    spans = _subtract((block.start, block.end), _indentation(text, block), text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that Python does not know
        try:
            tree = ast.parse("".join(text[low:high] for low, high in spans))
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError, SystemError):
            return False
    names = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign)
    # ``Sum: 5`` is an annotation to Python.
    return any(isinstance(one, names) or (isinstance(one, ast.AnnAssign) and one.value) for one in tree.body)


def _unwrapped(text: str, blocks: list[_Block]) -> list[_Block]:
    """The blocks, those tagged ``markdown`` replaced by the blocks inside them, where there are any."""
    found: list[_Block] = []
    for block in blocks:
        inner = _fenced_blocks(text[block.start : block.end]) if block.tag in _MARKDOWN else None
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
        if _quoted(text, *match.span(), thought=opened is not None):
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


def _quoted(text: str, start: int, end: int, thought: bool) -> bool:
    """Whether a tag touches a quote inside a string on one line: a program that handles tags, not a quoting thought."""
    before = text[max(start - _LITERAL, 0) : start].rpartition("\n")[2]
    after = text[end : end + _LITERAL].partition("\n")[0]
    for quote in "\"'":
        touching = before.endswith(quote) + after.startswith(quote)
        inside = touching > thought and before.count(quote) % 2 == 1 and quote in after
        if inside and _OPENING_QUOTE.search(before.rpartition(quote)[0]):
            return True
    return False


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
    quote = ""  # of the string in triple quotes that is open, since the last fence
    position = 0
    for line in text.split("\n"):
        following = position + len(line) + 1
        stripped = line.strip()
        indent = len(line) - len(line.lstrip(" \t"))
        column = len(line[:indent].expandtabs(4))
        was_open = opening is not None
        if opening is None:
            found = _opened(stripped, position < inline_before) if column < _DEEP or not quote else None
            if found is not None:
                fence, tag, inline = found
                opening = _Opening(fence, column, _Block(tag, indent, following, len(text)), position, inline)
        elif _closes(stripped, opening.fence) and (
            column < opening.column + _DEEP or not (quote or opening.block.tag in _MARKDOWN)
        ):
            blocks.append(opening.block._replace(end=position))
            opening = None
        quote = _string_left(line, quote) if was_open == (opening is not None) else ""
        position = following
    return blocks, opening


def _string_left(line: str, quote: str) -> str:
    """The triple quote of the string that is open behind the line; ``quote`` is that before it."""
    for match in _TRIPLE.finditer(line):
        quote = match.group() if not quote else "" if match.group() == quote else quote
    return quote


def _closes(stripped: str, opening: str) -> bool:
    """Whether a line is a fence at least as long as the opening one, with nothing behind but closing tags."""
    fence = _fence_of(stripped)
    return fence.startswith(opening) and _CLOSING_TAGS.fullmatch(stripped, len(fence)) is not None


def _opened(stripped: str, inline: bool) -> tuple[str, str, bool] | None:
    """Fence, tag and whether prose stands before it, where the line opens a block."""
    fence = _fence_of(stripped)
    info = stripped[len(fence) :]
    if fence and "`" not in info:
        return fence, _tag(info), False
    prose, mark, rest = stripped.partition("```")
    tag = rest.lstrip("`").strip()
    if not (inline and prose and mark) or prose.count("`") % 2 or _canonical(tag) not in _ALIASES:
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
