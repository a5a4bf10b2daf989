"""Two processes over gloo give what one process gives, and resume exactly."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.distributed_run import LIMIT, uneven_tasks
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
        output, _ = process.communicate(timeout=480)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"hung:\n{output[-3000:]}")
    assert process.returncode == 0, output[-5000:]
    # gloo's threads abort the process now and then when the interpreter goes before the process group does
    assert not Path(f"{out}.open").exists()
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
    for name in ("rollout/overlong_prompts", "reward_failures/long"):
        assert any(metrics[name] > 0 for metrics in single["metrics"]), name
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
    saved = tmp_path / "saved"
    whole = launch(tmp_path / "whole", actor, devices=2, strategy=strategy, steps=4, micro=3, checkpoints=saved)
    half = saved / "step=2.ckpt"
    second = launch(tmp_path / "second", actor, devices=2, strategy=strategy, steps=4, micro=3, resume=half)
    for rank in range(2):
        assert_same_weights(whole[rank], second[rank], 0.0)
        assert whole[rank]["metrics"][2:] == second[rank]["metrics"]
        assert whole[rank]["kl_coef"] == second[rank]["kl_coef"]


@pytest.mark.slow
def test_fsdp2_resumes_exactly_from_before_the_hypernetworks_first_gradient(actor: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"devices": 2, "strategy": "fsdp2", "steps": 4, "late": 2, "critic": "shared"}
    saved = tmp_path / "saved"
    whole = launch(tmp_path / "whole", actor, checkpoints=saved, **options)
    second = launch(tmp_path / "second", actor, resume=saved / "step=1.ckpt", **options)
    losses = ["weighting/meta_loss" in metrics for metrics in whole[0]["metrics"]]
    assert losses == [False, False, True, True]
    for rank in range(2):
        assert_same_weights(whole[rank], second[rank], 0.0)
        assert whole[rank]["metrics"][1:] == second[rank]["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_gradients_for_the_weighting_on_two_processes(actor: Path, tmp_path: Path, strategy: str) -> None:
    one = launch(tmp_path / "one", actor, steps=3, lookahead=True, micro=3)[0]
    two = launch(tmp_path / "two", actor, devices=2, strategy=strategy, steps=3, lookahead=True, micro=3)
    assert all(metrics["weighting/lookahead_loss"] != 0 for metrics in one["metrics"])
    for rank in two:
        assert_same_weights(one, rank, 1e-4)
        assert_same_metrics(one, rank, 1e-4)
    assert_same_weights(two[0], two[1], 0.0)


def assert_same_export(one: Path, two: Path, actor: Path) -> None:
    """Both load in plain transformers, agree to 1e-4, and are not what training began with."""
    models = [AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (one, two, actor)]
    assert all(torch.allclose(tensor, models[1][name], atol=1e-4) for name, tensor in models[0].items())
    assert any((tensor - models[2][name]).abs().max() > 1e-3 for name, tensor in models[0].items())
    assert AutoTokenizer.from_pretrained(two).get_vocab() == AutoTokenizer.from_pretrained(actor).get_vocab()


def test_lora_with_a_critic_adapter_on_two_processes(actor: Path, tmp_path: Path) -> None:
    """Micro-batches of 3: the ranks need a different number of them for their shares of a minibatch. Components are
    normalised and weighted by GradNorm, whose figures are among the metrics."""
    options = {"steps": 2, "gradnorm": True, "lora": True, "critic": "adapter", "micro": 3}
    one = launch(tmp_path / "one", actor, export=tmp_path / "export-one", **options)[0]
    for strategy in ("ddp", "fsdp2"):
        folder = tmp_path / f"export-{strategy}"
        two = launch(tmp_path / strategy, actor, devices=2, strategy=strategy, export=folder, **options)[0]
        assert (two["sharded"] > 0) == (strategy == "fsdp2")
        assert_same_weights(one, two, 1e-4)
        assert_same_metrics(one, two, 1e-4)
        assert two["metrics"][1]["weight/repair/share"] != pytest.approx(0.5, abs=1e-3)
        assert_same_export(tmp_path / "export-one", folder, actor)


@pytest.mark.slow
def test_another_lora_rank_is_refused_under_fsdp2_too(actor: Path, tmp_path: Path) -> None:
    """In one line: FSDP2's strategy loads weights before the module is asked, and they would not fit."""
    options = {"steps": 1, "lora": True, "critic": "shared"}
    launch(tmp_path / "run", actor, **options, checkpoints=tmp_path)
    options |= {"lora_rank": 2, "resume": tmp_path / "last.ckpt"}
    process = start(command_of(tmp_path / "run", actor, 2, "fsdp2", **options))
    try:
        output, _ = process.communicate(timeout=480)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    errors = [line for line in output.splitlines() if re.match(r"(\[rank\d\]: )?[\w.]*(Error|Failed)\b", line)]
    assert errors
    message = "ResumeError: lora.rank is 4 in this checkpoint and 2 in this run: give the same"
    assert all(message in line for line in errors), output[-3000:]


