"""``make``: which set is installed where, with a stand-in for Python that installs nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not (shutil.which("make") and shutil.which("bash")), reason="needs make and bash")

ROOT = Path(__file__).parent.parent
FLOOR = ("TORCH=torch==2.11.0", "CONSTRAINTS=constraints-floor.txt")
# Prints its version when asked anything, makes environments of itself and notes what it should install.
STAND_IN = """#!/bin/sh
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") echo "$*" >> "$(dirname "$0")/installed" ;;
  *) echo VERSION ;;
esac
"""


def stand_in(folder: Path, version: str) -> str:
    path = folder / f"python{version}"
    path.write_text(STAND_IN.replace("VERSION", version))
    path.chmod(0o755)
    return f"PYTHON={path}"


def make_venv(venv: Path, *variables: str) -> tuple[int, list[str], str]:
    """Exit status, what pip was asked to install, and the errors of ``make venv``."""
    log = venv / "bin" / "installed"
    log.unlink(missing_ok=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "venv", f"VENV={venv}", "TORCH_PIP_ARGS=", *variables]
    result = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=60)
    return result.returncode, log.read_text().splitlines() if log.exists() else [], result.stderr


def test_another_set_is_installed_and_the_same_is_not(tmp_path: Path) -> None:
    venv, python = tmp_path / "venv", stand_in(tmp_path, "3.12")
    for variables, pins in (((), "constraints.txt"), (FLOOR, "constraints-floor.txt"), ((), "constraints.txt")):
        status, installed, errors = make_venv(venv, python, *variables)
        assert status == 0, errors
        assert len(installed) == 2
        assert all(f"-c {pins} " in line for line in installed)
        assert ("torch==2.11.0" in installed[0]) == (variables == FLOOR)
        assert make_venv(venv, python, *variables)[:2] == (0, [])  # it is there
    assert len(list(venv.glob(".installed*"))) == 1


def test_a_stamp_without_a_set_is_installed_once_more(tmp_path: Path) -> None:
    venv, python = tmp_path / "venv", stand_in(tmp_path, "3.11")
    make_venv(venv, python)
    (stamp,) = venv.glob(".installed*")
    stamp.rename(venv / ".installed")
    assert len(make_venv(venv, python)[1]) == 2
    assert not (venv / ".installed").exists()
    assert make_venv(venv, python)[1] == []


def test_another_python_than_the_folders_is_one_error(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    make_venv(venv, stand_in(tmp_path, "3.11"))
    status, installed, errors = make_venv(venv, stand_in(tmp_path, "3.12"), *FLOOR)
    assert status != 0
    assert installed == []
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "has Python 3.11" in line
    assert "is Python 3.12" in line
    assert "VENV=.venv-floor" in line
    assert f"rm -r {venv}" in line
