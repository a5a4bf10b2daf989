from __future__ import annotations

import io
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_dterm.callbacks import PhaseProgressBar
from lightning_dterm.callbacks.progress import rollout_figures, total_steps
from lightning_dterm.cli import DTermTrainer
from lightning_dterm.hooks import announce_phase, dispatch
from lightning_dterm.types import CodeTask, Rollout
from tests.cli_stand_in import StandInData, StandInModule


def small_rollout() -> Rollout:
    ones = torch.ones(2, 3)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    return Rollout(
        tasks=[CodeTask("t", "repair", "python", "p", "d", "r")] * 2,
        group=torch.zeros(2, dtype=torch.long),
        prompt_ids=ones.long(),
        prompt_mask=ones.long(),
        response_ids=ones.long(),
        response_mask=mask,
        finished=torch.ones(2, dtype=torch.bool),
        texts=["", ""],
        scores=torch.tensor([[0.5, 1.0], [math.nan, 0.25]]),
        alpha=torch.tensor([[0.2, 0.8], [0.0, 1.0]]),
        outcome=torch.tensor([1.0, math.nan]),
        logprobs=torch.tensor([[-1.0, -2.0, 9.0], [-1.0, 9.0, 9.0]]),
        ref_logprobs=torch.tensor([[-2.0, -2.5, 0.0], [-1.5, 0.0, 0.0]]),
    )


def test_rollout_figures() -> None:
    # reward (0.9 + 0.25) / 2; KL ((1 + 0.5) + 0.5) / 2; success over the one sample that knows
    assert rollout_figures(small_rollout()) == pytest.approx({"reward": 0.575, "success": 1.0, "KL": 1.0})


class Phased(StandInModule):
    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for phase in ("rollout", "reward"):
            announce_phase(self.trainer, self, phase)
        super().training_step(batch, batch_idx)
        announce_phase(self.trainer, self, "update")
        dispatch(self.trainer, self, "on_update_end", small_rollout())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fit(folder: Path, model: StandInModule, bar: PhaseProgressBar, **settings: Any) -> DTermTrainer:
    trainer = DTermTrainer(
        accelerator="cpu",
        max_steps=5,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[bar],
        default_root_dir=str(folder),
        **settings,
    )
    trainer.fit(model, datamodule=StandInData())
    return trainer


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Phased(), PhaseProgressBar(interval=0), limit_val_batches=0)
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines[0] == "step 0/5 | start"
    for step, line in enumerate(lines[1:], 1):
        assert line.startswith(f"rollout {step}/5 | update | reward 0.575 | success 1 | KL 1 | tok/s ")
    assert len(lines) == 6
    assert re.search(r" \| left 0:0\d$", lines[1])
    assert "left" not in lines[5]
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_plain_lines_are_rare_but_first_and_last_stand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Phased(), PhaseProgressBar(interval=3600), limit_val_batches=0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines if "/" in line] == ["step 0/5", "rollout 1/5", "rollout 5/5"]


def test_terminal_line_names_every_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    fit(tmp_path, Phased(), PhaseProgressBar(), limit_val_batches=0)
    shown = terminal.getvalue()
    for phase in ("start", "rollout", "reward", "update", "done"):
        assert f" | {phase}" in shown
    assert "rollout 5/5 | done" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is back


def test_terminal_is_left_whole_by_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Phased):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            raise RuntimeError("broken")

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    bar = PhaseProgressBar()
    with pytest.raises(RuntimeError, match="broken"):
        fit(tmp_path, Broken(), bar)
    assert bar._live is None
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h")


def test_modules_without_phases_show_what_they_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, StandInModule(), PhaseProgressBar(interval=0))
    out = capsys.readouterr().out
    assert "sanity check 1/2" in out
    assert "step 5/5 | training | train/loss " in out


def test_disabled_bar_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = PhaseProgressBar(interval=0)
    bar.disable()
    trainer = DTermTrainer(accelerator="cpu", logger=False, callbacks=[bar], default_root_dir=str(tmp_path))
    trainer.validate(StandInModule(), datamodule=StandInData(), verbose=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("steps", "epochs", "expected"), [(5, 1, 5), (-1, 2, 16), (100, 1, 8), (-1, -1, math.inf)])
def test_total_steps(tmp_path: Path, steps: int, epochs: int, expected: float) -> None:
    class Asks(StandInModule):
        total: float = 0.0

        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            self.total = total_steps(self.trainer)
            self.trainer.should_stop = True

    model = Asks()
    trainer = DTermTrainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=str(tmp_path),
    )
    trainer.fit(model, datamodule=StandInData())
    assert model.total == expected


def test_negative_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="interval"):
        PhaseProgressBar(interval=-1)
