"""How a result was made: command, commit and machine, written by every benchmark into its file."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PLACES = {"--data_dir": "DIR"}  # options whose value is a place on this machine


def commit() -> str:
    """The checkout's commit.

    Raises:
        subprocess.CalledProcessError: Outside a git checkout.
    """
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def command() -> str:
    """This process's command as one can type it again, places on this machine by a name."""
    words = [_PLACES.get(previous, word) for previous, word in zip(["", *sys.argv], sys.argv, strict=False)]
    return shlex.join(["python", *words])


def machine() -> dict[str, Any]:
    """Where this process runs; the kernel without its vendor's suffix, which says nothing to a reader."""
    import torch

    return {
        "system": platform.system(),
        "kernel": platform.release().split("-")[0],
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def provenance(trained_at: str | None) -> dict[str, Any]:
    """Of figures gathered from training runs.

    Args:
        trained_at: Commit the runs were trained at, where they were there before; None: the present one.
    """
    now = commit()
    return {"command": command(), "trained_at": trained_at or now, "gathered_at": now, "machine": machine()}


def measured() -> dict[str, Any]:
    """Of figures measured by this process."""
    return {"command": command(), "commit": commit(), "machine": machine()}


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result file, its folder made where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
