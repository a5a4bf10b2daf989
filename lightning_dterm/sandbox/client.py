"""The trainer's end of the judge process: start it, stream jobs to it, take verdicts back in order, replace it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from lightning_dterm.sandbox import wire
from lightning_dterm.sandbox.expect import Expectation
from lightning_dterm.sandbox.folders import sweep
from lightning_dterm.sandbox.judge import Judged, Keep
from lightning_dterm.sandbox.judge_process import MESSAGE
from lightning_dterm.sandbox.levels import DEFAULT_LEVEL, Level
from lightning_dterm.sandbox.result import Job, Limits, Result, Status, TestOutcome, from_plain
from lightning_dterm.sandbox.slot import AHEAD, SandboxUnavailable, Settings
from lightning_dterm.sandbox.tickets import Results, Ticket, settle
from lightning_dterm.types import CallTest

__all__ = ["Client", "Results", "SlotState", "Ticket", "report_level", "settle"]

_PROCESS = Path(__file__).with_name("judge_process.py")
_ATTEMPTS = 4
_ACCIDENTS = 3 * _ATTEMPTS  # judges lost in a row without a verdict: the machine lets none live
_GRACE_S = 120.0
_CHUNK = 64  # jobs in one message
_KILLED = (0, -signal.SIGKILL, -signal.SIGTERM)  # how a judge ends that somebody ended
_log = logging.getLogger(__name__)


@dataclass
class SlotState:
    """What a zygote was granted: the level's label, its fences, what the kernel said of others, its pid."""

    level: str
    fences: frozenset[str]
    reasons: str
    pid: int


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
        # After a judge's death: jobs that it may have died of, sent one at a time; those that wait for it to be found.
        self._suspects: deque[Ticket] = deque()
        self._waiting: deque[Ticket] = deque()
        self._careful = False
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._log: IO[bytes] | None = None
        self._buffer = bytearray()
        self._folder = ""
        self._home = os.getpid()
        self._spoke = 0.0  # when the judge was last heard
        self._heard = False  # of any judge
        self._accidents = 0  # since the last verdict
        longest = self.settings.limits.wall_s * (self.settings.limits.restarts + 2)
        self._patience_s = 3 * longest + _GRACE_S

    @property
    def pid(self) -> int | None:
        """The judge's process id."""
        return None if self._process is None else self._process.pid

    @property
    def load(self) -> float:
        """Jobs that it has, by slot."""
        return (len(self._pending) + len(self._suspects) + len(self._waiting)) / self.slots

    def submit(self, jobs: Sequence[Job]) -> Results:
        """Hand jobs to the judge at once; wait for none."""
        tickets = [Ticket(job) for job in jobs]
        self._settle_in()
        with self._lock:
            if self._careful:
                self._waiting.extend(tickets)
            else:
                self._send(tickets)
        return Results(tickets, self.wait)

    def wait(self, ticket: Ticket) -> Result:
        """The ticket's result.

        Raises:
            SandboxUnavailable: the workers cannot be started or isolated as asked.
            ValueError: the job's tests are not plain data.
        """
        self._settle_in()
        self._spoke = max(self._spoke, time.monotonic())
        while not ticket.done:
            with self._lock:
                if not ticket.done and not self._has(ticket):
                    self._send([ticket])  # this side of a fork, or after close()
                control = self._control
            if ticket.done or control is None:
                continue
            ready = _readable(control)  # without the lock: other threads may hand over jobs meanwhile
            with self._lock:
                if control is self._control and not ticket.done:
                    self._take(ready)
        if ticket.error is not None:
            raise ticket.error
        assert ticket.result is not None
        return ticket.result

    def _has(self, ticket: Ticket) -> bool:
        return ticket.number in self._pending or ticket in self._suspects or ticket in self._waiting

    def _send(self, tickets: Sequence[Ticket]) -> None:
        """Send jobs, some in one message, in which tests that several of them share are written once."""
        for start in range(0, len(tickets), _CHUNK):
            self._send_message(tickets[start : start + _CHUNK])

    def _send_message(self, tickets: Sequence[Ticket]) -> None:
        if self._process is None:
            self._start()
        jobs = []
        for ticket in tickets:
            ticket.number = next(self._numbers)
            job = ticket.portable()
            fields = (job.program, job.entry_point, job.tests, job.measure_cost, job.limits, job.trust)
            jobs.append((ticket.number, fields))
        try:
            data = _packed(jobs)
        except Exception as error:  # the tests of one of them
            if len(tickets) == 1:
                tickets[0].error = ValueError(f"the sandbox could not judge a job: {type(error).__name__}: {error}")
            for ticket in tickets if len(tickets) > 1 else ():
                self._send_message([ticket])
            return
        self._pending.update((ticket.number, ticket) for ticket in tickets)
        assert self._control is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its death shows when receiving
            self._control.sendall(MESSAGE.pack(len(data), 0) + data)

    def _receive(self) -> None:
        """Take what the judge has sent, waiting for something to come."""
        assert self._control is not None
        self._spoke = time.monotonic()
        self._take(_readable(self._control, self._patience_s))

    def _take(self, ready: bool) -> None:
        """Take what the judge has sent; replace a judge that is gone, or silent for too long."""
        assert self._control is not None
        if not ready:
            if time.monotonic() > self._spoke + self._patience_s:
                self._replace("the judge process stopped answering")
            return
        chunk = b""
        try:
            chunk = self._control.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:  # another thread was faster
            return
        except ConnectionResetError:
            pass
        self._spoke = time.monotonic()
        if not chunk:
            self._replace("the judge process died")
            return
        self._buffer += chunk
        self._dispatch()

    def _dispatch(self) -> None:
        """Hand complete messages to their tickets."""
        while len(self._buffer) >= MESSAGE.size:
            length, number = MESSAGE.unpack_from(self._buffer)
            if len(self._buffer) < MESSAGE.size + length:
                break
            content = json.loads(self._buffer[MESSAGE.size : MESSAGE.size + length])
            del self._buffer[: MESSAGE.size + length]
            self._heard = True
            if content[0] == "slot":
                place, level, fences, reasons, pid = content[1]
                self.states[place] = SlotState(level, frozenset(fences), reasons, pid)
                report_level(self.states[place])
                continue
            ticket = self._pending.pop(number, None)
            if ticket is not None:
                self._accidents = 0
                _answer(ticket, content)
        self._go_on()

    def _replace(self, reason: str) -> None:
        """Start another judge for every job that the last one left; nothing is lost silently.

        One that had several jobs may have died of any of them, or of an accident: those it may have been at are sent
        alone, so that only the job that it dies of again, or that meets one accident after another, pays for it.
        """
        log, process, granted = self._log_tail(), self._process, bool(self.states)
        left, suspects, waiting = list(self._pending.values()), list(self._suspects), list(self._waiting)
        self.close()
        self.restarts += 1
        crashed = granted and process is not None and process.returncode not in _KILLED
        self._accidents += not crashed
        hopeless = self._accidents >= (_ACCIDENTS if self._heard else _ATTEMPTS)
        if len(left) == 1:
            left[0].attempts += 1
            left[0].crashes += crashed
        for ticket in [*left, *suspects, *waiting] if hopeless else left:
            if hopeless or ticket.attempts >= _ATTEMPTS:
                self._give_up(ticket, reason, log)
        self._accidents *= not hopeless
        left, suspects, waiting = ([t for t in some if not t.done] for some in (left, suspects, waiting))
        at_most = self.slots * (AHEAD + 1)  # what a judge may be at, and what it had to take back
        self._suspects = deque([*left[:at_most], *suspects])
        self._waiting = deque([*left[at_most:], *waiting])
        self._careful = True
        self._go_on()

    def _go_on(self) -> None:
        """After a death: send the next suspect, or all the rest once no suspect is left."""
        if not self._careful or self._pending:
            return
        if self._suspects:
            self._send([self._suspects.popleft()])
            return
        waiting, self._waiting, self._careful = list(self._waiting), deque(), False
        self._send(waiting)

    def _give_up(self, ticket: Ticket, reason: str, log: str) -> None:
        """Settle a job that no judge survived: ``killed`` where all ended by themselves with nothing else to do."""
        if not self._heard:
            ticket.error = SandboxUnavailable(f"The sandbox's judge did not start: {log or 'no message'}")
            return
        status: Status = "killed" if ticket.crashes >= _ATTEMPTS else "infra"
        outcomes = tuple(TestOutcome(False, status, test.visible) for test in ticket.job.tests)
        message = f"{reason}: {log}" if log else reason
        ticket.result = Result(status, outcomes, exception=message[:300], trust=ticket.job.trust)

    def _settle_in(self) -> None:
        """Before anything else: in a forked copy of the trainer nothing of the original's is ours, its lock least."""
        if self._home != os.getpid():
            self._forget()

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
        self._control = ours
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
        self._drop()
        self._lock = threading.RLock()
        self._home = os.getpid()

    def _drop(self) -> None:
        """Forget the jobs; whoever still waits for one sends it anew."""
        self._pending.clear()
        self._suspects.clear()
        self._waiting.clear()
        self._careful = False

    def close(self) -> None:
        """End the judge and its zygotes; jobs under way are judged anew if their results are still asked for."""
        if self._home != os.getpid():
            self._forget()
            return
        process, control, log = self._process, self._control, self._log
        self._process = self._control = self._log = None
        self._drop()
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


