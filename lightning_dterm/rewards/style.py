"""Coding style from Ruff's diagnostics, one Ruff process per batch."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_dterm.rewards.base import RewardComponent, is_empty, line_starts, position_span
from lightning_dterm.sandbox.languages import canonical
from lightning_dterm.types import CodeTask, RewardResult, Sample

if TYPE_CHECKING:
    from lightning_dterm.sandbox import Sandbox

DEFAULT_SELECT = ("E", "F", "W", "B", "S")
# assert is what tests are made of; a completion need not end in a newline.
DEFAULT_IGNORE = ("S101", "W292")
# Longest prefix wins. F and B mean likely bugs, S security, E and W layout.
DEFAULT_SEVERITY: Mapping[str, float] = {"E": 0.5, "W": 0.25, "F": 1.0, "B": 1.0, "S": 1.0}
_RULE = re.compile(r"[A-Z]+[0-9]*")
_SYNTAX = (None, "invalid-syntax", "E999")
_TIMEOUT_S = 120.0
_MEMORY = "/dev/shm"  # only TemporaryDirectory makes anything there
_PAGE = 4096  # bytes that the smallest of files takes in memory
_MIN_LINES = 10  # code lines that any program may have before more of them stop to count
# Of a process, and as a shell reports it. What a program can bring about, and what only someone else does.
_CRASHED = {code for number in (signal.SIGABRT, signal.SIGSEGV) for code in (-number, 128 + number)}
_KILLED = {code for number in (signal.SIGKILL, signal.SIGTERM) for code in (-number, 128 + number)}


class StyleReward(RewardComponent):
    """``1 - min(1, sum of weighted violations / code lines)``: 1 without a violation, never higher with one more.

    Only violations that start inside the completion count (not those in ``task.prefix``); code lines are the
    completion's lines that are neither blank nor only a comment (at least 1), and no more than twice the reference's
    where the task has one (10 where that is less), so that lines which say nothing cannot buy off violations.
    ``# noqa`` comments are ignored, so a program cannot excuse itself. A program that does not parse (or that crashes
    Ruff) gets 0; where Ruff is killed twice from outside, the reward has failed. Evidence: each violation's own span,
    weighted by its severity (times ``autofixable`` where Ruff has a safe fix). Python only.

    Args:
        name: Column name.
        select: Ruff rules or prefixes.
        ignore: Rules left out.
        severity: Rule prefix to severity in [0, 1], the longest prefix wins; 1 where none fits.
        line_length: For E501.
        autofixable: Factor in [0, 1] on the severity of what ``ruff check --fix`` would mend by itself (safe fixes).

    Raises:
        RuntimeError: Ruff is not installed.
        ValueError: A severity or factor is out of range, a severity names no rule, or ``line_length`` is not positive;
            at :meth:`setup`, Ruff refuses the rules.
    """

    overlaps = True  # it waits for Ruff

    def __init__(
        self,
        name: str = "style",
        select: Sequence[str] = DEFAULT_SELECT,
        ignore: Sequence[str] = DEFAULT_IGNORE,
        severity: Mapping[str, float] | None = None,
        line_length: int = 88,
        autofixable: float = 1.0,
    ) -> None:
        self.name = name
        self.severity = dict(DEFAULT_SEVERITY if severity is None else severity)
        if bad := {rule: value for rule, value in self.severity.items() if not 0 <= value <= 1}:
            raise ValueError(f"StyleReward: severities must lie in [0, 1], got {bad}.")
        if odd := [rule for rule in self.severity if not _RULE.fullmatch(rule)]:
            raise ValueError(
                f"StyleReward: severity names no Ruff rule or prefix: {', '.join(odd)} (as in S, E5, F401)."
            )
        if not 0 <= autofixable <= 1:
            raise ValueError(f"StyleReward: autofixable must lie in [0, 1], got {autofixable}.")
        if line_length < 1:
            raise ValueError(f"StyleReward: line_length must be at least 1, got {line_length}.")
        self.autofixable = autofixable
        version = f"py{sys.version_info.major}{sys.version_info.minor}"
        self._command = [
            _find_ruff(), "check", "--isolated", "--no-cache", "--no-respect-gitignore", "--ignore-noqa", "--quiet",
            "--output-format", "json-lines", "--target-version", version, "--line-length", str(line_length),
            "--select", ",".join(select), "--ignore", ",".join(ignore),
        ]  # fmt: skip

    def setup(self, sandbox: Sandbox | None = None) -> None:
        """Let Ruff check the rules, so that a wrong one ends the run before it begins."""
        try:
            self._run_ruff([""])
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"StyleReward: select or ignore is wrong: {reason}") from error

    def applies_to(self, task: CodeTask) -> bool:
        """Python tasks."""
        return canonical(task.language) == "python"

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        """Lint all programs in one Ruff process and score each."""
        programs = [sample.program for sample in samples if not is_empty(sample)]
        try:
            found = iter(self._lint(programs))
        except ChildProcessError as error:
            failed = RewardResult(None, error=str(error))
            return [RewardResult(0.0) if is_empty(sample) else failed for sample in samples]
        return [RewardResult(0.0) if is_empty(sample) else self._score(sample, next(found)) for sample in samples]

    def severity_of(self, code: str) -> float:
        """Severity of a rule such as ``F401``."""
        matches = [prefix for prefix in self.severity if code.startswith(prefix)]
        return self.severity[max(matches, key=len)] if matches else 1.0

    def _weight(self, item: Mapping[str, Any]) -> float:
        severity = self.severity_of(item["code"])
        fix = item.get("fix")
        return severity * self.autofixable if fix and fix.get("applicability") == "safe" else severity

    def _score(self, sample: Sample, diagnostics: list[dict[str, Any]] | None) -> RewardResult:
        if diagnostics is None:
            return RewardResult(0.0, details={"crashed_ruff": True})
        syntax = [item for item in diagnostics if item["code"] in _SYNTAX]
        program, starts = sample.program, line_starts(sample.program)
        spans, codes = [], []
        for item in syntax or diagnostics:
            weight = 1.0 if syntax else self._weight(item)
            ends = [_position(program, item[key]) for key in ("location", "end_location")]
            span = position_span(program, starts, ends[0], ends[1], weight)
            if span.start >= len(sample.task.prefix) and weight > 0:
                spans.append(span)
                codes.append(item["code"])
        if syntax:
            return RewardResult(0.0, tuple(spans), {"syntax_error": True})
        lines, reference = code_lines(sample.code), sample.task.reference
        if reference.strip():
            lines = min(lines, max(_MIN_LINES, 2 * code_lines(reference)))
        value = 1.0 - min(1.0, sum(span.weight for span in spans) / lines)
        return RewardResult(value, tuple(spans), {"violations": tuple(codes), "code_lines": lines})

    def _lint(self, programs: Sequence[str]) -> list[list[dict[str, Any]] | None]:
        """Diagnostics of each program; None for one that crashes Ruff (it aborts on extreme nesting)."""
        if not programs:
            return []
        found = self._run_ruff(programs)
        if found is not None:
            return found
        if len(programs) == 1:
            return [None]
        half = len(programs) // 2
        return self._lint(programs[:half]) + self._lint(programs[half:])

    def _run_ruff(self, programs: Sequence[str]) -> list[list[dict[str, Any]] | None] | None:
        sources = [program.encode("utf-8", "replace") for program in programs]
        place = _memory_folder(sum(map(len, sources)) + _PAGE * len(sources))
        with tempfile.TemporaryDirectory(prefix="lightning-dterm-style-", dir=place) as folder:
            for index, source in enumerate(sources):
                Path(folder, f"{index}.py").write_bytes(source)
            for _ in range(2):
                done = subprocess.run(
                    [*self._command, "."], cwd=folder, capture_output=True, timeout=_TIMEOUT_S, check=False
                )
                if done.returncode not in _KILLED:
                    break
            else:
                raise ChildProcessError(
                    f"{self.name}: Ruff was killed by a signal twice (exit code {done.returncode})."
                )
        if done.returncode in _CRASHED or b"panicked" in done.stderr:
            return None
        if done.returncode not in (0, 1):
            message = done.stderr.decode("utf-8", "replace").strip()[-500:]
            raise RuntimeError(f"{self.name}: ruff failed with exit code {done.returncode}: {message}")
        found: list[list[dict[str, Any]] | None] = [[] for _ in programs]
        for item in json.loads(b"[" + b",".join(done.stdout.splitlines()) + b"]"):
            diagnostics = found[int(os.path.basename(item["filename"]).removesuffix(".py"))]
            assert diagnostics is not None
            diagnostics.append(item)
        return found


def _position(program: str, place: Mapping[str, int]) -> tuple[int, int]:
    """Ruff's row and column, with the byte order mark that it does not count."""
    return place["row"], place["column"] + (place["row"] == 1 and program.startswith("\ufeff"))


def code_lines(code: str) -> int:
    """Lines that are neither blank nor only a comment, at least 1."""
    stripped = (line.strip() for line in code.replace("\r", "\n").split("\n"))
    return max(1, sum(bool(line) and not line.startswith("#") for line in stripped))


def _memory_folder(size: int) -> str | None:
    """The folder that Linux keeps in memory, where it has ample room for ``size`` bytes; None: the usual place."""
    try:
        free = shutil.disk_usage(_MEMORY).free
    except OSError:
        return None
    return _MEMORY if 4 * size < free and os.access(_MEMORY, os.W_OK | os.X_OK) else None


def _find_ruff() -> str:
    try:
        from ruff import find_ruff_bin

        return str(find_ruff_bin())
    except (ImportError, FileNotFoundError) as error:
        raise RuntimeError("StyleReward needs the ruff executable: pip install ruff.") from error
