"""What goes wrong on one rank alone ends the run on all of them, with its cause named and without a hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.rank_failures_run import HOOKS, MAPPED, NUMBERS, PLACES, outcome
from tests.tiny import tiny_actor

SCRIPT = Path(__file__).with_name("rank_failures_run.py")
SAYS = {
    "loss": "FloatingPointError: rollout 1: the loss is not finite on {} process(es)",
    "gradient": "FloatingPointError: rollout 1: the gradient norm is nan",
    "generation": "FloatingPointError: the logits are not finite: the model has diverged",
    **dict.fromkeys(HOOKS, "KeyError: 'no such column'"),
    "row": "ValueError: tasks.jsonl, line 7: prompt must be a text, got 3",
    "prompt": "ValueError: task t/",
    **dict.fromkeys((*MAPPED, "encoder", "evaluation"), "OSError: no space left on device"),
}
SUMMED = ("loss", "gradient")  # over ranks before anyone looks: all ranks find the same


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_actor(tmp_path_factory.mktemp("actor"))


@pytest.mark.parametrize("where", [*NUMBERS, "on_rollout_end", "row"])
def test_one_process_raises_and_asks_nobody(
    actor: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for collective in ("all_reduce", "all_gather_object"):
        monkeypatch.setattr(dist, collective, lambda *_: pytest.fail("a collective in a single process"))
    found = outcome(str(actor), tmp_path, where, 1, "ddp")
    assert found["rollouts"] == 1
    assert str(found["error"]).startswith(SAYS[where].format("1 of 1"))


@pytest.mark.parametrize(
    ("strategy", "places"),
    [("ddp", PLACES), pytest.param("fsdp2", [*NUMBERS, "on_rollout_end", "prompt"], marks=pytest.mark.slow)],
)
def test_both_of_two_processes_stop(actor: Path, tmp_path: Path, strategy: str, places: list[str]) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(actor), str(out), strategy, *places],
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
    first, last = (json.loads(Path(f"{out}.rank{rank}").read_text()) for rank in range(2))
    for where in places:
        done = 2 if where in ("on_update_end", "heat map", "evaluation") else 1
        assert first[where]["rollouts"] == last[where]["rollouts"]
        assert done - 1 <= last[where]["rollouts"] <= done
        assert last[where]["error"].startswith(SAYS[where].format("1 of 2"))
        named = "" if where in SUMMED else "ProcessFailed: process 1 of 2 failed: "
        assert first[where]["error"] == named + last[where]["error"]
