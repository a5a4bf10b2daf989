"""A module and data so small that the command line and the callbacks are all there is to test."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch import Tensor

from lightning_dterm.cli import main


class Rows:
    """Batches ``[[i, i]]`` for i below ``length``; resumes where it was."""

    def __init__(self, length: int) -> None:
        self.length, self.position = length, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(self.position % self.length, self.length):
            self.position = index + 1
            yield torch.full((1, 2), float(index))

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class StandInData(L.LightningDataModule):
    def __init__(self, length: int = 8, path: str | None = None) -> None:
        super().__init__()
        self.length = length
        self.path = path

    def setup(self, stage: str) -> None:
        if self.path is not None:
            Path(self.path).read_text()

    def train_dataloader(self) -> Rows:
        return Rows(self.length)

    def val_dataloader(self) -> Rows:
        return Rows(2)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader


class StandInModule(L.LightningModule):
    """Linear regression by manual optimization. Logs what happened to ``trace``, one JSON line an event.

    ``signal_at`` maps a step to signal numbers that the process (or only ``signal_rank``) sends itself in that step.
    """

    def __init__(
        self,
        lr: float = 0.01,
        trace: str | None = None,
        signal_at: dict[int, list[int]] | None = None,
        signal_rank: int = 0,
        step_seconds: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters("lr")
        self.lr, self.trace, self.signal_at = lr, trace, signal_at or {}
        self.signal_rank, self.step_seconds = signal_rank, step_seconds
        self.automatic_optimization = False
        self.layer: torch.nn.Linear | None = None

    def note(self, event: str, **values: Any) -> None:
        if self.trace is not None:
            with open(f"{self.trace}.{self.global_rank}", "a") as file:
                file.write(json.dumps({"event": event, "step": self.global_step, **values}) + "\n")

    def configure_model(self) -> None:
        if self.layer is None:
            self.layer = torch.nn.Linear(2, 1)
            with torch.no_grad():
                self.layer.weight.fill_(0.5)
                self.layer.bias.zero_()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        assert self.layer is not None
        optimizer = self.optimizers()
        loss = self.layer(batch).square().mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        time.sleep(self.step_seconds)
        self.note("train", batch=float(batch[0, 0]), lr=self.lr)
        self.log("train/loss", loss, prog_bar=True)
        if self.global_rank == self.signal_rank:
            for number in self.signal_at.get(self.global_step, []):
                os.kill(os.getpid(), signal.Signals(number))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.note("validate")

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.note("test")

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return batch

    def on_train_end(self) -> None:
        assert self.layer is not None
        self.note("end", weight=self.layer.weight.tolist(), threads=torch.get_num_threads())

    def export(self, path: str, merge: bool = True) -> None:
        assert self.layer is not None
        Path(path).mkdir(parents=True)
        (Path(path) / "layer.json").write_text(json.dumps({"weight": self.layer.weight.tolist(), "merge": merge}))


def events(trace: Path, rank: int = 0) -> list[dict[str, Any]]:
    """What a run noted."""
    path = Path(f"{trace}.{rank}")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_config(folder: Path) -> Path:
    """A complete run of the stand-in."""
    settings = {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 4,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": "runs", "name": "x", "version": ""},
            },
        },
        "model": {"class_path": "tests.cli_stand_in.StandInModule", "init_args": {"trace": str(folder / "trace")}},
        "data": {"class_path": "tests.cli_stand_in.StandInData"},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def error_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that ``args`` fail with."""
    with pytest.raises(SystemExit) as exit_info:
        main(list(args))
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith(("INFO", "Seed set"))]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("lightning-dterm: error: ")
    assert "Traceback" not in captured.out + captured.err
    return lines[0]
