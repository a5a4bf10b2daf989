r"""Can this text still become a Python program? Asked of CPython itself.

``compile(prefix + " \\\n", ..., PyCF_ONLY_AST | PyCF_ALLOW_INCOMPLETE_INPUT | PyCF_DONT_IMPLY_DEDENT)`` succeeds or
says "incomplete input" exactly where CPython's parser took every lexeme and asked for one more. What that cannot see,
the unfinished lexeme at the end, is replaced: an open string by an empty one of its kind, a comment by nothing, a name
by each keyword that begins with it, an operator by each longer one, a number by another.

That is CPython's behaviour (3.10 to 3.13) and no promise of the language, so it is tested once on first use.

Nothing is executed and no bytecode is made. What hostile text can do to the parser is bounded: the text's length, the
digits of a number; nesting by CPython's own limits (parentheses 200, indentation 100, parser stack), which are errors
here as they are for ``python program.py``.
"""

from __future__ import annotations

import ast
import keyword
import re
import sys
import warnings
from functools import lru_cache

from lightning_dterm.syntax.base import Checker, Session, Verdict
from lightning_dterm.syntax.scan import OPERATORS, Scan, lexeme_end, scan

_ALLOW_INCOMPLETE_INPUT, _DONT_IMPLY_DEDENT = 0x4000, 0x200  # codeop's PyCF_* constants; the first is not exported
_GRAMMAR = ast.PyCF_ONLY_AST
_FLAGS = _GRAMMAR | _ALLOW_INCOMPLETE_INPUT | _DONT_IMPLY_DEDENT
_WORDS = tuple(sorted({*keyword.kwlist, *keyword.softkwlist}))
_STRING_PREFIXES = frozenset({"r", "b", "u", "f", "br", "rb", "fr", "rf"})
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")  # CPython refuses both, wherever they stand
_DIGITS = re.compile("[0-9][0-9_]{4300}")  # reading an integer takes time quadratic in its digits
_FINISHED = frozenset("()[]{},;~")  # operators that begin no longer one
MAX_CHARS = 200_000


class SyntaxSelfTestError(RuntimeError):
    """This Python does not parse unfinished input the way the flags need."""


