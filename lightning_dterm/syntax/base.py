"""What every language's checker answers: can this prefix still become a program, and where does a program go wrong?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CharSpan = tuple[int, int]
Kind = Literal["ok", "error", "unfinished"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a checker says of a whole program.

    Attributes:
        kind: ``ok``: a complete program. ``error``: no text that starts with the first ``position`` characters is a
            program. ``unfinished``: every prefix is viable but the program is not complete.
        position: Length in characters of the shortest prefix that is not viable; the program's length where all are.
        span: The offending lexeme of an error (half open, characters); for ``unfinished`` the last lexeme; else None.
        message: What is wrong, empty for ``ok``.
    """

    kind: Kind
    position: int
    span: CharSpan | None = None
    message: str = ""


class Session(ABC):
    """Follows one program that grows, without looking at all of it again at every step.

    Attributes:
        text: What was appended so far.
        position: Length of the shortest prefix that is not viable; None while the text is viable.
    """

    def __init__(self, checker: Checker, text: str = "") -> None:
        self.checker = checker
        self.text = ""
        self.position: int | None = None
        if text:
            self.append(text)

    @abstractmethod
    def append(self, text: str) -> bool:
        """Add ``text``; whether the program so far is viable. Once it is not, it stays so."""

    @abstractmethod
    def probe(self, text: str) -> bool:
        """Whether the program would be viable with ``text`` added; adds nothing."""

    def finish(self) -> Verdict:
        """The verdict on the text as a whole program."""
        return self.checker.check(self.text)

    def complete(self) -> bool:
        """Whether the text is a complete program."""
        return self.position is None and self.checker.complete(self.text)

    def _locate(self, known: int) -> None:
        """Find :attr:`position`, given that the first ``known`` characters are viable and the text is not."""
        low, high = known, len(self.text)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.checker.viable(self.text[:middle]) else (low, middle)
        self.position = high


class Checker(ABC):
    """Syntax of one language.

    ``viable`` is prefix-closed: once a prefix is not viable no longer one is. That makes flags computed while a program
    is written and flags computed afterwards the same flags.

    Attributes:
        language: Canonical name.
        method: Who decides, as written into results: ``cpython`` or ``tree-sitter``.
    """

    language: str
    method: str

    @abstractmethod
    def viable(self, prefix: str) -> bool:
        """Whether some program starts with ``prefix``."""

    @abstractmethod
    def complete(self, program: str) -> bool:
        """Whether ``program`` is one."""

    @abstractmethod
    def check(self, program: str) -> Verdict:
        """The first offending place of ``program``, which has ended here."""

    def check_many(self, programs: Sequence[str]) -> list[Verdict]:
        """:meth:`check` of each."""
        return [self.check(program) for program in programs]

    @abstractmethod
    def session(self, text: str = "") -> Session:
        """Start to follow a program that begins with ``text``."""

    def first_failure(self, program: str, guess: int) -> int:
        """Length of the shortest prefix that is not viable, for a program that is not; ``guess`` is tried first."""
        if 0 < guess <= len(program) and not self.viable(program[:guess]):
            if self.viable(program[: guess - 1]):
                return guess
            low, high = 0, guess - 1
        else:
            low, high = max(guess, 0) if guess <= len(program) else 0, len(program)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.viable(program[:middle]) else (low, middle)
        return high


def token_flags(
    verdict: Verdict,
    token_spans: Sequence[CharSpan],
    code_spans: Sequence[CharSpan],
    prefix_length: int = 0,
    finished: bool = True,
) -> list[bool | None]:
    """Grammar flags per token: True viable, False the one that made the program fail, None unscored.

    A token is False iff the program up to the token's end is not viable while the program before it is: the same
    whether computed while generating or afterwards. Tokens after it are None, and so are tokens that are not code.

    Args:
        verdict: Of the program, which is ``prefix_length`` given characters and then the text's code.
        token_spans: Character span of each token in the text; they tile it (special tokens have empty spans).
        code_spans: Character ranges of the text that are code, ascending and disjoint.
        prefix_length: Characters of the program that stand before the completion.
        finished: The last token ends the response (EOS): it is flagged where the program is unfinished. A response cut
            off by the length limit has no False flag then.

    Returns:
        One flag for each token. All None where the given prefix already fails.
    """
    if verdict.kind == "error" and verdict.position <= prefix_length:
        return [None] * len(token_spans)
    if verdict.kind == "unfinished" and finished and token_spans:
        return [*token_flags(Verdict("ok", verdict.position), token_spans[:-1], code_spans), False]
    fails = verdict.position - prefix_length if verdict.kind == "error" else None
    flags: list[bool | None] = []
    failed = False
    for start, end in token_spans:
        before = sum(max(min(end, high) - low, 0) for low, high in code_spans)  # code characters up to the token's end
        is_code = any(start < high and end > low for low, high in code_spans)
        if failed or not is_code:
            flags.append(None)
        else:
            failed = fails is not None and before >= fails
            flags.append(not failed)
    return flags
