from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import FSDPStrategy

import lightning_dterm.configs
from lightning_dterm.callbacks import GracefulStop, PhaseProgressBar
from lightning_dterm.checkpointing import AtomicCheckpointIO
from lightning_dterm.cli import DTermTrainer, condense, main, packaged_config
from tests.cli_stand_in import error_of, events, write_config

ROOT = Path(__file__).parent.parent
CONFIGS = Path(str(lightning_dterm.configs.__file__)).parent


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTNING_DTERM_DEBUG", raising=False)
    return write_config(tmp_path)


def last_checkpoint(folder: Path) -> str:
    return str(max(folder.rglob("*.ckpt"), key=os.path.getmtime))


# --- the four commands and export -----------------------------------------------------------------------------------


def test_fit_validate_test_predict_export(config: Path, tmp_path: Path) -> None:
    main(["fit", "--config", str(config)])
    trained = events(tmp_path / "trace")
    assert [e["step"] for e in trained if e["event"] == "train"] == [1, 2, 3, 4]
    checkpoint = last_checkpoint(tmp_path / "runs")
    for command in ("validate", "test", "predict"):
        main([command, "--config", str(config), "--ckpt_path", checkpoint])
    assert {e["event"] for e in events(tmp_path / "trace")} == {"train", "end", "validate", "test"}

    main(["export", "--config", str(config), "--ckpt_path", checkpoint, "--output", "out", "--merge", "false"])
    exported = json.loads((tmp_path / "out" / "layer.json").read_text())
    assert exported == {"weight": trained[-1]["weight"], "merge": False}
    assert exported["weight"] != [[0.5, 0.5]]


def test_saved_configuration_reproduces_the_run_and_is_not_overwritten_by_test(config: Path, tmp_path: Path) -> None:
    main(["fit", "--config", str(config), "--model.lr", "0.5"])
    saved = tmp_path / "runs" / "x" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["model"]["init_args"]["lr"] == 0.5
    main(["test", "--config", str(config)])
    assert yaml.safe_load(saved.read_text())["model"]["init_args"]["lr"] == 0.5
    assert (tmp_path / "runs" / "x" / "config_test.yaml").exists()
    first = events(tmp_path / "trace")
    main(["fit", "--config", str(saved)])
    ends = [e["weight"] for e in events(tmp_path / "trace") if e["event"] == "end"]
    assert len(ends) == 2
    assert ends[0] == ends[1]
    assert len(first) < len(events(tmp_path / "trace"))


