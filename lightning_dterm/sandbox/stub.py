"""Runs assert-style tests: converted where they can be, else against a value-only stub, else beside the program.

How far a verdict can be trusted is settled by the test alone, never by the program under test:

* ``literal`` and ``evaluated``: the program's process gets calls, the judge compares what they return. For
  ``evaluated``, arguments and expected values are computed once, in a sandboxed process without any program.
* ``stub``: the test runs in a sandboxed process of its own. Its candidate is a stub that answers from recorded
  outcomes; calls without one are made in the program's process, and the test runs again with what they returned, until
  it has all it asks for. Values (and changes to arguments) cross, nothing else; the verdict is the test process's.
* ``in_process``: the test needs more than values (functions as arguments, objects of classes that the program defines).
  It runs in the program's process, so its verdict is only a claim.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_dterm.sandbox import wire
from lightning_dterm.sandbox.asserts import Plan, read_test
from lightning_dterm.sandbox.expect import Expectation, Recorder
from lightning_dterm.sandbox.result import STATUSES, Job, Result, TestOutcome, Trust
from lightning_dterm.sandbox.sandbox import Sandbox, judge_all
from lightning_dterm.types import CallTest

Kind = Literal["literal", "evaluated", "stub", "in_process"]
KINDS: tuple[str, ...] = get_args(Kind)
MAX_ROUNDS = 16
_MAX_IMPORTS = 4
_DEPTH = 2  # of a known outcome among the arguments of run_round
_RUNTIME = Path(__file__).with_name("stub_runtime.py").read_text("utf-8")
_BESIDE = f"""

__stub__ = {{"__name__": "stub"}}
exec({_RUNTIME!r}, __stub__)
__stub_call__ = lambda name, *request: __stub__["call"](__stub_call__.__globals__, name, request)
__stub_run__ = lambda *test: __stub__["run_beside"](__stub_run__.__globals__, *test)
"""
_UNPLAIN = "Refused: not plain data"


@dataclass(frozen=True, slots=True)
class TestSource:
    """One task's test as its benchmark writes it.

    Attributes:
        test: Assert statements, or a function ``check(candidate)``.
        entry_point: Name of the function under test.
        context: Trusted code that the test builds on (HumanEval's prompt with its helper functions, MBPP's test
            imports and set-up code); never the program under test.
        reference: A correct program; where it is given, a test that it fails against values is run ``in_process``.
        visible: Whether rewards may read the outcomes, see :class:`CallTest`.
    """

    __test__ = False

    test: str
    entry_point: str
    context: str = ""
    reference: str | None = None
    visible: bool = True


@dataclass(frozen=True, slots=True)
class Suite:
    """A converted test: plain data, made once per task by :func:`convert`, used for any number of programs.

    Attributes:
        kind: How it runs, see the module.
        plan: What reading it found.
        tests: The calls and expectations (``literal`` and ``evaluated``).
        calls: The calls that the test makes whatever they return (``stub``).
        context: See :class:`TestSource`, with the imports that the test lacks.
        seed: Seed of ``random`` in the test's process.
        reason: Why it is of no better kind.
        visible: See :class:`TestSource`.
    """

    kind: Kind
    plan: Plan
    tests: tuple[CallTest, ...] = ()
    calls: tuple[Any, ...] = ()
    context: str = ""
    seed: int = 0
    reason: str = ""
    visible: bool = True


class ConversionError(RuntimeError):
    """A test that could not be run without a program: names the entry point and the remedy."""

    def __init__(self, entry_point: str, status: str) -> None:
        remedy = "raise the sandbox's limits, or repair the test" if status == "timeout" else "see the sandbox's log"
        super().__init__(f"The test of {entry_point!r} could not be run without a program ({status}): {remedy}.")


@dataclass(frozen=True, slots=True)
class AssertResult:
    """Verdict on one program: ``result.per_test`` has an outcome per call test, or per assert statement.

    ``trust`` is ``in_process`` where the verdict is a claim of the program's own process; ``processes`` counts the
    sandboxed processes it took, ``calls`` are those that a ``stub`` test made.
    """

    result: Result
    trust: Trust
    kind: Kind
    processes: int = 1
    calls: tuple[Any, ...] = ()


def convert(sources: Sequence[TestSource], sandbox: Sandbox, seed: int | None = None) -> list[Suite]:
    """Convert tests; whatever has to be computed is computed in the sandbox.

    Args:
        sources: The tests.
        sandbox: Where test code runs.
        seed: Seed of ``random`` in tests that draw their inputs. The default is secret, so that no program can draw the
            same numbers instead of computing with them; give one for inputs that are the same from run to run.

    Raises:
        TestSyntaxError: a test does not parse.
        ConversionError: a test runs into the sandbox's time limits without any program, or could not be run.
    """
    seed = secrets.randbits(62) if seed is None else seed
    suites: list[Suite] = []
    for source in sources:
        plan = read_test(source.test, source.entry_point)
        kind: Kind = "literal" if plan.tests else "evaluated" if plan.emitter is not None else "stub"
        tests = tuple(replace(test, visible=source.visible) for test in plan.tests or ())
        suites.append(Suite(kind, plan, tests, (), source.context, seed, plan.reason, source.visible))
    for kind, settle in (("evaluated", _settle_evaluated), ("stub", _settle_stub)):
        for _ in range(_MAX_IMPORTS):
            open_ = [i for i, suite in enumerate(suites) if suite.kind == kind and not suite.tests and not suite.calls]
            rounds = _rounds(sandbox, [(suites[i], []) for i in open_])
            for i, (found, failure) in zip(open_, rounds, strict=True):
                if failure in ("infra", "timeout"):  # never a reason to trust a verdict less: the machine may be busy
                    raise ConversionError(sources[i].entry_point, failure)
                suites[i] = settle(suites[i], found, failure)
    return _check_references(sources, suites, sandbox)


def _settle_evaluated(suite: Suite, found: dict[str, Any] | None, failure: str) -> Suite:
    if found is None or found["ended"] != "ok" or found["pending"]:
        return _with_import(suite, found) or replace(suite, kind="stub", reason=_obstacle(found, failure))
    rules = suite.plan.rules
    tests = [
        CallTest(args, Expectation(expected, *rules[place]), suite.visible)
        for place, args, expected in found["emitted"]
    ]
    if tests:
        return replace(suite, tests=tuple(tests))
    return replace(suite, kind="stub", reason="no assertion is reached")


def _settle_stub(suite: Suite, found: dict[str, Any] | None, failure: str) -> Suite:
    if found is None or found["missing"] or found["ended"].startswith("not plain"):
        return _with_import(suite, found) or replace(suite, kind="in_process", reason=_obstacle(found, failure))
    return replace(suite, calls=tuple(found["calls"]))


def _with_import(suite: Suite, found: dict[str, Any] | None) -> Suite | None:
    """MBPP's tests use modules that only the reference imports: give the test its own."""
    name = found["missing"] if found else None
    if name not in sys.stdlib_module_names or f"import {name}\n" in suite.context:
        return None
    return replace(suite, context=f"{suite.context}\nimport {name}\n")


