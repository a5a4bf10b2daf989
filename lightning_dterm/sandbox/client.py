"""The trainer's end of the judge process: start it, stream jobs to it, take verdicts back in order, replace it."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import pickle
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, overload

from lightning_dterm.sandbox import wire
from lightning_dterm.sandbox.expect import Expectation
from lightning_dterm.sandbox.folders import sweep
from lightning_dterm.sandbox.judge import Judged, Keep, overall
from lightning_dterm.sandbox.judge_process import MESSAGE
from lightning_dterm.sandbox.levels import DEFAULT_LEVEL, Level
from lightning_dterm.sandbox.result import Job, Result, TestOutcome, from_plain
from lightning_dterm.sandbox.slot import SandboxUnavailable, Settings

_PROCESS = Path(__file__).with_name("judge_process.py")
_ATTEMPTS = 4
_GRACE_S = 120.0
_CHUNK = 64  # jobs in one message
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Ticket:
    """One job on its way: where it stands, and at last its result or the error to raise."""

    job: Job
    number: int = 0
    attempts: int = 0
    result: Result | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether it has been judged."""
        return self.result is not None or self.error is not None

    def portable(self) -> Job:
        """The job for another process: expected values that only this one can ask are left here."""
        if not any(_asks_here(test.expected) for test in self.job.tests):
            return self.job
        tests = tuple(replace(t, expected=Keep()) if _asks_here(t.expected) else t for t in self.job.tests)
        return replace(self.job, tests=tests)


@dataclass
class SlotState:
    """What a zygote was granted: the level's label, its fences, what the kernel said of others, its pid."""

    level: str
    fences: frozenset[str]
    reasons: str
    pid: int


class Results(Sequence[Result]):
    """Verdicts in the order of their jobs, each waited for when it is asked for; the judging goes on meanwhile."""

    def __init__(self, tickets: Sequence[Ticket], wait: Callable[[Ticket], Result]) -> None:
        self._tickets, self._wait = tickets, wait

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """The jobs on their way, in order."""
        return tuple(self._tickets)

    def __len__(self) -> int:
        return len(self._tickets)

    @overload
    def __getitem__(self, index: int) -> Result: ...

    @overload
    def __getitem__(self, index: slice) -> list[Result]: ...

    def __getitem__(self, index: int | slice) -> Result | list[Result]:
        if isinstance(index, slice):
            return [self._wait(ticket) for ticket in self._tickets[index]]
        return self._wait(self._tickets[index])

    def __iter__(self) -> Iterator[Result]:
        for ticket in self._tickets:
            yield self._wait(ticket)


