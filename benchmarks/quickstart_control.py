"""The quickstart's control: does more imitation do what PPO does?

    python benchmarks/quickstart_control.py --seeds 0 1 2 --out benchmarks/results/quickstart_control.json

From the packaged actor on, supervised training goes on with the corpus of its warm start (configs/microcode_sft.yaml)
at the quickstart's peak learning rate, decaying; then greedy and sampled success on the quickstart's test tasks.
``--flawed_share 0`` imitates correct references only: what they alone would teach. Finished seeds are kept, so the
command goes on where it stopped (name another ``--runs`` for other settings).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import provenance, write
from benchmarks.quickstart import interval

TEST_SIZE = 300  # as in configs/quickstart.yaml
MODES = {"greedy": 0.0, "sampled": 1.0}


def launch(arguments: list[str], log: Path) -> None:
    """One run of the command line in a process of its own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as sink:
        subprocess.run(
            [sys.executable, "train.py", *arguments],
            check=True, stdout=sink, stderr=sink, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def logger(folder: Path) -> list[str]:
    """Where a run logs."""
    prefix = "--trainer.logger.init_args."
    return [f"{prefix}save_dir", str(folder.parent), f"{prefix}name", folder.name]


def success(actor: str, folder: Path) -> dict[str, float]:
    """Mean success of an actor on the test tasks, per mode."""
    figures = {}
    for mode, temperature in MODES.items():
        out = folder / mode
        if not (out / "test.json").is_file():
            options = ["test", "--config", "configs/microcode_sft.yaml", *logger(out)]
            options += ["--model.init_args.actor.path", actor, "--data.init_args.test_size", str(TEST_SIZE)]
            options += ["--model.init_args.generation.eval_temperature", str(temperature)]
            launch(options, out / "log.txt")
        tasks = json.loads((out / "test.json").read_text())["tasks"]
        values = [figures_["success"]["value"] for figures_ in tasks.values()]
        figures[mode] = sum(values) / len(values)
    return figures


def train(seed: int, steps: int, lr: float, flawed_share: float, folder: Path) -> str:
    """Go on imitating; gives the trained actor's folder."""
    actor = folder / "actor"
    if not (actor / "config.json").is_file():
        options = ["fit", "--config", "configs/microcode_sft.yaml", *logger(folder), "--seed_everything", str(seed)]
        options += ["--trainer.max_steps", str(steps), "--trainer.limit_val_batches", "0"]
        options += ["--model.init_args.actor.path", "package:quickstart", "--model.init_args.lr", str(lr)]
        options += ["--model.init_args.warmup_steps", "10", "--model.init_args.export_dir", str(actor)]
        options += ["--data.init_args.seed", str(seed + 1)]  # the warm start read the rows of seed 0
        options += ["--data.init_args.flawed_share", str(flawed_share)]
        launch(options, folder / "log.txt")
    return str(actor)


def main() -> None:
    """Train, test and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--flawed_share", type=float, default=0.55, help="of the corpus; 0.55 is the warm start's")
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart_control"))
    parser.add_argument("--trained_at", help="commit that finished runs were trained at, where that is not the present")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quickstart_control.json"))
    args = parser.parse_args()
    before = success("package:quickstart", args.runs / "before")
    after = [
        success(train(seed, args.steps, args.lr, args.flawed_share, folder), folder / "test")
        for seed, folder in ((seed, args.runs / f"seed{seed}") for seed in args.seeds)
    ]
    settings = {"steps": args.steps, "lr": args.lr, "flawed_share": args.flawed_share}
    result: dict[str, Any] = {**provenance(args.trained_at), "seeds": args.seeds, **settings}
    for mode in MODES:
        values = [figures[mode] for figures in after]
        change = interval([value - before[mode] for value in values])
        result[mode] = {"before": before[mode], "after": interval(values), "change": change}
    write(args.out, result)
    print(json.dumps({mode: result[mode] for mode in MODES}, indent=2))


if __name__ == "__main__":
    main()