def _obstacle(found: dict[str, Any] | None, failure: str) -> str:
    if found is None:
        return f"the test does not run by itself ({failure})"
    if found["missing"]:
        return f"the test uses {found['missing']!r}, which the program defines"
    return found["ended"] if found["ended"] != "ok" else "the test calls the candidate outside of its assertions"


def _check_references(sources: Sequence[TestSource], suites: list[Suite], sandbox: Sandbox) -> list[Suite]:
    known = [(i, source.reference) for i, source in enumerate(sources) if source.reference is not None]
    results = run_suites(sandbox, [(reference, suites[i]) for i, reference in known])
    for (i, _), found in zip(known, results, strict=True):
        if found.result.status not in ("passed", "infra") and suites[i].kind != "in_process":
            said = f"{found.result.status}: {found.result.exception or 'wrong value'}"
            suites[i] = replace(suites[i], kind="in_process", reason=f"the reference fails against values ({said})")
        elif suites[i].kind == "stub":
            suites[i] = replace(suites[i], calls=found.calls)  # a program that is right needs one round only
    return suites


def run_suites(sandbox: Sandbox, pairs: Sequence[tuple[str, Suite]]) -> list[AssertResult]:
    """Judge programs against converted tests; results in the order of ``pairs``. Processes of all slots overlap."""
    found: list[AssertResult | None] = [None] * len(pairs)
    direct = [i for i, (_, suite) in enumerate(pairs) if suite.kind in ("literal", "evaluated")]
    jobs = [Job(pairs[i][0], pairs[i][1].plan.entry_point, pairs[i][1].tests) for i in direct]
    beside = [i for i, (_, suite) in enumerate(pairs) if suite.kind == "in_process"]
    recorders = [Recorder() for _ in beside]
    jobs += [_beside(*pairs[i], recorder) for i, recorder in zip(beside, recorders, strict=True)]
    results = judge_all(sandbox, jobs)
    for i, result in zip(direct, results, strict=False):
        if result.status != "failed" or not (result.exception or "").startswith(_UNPLAIN):
            found[i] = AssertResult(result, "values", pairs[i][1].kind)
    for i, recorder, result in zip(beside, recorders, results[len(direct) :], strict=True):
        found[i] = AssertResult(_claimed(recorder, result, pairs[i][1]), "in_process", "in_process")
    runs = {i: _StubRun(program, suite) for i, (program, suite) in enumerate(pairs) if found[i] is None}
    _run_stubs(sandbox, list(runs.values()))
    again = {i: runs[i].finish() for i in runs}
    for i, result in zip(direct, results, strict=False):
        if i in again and again[i].result.status not in ("passed", "infra"):
            # Values that cannot be carried get a second look, not a choice: what fails is counted by calls, as ever.
            again[i] = AssertResult(result, "values", pairs[i][1].kind)
    return [result or again[i] for i, result in enumerate(found)]


