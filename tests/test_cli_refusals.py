"""Runs that the command line refuses before they do something else than was asked, each in one line."""

from __future__ import annotations

import pickle
import signal
from pathlib import Path

import pytest
import torch

from lightning_dterm.checkpointing import check_ckpt_path
from lightning_dterm.cli import DTermTrainer, main
from lightning_dterm.config_files import ConfigFileError, check_layers, read_layers
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


def layered(capsys: pytest.CaptureFixture[str], config: Path, text: str, *more: str) -> str:
    """What the run says with a further configuration file of this text."""
    Path("mine.yaml").write_text(text)
    return error_of(capsys, "fit", "-c", str(config), "-c", "mine.yaml", *more)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainer: {max_stepz: 3}\n", "max_stepz"),
        ("trainer.max_stepz: 3\n", "max_stepz"),
        ("model: {init_args: {learning_rate: 3}}\n", "learning_rate"),
        ("model: {init_args: {lr: fast}}\n", "lr"),
        ("data: {init_args: {batchsize: 3}}\n", "batchsize"),
        ("trainr: {max_steps: 3}\n", "trainr"),
        ("modl: {init_args: {}}\n", "modl"),
        ("fit: {trainer: {max_steps: 3}}\n", "fit"),
        ("trainer: [1,2\n", "not YAML"),
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("just a string\n", "keys and values"),
        ("- a\n- b\n", "keys and values"),
    ],
)
def test_the_file_with_the_mistake_is_named(
    config: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    line = layered(capsys, config, text)
    assert said in line
    assert "mine.yaml" in line
    assert str(config) not in line


def test_an_option_of_the_command_line_is_not_blamed_on_a_file(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mistake in (["--model.learning_rate", "1"], ["--trainer.max_steps=two"], ["--trainer.max_steps", "two"]):
        assert ".yaml" not in layered(capsys, config, "trainer: {max_steps: 3}\n", *mistake)


def test_of_several_files_with_the_key_none_is_picked(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.yaml").write_text("trainer: {max_steps: 2}\n")
    line = layered(capsys, config, "trainer: {max_steps: abc}\n", "-c", "good.yaml")
    assert "one of" in line
    assert "mine.yaml" in line
    assert "good.yaml" in line


def test_a_mistake_inside_a_value_of_the_command_line_is_not_blamed_on_a_file(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = '{"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"max_steps": 3}}'
    given = ["--trainer.callbacks+", callback]
    assert ".yaml" not in layered(capsys, config, "trainer: {max_steps: 3}\n", *given)


def test_what_is_not_read_here_may_name_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("over.yaml").write_text("model: {init_args: {lr: 0.5}}\n")
    for before in (["-c", '{"model": {"class_path": "A"}}'], ["-cbase.yaml"]):
        Path("base.yaml").write_text("model: {class_path: A}\n")
        check_layers(read_layers(["fit", *before, "-c", "over.yaml"]), {"model", "data", "trainer"})
    with pytest.raises(ConfigFileError, match="no model class"):
        check_layers(read_layers(["fit", "-c", "over.yaml"]), {"model", "data", "trainer"})


def test_an_overlay_without_a_base(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("over.yaml").write_text("model: {init_args: {generation: {max_new_tokens: 8}}}\n")
    line = error_of(capsys, "fit", "-c", "over.yaml")
    assert "no model class: over.yaml" in line
    assert "no model class: over.yaml" in error_of(capsys, "fit", "-c", "over.yaml", "-c", str(config))
    Path("over.yaml").write_text("model: {init_args: {lr: 0.5}}\n")
    model = ["--model", "tests.cli_stand_in.StandInModule", "--data", "tests.cli_stand_in.StandInData"]
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", *model, "-c", "over.yaml", "--print_config"])
    assert exit_info.value.code == 0


def test_options_are_not_completed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--trainer.max_step" in error_of(capsys, "fit", "-c", str(config), "--trainer.max_step", "2")


def test_an_unknown_strategy(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nope" in error_of(capsys, "fit", "-c", str(config), "--trainer.strategy", "nope")


@pytest.mark.parametrize("command", ["fit", "predict", "export"])
def test_a_folder_that_is_no_checkpoint(config: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    Path("none").mkdir()
    more = ["--output", "out"] if command == "export" else []
    assert "not a checkpoint: none" in error_of(capsys, command, "-c", str(config), "--ckpt_path", "none", *more)
    Path("none", "meta.pt").write_bytes(b"")
    assert check_ckpt_path("none") is None


def test_export_reads_the_configuration_that_a_run_saved(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "-c", str(config), *WITH_LAST])
    checkpoint = str(next((tmp_path / "runs").rglob("last.ckpt")))
    main(["export", "-c", "runs/x/config.yaml", "--ckpt_path", checkpoint, "--output", "out"])
    assert Path("out/layer.json").is_file()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(config), "--print_config"])
    Path("printed.yaml").write_text(capsys.readouterr().out)
    main(["export", "-c", "printed.yaml", "--ckpt_path", checkpoint, "--output", "again"])
    assert Path("again/layer.json").is_file()


class Code:
    """What only a checkpoint that may run code can hold."""


def test_export_runs_no_code_of_a_checkpoint_unless_told(tmp_path: Path) -> None:
    module = StandInModule()
    module.configure_model()
    torch.save({"state_dict": module.state_dict(), "more": Code()}, tmp_path / "x.ckpt")
    trainer = DTermTrainer(accelerator="cpu", logger=False, default_root_dir=str(tmp_path))
    with pytest.raises(pickle.UnpicklingError):
        trainer.export(StandInModule(), str(tmp_path / "out"), str(tmp_path / "x.ckpt"))
    trainer.export(StandInModule(), str(tmp_path / "out"), str(tmp_path / "x.ckpt"), weights_only=False)
    assert (tmp_path / "out" / "layer.json").is_file()


def test_an_interrupt_outside_training_ends_in_one_message(
    config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in the evaluation before the first rollout, and in the one after the last."""

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGINT)
    for hook, said in (("on_train_start", "nothing to resume from"), ("on_train_end", "Resume with")):
        caplog.clear()
        with monkeypatch.context() as patch, caplog.at_level("INFO"):
            patch.setattr(StandInModule, hook, interrupt)
            with pytest.raises(SystemExit) as exit_info:
                main(["fit", "-c", str(config), *WITH_LAST])
        signal.signal(signal.SIGINT, previous)  # Lightning leaves it ignored
        assert exit_info.value.code == 130
        assert said in caplog.text
