"""The public face: run model-written programs outside this process, one or many, in order."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from lightning_dterm.sandbox.result import Job, Limits, Result
from lightning_dterm.sandbox.slot import FULL_FENCES, SandboxUnavailable, Slot
from lightning_dterm.types import CallTest


def default_slots() -> int:
    """Cores this process may use, shared among the processes of one node (``LOCAL_WORLD_SIZE``)."""
    return max(1, _cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Sandbox:
    """Runs Python programs in fenced child processes and judges what they return.

    Each slot is one warm, bare interpreter, started by ``exec`` on first use, that forks one child per program. The
    child gets the program and the arguments of its calls, never an expected value; what it sends back are claims
    that are compared here, by type and value.

    Level ``process`` guarantees: CPU, wall-clock, address-space, file-size and descriptor limits; no new privileges;
    no other processes, programs, sockets, signals to or limits of others, tracing or namespaces (seccomp deny-list); no
    file outside the standard library and shared objects can be opened for reading, none outside a scratch folder
    (emptied after every program) can be written (Landlock); no process outlives its program, and no worker outlives
    the trainer, not even after SIGKILL. It does **not** guarantee: safety against kernel bugs (for that run the worker
    in a VM or gVisor), an own user, network or process namespace, a total limit on scratch space, or a line count
    (:attr:`Result.cost`) that a program which goes after its own tracer cannot lower. On a kernel that
    grants less, :class:`SandboxUnavailable` is raised at the first run unless ``allow_missing`` names the fence, and
    the level then says what is missing.

    Safe to pickle and to carry across a fork of the trainer (either side starts its own workers). Thread-safe;
    concurrent calls of :meth:`run_many` take turns.

    Args:
        slots: Programs at a time; default: the cores this process may use.
        limits: Limits of every program.
        allow_missing: Fences (``seccomp``, ``landlock``) that may be missing: an explicit opt-in to less isolation.

    Raises:
        SandboxUnavailable: not Linux.
    """

    def __init__(
        self, slots: int | None = None, limits: Limits | None = None, allow_missing: Sequence[str] = ()
    ) -> None:
        if not sys.platform.startswith("linux"):
            raise SandboxUnavailable(
                f"Model-written programs can be isolated on Linux only, not on {sys.platform}: use a Linux container, "
                "VM or WSL 2, or train without rewards that execute programs (compile, tests, efficiency)."
            )
        if slots is not None and slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}.")
        if unknown := set(allow_missing) - FULL_FENCES:
            raise ValueError(f"allow_missing has unknown fences {sorted(unknown)}; known: {sorted(FULL_FENCES)}.")
        self.slots = slots if slots is not None else default_slots()
        self.limits = limits or Limits()
        self.allow_missing = tuple(allow_missing)
        self._prepare()

    def _prepare(self) -> None:
        required = FULL_FENCES - set(self.allow_missing)
        self._slots = [Slot(self.limits, required) for _ in range(self.slots)]
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _close_all, self._slots)  # also runs at interpreter exit

    def share(self, processes: int) -> None:
        """Divide the cores among ``processes`` trainers on this machine; before the first run."""
        self.slots = max(1, min(self.slots, _cores() // max(1, processes)))
        self._prepare()

    def __getstate__(self) -> dict[str, Any]:
        return {"slots": self.slots, "limits": self.limits, "allow_missing": self.allow_missing}

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
    def level(self) -> str:
        """Isolation level in force; known once a program has run."""
        return self._slots[0].level

    def run(self, program: str, entry_point: str | None, tests: Sequence[CallTest] = ()) -> Result:
        """Judge one program; see :class:`Job`."""
        return self.run_many([Job(program, entry_point, tuple(tests))])[0]

    def run_many(self, jobs: Sequence[Job]) -> list[Result]:
        """Judge programs over all slots; results in the order of ``jobs``.

        Raises:
            SandboxUnavailable: the workers cannot be started or isolated as asked.
        """
        results: list[Result | None] = [None] * len(jobs)
        failures: list[BaseException] = []
        pending = iter(range(len(jobs)))
        with self._lock:
            active = self._slots[: max(1, min(self.slots, len(jobs)))]
            if len(active) == 1:
                _work(active[0], jobs, pending, threading.Lock(), results, failures)
            else:
                _in_threads(active, jobs, pending, results, failures)
        if failures:
            raise failures[0]
        return [result for result in results if result is not None]

    def close(self) -> None:
        """End all workers. The sandbox can be used again; it starts new ones."""
        with self._lock:
            _close_all(self._slots)


def _in_threads(
    slots: Sequence[Slot], jobs: Sequence[Job], pending: Iterator[int], results: list[Any], failures: list[Any]
) -> None:
    guard = threading.Lock()
    rest = (jobs, pending, guard, results, failures)
    threads = [threading.Thread(target=_work, args=(slot, *rest), daemon=True) for slot in slots]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C: let the programs in flight end, start no more
        failures.append(error)
        for thread in threads:
            thread.join()


def _work(
    slot: Slot,
    jobs: Sequence[Job],
    pending: Iterator[int],
    guard: threading.Lock,
    results: list[Result | None],
    failures: list[BaseException],
) -> None:
    while not failures:
        with guard:
            index = next(pending, None)
        if index is None:
            return
        try:
            results[index] = slot.run(jobs[index])
        except BaseException as error:
            failures.append(error)


def _close_all(slots: Sequence[Slot]) -> None:
    for slot in slots:
        slot.close()
