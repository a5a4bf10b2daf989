"""Does it help to put rewards on the tokens that earned them? The quickstart, with everything else equal.

    python benchmarks/dense.py run --arms dense terminal uniform --seeds 0 1 2 3 4
    python benchmarks/dense.py gather --out benchmarks/results/dense.json --figure docs/images/dense.png

An arm is the quickstart with one thing changed: how rewards are placed on tokens, or one component left out. Every run
is one process with one thread; greedy success on the same validation tasks is measured as it goes (the learning curve,
over the samples drawn so far), greedy and sampled success on the test tasks before and after. Finished runs are kept,
so ``run`` goes on where it stopped (a file ``pause`` in the folder of the runs keeps it from starting others;
what an interrupted one left is cleared first); ``gather`` compares arms seed by seed: the same training tasks, the same
uniform numbers for sampling. It prints a table and draws the learning curves, and what leaving a component out changes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit, provenance, write
from benchmarks.quickstart import interval

EVERY = 20  # rollouts between two points of a learning curve
SAMPLES = 64  # a rollout: 16 prompts, 4 samples each (configs/quickstart.yaml)
COMPONENTS = ("CompileReward", "TestsReward", "SimilarityReward", "StyleReward", "EfficiencyReward")
_MODE = "configs/attribution/{}.yaml"
_LAMBDA = ["--model.init_args.ppo.lam", "0.95"]


QUICKSTART = "configs/quickstart.yaml"


def _without(component: str, folder: Path) -> str:
    """The quickstart's configuration with a component left out, as a file in the run's folder.

    Raises:
        ValueError: Where the quickstart has no such component.
    """
    config = yaml.safe_load(Path(QUICKSTART).read_text())
    rewards = next(c for c in config["trainer"]["callbacks"] if c["class_path"].endswith(".RewardComputation"))
    components = rewards["init_args"]["components"]
    kept = [c for c in components if c["class_path"].rsplit(".", 1)[1] != component]
    if len(kept) != len(components) - 1:
        raise ValueError(f"{QUICKSTART} has no component {component}")
    rewards["init_args"]["components"] = kept
    path = folder / "quickstart_without.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


ARMS: dict[str, list[str]] = {
    "dense": [],
    "terminal": ["--config", _MODE.format("terminal")],
    "uniform": ["--config", _MODE.format("uniform")],
    # the quickstart's lambda of 0.3 was chosen for dense rewards; these are the three with the usual one
    "dense_lam095": _LAMBDA,
    "terminal_lam095": ["--config", _MODE.format("terminal"), *_LAMBDA],
    "uniform_lam095": ["--config", _MODE.format("uniform"), *_LAMBDA],
}
ARMS |= {f"without_{c.removesuffix('Reward').lower()}": [] for c in COMPONENTS}


def command_for(arm: str, seed: int, folder: Path) -> list[str]:
    """One run: the quickstart, its arm's change, and validation as it goes."""
    left_out = next((c for c in COMPONENTS if arm == f"without_{c.removesuffix('Reward').lower()}"), None)
    config = _without(left_out, folder) if left_out else QUICKSTART
    command = [sys.executable, "train.py", "fit", "--config", config, *ARMS[arm]]
    command += ["--seed_everything", str(seed), "--data.init_args.seed", str(seed)]
    command += ["--trainer.limit_val_batches", "1.0", "--trainer.val_check_interval", str(EVERY)]
    command += ["--trainer.check_val_every_n_epoch", "null"]
    command += ["--trainer.logger.init_args.save_dir", str(folder.parent)]
    return [*command, "--trainer.logger.init_args.name", folder.name]


