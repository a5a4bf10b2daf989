"""Shared by the tests of rewards: one program, its visible and hidden tests, and the task they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lightning_dterm.sandbox import Sandbox
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


def sandbox_fixture(slots: int = 1) -> Any:
    """A fixture that lends one sandbox to a whole test file; bind it to the name by which tests ask for it."""

    @pytest.fixture(scope="module", name="sandbox")
    def lend() -> Iterator[Sandbox]:
        with Sandbox(slots=slots) as box:
            yield box

    return lend
