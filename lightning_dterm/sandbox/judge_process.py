"""The judge: a process between trainer and programs that holds the expected values and compares.

Run by path in a bare interpreter (``python -s -S -B judge_process.py CONTROL_FD TRAINER_PID SETTINGS``), so the trainer
is never forked, its interpreter lock is not needed to judge, and whatever a program does to its judge it does not do to
the trainer. One thread reads jobs, drives all zygotes and writes verdicts; starting and ending a zygote, which take a
while, have threads of their own. It ends with the trainer.
"""

from __future__ import annotations

import sys
import types
from os.path import abspath, dirname

if __name__ == "__main__":
    sys.path.pop(0)
    # The package without its __init__ files, which would import the trainer's libraries.
    for _name, _path in (("lightning_dterm", dirname(dirname(abspath(__file__)))),
                         ("lightning_dterm.sandbox", dirname(abspath(__file__)))):  # fmt: skip
        sys.modules[_name] = types.ModuleType(_name)
        sys.modules[_name].__path__ = [_path]

import json
import os
import pickle
import select
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from lightning_dterm.sandbox import wire
from lightning_dterm.sandbox.judge import Judged
from lightning_dterm.sandbox.levels import Level
from lightning_dterm.sandbox.result import Job, Limits, Result, TestOutcome, to_plain
from lightning_dterm.sandbox.slot import AHEAD, SandboxUnavailable, Settings, Slot, WorkerDied
from lightning_dterm.sandbox.steps import Run, Suites, steps_of

MESSAGE = struct.Struct("!IQ")  # bytes that follow, number of the job (0: several jobs, or none)
_ATTEMPTS = 3
_PATIENCE_S = 0.01  # that a verdict waits for others to travel with


