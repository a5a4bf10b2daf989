"""Components that hang: abandoned, passed over until they return, never called twice, never in anybody's way."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_dterm.rewards import FunctionReward, RewardComponent, RewardFailure, RewardSuite
from lightning_dterm.sandbox import Result
from lightning_dterm.types import CodeTask, RewardResult, Sample
from tests.test_rewards_functions import NoSandbox, make


class Gate(RewardComponent):
    """Returns once it is opened; counts calls at a time."""

    timeout_s = 0.3

    def __init__(self, name: str = "gate", obeys: bool = False) -> None:
        self.name, self.obeys = name, obeys
        self.opened, self.now, self.most, self.calls, self.closed = threading.Event(), 0, 0, 0, False

    def applies_to(self, task: CodeTask) -> bool:
        return True

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        self.opened.wait(60)
        self.now -= 1
        return [RewardResult(1.0) for _ in samples]

    def cancel(self) -> None:
        if self.obeys:
            self.opened.set()

    def close(self) -> None:
        self.closed = True


def good(completions: list[str]) -> list[float]:
    return [1.0 for _ in completions]


def suite_of(*parts: RewardComponent, **options: Any) -> RewardSuite:
    return RewardSuite(parts, NoSandbox(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_hang_is_abandoned_passed_over_and_forgiven(overlaps: bool, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    gate.overlaps = overlaps
    suite = suite_of(gate, FunctionReward(good))
    first = suite.start([make("x"), make("y")]).result()
    assert first.failure_kinds == {"gate": {"timeout": 2}}
    assert 0.3 <= first.seconds["gate"] < 5
    assert first.scores[:, 1].tolist() == [1.0, 1.0]
    started = time.perf_counter()
    second = suite.score([make("x")])
    assert time.perf_counter() - started < 0.3  # nobody waits for it again
    assert second.failure_kinds == {"gate": {"hung": 1}}
    assert "'gate'" in caplog.text
    assert "0.3 s" in caplog.text
    gate.opened.set()
    assert suite._runners["gate"].idle(10.0)
    third = suite.score([make("x")])
    assert third.scores.tolist() == [[1.0, 1.0]]
    assert (gate.calls, gate.most) == (2, 1)
    suite.close()
    assert gate.closed


def test_a_component_may_end_its_call_when_asked() -> None:
    gate = Gate(obeys=True)
    suite = suite_of(gate)
    assert suite.score([make("x")]).failure_kinds == {"gate": {"timeout": 1}}
    assert suite._runners["gate"].idle(10.0)
    assert suite.score([make("x")]).scores.item() == 1.0


def test_hangs_stop_the_run_with_their_name() -> None:
    suite = suite_of(Gate(), max_failures=0.5, window=8)
    suite.score([make("x")] * 3)
    with pytest.raises(RewardFailure, match=r"'gate' failed on 5 of its last 5.*3 timeout, 2 hung"):
        suite.score([make("x")] * 2)


def test_components_that_overlap_wait_beside_each_other_and_have_one_thread_each() -> None:
    threads: dict[str, set[int]] = {}

    class Nap(Gate):
        overlaps = True
        timeout_s = 30.0

        def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
            threads.setdefault(self.name, set()).add(threading.get_ident())
            time.sleep(0.4)
            return [RewardResult(0.5) for _ in samples]

    suite = suite_of(*(Nap(f"nap{i}") for i in range(5)))
    result = suite.start([make("x")]).result()
    assert result.busy < 1.6  # 2 s one after the other
    suite.score([make("x")])
    assert [len(found) for found in threads.values()] == [1] * 5
    assert len(set.union(*threads.values())) == 5
    assert pickle.loads(pickle.dumps(suite._runners["nap0"]._worker)).name == "reward-nap0"


def test_what_overlaps_never_sees_executions_it_did_not_ask_for() -> None:
    seen: list[Any] = []

    class Look(Gate):
        overlaps = True

        def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
            seen.extend(sample.execution for sample in samples)
            return [RewardResult(1.0) for _ in samples]

    sample = make("x")
    sample.execution = Result("passed")
    suite_of(Look()).start([sample]).result()
    assert seen == [None]
    assert sample.execution is not None


ENDLESS = """
import asyncio, sys, time
from lightning_dterm.rewards import FunctionReward, RewardSuite
from tests.test_rewards_functions import NoSandbox, make

def sleeps(completions):
    time.sleep(1000)

def spins(completions):
    while True:
        pass

async def threads(completions):
    await asyncio.to_thread(time.sleep, 1000)

parts = [FunctionReward(one, timeout_s=0.5) for one in (sleeps, spins, threads)]
result = RewardSuite(parts, NoSandbox()).score([make("x")])
print(sorted(result.failure_kinds.items()), flush=True)
"""


def test_the_interpreter_ends_all_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str([(name, {"timeout": 1}) for name in ("sleeps", "spins", "threads")])


RANKS = """
import sys, torch, torch.distributed as dist
from lightning_dterm.callbacks import RewardComputation
from lightning_dterm.modules.distributed import ProcessFailed
from lightning_dterm.rewards import FunctionReward, RewardFailure
from tests.test_rewards_overlap import make_rollout

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)

def f(completions, trainer_state, log_metric):
    log_metric("rank", rank)
    return [float("nan") if rank and text == "bad" else 0.5 for text in completions]

callback = RewardComputation([FunctionReward(f)], window=4, max_failures=0.5, extractor=lambda text, language: ())
callback.suite.sandbox = None
callback.suite._execute = lambda samples: 0.0
rollout = make_rollout(["x", "bad"])
callback.on_rollout_end(None, None, rollout)
print(rollout.metrics["reward_failures/f"], rollout.metrics["reward_log/f/rank"], flush=True)
try:
    callback.on_rollout_end(None, None, make_rollout(["bad", "bad"]))
except (RewardFailure, ProcessFailed) as error:
    print(error, flush=True)
dist.destroy_process_group()
"""


def test_where_one_process_must_stop_all_do(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    lines = [out.splitlines() for out, _ in ends]
    assert [one[0] for one in lines] == ["1.0 0.0", "1.0 1.0"], ends
    assert lines[0][1].startswith("process 1 of 2 failed: RewardFailure: Reward 'f' failed on 3 of its last 4")
    assert lines[1][1].startswith("Reward 'f' failed on 3 of its last 4")
