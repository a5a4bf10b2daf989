"""How the tests of the meter measure one call of a program of their own."""

from __future__ import annotations

from typing import Any

from lightning_dterm.sandbox.meter import Meter


def measure(program: str, *args: Any, cap: int = 10**9, entry: str = "f") -> tuple[Any, int]:
    """Value and cost of one call, in this process (programs of this file are ours)."""
    meter = Meter(cap, lambda cost: (_ for _ in ()).throw(StopAsyncIteration(cost)))
    code, space = meter.prepare(program, "<test>")
    exec(code, space)
    before = meter.cost
    return space[entry](*args), meter.cost - before
