"""What share of an iteration the attribution path takes, from the phase times that a run of the quickstart logs.

    python benchmarks/attribution.py --steps 30 --run runs/attribution --out benchmarks/results/attribution.json

The run is ``configs/quickstart.yaml``, seed 0, stopped after so many rollouts; it is trained where ``--run`` does not
hold it yet. The phase ``attribution`` is offsets and token rewards. Evidence is made by the components as they score,
so ``upper_bound`` adds *all* the time of the components that give spans without running a program.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.provenance import ROOT, provenance, write
from benchmarks.quickstart import command_for

PHASES = ("rollout", "reward", "weighting", "attribution", "advantage", "update")
WITH_SPANS = ("compile", "similarity", "style")


def read(run: Path) -> dict[str, list[float]]:
    """The ``time/`` scalars of a run, one value a rollout.

    Raises:
        SystemExit: The folder holds no event file with them.
    """
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("time/")]
    if "time/iteration" not in tags:
        raise SystemExit(f"{run} has no logged phase times: name a run's folder with its TensorBoard events")
    return {tag.removeprefix("time/"): [event.value for event in events.Scalars(tag)] for tag in tags}


def shares(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Mean seconds and share of the whole, by phase, and the attribution path's two figures."""
    whole = sum(seconds["iteration"])
    scoring = sum(sum(seconds.get(f"reward_{name}", [])) for name in WITH_SPANS)
    return {
        "rollouts": len(seconds["iteration"]),
        "seconds_per_iteration": round(statistics.mean(seconds["iteration"]), 4),
        "phase_share": {name: round(sum(seconds[name]) / whole, 5) for name in PHASES},
        "offsets_and_token_rewards": round(sum(seconds["attribution"]) / whole, 5),
        "upper_bound": round((sum(seconds["attribution"]) + scoring) / whole, 5),
    }


def train(run: Path, steps: int) -> None:
    """The quickstart's first rollouts, their log in ``run``."""
    command = command_for(0, run.resolve(), ["--trainer.max_steps", str(steps)])
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="rollouts of the run")
    parser.add_argument("--run", type=Path, default=Path("runs/attribution"), help="log folder of the run")
    parser.add_argument("--trained_at", help="commit of a run that was there before")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attribution.json"))
    return parser


def main() -> None:
    """Train where needed, read, print and save.

    Raises:
        SystemExit: The folder holds another run.
    """
    options = arguments().parse_args()
    if not options.run.exists():
        train(options.run, options.steps)
    seconds = read(options.run)
    if (found := len(seconds["iteration"])) != options.steps:
        raise SystemExit(f"{options.run} holds {found} rollouts, not {options.steps}: remove it, or --steps {found}")
    result = {**provenance(options.trained_at), **shares(seconds)}
    print(json.dumps(result, indent=2))
    write(options.out, result)


if __name__ == "__main__":
    main()
