"""What a stranger gets: a fresh clone of this commit, ``make quickstart`` in a clean environment, timed.

    python benchmarks/fresh_clone.py --out benchmarks/results/quickstart_fresh_clone.json

The environment holds PATH and HOME alone (and what ``--keep`` names: a machine behind a package mirror may need its
settings). Installation ends where make marks it as done; what follows is the quickstart's own work. Uncommitted changes
are not in the clone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import ROOT, command, commit, write

LIMIT_SECONDS = 480  # of the quickstart's own work on two cores
_MACHINE = "import json; from benchmarks.provenance import machine; print(json.dumps(machine()))"


def clone(target: Path) -> None:
    """Clone the checkout's present commit."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(target)], check=True)
    subprocess.run(["git", "-C", str(target), "checkout", "--quiet", "--detach", commit()], check=True)


def clean_environment(keep: list[str]) -> dict[str, str]:
    """PATH and HOME, and the variables that ``keep`` names.

    Raises:
        SystemExit: If one of them is not set.
    """
    missing = [name for name in keep if name not in os.environ]
    if missing:
        raise SystemExit(f"not in the environment, so nothing to keep: {', '.join(missing)}")
    return {name: os.environ[name] for name in ("PATH", "HOME", *keep)}


def quickstart(folder: Path, environment: dict[str, str], variables: list[str]) -> dict[str, float]:
    """Run ``make quickstart`` in ``folder``; gives the wall seconds of installation, of the run, and of both.

    Raises:
        SystemExit: If make fails, or says that nothing had to be installed.
    """
    started = time.time()
    status = subprocess.run(["make", "quickstart", *variables], cwd=folder, env=environment).returncode
    ended = time.time()
    if status:
        raise SystemExit(f"make quickstart ended with status {status}")
    stamps = list((folder / ".venv").glob(".installed-*"))
    if len(stamps) != 1:
        raise SystemExit(f"{len(stamps)} marks of an installation in .venv, expected 1")
    installed = stamps[0].stat().st_mtime
    seconds = {"install": installed - started, "run": ended - installed, "total": ended - started}
    return {name: round(value, 1) for name, value in seconds.items()}


def read_summary(folder: Path) -> dict[str, Any]:
    """The run's own summary.

    Raises:
        SystemExit: If it is not of as many rollouts as the configuration asks for.
    """
    wanted = yaml.safe_load((folder / "configs/quickstart.yaml").read_text())["trainer"]["max_steps"]
    summary: dict[str, Any] = json.loads((folder / "runs/quickstart/summary.json").read_text())
    if summary["rollouts"] != wanted:
        raise SystemExit(f"the run has {summary['rollouts']} rollouts, configs/quickstart.yaml asks for {wanted}")
    return summary


def measure(folder: Path, keep: list[str], variables: list[str]) -> dict[str, Any]:
    """Clone into ``folder``, run there, and gather the result."""
    environment = clean_environment(keep)
    clone(folder)
    seconds = quickstart(folder, environment, variables)
    summary = read_summary(folder)
    # told by the Python that make installed: its version and its torch are those that ran
    python = [str(folder / ".venv/bin/python"), "-c", _MACHINE]
    machine = subprocess.run(python, cwd=ROOT, env=environment, capture_output=True, check=True)
    return {
        "command": command(),
        "commit": commit(),
        "runs": "make quickstart",
        "environment": ["PATH", "HOME", *keep],
        "machine": json.loads(machine.stdout),
        "wall_seconds": seconds,
        "limit_seconds": LIMIT_SECONDS,
        "within_limit": seconds["run"] <= LIMIT_SECONDS,
        **summary,
    }


def main() -> None:
    """Measure and write; status 1 where the run took longer than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", nargs="*", default=[], metavar="NAME", help="further environment variables to keep")
    parser.add_argument("--make", nargs="*", default=[], metavar="NAME=VALUE", help="make variables")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quickstart_fresh_clone.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder) / "clone", args.keep, args.make)
    write(args.out, result)
    print(json.dumps({name: result[name] for name in ("commit", "wall_seconds", "within_limit", "mean_success")}))
    if not result["within_limit"]:
        raise SystemExit(f"the run took {result['wall_seconds']['run']} s, more than {LIMIT_SECONDS} s")


if __name__ == "__main__":
    main()
