"""A loss or gradient that is not finite on one rank ends the run on all of them, with one message and no hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.nonfinite_run import outcome
from tests.tiny import tiny_actor

SCRIPT = Path(__file__).with_name("nonfinite_run.py")
SAYS = {
    "loss": "rollout 1: the loss is not finite on {} process(es)",
    "gradient": "rollout 1: the gradient norm is nan",
}


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_actor(tmp_path_factory.mktemp("actor"))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_one_process_raises_and_asks_nobody(
    actor: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "all_reduce", lambda *_: pytest.fail("a collective in a single process"))
    found = outcome(str(actor), tmp_path, where, 1, "ddp")
    assert found["rollouts"] == 1
    assert str(found["error"]).startswith(SAYS[where].format("1 of 1"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_both_of_two_processes_raise_the_same(actor: Path, tmp_path: Path, strategy: str) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(actor), str(out), strategy],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
    )
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"one rank waits for ever:\n{output[-3000:]}")
    assert process.returncode == 0, output[-3000:]
    first, second = (json.loads(Path(f"{out}.rank{rank}").read_text()) for rank in range(2))
    assert first == second
    for where, message in SAYS.items():
        assert first[where]["rollouts"] == 1
        assert first[where]["error"].startswith(message.format("1 of 2"))
