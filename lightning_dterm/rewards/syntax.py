"""Grammar: does the program stay within its language, and where does it leave it?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_dterm.attribution.offsets import CharSpan
from lightning_dterm.rewards.base import RewardComponent, is_empty
from lightning_dterm.structure import shared_parser
from lightning_dterm.syntax import Verdict, checker_for, supports, token_flags
from lightning_dterm.syntax.context import misplaced
from lightning_dterm.types import CodeTask, RewardResult, Sample, Span

if TYPE_CHECKING:
    from lightning_dterm.sandbox import Sandbox

_log = logging.getLogger(__name__)


class SyntaxReward(RewardComponent):
    """1 for a complete program; otherwise at most ``partial``, in proportion to how far it got.

    ========================================================= ================= ==========================
    program                                                   value             evidence
    ========================================================= ================= ==========================
    complete                                                  1                 none
    some prefix cannot be continued to a program              ``partial * s``   the offending lexeme
    ended (EOS) before it was complete                        ``partial``       the last lexeme
    cut off by the length limit, nothing wrong so far         ``partial``       none
    Python that parses, with ``return`` outside a function... ``partial``       the misplaced keyword
    empty                                                     0                 none
    ========================================================= ================= ==========================

    ``s`` is the share of the completion's characters, white space aside, that stand before the offending lexeme. Longer
    code before the mistake is worth more, but never as much as a program without one.

    Python is judged by CPython's parser, the other languages by tree-sitter's automaton, whose grammars differ a little
    from the compilers'; ``details["method"]`` names which. Nothing is executed. :meth:`flags` gives the grammar flag of
    every token. Where the *task's* prefix cannot be continued the component does not apply to the sample.

    Args:
        name: Column name.
        partial: Most that a program which is not complete can earn, in [0, 1).

    Raises:
        ValueError: ``partial`` outside [0, 1).
    """

    def __init__(self, name: str = "syntax", partial: float = 0.5) -> None:
        if not 0 <= partial < 1:
            raise ValueError(f"SyntaxReward: partial must lie in [0, 1), got {partial}.")
        self.name, self.partial = name, partial
        self._warned: set[str] = set()

    def setup(self, sandbox: Sandbox | None = None) -> None:
        """Test this Python's parser now rather than at the first completion.

        Raises:
            SyntaxSelfTestError: it does not judge unfinished programs as needed.
        """
        checker_for("python")

    def close(self) -> None:
        """End the parser process; whoever needs it next starts another."""
        shared_parser().close()

    def applies_to(self, task: CodeTask) -> bool:
        """Tasks in Python, Java, C, C++, C# or JavaScript."""
        return supports(task.language)

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Check each distinct program once."""
        programs: dict[str, dict[str, None]] = {}
        for sample in samples:
            if not is_empty(sample):
                programs.setdefault(sample.task.language, {})[sample.program] = None
        verdicts: dict[tuple[str, str], Verdict] = {}
        for language, some in programs.items():
            found = checker_for(language).check_many(list(some))
            verdicts.update(((language, program), verdict) for program, verdict in zip(some, found, strict=True))
        return [
            RewardResult(0.0)
            if is_empty(sample)
            else self._result(sample, verdicts[sample.task.language, sample.program])
            for sample in samples
        ]

    def verdict(self, sample: Sample) -> Verdict:
        """What the language's checker says of the sample's program."""
        return checker_for(sample.task.language).check(sample.program)

    def flags(self, sample: Sample, token_spans: Sequence[CharSpan]) -> list[bool | None]:
        """Flag of every response token: True viable, False the first that is not, None unscored.

        Args:
            sample: The completion.
            token_spans: Character span of each of its tokens in ``sample.text``, the end-of-sequence token included.
        """
        return token_flags(
            self.verdict(sample), token_spans, sample.code_spans, len(sample.task.prefix), not sample.truncated
        )

    def _result(self, sample: Sample, verdict: Verdict) -> RewardResult:
        start = len(sample.task.prefix)
        details: dict[str, Any] = {"method": checker_for(sample.task.language).method, "verdict": verdict.kind}
        if verdict.message:
            details["message"] = verdict.message
        if verdict.kind == "ok":
            return self._complete(sample, details)
        if verdict.kind == "error" and verdict.position <= start:
            self._warn(sample.task)
            return RewardResult(None, details=details)
        if verdict.kind == "unfinished" and sample.truncated:
            return RewardResult(self.partial, details=details)
        assert verdict.span is not None  # only complete programs have none, and empty ones do not come here
        low = max(verdict.span[0], start)
        span = Span(low, max(verdict.span[1], low + 1))
        share = 1.0 if verdict.kind == "unfinished" else _solid(sample.program[start:low]) / _solid(sample.code)
        return RewardResult(self.partial * min(share, 1.0), (span,), details)

    def _complete(self, sample: Sample, details: dict[str, Any]) -> RewardResult:
        found = misplaced(sample.program) if details["method"] == "cpython" else None
        if found is None:
            return RewardResult(1.0, details=details)
        details.update(verdict="misplaced", message=found.message)
        if found.start < len(sample.task.prefix):
            return RewardResult(self.partial, details=details)
        return RewardResult(self.partial, (Span(found.start, found.end),), details)

    def _warn(self, task: CodeTask) -> None:
        if task.task_id not in self._warned:
            self._warned.add(task.task_id)
            _log.warning("%s: the prefix of task %r is no start of a program; skipped.", self.name, task.task_id)


def _solid(text: str) -> int:
    """Characters that are not white space."""
    return len("".join(text.split()))
