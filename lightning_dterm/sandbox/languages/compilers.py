"""The registry: language name to compiler, many programs at a time, inside limits, cached."""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lightning_dterm.sandbox.folders import HeldFolder
from lightning_dterm.sandbox.languages.backend import Backend, CompileLimits, Stage
from lightning_dterm.sandbox.languages.cache import CompileCache
from lightning_dterm.sandbox.languages.diagnostics import Diagnostic, Report, ReportStatus, distinct
from lightning_dterm.sandbox.languages.gcc import CCompiler
from lightning_dterm.sandbox.languages.java import JavaCompiler
from lightning_dterm.sandbox.languages.process import FENCES, Command, Ended, Launcher, LauncherLost
from lightning_dterm.sandbox.languages.script import CSharpCompiler, GoCompiler, NodeCompiler, PhpCompiler
from lightning_dterm.sandbox.languages.service import Service
from lightning_dterm.sandbox.levels import DEFAULT_LEVEL, Level, missing_for
from lightning_dterm.sandbox.result import Job, Result
from lightning_dterm.sandbox.sandbox import Sandbox, default_slots

_log = logging.getLogger(__name__)
_ALIASES = {
    "c++": "cpp", "cxx": "cpp", "cc": "cpp", "c#": "csharp", "c_sharp": "csharp", "cs": "csharp", "js": "javascript",
    "node": "javascript", "golang": "go", "py": "python", "python3": "python",
}  # fmt: skip
_warned: set[str] = set()
_ATTEMPTS = 3
_NEVER_COMPILED = "the compiler ended abnormally"  # what the judge says where no verdict came

_EXHAUSTED = ("MemoryError", "RecursionError")  # in these words ``compile_program`` tells of exceptions of CPython's


def canonical(language: str) -> str:
    """The registry's name of a language: lower case, ``c++`` is ``cpp``, ``c#`` ``csharp``, ``js`` ``javascript``."""
    name = language.strip().lower()
    return _ALIASES.get(name, name)


def default_backends() -> list[Backend]:
    """One compiler per language: gcc (clang where there is no gcc), javac, node, gofmt, php, mcs."""
    c = CCompiler("gcc")
    if c.path is None and (clang := CCompiler("clang")).path is not None:
        c = clang
    return [c, JavaCompiler(), NodeCompiler(), GoCompiler(), PhpCompiler(), CSharpCompiler()]


class _Slot:
    """What backends use in one thread: a launcher of its own, services shared with the other slots."""

    def __init__(self, owner: Compilers, rules: Sequence[tuple[str, str]]) -> None:
        self.limits, self._owner = owner.limits, owner
        self.launcher = Launcher(rules, owner.required, namespaces=owner.namespaces, leftovers=owner._leftovers())

    @property
    def headers(self) -> str:
        """The folder of precompiled headers."""
        return self._owner.headers

    def run(self, command: Command) -> Ended:
        """Run a command, and again if it or its launcher was killed from outside.

        Raises:
            LauncherLost: each time.
        """
        lost = LauncherLost("never tried")
        for _ in range(_ATTEMPTS):
            try:
                ended = self.launcher.run(command)
            except LauncherLost as error:
                lost = error
                continue
            if "outside" not in ended.flags:
                return ended
            said = ended.stderr[-200:].decode("utf-8", "replace").strip()
            lost = LauncherLost(f"{command.arguments[0]} was killed from outside, {_ATTEMPTS} times: {said}")
        raise lost

    def service(self, name: str, make: Callable[[], Service]) -> Service:
        """The service of all slots."""
        return self._owner._service(name, make)


