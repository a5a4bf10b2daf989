"""Runs that the command line refuses before they do something else than was asked, each in one line."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lightning_dterm.cli import DTermTrainer, main
from tests.cli_stand_in import StandInData, StandInModule, error_of, events, write_config

WITH_LAST = [
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.save_last=true",
    "--trainer.callbacks.every_n_train_steps=1",
]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTNING_DTERM_DEBUG", raising=False)
    return write_config(tmp_path)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize("callbacks", [[], WITH_LAST])
def test_last_without_a_checkpoint_is_not_the_untrained_actor(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, callbacks: list[str]
) -> None:
    line = error_of(capsys, command, "--config", str(config), *callbacks, "--ckpt_path", "last")
    assert f"ckpt_path last: there is no last checkpoint to {command}" in line
    assert events(tmp_path / "trace") == []


def test_last_is_the_last_checkpoint_where_there_is_one(config: Path, tmp_path: Path) -> None:
    run = ["--config", str(config), *WITH_LAST]
    main(["fit", *run, "--ckpt_path", "last"])  # nothing yet: training may begin, as a script that is restarted wants
    main(["fit", *run, "--trainer.max_steps", "6", "--ckpt_path", "last"])
    assert [e["step"] for e in events(tmp_path / "trace") if e["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    main(["test", *run, "--ckpt_path", "last"])
    assert events(tmp_path / "trace")[-1]["event"] == "test"


@pytest.mark.filterwarnings("error:.*max_epochs. was not set")
def test_no_limit_to_a_schedule_that_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = error_of(capsys, "fit", "--config", "configs/quickstart.yaml", "--trainer.max_steps", "-1")
    assert "optimizer.schedule linear needs trainer.max_steps, which is not set" in line


@pytest.mark.filterwarnings("error:.*max_epochs. was not set")
def test_no_limit_at_all_trains_until_it_is_stopped(config: Path, tmp_path: Path) -> None:
    """Without Lightning's warning, and without its silent end after 1000 epochs."""
    trainer = DTermTrainer(
        accelerator="cpu", logger=False, default_root_dir=str(tmp_path), enable_checkpointing=False, max_steps=-1
    )
    trainer.fit(StandInModule(signal_at={5: [signal.SIGINT]}), datamodule=StandInData(length=1))
    assert trainer.global_step == 5
    assert trainer.max_epochs == -1
    limited = DTermTrainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=3)
    limited.fit(StandInModule(), datamodule=StandInData(length=2))
    assert limited.global_step == 6
