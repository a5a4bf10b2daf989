"""The judge process's end of one zygote: start it, test it, hand it programs one at a time, replace it when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from lightning_dterm.sandbox import canary, wire
from lightning_dterm.sandbox.judge import Exit, Judged, judge, overall
from lightning_dterm.sandbox.levels import Level, level_of, refusal
from lightning_dterm.sandbox.result import Job, Limits, Result, TestOutcome
from lightning_dterm.sandbox.wire import FLOODED, MAX_COST, NOT_STARTED, REPLY, REQUEST, STOPPED, TIMED_OUT
from lightning_dterm.types import CallTest

_ZYGOTE = Path(__file__).with_name("zygote.py")
_START_TIMEOUT_S = 60.0
_ANSWER_GRACE_S = 30.0
_RESPAWN_AFTER = 50_000  # programs; every child shares the zygote's address layout
_ATTEMPTS = 3
_CANARY_LIMITS = Limits(cpu_s=5.0, wall_s=20.0, memory_mb=256)
# Below this many CPU seconds a unit of cost is plausible; the first term is the fork and the interpreter.
_PLAUSIBLE_S, _PLAUSIBLE_S_PER_UNIT = 0.25, 5e-6


class SandboxUnavailable(RuntimeError):
    """This machine cannot isolate programs as asked."""


class _WorkerLost(RuntimeError):
    """The zygote died or stopped answering."""


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
    """One zygote and the socket to it. Not thread-safe: one thread uses a slot at a time.

    Attributes:
        fences: Fences that the zygote has and that held against the canary.
        reasons: What the kernel said of the others.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._log: IO[bytes] | None = None
        self._folder = ""
        self._number = 0
        self._served = 0
        self.fences: frozenset[str] = frozenset()
        self.reasons = ""

    @property
    def level(self) -> Level:
        """Isolation in force."""
        return level_of(self.fences)

    @property
    def pid(self) -> int | None:
        """Process id of the zygote (of its outer process, where it has a process namespace)."""
        return None if self._process is None else self._process.pid

    def run(self, job: Job) -> Judged:
        """Judge one job; what is our fault is retried and then returned as ``infra``."""
        return judge_job(job, self.settings.limits, self._attempts)

    def _attempts(self, job: Job, tests: Sequence[CallTest], cost_pass: bool) -> Judged:
        reason, attempt = "", 0
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                judged = self._attempt(job, tests, cost_pass)
            except _WorkerLost as error:
                reason = str(error)
                self.close()
                continue
            if judged.result.status != "infra":
                return replace(judged, result=replace(judged.result, attempts=attempt))
            reason = judged.result.exception or ""
        # Without seccomp a program can kill its worker, so losing them all is held against it.
        status: Any = "killed" if "seccomp" not in self.fences and reason.startswith("worker lost") else "infra"
        outcomes = tuple(TestOutcome(False, status, test.visible) for test in tests)
        lost = Result(status, outcomes, exception=reason[:300], level=self.level.label, attempts=attempt)
        return Judged(lost)

    def _attempt(self, job: Job, tests: Sequence[CallTest], cost_pass: bool) -> Judged:
        if self._served >= _RESPAWN_AFTER:
            self.close()
        if self._process is None:
            self._start()
        return self._send(job, tests, cost_pass)

    def _send(self, job: Job, tests: Sequence[CallTest], cost_pass: bool) -> Judged:
        assert self._control is not None
        limits = job.limits or self.settings.limits
        nonce = secrets.token_bytes(16)
        calls = [wire.encode(tuple(test.args)) for test in tests]
        payload = wire.dumps([nonce.hex(), cost_pass, job.program, job.entry_point, calls])
        self._number += 1
        self._served += 1
        cpu_s = limits.cpu_s + (4.0 if cost_pass else 0.0)  # metering is slower; the count itself is capped
        wall_s = limits.wall_s + (8.0 if cost_pass else 0.0)
        request = REQUEST.pack(b"R", self._number, cpu_s, wall_s, limits.memory_mb << 20, limits.output_kb << 10)
        ours, theirs = socket.socketpair()
        with ours:
            try:
                with theirs:
                    socket.send_fds(self._control, [request], [theirs.fileno()])
                ours.settimeout(wall_s)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
                    ours.sendall(wire.LENGTH.pack(len(payload)) + payload)
            except OSError as error:
                raise _WorkerLost(f"worker lost: {error}") from error
            ours.setblocking(False)
            buffer, exit_ = self._collect(ours, time.monotonic() + wall_s + _ANSWER_GRACE_S)
        if exit_ is None:
            return Judged(Result("infra", exception="the worker could not fork", level=self.level.label))
        runs = job.entry_point is not None
        bounds = replace(limits, cpu_s=cpu_s)
        fenced = "seccomp" in self.fences
        return judge(buffer, nonce, tests, runs, exit_, bounds, self.level.label, fenced, cost_pass)

    def _collect(self, ours: socket.socket, deadline: float) -> tuple[bytes, Exit | None]:
        """Gather the child's bytes until the zygote reports its end."""
        assert self._control is not None
        received = bytearray()
        poller = select.poll()
        poller.register(ours, select.POLLIN)
        poller.register(self._control, select.POLLIN)
        stopped = False
        while True:
            ready = [fd for fd, _ in poller.poll(max(0.0, deadline - time.monotonic()) * 1000)]
            if not ready:
                raise _WorkerLost("worker lost: no answer in time")
            if ours.fileno() in ready and _drain(ours, received) is False:
                poller.unregister(ours)
            if len(received) > wire.MAX_CLAIMS and not stopped:
                stopped = True
                with contextlib.suppress(KeyError):
                    poller.unregister(ours)
                with contextlib.suppress(OSError):  # a dead zygote shows below
                    self._control.send(REQUEST.pack(b"K", self._number, 0.0, 0.0, 0, 0))
            if self._control.fileno() in ready:
                reply = self._receive()
                if reply is not None:
                    while len(received) <= wire.MAX_CLAIMS and _drain(ours, received) is True:
                        pass
                    return bytes(received), _exit(reply, stopped or len(received) > wire.MAX_CLAIMS)

    def _receive(self) -> tuple[Any, ...] | None:
        assert self._control is not None
        try:
            data = self._control.recv(REPLY.size)
        except OSError as error:
            raise _WorkerLost(f"worker lost: {error}") from error
        if len(data) != REPLY.size:
            raise _WorkerLost(f"worker lost: {self._log_tail() or 'it closed its socket'}")
        number, *reply = REPLY.unpack(data)
        return tuple(reply) if number == self._number else None

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._folder = tempfile.mkdtemp(prefix="lightning-dterm-")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        options = {"namespaces": self.settings.namespaces, "without": sorted(self.settings.without)}
        command = [sys.executable, "-s", "-S", "-B", "-W", "ignore", str(_ZYGOTE)]
        command += [str(theirs.fileno()), str(os.getpid()), self._folder, json.dumps(options)]
        environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "PATH": os.defpath}
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log, env=environment,
                pass_fds=(theirs.fileno(),), start_new_session=True, cwd="/",
            )  # fmt: skip
        self._control, self._served = ours, 0
        ours.settimeout(_START_TIMEOUT_S)
        try:
            hello = ours.recv(4096)
        except OSError:
            hello = b""
        if not hello:
            log = self._log_tail()
            self.close()
            raise SandboxUnavailable(f"The sandbox's worker did not start: {log or 'no message'}")
        ours.settimeout(None)
        said = json.loads(hello)
        self.fences, self.reasons = frozenset(said["fences"]), said["reasons"]
        if "mount" in self.fences:
            os.rmdir(self._folder)  # it was only needed to mount the root of the file tree
        self._try_canaries()
        if self.level < self.settings.min_level:
            message = refusal(self.settings.min_level, self.fences, self.reasons)
            self.close()
            raise SandboxUnavailable(message)

    def _try_canaries(self) -> None:
        """Trust no fence before it has held: an honest program must be judged right, attacks must fail.

        Raises:
            SandboxUnavailable: the honest program is misjudged.
        """
        try:
            honest = self._canary(canary.HONEST, canary.HONEST_TESTS)
            attack = self._canary(canary.attack_program(str(_ZYGOTE)), canary.ATTACK_TESTS)
        except _WorkerLost as error:
            self.close()
            raise SandboxUnavailable(f"The sandbox's worker died under its canaries: {error}") from error
        if tuple(outcome.passed for outcome in honest.per_test) != canary.HONEST_OUTCOMES:
            log = self._log_tail()
            self.close()
            raise SandboxUnavailable(f"The sandbox misjudges an honest program: {honest} {log}")
        self.fences, broken = canary.surviving(self.fences, attack.per_test)
        self.reasons = "; ".join(filter(None, [self.reasons, *broken]))

    def _canary(self, program: str, tests: tuple[CallTest, ...]) -> Result:
        return self._send(Job(program, "canary", tests, limits=_CANARY_LIMITS), tests, cost_pass=False).result

    def _log_tail(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read()[-500:].decode("utf-8", "replace").strip()

    def close(self) -> None:
        """End the zygote and remove its folder."""
        process, control, log = self._process, self._control, self._log
        self._process = self._control = self._log = None
        if control is not None:
            control.close()
        if log is not None:
            log.close()
        if process is None:
            return
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


Attempt = Callable[[Job, Sequence[CallTest], bool], Judged]


def judge_job(job: Job, default: Limits, attempt: Attempt) -> Judged:
    """All that one job takes: visible tests first, a new process after a hang, a second pass for the cost.

    Args:
        job: The job.
        default: Limits of jobs without their own.
        attempt: Runs some tests of the job in one process; the flag asks for the cost.
    """
    order = sorted(range(len(job.tests)), key=lambda i: not job.tests[i].visible)
    tests = [job.tests[i] for i in order]
    judged = _to_the_end(job, tests, (job.limits or default).restarts, attempt)
    result = replace(judged.result, trust=job.trust)
    visible = [outcome for outcome in result.per_test if outcome.visible]
    if job.measure_cost and visible and all(outcome.passed for outcome in visible):
        # On visible tests alone: a hidden test must not reach any reward, not even through a cost.
        result = replace(result, cost=_plausible(attempt(job, tests[: len(visible)], True).result))
    per_test = list(result.per_test)
    for place, index in enumerate(order):
        per_test[index] = result.per_test[place]
    return Judged(replace(result, per_test=tuple(per_test)), {order[i]: v for i, v in judged.kept.items()})


def _to_the_end(job: Job, tests: Sequence[CallTest], restarts: int, attempt: Attempt) -> Judged:
    judged = attempt(job, tests, False)
    hung = judged.hung
    while hung is not None and hung + 1 < len(tests) and restarts > 0:
        restarts -= 1
        again = attempt(job, tests[hung + 1 :], False)
        judged = _merge(judged, again, hung + 1)
        hung = None if again.hung is None else hung + 1 + again.hung
    return judged


def _plausible(again: Result) -> int | None:
    """The cost, unless the CPU time that the kernel measured says that a process claims too little."""
    if again.cost is None or not (again.passed or again.cost == MAX_COST):
        return None
    enough = again.cpu_s <= _PLAUSIBLE_S + _PLAUSIBLE_S_PER_UNIT * again.cost
    return again.cost if enough or again.cost == MAX_COST else None


def _exit(reply: tuple[Any, ...], stopped: bool) -> Exit | None:
    status, cpu_s, wall_s, peak, flags, line = reply
    if flags & NOT_STARTED:
        return None
    return Exit(
        status, cpu_s, wall_s, peak, bool(flags & TIMED_OUT), stopped or bool(flags & STOPPED), bool(flags & FLOODED),
        line or None,
    )  # fmt: skip


def _merge(first: Judged, second: Judged, start: int) -> Judged:
    """One verdict from two processes, the second of which ran the tests from ``start`` on."""
    one, two = first.result, second.result
    per_test = one.per_test[:start] + two.per_test
    if two.status == "forged":
        per_test = tuple(replace(outcome, passed=False, status="forged") for outcome in per_test)
    result = replace(
        one, status=two.status if two.status in ("forged", "infra") else overall([o.status for o in per_test]),
        per_test=per_test, lines=tuple(dict.fromkeys(one.lines + two.lines)), cpu_s=one.cpu_s + two.cpu_s,
        wall_s=one.wall_s + two.wall_s, peak_rss=max(one.peak_rss, two.peak_rss), attempts=one.attempts + two.attempts,
    )  # fmt: skip
    return Judged(result, {**first.kept, **{start + place: value for place, value in second.kept.items()}})


def _drain(ours: socket.socket, received: bytearray) -> bool | None:
    """Read what is there: True after data, False at the end, None where nothing waits."""
    try:
        chunk = ours.recv(1 << 16)
    except BlockingIOError:
        return None
    except OSError:
        return False
    received += chunk
    return bool(chunk)