@dataclass
class Client:
    """A judge process and the jobs that it has. Thread-safe; carried across a fork it starts a judge of its own.

    Attributes:
        settings: How zygotes are made.
        slots: Programs at a time.
        states: What the zygotes in use reported, by slot.
        restarts: Judges lost and replaced.
    """

    settings: Settings
    slots: int
    states: dict[int, SlotState] = field(default_factory=dict)
    restarts: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._pending: dict[int, Ticket] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._log: IO[bytes] | None = None
        self._buffer = bytearray()
        self._folder = ""
        self._owner = 0
        self._heard = False  # of any judge
        self._answers = 0  # of the present judge
        longest = self.settings.limits.wall_s * (self.settings.limits.restarts + 2)
        self._patience_s = 3 * longest + _GRACE_S

    @property
    def pid(self) -> int | None:
        """The judge's process id."""
        return None if self._process is None else self._process.pid

    @property
    def load(self) -> float:
        """Jobs that it has, by slot."""
        return len(self._pending) / self.slots

    def submit(self, jobs: Sequence[Job]) -> Results:
        """Hand jobs to the judge at once; wait for none."""
        tickets = [Ticket(job) for job in jobs]
        with self._lock:
            for start in range(0, len(tickets), _CHUNK):
                self._send(tickets[start : start + _CHUNK])
        return Results(tickets, self.wait)

    def wait(self, ticket: Ticket) -> Result:
        """The ticket's result.

        Raises:
            SandboxUnavailable: the workers cannot be started or isolated as asked.
            ValueError: the job's tests are not plain data.
        """
        if not ticket.done:
            with self._lock:
                while not ticket.done:
                    if self._owner != os.getpid() or ticket.number not in self._pending:
                        self._send([ticket])  # this side of a fork, or after close()
                    self._receive()
        if ticket.error is not None:
            raise ticket.error
        assert ticket.result is not None
        return ticket.result

    def _send(self, tickets: Sequence[Ticket]) -> None:
        """Send jobs in one message, in which tests that several of them share are written once."""
        self._ensure()
        jobs = []
        for ticket in tickets:
            ticket.number = next(self._numbers)
            job = ticket.portable()
            fields = (job.program, job.entry_point, job.tests, job.measure_cost, job.limits, job.trust)
            jobs.append((ticket.number, fields))
        data = pickle.dumps(jobs, pickle.HIGHEST_PROTOCOL)
        self._pending.update((ticket.number, ticket) for ticket in tickets)
        assert self._control is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its death shows when receiving
            self._control.sendall(MESSAGE.pack(len(data), 0) + data)

    def _receive(self) -> None:
        """Take what the judge has sent, waiting for something to come."""
        assert self._control is not None
        deadline = time.monotonic() + self._patience_s
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        while True:
            ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
            chunk = b""
            if ready:
                with contextlib.suppress(ConnectionResetError):
                    chunk = self._control.recv(1 << 20)
            if not chunk:
                self._replace("the judge process " + ("died" if ready else "stopped answering"))
                return
            self._buffer += chunk
            if self._dispatch():
                return

    def _dispatch(self) -> bool:
        """Hand complete messages to their tickets; whether there was one."""
        some = False
        while len(self._buffer) >= MESSAGE.size:
            length, number = MESSAGE.unpack_from(self._buffer)
            if len(self._buffer) < MESSAGE.size + length:
                break
            content = json.loads(self._buffer[MESSAGE.size : MESSAGE.size + length])
            del self._buffer[: MESSAGE.size + length]
            some = self._heard = True
            if content[0] == "slot":
                place, level, fences, reasons, pid = content[1]
                self.states[place] = SlotState(level, frozenset(fences), reasons, pid)
                report_level(self.states[place])
                continue
            ticket = self._pending.pop(number, None)
            if ticket is not None:
                self._answers += 1
                _answer(ticket, content)
        return some

    def _replace(self, reason: str) -> None:
        """Start another judge and hand it every job that the last one left; nothing is lost silently."""
        log, heard, fruitless = self._log_tail(), self._heard, self._answers == 0
        left = list(self._pending.values())
        self.close()
        self.restarts += 1
        for ticket in left:
            ticket.attempts += fruitless  # one that judged others may have died of anything: no job of many pays for it
            if ticket.attempts < _ATTEMPTS:
                self._send([ticket])
                continue
            if not heard:
                ticket.error = SandboxUnavailable(f"The sandbox's judge did not start: {log or 'no message'}")
                continue
            outcomes = tuple(TestOutcome(False, "infra", test.visible) for test in ticket.job.tests)
            message = f"{reason}: {log}" if log else reason
            ticket.result = Result("infra", outcomes, exception=message[:300], trust=ticket.job.trust)

    def _ensure(self) -> None:
        if self._owner != os.getpid():
            self._forget()
        if self._process is None:
            self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        given = {
            "limits": asdict(self.settings.limits), "min_level": self.settings.min_level.label, "slots": self.slots,
            "namespaces": self.settings.namespaces, "without": sorted(self.settings.without),
        }  # fmt: skip
        command = [sys.executable, "-s", "-S", "-B", "-W", "ignore", str(_PROCESS)]
        command += [str(theirs.fileno()), str(os.getpid()), json.dumps(given)]
        self._folder = tempfile.gettempdir()
        environment = {"LC_ALL": "C.UTF-8", "PATH": os.defpath, "TMPDIR": self._folder}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the judge
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log, env=environment,
                pass_fds=(theirs.fileno(),), start_new_session=True, cwd="/",
            )  # fmt: skip
        self._control, self._owner, self._answers = ours, os.getpid(), 0
        self._buffer.clear()
        self.states.clear()

    def _log_tail(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read()[-500:].decode("utf-8", "replace").strip()

    def _forget(self) -> None:
        """In a forked copy of the trainer: drop our copies of the handles, leave the judge to its owner."""
        if self._process is not None:
            self._process.returncode = 0  # not our child: keep Popen's finalizer quiet
        for handle in (self._control, self._log):
            if handle is not None:
                handle.close()
        self._process = self._control = self._log = None
        self._pending.clear()
        self._lock = threading.RLock()
        self._owner = os.getpid()

    def close(self) -> None:
        """End the judge and its zygotes; jobs under way are judged anew if their results are still asked for."""
        if self._owner != os.getpid():
            self._forget()
            return
        process, control, log = self._process, self._control, self._log
        self._process = self._control = self._log = None
        self._pending.clear()
        if control is not None:
            with contextlib.suppress(OSError):
                control.sendall(MESSAGE.pack(0, 0))  # forked copies of us may hold the socket open
            control.close()
        if process is not None:
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            sweep(self._folder)  # of workers that were being started; the others remove their own
        if log is not None:
            log.close()


def _asks_here(expected: Any) -> bool:
    """Whether an expected value is an object that only this process can ask."""
    return hasattr(expected, "accepts") and not isinstance(expected, Expectation)


def _answer(ticket: Ticket, content: list[Any]) -> None:
    """Settle a ticket with a message of the judge's."""
    kind, value = content[0], content[1]
    if kind == "unavailable":
        ticket.error = SandboxUnavailable(value)
    elif kind == "error":
        ticket.error = ValueError(f"the sandbox could not judge a job: {value}")
    else:
        kept = {place: wire.decode(encoded) for place, encoded in content[2]}
        settle(ticket, Judged(from_plain(value), kept))


def settle(ticket: Ticket, judged: Judged) -> None:
    """Give a ticket its result, asking the expected values that stayed in this process."""
    result = judged.result
    if judged.kept:
        outcomes = list(result.per_test)
        for place, value in judged.kept.items():
            if not ticket.job.tests[place].expected.accepts(value):
                outcomes[place] = replace(outcomes[place], passed=False, status="failed")
        status = overall([outcome.status for outcome in outcomes]) if result.status == "passed" else result.status
        result = replace(result, per_test=tuple(outcomes), status=status)
    ticket.result = result


_reported: set[str] = set()


def report_level(state: SlotState) -> None:
    """Say, once per process and level, as an error, that programs run with less isolation than the default."""
    if Level.parse(state.level) < DEFAULT_LEVEL and state.level not in _reported:
        _reported.add(state.level)
        _log.error(
            "Model-written programs run at isolation level %r only, below the default %r (%s). Every result says so; "
            "see docs/sandbox.md.", state.level, DEFAULT_LEVEL.label, state.reasons or "asked for",
        )  # fmt: skip
