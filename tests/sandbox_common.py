"""Shared by the tests of the sandbox: an honest program with its tests, and looking at its processes."""

from __future__ import annotations

from pathlib import Path

from lightning_dterm.sandbox import Limits, Sandbox
from lightning_dterm.types import CallTest

SQUARE = "def f(x):\n    return x * x\n"
TESTS = tuple(CallTest((x,), x * x, visible=x < 4) for x in range(2, 6))
HANG_AT_4 = "def f(x):\n    while x == 4:\n        pass\n    return x * x\n"


def small_sandbox() -> Sandbox:
    """One slot with tight limits."""
    return Sandbox(slots=1, limits=Limits(cpu_s=0.5, wall_s=2.0, memory_mb=256, output_kb=64))


def processes(box: Sandbox) -> tuple[int, int]:
    """Process ids of the judge and of its first zygote (outer process)."""
    judge = box._client.pid
    assert judge is not None
    return judge, next(state.pid for state in box.states())


def assert_healthy(box: Sandbox) -> None:
    """An honest program still passes."""
    result = box.run(SQUARE, "f", TESTS)
    assert result.status == "passed", result


def alive(pid: int) -> bool:
    """Whether a process runs; nobody may be there to reap it in a container."""
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
