"""One component on one batch: in a thread of its own, within its time, and every way to fail told apart."""

from __future__ import annotations

import copy
import logging
import math
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

from lightning_dterm.rewards.base import Logged, Progress, RewardComponent
from lightning_dterm.rewards.workers import Call, Worker
from lightning_dterm.types import RewardResult, Sample, Span

_log = logging.getLogger(__name__)
_short = reprlib.Repr()
_short.maxother = 100

FailureKind = Literal["exception", "length", "value", "timeout", "hung", "sandbox", "reported"]
"""How a reward failed: it raised; returned another number of results than there are samples; returned something that is
no result, no number in [0, 1] or no well-formed spans; took too long; was passed over, since a call that took too long
has not returned yet; had no verdict of the sandbox to read; or said so itself (``RewardResult.error``)."""


def failure(kind: FailureKind, message: str) -> RewardResult:
    """The result of a reward that failed on a sample; ``details["failure"]`` has the kind."""
    return RewardResult(None, details={"failure": kind}, error=message)


@dataclass(slots=True)
class Column:
    """A component's results of a batch.

    Attributes:
        results: One per sample.
        seconds: What the component took.
        logged: What else it logged; the lists of ``columns`` have an entry per sample.
    """

    results: list[RewardResult]
    seconds: float = 0.0
    logged: Logged = field(default_factory=Logged)

    @property
    def kinds(self) -> Counter[str]:
        """Number of failures of each :data:`FailureKind`."""
        return Counter(result.details["failure"] for result in self.results if result.error is not None)


@dataclass(slots=True)
class Started:
    """A component's call under way."""

    runner: ComponentRunner
    samples: Sequence[Sample]
    rows: list[int]
    call: Call | None

    def wait(self) -> Column:
        """The column, as soon as it is there, or the time is over."""
        return self.runner._collect(self)


class ComponentRunner:
    """Runs one component, one call at a time.

    A call that takes longer than allowed is abandoned: its thread cannot be killed, so the component is passed over
    (kind ``hung``) until it returns.

    Args:
        component: What to run.
        timeout_s: Seconds allowed where the component does not say.
    """

    def __init__(self, component: RewardComponent, timeout_s: float) -> None:
        self.component, self._default_timeout_s = component, timeout_s
        self._worker = Worker(f"reward-{component.name}")
        self._overdue = False

    @property
    def timeout_s(self) -> float:
        """Seconds that a call may take."""
        own = self.component.timeout_s
        return self._default_timeout_s if own is None else own

    @property
    def reads_sandbox(self) -> bool:
        """Whether it reads executions, or runs programs itself."""
        one = self.component
        return one.needs_execution or one.needs_cost or type(one).reads_execution is not RewardComponent.reads_execution

    @property
    def early(self) -> bool:
        """Whether it may begin before the programs were executed."""
        return self.component.overlaps and not self.reads_sandbox

    def run(self, samples: Sequence[Sample], progress: Progress) -> Column:
        """Score a batch while the caller waits: in his own thread where there is no limit of time."""
        if self._threaded:
            return self.start(samples, progress).wait()
        rows: list[int] = []
        call = Call(lambda: self._score(samples, progress, rows))
        call.run()
        return self._finished(Started(self, samples, rows, call), call)

    def start(self, samples: Sequence[Sample], progress: Progress) -> Started:
        """Begin to score a batch in the component's thread."""
        if self.early:  # whether these were executed by then is chance
            samples = [copy.copy(sample) for sample in samples]
            for sample in samples:
                sample.execution = None
        rows: list[int] = []
        if self._worker.running is not None:
            return Started(self, samples, rows, None)
        if self._overdue:
            self._overdue = False
            _log.warning("Reward %r: the call that took too long has returned; it is used again.", self.component.name)
        call = self._worker.start(lambda: self._score(samples, progress, rows))
        return Started(self, samples, rows, call)

    def cancel(self) -> None:
        """Ask a call under way to end."""
        if self._worker.running is not None:
            self._cancel()

    def idle(self, within_s: float) -> bool:
        """Wait a while for a call under way; whether none is left."""
        running = self._worker.running
        return running is None or running.wait(running.running_s + max(within_s, 0.0))

    def close(self) -> None:
        """Close the component, unless a call of it is still under way."""
        if self._worker.running is not None:
            _log.error("Reward %r is not closed: a call of it has not returned yet.", self.component.name)
        else:
            self.component.close()
        self._worker.close()

    # --- in the component's thread ------------------------------------------------------------------------------------

    def _score(self, samples: Sequence[Sample], progress: Progress, rows: list[int]) -> Column:
        component = self.component
        rows += [index for index, sample in enumerate(samples) if component.applies_to(sample.task)]
        column = [RewardResult(None)] * len(samples)
        for index in rows:
            if component.reads_execution(samples[index].task) and is_infra(samples[index]):
                execution = samples[index].execution
                column[index] = failure("sandbox", f"sandbox: {execution.exception if execution else 'lost'}")
        judged = [index for index in rows if column[index].error is None]
        if not judged:
            return Column(column)
        component.begin(progress)
        results = list(component.score([samples[index] for index in judged]))
        if len(results) != len(judged):
            raise _WrongLength(f"{len(results)} results for {len(judged)} samples")
        for index, result in zip(judged, results, strict=True):
            column[index] = _checked(result)
        logged = component.logged() or Logged()
        spread = {name: _spread(name, values, judged, len(samples)) for name, values in logged.columns.items()}
        return Column(column, logged=Logged(dict(logged.metrics), spread))

    # --- in the caller's ----------------------------------------------------------------------------------------------

    def _collect(self, started: Started) -> Column:
        call = started.call
        if call is None:
            message = "passed over: a call that took too long has not returned yet"
            return self._failed(started, "hung", message)
        if call.wait(self.timeout_s):
            return self._finished(started, call)
        self._overdue = True
        self._cancel()
        message = f"took longer than {self.timeout_s:g} s (timeout_s) and was abandoned"
        return self._failed(started, "timeout", message, seconds=call.running_s)

    def _finished(self, started: Started, call: Call) -> Column:
        try:
            column: Column = call.result()
        except _WrongLength as error:
            return self._failed(started, "length", str(error), seconds=call.seconds)
        except BaseException as error:  # sys.exit() of a reward must not end the run
            if isinstance(error, KeyboardInterrupt) and not self._threaded:
                raise  # meant for the trainer, whose thread this is
            return self._failed(started, "exception", f"{type(error).__name__}: {error}", error, call.seconds)
        column.seconds = call.seconds
        self._say(column)
        return column

    @property
    def _threaded(self) -> bool:
        return self.timeout_s < math.inf or self.component.overlaps

    def _failed(
        self,
        started: Started,
        kind: FailureKind,
        message: str,
        error: BaseException | None = None,
        seconds: float = 0.0,
    ) -> Column:
        """All samples that the component applies to; all of the batch where it did not get so far as to say which."""
        results = [RewardResult(None)] * len(started.samples)
        for index in list(started.rows) or range(len(results)):
            results[index] = failure(kind, message)
        column = Column(results, seconds)
        self._say(column, error)
        return column

    def _say(self, column: Column, error: BaseException | None = None) -> None:
        """One line per batch that names the culprit."""
        if kinds := column.kinds:
            first = next(result.error for result in column.results if result.error is not None)
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            name, size = self.component.name, len(column.results)
            _log.error(
                "Reward %r failed on %d of %d samples (%s): %s",
                name,
                kinds.total(),
                size,
                counts,
                first,
                exc_info=error,
            )

    def _cancel(self) -> None:
        try:
            self.component.cancel()
        except Exception as error:
            _log.error("Reward %r: cancel() failed: %s", self.component.name, error, exc_info=error)