def parse(source: str, flags: int) -> str | None:
    """CPython's complaint about ``source``, or None. Nothing is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as "invalid escape sequence"
            compile(source, "<completion>", "exec", flags, dont_inherit=True)
    except SyntaxError as error:
        return str(error.msg)
    except (ValueError, MemoryError, RecursionError, OverflowError, SystemError) as error:
        return f"{type(error).__name__}: {error}"  # too deep for CPython, or no text at all
    return None


def _goes_on(source: str) -> bool:
    complaint = parse(source, _FLAGS)
    return complaint is None or complaint == "incomplete input"


def viable(prefix: str, found: Scan | None = None) -> bool:
    """Whether some Python program starts with ``prefix``.

    Never False for a prefix of a program (measured: no false alarm, see ``benchmarks/results/syntax.json``). True for
    some text that is not: what stands in an unfinished string or number is judged when it ends.

    Args:
        prefix: Any text. More than :data:`MAX_CHARS` characters are not viable.
        found: Its scan, where there is one already.
    """
    if len(prefix) > MAX_CHARS or _IMPOSSIBLE.search(prefix):
        return False
    found = scan(prefix) if found is None else found
    if found.broken is not None:
        return False
    if not _LIMITS_DIGITS and _DIGITS.search(prefix):
        return False
    if found.fresh or found.kind == "comment":
        cut = found.start if found.fresh or not prefix[found.start : found.last].strip() else found.last
        return _goes_on(prefix[:cut] + "\n" if cut else "")
    if found.open_string:
        return _goes_on(_empty_string(prefix, found.last) + " \\\n")
    if found.kind == "join":
        return _goes_on(prefix[: found.last] + " \\\n")
    if _goes_on(prefix + " \\\n"):
        return True
    head = prefix[: found.last]
    return any(_goes_on(f"{head}{other} \\\n") for other in _continuations(found.kind, prefix[found.last :]))


def _continuations(kind: str, lexeme: str) -> list[str]:
    """One lexeme of each class that ``lexeme``, at the end of the text, may yet become."""
    if kind == "name":
        others = [word for word in _WORDS if word.startswith(lexeme) and word != lexeme]
        if keyword.iskeyword(lexeme):
            others.append(lexeme + "_")
        if lexeme == "_":  # alone it is no name to capture: "case {**_" may become "{**_x"
            others.append("_x")
        if lexeme.lower() in _STRING_PREFIXES:
            others.append(lexeme + "''")
        return others
    if kind == "number":
        one = ".1" if lexeme[0] == "." else "1"  # "1" after a keyword would be a name
        return [one, one + "j"]  # a pattern takes 1+2j, not 1+2
    if kind == "operator" and lexeme not in _FINISHED:
        others = [operator for operator in OPERATORS if operator.startswith(lexeme) and operator not in (lexeme, "..")]
        return [*others, ".5", ".5j"] if lexeme == "." else others
    return []


_LIMITS_DIGITS = hasattr(sys, "get_int_max_str_digits")
_VIABLE = (
    "", "x", "x = ", "f(", "f(a,", "[1, 2", "if x", "if x:", "if x:\n", "if x:\n    y", "if x:\n    y\n", "lambda",
    "if x:\n  y\nel", "def f(a):\n    '''doc", "def f():\n\n  # note\n", "@d\n", "x = 'a", "x = f'{a", "x = 1 i",
    "x = 1_", "x = a n", "for i in range(3):\n  print(i)\n ", "try:\n  x\nexc", "while 1: \\\n", "class A", "x !",
    "match x:\n  c", "x = [a for", "async d", "with (a, b", "x = {1: 2, **", "import a.", "from . import (a",
    "if x:\n\ty\n", "x = (1 # note",
)  # fmt: skip
_NOT_VIABLE = (
    "x = )", "x x", "if x\n", "if :", "(]", "def f)", "x = = 1", "x = 'a\n", "if x:\ny", "  x = 1\n y", "1 +\n",
    "return x y", "try:\n  x\nelse ", "else ", "x = 5 5", "for x y", "def 1", "class A(:", "f(a b", "x = $",
    "import 5", "if x:\n    y\n  z",
)  # fmt: skip


@lru_cache(maxsize=1)
def self_test() -> None:
    """Check that this interpreter answers as the flags need, once a process.

    Raises:
        SyntaxSelfTestError: it does not; the message names the text.
    """
    wrong = [f"{text!r} should be viable" for text in _VIABLE if not viable(text)]
    wrong += [f"{text!r} should not be viable" for text in _NOT_VIABLE if viable(text)]
    if wrong:
        raise SyntaxSelfTestError(
            f"Python {sys.version.split()[0]} judges unfinished programs differently from CPython 3.10 to 3.13: "
            f"{wrong[0]}. Leave the syntax component out, or use one of those versions."
        )


class PythonChecker(Checker):
    """Python by CPython's own parser; :func:`self_test` runs on construction.

    Raises:
        SyntaxSelfTestError: see :func:`self_test`.
    """

    language = "python"
    method = "cpython"

    def __init__(self) -> None:
        self_test()

    def viable(self, prefix: str) -> bool:
        """See :func:`viable`."""
        return viable(prefix)

    def complete(self, program: str) -> bool:
        """Whether CPython parses it."""
        return self._complaint(program) is None

    def check(self, program: str) -> Verdict:
        """One parse where all is well; otherwise line by line up to the first that cannot be continued."""
        from lightning_dterm.syntax.incremental import first_failing_line

        complaint = self._complaint(program)
        if complaint is None:
            return Verdict("ok", len(program))
        if len(program) > MAX_CHARS and viable(program[:MAX_CHARS]):
            return Verdict("error", MAX_CHARS + 1, (MAX_CHARS, MAX_CHARS + 1), complaint)
        program = program[:MAX_CHARS]
        if viable(program):
            return Verdict("unfinished", len(program), last_lexeme(program), complaint)
        low, high = first_failing_line(program)
        if not (viable(program[:low]) and not viable(program[:high])):
            low, high = 0, len(program)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if viable(program[:middle]) else (low, middle)
        return Verdict("error", high, offending_lexeme(program, high), complaint)

    def session(self, text: str = "") -> Session:
        """A session whose steps cost what the open statement costs, not what the program does."""
        from lightning_dterm.syntax.incremental import PythonSession

        return PythonSession(self, text)

    @staticmethod
    def _complaint(program: str) -> str | None:
        if len(program) > MAX_CHARS:
            return f"more than {MAX_CHARS} characters"
        if not _LIMITS_DIGITS and _DIGITS.search(program):
            return "more than 4300 digits"
        return parse(program, _GRAMMAR)


def last_lexeme(program: str) -> tuple[int, int] | None:
    """Span of the last lexeme that is not white space or a comment; None in an empty program."""
    end = len(program.rstrip())
    if not end:
        return None
    line = program[:end].rfind("\n") + 1
    found = scan(program[:end], line)
    start = found.last if found.kind not in ("comment", "") else line
    return (start, end) if start < end else (end - 1, end)


def offending_lexeme(program: str, position: int) -> tuple[int, int]:
    """Span of the lexeme to blame where ``program[:position]`` is the shortest prefix that is not viable.

    It is the lexeme of the last character; or the one before, where that was only accepted for what it might have
    become (``x no`` for ``x not``, an open string) and white space or the next lexeme has ended it.
    """
    before = scan(program[: position - 1])
    here = scan(program[:position])
    ended = here.last == position - 1 and before.last < here.last and not before.fresh
    if ended and before.kind in ("name", "number", "operator", "string") and _to_blame(program, position, before):
        return before.last, position - 1
    if here.broken is not None:
        return here.last, max(here.broken, here.last + 1)
    return here.last, max(lexeme_end(program, here.last), here.last + 1)


def _to_blame(program: str, position: int, before: Scan) -> bool:
    """Whether the lexeme ``before`` the last one is what is wrong, found out only when it ended."""
    head = program[: position - 1]
    if not _goes_on(head + " \\\n"):
        return True
    # what a string may not hold is said one lexeme late: would an empty one do?
    return before.kind == "string" and viable(_empty_string(head, before.last) + program[position - 1])


def _empty_string(text: str, start: int) -> str:
    """``text`` with an empty string of the same kind in place of the one that starts at ``start``."""
    head = text[start : start + 3]
    letters = head[: len(head) - len(head.lstrip("rRbBuUfFtT"))]
    apart = " " if text[start - 1 : start] in ("'", '"') else ""  # two quotes after a string would open another
    return f"{text[:start]}{apart}{letters}''"
