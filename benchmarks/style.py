"""Measures how many 30-line programs a second the style reward scores, in rollout batches of several sizes.

Usage: ``python benchmarks/style.py [--rounds 7] [--out benchmarks/results/style.json]``. Programs are drawn from a
seed, all different: about one line in six carries a violation, from unused imports to ``eval``. One batch is one call
of :meth:`StyleReward.score`, from program texts to values and spans: files written, Ruff started, its report parsed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.provenance import measured, write
from lightning_dterm.rewards.style import StyleReward, code_lines
from lightning_dterm.types import CodeTask, Sample

LINES = 30
TASK = CodeTask("style", "synthesis", "python", "", "", "")
CLEAN = (
    "    total = total + {n}",
    "    for index in range({n}):\n        total += index * values[index % len(values)]",
    "    if total > {n}:\n        total -= {n}",
    "    names[{n}] = str(total)",
)
FLAWED = (
    "    import os{n}",
    "    unused_{n} = total+1 ",
    "    total = eval('{n}')",
    "    assert isinstance(total, int), 'a message that is far too long for one line of code, number {n} of many such'",
    "    if total == None: total = {n}",
    "    try:\n        total = int(names[{n}])\n    except:\n        pass",
)


def program(draw: random.Random) -> str:
    """One function of exactly ``LINES`` lines."""
    lines = ["def solve(values, names={}):", "    total = 0"]
    while len(lines) < LINES - 1:
        choice = draw.choice(FLAWED if draw.random() < 1 / 6 else CLEAN)
        lines += choice.format(n=draw.randrange(10**6)).split("\n")
    return "\n".join([*lines[: LINES - 1], "    return total", ""])


def parsing(draw: random.Random, count: int) -> list[str]:
    """``count`` programs that compile (cutting to length may leave a statement without its body)."""
    found: list[str] = []
    while len(found) < count:
        text = program(draw)
        try:
            compile(text, "style", "exec")
        except SyntaxError:
            continue
        found.append(text)
    return found


def measure(reward: StyleReward, size: int, rounds: int, draw: random.Random) -> dict[str, Any]:
    """Seconds of ``rounds`` batches of ``size`` programs, each batch new."""
    seconds, violations = [], 0
    for _ in range(rounds + 1):
        samples = [Sample(TASK, text, ((0, len(text)),)) for text in parsing(draw, size)]
        started = time.perf_counter()
        results = reward.score(samples)
        seconds.append(time.perf_counter() - started)
        violations += sum(len(result.spans) for result in results)
        if any(result.value is None or "violations" not in result.details for result in results):
            raise SystemExit("a program of the benchmark was not scored")
    counted = seconds[1:]  # the first call is the warm-up
    return {
        "samples": size,
        "samples_per_s_median": round(size / statistics.median(counted), 1),
        "samples_per_s_worst": round(size / max(counted), 1),
        "seconds": [round(value, 4) for value in counted],
        "violations_per_sample": round(violations / size / (rounds + 1), 2),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="batches of each size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024], help="samples per batch")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/style.json")
    options = parser.parse_args()
    draw = random.Random(0)
    reward = StyleReward()
    ruff = subprocess.run([sys.executable, "-m", "ruff", "--version"], capture_output=True, text=True, check=True)
    example = parsing(draw, 1)[0]
    result = {
        **measured(),
        "load_before": round(os.getloadavg()[0], 2),
        "nice": os.nice(0),
        "ruff": ruff.stdout.strip(),
        "lines": len(example.splitlines()),
        "code_lines": code_lines(example),
        "batches": [measure(reward, size, options.rounds, draw) for size in options.sizes],
    }
    print(json.dumps(result, indent=2))
    write(options.out, result)


if __name__ == "__main__":
    main()