def _beside(program: str, suite: Suite, recorder: Recorder) -> Job:
    arguments = (suite.plan.program, suite.plan.entry_point, suite.seed)
    return Job(program + _BESIDE, "__stub_run__", (CallTest(arguments, recorder),), trust="in_process")


def _claimed(recorder: Recorder, result: Result, suite: Suite) -> Result:
    """The verdict that the program's own process reports."""
    if not recorder.returned:
        status = result.per_test[0].status if result.per_test else result.status
        return _spread(result, status, suite)
    if not _well_formed(recorder.value):
        return replace(_spread(result, "forged", suite), status="forged", exception="Forged: malformed report")
    return _verdict(recorder.value, result, suite)


def _spread(result: Result, status: str, suite: Suite) -> Result:
    outcomes = [TestOutcome(False, status, suite.visible) for _ in range(suite.plan.n_sites)]
    return replace(result, per_test=tuple(outcomes))


def _well_formed(found: Any) -> bool:
    """Whether a report has the form of ``stub_runtime._run``."""
    keys = {"ended", "missing", "last", "pending", "calls", "sites", "emitted"}
    return (
        type(found) is dict and found.keys() == keys and type(found["ended"]) is str and type(found["sites"]) is list
        and all(type(site) is tuple and len(site) == 3 for site in found["sites"]) and type(found["last"]) is tuple
        and type(found["calls"]) is list and all(type(call) is tuple and len(call) == 2 for call in found["calls"])
        and type(found["emitted"]) is list and len(found["last"]) == 2
    )  # fmt: skip


def _verdict(found: dict[str, Any], base: Result, suite: Suite) -> Result:
    """A :class:`Result` from the report of a test that has run to its end."""
    sites = {site: (status, line) for site, status, line in found["sites"] if type(site) is int}
    ended = found["ended"]
    status: Any = ended if ended in STATUSES and ended != "passed" else "error"
    rest = found["last"] if found["last"][0] == status else (status, None)
    outcomes = []
    for site in range(suite.plan.n_sites):
        status, line = sites.get(site, ("passed", None) if ended == "ok" else rest)
        line = line if type(line) is int and 0 < line < 1 << 31 else None
        status = status if status in STATUSES else "error"
        outcomes.append(TestOutcome(status == "passed", status, suite.visible, line))
    if ended != "ok" and outcomes and all(outcome.passed for outcome in outcomes):
        outcomes[-1] = TestOutcome(
            False, rest[0], suite.visible
        )  # a test that breaks off after its assertions has not passed
    bad = [outcome.status for outcome in outcomes if not outcome.passed]
    ranked = ("timeout", "memory", "output", "killed", "exited", "error", "failed")
    overall: Any = next((status for status in ranked if status in bad), "passed" if ended == "ok" else "error")
    lines = tuple(dict.fromkeys(outcome.line for outcome in outcomes if outcome.line is not None))
    return replace(base, status=overall, per_test=tuple(outcomes), lines=lines)


