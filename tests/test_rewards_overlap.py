"""Rewards that run beside other work: the same scores and counts, in time that is told honestly."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dterm.callbacks import RewardComputation
from lightning_dterm.modules.actor_critic import CriticConfig
from lightning_dterm.modules.config import GenerationConfig, OptimizerConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.rewards import (
    CompileReward,
    FunctionReward,
    RewardComponent,
    RewardSuite,
    SimilarityReward,
    TestsReward,
)
from lightning_dterm.sandbox import Job, Result, Sandbox
from lightning_dterm.types import CallTest, CodeTask, RewardResult, Rollout, Sample
from tests.rewards_common import SQUARE, make_task, sandbox_fixture
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor, tiny_trainer

sandbox = sandbox_fixture(slots=1)


def make_samples(*programs: str) -> list[Sample]:
    return [Sample(make_task(), program, ((0, len(program)),)) for program in programs]


PROGRAMS = (SQUARE, "def f(x):\n    return 4\n", "def f(x:\n", "")


class Where(RewardComponent):
    """Notes the thread that scores it and draws from the global generators."""

    def __init__(self, name: str, overlaps: bool) -> None:
        self.name, self.thread = name, ""
        self.overlaps = overlaps  # type: ignore[misc]

    def applies_to(self, task: CodeTask) -> bool:
        return True

    def score(self, samples: Sequence[Sample]) -> list[RewardResult]:
        self.thread = threading.current_thread().name
        if not self.overlaps:
            return [RewardResult(random.random() * float(torch.rand(()))) for _ in samples]
        return [RewardResult(0.5) for _ in samples]


def test_scores_do_not_depend_on_where_they_are_made(sandbox: Sandbox) -> None:
    found = []
    for overlap in (False, True):
        parts = [Where("late", False), TestsReward(), SimilarityReward(), Where("early", True)]
        suite = RewardSuite(parts, sandbox)
        suite.setup()
        random.seed(3)
        torch.manual_seed(3)
        pending = suite.start(make_samples(*PROGRAMS)) if overlap else None
        result = pending.result() if pending else suite.score(make_samples(*PROGRAMS))
        found.append((result.scores, result.evidence, result.outcome, suite.state_dict()))
        assert [part.thread for part in (parts[0], parts[3])] == ["reward-late", "reward-early"]  # type: ignore[attr-defined]
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert torch.equal(found[0][2], found[1][2])
    assert found[0][3] == found[1][3]


class Slow:
    """A sandbox that passes everything after a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run_many(self, jobs: Sequence[Job]) -> list[Result]:
        time.sleep(self.seconds)
        return [Result("passed") for _ in jobs]


def test_time_beside_other_work_is_busy_but_not_waited_for() -> None:
    suite = RewardSuite([TestsReward()], Slow(0.5))  # type: ignore[arg-type]
    pending = suite.start(make_samples(SQUARE))
    time.sleep(0.8)  # the forward passes
    result = pending.result()
    assert result.busy >= 0.5
    assert result.waited < 0.25
    at_once = suite.start(make_samples(SQUARE)).result()
    assert at_once.waited >= 0.4
    alone = suite.score(make_samples(SQUARE))
    assert alone.waited == alone.busy >= 0.5


def test_what_stops_the_execution_is_raised_where_it_is_collected() -> None:
    class Broken:
        def run_many(self, jobs: Sequence[Job]) -> list[Result]:
            raise OSError("no processes left")

    pending = RewardSuite([TestsReward()], Broken()).start(make_samples(SQUARE))  # type: ignore[arg-type]
    with pytest.raises(OSError, match="no processes left"):
        pending.result()


