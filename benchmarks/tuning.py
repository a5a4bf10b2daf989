"""Gather tuning runs into one small file: settings from their ``config.yaml``, results from their ``summary.json``.

    python benchmarks/tuning.py runs/tuning --out benchmarks/results/quickstart_tuning.json

One seed each on the validation split: a record of what was tried, no comparison.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml


def record(folder: Path) -> dict[str, Any]:
    """One run."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    model = config["model"]["init_args"]
    callbacks = {c["class_path"].rsplit(".", 1)[1]: c.get("init_args") or {} for c in config["trainer"]["callbacks"]}
    components = callbacks["RewardComputation"].get("components") or []
    return {
        "run": folder.name,
        "rollouts": summary["rollouts"],
        "actor": Path(model["actor"]["path"]).name,
        "attribution": callbacks["TokenAttribution"].get("mode"),
        "components": [{"class": c["class_path"].rsplit(".", 1)[1], **(c.get("init_args") or {})} for c in components],
        "generation": model["generation"],
        "prompts": config["data"]["init_args"]["batch_size"],
        "validation_size": config["data"]["init_args"]["validation_size"],
        "ppo": model["ppo"],
        "kl_settings": model["kl"],
        "optimizer": model["optimizer"],
        "weighting_prior": (model["weighting"].get("init_args") or {}).get("prior"),
        "greedy": {"mean_success": summary["mean_success"], "success": _success(summary)},
        "sampled": {"mean_success": summary["sampled"]["mean_success"], "success": _success(summary["sampled"])},
        "kl": summary["kl"],
        "train_seconds": summary["train_seconds"],
    }


def _success(part: dict[str, Any]) -> dict[str, Any]:
    return {kind: {k: figures["success"][k] for k in ("before", "after")} for kind, figures in part["tasks"].items()}


def main() -> None:
    """Gather every folder that finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    records = [record(path.parent) for path in sorted(args.runs.glob("*/summary.json"))]
    args.out.write_text(json.dumps(records, indent=1) + "\n")
    print(f"{len(records)} runs: {args.out}")


if __name__ == "__main__":
    main()
