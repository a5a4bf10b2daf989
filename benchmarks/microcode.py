"""Measures MicroCode: tasks per second of one thread, and a census of every split.

Usage: ``python benchmarks/microcode.py [--size 2000] [--seed 0]``. Times are CPU times of this process, so that other
load on the machine counts little; "cold" starts with no cached structure keys, "warm" follows it on other rows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lightning_dterm.data.microcode import ALL_TASK_TYPES, SPLITS, TASK_TYPES, MicroCode, grammar
from lightning_dterm.types import CodeTask


def rate(split: str, size: int, seed: int, task_types: tuple[str, ...]) -> tuple[float, list[CodeTask]]:
    """Tasks per second of CPU time, and the tasks."""
    rows = MicroCode(split, size, seed=seed, task_types=task_types)
    start = time.process_time()
    tasks = list(rows)
    return size / (time.process_time() - start), tasks


def spread(lengths: list[int]) -> str:
    """Median, 95th percentile and maximum."""
    ordered = sorted(lengths)
    return f"{ordered[len(ordered) // 2]:>5}{ordered[int(0.95 * len(ordered))]:>5}{ordered[-1]:>5}"


def main() -> None:
    """Print rates, lengths in characters, distinct structures, families and faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2000, help="tasks per split and type")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("five task types together, tasks/s of CPU time")
    for split in SPLITS:
        grammar.facts.cache_clear()
        cold, _ = rate(split, 5 * options.size, options.seed, TASK_TYPES)
        warm, tasks = rate(split, 5 * options.size, options.seed + 1, TASK_TYPES)
        structures = len({task.metadata["structure"] for task in tasks})
        print(f"  {split:<11} cold {cold:6.0f}   warm {warm:6.0f}   {structures} structures in {len(tasks)} tasks")
        print("   ", dict(Counter(task.metadata["family"] for task in tasks).most_common()))
    print(f"\n{'split':<12}{'type':<15}{'tasks/s':>8}{'structures':>11}   prompt 50% 95% max   reference 50% 95% max")
    for split in SPLITS:
        for task_type in ALL_TASK_TYPES:
            speed, tasks = rate(split, options.size, options.seed + 2, (task_type,))
            structures = len({task.metadata["structure"] for task in tasks})
            prompts = spread([len(task.prompt) for task in tasks])
            references = spread([len(task.reference) for task in tasks])
            print(f"{split:<12}{task_type:<15}{speed:>8.0f}{structures:>11}       {prompts}          {references}")
            if task_type == "repair":
                print("   ", dict(Counter(task.metadata["fault"] for task in tasks).most_common()))


if __name__ == "__main__":
    main()