def test_a_shared_critic_under_fsdp2(actor: Path, tmp_path: Path) -> None:
    options = {"steps": 2, "critic": "shared"}
    one = launch(tmp_path / "one", actor, export=tmp_path / "export-one", **options)[0]
    two = launch(tmp_path / "two", actor, 2, "fsdp2", export=tmp_path / "export-two", **options)[0]
    assert_same_weights(one, two, 1e-4)
    assert_same_metrics(one, two, 1e-4)
    assert_same_export(tmp_path / "export-one", tmp_path / "export-two", actor)


def test_evaluation_on_two_processes(actor: Path, tmp_path: Path) -> None:
    """One test row for two ranks; predictions in the order of the data."""
    results: dict[str, Any] = {}
    kls: list[float] = []
    for name, devices, strategy in (("one", 1, "ddp"), ("ddp", 2, "ddp"), ("fsdp2", 2, "fsdp2")):
        folder = tmp_path / name
        folder.mkdir()
        launch(folder / "run", actor, devices, strategy, steps=1, micro=1, validate=True, report=True, evaluate=True)
        summary = json.loads((folder / "summary.json").read_text())
        kls.append(summary.pop("kl"))
        assert summary.pop("train_seconds") > 0
        rows = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
        results[name] = summary, json.loads((folder / "test.json").read_text()), rows
    assert [row["task_id"] for row in results["one"][2]] == [f"t/{i}" for i in range(5)]
    assert results["one"][1]["overall"]["samples"] == 1
    assert results["one"] == results["ddp"] == results["fsdp2"]
    assert kls[0] != 0
    assert kls == pytest.approx([kls[0]] * 3, abs=1e-4)


def test_supervised_training_on_two_processes(actor: Path, tmp_path: Path) -> None:
    options = {"supervised": True, "steps": 4, "micro": 3}
    one = launch(tmp_path / "one", actor, export=tmp_path / "export-one", **options)[0]
    assert one["metrics"][0]["train/loss"] > one["metrics"][3]["train/loss"] + 0.1
    tokenizer = AutoTokenizer.from_pretrained(actor)
    tasks = uneven_tasks()
    overlong = sum(len(tokenizer(task.prompt)["input_ids"]) > LIMIT for task in tasks)
    cut = sum(len(tokenizer(task.reference)["input_ids"]) + 1 > LIMIT for task in tasks)  # with the end token
    assert 0 < overlong < len(tasks)
    assert 0 < cut < len(tasks)
    # four steps are one epoch; the counts on the way there are compared with those of two processes below
    assert one["metrics"][3]["train/overlong_prompts"] == overlong
    assert one["metrics"][3]["train/cut_references"] == cut
    assert one["metrics"][0]["train/cut_references"] < cut
    saved = tmp_path / "saved"
    for strategy in ("ddp", "fsdp2"):
        folder = tmp_path / f"export-{strategy}"
        more = {"validate": True, "checkpoints": saved, "evaluate": True} if strategy == "fsdp2" else {}
        ranks = launch(tmp_path / strategy, actor, 2, strategy, export=folder, **options, **more)
        assert (ranks[0]["sharded"] > 0) == (strategy == "fsdp2")
        assert ranks[0]["global_step"] == 4
        for rank in ranks:
            assert_same_weights(one, rank, 1e-4)
            assert_same_metrics(one, rank, 1e-4)
        assert_same_export(tmp_path / "export-one", folder, actor)
    resumed = launch(tmp_path / "resumed", actor, 2, "fsdp2", validate=True, resume=saved / "step=2.ckpt", **options)
    for rank in range(2):
        assert_same_weights(ranks[rank], resumed[rank], 0.0)
        assert ranks[rank]["metrics"][2:] == resumed[rank]["metrics"]


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