class Compilers:
    """Compiles programs of many languages in fenced processes; safe to share between threads.

    Args:
        slots: Compilations at a time; default: the cores this process may use.
        limits: Limits of each compilation.
        cache: Where reports and artifacts are kept; default: a private temporary folder.
        backends: Compilers by preference, later ones override earlier ones; default: :func:`default_backends`.
        allow_missing: Fences (``seccomp``, ``landlock``) that may be missing: an explicit opt-in to less isolation.
        sandbox: Where Python is compiled; default: one of its own.
        namespaces: Use namespaces where the kernel grants them.
        min_level: ``namespaces`` accepts nothing less; below that, ``allow_missing`` says what may be missing.

    Raises:
        ValueError: ``slots`` below 1, an unknown fence, or no such level.
    """

    def __init__(
        self,
        slots: int | None = None,
        limits: CompileLimits | None = None,
        cache: CompileCache | None = None,
        backends: Sequence[Backend] | None = None,
        allow_missing: Sequence[str] = (),
        sandbox: Sandbox | None = None,
        namespaces: bool = True,
        min_level: Level | str = DEFAULT_LEVEL,
    ) -> None:
        if sandbox is not None and sandbox.language != "python":
            raise ValueError(f"Compilers: sandbox must run Python, not {sandbox.language!r}.")
        if slots is not None and slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}.")
        if unknown := set(allow_missing) - FENCES:
            raise ValueError(f"allow_missing has unknown fences {sorted(unknown)}; known: {sorted(FENCES)}.")
        self.slots = slots or default_slots()
        self.limits = limits or CompileLimits()
        self.required = FENCES - set(allow_missing)
        if Level.parse(min_level) == Level.NAMESPACES:
            self.required |= frozenset(missing_for(Level.NAMESPACES, FENCES))
        self.cache = cache or CompileCache()
        self._owns_cache = cache is None
        self.namespaces = namespaces
        self._sandbox, self._owns_sandbox = sandbox, sandbox is None
        self._allow_missing = tuple(allow_missing)
        chosen = default_backends() if backends is None else list(backends)
        self.backends: dict[str, Backend] = {name: backend for backend in chosen for name in backend.languages}
        self._headers = HeldFolder("headers", 0o755)  # compilers may run as another user
        self._services: dict[str, Service] = {}
        self._vetted: set[str] = set()
        self._idle: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        rules = [rule for backend in {id(b): b for b in chosen}.values() if backend.path for rule in backend.rules()]
        slots_made = [_Slot(self, [*rules, (self.headers, "r")]) for _ in range(self.slots)]
        for slot in slots_made:
            self._idle.put(slot)
        self._lock = threading.Lock()
        launchers = [slot.launcher for slot in slots_made]
        self._finalizer = weakref.finalize(self, _close, launchers, self._services, self._headers)

    @property
    def headers(self) -> str:
        """The folder of precompiled headers."""
        return self._headers.ensure()

    def _leftovers(self) -> list[str]:
        """Temporary folders that launchers remove if this process is killed."""
        return [self.headers, *([self.cache.folder] if self.cache.temporary else [])]

    # --- the registry -------------------------------------------------------------------------------------------------

    def supports(self, language: str) -> bool:
        """Whether a compiler for ``language`` is installed; a missing one is named in one warning per process."""
        name = canonical(language)
        if name == "python":
            return True
        backend = self.backends.get(name)
        if backend is not None and backend.path is not None:
            return True
        if name not in _warned:
            _warned.add(name)
            if backend is None:
                _log.warning("No compiler is known for %r: compile feedback does not apply to it.", language)
            else:
                _log.warning(
                    "No compiler for %s is installed: compile feedback does not apply to it. Install %s (for example: "
                    "apt-get install %s).", name, backend.package, backend.package,
                )  # fmt: skip
        return False

    def describe(self) -> dict[str, str | None]:
        """Language to compiler and version; None where it is not installed."""
        return {"python": "cpython"} | {
            name: backend.version if backend.path else None for name, backend in self.backends.items()
        }

    # --- compiling ----------------------------------------------------------------------------------------------------

    def check(self, language: str, program: str, stage: Stage = "full") -> Report | None:
        """Compile one program for its diagnostics; None where no compiler is installed."""
        return self.check_many([(language, program, stage)])[0]

    def check_many(self, programs: Sequence[tuple[str, str, Stage]]) -> list[Report | None]:
        """Compile (language, program, stage) for their diagnostics, equal ones once; in order.

        ``stage`` is ``parse`` (syntax only, for fragments that lean on code which is not there; Java and C#) or
        ``full``. None where no compiler is installed.

        Raises:
            LauncherUnavailable: the compilers cannot be isolated as required.
        """
        return self._many(programs, self._check)

    def build(self, language: str, program: str) -> Report | None:
        """Compile one program to an artifact that can be run; None where no compiler is installed."""
        return self.build_many([(language, program)])[0]

    def build_many(self, programs: Sequence[tuple[str, str]]) -> list[Report | None]:
        """Compile (language, program) to artifacts, equal ones once; in order."""
        return self._many([(language, program, "full") for language, program in programs], self._build)

    def run(self, command: Command) -> tuple[Ended, str]:
        """Run one command in an idle slot; how it ended, and the isolation level it had.

        Raises:
            LauncherLost: it, or its launcher, was killed from outside time and again.
        """
        slot = self._idle.get()
        try:
            return slot.run(command), slot.launcher.level
        finally:
            self._idle.put(slot)

    def isolation(self) -> tuple[str, frozenset[str], str]:
        """Level and fences that programs run under, and what the kernel said of others; starts a launcher.

        Raises:
            LauncherUnavailable: programs cannot be isolated as required.
        """
        slot = self._idle.get()
        try:
            slot.launcher.start()
            return slot.launcher.level, slot.launcher.granted, slot.launcher.reasons
        finally:
            self._idle.put(slot)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """``function`` of every item, as many at a time as there are slots; in order."""
        if self.slots == 1 or len(items) < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(self.slots, len(items)), thread_name_prefix="compile") as pool:
            return list(pool.map(function, items))

    def _many(
        self, programs: Sequence[tuple[str, str, Stage]], work: Callable[[tuple[str, str, Stage]], Report]
    ) -> list[Report | None]:
        asked = [(canonical(language), program, stage) for language, program, stage in programs]
        distinct_ones = list(dict.fromkeys(one for one in asked if self.supports(one[0])))
        python = [one for one in distinct_ones if one[0] == "python"]
        others = [one for one in distinct_ones if one[0] != "python"]
        answers: dict[tuple[str, str, Stage], Report] = dict(zip(others, self.map(work, others), strict=True))
        answers.update(zip(python, self._python([program for _, program, _ in python]), strict=True))
        return [answers.get(one) for one in asked]

    def _check(self, one: tuple[str, str, Stage]) -> Report:
        language, program, stage = one
        backend = self.backends[language]
        return self._cached(backend, one, lambda slot: backend.check(language, program, stage, slot))

    def _build(self, one: tuple[str, str, Stage]) -> Report:
        language, program, _ = one
        backend = self.backends[language]
        key: tuple[str, ...] = (language, program, "build")
        return self._cached(backend, key, lambda slot: backend.build(language, program, slot))

    def _cached(self, backend: Backend, what: Sequence[str], work: Callable[[_Slot], Report]) -> Report:
        key = CompileCache.key(backend.identity, repr(self.limits), *what)
        if (known := self.cache.get(key)) is not None:
            return known
        slot = self._idle.get()
        try:
            report = self._unfit(backend, what[0], slot) or work(slot)
        except LauncherLost as error:
            report = Report(what[0], backend.version, "infra", reason=str(error))
        finally:
            self._idle.put(slot)
        self.cache.put(key, report)
        return report

    def _unfit(self, backend: Backend, language: str, slot: _Slot) -> Report | None:
        """A compiler must accept a good program before it may judge others; ``infra`` where it does not, else None."""
        if language in self._vetted or language not in backend.canaries:
            return None
        report = backend.check(language, backend.canaries[language], "full", slot)
        if report.status == "ok":
            self._vetted.add(language)
            return None
        said = report.reason or next((one.message for one in report.errors), "no message")
        reason = f"{backend.version} does not compile a good program here: {said}"
        return Report(language, backend.version, "infra", reason=reason)

    def _python(self, programs: Sequence[str]) -> list[Report]:
        if not programs:
            return []
        if self._sandbox is None:
            self._sandbox = Sandbox(self.slots, allow_missing=self._allow_missing, namespaces=self.namespaces)
        return [python_report(result) for result in self._sandbox.run_many([Job(one, None) for one in programs])]

    def _service(self, name: str, make: Callable[[], Service]) -> Service:
        with self._lock:
            if name not in self._services:
                self._services[name] = make()
                self._services[name].adopt(self.required, self._leftovers(), self.namespaces)
            return self._services[name]

    def close(self) -> None:
        """End every process and remove every temporary folder. Compiling again starts anew."""
        slots = [self._idle.get() for _ in range(self.slots)]
        for slot in slots:
            slot.launcher.close()
            self._idle.put(slot)
        for service in list(self._services.values()):
            service.close()
        self._headers.close()
        if self._owns_sandbox and self._sandbox is not None:
            self._sandbox.close()
        if self._owns_cache:
            self.cache.close()

    def __enter__(self) -> Compilers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def python_report(result: Result) -> Report:
    """The sandbox's verdict on a Python program's compilation as a report, whether or not the program was run too.

    One that made CPython's compiler run out of time, memory or stack, or crash, is ``timeout``, ``memory``, ``output``
    or ``crash``: the judge then notes one error of its own making, and :meth:`Report.count` counts the most.
    """
    if result.status == "infra":
        return Report("python", "cpython", "infra", reason=result.exception or "")
    found = [
        Diagnostic("error", one.message, one.line, one.column, one.end_line, one.end_column)
        for one in result.compile_errors
    ]
    given_up: ReportStatus | None = None
    if found and found[0].message.startswith(_NEVER_COMPILED):
        statuses: dict[str, ReportStatus] = {"timeout": "timeout", "memory": "memory", "output": "output"}
        given_up = statuses.get(result.status, "crash")
    elif any(one.message.startswith(_EXHAUSTED) for one in found):  # behind lines blanked for other errors, too
        given_up = "memory"
    elif result.status == "forged":
        given_up = "crash"
    if given_up is not None:
        return Report("python", "cpython", given_up, (), result.cpu_s, reason=result.exception or "")
    return Report("python", "cpython", "errors" if found else "ok", distinct(found), result.cpu_s)


def _close(launchers: Sequence[Launcher], services: Mapping[str, Service], headers: HeldFolder) -> None:
    for launcher in launchers:
        launcher.close()
    for service in services.values():
        service.close()
    headers.close()
