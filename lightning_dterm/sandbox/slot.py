"""The trainer's end of one zygote: start it, hand it programs one at a time, replace it when it dies."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from lightning_dterm.sandbox import wire
from lightning_dterm.sandbox.judge import MAX_COST, Exit, judge
from lightning_dterm.sandbox.result import Job, Limits, Result, TestOutcome
from lightning_dterm.sandbox.wire import NOT_STARTED, REPLY, REQUEST, STOPPED, TIMED_OUT
from lightning_dterm.types import CallTest

_WORKER = Path(__file__).with_name("worker.py")
_START_TIMEOUT_S = 60.0
_ANSWER_GRACE_S = 30.0
_RESPAWN_AFTER = 50_000  # programs; every child shares the zygote's address layout
FULL_FENCES = frozenset({"seccomp", "landlock"})


class SandboxUnavailable(RuntimeError):
    """This machine cannot isolate programs as asked."""


class _WorkerLost(RuntimeError):
    """The zygote died or stopped answering."""


class Slot:
    """One zygote and the socket to it. Not thread-safe: one thread uses a slot at a time."""

    def __init__(self, limits: Limits, min_fences: frozenset[str]) -> None:
        self.limits, self._min_fences = limits, min_fences
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._log: IO[bytes] | None = None
        self._folder = ""
        self._owner = 0
        self._number = 0
        self._served = 0
        self.fences: frozenset[str] = frozenset()

    @property
    def level(self) -> str:
        """``process``, with the missing fences named where there are any."""
        missing = sorted(FULL_FENCES - self.fences)
        return "process" if not missing else "process-without-" + "-".join(missing)

    def run(self, job: Job) -> Result:
        """Judge one job; what is our fault is retried once and then returned as ``infra``."""
        order = sorted(range(len(job.tests)), key=lambda i: not job.tests[i].visible)
        tests = [job.tests[i] for i in order]
        result = self._attempt_twice(job, tests, cost_pass=False)
        visible = [outcome for outcome in result.per_test if outcome.visible]
        cost = None
        if job.measure_cost and visible and all(outcome.passed for outcome in visible):
            # On visible tests alone: a hidden test must not reach any reward, not even through a cost.
            again = self._attempt_twice(job, tests[: len(visible)], cost_pass=True)
            cost = again.cost if again.passed or again.cost == MAX_COST else None
        per_test = list(result.per_test)
        for place, index in enumerate(order):
            per_test[index] = result.per_test[place]
        return dataclasses.replace(result, per_test=tuple(per_test), cost=cost)

    def _attempt_twice(self, job: Job, tests: Sequence[CallTest], cost_pass: bool) -> Result:
        reason = ""
        for _ in range(2):
            try:
                result = self._attempt(job, tests, cost_pass)
            except _WorkerLost as error:
                reason = str(error)
                self.close()
                continue
            if result.status != "infra":
                return result
            reason = result.exception or ""
        # Without seccomp a program can kill its worker, so losing two in a row is held against it.
        status = "killed" if "seccomp" not in self.fences and reason.startswith("worker lost") else "infra"
        outcomes = tuple(TestOutcome(False, status, test.visible) for test in tests)
        return Result(status, outcomes, exception=reason[:300], level=self.level)  # type: ignore[arg-type]

    def _attempt(self, job: Job, tests: Sequence[CallTest], cost_pass: bool) -> Result:
        self._ensure()
        assert self._control is not None
        limits = self.limits
        nonce = secrets.token_bytes(16)
        calls = [wire.encode(tuple(test.args)) for test in tests]
        payload = wire.dumps([nonce.hex(), cost_pass, job.program, job.entry_point, calls])
        self._number += 1
        self._served += 1
        cpu_s = limits.cpu_s + (4.0 if cost_pass else 0.0)  # tracing is slower; the count itself is capped
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
            return Result("infra", exception="the worker could not fork")
        return judge(buffer, nonce, tests, job.entry_point is not None, exit_, limits, self.level)

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
                self._control.send(REQUEST.pack(b"K", self._number, 0.0, 0.0, 0, 0))
            if self._control.fileno() in ready:
                reply = self._receive()
                if reply is not None:
                    while len(received) <= wire.MAX_CLAIMS and _drain(ours, received) is True:
                        pass
                    return bytes(received), self._exit(reply, stopped or len(received) > wire.MAX_CLAIMS)

    def _receive(self) -> tuple[int, float, float, int, int] | None:
        assert self._control is not None
        try:
            data = self._control.recv(REPLY.size)
        except OSError as error:
            raise _WorkerLost(f"worker lost: {error}") from error
        if len(data) != REPLY.size:
            raise _WorkerLost(f"worker lost: {self._log_tail() or 'it closed its socket'}")
        number, *reply = REPLY.unpack(data)
        return (reply[0], reply[1], reply[2], reply[3], reply[4]) if number == self._number else None

    @staticmethod
    def _exit(reply: tuple[int, float, float, int, int], stopped: bool) -> Exit | None:
        status, cpu_s, wall_s, peak, flags = reply
        if flags & NOT_STARTED:
            return None
        return Exit(status, cpu_s, wall_s, peak, bool(flags & TIMED_OUT), stopped or bool(flags & STOPPED))

    def _ensure(self) -> None:
        if self._owner != os.getpid() or self._served >= _RESPAWN_AFTER:
            self.close()
        if self._process is None:
            self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._folder = tempfile.mkdtemp(prefix="lightning-dterm-")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        command = [sys.executable, "-s", "-S", "-B", "-W", "ignore", str(_WORKER)]
        command += [str(theirs.fileno()), str(os.getpid()), self._folder]
        environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "PATH": os.defpath}
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log, env=environment,
                pass_fds=(theirs.fileno(),), start_new_session=True, cwd="/",
            )  # fmt: skip
        self._control, self._owner, self._served = ours, os.getpid(), 0
        ours.settimeout(_START_TIMEOUT_S)
        try:
            hello = ours.recv(200)
        except OSError:
            hello = b""
        if not hello:
            log = self._log_tail()
            self.close()
            raise SandboxUnavailable(f"The sandbox's worker did not start: {log or 'no message'}")
        ours.settimeout(None)
        self.fences = frozenset(hello.decode().split()) & FULL_FENCES
        if missing := sorted(self._min_fences - self.fences):
            self.close()
            raise SandboxUnavailable(
                f"This kernel or container does not grant {', '.join(missing)}, so model-written programs could harm "
                "this machine. Run on Linux >= 5.13 (x86_64 or aarch64) with Landlock enabled and a container profile "
                "that allows it, or accept the weaker isolation with Sandbox(allow_missing="
                f"{tuple(missing)!r})."
            )

    def _log_tail(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read()[-500:].decode("utf-8", "replace").strip()

    def close(self) -> None:
        """End the zygote and remove its folder. In a forked copy of the trainer only our handles are dropped."""
        process, control, log = self._process, self._control, self._log
        self._process = self._control = self._log = None
        if control is not None:
            control.close()
        if log is not None:
            log.close()
        if process is None or self._owner != os.getpid():
            if process is not None:
                process.returncode = 0  # not our child: keep Popen's finalizer quiet
            return
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


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