class _WrongLength(ValueError):
    """A component returned another number of results than it was given samples."""


def is_infra(sample: Sample) -> bool:
    """Whether the sandbox failed on a sample's program."""
    return sample.execution is not None and sample.execution.status == "infra"


def _checked(result: Any) -> RewardResult:
    if not isinstance(result, RewardResult):
        return failure("value", f"returned {type(result).__name__} instead of a RewardResult")
    if result.error is not None:
        return RewardResult(None, details={**result.details, "failure": "reported"}, error=result.error)
    value = result.value
    if value is not None and (not isinstance(value, (int, float)) or not -1e-6 <= value <= 1 + 1e-6):
        return failure("value", f"value {value!r} is not a number in [0, 1]")  # NaN fails the comparison too
    spans: Any = result.spans
    if not isinstance(spans, (tuple, list)):
        return failure("value", f"spans are {_short.repr(spans)} instead of a tuple of Span")
    odd = [span for span in spans if not _is_span(span)]
    if odd:
        what = "with integer start and end and a finite weight >= 0"
        return failure("value", f"spans hold {_short.repr(odd[0])} instead of a Span {what}")
    return result


def _is_span(span: Any) -> bool:
    if not isinstance(span, Span):
        return False
    places: tuple[Any, ...] = (span.start, span.end)
    weight: Any = span.weight
    try:
        return (
            all(isinstance(place, Integral) and not isinstance(place, bool) for place in places)
            and isinstance(weight, Real)
            and 0 <= float(weight) < math.inf
        )
    except OverflowError:  # an integer beyond all floats
        return False


def _spread(name: str, values: Sequence[Any], rows: Sequence[int], size: int) -> list[Any]:
    if len(values) != len(rows):
        raise _WrongLength(f"logged column {name!r} has {len(values)} values for {len(rows)} samples")
    spread: list[Any] = [None] * size
    for index, value in zip(rows, values, strict=True):
        spread[index] = value
    return spread