def test_layers_and_command_line_override_in_order(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("overlay.yaml").write_text("model:\n  init_args:\n    lr: 0.25\ntrainer:\n  max_steps: 7\n")
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", "-c", str(config), "-c", "overlay.yaml", "--trainer.max_steps", "9", "--print_config"])
    assert exit_info.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["lr"] == 0.25
    assert printed["model"]["init_args"]["trace"]
    assert printed["trainer"]["max_steps"] == 9
    assert printed["data"]["class_path"] == "tests.cli_stand_in.StandInData"


def test_checkpoint_hyperparameters_do_not_override_the_command_line(config: Path, tmp_path: Path) -> None:
    main(["fit", "--config", str(config), "--model.lr", "0.5"])
    checkpoint = last_checkpoint(tmp_path / "runs")
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["lr"] == 0.5
    resume = ["fit", "--config", str(config), "--ckpt_path", checkpoint, "--trainer.max_steps", "6"]
    main([*resume, "--model.lr", "0.125"])
    main(resume)
    trained = [e for e in events(tmp_path / "trace") if e["event"] == "train"]
    assert [e["lr"] for e in trained] == [0.5] * 4 + [0.125] * 2 + [0.01] * 2
    assert [e["step"] for e in trained] == [1, 2, 3, 4, 5, 6, 5, 6]


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_unknown_option(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--nope" in error_of(capsys, "fit", "--config", str(config), "--nope", "1")
    assert "learning_rate" in error_of(capsys, "fit", "--config", str(config), "--model.learning_rate", "1")


def test_unknown_key_in_a_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.yaml").write_text("trainer:\n  max_stepz: 3\n")
    assert "max_stepz" in error_of(capsys, "fit", "--config", str(config), "--config", "wrong.yaml")


def test_wrong_type(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, "fit", "--config", str(config), "--model.lr", "fast")
    assert "lr" in line
    assert "fast" in line


def test_unknown_class(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, "fit", "--config", str(config), "--model", "tests.cli_stand_in.Missing")
    assert "tests.cli_stand_in.Missing" in line
    assert "NoneType" not in line
    assert len(line) < 200


def test_missing_configuration_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, "fit", "--config", "no/such.yaml")
    assert "no/such.yaml" in line
    assert "quickstart.yaml" in line  # what there is
    assert "no.yaml" in error_of(capsys, "fit", "--config=no.yaml")


def test_broken_yaml(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.yaml").write_text("trainer: [\n")
    assert "parsing" in error_of(capsys, "fit", "--config", "broken.yaml")


def test_missing_checkpoint(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "gone.ckpt" in error_of(capsys, "fit", "--config", str(config), "--ckpt_path", "gone.ckpt")


def test_missing_data_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "gone.jsonl" in error_of(capsys, "fit", "--config", str(config), "--data.path", "gone.jsonl")


def test_missing_actor(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "lightning_dterm.modules.ppo.PPOModule", "--model.actor.path", "./no_actor"]
    line = error_of(capsys, "fit", *model, "--trainer.accelerator", "cpu")
    assert "no_actor" in line
    assert "Union" not in line


def test_best_names_no_checkpoint_on_the_command_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("fit", "validate", "test", "predict"):
        error = error_of(capsys, command, "--config", str(config), "--ckpt_path", "best")
        assert "give the checkpoint's file" in error


def test_no_data(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load(config.read_text())
    del settings["data"]
    config.write_text(yaml.safe_dump(settings))
    assert "no data to fit: add --data CLASS" in error_of(capsys, "fit", "--config", str(config))
    assert "no data to test: add --data CLASS" in error_of(capsys, "test", "--config", str(config))


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "subcommand" in error_of(capsys)


def test_export_needs_a_module_that_exports(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({}, "x.ckpt")
    model = "lightning.pytorch.demos.boring_classes.BoringModel"
    line = error_of(capsys, "export", "--model", model, "--ckpt_path", "x.ckpt", "--output", "o")
    assert "BoringModel" in line


def test_debug_shows_the_exception(config: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl"):
        main(["fit", "--debug", "--config", str(config), "--data.path", "gone.jsonl"])


def test_defects_keep_their_traceback(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        int("not a user error")

    monkeypatch.setattr("tests.cli_stand_in.StandInModule.training_step", broken)
    with pytest.raises(ValueError, match="not a user error"):
        main(["fit", "--config", str(config)])


def test_condense() -> None:
    message = (
        'Parser key "model":\n  Does not validate against any of the Union subtypes\n  Subtypes: [a, b]\n  Errors:\n'
        "    - Problem with given class_path 'x.Y':\n        no module named x\n    - Expected a <class 'NoneType'>\n"
        "  Given value type: <class 'str'>\n  Given value: x.Y"
    )
    assert condense(message) == "Parser key \"model\": Problem with given class_path 'x.Y':; no module named x"
    assert condense("anything else") == "anything else"


# --- packaged configurations --------------------------------------------------------------------------------------


def test_packaged_configurations_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = str(CONFIGS / "strategy" / "ddp.yaml")
    assert packaged_config("configs/strategy/ddp.yaml") == expected
    assert packaged_config("strategy/ddp.yaml") == expected
    assert packaged_config("strategy/none.yaml") == "strategy/none.yaml"
    assert packaged_config("../configs/base.yaml") == "../configs/base.yaml"
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "ddp.yaml").write_text("")
    assert packaged_config("strategy/ddp.yaml") == "strategy/ddp.yaml"  # a file of one's own comes first


COMPLETE = ["quickstart.yaml", "microcode_sft.yaml", "codexglue/sft.yaml", "preference.yaml"]
WEIGHTINGS = ("uniform", "expert", "fixed_per_task_type", "gradnorm", "normalized", "hypernetwork", "correlation")
WEIGHTINGS += ("alignment", "lookahead")
OVERLAYS = [["strategy/ddp.yaml"], ["strategy/fsdp2.yaml"], ["lora.yaml"]]
OVERLAYS += [[f"weighting/{name}.yaml"] for name in WEIGHTINGS]
OVERLAYS += [["rewards/success.yaml", f"weighting/{name}.yaml"] for name in ("success_only", "expert_success")]
ENCODERS = ("hashing", "microcode", "codebert", "codebert_trainable", "clip")
OVERLAYS += [[f"encoder/{name}.yaml"] for name in ENCODERS]
ATTRIBUTIONS = ("dense", "terminal", "uniform", "potential", "length_normalized", "heatmap")
OVERLAYS += [[f"attribution/{name}.yaml"] for name in ATTRIBUTIONS]
STACKS = [[name] for name in COMPLETE] + [["base.yaml", "codexglue/ppo.yaml"]]
STACKS += [["base.yaml", "codexglue/ppo.yaml", "rewards/structural.yaml"]]
STACKS += [["quickstart.yaml", *overlay] for overlay in OVERLAYS]


@pytest.mark.parametrize("stack", STACKS, ids="+".join)
def test_every_packaged_configuration_parses(
    stack: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", *(word for name in stack for word in ("-c", f"configs/{name}")), "--print_config"])
    captured = capsys.readouterr()
    assert exit_info.value.code == 0, captured.err
    printed = yaml.safe_load(captured.out)
    given = yaml.safe_load((CONFIGS / stack[-1]).read_text())

    def check(wanted: Any, got: Any, where: str) -> None:
        if isinstance(wanted, dict):
            for key, value in wanted.items():
                if key.endswith("+"):  # appended to a list
                    assert len(got[key[:-1]]) > len(value), where
                    for item, last in zip(value, got[key[:-1]][-len(value) :], strict=True):
                        check(item, last, f"{where}.{key}")
                else:
                    check(value, got[key], f"{where}.{key}")
        elif not isinstance(wanted, list):
            assert wanted == got, where

    check(given, printed, stack[-1])


def test_every_packaged_configuration_is_in_the_test_above() -> None:
    assert {str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml")} == {
        name for stack in STACKS for name in stack
    }


# --- the trainer's defaults ------------------------------------------------------------------------------------------


def test_trainer_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    before = torch.get_num_threads()
    try:
        trainer = DTermTrainer(accelerator="cpu", default_root_dir=str(tmp_path))
        assert torch.get_num_threads() == 1
        DTermTrainer(accelerator="cpu", default_root_dir=str(tmp_path), cpu_threads=2, logger=False)
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        DTermTrainer(accelerator="cpu", default_root_dir=str(tmp_path), logger=False)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert isinstance(trainer.logger, TensorBoardLogger)
    assert trainer.log_dir is not None
    assert Path(trainer.log_dir).parent == tmp_path
    assert isinstance(trainer.progress_bar_callback, PhaseProgressBar)
    assert sum(isinstance(c, GracefulStop) for c in trainer.callbacks) == 1
    assert trainer._accelerator_connector.use_distributed_sampler is False


def test_what_is_given_replaces_the_defaults(tmp_path: Path) -> None:
    bar, stop, io = TQDMProgressBar(), GracefulStop(), TorchCheckpointIO()
    trainer = DTermTrainer(
        accelerator="cpu", default_root_dir=str(tmp_path), callbacks=[bar, stop], plugins=io, logger=False
    )
    assert trainer.progress_bar_callback is bar
    assert [c for c in trainer.callbacks if isinstance(c, GracefulStop)] == [stop]
    assert trainer.strategy.checkpoint_io is io
    assert DTermTrainer(accelerator="cpu", logger=False, enable_progress_bar=False).progress_bar_callback is None


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_cpu_offload", FSDPStrategy()])
def test_fsdp1_is_refused_with_the_remedy(strategy: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"configs/strategy/fsdp2\.yaml"):
        DTermTrainer(strategy=strategy)


def test_fsdp1_on_the_command_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "fsdp2.yaml" in error_of(capsys, "fit", "--config", str(config), "--trainer.strategy", "fsdp")


def test_a_strategy_changed_in_part_is_refused_with_the_remedy(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = ["fit", "-c", str(config), "-c", "configs/strategy/fsdp2.yaml"]
    Path("part.yaml").write_text("trainer: {strategy: {init_args: {data_parallel_size: 4}}}\n")
    for part in (["--trainer.strategy.init_args.data_parallel_size", "4"], ["-c", "part.yaml"]):
        line = error_of(capsys, *overlay, *part)
        assert "NestedArg" not in line
    # what the message proposes is accepted
    whole = line[line.index("{") : line.rindex("}") + 1]
    with pytest.raises(SystemExit) as exit_info:
        main([*overlay, "--trainer.strategy", whole, "--print_config"])
    assert exit_info.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["strategy"]["init_args"]["data_parallel_size"] == 4


# --- several processes ----------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_cli(*args: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """``python train.py args`` in a process group of its own, killed as a whole when it hangs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *args],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def test_two_processes_agree_to_stop(config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["model"]["init_args"].update(signal_at={3: [int(signal.SIGTERM)]}, signal_rank=1)
    config.write_text(yaml.safe_dump(settings))
    args = ["fit", "-c", str(config), "-c", "configs/strategy/ddp.yaml", "--trainer.max_steps=1000"]
    result = run_cli(*args, "--trainer.max_epochs=200", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for each in (0, 1):
        assert [e["step"] for e in events(tmp_path / "trace", each) if e["event"] == "train"] == [1, 2, 3]
    last = next((tmp_path / "runs").rglob("last.ckpt"))
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert f"--ckpt_path {last.relative_to(tmp_path)}" in result.stderr.replace(f"{tmp_path}/", "")


def test_fsdp2_overlay_trains_on_two_cpu_processes(config: Path, tmp_path: Path) -> None:
    args = ["-c", str(config), "-c", "configs/strategy/fsdp2.yaml"]
    args += ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.save_last=true"]
    result = run_cli("fit", *args, "--trainer.callbacks.every_n_train_steps=3", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ends = [[e for e in events(tmp_path / "trace", rank) if e["event"] == "end"] for rank in (0, 1)]
    assert len(ends[0]) == len(ends[1]) == 1
    (last,) = tmp_path.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 4  # the last step, though no multiple of 3
