"""The comparison of reward placements: what is run, and what its table says, against figures worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from benchmarks import dense


def test_what_an_interrupted_run_left_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "dense" / "seed3"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "events.out.tfevents.1.old").write_text("old")
    seen: list[set[str]] = []

    def run(command: list[str], **options: Any) -> None:
        seen.append({path.name for path in folder.iterdir()})
        (folder / "summary.json").write_text('{"mean_success": 1}')

    monkeypatch.setattr(dense, "commit", lambda: "c0ffee")
    monkeypatch.setattr(dense.subprocess, "run", run)
    pause = tmp_path / "pause"
    pause.touch()
    dense.train((3, "dense"), tmp_path, pause)
    assert (folder / "events.out.tfevents.1.old").exists()  # paused: nothing is touched
    pause.unlink()
    dense.train((3, "dense"), tmp_path, pause)
    assert seen == [{"commit.txt", "log.txt"}]
    (folder / "events.out.tfevents.2.new").write_text("new")
    dense.train((3, "dense"), tmp_path, pause)
    assert len(seen) == 1  # finished: kept as it is
    assert (folder / "events.out.tfevents.2.new").exists()


def finished(folder: Path, curve: list[float], after: float) -> None:
    """A run as the quickstart leaves it."""
    writer = SummaryWriter(str(folder))
    for index, value in enumerate(curve):
        writer.add_scalar("val/success", value, 20 * (index + 1))
        writer.add_scalar("rollout/left_out", 0.0, 20 * (index + 1))
    writer.close()
    success = {"before": 0.25, "after": after}
    sampled = {"mean_success": {"before": 0.25, "after": after / 2}}
    tasks = {"synthesis": {"length": {"after": 30.0}}}
    summary = {"mean_success": success, "sampled": sampled, "kl": 0.1, "tasks": tasks}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "commit.txt").write_text("c0ffee")


def test_the_table_says_what_the_runs_say(tmp_path: Path) -> None:
    for seed in (0, 1):
        finished(tmp_path / "terminal" / f"seed{seed}", [0.25, 0.375, 0.5], 0.5)
        finished(tmp_path / "dense" / f"seed{seed}", [0.25, 0.5 + seed / 4, 0.75], 0.5 + 0.125 * (seed + 1))
        finished(tmp_path / "uniform" / f"seed{seed}", [0.5, 0.5, 0.5], 0.5)
    # only the seed that both have is compared
    finished(tmp_path / "terminal" / "seed2", [0.0, 0.0, 1.0], 1.0)
    finished(tmp_path / "without_style" / "seed1", [0.125, 0.25, 0.375], 0.625)
    arms = dense.gather(tmp_path)
    # curve of dense: 0.25, 0.625, 0.75, so 0.5 is reached two thirds of the way from 1280 to 2560
    assert arms["dense"]["samples_to_reach_terminal"] == pytest.approx(1280 + 1280 * 2 / 3)
    assert arms["terminal"]["seeds"] == [0, 1, 2]
    assert arms["without_style"]["base"] == "dense"
    rows = {
        line.split(" | ")[0].strip("| "): [cell.strip("| ") for cell in line.split(" | ")] for line in dense.table(arms)
    }
    # greedy 0.625 and 0.75: mean 0.6875, deviation 0.08839, half-width 12.706 * 0.0625 (Student, one degree of freedom)
    assert rows["dense"] == [
        "dense", "2", "68.8 (-10.7 to 148.2)", "34.4 (-5.3 to 74.1)", "terminal", "+18.8 (-60.7 to +98.2)",
        "+9.4 (-30.3 to +49.1)", "2,133",
    ]  # fmt: skip
    assert rows["uniform"][-2:] == ["+0.0 (+0.0 to +0.0)", "at most 1,280"]
    assert rows["without_style"][1:] == ["1", "62.5", "31.2", "dense", "-12.5", "-6.2", "not reached"]
    assert rows["terminal"][4:7] == ["", "", ""]
