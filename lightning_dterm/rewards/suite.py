"""Scores a batch with every component: one sandbox run, errors isolated, everything counted. No Lightning."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_dterm.execution import Request, TaskJudge, judge_for
from lightning_dterm.rewards.base import Progress, RewardComponent
from lightning_dterm.rewards.columns import Column, ComponentRunner
from lightning_dterm.rewards.outcome import outcome_of
from lightning_dterm.sandbox import Sandbox
from lightning_dterm.sandbox.languages import canonical
from lightning_dterm.task_tests import TEST_LISTS, has_tests
from lightning_dterm.types import RewardResult, Sample, Span

_GRACE_S = 10.0  # that a call under way has to end when the run does


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
        failure_kinds: The same, per component and :data:`lightning_dterm.rewards.columns.FailureKind`.
        metrics: Scalars that components logged, ``<component>/<name>``.
        columns: Lists of B values that components logged, ``<component>/<name>``; None where not applicable.
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
    failure_kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    busy: float = 0.0
    waited: float = 0.0


@dataclass(slots=True)
class _Prepared:
    """What can be had of a batch while something else goes on: executions, and the columns that mostly wait."""

    execution_s: float = 0.0
    columns: dict[str, Column] = field(default_factory=dict)
    busy: float = 0.0


class Pending:
    """A batch whose rewards are under way in threads; :meth:`result` is to be called once."""

    def __init__(self, suite: RewardSuite, samples: Sequence[Sample], progress: Progress) -> None:
        self._suite, self._samples, self._progress = suite, samples, progress
        self._prepared: _Prepared | None = None
        self._error: BaseException | None = None
        self._stop, self._begun = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="rewards", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._prepared = self._suite._prepare(self._samples, self._progress, self._stop, self._begun)
        except BaseException as error:  # raised where the result is asked for
            self._error = error
        finally:
            self._begun.set()

    def abandon(self) -> None:
        """Ask for nothing: nothing more is begun; what runs in the sandbox is waited for, all else for a while."""
        self._stop.set()
        self._begun.wait()
        self._suite._cancel()

    def result(self) -> SuiteResult:
        """Wait for what is under way and do the rest.

        Raises:
            RewardFailure: see :meth:`RewardSuite.score`; and whatever stopped the execution.
        """
        started = time.perf_counter()
        self._thread.join()
        waited = time.perf_counter() - started
        if self._error is not None:
            raise self._error
        assert self._prepared is not None
        return self._suite._finish(self._samples, self._progress, self._prepared, waited)


class RewardSuite:
    """Several components over one sandbox.

    A component that raises, takes longer than its time, returns the wrong number of results, or a value that is not a
    finite number in [0, 1] has *failed* for those samples: masked, counted, logged, never a silent 0. So has one whose
    program the sandbox could not judge (``infra``). One whose call does not return at all is passed over, and its
    samples count as failed, until it does; it keeps neither the run nor the interpreter from ending.

    Args:
        components: At least one, with distinct names.
        sandbox: Where programs run; the suite does not close it.
        max_failures: Share of failed results, over the last ``window`` of one component, beyond which the run stops.
        window: Results remembered per component; the share is judged once half of them are in.
        timeout_s: Seconds that a component may take for a batch, where it does not say itself.

    Raises:
        ValueError: no component, a name twice, or a limit out of range.
    """

    def __init__(
        self,
        components: Sequence[RewardComponent],
        sandbox: Sandbox,
        max_failures: float = 0.25,
        window: int = 512,
        timeout_s: float = 600.0,
    ) -> None:
        self.components = list(components)
        self.names = tuple(component.name for component in self.components)
        if not self.components:
            raise ValueError("RewardSuite needs at least one reward component.")
        if twice := sorted(name for name, count in Counter(self.names).items() if count > 1):
            raise ValueError(f"RewardSuite: component names must be distinct, got {', '.join(twice)} more than once.")
        if not 0 <= max_failures <= 1 or window < 1:
            raise ValueError("RewardSuite: max_failures must lie in [0, 1] and window be at least 1.")
        timeouts = (timeout_s, *(c.timeout_s for c in self.components if c.timeout_s is not None))
        if wrong := [seconds for seconds in timeouts if not seconds > 0]:
            raise ValueError(f"RewardSuite: timeout_s must be positive, got {wrong[0]}.")
        self.sandbox, self.max_failures, self.window = sandbox, max_failures, window
        self._runners = {component.name: ComponentRunner(component, timeout_s) for component in self.components}
        self.failures: Counter[str] = Counter()
        self.kinds: dict[str, Counter[str]] = {name: Counter() for name in self.names}
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
        """Close every component and the compilers; a call under way is cancelled, and waited for a while."""
        idle = self._cancel()
        if idle:
            self.judge.close()
        for runner in self._runners.values():
            runner.close()

    def _cancel(self) -> bool:
        """Cancel all calls under way; whether none is left that uses the sandbox."""
        for runner in self._runners.values():
            runner.cancel()
        deadline = time.perf_counter() + _GRACE_S
        left = [one for one in self._runners.values() if not one.idle(deadline - time.perf_counter())]
        return all(one.idle(one.timeout_s) for one in left if one.reads_sandbox)

    def score(self, samples: Sequence[Sample], progress: Progress | None = None) -> SuiteResult:
        """Execute what must be executed, then score every sample with every component.

        Args:
            samples: B completions.
            progress: How far the run is, for components that ask.

        Raises:
            RewardFailure: a component failed on more than ``max_failures`` of its recent samples.
        """
        progress = progress or Progress()
        prepared = self._prepare(samples, progress, threading.Event(), threading.Event())
        return self._finish(samples, progress, prepared, prepared.busy)

    def start(self, samples: Sequence[Sample], progress: Progress | None = None) -> Pending:
        """Begin :meth:`score` in threads: the executions, and components that :attr:`RewardComponent.overlaps`.

        Those run beside each other, each in its own thread: at once where they do not read executions, after these
        where they do. Scores do not depend on it: components that may touch torch, random numbers or other ranks run
        one after the other during :meth:`Pending.result`, and all counting is done there.
        """
        return Pending(self, samples, progress or Progress())

    def _prepare(
        self, samples: Sequence[Sample], progress: Progress, stop: threading.Event, begun: threading.Event
    ) -> _Prepared:
        """Execute, and run what overlaps. ``begun``: from now on nothing is started; ``stop``: nothing shall be."""
        started = time.perf_counter()
        overlapping = [runner for runner in self._runners.values() if runner.component.overlaps]
        running = [runner.start(samples, progress) for runner in overlapping if runner.early]
        prepared = _Prepared(self._execute(samples))
        if not stop.is_set():
            running += [runner.start(samples, progress) for runner in overlapping if not runner.early]
        begun.set()
        prepared.columns = {one.runner.component.name: one.wait() for one in running}
        prepared.busy = time.perf_counter() - started
        return prepared

    def _finish(self, samples: Sequence[Sample], progress: Progress, prepared: _Prepared, waited: float) -> SuiteResult:
        columns = prepared.columns
        for name, runner in self._runners.items():
            if name not in columns:
                columns[name] = runner.run(samples, progress)
        results = [{name: columns[name].results[row] for name in self.names} for row in range(len(samples))]
        values = [[_value(row[name]) for name in self.names] for row in results]
        finished = SuiteResult(
            names=self.names,
            scores=torch.tensor(values, dtype=torch.float32).reshape(len(samples), len(self.names)),
            evidence=[_evidence(sample, row) for sample, row in zip(samples, results, strict=True)],
            outcome=torch.tensor([outcome_of(sample) for sample in samples], dtype=torch.float32),
            results=results,
            seconds={"execution": prepared.execution_s, **{name: columns[name].seconds for name in self.names}},
            failures={name: columns[name].kinds.total() for name in self.names},
            failure_kinds={name: dict(columns[name].kinds) for name in self.names if columns[name].kinds},
            metrics={f"{n}/{key}": value for n in self.names for key, value in columns[n].logged.metrics.items()},
            columns={f"{n}/{key}": value for n in self.names for key, value in columns[n].logged.columns.items()},
            busy=prepared.busy,
            waited=waited,
        )
        if stops := [stop for name in self.names if (stop := self._count(name, columns[name])) is not None]:
            raise RewardFailure(" ".join(stops))
        return finished

    def state_dict(self) -> dict[str, Any]:
        """Cumulative counts and the components' own states; plain data."""
        return {
            "failures": dict(self.failures),
            "scored": dict(self.scored),
            "kinds": {name: dict(kinds) for name, kinds in self.kinds.items()},
            "recent": {name: list(recent) for name, recent in self._recent.items()},
            "components": {component.name: component.state_dict() for component in self.components},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`'s state; components that are new or gone keep their defaults."""
        self.failures, self.scored = Counter(state["failures"]), Counter(state["scored"])
        for name in self.names:
            self.kinds[name] = Counter(state.get("kinds", {}).get(name, {}))
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

    def _count(self, name: str, column: Column) -> str | None:
        """Count a batch; why the run must stop, where it must."""
        failed = [r.error is not None for r in column.results if r.error is not None or r.value is not None]
        self.scored[name] += len(failed)
        self.failures[name] += sum(failed)
        self.kinds[name].update(column.kinds)
        recent = self._recent[name]
        recent.extend(failed)
        if len(recent) * 2 < self.window or sum(recent) <= self.max_failures * len(recent):
            return None
        last = next((result.error for result in reversed(column.results) if result.error is not None), "see the log")
        so_far = ", ".join(f"{count} {kind}" for kind, count in self.kinds[name].most_common())
        return (
            f"Reward {name!r} failed on {sum(recent)} of its last {len(recent)} samples (limit: "
            f"{self.max_failures:.0%}); last failure: {last}. In the whole run: {so_far}. Mend the component, or raise "
            "max_failures."
        )


def _identity(request: Request) -> Hashable:
    task = request.task
    metadata = id(task.metadata) if any(name in task.metadata for name in TEST_LISTS) else None
    return request.program, task.language, task.entry_point, id(task.tests), metadata, request.measure_cost


def _value(result: RewardResult) -> float:
    return math.nan if result.value is None else min(1.0, max(0.0, float(result.value)))


def _evidence(sample: Sample, row: Mapping[str, RewardResult]) -> dict[str, list[Span]]:
    mapped = {name: sample.spans_in_text(result.spans) for name, result in row.items() if result.spans}
    return {name: spans for name, spans in mapped.items() if spans}
