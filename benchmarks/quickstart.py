"""The quickstart's claim, measured: several seeds, mean change of success and its 95% interval.

    python benchmarks/quickstart.py --seeds 0 1 2 --out benchmarks/results/quickstart.json

Each seed is one run of ``configs/quickstart.yaml`` in a process of its own (other training tasks, other samples; the
same packaged actor and the same test tasks). Finished seeds are kept, so the command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import provenance, write

# two-sided 95% quantile of Student's t by degrees of freedom
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def command_for(seed: int, folder: Path, overrides: list[str]) -> list[str]:
    """The run of one seed; two processes where two cores are free, as in ``make quickstart``."""
    command = [sys.executable, "train.py", "fit", "--config", "configs/quickstart.yaml"]
    if len(os.sched_getaffinity(0)) >= 2:
        command += ["--config", "configs/strategy/ddp.yaml"]
    command += ["--seed_everything", str(seed), "--model.init_args.seed", str(seed), "--data.init_args.seed", str(seed)]
    command += ["--trainer.logger.init_args.save_dir", str(folder.parent)]
    command += ["--trainer.logger.init_args.name", folder.name]
    return [*command, *overrides]


def interval(values: list[float]) -> dict[str, Any]:
    """Mean and Student's 95% interval over seeds."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "values": values}
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    half = _T[len(values) - 1] * deviation / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": values}


def gather(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """What the seeds say together."""
    result: dict[str, Any] = {}
    for mode in ("greedy", "sampled"):
        parts = [s if mode == "greedy" else s["sampled"] for s in summaries]
        result[mode] = {when: interval([p["mean_success"][when] for p in parts]) for when in ("before", "after")}
        result[mode]["change"] = interval([p["mean_success"]["after"] - p["mean_success"]["before"] for p in parts])
        result[mode]["change_per_task_type"] = {
            kind: interval(
                [p["tasks"][kind]["success"]["after"] - p["tasks"][kind]["success"]["before"] for p in parts]
            )
            for kind in parts[0]["tasks"]
        }
    result["kl"] = interval([s["kl"] for s in summaries])
    result["train_seconds"] = interval([s["train_seconds"] for s in summaries])
    return result


def main() -> None:
    """Run the seeds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart_seeds"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quickstart.json"))
    parser.add_argument("--trained_at", help="commit of runs that were there before")
    args, overrides = parser.parse_known_args()
    summaries = []
    for seed in args.seeds:
        folder = args.runs / f"seed{seed}"
        summary = folder / "summary.json"
        if not summary.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with (folder / "log.txt").open("w") as log:
                subprocess.run(
                    command_for(seed, folder, overrides), check=True, stdout=log, stderr=log, env=environment
                )
        summaries.append(json.loads(summary.read_text()))
    result = {**provenance(args.trained_at), "seeds": args.seeds, **gather(summaries)}
    write(args.out, result)
    print(json.dumps({mode: result[mode]["change"] for mode in ("greedy", "sampled")}, indent=2))


if __name__ == "__main__":
    main()
