"""Two processes over gloo give what one process gives, and resume exactly."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_actor

SCRIPT = Path(__file__).with_name("distributed_run.py")


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_actor(tmp_path_factory.mktemp("actor"))


def command_of(out: Path, actor: Path, devices: int, strategy: str, **options: Any) -> list[str]:
    command = [sys.executable, str(SCRIPT), "--actor", str(actor), "--out", str(out)]
    command += ["--devices", str(devices), "--strategy", strategy]
    for name, value in options.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return command


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment
    )


def launch(out: Path, actor: Path, devices: int = 1, strategy: str = "ddp", **options: Any) -> list[dict[str, Any]]:
    """Run to the end and give each rank's record; a hung rank ignores SIGTERM, so the whole group is killed."""
    process = start(command_of(out, actor, devices, strategy, **options))
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"hung:\n{output[-3000:]}")
    assert process.returncode == 0, output[-5000:]
    return [torch.load(f"{out}.rank{rank}") for rank in range(devices)]


def assert_same_weights(a: dict[str, Any], b: dict[str, Any], tolerance: float) -> None:
    assert a["weights"].keys() == b["weights"].keys()
    for name, tensor in a["weights"].items():
        assert torch.allclose(tensor, b["weights"][name], atol=tolerance, rtol=0), name


def assert_same_metrics(a: dict[str, Any], b: dict[str, Any], tolerance: float) -> None:
    assert len(a["metrics"]) == len(b["metrics"])
    for left, right in zip(a["metrics"], b["metrics"], strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert value == pytest.approx(right[name], abs=tolerance, rel=tolerance), name


@pytest.fixture(scope="module")
def single(actor: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launch(tmp_path_factory.mktemp("single") / "run", actor, steps=3)[0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_equal_one(single: dict[str, Any], actor: Path, tmp_path: Path, strategy: str) -> None:
    ranks = launch(tmp_path / "run", actor, devices=2, strategy=strategy, steps=3)
    assert (ranks[0]["sharded"] > 0) == (strategy == "fsdp2")
    # response lengths differ between the ranks, so their decode loops and padding do too
    assert any(max(a) != max(b) for a, b in zip(ranks[0]["lengths"], ranks[1]["lengths"], strict=True))
    for rank in ranks:
        assert rank["global_step"] == 3
        assert_same_weights(single, rank, 1e-4)
        assert_same_metrics(single, rank, 1e-4)
        assert rank["kl_coef"] == pytest.approx(single["kl_coef"], rel=1e-6)
    assert_same_weights(ranks[0], ranks[1], 0.0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_resume_exactly(actor: Path, tmp_path: Path, strategy: str) -> None:
    whole = launch(tmp_path / "whole", actor, devices=2, strategy=strategy, steps=4)
    checkpoint = tmp_path / "half.ckpt"
    first = launch(tmp_path / "first", actor, devices=2, strategy=strategy, steps=2, save=checkpoint)
    second = launch(tmp_path / "second", actor, devices=2, strategy=strategy, steps=4, resume=checkpoint)
    for rank in range(2):
        assert_same_weights(whole[rank], second[rank], 0.0)
        assert whole[rank]["metrics"] == first[rank]["metrics"] + second[rank]["metrics"]
        assert whole[rank]["kl_coef"] == second[rank]["kl_coef"]


def test_lora_with_a_critic_adapter_on_two_processes(actor: Path, tmp_path: Path) -> None:
    options = {"steps": 2, "lora": True, "critic": "adapter", "micro": 3}
    one = launch(tmp_path / "one", actor, **options)[0]
    two = launch(tmp_path / "two", actor, devices=2, strategy="ddp", **options)[0]
    assert_same_weights(one, two, 1e-4)
    assert_same_metrics(one, two, 1e-4)


def test_a_killed_run_goes_on_as_if_nothing_had_been(actor: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments after the first checkpoint; then resume from the last one."""
    steps = 12
    whole = launch(tmp_path / "whole", actor, steps=steps)[0]
    folder = tmp_path / "checkpoints"
    last, options = folder / "last.ckpt", {"steps": steps, "checkpoints": folder}
    generator = random.Random(0)
    kills = 0
    for _ in range(2):
        resume = {"resume": last} if last.exists() else {}
        process = start(command_of(tmp_path / "killed", actor, 1, "ddp", **options, **resume))
        deadline = time.monotonic() + 120
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and time.monotonic() < deadline:
            if last.exists() and last.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(generator.random())
        kills += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert last.exists()
    assert kills > 0
    done = torch.load(last, weights_only=True)["global_step"]
    end = launch(tmp_path / "end", actor, **options, resume=last)[0]
    assert_same_weights(whole, end, 0.0)
    assert end["metrics"] == whole["metrics"][done:]
    assert end["kl_coef"] == whole["kl_coef"]