class Task:
    """One job on its way through as many processes as it takes.

    Args:
        number: The trainer's number for it.
        job: The job.
        server: Whose tasks are run again, and who hears the verdict.
    """

    def __init__(self, number: int, job: Job, server: Server) -> None:
        self.number, self._job, self._server = number, job, server
        self._limits = job.limits or server.settings.limits
        self._suite = server.suites.of(job.tests)
        self._steps = steps_of(job, self._suite, server.settings.limits)
        self._step = next(self._steps)
        self._attempts = 0

    def submit(self, slot: Slot) -> None:
        """Have a slot run its next process."""
        job = self._job
        run = Run(
            job.program, job.entry_point, self._limits, self._suite, self._step, lambda d: self._settle(slot, d), self
        )
        try:
            slot.submit(run)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Say that it cannot be judged."""
        self._server.answer(self.number, ["error", f"{type(error).__name__}: {error}"])

    def _settle(self, slot: Slot, judged: Judged | Exception) -> None:
        """A process has been judged; what is our fault is tried again, and then stays ``infra``."""
        if isinstance(judged, Exception):
            self.fail(judged)
            return
        self._attempts += 1
        if judged.result.status == "infra" and self._attempts < _ATTEMPTS:
            self._server.again(self)
            return
        try:
            if judged.result.status == "infra":
                judged = self._lost(slot, judged.result.exception or "")
            elif self._attempts > 1:
                judged = replace(judged, result=replace(judged.result, attempts=self._attempts))
            self._attempts = 0
            self._step = self._steps.send(judged)
        except StopIteration as end:
            self._finish(end.value)
        except Exception as error:
            self.fail(error)
        else:
            self._server.again(self)

    def _finish(self, judged: Judged) -> None:
        """Tell the verdict; a value that cannot be sent on, which no honest harness claims, costs its program alone."""
        try:
            kept = [[place, wire.encode(value)] for place, value in judged.kept.items()]
        except wire.Refused as error:
            kept, reason = [], f"Forged: {error}"
            outcomes = tuple(replace(one, passed=False, status="forged") for one in judged.result.per_test)
            judged = Judged(replace(judged.result, status="forged", per_test=outcomes, exception=reason, cost=None))
        try:
            self._server.answer(self.number, ["result", to_plain(judged.result), kept])
        except Exception as error:
            self.fail(error)

    def _lost(self, slot: Slot, reason: str) -> Judged:
        # Without seccomp a program can kill its worker, so losing them all is held against it.
        status: Any = "killed" if "seccomp" not in slot.fences and reason.startswith("worker lost") else "infra"
        outcomes = tuple(TestOutcome(False, status, test.visible) for test in self._suite.part(self._step))
        level = slot.level.label
        return Judged(Result(status, outcomes, exception=reason[:300], level=level, attempts=self._attempts))


class Server:
    """Reads jobs, has slots judge them, writes verdicts as they come.

    Attributes:
        settings: How zygotes are made.
        suites: Tests last used.
    """

    def __init__(self, control: socket.socket, settings: Settings, n_slots: int) -> None:
        self.settings, self.suites = settings, Suites()
        self._control = control
        control.setblocking(False)
        self._tasks: deque[Task] = deque()
        self._slots: list[Slot | None] = [None] * n_slots
        self._starting: set[int] = set()
        self._started: SimpleQueue[tuple[int, Slot, SandboxUnavailable | None]] = SimpleQueue()
        self._wake_up, self._waker = os.pipe()
        self._received, self._answers = bytearray(), bytearray()
        self._answer_by = float("inf")
        self._poller = select.poll()

    def serve(self, trainer: int) -> None:
        """Work until the trainer says so, closes the socket or dies."""
        for descriptor in (trainer, self._wake_up):
            self._poller.register(descriptor, select.POLLIN)
        while True:
            self._dispatch()
            busy = [slot for slot in self._slots if slot is not None]
            idle = not self._tasks and not self._starting and not any(slot.load for slot in busy)
            stuck = self._send(idle)
            self._poller.register(self._control, select.POLLIN | (select.POLLOUT if stuck else 0))
            due = min([slot.due for slot in busy] + ([] if stuck else [self._answer_by]), default=float("inf"))
            wait = None if due == float("inf") else max(0.0, due - time.monotonic()) * 1000
            ready = {descriptor for descriptor, _ in self._poller.poll(wait)}
            if trainer in ready or (self._control.fileno() in ready and not self._read()):
                return
            if self._wake_up in ready:
                os.read(self._wake_up, 64)
                self._take_up()
            now = time.monotonic()
            for place, slot in enumerate(self._slots):
                if slot is not None and (slot.due <= now or not ready.isdisjoint(slot.watched)):
                    self._turn(place, slot)

    def answer(self, number: int, content: list[Any]) -> None:
        """Have the trainer told, soon."""
        data = json.dumps(content).encode("ascii")
        if not self._answers:
            self._answer_by = time.monotonic() + _PATIENCE_S
        self._answers += MESSAGE.pack(len(data), number) + data

    def again(self, task: Task) -> None:
        """Run a task's next process before those of others."""
        self._tasks.appendleft(task)

    def _dispatch(self) -> None:
        """Give each slot a program, then each another to go on with; start slots while there are more."""
        for load in range(AHEAD):
            for slot in self._slots:
                if self._tasks and slot is not None and slot.load == load:
                    self._tasks.popleft().submit(slot)
        for place, known in enumerate(self._slots):
            if known is None and place not in self._starting and len(self._tasks) > len(self._starting):
                self._starting.add(place)
                threading.Thread(target=self._start, args=(place,), daemon=True).start()

    def _start(self, place: int) -> None:
        """In a thread of its own: start a slot, and hand it over."""
        for _ in range(_ATTEMPTS):
            slot = Slot(self.settings)
            failure: SandboxUnavailable | None = None
            try:
                slot.start()
            except SandboxUnavailable as error:
                failure = error
            except Exception as error:
                failure = SandboxUnavailable(f"The sandbox's worker did not start: {type(error).__name__}: {error}")
            if not isinstance(failure, WorkerDied):
                break
        self._started.put((place, slot, failure))
        os.write(self._waker, b"!")

    def _take_up(self) -> None:
        """Use the slots that have been started."""
        while not self._started.empty():
            place, slot, failure = self._started.get()
            self._starting.discard(place)
            if failure is not None:
                if self._tasks:
                    self.answer(self._tasks.popleft().number, ["unavailable", str(failure)])
                continue
            slot.watch(self._poller)
            self._slots[place] = slot
            self.answer(0, ["slot", [place, slot.level.label, sorted(slot.fences), slot.reasons, slot.pid]])
            self._answer_by = 0.0  # at once: should a program end this judge, it is known to have been in order

    def _turn(self, place: int, slot: Slot) -> None:
        for run in reversed(slot.turn()):
            self.again(run.task)
        if slot.lost or slot.worn_out:
            self._slots[place] = None
            slot.watch(select.poll())
            threading.Thread(target=slot.close, daemon=True).start()

    def _read(self) -> bool:
        """Take what the trainer sends; False where it says goodbye or is gone."""
        while True:
            try:
                chunk = self._control.recv(1 << 20)
            except BlockingIOError:
                return True
            except OSError:
                return False
            self._received += chunk
            if not chunk or not self._take():
                return False
            if len(chunk) < 1 << 20:
                return True

    def _take(self) -> bool:
        """Queue the complete jobs received; False where the trainer says goodbye."""
        while len(self._received) >= MESSAGE.size:
            length, _ = MESSAGE.unpack_from(self._received)
            if length == 0:
                return False
            if len(self._received) < MESSAGE.size + length:
                return True
            jobs = pickle.loads(self._received[MESSAGE.size : MESSAGE.size + length])  # from the trainer, never others
            del self._received[: MESSAGE.size + length]
            self._tasks.extend(Task(number, Job(*fields), self) for number, fields in jobs)
        return True

    def _send(self, idle: bool) -> bool:
        """Send answers if it is time to; True where the trainer does not take them now."""
        if not self._answers or not (idle or time.monotonic() >= self._answer_by):
            return False
        try:
            sent = self._control.send(self._answers)
        except BlockingIOError:
            return True
        except OSError:
            os._exit(0)
        del self._answers[:sent]
        if self._answers:
            return True
        self._answer_by = float("inf")
        return False


def main() -> None:
    """Take up the socket and serve."""
    control = socket.socket(fileno=int(sys.argv[1]))
    parent, given = int(sys.argv[2]), json.loads(sys.argv[3])
    trainer = os.pidfd_open(parent)
    if os.getppid() != parent:
        raise SystemExit("the trainer is gone")
    settings = Settings(
        Limits(**given["limits"]), Level.parse(given["min_level"]), given["namespaces"], frozenset(given["without"])
    )
    Server(control, settings, given["slots"]).serve(trainer)
    os._exit(0)  # closes the control sockets; zygotes end with their program and clean up


if __name__ == "__main__":
    main()
