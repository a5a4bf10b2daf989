"""The judge process's end of one zygote: start it, test it, keep it supplied with programs, notice when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_dterm.sandbox import canary, wire
from lightning_dterm.sandbox.judge import Exit, Judged, judge
from lightning_dterm.sandbox.levels import Level, level_of, refusal
from lightning_dterm.sandbox.result import Limits, Result
from lightning_dterm.sandbox.spawn import Worker
from lightning_dterm.sandbox.steps import Run, Step, Suite
from lightning_dterm.sandbox.wire import FLOODED, NOT_STARTED, REPLY, REQUEST, SPENT, STOPPED, TIMED_OUT
from lightning_dterm.types import CallTest

_ZYGOTE = Path(__file__).with_name("zygote.py")
_START_TIMEOUT_S = 60.0
_ANSWER_GRACE_S = 30.0
_RESPAWN_AFTER = 50_000  # programs; every child shares the zygote's address layout
AHEAD = 2  # programs that a zygote may have: the one that runs, and one so that it need not wait for us
# A program that takes longer is slow: only then its claims are read while it runs (each of its writes would wake us,
# which costs it more than the write), and what was sent ahead behind it is taken back for other slots.
_SLOW_S = 0.02
_SPENT = "worker spent: something is left of a program that no other may find"
_CANARY_LIMITS = Limits(cpu_s=5.0, wall_s=20.0, memory_mb=256)


class SandboxUnavailable(RuntimeError):
    """This machine cannot isolate programs as asked."""


class WorkerDied(SandboxUnavailable):
    """A worker ended while it was started: by an accident perhaps, so that another may do."""


@dataclass(frozen=True)
class Settings:
    """How zygotes are made.

    Attributes:
        limits: Limits of programs that bring none of their own.
        min_level: Below it, starting fails.
        namespaces: Whether to use namespaces where they are to be had.
        without: Fences to do without, for tests of lower levels.
    """

    limits: Limits = field(default_factory=Limits)
    min_level: Level = Level.KERNEL
    namespaces: bool = True
    without: frozenset[str] = frozenset()


class Slot:
    """One zygote and the socket to it, driven by whoever polls. Not thread-safe.

    Attributes:
        fences: Fences that the zygote has and that held against the canary.
        reasons: What the kernel said of the others.
        lost: Why it is of no use any more; empty while it is.
        watched: Descriptors to poll, with the events.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.fences: frozenset[str] = frozenset()
        self.reasons = self.lost = ""
        self._worker: Worker | None = None
        self._number = 0
        self._runs: deque[Run] = deque()  # what the zygote has, in its order
        self._slow = False
        self._poller = select.poll()
        self.watched: dict[int, int] = {}

    @property
    def level(self) -> Level:
        """Isolation in force."""
        return level_of(self.fences)

    @property
    def pid(self) -> int | None:
        """Process id of the zygote (of its outer process, where it has a process namespace)."""
        return None if self._worker is None else self._worker.pid

    @property
    def load(self) -> int:
        """Programs that it has; as many as it may have where no more should be sent to it."""
        return AHEAD if self._runs and (self._slow or self._number >= _RESPAWN_AFTER) else len(self._runs)

    @property
    def worn_out(self) -> bool:
        """Whether it has run as many programs as it should."""
        return self._number >= _RESPAWN_AFTER and not self._runs

    @property
    def due(self) -> float:
        """When :meth:`turn` has something to do at the latest, on the clock of ``time.monotonic``."""
        if not self._runs:
            return float("inf")
        head = self._runs[0]
        return head.since + (head.wall_s + _ANSWER_GRACE_S if self._slow else _SLOW_S)

    def watch(self, poller: select.poll) -> None:
        """Have another poll object watch it from now on."""
        for descriptor in self.watched:
            self._poller.unregister(descriptor)
        self._poller = poller
        for descriptor, events in self.watched.items():
            poller.register(descriptor, events)

    def submit(self, run: Run) -> None:
        """Hand over a run; that the zygote is lost shows in the next :meth:`turn`.

        Raises:
            ValueError: an argument is no plain data.
        """
        assert self._worker is not None
        payload = run.payload()
        self._number += 1
        run.number = self._number
        limits = run.limits
        request = REQUEST.pack(
            b"R", run.number, run.cpu_s, run.wall_s, limits.memory_mb << 20, limits.output_kb << 10
        )  # fmt: skip
        run.ours, theirs = socket.socketpair()
        run.ours.setblocking(False)
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # claims that nobody reads for a while
            run.unsent = memoryview(payload)
            run.send()
            try:
                socket.send_fds(self._worker.control, [request], [theirs.fileno()])
            except OSError as error:
                self.lost = self.lost or f"worker lost: {error}"
        self._runs.append(run)
        if len(self._runs) == 1:
            self._next_turn()
        self._listen_to(run)

    def turn(self) -> list[Run]:
        """Do what there is to do: settle runs that have ended; returns those that it does not get to soon."""
        assert self._worker is not None
        for run in self._runs:
            if run.unsent:
                run.send()
                self._listen_to(run)
        while not self.lost and (reply := self._reply()) is not None:
            if self._runs and reply[0] == self._runs[0].number:  # else one that was taken back
                self._end(self._runs.popleft(), reply[1:])
            if reply[-2] & SPENT:
                self.lost = _SPENT
        if self._runs and not self.lost:
            self._attend(self._runs[0])
        if self.lost:
            return self._lose()
        return self._take_back() if self._slow else []

    def _attend(self, head: Run) -> None:
        """Look after the program that runs."""
        now = time.monotonic()
        if now >= head.since + head.wall_s + _ANSWER_GRACE_S:
            self.lost = "worker lost: no answer in time"
        elif not self._slow and now < head.since + _SLOW_S:
            return
        assert self._worker is not None
        self._slow = True
        if head.open:
            head.open = head.drain()
        if len(head.received) > wire.MAX_CLAIMS and not head.stopped:
            head.stopped, head.open = True, False
            with contextlib.suppress(OSError):  # a dead zygote shows in the next turn
                self._worker.control.send(REQUEST.pack(b"K", head.number, 0.0, 0.0, 0, 0))
        self._listen_to(head)

    def _take_back(self) -> list[Run]:
        """Runs behind a slow one: their processes will find the channel closed before they start a program."""
        taken = []
        while len(self._runs) > 1:
            run = self._runs.pop()
            self._close(run)
            taken.append(run)
        return taken[::-1]

    def _reply(self) -> tuple[Any, ...] | None:
        assert self._worker is not None
        try:
            data = self._worker.control.recv(REPLY.size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            self.lost = f"worker lost: {error}"
            return None
        if len(data) != REPLY.size:
            self.lost = f"worker lost: {self._worker.log_tail() or 'it closed its socket'}"
            return None
        return REPLY.unpack(data)

    def _end(self, run: Run, reply: tuple[Any, ...]) -> None:
        """The process of a run has ended: judge what it left."""
        if not run.stopped:
            run.drain()
        self._close(run)
        self._next_turn()
        exit_ = _exit(reply, run.stopped or len(run.received) > wire.MAX_CLAIMS)
        if exit_ is None:
            run.settle(Judged(Result("infra", exception="the worker could not fork", level=self.level.label)))
            return
        tests = run.suite.part(run.step)
        bounds = replace(run.limits, cpu_s=run.cpu_s) if run.step.metered else run.limits
        fenced, runs = "seccomp" in self.fences, run.entry_point is not None
        label, metered = self.level.label, run.step.metered
        try:
            judged = judge(bytes(run.received), run.nonce, tests, runs, exit_, bounds, label, fenced, metered)
        except Exception as error:
            run.settle(error)
        else:
            run.settle(judged)

    def _lose(self) -> list[Run]:
        """Settle the run that a lost zygote was at; the others never started, nor did any that wait for a spent one."""
        runs, self._runs = list(self._runs), deque()
        for run in runs:
            self._close(run)
        if runs and self.lost != _SPENT:
            runs[0].settle(Judged(Result("infra", exception=self.lost, level=self.level.label)))
            del runs[0]
        return runs

    def _next_turn(self) -> None:
        self._slow = False
        if self._runs:
            self._runs[0].since = time.monotonic()

    def _close(self, run: Run) -> None:
        if run.ours is not None:
            self._watch(run.ours, 0)
            run.ours.close()
            run.ours = None

    def _listen_to(self, run: Run) -> None:
        """Poll a run's channel for what is of use: room for its payload; claims if it is slow."""
        assert run.ours is not None
        reads = self._slow and run.open and run is self._runs[0]
        self._watch(run.ours, (select.POLLOUT if run.unsent else 0) | (select.POLLIN if reads else 0))

    def _watch(self, channel: socket.socket, events: int) -> None:
        descriptor = channel.fileno()
        if events == self.watched.get(descriptor, 0):
            return
        if events:
            self.watched[descriptor] = events
            self._poller.register(descriptor, events)
        else:
            del self.watched[descriptor]
            self._poller.unregister(descriptor)

    def start(self) -> None:
        """Start the zygote and try it; takes a while.

        Raises:
            SandboxUnavailable: it is not isolated as asked, or misjudges.
            WorkerDied: it ended, or was silent for a minute.
        """
        options = {"namespaces": self.settings.namespaces, "without": sorted(self.settings.without)}
        self._worker = Worker(_ZYGOTE, "zygote", [json.dumps(options)], packets=True)
        ours = self._worker.control
        ours.settimeout(_START_TIMEOUT_S)
        try:
            hello = ours.recv(4096)
        except OSError:
            hello = b""
        if not hello:
            log = self._worker.log_tail()
            self.close()
            raise WorkerDied(f"The sandbox's worker did not start: {log or 'no message'}")
        ours.settimeout(None)
        self._watch(ours, select.POLLIN)
        said = json.loads(hello)
        self.fences, self.reasons = frozenset(said["fences"]), said["reasons"]
        if "mount" in self.fences:
            os.rmdir(self._worker.folder)  # it was only needed to mount the root of the file tree
        self._try_canaries()
        if self.level < self.settings.min_level:
            message = refusal(self.settings.min_level, self.fences, self.reasons)
            self.close()
            raise SandboxUnavailable(message)

    def _try_canaries(self) -> None:
        """Trust no fence before it has held: an honest program must be judged right, attacks must fail.

        Raises:
            SandboxUnavailable: the honest program is misjudged.
            WorkerDied: it or a child of it was killed.
        """
        honest = self._canary(canary.HONEST, canary.HONEST_TESTS)
        attack = self._canary(canary.attack_program(str(_ZYGOTE)), canary.ATTACK_TESTS)
        if self.lost or "infra" in (honest.status, attack.status):
            reason = self.lost or honest.exception or attack.exception
            self.close()
            raise WorkerDied(f"The sandbox's worker died under its canaries: {reason}")
        if tuple(outcome.passed for outcome in honest.per_test) != canary.HONEST_OUTCOMES:
            log = self._worker.log_tail() if self._worker else ""
            self.close()
            raise SandboxUnavailable(f"The sandbox misjudges an honest program: {honest} {log}")
        self.fences, broken = canary.surviving(self.fences, attack.per_test)
        self.reasons = "; ".join(filter(None, [self.reasons, *broken]))

    def _canary(self, program: str, tests: tuple[CallTest, ...]) -> Result:
        verdicts: list[Judged | Exception] = []
        suite = Suite(tests)
        if not self.lost:
            self.submit(Run(program, "canary", _CANARY_LIMITS, suite, Step(0, len(tests), False), verdicts.append))
        while not verdicts and not self.lost:
            self._poller.poll(max(0.0, self.due - time.monotonic()) * 1000)
            self.turn()
        return next((found.result for found in verdicts if isinstance(found, Judged)), Result("infra"))

    def close(self) -> None:
        """End the zygote and remove its folder; waits for it. No poll object may watch the slot any more."""
        for run in self._runs:
            self._close(run)
        self._runs.clear()
        worker, self._worker = self._worker, None
        if worker is not None:
            self._watch(worker.control, 0)
            worker.close()


def _exit(reply: tuple[Any, ...], stopped: bool) -> Exit | None:
    status, cpu_s, wall_s, peak, flags, line = reply
    if flags & NOT_STARTED:
        return None
    return Exit(
        status, cpu_s, wall_s, peak, bool(flags & TIMED_OUT), stopped or bool(flags & STOPPED), bool(flags & FLOODED),
        line or None,
    )  # fmt: skip
