"""Functions in a process of their own: what would stall or end the trainer ends that process, and no more."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lightning_dterm.rewards import FunctionReward, RewardSuite, function_worker
from tests import isolated_functions as functions
from tests.test_rewards_functions import NoSandbox, make

HOLDS = "a" * 60 + "b"


@pytest.fixture
def suites() -> Iterator[list[RewardSuite]]:
    made: list[RewardSuite] = []
    yield made
    for suite in made:
        suite.close()


def suite_of(made: list[RewardSuite], part: FunctionReward) -> RewardSuite:
    made.append(RewardSuite([part], NoSandbox()))  # type: ignore[arg-type]
    return made[-1]


def test_what_holds_the_global_lock_is_killed_and_used_again(
    suites: list[RewardSuite], caplog: pytest.LogCaptureFixture
) -> None:
    suite = suite_of(suites, FunctionReward("tests.isolated_functions.matches", isolate=True, timeout_s=2.0))
    assert suite.score([make("aaa"), make("b")]).scores.tolist() == [[1.0], [0.0]]
    started = time.perf_counter()
    result = suite.start([make(HOLDS), make("a")]).result()
    assert result.failure_kinds == {"matches": {"timeout": 2}}
    assert time.perf_counter() - started < 20  # it would take centuries
    assert "'matches'" in caplog.text
    assert suite._runners["matches"].idle(10.0)
    assert suite.score([make("aaa")]).scores.tolist() == [[1.0]]


def test_one_process_from_call_to_call(suites: list[RewardSuite]) -> None:
    part = FunctionReward(functions.process, isolate=True, high=1e9)
    assert part.overlaps
    suite = suite_of(suites, part)
    first, second = (part.score([make("x")])[0].value for _ in range(2))
    assert first is not None
    assert second is not None
    pid = int(first * 1e9 + 0.01)
    assert pid != os.getpid()
    assert second * 1e9 == pytest.approx(pid + 0.2, abs=1e-3)
    suite.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    copy = pickle.loads(pickle.dumps(part))
    again = copy.score([make("x")])[0].value
    copy.close()
    assert int(again * 1e9 + 0.01) not in (pid, os.getpid())


def test_values_and_what_is_logged_arrive(suites: list[RewardSuite], capfd: pytest.CaptureFixture[str]) -> None:
    suite = suite_of(suites, FunctionReward(functions.talks, isolate=True))
    result = suite.score([make("ab", answer="c"), make("abcd", answer="d")])
    assert result.scores.flatten().tolist() == pytest.approx([0.2, 0.4])
    assert result.metrics == {"talks/size": 2.0}
    assert result.columns == {"talks/both": ["abc", "abcdd"]}
    assert capfd.readouterr().err == "said\n"


def test_asynchronous_ones_as_well(suites: list[RewardSuite]) -> None:
    assert suite_of(suites, FunctionReward(functions.waits, isolate=True)).score([make("x")]).scores.item() == 0.5


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raise", "KeyError: 'lost'"),
        ("exit", "SystemExit: enough"),
        ("leave", "the process of breaks exited with status 3"),
        ("crash", "the process of breaks was ended by signal 11"),
        ("strange", "pickle"),
    ],
)
def test_whatever_breaks_is_a_failure_and_the_next_call_works(how: str, says: str, suites: list[RewardSuite]) -> None:
    suite = suite_of(suites, FunctionReward(functions.breaks, isolate=True))
    result = suite.score([make(how)])
    assert result.failure_kinds == {"breaks": {"exception": 1}}
    assert says in str(result.results[0]["breaks"].error)
    assert suite.score([make("well")]).scores.item() == 1.0


def test_what_cannot_be_imported_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match=r"isolate: .*<lambda> cannot be imported"):
        FunctionReward(lambda completions: [1.0], isolate=True)

    def mine(completions: list[str]) -> list[float]:
        return []

    mine.__module__ = "__main__"
    with pytest.raises(ValueError, match="mine stands in the main script; move it to a module"):
        FunctionReward(mine, isolate=True)


ORPHAN = """
import importlib.util, os, pickle, signal, subprocess, sys, time
from tests.isolated_functions import matches
spec = importlib.util.spec_from_file_location("worker", sys.argv[1])
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
child = subprocess.Popen([sys.executable, "-I", sys.argv[1], str(os.getpid())], stdin=subprocess.PIPE)
for part in (sys.path, matches, ({"completions": ["a" * 60 + "b"]}, [])):
    worker.send(child.stdin, pickle.dumps(part))
time.sleep(1)
assert child.poll() is None
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_process_outlives_a_trainer_that_was_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, function_worker.__file__], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd()}, timeout=100,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    status = f"/proc/{int(done.stdout)}/stat"
    for _ in range(100):
        try:
            with open(status) as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":  # nobody reaps it here
                    return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    raise AssertionError("the process is still there")
