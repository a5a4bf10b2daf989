"""Compile feedback in real languages, and runs of what was compiled, inside the sandbox's exec profile."""

from lightning_dterm.sandbox.languages.backend import Backend, CompileLimits, Stage
from lightning_dterm.sandbox.languages.cache import CompileCache
from lightning_dterm.sandbox.languages.compilers import Compilers, canonical, default_backends
from lightning_dterm.sandbox.languages.diagnostics import Diagnostic, Report, Text
from lightning_dterm.sandbox.languages.process import LauncherUnavailable
from lightning_dterm.sandbox.languages.programs import IOTest, ProgramJob, Programs

__all__ = [
    "Backend", "CompileCache", "CompileLimits", "Compilers", "Diagnostic", "IOTest", "LauncherUnavailable",
    "ProgramJob", "Programs", "Report", "Stage", "Text", "canonical", "default_backends",
]  # fmt: skip
