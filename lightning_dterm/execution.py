"""Judges programs on their tasks' own tests, whatever their kind and language: one judge for rewards and evaluation.

==================  ===========================================================================================
Python, calls       the sandbox: values are compared outside of the program's process
Python, assertions  converted where they can be, else against a value-only stub, else ``trust="in_process"``
Python, texts       the sandbox, a process per test, standard input and output on files
C, C++, Java,       built once and run in the exec profile of the sandbox, by calls and by texts
JavaScript
==================  ===========================================================================================
"""

from __future__ import annotations

import hashlib
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lightning_dterm.sandbox import Job, Level, Limits, Result, SandboxUnavailable
from lightning_dterm.sandbox.asserts import TestSyntaxError
from lightning_dterm.sandbox.languages import CompileLimits, Compilers, ProgramJob, Programs, canonical
from lightning_dterm.sandbox.languages.process import FENCES
from lightning_dterm.sandbox.sandbox import judge_all
from lightning_dterm.sandbox.stub import ConversionError, Suite, TestSource, convert, run_suites
from lightning_dterm.task_tests import TaskTestError, TaskTests, declared_tests, has_tests
from lightning_dterm.text_runs import TextRun, together
from lightning_dterm.types import CallTest, CodeTask

_log = logging.getLogger(__name__)
_ATTEMPTS = 2
_SUITES = 8192


