"""Prefix viability in Java, C, C++, C# and JavaScript from tree-sitter's own LR automaton.

tree-sitter repairs errors, so ``has_error`` of a prefix says nothing. But its generalised LR parser has the
correct-prefix property: it takes a token only if some program goes on with it, and where *every* version of the parse
stack refuses the next token it says so (``detect_error`` then ``resume`` in its log) before it repairs anything. So a
prefix is viable iff the first refused token is the end of the text, or lies in the lexeme that is still being written.

This is exact for tree-sitter's grammar, which is not quite the language: it takes some programs that compilers refuse
(keywords as names, statements where only declarations may stand), and refuses a few that preprocessors make valid. Its
false alarms and misses are measured in ``benchmarks/results/syntax.json``; results carry the method's name.

All of it runs in the process of :func:`lightning_dterm.structure.shared_parser`, because hostile text can stall or
crash a parser. A text beyond its limits (:class:`lightning_dterm.structure.ParseLimits`), or longer than
:data:`MAX_CHARS`, is not viable. Where a whole program's parse is beyond them nothing is asked of its prefixes: the
verdict is an error over all of it at its last character, which scores 0, and ``shared_parser().process.beyond`` counts
it. A program followed while it grows fails with the token that takes it beyond them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import Lock

from lightning_dterm.structure import ParserUnavailable, shared_parser
from lightning_dterm.structure.process import BROKEN, REFUSED, Beyond, byte_ranges, language_of
from lightning_dterm.syntax.base import CharSpan, Checker, Session, Verdict
from lightning_dterm.syntax.clike import LANGUAGES, Shortened, unfinished, unmatched_brace

# A lone method, as in CodeXGLUE, is judged as it is and inside a class; the better verdict counts.
_CLASS = ("class A {\n", "\n}")
_WRAPPERS: dict[str, tuple[tuple[str, str], ...]] = {"java": (_CLASS,), "csharp": (_CLASS,)}
_BATCH = 64
MAX_CHARS = 40_000


class GrammarError(RuntimeError):
    """A tree-sitter grammar is missing, or its log does not say what the flags need."""


class BeyondLimits(Exception):
    """A text that its parser could not cope with."""


_KEPT = 1024  # answers: a batch of 64 programs has 512
_answers: OrderedDict[tuple[int, str, str], bytes | Beyond] = OrderedDict()
_lock = Lock()


def _fetch(task: int, sources: Sequence[str], language: str) -> list[bytes | Beyond]:
    """The parser process's answers, those it still has to give in one request; a check comes back to the same texts."""
    keys = [(task, source, language) for source in sources]
    with _lock:
        known = {key: _answers[key] for key in keys if key in _answers}
    new = [key for key in dict.fromkeys(keys) if key not in known]
    if new:
        requests = [(task, language, source.encode("utf-8", "replace")) for _, source, _ in new]
        fresh = dict(zip(new, shared_parser().process.ask(requests), strict=True))
        known.update(fresh)
        with _lock:
            _answers.update(fresh)
            while len(_answers) > _KEPT:
                _answers.popitem(last=False)
    return [known[key] for key in keys]


def _has_error(source: str, language: str) -> bool:
    """Whether tree-sitter had to repair ``source``.

    Raises:
        BeyondLimits: it could not cope with it.
    """
    (reply,) = _fetch(BROKEN, [source], language)
    if isinstance(reply, Beyond):
        raise BeyondLimits(reply.reason)
    return reply != b"\0"


def first_refused(source: str, language: str) -> CharSpan | None:
    """Character span of the first token that cannot stand where it does; None where there is none.

    The end of the text, where more was expected, is no such token.

    Raises:
        BeyondLimits: tree-sitter could not cope with ``source``.
    """
    (reply,) = _fetch(REFUSED, [source], language)
    if isinstance(reply, Beyond):
        raise BeyondLimits(reply.reason)
    for start, end in byte_ranges(reply):
        data = source.encode("utf-8", "replace")
        low = len(data[:start].decode("utf-8", "replace"))
        return min(low, max(len(source) - 1, 0)), max(len(data[:end].decode("utf-8", "replace")), low + 1)
    return None


class TreeSitterChecker(Checker):
    """One of :data:`lightning_dterm.syntax.clike.LANGUAGES` by tree-sitter's automaton.

    Raises:
        GrammarError: the grammar's package is missing, or this tree-sitter's log is not understood.
        ValueError: no such language.
    """

    method = "tree-sitter"

    def __init__(self, language: str) -> None:
        if language not in LANGUAGES:
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
        try:
            for head, _ in self.heads:
                refused = self._refused(head, shortened)
                if refused is None or refused[0] >= kept:
                    return True
        except BeyondLimits:
            pass
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
        try:
            return self._complete(program)
        except BeyondLimits:
            return False

    def _complete(self, program: str) -> bool:
        if len(program) > MAX_CHARS:
            return False
        for head, tail in self.heads:
            if not _has_error(head + program + tail, self.language):
                return not head or unmatched_brace(program, self.language) is None
        return False

    def check(self, program: str) -> Verdict:
        """One parse where all is well; otherwise the furthest first refused token."""
        try:
            return self._check(program)
        except BeyondLimits as reason:
            return Verdict("error", len(program), (0, len(program)), f"beyond the parser's limits ({reason})")

    def check_many(self, programs: Sequence[str]) -> list[Verdict]:
        """:meth:`check` of each, in a few requests to the parser process for every 64 programs."""
        verdicts: list[Verdict] = []
        for start in range(0, len(programs), _BATCH):
            batch = programs[start : start + _BATCH]
            self._prefetch([program for program in dict.fromkeys(batch) if len(program) <= MAX_CHARS])
            verdicts += map(self.check, batch)
        return verdicts

    def _prefetch(self, programs: list[str]) -> None:
        """Ask what :meth:`check` will ask: whole programs, their first refused tokens, and up to there."""
        left = programs
        for head, tail in self.heads:
            replies = _fetch(BROKEN, [head + program + tail for program in left], self.language)
            left = [program for program, reply in zip(left, replies, strict=True) if reply == b"\1"]
        pairs = [(head, program) for program in left for head, _ in self.heads]
        replies = _fetch(REFUSED, [head + program for head, program in pairs], self.language)
        ends: dict[str, int] = {}
        for (head, program), reply in zip(pairs, replies, strict=True):
            if isinstance(reply, bytes) and reply:
                span = first_refused(head + program, self.language) or (0, 0)
                ends[program] = max(ends.get(program, 0), min(span[1] - len(head), len(program)))
        prefixes = [program[: end - less] for program, end in ends.items() for less in (0, 1) if end > less]
        _fetch(REFUSED, [head + prefix for prefix in prefixes for head, _ in self.heads], self.language)

    def _check(self, program: str) -> Verdict:
        if self._complete(program):
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
    try:
        language_of(language)
    except ParserUnavailable as error:
        raise GrammarError(f"Syntax flags: {error}.") from error
    good, bad = (_PROBES[language](text) for text in ("1;", ")"))
    found = first_refused(bad, language)
    if first_refused(good, language) is not None or found is None or bad[found[0] : found[1]] != ")":
        raise GrammarError(
            f"This tree-sitter does not report the first refused token of {language} as expected: install the versions "
            "that this package was tested with (constraints.txt)."
        )