def train(job: tuple[int, str], runs: Path, pause: Path) -> None:
    """One run, unless it is finished or ``pause`` exists; what it was made from stays beside it.

    A folder without a summary is what an interrupted run left: its TensorBoard events would be read along.
    """
    seed, arm = job
    folder = runs / arm / f"seed{seed}"
    if (folder / "summary.json").is_file() or pause.exists():
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / "commit.txt").write_text(commit())
    with (folder / "log.txt").open("w") as log:
        subprocess.run(
            command_for(arm, seed, folder),
            check=True,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    print(f"{arm} seed {seed}: {json.loads((folder / 'summary.json').read_text())['mean_success']}", flush=True)


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What a run logged: name -> rollouts -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def record(folder: Path) -> dict[str, Any]:
    """One finished run: its learning curve, its test figures, and what went wrong in it."""
    summary = json.loads((folder / "summary.json").read_text())
    logged = scalars(folder)
    curve = dict(sorted(logged["val/success"].items()))
    return {
        "commit": (folder / "commit.txt").read_text(),
        "samples": [SAMPLES * step for step in curve],
        "validation_success": list(curve.values()),
        "greedy": summary["mean_success"],
        "sampled": summary["sampled"]["mean_success"],
        "kl": summary["kl"],
        "length": sum(v["length"]["after"] for v in summary["tasks"].values()) / len(summary["tasks"]),
        "left_out": sum(logged["rollout/left_out"].values()),
        "reward_failures": sum(sum(v.values()) for k, v in logged.items() if k.startswith("reward_failures/")),
    }


def samples_to_reach(samples: list[int], curve: list[float], level: float) -> float | None:
    """Samples at which a curve first reaches ``level``, linear between its points; None where it never does."""
    for i, value in enumerate(curve):
        if value >= level:
            if i == 0:
                return float(samples[0])
            before = curve[i - 1]
            return samples[i - 1] + (samples[i] - samples[i - 1]) * (level - before) / (value - before)
    return None


def compare(runs: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """An arm, and what it changes against ``base`` seed by seed."""
    seeds = sorted(set(runs) & set(base))
    chosen, against = [runs[s] for s in seeds], [base[s] for s in seeds]
    points = chosen[0]["samples"]
    result: dict[str, Any] = {"seeds": seeds, "samples": points}
    result["validation_success"] = [interval([r["validation_success"][i] for r in chosen]) for i in range(len(points))]
    for mode in ("greedy", "sampled"):
        result[mode] = {when: interval([r[mode][when] for r in chosen]) for when in ("before", "after")}
        gains = [r[mode]["after"] - b[mode]["after"] for r, b in zip(chosen, against, strict=True)]
        result[mode]["against_base"] = interval(gains)
    area = [sum(r["validation_success"]) / len(points) for r in chosen]
    base_area = [sum(r["validation_success"]) / len(points) for r in against]
    result["curve_mean"] = interval(area)
    result["curve_mean_against_base"] = interval([a - b for a, b in zip(area, base_area, strict=True)])
    for key in ("kl", "length", "left_out", "reward_failures"):
        result[key] = interval([r[key] for r in chosen])
    result["runs"] = chosen
    return result


def gather(runs: Path) -> dict[str, Any]:
    """Every arm with finished runs: placement against ``terminal``, components left out against ``dense``."""
    found = {
        arm: {int(p.parent.name[4:]): record(p.parent) for p in sorted((runs / arm).glob("seed*/summary.json"))}
        for arm in ARMS
    }
    found = {arm: records for arm, records in found.items() if records}
    bases = {arm: "dense" if arm.startswith("without") else arm.replace(arm.split("_")[0], "terminal") for arm in found}
    result = {
        arm: {"base": bases[arm], **compare(records, found[bases[arm]])}
        for arm, records in found.items()
        if set(records) & set(found.get(bases[arm], {}))
    }
    for name, arm in result.items():
        terminal = found.get("terminal_lam095" if name.endswith("_lam095") else "terminal", {})
        arm["samples_to_reach_terminal"] = None
        if seeds := [seed for seed in arm["seeds"] if seed in terminal]:
            level = _mean([terminal[seed]["validation_success"][-1] for seed in seeds])
            curves = [found[name][seed]["validation_success"] for seed in seeds]
            means = [_mean(list(values)) for values in zip(*curves, strict=True)]
            arm["samples_to_reach_terminal"] = samples_to_reach(arm["samples"], means, level)
    return result


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _percent(found: dict[str, Any], sign: str = "") -> str:
    """A mean with its interval, in percent (points)."""
    mean, low, high = (None if found[key] is None else 100 * found[key] for key in ("mean", "low", "high"))
    return f"{mean:{sign}.1f}" + ("" if low is None else f" ({low:{sign}.1f} to {high:{sign}.1f})")


def table(arms: dict[str, Any]) -> list[str]:
    """One line of Markdown per arm: final test success, paired differences to its base, and how soon it was there."""
    lines = [
        "| arm | seeds | greedy, % | sampled, % | against | greedy, points | sampled, points "
        "| samples to terminal's end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, arm in arms.items():
        reached = arm["samples_to_reach_terminal"]
        soon = "not reached" if reached is None else f"{reached:,.0f}"
        if reached == arm["samples"][0]:  # the curve's first point
            soon = f"at most {soon}"
        differences = ["", "", ""]
        if arm["base"] != name:
            differences = [arm["base"], *(_percent(arm[mode]["against_base"], "+") for mode in ("greedy", "sampled"))]
        success = [_percent(arm[mode]["after"]) for mode in ("greedy", "sampled")]
        lines.append("| " + " | ".join([name, str(len(arm["seeds"])), *success, *differences, soon]) + " |")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """The learning curves of the three placements, with their 95% intervals, per lambda; then the components.

    Raises:
        SystemExit: Without matplotlib, which only this figure needs.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit("--figure needs matplotlib: pip install matplotlib") from error
    suffixes = [s for s in ("", "_lam095") if f"terminal{s}" in result]
    without = {name: arm for name, arm in result.items() if name.startswith("without_")}
    panels = len(suffixes) + bool(without)
    figure = Figure(figsize=(5.2 * panels, 3.6), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis, suffix in zip(axes, suffixes, strict=False):
        draw_curves(axis, result, suffix)
        axis.sharey(axes[0])
    if without:
        draw_components(axes[-1], without)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def draw_curves(axis: Any, result: dict[str, Any], suffix: str) -> None:
    """The learning curves at one lambda."""
    for mode, color in (("dense", "#0b6e4f"), ("terminal", "#c1440e"), ("uniform", "#3d5a98")):
        arm = result.get(mode + suffix)
        if arm is None:
            continue
        points = arm["validation_success"]
        axis.plot(arm["samples"], [100 * p["mean"] for p in points], color=color, label=mode, marker="o", ms=3)
        if len(arm["seeds"]) > 1:
            low, high = ([100 * p[k] for p in points] for k in ("low", "high"))
            axis.fill_between(arm["samples"], low, high, color=color, alpha=0.15, lw=0)
    axis.set(
        xlabel="samples",
        ylabel="greedy success on validation, %",
        title=f"placement, lambda {'0.95' if suffix else '0.3'}",
    )
    axis.legend(frameon=False)


def draw_components(axis: Any, without: dict[str, Any]) -> None:
    """What leaving each component out changes in test success against ``dense``, with 95% intervals."""
    for place, (mode, color) in enumerate((("greedy", "#0b6e4f"), ("sampled", "#8fbcab"))):
        gains = [arm[mode]["against_base"] for arm in without.values()]
        means = [100 * gain["mean"] for gain in gains]
        halves = [0.0 if gain["high"] is None else 100 * (gain["high"] - gain["mean"]) for gain in gains]
        heights = [row + 0.4 * place - 0.2 for row in range(len(gains))]
        axis.barh(heights, means, 0.36, xerr=halves, color=color, label=mode, error_kw={"lw": 1, "capsize": 2})
    axis.set_yticks(range(len(without)), [name.removeprefix("without_") for name in without])
    axis.invert_yaxis()
    axis.axvline(0, color="black", lw=0.8)
    axis.set(xlabel="points of test success against dense", title="without one component")
    axis.legend(frameon=False)


def main() -> None:
    """Train what is missing, or gather what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "gather"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["dense", "terminal", "uniform"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/dense"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at the same time")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dense.json"))
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    if args.action == "run":
        jobs = [(seed, arm) for seed in args.seeds for arm in args.arms]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(partial(train, runs=args.runs, pause=args.runs / "pause"), jobs))
        return
    arms = gather(args.runs)
    commits = sorted({run["commit"] for arm in arms.values() for run in arm["runs"]})
    lines = table(arms)
    print("\n".join(lines))
    trained = commits[0] if len(commits) == 1 else ", ".join(commits)
    write(args.out, {**provenance(trained), "table": lines, "arms": arms})
    if args.figure:
        draw(arms, args.figure)


if __name__ == "__main__":
    main()