class Runner(Protocol):
    """What the judge needs of a :class:`lightning_dterm.sandbox.Sandbox`."""

    def run_many(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Judge Python programs; results in the order of ``jobs``."""


@dataclass(frozen=True, slots=True)
class Request:
    """One program to judge on all tests of a task, visible and hidden.

    Attributes:
        task: Whose tests; without any, a Python program is compiled only.
        program: The whole program, in the task's language.
        measure_cost: Count operations over the visible calls and assertions too, if all of them pass (Python).
    """

    task: CodeTask
    program: str
    measure_cost: bool = False


class TaskJudge:
    """Judges programs of any language that can be run here, all tests of a task together. Thread-safe.

    Compilers are looked for when a program of their language first turns up; their processes start with it.

    Args:
        sandbox: Where Python runs; its slots, limits, least level and opt-ins hold for the other languages too.
    """

    def __init__(self, sandbox: Runner) -> None:
        language = getattr(sandbox, "language", "python")
        if language != "python":
            raise ValueError(
                f"TaskJudge and rewards judge every language and take Sandbox(), not Sandbox(language={language!r})."
            )
        # The registry that hands judges out must not keep a sandbox alive.
        self._sandbox: weakref.ref[Runner] = weakref.ref(sandbox)
        self._lock = threading.RLock()
        self._compilers: Compilers | None = None
        self._suites: OrderedDict[bytes, list[Suite]] = OrderedDict()

    @property
    def sandbox(self) -> Runner:
        """Where Python programs run."""
        found = self._sandbox()
        if found is None:
            raise RuntimeError("TaskJudge: its sandbox is gone; keep the sandbox for as long as the judge.")
        return found

    @property
    def compilers(self) -> Compilers:
        """The compilers of the other languages, made on first use."""
        with self._lock:
            if self._compilers is None:
                self._compilers = Compilers(**compiler_options(self.sandbox))
            return self._compilers

    def close(self) -> None:
        """End the compilers and what they run; judging again starts them anew. The sandbox is left alone."""
        with self._lock:
            if self._compilers is not None:
                self._compilers.close()
                self._compilers = None

    # --- what can be judged ------------------------------------------------------------------------------------------

    def runs(self, language: str) -> bool:
        """Whether programs in ``language`` can be run here; what is missing is said in one warning."""
        name = canonical(language)
        if name in ("python", "text"):
            return name == "python"
        backend = self.compilers.backends.get(name)
        if backend is None or not backend.runs:
            known = sorted(one for one, found in self.compilers.backends.items() if found.runs)
            _say(f"Programs in {language!r} are not run: their tests do not apply. Known: {', '.join(known)}.")
            return False
        if backend.path is None:
            _say(
                f"No compiler for {name} is installed: tests of programs in it do not apply. Install "
                f"{backend.package} (for example: apt-get install {backend.package})."
            )
        return backend.path is not None

    def judges(self, task: CodeTask) -> bool:
        """Whether the task has tests that can be run here."""
        return has_tests(task) and self.runs(task.language)

    def cost_tests(self, task: CodeTask) -> tuple[CallTest, ...]:
        """The visible tests whose operations can be counted: calls, and assertions that could be made into calls.

        Raises:
            TaskTestError: malformed tests.
            TestSyntaxError / ConversionError: assertions that cannot be read or run.
        """
        if canonical(task.language) != "python":
            return ()
        tests = declared_tests(task)
        with self._lock:
            found = [*tests.calls, *(test for suite in self._converted(task, tests) for test in suite.tests)]
        return tuple(test for test in found if test.visible)

    # --- judging -----------------------------------------------------------------------------------------------------

    def run(self, requests: Sequence[Request]) -> list[Result | None]:
        """Judge programs, as many at a time as there are slots; in order.

        ``per_test`` has the outcomes of calls, assertions and texts, in this order. Our own accidents, tests that
        cannot be read included, are ``infra``: no verdict.

        Returns:
            Results; None where the language cannot be run here, or another language than Python has no tests.

        Raises:
            SandboxUnavailable: programs cannot be isolated as asked.
        """
        parts: list[list[Result]] = [[] for _ in requests]
        specs: dict[int, TaskTests] = {}
        for index, request in enumerate(requests):
            try:
                specs[index] = declared_tests(request.task)
            except TaskTestError as error:
                parts[index].append(_lost(f"task {request.task.task_id!r}: {error}"))
        python = {i: t for i, t in specs.items() if canonical(requests[i].task.language) == "python"}
        others = {i: t for i, t in specs.items() if i not in python and t and self.runs(requests[i].task.language)}
        with self._lock:
            called = self._python_calls(requests, python)
            broken = {index for index, result in called.items() if result.compile_error is not None}
            asserted = self._python_asserts(requests, python)
            written = self._python_texts(requests, python, broken)
            for found in (called, asserted, written, self._other_languages(requests, others)):
                for index, result in found.items():
                    parts[index].append(result)
            results = [together(found) if found else None for found in parts]
            return self._with_cost(requests, python, results)

    def _python_calls(self, requests: Sequence[Request], specs: dict[int, TaskTests]) -> dict[int, Result]:
        """Calls in one process a program; a program without any test, or with texts alone, is compiled only."""
        jobs = {}
        for index, tests in specs.items():
            request = requests[index]
            if tests.calls:
                cost = request.measure_cost and not tests.asserts
                jobs[index] = Job(request.program, request.task.entry_point, tests.calls, cost)
            elif not tests.asserts:
                jobs[index] = Job(request.program, None)
        return self._run(jobs)

    def _python_asserts(self, requests: Sequence[Request], specs: dict[int, TaskTests]) -> dict[int, Result]:
        pairs: list[tuple[str, Suite]] = []
        owners: list[int] = []
        found: dict[int, list[Result]] = {}
        for index, tests in specs.items():
            if not tests.asserts:
                continue
            try:
                suites = self._converted(requests[index].task, tests)
            except (TestSyntaxError, ConversionError) as error:
                found[index] = [_lost(f"task {requests[index].task.task_id!r}: {error}")]
                continue
            pairs += [(requests[index].program, suite) for suite in suites]
            owners += [index] * len(suites)
        results = run_suites(self.sandbox, pairs) if pairs else []  # type: ignore[arg-type]
        for index, judged in zip(owners, results, strict=True):
            outcomes = tuple(replace(one, trust=judged.trust) for one in judged.result.per_test)
            found.setdefault(index, []).append(replace(judged.result, per_test=outcomes, trust=judged.trust))
        return {index: together(parts) for index, parts in found.items()}

    def _python_texts(
        self, requests: Sequence[Request], specs: dict[int, TaskTests], broken: Container[int]
    ) -> dict[int, Result]:
        """A process per test, in growing waves, so that a program that hangs does not hang once for every test."""
        runs = {
            index: TextRun(requests[index].program, tests, index in broken)
            for index, tests in specs.items()
            if tests.texts
        }
        limits: Limits = getattr(self.sandbox, "limits", None) or Limits()
        while open_ := {index: run for index, run in runs.items() if not run.done(limits)}:
            jobs = [(run, job) for run in open_.values() for job in run.jobs(limits)]
            for (run, _), result in zip(jobs, judge_all(self.sandbox, [job for _, job in jobs]), strict=True):
                run.take(result)
        return {index: run.result() for index, run in runs.items()}

    def _other_languages(self, requests: Sequence[Request], specs: dict[int, TaskTests]) -> dict[int, Result]:
        if not specs:
            return {}
        jobs: list[tuple[int, ProgramJob]] = []
        for index, tests in specs.items():
            task, program = requests[index].task, requests[index].program
            for group in (tests.calls, tests.texts):
                if group:
                    job = ProgramJob(task.language, program, group, task.entry_point, tests.rule, tests.tolerance)
                    jobs.append((index, job))
        programs = Programs(self.compilers, getattr(self.sandbox, "limits", None))
        results = self._built(programs, [job for _, job in jobs])
        for _ in range(_ATTEMPTS - 1):
            again = [place for place, result in enumerate(results) if result.status == "infra"]
            for place, result in zip(again, self._built(programs, [jobs[i][1] for i in again]), strict=True):
                results[place] = result
        parts: dict[int, list[Result]] = {}
        for (index, _), result in zip(jobs, results, strict=True):
            parts.setdefault(index, []).append(self._isolated(result))
        return {index: together(found) for index, found in parts.items()}

    def _built(self, programs: Programs, jobs: Sequence[ProgramJob]) -> list[Result]:
        """Run jobs; one whose tests its language cannot be given is the task's fault, and no other's."""
        try:
            results = programs.run_many(jobs) if jobs else []
        except ValueError as error:
            if len(jobs) == 1:
                return [_lost(str(error))]
            return [self._built(programs, [job])[0] for job in jobs]
        return [result or _lost("its compiler is gone") for result in results]

    def _isolated(self, result: Result) -> Result:
        """Refuse what ran under less than the least level that is accepted."""
        least = getattr(self.sandbox, "min_level", Level.NONE)
        if result.wall_s > 0 and Level.parse(result.level) < least:
            raise SandboxUnavailable(
                f"Compiled programs run at level {result.level!r} at most, below min_level {least.label!r}: lower it, "
                "or leave tasks in other languages than Python out."
            )
        return result

    def _with_cost(
        self, requests: Sequence[Request], specs: dict[int, TaskTests], results: list[Result | None]
    ) -> list[Result | None]:
        """Count what passed assertions cost: a run of its own, since their calls are known only when converted."""
        jobs = {}
        for index, tests in specs.items():
            result, request = results[index], requests[index]
            if result is None or result.share_passed(visible=True) != 1.0 or result.claimed(visible=True):
                continue  # where a program's own word is all there is, it earns nothing
            if request.measure_cost and tests.asserts and (counted := self.cost_tests(request.task)):
                jobs[index] = Job(request.program, request.task.entry_point, counted, True)
        for index, counted_run in self._run(jobs).items():
            known = results[index]
            assert known is not None
            lost = counted_run.status == "infra"
            results[index] = replace(known, status="infra") if lost else replace(known, cost=counted_run.cost)
        return results

    def _run(self, jobs: dict[int, Job]) -> dict[int, Result]:
        return dict(zip(jobs, judge_all(self.sandbox, list(jobs.values())), strict=True)) if jobs else {}

    # --- assertions --------------------------------------------------------------------------------------------------

    def _converted(self, task: CodeTask, tests: TaskTests) -> list[Suite]:
        """The task's assertions, converted once."""
        if not tests.asserts:
            return []
        reference = task.prefix + task.reference if task.reference.strip() else None
        shown = [(one.visible, one.test) for one in tests.asserts]
        key = hashlib.blake2b(repr([task.entry_point, tests.context, reference, shown]).encode("utf-8", "replace"))
        suites = self._suites.get(key.digest())
        if suites is None:
            sources = [
                TestSource(text, task.entry_point or "", tests.context, reference, visible)
                for visible, text in _joined(tests)
            ]
            # The same inputs on every process and after a resume; no program can know the text that they follow from.
            seed = int.from_bytes(key.digest()[:7], "big")
            suites = convert(sources, self.sandbox, seed)  # type: ignore[arg-type]
            for suite in suites:
                if suite.kind == "in_process":
                    _say(
                        f"A test of task {task.task_id!r} runs in the program's own process ({suite.reason}): its "
                        "verdict is only a claim, and its results say trust='in_process'."
                    )
            self._suites[key.digest()] = suites
        self._suites.move_to_end(key.digest())
        while len(self._suites) > _SUITES:
            self._suites.popitem(last=False)
        return suites


class _NoSandbox:
    """Says what is installed, and runs nothing."""

    def run_many(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Nothing is run without a sandbox."""
        raise RuntimeError("no sandbox to run programs in; call setup(sandbox) first.")


_NO_SANDBOX = _NoSandbox()
_said: set[str] = set()
_judges: weakref.WeakKeyDictionary[Any, TaskJudge] = weakref.WeakKeyDictionary()


def judge_for(sandbox: Runner | None) -> TaskJudge:
    """The one judge of a sandbox: whoever shares the sandbox shares compilers, caches and converted tests.

    Args:
        sandbox: Without one, the judge only says what is installed.
    """
    owner = _NO_SANDBOX if sandbox is None else sandbox
    if owner not in _judges:
        _judges[owner] = TaskJudge(owner)
    return _judges[owner]


def _say(message: str) -> None:
    """Warn, once per process."""
    if message not in _said:
        _said.add(message)
        _log.warning("%s", message)


def compiler_options(sandbox: Runner, limits: CompileLimits | None = None) -> dict[str, Any]:
    """Arguments of :class:`Compilers` that give it the slots and the opt-ins of a sandbox."""
    missing = set(getattr(sandbox, "allow_missing", ()))
    least = getattr(sandbox, "min_level", Level.KERNEL)
    missing |= {"landlock"} if least < Level.KERNEL else set()
    missing |= {"seccomp"} if least < Level.SYSCALLS else set()
    options = {
        "slots": getattr(sandbox, "slots", None),
        "limits": limits,
        "allow_missing": sorted(missing & FENCES),
        "namespaces": getattr(sandbox, "namespaces", True),
        "min_level": least,
    }
    return {name: value for name, value in options.items() if value is not None}


def _joined(tests: TaskTests) -> Iterator[tuple[bool, str]]:
    """(visible, source): plain assertions together, since each reports on its own; a ``check`` stays alone."""
    for visible in (True, False):
        texts = [one.test for one in tests.asserts if one.visible == visible]
        plain = [text for text in texts if "def check" not in text]
        if plain:
            yield visible, "\n".join(plain)
        yield from ((visible, text) for text in texts if "def check" in text)


def _lost(reason: str) -> Result:
    """No verdict, by no fault of the program."""
    return Result("infra", exception=reason[:300])
