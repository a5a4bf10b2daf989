"""Reward functions for ``tests/test_rewards_isolated.py``; light, since their processes import this file."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from typing import Any

calls = 0


def matches(completions: list[str]) -> list[float]:
    """Backtracks for ages on many letters and another sign, holding the global lock."""
    return [1.0 if re.fullmatch(r"(a+)+", text) else 0.0 for text in completions]


def process(completions: list[str]) -> list[float]:
    """Its process and how often that was called."""
    global calls
    calls += 1
    return [os.getpid() + calls / 10 for _ in completions]


def talks(completions: list[str], answer: list[str], log_metric: Any, log_extra: Any) -> Any:
    """Prints, logs, and gives a generator."""
    print("said", flush=True)
    log_metric(name="size", value=len(completions))
    log_extra(column="both", values=[a + b for a, b in zip(completions, answer, strict=True)])
    return (len(text) / 10 for text in completions)


async def waits(completions: list[str]) -> list[float]:
    """Asynchronous."""
    await asyncio.sleep(0.01)
    return [0.5 for _ in completions]


def breaks(completions: list[str]) -> Any:
    """In the way that the first completion says."""
    how = completions[0]
    if how == "raise":
        raise KeyError("lost")
    if how == "exit":
        sys.exit("enough")
    if how == "leave":
        os._exit(3)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "strange":
        return [lambda: 1]
    return [1.0 for _ in completions]
