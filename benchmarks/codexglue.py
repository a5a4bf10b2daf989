"""CodeXGLUE Java to C#: what the warm start reaches from scratch, and what PPO adds, on the 1,000 test pairs.

    DIR=folder/with/translation_java_cs_{train,valid,test}.jsonl.gz
    python -m lightning_dterm.init_actor --data lightning_dterm.data.CodeXGLUETranslationDataModule \\
        --data.data_dir $DIR --out runs/codexglue_init --vocab_size 2048 --hidden_size 192 --layers 4 --heads 6 \\
        --kv_heads 2 --intermediate_size 512
    python train.py fit -c configs/codexglue/sft.yaml --data.init_args.data_dir $DIR
    python train.py fit -c configs/base.yaml -c configs/codexglue/ppo.yaml --data.init_args.data_dir $DIR
    python benchmarks/codexglue.py --data_dir $DIR --trained_at $COMMIT

The last line trains nothing: it gathers the figures of the two runs, with those of copying the input. ``COMMIT`` is the
commit that the runs were trained at (``git rev-parse HEAD`` of then).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import provenance, write
from lightning_dterm.data import CodeXGLUETranslationDataModule
from lightning_dterm.metrics import corpus_bleu
from lightning_dterm.rewards.compile import parse_errors

PUBLISHED = {
    "naive copy": {"bleu": 18.54, "exact_match": 0.0},
    "Transformer from scratch": {"bleu": 55.84, "exact_match": 0.33},
}
FIGURES = ("bleu", "exact_match", "compile_rate", "length", "truncated")


def copied(data_dir: str) -> dict[str, float]:
    """Figures of answering with the Java input."""
    tasks = CodeXGLUETranslationDataModule(data_dir=data_dir).test_tasks()
    sources = [task.prompt.rsplit("\n### C#", 1)[0] for task in tasks]
    references = [task.reference for task in tasks]
    return {
        "pairs": len(references),
        "bleu": corpus_bleu(sources, references),
        "exact_match": sum(s == r for s, r in zip(sources, references, strict=True)) / len(references),
        "references_parse_clean": sum(not parse_errors(r, "csharp") for r in references) / len(references),
    }


def wall_seconds(run: Path) -> float:
    """From the first to the last logged scalar of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    times = [scalar.wall_time for tag in events.Tags()["scalars"] for scalar in events.Scalars(tag)]
    return max(times) - min(times)


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--sft", type=Path, default=Path("runs/codexglue_sft"))
    parser.add_argument("--ppo", type=Path, default=Path("runs/codexglue_ppo"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/codexglue_java_cs.json"))
    parser.add_argument("--trained_at", required=True, help="commit the two runs were trained at")
    return parser


def main() -> None:
    """Gather and write."""
    args = parser().parse_args()
    summary = json.loads((args.ppo / "summary.json").read_text())
    result: dict[str, Any] = {
        **provenance(args.trained_at),
        "published": PUBLISHED,
        "copy": copied(args.data_dir),
        "warm_start_seconds": round(wall_seconds(args.sft)),
        "ppo_rollouts": summary["rollouts"],
        "ppo_seconds": summary["train_seconds"],
        "kl": summary["kl"],
    }
    for mode, part in (("greedy", summary), ("sampled", summary["sampled"])):
        figures = part["tasks"]["translation"]
        result[mode] = {name: figures[name] for name in FIGURES}
    write(args.out, result)
    print(f"{args.out}: BLEU {result['greedy']['bleu']['before']:.2f} -> {result['greedy']['bleu']['after']:.2f}")


if __name__ == "__main__":
    main()
