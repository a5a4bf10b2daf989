"""What every compiler backend offers, and what it may use to do its work."""

from __future__ import annotations

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Protocol

from lightning_dterm.sandbox.languages.diagnostics import Report, ReportStatus
from lightning_dterm.sandbox.languages.process import Command, Ended
from lightning_dterm.sandbox.languages.service import Service
from lightning_dterm.sandbox.result import Limits

Stage = Literal["parse", "full"]
_BEYOND = {
    "output": "the compiler wrote more than its limit",
    "timeout": "the compiler needed more than its time limit",
    "memory": "the compiler needed more than its memory limit",
}
_OUT_OF_MEMORY = (b"out of memory", b"Cannot allocate memory", b"virtual memory exhausted")


@dataclass(frozen=True, slots=True)
class CompileLimits:
    """Limits of one compilation.

    Attributes:
        cpu_s: CPU seconds; the limit that template bombs are meant to hit.
        wall_s: Wall-clock seconds; generous, since load must not fail good programs.
        memory_mb: Address space of a native compiler, in MiB.
        heap_mb: Heap of a compiler in the JVM or in node, in MiB.
        output_kb: Diagnostics in KiB beyond which the compiler is stopped.
        artifact_kb: Size limit of any file it writes, in KiB.
    """

    cpu_s: float = 10.0
    wall_s: float = 60.0
    memory_mb: int = 2048
    heap_mb: int = 256
    output_kb: int = 1024
    artifact_kb: int = 65536

    def __post_init__(self) -> None:
        for name in ("cpu_s", "wall_s", "memory_mb", "heap_mb", "output_kb", "artifact_kb"):
            if not getattr(self, name) > 0:
                raise ValueError(f"CompileLimits.{name} must be positive, got {getattr(self, name)!r}.")


class Tools(Protocol):
    """What a backend may use: a fenced launcher, shared services and a folder for precompiled headers."""

    limits: CompileLimits

    @property
    def headers(self) -> str:
        """The folder of precompiled headers."""
        ...

    def run(self, command: Command) -> Ended:
        """Run a command to its end."""
        ...

    def service(self, name: str, make: Callable[[], Service]) -> Service:
        """The shared service ``name``, made on first use."""
        ...


class Backend(ABC):
    """One compiler.

    Attributes:
        languages: Canonical names of what it compiles.
        package: What to install where it is missing (Debian's name).
        runs: Whether programs it built can be run.
        canaries: A good program for each language whose compiler is started for each program; it must be accepted
            before others are judged (services have a canary of their own).
        any_exit: Languages whose programs may return any exit code; old C returns what happens to be in a register.
    """

    languages: tuple[str, ...]
    package: str
    runs: bool = False
    canaries: ClassVar[Mapping[str, str]] = {}
    any_exit: frozenset[str] = frozenset({"c"})

    @cached_property
    @abstractmethod
    def path(self) -> str | None:
        """Where the compiler is; None where it is not installed."""

    @cached_property
    @abstractmethod
    def version(self) -> str:
        """Name and version, as :attr:`Report.compiler` gives it."""

    @property
    def identity(self) -> str:
        """Changes whenever the compiler does; part of every cache key."""
        assert self.path is not None
        status = os.stat(self.path)
        return f"{self.version} {self.path} {status.st_size} {status.st_mtime_ns}"

    @abstractmethod
    def rules(self) -> Sequence[tuple[str, str]]:
        """(path, rights) that it, or what it built, must be able to read."""

    @abstractmethod
    def check(self, language: str, source: str, stage: Stage, tools: Tools) -> Report:
        """Compile for the diagnostics alone."""

    def build(self, language: str, source: str, tools: Tools) -> Report:
        """Compile to an artifact that :meth:`command` can run.

        Raises:
            NotImplementedError: this backend only checks.
        """
        raise NotImplementedError(f"{type(self).__name__} does not build programs.")

    def command(self, artifact: bytes, stdin: bytes, limits: Limits) -> Command:
        """How to run an artifact on one input.

        Raises:
            NotImplementedError: this backend only checks.
        """
        raise NotImplementedError(f"{type(self).__name__} does not run programs.")


def gave_up(ended: Ended, limits: CompileLimits) -> tuple[ReportStatus, str] | None:
    """Why a compiler stopped without a verdict of its own; None where it has one."""
    if ended.error:
        return "infra", ended.error
    limit = ended.limit(limits.cpu_s)  # a compiler that succeeds may quote any words
    if limit is None and ended.code != 0 and any(words in ended.stderr for words in _OUT_OF_MEMORY):
        limit = "memory"
    if limit is not None:
        return limit, _BEYOND[limit]
    if ended.signal:
        return "crash", f"the compiler was ended by signal {ended.signal}"
    return None


def which(*names: str) -> str | None:
    """The first of ``names`` on PATH, links resolved no further than its own folder (drivers look at their name)."""
    for name in names:
        if found := shutil.which(name):
            return os.path.abspath(found)
    return None


def first_line(*command: str) -> str:
    """The first line a trusted tool prints about itself; empty where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = (done.stdout or done.stderr).decode("utf-8", "replace").strip().splitlines()
    return lines[0].strip() if lines else ""
