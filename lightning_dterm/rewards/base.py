"""What a reward is: a component that scores a batch of samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lightning_dterm.types import CodeTask, RewardResult, Sample, Span

if TYPE_CHECKING:
    from lightning_dterm.sandbox import Sandbox

PROSE = "text"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the run is.

    Attributes:
        step: Rollouts done.
        max_steps: Rollouts of the whole run; -1 where there is no limit.
        epoch: Passes over the training tasks that are complete.
    """

    step: int = 0
    max_steps: int = -1
    epoch: int = 0


@dataclass(slots=True)
class Logged:
    """What a component wants to be seen of a batch, besides its scores.

    Attributes:
        metrics: Scalars, logged as ``reward_log/<component>/<name>``.
        columns: Lists with an entry per sample scored, shown in the sample tables.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)


class RewardComponent(ABC):
    """One sub-reward. Subclasses set :attr:`name` and implement :meth:`applies_to` and :meth:`score`.

    Attributes:
        name: Column name; unique within a run.
        needs_execution: ``Sample.execution`` is filled in before :meth:`score`, for languages that can be run.
        needs_cost: ``Sample.execution.cost`` is measured too (implies execution).
        overlaps: :meth:`score` mostly waits for other processes or machines, draws no random numbers, touches neither
            torch nor other ranks, and so may run while the policy's forward passes run, and beside other such
            components. Where in doubt leave it False: it then runs after them, alone, while the trainer waits.
        timeout_s: Seconds that one call of :meth:`score` may take; None: the suite's. ``inf``: as long as it likes, and
            where it does not overlap on the trainer's own thread (others run in a thread of their own, the same for
            every batch).
    """

    name: str
    needs_execution: ClassVar[bool] = False
    needs_cost: ClassVar[bool] = False
    overlaps: bool = False
    timeout_s: float | None = None

    @abstractmethod
    def applies_to(self, task: CodeTask) -> bool:
        """Whether this component can score completions of ``task``; elsewhere it is masked."""

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Score samples whose tasks this component applies to, one result each, in order.

        Values lie in [0, 1]; an empty program gets 0. Hidden tests must not be read.

        Raises:
            Exception: Of any kind, if the component itself breaks: :class:`RewardSuite` counts these samples as failed
                and masks the component there. A failure of single samples belongs into their ``RewardResult.error``.
        """

    def reads_execution(self, task: CodeTask) -> bool:
        """Whether :meth:`score` reads ``Sample.execution`` for this task; without a verdict it is then masked."""
        return self.needs_execution or self.needs_cost

    def setup(self, sandbox: Sandbox | None = None) -> None:  # noqa: B027 - optional hook
        """Called once before the first :meth:`score`; ``sandbox`` is the run's, for components that execute more."""

    def begin(self, progress: Progress) -> None:  # noqa: B027 - optional hook
        """Called before each :meth:`score`, in its thread."""

    def cancel(self) -> None:  # noqa: B027 - optional hook
        """Called from another thread where :meth:`score` takes too long: end what can be ended, and return at once."""

    def logged(self) -> Logged | None:
        """Called after each :meth:`score`, in its thread: what else there is to log of this batch."""
        return None

    def close(self) -> None:  # noqa: B027 - optional hook
        """Release what :meth:`setup` took."""

    def state_dict(self) -> dict[str, Any]:
        """State to carry through a checkpoint, plain data and tensors only; none by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - optional hook
        """Restore :meth:`state_dict`'s state."""


def is_empty(sample: Sample) -> bool:
    """True where the completion holds no code at all; every component of this package scores it 0."""
    return not sample.code.strip()


def line_starts(text: str) -> list[int]:
    r"""Character offset of each line's start; lines end at ``\n``, ``\r\n`` or ``\r``, as compilers count them."""
    starts = [0]
    for index, char in enumerate(text):
        if char == "\n" or (char == "\r" and text[index + 1 : index + 2] != "\n"):
            starts.append(index + 1)
    return starts


def position_span(
    text: str, starts: Sequence[int], start: tuple[int, int], end: tuple[int, int], weight: float = 1.0
) -> Span:
    """Span between two 1-based (line, column) positions, clipped to ``text``; empty ranges grow by one character."""

    def offset(line: int, column: int) -> int:
        if line > len(starts):
            return len(text)
        return min(starts[max(line, 1) - 1] + max(column, 1) - 1, len(text))

    low = min(offset(*start), max(len(text) - 1, 0))
    return Span(low, max(offset(*end), min(low + 1, len(text))), weight)


def line_span(text: str, starts: Sequence[int], line: int, weight: float = 1.0) -> Span | None:
    """Span of a 1-based line without its indentation and line end; None where the line does not exist or is blank."""
    if not 1 <= line <= len(starts):
        return None
    low = starts[line - 1]
    high = starts[line] if line < len(starts) else len(text)
    content = text[low:high]
    stripped = content.strip()
    if not stripped:
        return None
    low += content.index(stripped)
    return Span(low, low + len(stripped), weight)
