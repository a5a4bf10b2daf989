"""What share of an iteration the attribution path takes, from the phase times that a run logged.

Usage: ``python benchmarks/attribution.py RUN [--out benchmarks/results/attribution.json]`` after, for example, ``python
train.py fit -c configs/quickstart.yaml --trainer.max_steps 30 --trainer.logger.save_dir RUNS``. The phase
``attribution`` is offsets and token rewards. Evidence is made by the components as they score, so ``upper_bound`` adds
*all* the time of the components that give spans without running a program.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.provenance import measured, write

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


def main() -> None:
    """Read, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="log folder of a run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/attribution.json")
    options = parser.parse_args()
    result = {**measured(), **shares(read(options.run))}
    result["command"] = "python benchmarks/attribution.py RUN"  # where the run lay says nothing
    print(json.dumps(result, indent=2))
    write(options.out, result)


if __name__ == "__main__":
    main()
