"""Runs model-written programs outside the trainer's process, with limits, and judges what they return."""

from lightning_dterm.sandbox.levels import Level
from lightning_dterm.sandbox.result import CompileError, Job, Limits, Result, Status, TestOutcome
from lightning_dterm.sandbox.sandbox import Sandbox, default_slots
from lightning_dterm.sandbox.slot import SandboxUnavailable
from lightning_dterm.sandbox.tickets import Results

__all__ = [
    "CompileError", "Job", "Level", "Limits", "Result", "Results", "Sandbox", "SandboxUnavailable", "Status",
    "TestOutcome", "default_slots",
]  # fmt: skip
