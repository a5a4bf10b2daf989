"""The public face: run model-written programs outside this process, one or many, in order."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, overload

from lightning_dterm.sandbox.client import Client, SlotState
from lightning_dterm.sandbox.clients import SLOTS_PER_JUDGE, Clients
from lightning_dterm.sandbox.levels import DEFAULT_LEVEL, FENCES, Level
from lightning_dterm.sandbox.plain import PlainClient
from lightning_dterm.sandbox.result import Job, Limits, Result, TestOutcome
from lightning_dterm.sandbox.slot import SandboxUnavailable, Settings
from lightning_dterm.sandbox.tickets import Results
from lightning_dterm.types import CallTest

if TYPE_CHECKING:
    from lightning_dterm.sandbox.languages.client import CompiledClient
    from lightning_dterm.sandbox.languages.programs import IOTest, ProgramJob


def default_slots() -> int:
    """Cores this process may use, shared among the processes of one node (``LOCAL_WORLD_SIZE``)."""
    return max(1, _cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Sandbox:
    """Runs programs of one language in fenced child processes and judges what they return.

    Python: a judge process, started by ``exec`` on first use, holds the expected values; each of its slots is one warm,
    bare interpreter that forks one child per program. The child gets the program and the arguments of its calls, never
    an expected value; what it sends back are claims that the judge compares, by type and value. C, C++, Java and
    JavaScript: built once, then run in the exec profile, compared here
    (:class:`lightning_dterm.sandbox.languages.Programs`).

    What is guaranteed at each :class:`Level` is in ``docs/sandbox.md``. A new slot must judge an honest program right
    and hold against one that attacks every fence before it is used; where it amounts to less than ``min_level``,
    :class:`SandboxUnavailable` says what is missing. A lower ``min_level`` is the explicit opt-in to less: it is logged
    as an error, and every result carries the level that it ran under.

    Safe to pickle and to carry across a fork of the trainer (either side starts its own judge). Thread-safe.

    Args:
        slots: Programs at a time; default: the cores this process may use.
        limits: Limits of programs that bring none of their own.
        allow_missing: Fences that may be missing (``seccomp``, ``landlock``): lowers ``min_level`` accordingly.
        language: Of the programs: ``python``, ``c``, ``cpp``, ``java`` or ``javascript``. For several at once, and what
            :class:`lightning_dterm.rewards.RewardSuite` takes, see :class:`lightning_dterm.execution.TaskJudge`.
        min_level: The least isolation to accept: a :class:`Level` or its label.
        namespaces: Whether to use namespaces where the kernel grants them (default; the rest holds without them).
        without: Fences to do without although they are there, for tests of the lower levels (Python).

    Raises:
        SandboxUnavailable: not Linux, and ``min_level`` is not ``none``.
        ValueError: a language whose programs cannot be run, no slot, an unknown fence.
    """

    def __init__(
        self,
        slots: int | None = None,
        limits: Limits | None = None,
        allow_missing: Sequence[str] = (),
        *,
        language: str = "python",
        min_level: Level | str = DEFAULT_LEVEL,
        namespaces: bool = True,
        without: Sequence[str] = (),
    ) -> None:
        if slots is not None and slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}.")
        if unknown := (set(allow_missing) | set(without)) - FENCES.keys():
            raise ValueError(f"unknown fences {sorted(unknown)}; known: {sorted(FENCES)}.")
        self.language = language
        self.slots = slots if slots is not None else default_slots()
        self.limits = limits or Limits()
        self.allow_missing = tuple(allow_missing)
        lowest = (
            Level.PROCESS if "seccomp" in allow_missing else Level.SYSCALLS if "landlock" in allow_missing else None
        )
        self.min_level = min(Level.parse(min_level), lowest if lowest is not None else Level.NAMESPACES)
        self.namespaces, self.without = namespaces, tuple(without)
        if self.min_level > Level.NONE and not sys.platform.startswith("linux"):
            raise SandboxUnavailable(
                f"Model-written programs can be isolated on Linux only, not on {sys.platform}: use a Linux container, "
                "VM or WSL 2, or train without rewards that execute programs (compile, tests, efficiency). To run them "
                "here with nothing but a process of their own and a clock, able to do whatever you can, say so: "
                "Sandbox(min_level='none')."
            )
        self._prepare()

    def _prepare(self) -> None:
        settings = Settings(self.limits, self.min_level, self.namespaces, frozenset(self.without))
        linux = sys.platform.startswith("linux")
        self._client: Client | Clients | PlainClient | CompiledClient
        if self.language != "python":
            from lightning_dterm.sandbox.languages.client import CompiledClient

            self._client = CompiledClient(settings, self.slots, self.language, self.allow_missing)
            self.language = self._client.language
            self._finalizer = weakref.finalize(self, self._client.close)
            return
        kind = PlainClient if not linux else Client if self.slots <= SLOTS_PER_JUDGE else Clients
        self._client = kind(settings, self.slots)
        self._finalizer = weakref.finalize(self, self._client.close)  # also runs at interpreter exit

    def share(self, processes: int) -> None:
        """Divide the cores among ``processes`` trainers on this machine; before the first run."""
        self.slots = max(1, min(self.slots, _cores() // max(1, processes)))
        self._finalizer()
        self._prepare()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def level(self) -> Level:
        """Isolation in force, the least of all slots; starts one if none has run yet."""
        return min((Level.parse(state.level) for state in self.states()), default=Level.NONE)

    def states(self) -> list[SlotState]:
        """What each running slot was granted; starts one if none has run yet."""
        if not self._client.states:
            self.run("")
        return list(self._client.states.values())

    def run(
        self,
        program: str,
        entry_point: str | None = None,
        tests: Sequence[CallTest] | Sequence[IOTest] = (),
        limits: Limits | None = None,
    ) -> Result:
        """Judge one program; see :class:`Job`. Text in against text out: in other languages than Python.

        Raises:
            TypeError: an argument of another kind, such as tests in the place of ``entry_point``.
            ValueError: calls without an ``entry_point``; and as :meth:`run_many`.
        """
        _refuse_other_kinds(program, entry_point, tests, limits)
        calls = [test for test in tests if isinstance(test, CallTest)]
        if len(calls) == len(tests):
            return self.run_many([Job(program, entry_point, tuple(calls), limits=limits)])[0]
        from lightning_dterm.sandbox.languages.programs import ProgramJob

        texts = cast("tuple[IOTest, ...]", tuple(tests))
        return self.run_many([ProgramJob(self.language, program, texts, entry_point, limits=limits)])[0]

    @overload
    def run_many(self, jobs: Sequence[Job | ProgramJob], lazy: Literal[False] = ...) -> list[Result]: ...

    @overload
    def run_many(self, jobs: Sequence[Job | ProgramJob], lazy: Literal[True]) -> Results: ...

    def run_many(self, jobs: Sequence[Job | ProgramJob], lazy: bool = False) -> list[Result] | Results:
        """Judge programs over all slots; results in the order of ``jobs``.

        Args:
            jobs: The programs; in other languages than Python
                :class:`~lightning_dterm.sandbox.languages.ProgramJob` too, for tests on text.
            lazy: Return at once with a sequence that waits for each result when it is read: the judging overlaps with
                whatever else this process does (in other languages it starts with the first that is read).

        Raises:
            SandboxUnavailable: the workers cannot be started or isolated as asked, or there is no compiler (when a
                result is read).
            ValueError: arguments or expected values are not plain data (when a result is read), or jobs of another
                language.
        """
        if self.language == "python":
            results = self._client.submit([_python_job(job) for job in jobs])
        else:
            results = self._client.submit(jobs)  # type: ignore[arg-type]
        return results if lazy else list(results)

    def close(self) -> None:
        """End all processes. The sandbox can be used again; it starts new ones."""
        self._client.close()


def _refuse_other_kinds(program: object, entry_point: object, tests: object, limits: object) -> None:
    """Say which argument of :meth:`Sandbox.run` is of another kind, above all tests in the place of the entry point."""
    from lightning_dterm.sandbox.languages.programs import IOTest

    if not isinstance(program, str):
        raise TypeError(f"program must be a str, got {type(program).__name__}.")
    if not isinstance(entry_point, (str, type(None))):
        name = type(entry_point).__name__
        raise TypeError(f"entry_point must be a str or None, got {name}; tests go by name: run(program, tests=...).")
    listed = isinstance(tests, Sequence) and not isinstance(tests, (str, bytes))
    odd = [test for test in tests if not isinstance(test, (CallTest, IOTest))] if isinstance(tests, Sequence) else []
    if odd or not listed:
        name = type(tests).__name__ + (f" with a {type(odd[0]).__name__}" if listed else "")
        raise TypeError(f"tests must be a sequence of CallTest or IOTest, got {name}.")
    if not isinstance(limits, (Limits, type(None))):
        raise TypeError(f"limits must be Limits or None, got {type(limits).__name__}.")


def _python_job(job: Job | ProgramJob) -> Job:
    if not isinstance(job, Job):
        raise ValueError(
            "Sandbox(language='python') judges calls. For programs on standard input and output, see "
            "lightning_dterm.execution.TaskJudge (Python and others), or Sandbox(language='cpp') for another language."
        )
    return job


class Runner(Protocol):
    """What :func:`judge_all` needs of a :class:`Sandbox`."""

    def run_many(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Judge Python programs; results in the order of ``jobs``."""


def judge_all(runner: Runner, jobs: Sequence[Job]) -> list[Result]:
    """Judge programs; a job that cannot be judged is ``infra`` and says why, and costs no other its verdict.

    Raises:
        SandboxUnavailable: the workers cannot be started or isolated as asked.
    """
    if not isinstance(runner, Sandbox):
        return list(runner.run_many(jobs))
    pending, results = runner.run_many(jobs, lazy=True), []
    for place, job in enumerate(jobs):
        try:
            results.append(pending[place])
        except ValueError as error:
            outcomes = tuple(TestOutcome(False, "infra", test.visible) for test in job.tests)
            results.append(Result("infra", outcomes, exception=str(error)[:300], trust=job.trust))
    return results
