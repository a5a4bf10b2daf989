"""Level ``none``: a fresh interpreter per program, where no kernel fence is to be had (macOS, Windows).

Programs can do whatever this user can; what is left is a process of their own, a wall clock, and judging by value
outside it. Run by path it is that process (``python -I -S -B plain.py``). Works wherever CPython does.
"""

from __future__ import annotations

import sys
import types
from os.path import abspath, dirname

if __name__ == "__main__":
    for _name, _path in (("lightning_dterm", dirname(dirname(abspath(__file__)))),
                         ("lightning_dterm.sandbox", dirname(abspath(__file__)))):  # fmt: skip
        sys.modules[_name] = types.ModuleType(_name)
        sys.modules[_name].__path__ = [_path]

import contextlib
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_dterm.sandbox import harness, wire

if TYPE_CHECKING:
    from lightning_dterm.sandbox.client import SlotState
    from lightning_dterm.sandbox.judge import Judged
    from lightning_dterm.sandbox.result import Job, Result
    from lightning_dterm.sandbox.slot import Settings
    from lightning_dterm.sandbox.tickets import Results, Ticket

_NO_FENCES = "no fence is to be had on this platform"


class PlainClient:
    """Stands in for :class:`~lightning_dterm.sandbox.client.Client`; runs one program at a time, when it is asked."""

    def __init__(self, settings: Settings, slots: int) -> None:
        from lightning_dterm.sandbox.client import SlotState

        self.settings, self.slots = settings, slots
        self.pid: int | None = None
        self.restarts = 0
        self.states: dict[int, SlotState] = {0: SlotState("none", frozenset(), _NO_FENCES, 0)}

    def submit(self, jobs: Sequence[Job]) -> Results:
        """Results that are computed when they are read."""
        from lightning_dterm.sandbox.client import report_level
        from lightning_dterm.sandbox.tickets import Results, Ticket

        report_level(self.states[0])
        return Results([Ticket(job) for job in jobs], self.wait)

    def wait(self, ticket: Ticket) -> Result:
        """Judge the ticket's job now, if that has not been done."""
        from lightning_dterm.sandbox.steps import judge_job
        from lightning_dterm.sandbox.tickets import settle

        if not ticket.done:
            try:
                settle(ticket, judge_job(ticket.portable(), self.settings.limits, self._attempt))
            except Exception as error:  # this job's: whoever judges several goes on with the others
                ticket.error = ValueError(f"the sandbox could not judge a job: {type(error).__name__}: {error}")
        if ticket.error is not None:
            raise ticket.error
        assert ticket.result is not None
        return ticket.result

    def close(self) -> None:
        """Nothing runs between programs."""

    def _attempt(self, job: Job, tests: Sequence[Any], cost_pass: bool) -> Judged:
        from lightning_dterm.sandbox.judge import Exit, judge

        limits = job.limits or self.settings.limits
        nonce = secrets.token_bytes(16)
        calls = wire.pack_calls(test.args for test in tests)
        payload = wire.pack_job(nonce, cost_pass, job.program, job.entry_point, calls)
        bounds = [str(limits.cpu_s), str(limits.output_kb << 10)]
        started = time.monotonic()
        with tempfile.TemporaryFile() as channel, tempfile.TemporaryDirectory() as folder:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-W", "ignore", abspath(__file__), *bounds], stdin=subprocess.PIPE,
                stdout=channel, stderr=subprocess.DEVNULL, cwd=folder,
            )  # fmt: skip
            timed_out = False
            try:
                process.communicate(payload, timeout=limits.wall_s)
            except subprocess.TimeoutExpired:
                timed_out = True
                process.kill()
                process.communicate()
            channel.seek(0)
            buffer = channel.read(wire.MAX_CLAIMS + 1)
        code = process.returncode
        wall = time.monotonic() - started
        status = code << 8 if code >= 0 else -code
        exit_ = Exit(status, wall, wall, 0, timed_out, len(buffer) > wire.MAX_CLAIMS)
        return judge(buffer, nonce, tests, job.entry_point is not None, exit_, limits, "none", False, cost_pass)


def _child() -> None:
    """Run one program from standard input; claims go to what was standard output."""
    stream = sys.stdin.buffer
    size = wire.LENGTH.unpack(stream.read(wire.LENGTH.size))[0]
    nonce, cost_pass, program, entry_point, calls = wire.unpack_job(stream.read(size))
    channel = harness.Channel(os.dup(1), nonce)
    cpu_s, output = float(sys.argv[1]), int(sys.argv[2])
    sys.argv[:] = [""]
    sink = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(sink, descriptor)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        whole = max(1, int(-(-cpu_s // 1)))
        resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (wire.MAX_CLAIMS + output,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel.send(wire.ACCEPTED, None)
    (harness.run_metered if cost_pass else harness.run)(channel, program, entry_point, calls)
    os._exit(0)


if __name__ == "__main__":
    _child()
