"""Compiler feedback: exp(-lambda k) for k errors (DTERM's first sub-reward)."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lightning_dterm.execution import compiler_options, judge_for
from lightning_dterm.rewards.base import PROSE, RewardComponent, is_empty
from lightning_dterm.sandbox.languages import CompileLimits, Compilers, Report, Stage, Text, canonical
from lightning_dterm.sandbox.languages.compilers import python_report
from lightning_dterm.structure import shared_parser
from lightning_dterm.structure.process import ERRORS, Beyond, byte_ranges
from lightning_dterm.task_tests import has_tests
from lightning_dterm.types import CodeTask, RewardResult, Sample, Span

if TYPE_CHECKING:
    from lightning_dterm.sandbox import Sandbox

_GRAMMARS = frozenset({"java", "csharp", "javascript"})
# A lone method (as in CodeXGLUE) stands inside a class.
_WRAPPERS = {"java": ("class A {\n", "\n}"), "csharp": ("class A {\n", "\n}")}
_KEPT = 512  # parsed texts that are remembered
_log = logging.getLogger(__name__)


class CompileReward(RewardComponent):
    """``exp(-lam * k)`` for ``k`` compiler errors; warnings are not errors, and ``k`` stops at ``max_errors``.

    Python: CPython itself, in the sandbox's one run of the sample. It stops at the first error; further ones are found
    by blanking the offending line and compiling again, at most 5 in all.
    C, C++, Java, JavaScript and, where installed, C#, Go and PHP: the language's own compiler in a fenced process, one
    batched call per rollout, equal programs compiled once (:class:`lightning_dterm.sandbox.languages.Compilers`). A
    program that makes its compiler (CPython's, too) run out of time, memory or output, or crash, counts ``max_errors``.
    Without such a compiler, Java, C# and JavaScript fall back to the number of outermost tree-sitter ERROR and MISSING
    nodes, the smaller of the program as it is and wrapped in a class; a program beyond the parser's limits
    (:class:`lightning_dterm.structure.ParseLimits`) counts ``max_errors`` too. ``details["method"]`` names who counted:
    ``cpython``, ``gcc 12.2.0``, ``javac 17.0.15 (parse)``, ``tree-sitter``... Evidence: each error's span.
    Not applicable to prose and where neither a compiler nor a grammar is there.

    Args:
        name: Column name.
        lam: Decay per error, positive.
        lam_by_language: Decay for some languages in place of ``lam``.
        max_errors: Most errors counted: one missing brace can cascade into dozens.
        stage: ``full``: types and names too; ``parse``: syntax alone (Java, C#); ``auto``: ``full`` for tasks whose
            programs stand alone (with tests, or ``metadata["standalone"]``), ``parse`` for fragments that lean on
            code which is not there, as in CodeXGLUE. Compilers without a separate parser always do all they can.
        fallback: Use tree-sitter where the compiler is missing; otherwise such tasks are masked.
        limits: Limits of one compilation; without any, the run's compilers are used, which build its tests as well.

    Raises:
        ValueError: a decay that is not positive, ``max_errors`` below 1, or an unknown stage.
    """

    needs_execution: ClassVar[bool] = True
    overlaps = True
    timeout_s = 3600.0  # every process that it waits for has limits of its own

    def __init__(
        self,
        name: str = "compile",
        lam: float = 1.0,
        lam_by_language: Mapping[str, float] | None = None,
        max_errors: int = 10,
        stage: Literal["auto", "parse", "full"] = "auto",
        fallback: bool = True,
        limits: CompileLimits | None = None,
    ) -> None:
        decays = {canonical(language): decay for language, decay in (lam_by_language or {}).items()}
        if wrong := [decay for decay in (lam, *decays.values()) if not decay > 0]:
            raise ValueError(f"CompileReward: lam must be positive, got {wrong[0]}.")
        if max_errors < 1:
            raise ValueError(f"CompileReward: max_errors must be at least 1, got {max_errors}.")
        if stage not in ("auto", "parse", "full"):
            raise ValueError(f"CompileReward: stage must be 'auto', 'parse' or 'full', got {stage!r}.")
        self.name, self.lam, self.lam_by_language = name, lam, decays
        self.max_errors, self.stage, self.fallback, self.limits = max_errors, stage, fallback, limits
        self._sandbox: Sandbox | None = None
        self._compilers: Compilers | None = None

    def setup(self, sandbox: Sandbox | None = None) -> None:
        """Take the run's sandbox: its compilers, or with limits of one's own its slots and opt-ins."""
        self._sandbox = sandbox

    def close(self) -> None:
        """End compilers of one's own, and the parser process; whoever needs that next starts another."""
        shared_parser().close()
        if self._compilers is not None:
            self._compilers.close()
            self._compilers = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compilers": None}

    @property
    def compilers(self) -> Compilers:
        """The compilers in use; made on first use, processes start with the first program."""
        if self._sandbox is not None and self.limits is None:
            return judge_for(self._sandbox).compilers
        if self._compilers is None:
            options = {"limits": self.limits} if self._sandbox is None else compiler_options(self._sandbox, self.limits)
            self._compilers = Compilers(**options)
        return self._compilers

    def reads_execution(self, task: CodeTask) -> bool:
        """Python's errors come with its run; other languages' from their own compilers."""
        return canonical(task.language) == "python"

    def applies_to(self, task: CodeTask) -> bool:
        """Tasks in Python, or in a language with a compiler (or, as a fallback, a grammar)."""
        if canonical(task.language) == "python":
            return True
        if task.language == PROSE:
            return False
        return self.compilers.supports(task.language) or (self.fallback and _has_grammar(self.name, task.language))

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Count each program's errors; everything that needs a compiler goes to it in one call."""
        programs = {
            index: (sample.task.language, sample.program, self._stage(sample.task))
            for index, sample in enumerate(samples)
            if not is_empty(sample) and self._needs_compiler(sample.task.language)
        }
        reports = (
            dict(zip(programs, self.compilers.check_many(list(programs.values())), strict=True)) if programs else {}
        )
        _prefetch(sample for index, sample in enumerate(samples) if index not in reports and not is_empty(sample))
        return [self._score(sample, reports.get(index)) for index, sample in enumerate(samples)]

    def _needs_compiler(self, language: str) -> bool:
        return canonical(language) != "python" and self.compilers.supports(language)

    def _stage(self, task: CodeTask) -> Stage:
        if self.stage == "parse" or self.stage == "full":
            return self.stage
        alone = task.metadata.get("standalone", has_tests(task))
        return "full" if alone else "parse"

    def _score(self, sample: Sample, report: Report | None) -> RewardResult:
        if is_empty(sample):
            return RewardResult(0.0, details={"method": "empty"})
        if report is not None:
            return self._from_report(sample, report)
        if canonical(sample.task.language) == "python":
            if sample.execution is None:
                return RewardResult(None, error="the program was not compiled")
            return self._from_report(sample, python_report(sample.execution))
        return self._parsed(sample)

    def _parsed(self, sample: Sample) -> RewardResult:
        spans = _tree_errors(sample.program, sample.task.language)
        if isinstance(spans, Beyond):
            return self._value(sample, (), "tree-sitter", self.max_errors, {"status": spans.reason})
        return self._value(sample, spans, "tree-sitter")

    def _from_report(self, sample: Sample, report: Report) -> RewardResult:
        if report.status == "infra":
            return RewardResult(None, error=f"{report.compiler}: {report.reason}")
        text = Text(sample.program)
        spans = [span for one in report.errors[: self.max_errors] if (span := one.span(text)) is not None]
        count = report.count(self.max_errors)
        details = {"status": report.status, "messages": [one.message for one in report.errors[: self.max_errors]]}
        return self._value(sample, tuple(spans), report.compiler, count, details)

    def _value(
        self, sample: Sample, spans: tuple[Span, ...], method: str, count: int | None = None, details: Any = None
    ) -> RewardResult:
        count = min(len(spans) if count is None else count, self.max_errors)
        lam = self.lam_by_language.get(canonical(sample.task.language), self.lam)
        facts = {"method": method, "errors": count, **(details or {})}
        return RewardResult(math.exp(-lam * count), spans[: self.max_errors], facts)


def parse_errors(program: str, language: str) -> tuple[Span, ...]:
    """Spans (character offsets) of the outermost tree-sitter ERROR and MISSING nodes of a program.

    A program beyond the limits of the parser process is one error from end to end.

    Raises:
        KeyError: no grammar for ``language``.
    """
    found = _tree_errors(program, language)
    return (Span(0, max(len(program), 1)),) if isinstance(found, Beyond) else found


def _prefetch(samples: Iterable[Sample]) -> None:
    """Parse everything that tree-sitter will be asked for in one request."""
    programs = ((sample.program, canonical(sample.task.language)) for sample in samples)
    _replies([(program, name) for program, name in programs if name in _GRAMMARS])


def _tree_errors(program: str, language: str) -> tuple[Span, ...] | Beyond:
    name = canonical(language)
    if name not in _GRAMMARS:
        raise KeyError(language)
    best: list[tuple[bytes, tuple[int, int], int]] | None = None
    for source, offset, reply in _replies([(program, name)]):
        if isinstance(reply, Beyond):
            return reply
        found = [(source, place, offset) for place in byte_ranges(reply)]
        best = found if best is None or len(found) < len(best) else best
    return tuple(_to_span(source, *place, offset, len(program)) for source, place, offset in best or ())


_parsed: OrderedDict[tuple[str, bytes], bytes | Beyond] = OrderedDict()  # of the last batch, mostly
_parsed_lock = Lock()


def _replies(programs: list[tuple[str, str]]) -> list[tuple[bytes, int, bytes | Beyond]]:
    """Each program as it is and in its wrapper: its bytes, the wrapper's length before it, the parser's reply."""
    texts = [
        (name, (head + program + tail).encode("utf-8", "replace"), len(head))
        for program, name in programs
        for head, tail in (("", ""), *([_WRAPPERS[name]] if name in _WRAPPERS else []))
    ]
    with _parsed_lock:
        known = {(name, source): _parsed[name, source] for name, source, _ in texts if (name, source) in _parsed}
    new = [key for key in dict.fromkeys((name, source) for name, source, _ in texts) if key not in known]
    if new:
        answers = shared_parser().process.ask([(ERRORS, name, source) for name, source in new])
        fresh = dict(zip(new, answers, strict=True))
        known.update(fresh)
        with _parsed_lock:
            _parsed.update(fresh)
            while len(_parsed) > _KEPT:
                _parsed.popitem(last=False)
    return [(source, offset, known[name, source]) for name, source, offset in texts]


def _to_span(source: bytes, start: int, end: int, offset: int, length: int) -> Span:
    """Byte range of ``source`` to a character range of the program, at least one character wide."""
    low = len(source[:start].decode("utf-8", "replace")) - offset
    high = len(source[:end].decode("utf-8", "replace")) - offset
    low = min(max(low, 0), max(length - 1, 0))
    return Span(low, min(max(high, low + 1), max(length, low + 1)))


@lru_cache(maxsize=256)
def _has_grammar(name: str, language: str) -> bool:
    """Whether tree-sitter can stand in for a compiler that is not there; said once."""
    known = canonical(language) in _GRAMMARS
    if known:
        _log.warning("%s: errors in %r are counted by tree-sitter, a parser that guesses.", name, language)
    return known
