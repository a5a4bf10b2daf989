"""Where PPO begins: success of the packaged actor on validation tasks, by task type, greedy and sampled.

    python benchmarks/warm_start.py --out benchmarks/results/warm_start.json

The test split is not read. Sampling settings are those of configs/quickstart.yaml; "sampled" is temperature 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import ROOT, measured, write

ACTOR = "package:quickstart"
MODES = {"greedy": 0.0, "sampled": 1.0}
RANGE = (0.25, 0.65)  # where the warm start's mean success should lie, so that RL has room


def evaluate(size: int, seed: int, temperature: float) -> dict[str, Any]:
    """Figures over all tasks and per task type, each with its 95% bootstrap interval."""
    import lightning as L
    import torch

    from lightning_dterm.data import MicroCodeDataModule
    from lightning_dterm.modules.config import GenerationConfig
    from lightning_dterm.modules.loading import ActorConfig
    from lightning_dterm.modules.supervised import SupervisedModule

    torch.set_num_threads(1)
    settings = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())["model"]["init_args"]["generation"]
    generation = replace(GenerationConfig(**settings), eval_temperature=temperature)
    module = SupervisedModule(ActorConfig(path=ACTOR), generation, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu", devices=1, logger=False, use_distributed_sampler=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.validate(module, datamodule=MicroCodeDataModule(validation_size=size), verbose=False)
    return module.table.compute()


def gather(results: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one decoding mode: the mean of the task types' success first."""
    success = {kind: figures["success"]["value"] for kind, figures in results["tasks"].items()}
    mean = sum(success.values()) / len(success)
    return {"mean_success": mean, "in_range": RANGE[0] <= mean <= RANGE[1], **results}


def main() -> None:
    """Evaluate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=250, help="validation tasks, the first so many")
    parser.add_argument("--seed", type=int, default=0, help="of sampling; greedy decoding does not read it")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/warm_start.json"))
    args = parser.parse_args()
    result: dict[str, Any] = {**measured(), "actor": ACTOR, "split": "validation", "seed": args.seed, "range": RANGE}
    for mode, temperature in MODES.items():
        result[mode] = gather(evaluate(args.size, args.seed, temperature))
        print(f"{mode}: mean success {result[mode]['mean_success']:.3f}", flush=True)
        for kind, figures in result[mode]["tasks"].items():
            cell = figures["success"]
            print(f"  {kind:<14} {cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]")
    write(args.out, result)


if __name__ == "__main__":
    main()
