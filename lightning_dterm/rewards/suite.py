"""Scores a batch with every component: one sandbox run, errors isolated, everything counted. No Lightning."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_dterm.execution import Request, TaskJudge, judge_for
from lightning_dterm.rewards.base import RewardComponent
from lightning_dterm.sandbox import Sandbox
from lightning_dterm.sandbox.languages import canonical
from lightning_dterm.task_tests import TEST_LISTS, has_tests
from lightning_dterm.types import RewardResult, Sample, Span

_log = logging.getLogger(__name__)


class RewardFailure(RuntimeError):
    """A reward component fails too often for its scores to be trusted."""


@dataclass(slots=True)
class SuiteResult:
    """What a batch of B samples earned from n components.

    Attributes:
        names: The n component names, in column order.
        scores: ``[B, n]`` float32 in [0, 1]; NaN where not applicable or failed.
        evidence: B mappings from component name to spans in ``Sample.text`` offsets; components without are left out.
        outcome: ``[B]`` float32 in [0, 1], the success metric on what no reward reads; NaN where unknown.
        results: Per sample, component name to its result.
        seconds: Wall-clock seconds per component, and ``execution`` for the sandbox.
        failures: Failed results per component in this batch.
        busy: Seconds from the start of the execution to the last component that may overlap with other work.
        waited: Seconds the caller stood still for them.
    """

    names: tuple[str, ...]
    scores: torch.Tensor
    evidence: list[dict[str, list[Span]]]
    outcome: torch.Tensor
    results: list[dict[str, RewardResult]]
    seconds: dict[str, float]
    failures: dict[str, int]
    busy: float = 0.0
    waited: float = 0.0


@dataclass(slots=True)
class _Prepared:
    """What can be had of a batch while something else goes on: executions, and the columns that mostly wait."""

    seconds: dict[str, float] = field(default_factory=dict)
    columns: dict[str, list[RewardResult]] = field(default_factory=dict)
    busy: float = 0.0


class Pending:
    """A batch whose rewards are under way in a thread; :meth:`result` is to be called once."""

    def __init__(self, suite: RewardSuite, samples: Sequence[Sample]) -> None:
        self._suite, self._samples = suite, samples
        self._prepared: _Prepared | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="rewards", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._prepared = self._suite._prepare(self._samples)
        except BaseException as error:  # raised where the result is asked for
            self._error = error

    def wait(self) -> None:
        """Wait for what is under way, and ask for nothing."""
        self._thread.join()

    def result(self) -> SuiteResult:
        """Wait for what is under way and do the rest, in this thread.

        Raises:
            RewardFailure: see :meth:`RewardSuite.score`; and whatever stopped the execution.
        """
        started = time.perf_counter()
        self.wait()
        waited = time.perf_counter() - started
        if self._error is not None:
            raise self._error
        assert self._prepared is not None
        return self._suite._finish(self._samples, self._prepared, waited)


class RewardSuite:
    """Several components over one sandbox.

    A component that raises, returns the wrong number of results, or a value that is not a finite number in [0, 1] has
    *failed* for those samples: masked, counted, logged, never a silent 0. So has one whose program the sandbox could
    not judge (``infra``).

    Args:
        components: At least one, with distinct names.
        sandbox: Where programs run; the suite does not close it.
        max_failures: Share of failed results, over the last ``window`` of one component, beyond which the run stops.
        window: Results remembered per component; the share is judged once half of them are in.

    Raises:
        ValueError: no component, or a name twice.
    """

    def __init__(
        self, components: Sequence[RewardComponent], sandbox: Sandbox, max_failures: float = 0.25, window: int = 512
    ) -> None:
        self.components = list(components)
        self.names = tuple(component.name for component in self.components)
        if not self.components:
            raise ValueError("RewardSuite needs at least one reward component.")
        if twice := sorted(name for name, count in Counter(self.names).items() if count > 1):
            raise ValueError(f"RewardSuite: component names must be distinct, got {', '.join(twice)} more than once.")
        if not 0 <= max_failures <= 1 or window < 1:
            raise ValueError("RewardSuite: max_failures must lie in [0, 1] and window be at least 1.")
        self.sandbox, self.max_failures, self.window = sandbox, max_failures, window
        self.failures: Counter[str] = Counter()
        self.scored: Counter[str] = Counter()
        self._recent = {name: deque[bool](maxlen=window) for name in self.names}

    @property
    def judge(self) -> TaskJudge:
        """What runs the tests, in all languages."""
        return judge_for(self.sandbox)

    def setup(self) -> None:
        """Set up every component with the suite's sandbox."""
        for component in self.components:
            component.setup(self.sandbox)

    def close(self) -> None:
        """Close every component and the compilers; waits for what is under way."""
        self.judge.close()
        for component in self.components:
            component.close()

    def score(self, samples: Sequence[Sample]) -> SuiteResult:
        """Execute what must be executed, then score every sample with every component.

        Raises:
            RewardFailure: a component failed on more than ``max_failures`` of its recent samples.
        """
        prepared = self._prepare(samples)
        return self._finish(samples, prepared, prepared.busy)

    def start(self, samples: Sequence[Sample]) -> Pending:
        """Begin :meth:`score` in a thread: the executions, and components that :attr:`RewardComponent.overlaps`.

        Scores do not depend on it: components that may touch torch, random numbers or other ranks, and all counting,
        wait for :meth:`Pending.result`.
        """
        return Pending(self, samples)

    def _prepare(self, samples: Sequence[Sample]) -> _Prepared:
        started = time.perf_counter()
        prepared = _Prepared({"execution": self._execute(samples)})
        for component in self.components:
            if component.overlaps:
                self._score_column(component, samples, prepared)
        prepared.busy = time.perf_counter() - started
        return prepared

    def _finish(self, samples: Sequence[Sample], prepared: _Prepared, waited: float) -> SuiteResult:
        results: list[dict[str, RewardResult]] = [{} for _ in samples]
        failures: dict[str, int] = {}
        for component in self.components:
            if component.name not in prepared.columns:
                self._score_column(component, samples, prepared)
            column = prepared.columns[component.name]
            for row, result in zip(results, column, strict=True):
                row[component.name] = result
            failures[component.name] = self._count(component.name, column)
        values = [[_value(row[name]) for name in self.names] for row in results]
        scores = torch.tensor(values, dtype=torch.float32).reshape(len(samples), len(self.names))
        evidence = [_evidence(sample, row) for sample, row in zip(samples, results, strict=True)]
        outcome = torch.tensor([outcome_of(sample) for sample in samples], dtype=torch.float32)
        return SuiteResult(
            self.names, scores, evidence, outcome, results, prepared.seconds, failures, prepared.busy, waited
        )

    def _score_column(self, component: RewardComponent, samples: Sequence[Sample], prepared: _Prepared) -> None:
        started = time.perf_counter()
        prepared.columns[component.name] = self._column(component, samples)
        prepared.seconds[component.name] = time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        """Cumulative counts and the components' own states; plain data."""
        return {
            "failures": dict(self.failures),
            "scored": dict(self.scored),
            "recent": {name: list(recent) for name, recent in self._recent.items()},
            "components": {component.name: component.state_dict() for component in self.components},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`'s state; components that are new or gone keep their defaults."""
        self.failures, self.scored = Counter(state["failures"]), Counter(state["scored"])
        for name in self.names:
            self._recent[name] = deque(state["recent"].get(name, ()), maxlen=self.window)
        for component in self.components:
            if component.name in state["components"]:
                component.load_state_dict(state["components"][component.name])

    def _execute(self, samples: Sequence[Sample]) -> float:
        started = time.perf_counter()
        requests: dict[int, Request] = {}
        for index, sample in enumerate(samples):
            if (request := self._request(sample)) is not None:
                requests[index] = request
        # The K completions of a prompt often repeat: each distinct request is judged once.
        distinct = {_identity(request): request for request in requests.values()}
        verdicts = dict(zip(distinct, self.judge.run(list(distinct.values())), strict=True))
        for index, request in requests.items():
            samples[index].execution = verdicts[_identity(request)]
        return time.perf_counter() - started

    def _request(self, sample: Sample) -> Request | None:
        """The one run that serves all components and the outcome: all tests, visible and hidden."""
        task = sample.task
        readers = [c for c in self.components if c.reads_execution(task) and c.applies_to(task)]
        judged = task.success_metric == "tests" and self.judge.judges(task)
        python = canonical(task.language) == "python"
        if not (readers or judged) or not (python or has_tests(task)):
            return None
        return Request(task, sample.program, any(c.needs_cost for c in readers))

    def _column(self, component: RewardComponent, samples: Sequence[Sample]) -> list[RewardResult]:
        column = [RewardResult(None)] * len(samples)
        try:
            rows = [index for index, sample in enumerate(samples) if component.applies_to(sample.task)]
        except Exception as error:
            return [self._failed(component, error)] * len(samples)
        lost = {index for index in rows if component.reads_execution(samples[index].task) and _is_infra(samples[index])}
        for index in lost:
            execution = samples[index].execution
            column[index] = RewardResult(None, error=f"sandbox: {execution.exception if execution else 'lost'}")
        if lost:
            _log.error(
                "Reward %r: the sandbox could not judge %d of %d programs.", component.name, len(lost), len(rows)
            )
        rows = [index for index in rows if index not in lost]
        try:
            results = list(component.score([samples[index] for index in rows])) if rows else []
            if len(results) != len(rows):
                raise ValueError(f"{len(results)} results for {len(rows)} samples")
        except Exception as error:
            results = [self._failed(component, error)] * len(rows)
        for index, result in zip(rows, results, strict=True):
            column[index] = self._checked(component, result)
        return column

    @staticmethod
    def _failed(component: RewardComponent, error: Exception) -> RewardResult:
        _log.error("Reward %r failed: %s: %s", component.name, type(error).__name__, error, exc_info=error)
        return RewardResult(None, error=f"{type(error).__name__}: {error}")

    @staticmethod
    def _checked(component: RewardComponent, result: Any) -> RewardResult:
        if not isinstance(result, RewardResult):
            error = f"returned {type(result).__name__} instead of a RewardResult"
        elif result.error is not None:
            error = result.error
        elif result.value is None:
            return result
        elif not isinstance(result.value, (int, float)) or not -1e-6 <= result.value <= 1 + 1e-6:
            error = f"value {result.value!r} is not a number in [0, 1]"  # NaN fails the comparison too
        else:
            return result
        _log.error("Reward %r failed on a sample: %s", component.name, error)
        return RewardResult(None, error=error)

    def _count(self, name: str, column: Sequence[RewardResult]) -> int:
        failed = [result.error is not None for result in column if result.error is not None or result.value is not None]
        self.scored[name] += len(failed)
        self.failures[name] += sum(failed)
        recent = self._recent[name]
        recent.extend(failed)
        if len(recent) * 2 >= self.window and sum(recent) > self.max_failures * len(recent):
            last = next((result.error for result in reversed(column) if result.error is not None), "see the log")
            raise RewardFailure(
                f"Reward {name!r} failed on {sum(recent)} of its last {len(recent)} samples (limit: "
                f"{self.max_failures:.0%}); last failure: {last}. Mend the component, or raise max_failures."
            )
        return sum(failed)


def outcome_of(sample: Sample) -> float:
    """The task's own success on what no reward reads; NaN where unknown.

    ``tests``: share of hidden tests passed. ``exact_match``: 1 if the code equals, white space folded, the reference
    or any of ``metadata["accepted"]``.
    """
    task = sample.task
    if task.success_metric == "exact_match":
        accepted = {_fold(text) for text in (task.reference, *task.metadata.get("accepted", ()))}
        return float(_fold(sample.code) in accepted)
    if sample.execution is None or _is_infra(sample):
        return math.nan
    share = sample.execution.share_passed(visible=False)
    return math.nan if share is None else share


def _fold(text: str) -> str:
    return " ".join(text.split())


def _is_infra(sample: Sample) -> bool:
    return sample.execution is not None and sample.execution.status == "infra"


def _identity(request: Request) -> Hashable:
    task = request.task
    metadata = id(task.metadata) if any(name in task.metadata for name in TEST_LISTS) else None
    return request.program, task.language, task.entry_point, id(task.tests), metadata, request.measure_cost


def _value(result: RewardResult) -> float:
    return math.nan if result.value is None else min(1.0, max(0.0, float(result.value)))


def _evidence(sample: Sample, row: Mapping[str, RewardResult]) -> dict[str, list[Span]]:
    mapped = {name: sample.spans_in_text(result.spans) for name, result in row.items() if result.spans}
    return {name: spans for name, spans in mapped.items() if spans}
