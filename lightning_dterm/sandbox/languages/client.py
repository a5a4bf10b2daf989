"""Behind ``Sandbox(language=...)``: programs of one compiled language, judged as Python programs are."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from lightning_dterm.sandbox.client import Results, SlotState, Ticket, report_level
from lightning_dterm.sandbox.languages.compilers import Compilers, canonical
from lightning_dterm.sandbox.languages.diagnostics import Report
from lightning_dterm.sandbox.languages.process import FENCES
from lightning_dterm.sandbox.languages.programs import ProgramJob, Programs, not_built
from lightning_dterm.sandbox.levels import Level
from lightning_dterm.sandbox.result import Job, Result
from lightning_dterm.sandbox.slot import SandboxUnavailable, Settings

_ATTEMPTS = 2


class CompiledClient:
    """Stands in for :class:`~lightning_dterm.sandbox.client.Client`; a batch is judged when it is first read.

    Args:
        settings: Limits of programs, least level, namespaces.
        slots: Programs at a time.
        language: As the registry knows it.
        allow_missing: Fences that may be missing.

    Raises:
        ValueError: programs in that language cannot be run here.
    """

    def __init__(self, settings: Settings, slots: int, language: str, allow_missing: Sequence[str]) -> None:
        self.settings, self.slots, self.language = settings, slots, canonical(language)
        self.pid: int | None = None
        self.restarts = 0
        missing = set(allow_missing)
        missing |= {"landlock"} if settings.min_level < Level.KERNEL else set()
        missing |= {"seccomp"} if settings.min_level < Level.SYSCALLS else set()
        self._compilers = Compilers(
            slots, allow_missing=sorted(missing & FENCES), namespaces=settings.namespaces, min_level=settings.min_level
        )
        self._lock = threading.Lock()
        backend = self._compilers.backends.get(self.language)
        if backend is None or not backend.runs:
            known = ["python", *sorted(name for name, one in self._compilers.backends.items() if one.runs)]
            self._compilers.close()
            raise ValueError(f"Programs in {language!r} cannot be run; known: {', '.join(known)}.")
        self._backend = backend

    @property
    def states(self) -> dict[int, SlotState]:
        """What a launcher was granted; starts one.

        Raises:
            SandboxUnavailable: no compiler, or less isolation than the least that is accepted.
        """
        if self._backend.path is None:
            raise SandboxUnavailable(
                f"No compiler for {self.language} is installed. Install {self._backend.package} (for example: apt-get "
                f"install {self._backend.package})."
            )
        level, fences, reasons = self._compilers.isolation()
        return {0: SlotState(level, fences, reasons, 0)}

    def submit(self, jobs: Sequence[Job | ProgramJob]) -> Results:
        """Results that are computed, all together, when the first is read.

        Raises:
            ValueError: operations are to be counted, which only Python's can be, or another language's program.
        """
        if any(isinstance(job, Job) and job.measure_cost for job in jobs):
            raise ValueError(
                f"measure_cost: of programs in {self.language} no operations can be counted, only Python's."
            )
        for job in jobs:
            if isinstance(job, ProgramJob) and canonical(job.language) != self.language:
                raise ValueError(
                    f"Sandbox(language={self.language!r}) got a program in {job.language!r}: use Programs."
                )
        tickets = [Ticket(Job(job.program, None)) for job in jobs]

        def wait(ticket: Ticket) -> Result:
            with self._lock:
                if not ticket.done:
                    for one, result in zip(tickets, self._judge(jobs), strict=True):
                        one.result = result
            assert ticket.result is not None
            return ticket.result

        return Results(tickets, wait)

    def close(self) -> None:
        """End compilers and programs; the next batch starts them anew."""
        self._compilers.close()

    def _judge(self, jobs: Sequence[Job | ProgramJob]) -> list[Result]:
        state = self.states[0]
        report_level(state)
        results: list[Result] = [self._lost()] * len(jobs)
        for _ in range(_ATTEMPTS):
            left = [place for place, result in enumerate(results) if result.status == "infra"]
            run = [place for place in left if jobs[place].tests]
            found = Programs(self._compilers, self.settings.limits).run_many([self._program(jobs[i]) for i in run])
            for place, result in zip(run, found, strict=True):
                results[place] = result or self._lost()
            compiled = [place for place in left if not jobs[place].tests]
            reports = self._compilers.check_many([(self.language, jobs[i].program, "full") for i in compiled])
            for place, report in zip(compiled, reports, strict=True):
                results[place] = self._lost() if report is None else _compiled(report)
        # what was compiled only, or did not compile, ran nothing that could tell the level: it is the compiler's
        return [
            replace(one, level=state.level) if one.level == "none" and one.status != "infra" else one for one in results
        ]

    def _program(self, job: Job | ProgramJob) -> ProgramJob:
        if isinstance(job, ProgramJob):
            return job
        return ProgramJob(self.language, job.program, job.tests, job.entry_point, limits=job.limits)

    def _lost(self) -> Result:
        return Result("infra", exception=f"the compiler of {self.language} is gone")


def _compiled(report: Report) -> Result:
    """A program without tests is compiled only, as Python's are."""
    if report.status == "ok":
        return Result("passed", cpu_s=report.cpu_s)
    return Result("infra", exception=report.reason[:300]) if report.status == "infra" else not_built((), report)
