"""How far the flawed training references of MicroCode keep to the splits by structure, which hold for correct ones.

    python benchmarks/flawed_structures.py

A task's split is that of its correct program's structure. A flawed reference (``flawed_share``, for the supervised warm
start alone) is that program with a fault put in, which may turn it into a structure of another split.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning_dterm.data.microcode import MicroCode, split_of, structure_key
from lightning_dterm.data.microcode.corpus import MixedCorpus


def census(size: int = 5000, share: float = 0.55, test_size: int = 500) -> dict[str, Any]:
    """Splits of the flawed references among ``size`` training tasks, and how many have a test task's structure."""
    tested = {task.metadata["structure"] for task in MicroCode("test", test_size)}
    mixed = MixedCorpus(MicroCode("train", size), share)
    # the reference of a summarization task is prose
    programs = [t.prefix + t.reference for t in mixed if "flaw" in t.metadata and t.task_type != "summarization"]
    keys = [structure_key(program) for program in programs]
    return {
        "training_tasks": size,
        "flawed_programs": len(keys),
        "by_split_of_their_structure": dict(sorted(Counter(map(split_of, keys)).items())),
        "with_the_structure_of_one_of_the_test_tasks": sum(key in tested for key in keys),
        "test_tasks": test_size,
    }


if __name__ == "__main__":
    print(json.dumps(census(), indent=2))