def _answer(ticket: Ticket, content: list[Any]) -> None:
    """Settle a ticket with a message of the judge's."""
    kind, value = content[0], content[1]
    if kind == "unavailable":
        ticket.error = SandboxUnavailable(value)
    elif kind == "error":
        ticket.error = ValueError(f"the sandbox could not judge a job: {value}")
    else:
        kept = {place: wire.decode(encoded) for place, encoded in content[2]}
        try:
            settle(ticket, Judged(from_plain(value), kept))
        except Exception as error:  # an expected value of the trainer's own
            ticket.error = ValueError(f"the sandbox could not judge a job: {type(error).__name__}: {error}")


def _readable(control: socket.socket, patience_s: float = 1.0) -> bool:
    """Wait for something to come, or for the end; a socket that was closed meanwhile has nothing."""
    poller = select.poll()
    try:
        poller.register(control, select.POLLIN)
    except ValueError:
        return False
    return bool(poller.poll(patience_s * 1000))


class _Pickler(pickle.Pickler):
    """Plain data and our own dataclasses only: whatever else the judge could not load, and would die of."""

    def reducer_override(self, value: Any) -> Any:
        kind = value if isinstance(value, type) else type(value)
        if kind not in (CallTest, Limits, Expectation, Keep):
            raise wire.Refused(f"not plain data: {kind.__name__}")
        return NotImplemented


def _packed(jobs: list[Any]) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(jobs)
    return stream.getvalue()


_reported: set[str] = set()


def report_level(state: SlotState) -> None:
    """Say, once per process and level, as an error, that programs run with less isolation than the default."""
    if Level.parse(state.level) < DEFAULT_LEVEL and state.level not in _reported:
        _reported.add(state.level)
        _log.error(
            "Model-written programs run at isolation level %r only, below the default %r (%s). Every result says so; "
            "see docs/sandbox.md.", state.level, DEFAULT_LEVEL.label, state.reasons or "asked for",
        )  # fmt: skip
