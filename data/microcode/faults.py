"""Realistic single faults put into correct Python programs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lightning_dterm.data.microcode.spec import Draw

FAULT_KINDS = ("wrong_operator", "off_by_one", "wrong_variable", "missing_return", "wrong_branch", "syntax_slip")

_SWAPS = {
    "+=": ("-=",),
    "-=": ("+=",),
    "*=": ("+=",),
    "//": ("%",),
    "%": ("//",),
    "==": ("!=",),
    "!=": ("==",),
    "<": (">",),
    ">": ("<",),
    "<=": (">=",),
    ">=": ("<=",),
    "+": ("-",),
    "-": ("+",),
    "*": ("+",),
    "and": ("or",),
    "or": ("and",),
}
_OPERATOR = re.compile(r"(?<= )(\+=|-=|\*=|//|%|==|!=|<=|>=|<|>|\+|-|\*|and|or)(?= )")
_EDGE = re.compile(r"(?<= )(<=|>=|<|>)(?= )")
_EDGE_SWAP = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_BOUND = re.compile(
    r"(?<=[<>] )\d+|(?<=<= )\d+|(?<=>= )\d+|(?<=\[:)\d+|(?<= = )[01]$|(?<=range\()1|(?<=\[)\d+(?=:\])", re.MULTILINE
)
_WORD = re.compile(r"[A-Za-z_]\w*")
_TARGET = re.compile(r"\b(?:for (\w+)(?:, (\w+))? in)|^ +(\w+) = ", re.MULTILINE)
_RETURN = re.compile(r"^( +)return ", re.MULTILINE)
_IF = re.compile(r"(?<= )if (?!not )")
_TERNARY = re.compile(
    r"(?P<open>return \[?)(?P<yes>.+?) if (?P<test>.+?) else (?P<no>.+?)(?P<close> for .*)?$", re.MULTILINE
)
_SLIP = re.compile(r":$|[)\]](?=:?$)|\"|(?<=\w)\(", re.MULTILINE)


def _replace(source: str, match: re.Match[str], text: str) -> str:
    return source[: match.start()] + text + source[match.end() :]


def _wrong_operator(source: str, draw: Draw) -> Iterator[str]:
    for match in draw.shuffled(list(_OPERATOR.finditer(source))):
        yield _replace(source, match, draw.pick(_SWAPS[match.group()]))


def _off_by_one(source: str, draw: Draw) -> Iterator[str]:
    edits = [(match, _EDGE_SWAP[match.group()]) for match in _EDGE.finditer(source)]
    for match in _BOUND.finditer(source):
        number = int(match.group())
        edits.append((match, str(number + 1)))
        if number:
            edits.append((match, str(number - 1)))
    edits.extend((match, ")") for match in re.finditer(r"(?<=\w) \+ 1\)(?=:| if|\)|\])", source))
    edits.extend((match, f"{match.group()[:-1]} - 1)") for match in re.finditer(r"len\(\w+\)(?=\))", source))
    for match, text in draw.shuffled(edits):
        yield _replace(source, match, text)


def _wrong_variable(source: str, draw: Draw) -> Iterator[str]:
    names = {name for groups in _TARGET.findall(source) for name in groups if name}
    for definition in re.findall(r"^def \w+\((.*)\):$", source, re.MULTILINE):
        names.update(definition.split(", "))
    if len(names) < 2:
        return
    ordered = sorted(names)
    uses: list[re.Match[str]] = []
    for match in _WORD.finditer(source):
        line_start = source.rfind("\n", 0, match.start()) + 1
        before = source[line_start : match.start()]
        after = source[match.end() : match.end() + 3]
        target = before.strip() == "" or after.startswith(("(", ".", "[")) or before.startswith("def ")
        # Loop headers stay, so that no loop runs over a list that its own body extends.
        if match.group() in names and not target and not before.endswith(("for ", "in ", ", ", ".", '"', "while ")):
            uses.append(match)
    for match in draw.shuffled(uses):
        other = draw.pick([name for name in ordered if name != match.group()])
        yield _replace(source, match, other)


def _missing_return(source: str, draw: Draw) -> Iterator[str]:
    for match in draw.shuffled(list(_RETURN.finditer(source))):
        end = source.find("\n", match.end())
        line_start = source.rfind("\n", 0, match.start()) + 1
        previous = source[:line_start].rstrip("\n").rsplit("\n", 1)[-1]
        alone = previous.endswith(":")
        plain = source[match.end() : end].isidentifier()
        if not alone and (plain or draw.chance(0.5)):
            yield source[:line_start] + source[end + 1 :]
        else:
            yield source[: match.start()] + match.group(1) + source[match.end() :]


def _wrong_branch(source: str, draw: Draw) -> Iterator[str]:
    edits: list[str] = []
    for match in _TERNARY.finditer(source):
        parts = match.groupdict()
        close = parts["close"] or ""
        edits.append(
            _replace(source, match, f"{parts['open']}{parts['no']} if {parts['test']} else {parts['yes']}{close}")
        )
    if not edits:
        edits.extend(_replace(source, match, "if not ") for match in _IF.finditer(source))
        edits.extend(_replace(source, match, "if ") for match in re.finditer(r"(?<= )if not ", source))
    if "return True" in source and "return False" in source:
        swapped = source.replace("return True", "return ?").replace("return False", "return True")
        edits.append(swapped.replace("return ?", "return False"))
    yield from draw.shuffled(edits)


def _syntax_slip(source: str, draw: Draw) -> Iterator[str]:
    for match in draw.shuffled(list(_SLIP.finditer(source))):
        yield _replace(source, match, "")


_MAKERS = {
    "wrong_operator": _wrong_operator,
    "off_by_one": _off_by_one,
    "wrong_variable": _wrong_variable,
    "missing_return": _missing_return,
    "wrong_branch": _wrong_branch,
    "syntax_slip": _syntax_slip,
}


def faults(source: str, draw: Draw) -> Iterator[tuple[str, str]]:
    """Pairs of fault kind and faulty program, in random order of kinds; each program has exactly one fault.

    Whether a fault changes behaviour is for the caller to check.
    """
    for kind in draw.shuffled(FAULT_KINDS):
        for faulty in _MAKERS[kind](source, draw):
            if faulty != source:
                yield kind, faulty
