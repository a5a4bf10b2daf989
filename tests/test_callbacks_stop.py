from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dterm.callbacks.stop import GracefulStop, resume_command, stopped_by_signal
from lightning_dterm.cli import DTermTrainer
from tests.cli_stand_in import StandInData, StandInModule, events


def trainer_in(folder: Path, *callbacks: L.Callback, **settings: Any) -> DTermTrainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": str(folder),
    }
    return DTermTrainer(callbacks=list(callbacks), **{**defaults, **settings})


def fit(trainer: L.Trainer, trace: Path, ckpt_path: str | None = None, **settings: Any) -> StandInModule:
    model = StandInModule(trace=str(trace), **settings)
    trainer.fit(model, datamodule=StandInData(), ckpt_path=ckpt_path, weights_only=True)
    return model


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop_at", [3, 8, 11])
def test_stop_and_resume_equal_one_go(tmp_path: Path, number: int, stop_at: int) -> None:
    whole = fit(trainer_in(tmp_path / "whole", ModelCheckpoint(every_n_train_steps=2)), tmp_path / "whole")

    keeper = ModelCheckpoint(dirpath=tmp_path / "ckpt", every_n_train_steps=2, save_last=True)
    trainer = trainer_in(tmp_path / "a", keeper)
    fit(trainer, tmp_path / "parts", signal_at={stop_at: [number]})
    assert trainer.global_step == stop_at
    assert stopped_by_signal(trainer)
    assert trainer.state.finished
    last = tmp_path / "ckpt" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == stop_at
    assert [p.name for p in tmp_path.glob("ckpt/last*")] == ["last.ckpt"]

    keeper = ModelCheckpoint(dirpath=tmp_path / "ckpt", every_n_train_steps=2, save_last=True)
    resumed = trainer_in(tmp_path / "b", keeper)
    parts = fit(resumed, tmp_path / "parts", ckpt_path=str(last))
    assert not stopped_by_signal(resumed)
    assert resumed.global_step == 16
    assert parts.layer is not None
    assert whole.layer is not None
    assert torch.equal(parts.layer.weight, whole.layer.weight)

    def noted(trace: Path, event: str) -> list[tuple[int, float | None]]:
        return [(e["step"], e.get("batch")) for e in events(trace) if e["event"] == event]

    assert noted(tmp_path / "parts", "train") == noted(tmp_path / "whole", "train")
    assert [step for step, _ in noted(tmp_path / "whole", "train")] == list(range(1, 17))
    assert noted(tmp_path / "parts", "validate") == noted(tmp_path / "whole", "validate")


def test_without_model_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, enable_checkpointing=False)
    fit(trainer, tmp_path / "t", signal_at={3: [signal.SIGINT]})
    stop = next(c for c in trainer.callbacks if isinstance(c, GracefulStop))
    assert stop.checkpoint == str(tmp_path / "checkpoints" / "last.ckpt")
    assert torch.load(stop.checkpoint, weights_only=True)["global_step"] == 3


def test_last_checkpoint_of_another_run_is_kept(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_text("mine")
    trainer = trainer_in(tmp_path, ModelCheckpoint(dirpath=tmp_path / "checkpoints", every_n_train_steps=100))
    fit(trainer, tmp_path / "t", signal_at={3: [signal.SIGINT]})
    assert (tmp_path / "checkpoints" / "last.ckpt").read_text() == "mine"
    assert torch.load(tmp_path / "checkpoints" / "last-v1.ckpt", weights_only=True)["global_step"] == 3


def test_min_steps_does_not_hold_it_up(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, min_steps=12, min_epochs=2)
    fit(trainer, tmp_path / "t", signal_at={3: [signal.SIGTERM]})
    assert trainer.global_step == 3


def test_no_validation_between_the_signal_and_the_end(tmp_path: Path) -> None:
    fit(trainer_in(tmp_path), tmp_path / "t", signal_at={3: [signal.SIGINT]})
    assert [e["event"] for e in events(tmp_path / "t")] == ["train"] * 3 + ["end"]


def test_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        fit(trainer, tmp_path / "t", signal_at={3: [signal.SIGINT, signal.SIGINT]})
    assert exit_info.value.code == 1
    assert not stopped_by_signal(trainer)
    assert [e["event"] for e in events(tmp_path / "t")] == ["train"] * 3


def test_second_sigterm_changes_nothing(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    fit(trainer, tmp_path / "t", signal_at={3: [signal.SIGTERM, signal.SIGTERM]})
    assert stopped_by_signal(trainer)


@pytest.mark.parametrize("signal_at", [{}, {2: [signal.SIGINT]}])
def test_handlers_are_given_back(tmp_path: Path, signal_at: dict[int, list[int]]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fit(trainer_in(tmp_path), tmp_path / "t", signal_at=signal_at)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_message_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "a b.yaml", "--ckpt_path", "old.ckpt"])
    with caplog.at_level("INFO"):
        fit(trainer_in(tmp_path), tmp_path / "t", signal_at={2: [signal.SIGINT]})
    expected = f"python train.py fit --config 'a b.yaml' --ckpt_path {tmp_path / 'checkpoints' / 'last.ckpt'}"
    assert expected in caplog.text


def test_resume_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lightning-dterm", "fit", "--ckpt_path=x", "-c", "y.yaml"])
    assert resume_command("z.ckpt") == "lightning-dterm fit -c y.yaml --ckpt_path z.ckpt"
    monkeypatch.setattr(sys, "argv", ["notebook"])
    assert resume_command("z.ckpt") == "trainer.fit(..., ckpt_path='z.ckpt')"
