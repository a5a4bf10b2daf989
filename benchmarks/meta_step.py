"""What a meta-step of the hypernetwork costs, for every meta-objective.

    python benchmarks/meta_step.py --steps 4 --run runs/meta_step --out benchmarks/results/meta_step.json

1. At real dimensions (embedding 768, hidden 256, 8 prototypes, 5 components, 64 groups of 8): loss, gradient, clipping
   and Adam, in milliseconds of processor time on one thread. Where there is a GPU, also there, as a share of one
   training step (forward and backward of all 512 responses) of an actor of 0.5B parameters.
2. Its share of an iteration of ``configs/quickstart.yaml`` (without its tables and checkpoints), from the phase times
   that a run logs; to it is added what sketching the gradients of a rollout takes, where an objective needs them. At
   most 5% is wanted on a CPU, at most 2% of the actor's step on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml
from transformers import AutoConfig, Qwen2Config, Qwen2ForCausalLM

from benchmarks.attribution import read
from benchmarks.provenance import ROOT, measured, write
from lightning_dterm.dterm import (
    GradientAlignment,
    HypernetworkWeighting,
    LookAhead,
    OutcomeCorrelation,
    OutcomeRanking,
)
from lightning_dterm.dterm.sketch import GradientSketch

OBJECTIVES = {
    "ranking": OutcomeRanking,
    "correlation": OutcomeCorrelation,
    "alignment": GradientAlignment,
    "lookahead": LookAhead,
}
GROUPS, SAMPLES, COMPONENTS, EMBEDDING = 64, 8, 5, 768
ROLLOUT_TOKENS = 64 * 60  # of the quickstart: 64 responses of less than 60 tokens on average
KEPT = ("RewardComputation", "TokenAttribution")
HALF_BILLION = {
    "vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "intermediate_size": 4864, "tie_word_embeddings": True,
}  # fmt: skip


def seconds(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median time of a call, after two that do not count; on a CPU its processor time, which no other load changes."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times = []
    for _ in range(repeats + 2):
        started = clock()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - started)
    return statistics.median(times[2:])


def meta_step(name: str, device: torch.device, repeats: int = 20) -> float:
    """Seconds of one meta-step at real dimensions."""
    torch.manual_seed(0)
    weighting = HypernetworkWeighting(objective=OBJECTIVES[name]())
    weighting.configure([f"c{i}" for i in range(COMPONENTS)], EMBEDDING)
    weighting.to(device)
    rows = GROUPS * SAMPLES
    width = weighting.sketch.width if weighting.sketch else 0
    weighting.observe(
        scores=torch.rand(rows, COMPONENTS),
        mask=torch.ones(rows, COMPONENTS, dtype=torch.bool),
        embedding=torch.randn(GROUPS, EMBEDDING).repeat_interleave(SAMPLES, 0),
        outcome=torch.rand(rows).round(),
        group=torch.arange(GROUPS).repeat_interleave(SAMPLES),
        task_types=["repair"] * rows,
        gradients=torch.randn(rows, width),
    )
    optimizer = torch.optim.Adam(weighting.parameters(), lr=1e-3)

    def step() -> None:
        loss = weighting.meta_loss()
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weighting.parameters(), 1.0)
        optimizer.step()

    return seconds(step, repeats, device)


def actor_step(device: torch.device, length: int = 512, rows: int = 16) -> float:
    """Seconds of forward and backward of ``GROUPS * SAMPLES`` responses of a 0.5B-parameter actor, in bfloat16."""
    model = Qwen2ForCausalLM(Qwen2Config(**HALF_BILLION)).to(device)
    ids = torch.randint(0, HALF_BILLION["vocab_size"], (rows, length), device=device)

    def micro_batch() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            model(input_ids=ids, labels=ids).loss.backward()

    return seconds(micro_batch, 3, device) * GROUPS * SAMPLES / rows


def sketching(tokens: int) -> float:
    """Seconds of sketching a quickstart rollout's gradients; the logits are there anyway."""
    config = AutoConfig.from_pretrained(str(ROOT / "lightning_dterm" / "assets" / "quickstart"))
    logits, hidden = torch.randn(tokens, config.vocab_size), torch.randn(tokens, config.hidden_size)
    labels, rows = torch.randint(0, config.vocab_size, (tokens,)), torch.arange(tokens) * 16 // tokens
    sketch = GradientSketch()
    call = sketch.tally(rows, 16, labels, 1.0)
    return seconds(lambda: call(slice(None), hidden, logits), 10, torch.device("cpu"))


def train(run: Path, steps: int, name: str) -> None:
    """The quickstart's first rollouts under an objective, its log in ``run``."""
    config = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    config["trainer"] |= {"max_steps": steps, "enable_checkpointing": False}
    config["trainer"]["callbacks"] = [c for c in config["trainer"]["callbacks"] if c["class_path"].endswith(KEPT)]
    config["trainer"]["logger"]["init_args"] |= {"save_dir": str(run.parent), "name": run.name}
    objective = OBJECTIVES[name]
    config["model"]["init_args"]["weighting"]["init_args"]["objective"] = {
        "class_path": f"lightning_dterm.dterm.{objective.__name__}"
    }
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "train.py", "fit", "-c", str(run / "config.yaml")]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def quickstart_share(run: Path, steps: int, name: str) -> dict[str, float]:
    """Seconds of iteration, meta-step and sketching (means over rollouts, the first left out), and their share."""
    if not run.exists():
        train(run, steps, name)
    times = read(run)
    iteration = statistics.mean(times["iteration"][1:])
    meta = statistics.mean(times["meta"][1:] or [0.0])
    sketch = sketching(ROLLOUT_TOKENS) if OBJECTIVES[name]().sketch else 0.0
    return {
        "iteration_s": round(iteration, 4),
        "meta_s": round(meta, 5),
        "sketch_s": round(sketch, 5),
        "share": round((meta + sketch) / iteration, 5),
    }


def on_gpu() -> dict[str, Any] | str:
    """The ratios on a GPU, or a line that says that there is none."""
    if not torch.cuda.is_available():
        return "not measured: this machine has no GPU"
    device = torch.device("cuda")
    step = actor_step(device)
    ratios = {name: meta_step(name, device) / step for name in OBJECTIVES}
    return {"actor_step_s": round(step, 4), "share": {name: round(ratio, 5) for name, ratio in ratios.items()}}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="rollouts of each quickstart run")
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES), help="runs")
    parser.add_argument("--run", type=Path, default=Path("runs/meta_step"), help="folder of the runs' logs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/meta_step.json"))
    return parser


def main() -> None:
    """Measure, print and save."""
    options = arguments().parse_args()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    result = {
        **measured(),
        "load_average": round(os.getloadavg()[0], 1),
        "meta_step_ms": {name: round(1e3 * meta_step(name, cpu), 2) for name in OBJECTIVES},
        "sketch_ms": round(1e3 * sketching(ROLLOUT_TOKENS), 2),
        "quickstart": {
            name: quickstart_share((options.run / name).resolve(), options.steps, name) for name in options.objectives
        },
        "gpu": on_gpu(),
    }
    print(json.dumps(result, indent=2))
    write(options.out, result)


if __name__ == "__main__":
    main()