def make_rollout(texts: list[str]) -> Rollout:
    task = CodeTask("t", "synthesis", "python", "p", "d", SQUARE, tests=(CallTest((3,), 9),), entry_point="f")
    n = len(texts)
    ids, mask = torch.zeros(n, 3, dtype=torch.long), torch.ones(n, 3)
    finished = torch.ones(n, dtype=torch.bool)
    return Rollout([task] * n, torch.zeros(n, dtype=torch.long), ids, mask, ids, mask, finished, texts)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_callback_begins_after_generation_and_collects(overlap: bool) -> None:
    callback = RewardComputation([TestsReward()], sandbox_slots=1, overlap=overlap)
    trainer: Any = None
    callback.setup(trainer, None, "fit")  # type: ignore[arg-type]
    rollout = make_rollout([SQUARE, "def f(x):\n    return 1\n"])
    callback.on_generation_end(trainer, None, rollout)  # type: ignore[arg-type]
    assert rollout.scores is None
    assert (callback._begun is not None) == overlap
    callback.on_rollout_end(trainer, None, rollout)  # type: ignore[arg-type]
    assert callback._begun is None
    assert rollout.scores is not None
    assert rollout.scores.flatten().tolist() == [1.0, 0.0]
    assert [sample.execution is not None for sample in rollout.samples] == [True, True]
    assert rollout.metrics["time/reward_busy"] > 0.0
    assert rollout.metrics["time/reward_waited"] >= 0.0
    other = make_rollout([SQUARE])  # never begun: scored when it is asked for
    callback.on_rollout_end(trainer, None, other)  # type: ignore[arg-type]
    assert other.scores is not None
    assert other.scores.item() == 1.0
    callback.on_generation_end(trainer, None, rollout)  # type: ignore[arg-type]
    callback.teardown(trainer, None, "fit")  # type: ignore[arg-type]
    assert callback.sandbox._client.pid is None  # nothing that was begun starts workers anew


def test_a_users_function_waits_its_turn_and_without_a_limit_has_the_trainers_thread(sandbox: Sandbox) -> None:
    threads: list[str] = []

    def where(completions: list[str]) -> list[float]:
        threads.append(threading.current_thread().name)
        return [1.0 for _ in completions]

    for timeout_s, expected in ((5.0, "reward-where"), (math.inf, threading.current_thread().name)):
        suite = RewardSuite([FunctionReward(where, timeout_s=timeout_s)], sandbox)
        pending = suite.start(make_samples(SQUARE))
        pending._thread.join()
        assert threads == []  # it begins when its result is asked for
        assert pending.result().scores.item() == 1.0
        assert threads == [expected]
        threads.clear()


class PythonData(TextData):
    """The same prompts, to be answered in Python."""

    def train_tasks(self) -> Sequence[CodeTask]:
        tests = (CallTest((2,), 4), CallTest((3,), 9, visible=False))
        return [replace(task, language="python", tests=tests, entry_point="f") for task in super().train_tasks()]


def test_a_run_does_not_depend_on_the_overlap(tmp_path: Path) -> None:
    """Programs are judged beside the forward passes or after them: weights, metrics and counts are the same."""
    actor = tiny_actor(tmp_path / "actor")
    runs = []
    for overlap in (True, False):
        module = PPOModule(
            actor=ActorConfig(path=str(actor)),
            critic=CriticConfig(kind="shared"),
            generation=GenerationConfig(max_prompt_length=16, max_new_tokens=8, samples_per_prompt=2),
            optimizer=OptimizerConfig(actor_lr=1e-3, critic_lr=1e-3),
            seed=1,
        )
        parts = [CompileReward(), TestsReward(), ScoreOf("share", share_of_a)]
        trainer = tiny_trainer(tmp_path / str(overlap), parts, max_steps=2)
        rewards = next(one for one in trainer.callbacks if isinstance(one, RewardComputation))  # type: ignore[attr-defined]
        rewards.overlap = overlap
        trainer.fit(module, PythonData(batch_size=4))
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith(("time", "through"))}
        runs.append((module.policy.state_dict(), metrics, rewards.state_dict()))  # type: ignore[union-attr]
    (weights, metrics, counts), (others, *rest) = runs
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert [metrics, counts] == rest
    assert 0.0 < metrics["reward/compile"] < 1.0  # programs were judged
