"""``lightning-dterm summary``: what a finished run printed, again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_dterm.cli import main, print_summary

GREEDY: dict[str, Any] = {
    "mean_success": {"before": 0.25, "after": 0.5},
    "tasks": {"repair": {"success": {"before": 0.25, "after": 0.5}, "bleu": {"before": None, "after": 0.75}}},
}
SAMPLED: dict[str, Any] = {
    "mean_success": {"before": 0.125, "after": None},
    "tasks": {"repair": {"success": {"before": 0.125, "after": 0.875}, "bleu": {"before": 0.5, "after": 0.25}}},
}


def printed(path: Path, summary: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    path.write_text(json.dumps(summary))
    main(["summary", str(path)])
    return [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]


def test_both_tables_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = {**GREEDY, "sampled": SAMPLED, "kl": 1.5, "train_seconds": 61.4}
    rows = printed(tmp_path / "summary.json", summary, capsys)
    figures = [row for row in rows if row[:1] in (["all"], ["repair"])]
    assert figures == [
        ["all", "mean_success", "0.250", "0.500", "+0.250"],
        ["repair", "success", "0.250", "0.500", "+0.250"],
        ["repair", "bleu", "-", "0.750", "-"],
        ["all", "mean_success", "0.125", "-", "-"],
        ["repair", "success", "0.125", "0.875", "+0.750"],
        ["repair", "bleu", "0.500", "0.250", "-0.250"],
    ]
    words = [word for row in rows for word in row]
    assert words.index("greedy") < words.index("sampled")
    assert "KL to the reference: 1.5; training took 61 s" in [" ".join(row) for row in rows]


def test_a_run_without_kl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = {**GREEDY, "sampled": SAMPLED, "kl": None, "train_seconds": 61.4}
    rows = printed(tmp_path / "summary.json", summary, capsys)
    assert "KL to the reference: -; training took 61 s" in [" ".join(row) for row in rows]


def test_no_summary_and_half_a_summary_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = tmp_path / "half.json"
    half.write_text('{"mean_success": {"bef')
    for path, remedy in ((tmp_path / "none.json", "has not finished"), (half, "remove it")):
        with pytest.raises(SystemExit) as exit_info:
            print_summary(path)
        assert exit_info.value.code == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert path.name in line
        assert remedy in line
