"""Measures MicroCode: tasks per second of one thread, and a census of every split.

    python benchmarks/microcode.py --out benchmarks/results/microcode.json

Rates are by CPU time of this process, on which other load on the machine counts less, and by wall time. The five
trained task types are measured together, "cold" with no cached structure keys and "warm" after it on other rows (the
median of three draws, and all three); then every type alone, warm and once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import measured, write
from lightning_dterm.data.microcode import ALL_TASK_TYPES, SPLITS, TASK_TYPES, MicroCode, grammar
from lightning_dterm.types import CodeTask

AIM = 2000  # tasks/s of CPU time
WARM_DRAWS = 3


def rate(split: str, size: int, seed: int, task_types: tuple[str, ...]) -> tuple[dict[str, int], list[CodeTask]]:
    """Tasks per second of CPU time and of wall time, and the tasks."""
    rows = MicroCode(split, size, seed=seed, task_types=task_types)
    cpu, wall = time.process_time(), time.perf_counter()
    tasks = list(rows)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": round(size / cpu), "wall": round(size / wall)}, tasks


def spread(lengths: list[int]) -> dict[str, int]:
    """Median, 95th percentile and maximum."""
    ordered = sorted(lengths)
    return {"median": ordered[len(ordered) // 2], "p95": ordered[int(0.95 * len(ordered))], "max": ordered[-1]}


def structures(tasks: list[CodeTask]) -> int:
    """Number of distinct program structures."""
    return len({task.metadata["structure"] for task in tasks})


def together(split: str, size: int, seed: int) -> dict[str, Any]:
    """The five task types of one split, cold and warm, and what the programs are."""
    grammar.facts.cache_clear()
    cold, _ = rate(split, size, seed, TASK_TYPES)
    draws = [rate(split, size, seed + 1 + draw, TASK_TYPES) for draw in range(WARM_DRAWS)]
    warm = {clock: [speeds[clock] for speeds, _ in draws] for clock in ("cpu", "wall")}
    tasks = draws[0][1]
    families = Counter(str(task.metadata["family"]) for task in tasks)
    return {
        "tasks": size,
        "tasks_per_s": {
            "cold": cold,
            "warm": {clock: statistics.median(values) for clock, values in warm.items()},
            "warm_draws": warm,
        },
        "structures": structures(tasks),
        "families": dict(families.most_common()),
    }


def alone(split: str, size: int, seed: int, task_type: str) -> dict[str, Any]:
    """One task type of one split; lengths in characters."""
    speed, tasks = rate(split, size, seed, (task_type,))
    result: dict[str, Any] = {
        "tasks": size,
        "tasks_per_s": speed,
        "structures": structures(tasks),
        "prompt": spread([len(task.prompt) for task in tasks]),
        "reference": spread([len(task.reference) for task in tasks]),
    }
    if task_type == "repair":
        result["faults"] = dict(Counter(str(task.metadata["fault"]) for task in tasks).most_common())
    return result


def main() -> None:
    """Measure, print the rates and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1500, help="tasks per split and type")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/microcode.json"))
    options = parser.parse_args()
    result: dict[str, Any] = {**measured(), "seed": options.seed, "aim_tasks_per_s": AIM, "splits": {}}
    for split in SPLITS:
        figures = together(split, len(TASK_TYPES) * options.size, options.seed)
        other_rows = options.seed + 1 + WARM_DRAWS
        figures["task_types"] = {kind: alone(split, options.size, other_rows, kind) for kind in ALL_TASK_TYPES}
        result["splits"][split] = figures
        rates = {state: figures["tasks_per_s"][state] for state in ("cold", "warm")}
        print(f"{split}: tasks/s {rates}, {figures['structures']} structures")
        for task_type, part in figures["task_types"].items():
            print(f"  {task_type:<14} {part['tasks_per_s']}, {part['structures']} structures")
    write(options.out, result)


if __name__ == "__main__":
    main()
