"""Hostile programs earn nothing at any level: as root and not, with and without namespaces, with each file fence."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_dterm.sandbox import Level, Limits, Result, Sandbox, SandboxUnavailable
from lightning_dterm.types import CallTest
from tests.sandbox_hostile import ESCAPE, HOSTILE, PATIENT, SECRET
from tests.sandbox_unprivileged import as_nobody

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

MODES: dict[str, dict[str, Any]] = {
    "namespaces": {"min_level": "namespaces"},
    "kernel": {"namespaces": False, "min_level": "kernel"},
    "mount_only": {"without": ("landlock",), "min_level": "namespaces"},
}
LIMITS = Limits(cpu_s=0.3, wall_s=10.0, memory_mb=192, output_kb=64, restarts=0)
IMPATIENT = Limits(cpu_s=0.3, wall_s=1.0, memory_mb=192, output_kb=64, restarts=0)
TESTS = tuple(CallTest((x,), SECRET, x < 4) for x in range(2, 6))
SQUARE = "def f(x):\n    return x * x\n"
HONEST = tuple(CallTest((x,), x * x) for x in range(4))


def descendants(pid: int) -> list[int]:
    """Living processes below ``pid``."""
    found, pending = [], [pid]
    while pending:
        path = Path(f"/proc/{pending.pop()}/task")
        for task in path.glob("*/children"):
            children = [int(child) for child in task.read_text().split()]
            found += children
            pending += children
    return found


def attack(box: Sandbox, name: str, folder: Path) -> tuple[Result, str]:
    """Run a hostile program, then an honest one: the result of the first, and what is wrong after it."""
    result = box.run(HOSTILE[name][0], "f", TESTS, IMPATIENT if name in PATIENT else LIMITS)
    honest = box.run(SQUARE, "f", HONEST, Limits())
    assert box._client.pid is not None
    harm = "" if honest.passed else f"an honest program after it: {honest}"
    if len(descendants(box._client.pid)) != (2 if box.level == Level.NAMESPACES else 1):
        harm += " a process is left"
    left = [name for name in os.listdir(folder) if os.listdir(folder / name) not in ([], ["cwd"])]
    left += [
        f"{name}/cwd"
        for name in os.listdir(folder)
        if (folder / name / "cwd").is_dir() and os.listdir(folder / name / "cwd")
    ]
    if Path(ESCAPE).exists() or left:
        harm += f" a file is left: {left}"
    return result, harm


# By default root is tried with namespaces and nobody without; the other combinations are slow tests.
_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
_EVERY_MODE = [
    "namespaces",
    pytest.param("kernel", marks=[pytest.mark.slow] if _ROOT else []),
    pytest.param("mount_only", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=_EVERY_MODE)
def arena(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sandbox, Path]]:
    """A sandbox of one slot and the folder that it makes its folders in."""
    options = MODES[request.param]
    folder = tmp_path_factory.mktemp("arena")
    with pytest.MonkeyPatch.context() as patch, Sandbox(slots=1, limits=LIMITS, **options) as box:
        patch.setattr(tempfile, "tempdir", str(folder))
        try:
            assert box.level >= Level.parse(options["min_level"])
        except SandboxUnavailable as error:
            pytest.skip(f"not available here: {error}")
        yield box, folder


def test_the_suite_is_large() -> None:
    assert len(HOSTILE) >= 80


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program_earns_nothing(arena: tuple[Sandbox, Path], name: str) -> None:
    box, folder = arena
    result, harm = attack(box, name, folder)
    assert not any(outcome.passed for outcome in result.per_test), result
    assert result.status in HOSTILE[name][1], result
    assert len(result.per_test) == len(TESTS)
    assert Level.parse(result.level) == box.level
    assert not harm


@pytest.mark.parametrize("mode", [pytest.param("namespaces", marks=pytest.mark.slow), "kernel"])
def test_hostile_programs_as_an_unprivileged_user(mode: str) -> None:
    """The whole table in one process that is nobody, however this one runs."""
    if os.geteuid() != 0:
        pytest.skip("this test run is unprivileged itself")
    done = as_nobody([sys.executable, "-m", "tests.sandbox_unprivileged", mode])
    if done.returncode == 77:
        pytest.skip(done.stderr[-300:])
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["uid"] != 0
    assert report["level"] == mode
    assert report["programs"] == len(HOSTILE)
    assert report["wrong"] == []