class _StubRun:
    """One program against one test in its own process, round by round."""

    def __init__(self, program: str, suite: Suite) -> None:
        self.program, self.suite = program + _BESIDE, suite
        self.requests: list[Any] = list(suite.calls)
        self.outcomes: list[Any] = []
        self.processes = 0
        self.result: Result | None = None
        self.base = Result("passed")

    def job(self, recorders: list[Recorder]) -> Job:
        """Every call known so far, in one process, so that the program's own state is as the test would see it."""
        entry = self.suite.plan.entry_point
        tests = [CallTest((entry, *request), keep) for request, keep in zip(self.requests, recorders, strict=True)]
        return Job(self.program, "__stub_call__", tuple(tests))

    def take_calls(self, result: Result, recorders: list[Recorder]) -> None:
        """Outcomes of the calls, from the program's process: claims about its own values."""
        self._account(result)
        if result.status in ("infra", "forged") or result.compile_error or (not recorders and not result.passed):
            self.result = _spread(self.base, result.status, self.suite)
            return
        self.outcomes = []
        for request, recorder, outcome in zip(self.requests, recorders, result.per_test, strict=True):
            if recorder.returned and not _is_claim(recorder.value):
                self.result = replace(_spread(self.base, "forged", self.suite), status="forged")
                return
            known = (request, recorder.value if recorder.returned else ("dead", outcome.status))
            try:
                wire.encode(known, _DEPTH)
            except wire.Refused:  # as an argument it lies deeper than as a claim
                known = (request, ("dead", "failed"))
            self.outcomes.append(known)

    def take_round(self, found: dict[str, Any] | None, failure: str) -> None:
        """What the test's process reports: a verdict, or further calls."""
        self.processes += 1
        status: Any = failure if failure in STATUSES else "error"
        if found is None:
            message = f"the test's process ended with: {failure}"
        elif found["missing"] or found["ended"].startswith("not plain"):
            status, message = "error", _obstacle(found, failure)
        elif not found["pending"]:
            self.result = _verdict(found, self.base, self.suite)
            return
        elif len(found["calls"]) > len(self.outcomes) or _form(found["calls"]) != _form(self.requests):
            self.requests = found["calls"]
            return
        else:
            status, message = "error", "the test waits for a call that it does not make"
        self.result = replace(_spread(self.base, status, self.suite), status=status, exception=message)

    def _account(self, result: Result) -> None:
        self.processes += 1
        cpu_s, wall_s = self.base.cpu_s + result.cpu_s, self.base.wall_s + result.wall_s
        peak = max(self.base.peak_rss, result.peak_rss)
        self.base = replace(result, cpu_s=cpu_s, wall_s=wall_s, peak_rss=peak)

    def finish(self) -> AssertResult:
        """The verdict; no pass without one."""
        result = self.result
        if result is None:
            message = f"the test still asks for new calls after {MAX_ROUNDS} rounds"
            result = replace(_spread(self.base, "error", self.suite), status="error", exception=message)
        return AssertResult(result, "values", self.suite.kind, self.processes, tuple(self.requests))


def _form(value: Any) -> bytes:
    """A text that is equal exactly where type and value are, NaN included."""
    return wire.dumps(wire.encode(value))


def _is_claim(value: Any) -> bool:
    """Whether a call's outcome has the form of ``stub_runtime.call``'s."""
    if type(value) is not tuple or len(value) not in (3, 5) or type(value[-1]) is not tuple:
        return False
    changes = all(type(change) is tuple and len(change) == 2 and type(change[0]) is int for change in value[-1])
    return changes and value[0] == ("ok" if len(value) == 3 else "raised")


def _run_stubs(sandbox: Sandbox, runs: Sequence[_StubRun]) -> None:
    for _ in range(MAX_ROUNDS):
        active = [run for run in runs if run.result is None]
        if not active:
            return
        recorders = [[Recorder() for _ in run.requests] for run in active]
        results = judge_all(sandbox, [run.job(keep) for run, keep in zip(active, recorders, strict=True)])
        for run, result, keep in zip(active, results, recorders, strict=True):
            run.take_calls(result, keep)
        active = [run for run in active if run.result is None]
        for run, found in zip(active, _rounds(sandbox, [(r.suite, r.outcomes) for r in active]), strict=True):
            run.take_round(*found)


def _rounds(sandbox: Sandbox, items: Iterable[tuple[Suite, list[Any]]]) -> list[tuple[dict[str, Any] | None, str]]:
    """Run test programs in processes of their own: their reports, or None and what went wrong."""
    jobs, recorders = [], []
    for suite, outcomes in items:
        plan = suite.plan
        source = plan.emitter if suite.kind == "evaluated" and not suite.tests and plan.emitter else plan.program
        recorders.append(Recorder())
        arguments = (suite.context, source, plan.entry_point, suite.seed, outcomes)
        jobs.append(Job(_RUNTIME, "run_round", (CallTest(arguments, recorders[-1]),)))
    found: list[tuple[dict[str, Any] | None, str]] = []
    for recorder, result in zip(recorders, judge_all(sandbox, jobs), strict=True):
        failure = result.per_test[0].status if result.per_test else result.status
        if failure in ("failed", "error") and result.exception:
            failure = result.exception
        found.append((recorder.value if _well_formed(recorder.value) else None, failure))
    return found
