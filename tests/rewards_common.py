"""Shared by the tests of rewards: one program, its visible and hidden tests, and the task they belong to."""

from __future__ import annotations

from typing import Any

from lightning_dterm.types import CallTest, CodeTask

SQUARE = "def f(x):\n    return x * x\n"
TESTS = (CallTest((2,), 4), CallTest((3,), 9), CallTest((4,), 16, visible=False), CallTest((5,), 25, visible=False))


def make_task(**changes: Any) -> CodeTask:
    """A synthesis task that ``SQUARE`` solves, with some fields changed."""
    values: dict[str, Any] = {
        "task_id": "t", "task_type": "synthesis", "language": "python", "prompt": "p", "description": "d",
        "reference": SQUARE, "tests": TESTS, "entry_point": "f",
    }  # fmt: skip
    return CodeTask(**{**values, **changes})
