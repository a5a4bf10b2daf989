"""RewardComputation on a rollout: fields, metrics, life cycle, state and its description in YAML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_dterm.callbacks import RewardComputation
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.rewards import FunctionReward, StyleReward, TestsReward
from lightning_dterm.sandbox import Level, Limits
from lightning_dterm.types import CallTest, CodeTask, Rollout

SQUARE = "def f(x):\n    return x * x\n"
TESTS = (CallTest((2,), 4), CallTest((3,), 9), CallTest((4,), 16, visible=False))


def make_rollout(texts: list[str], **changes: Any) -> Rollout:
    task = CodeTask("t", "synthesis", "python", "p", "d", SQUARE, tests=TESTS, entry_point="f")
    n = len(texts)
    ids, mask = torch.zeros(n, 3, dtype=torch.long), torch.ones(n, 3)
    finished = torch.tensor([True] * (n - 1) + [False])
    return Rollout([task] * n, torch.zeros(n, dtype=torch.long), ids, mask, ids, mask, finished, texts, **changes)


def run(callback: RewardComputation, rollout: Rollout) -> Rollout:
    callback.on_rollout_end(None, None, rollout)  # type: ignore[arg-type]
    return rollout


@pytest.fixture
def callback():
    made = RewardComputation(sandbox_slots=1)
    made.setup(None, None, "fit")  # type: ignore[arg-type]
    yield made
    made.teardown(None, None, "fit")  # type: ignore[arg-type]


def test_fills_the_rollout(callback: RewardComputation) -> None:
    fenced = f"Sure:\n```python\nimport os\n{SQUARE}```\nDone."
    rollout = run(callback, make_rollout([SQUARE, fenced, "def f(x):\n    return 4\n"]))
    assert isinstance(callback, RolloutCallback)
    assert rollout.component_names == ("compile", "tests", "similarity", "style", "efficiency")
    assert rollout.component_names == callback.component_names
    assert rollout.scores is not None
    assert rollout.scores.shape == (3, 5)
    assert rollout.scores[:, 1].tolist() == [1.0, 1.0, 0.5]
    assert rollout.outcome is not None
    assert rollout.outcome.tolist() == [1.0, 1.0, 0.0]
    assert rollout.samples[1].code == f"import os\n{SQUARE}"
    assert [sample.truncated for sample in rollout.samples] == [False, False, True]
    (span,) = rollout.evidence[1]["style"]
    assert fenced[span.start : span.end] == "os"
    assert fenced.index("import os") < span.start


def test_metrics_tell_score_applicability_failures_and_time(callback: RewardComputation) -> None:
    rollout = run(callback, make_rollout([SQUARE, "def f(x):\n    return 4\n"]))
    metrics = rollout.metrics
    assert metrics["reward/tests"] == 0.75
    assert metrics["reward/outcome"] == 0.5
    for name in (*rollout.component_names,):
        assert metrics[f"reward_applicable/{name}"] == 1.0
        assert metrics[f"reward_failures/{name}"] == 0.0
        assert metrics[f"time/reward_{name}"] >= 0
    assert metrics["time/reward_execution"] > 0


def test_a_component_that_never_applies_has_no_mean(callback: RewardComputation) -> None:
    rollout = make_rollout(["some words"])
    rollout.tasks = [CodeTask("s", "summarization", "text", "p", "d", "some words", success_metric="exact_match")]
    metrics = run(callback, rollout).metrics
    assert "reward/tests" not in metrics
    assert metrics["reward_applicable/tests"] == 0.0
    assert metrics["reward/similarity"] == pytest.approx(1.0)
    assert metrics["reward/outcome"] == 1.0


def test_setup_starts_workers_and_teardown_ends_them() -> None:
    made = RewardComputation([TestsReward()], sandbox_slots=1, limits=Limits(cpu_s=1.0))
    assert made._sandbox._client.pid is None
    made.setup(None, None, "fit")  # type: ignore[arg-type]
    pid = made._sandbox._client.pid
    assert pid is not None
    assert Path(f"/proc/{pid}").exists()
    made.teardown(None, None, "fit")  # type: ignore[arg-type]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_custom_components_and_extractor() -> None:
    reward = FunctionReward(lambda completions: [1.0 for _ in completions], "always")
    made = RewardComputation([StyleReward(), reward], sandbox_slots=1, extractor=lambda text, language: ((0, 3),))
    made.setup(None, None, "fit")  # type: ignore[arg-type]
    rollout = run(made, make_rollout(["x=1 and prose"]))
    made.teardown(None, None, "fit")  # type: ignore[arg-type]
    assert rollout.samples[0].code == "x=1"
    assert rollout.component_names == ("style", "always")
    assert rollout.scores is not None
    assert rollout.scores[0, 1] == 1.0


def test_state_survives_resume() -> None:
    def broken(completions: list[str]) -> list[float]:
        raise OSError("model server gone")

    def build() -> RewardComputation:
        return RewardComputation([FunctionReward(broken, "broken")], sandbox_slots=1, max_failures=1.0)

    first, second = build(), build()
    first.setup(None, None, "fit")  # type: ignore[arg-type]
    rollout = run(first, make_rollout([SQUARE, SQUARE]))
    first.teardown(None, None, "fit")  # type: ignore[arg-type]
    assert rollout.metrics["reward_failures/broken"] == 2.0
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert second.suite.failures["broken"] == second.suite.scored["broken"] == 2


def test_unready_callback_says_so() -> None:
    with pytest.raises(RuntimeError, match="setup"):
        run(RewardComputation(sandbox_slots=1), make_rollout([SQUARE]))


def test_described_in_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=RolloutCallback)
    config = parser.parse_object(
        {
            "callback": {
                "class_path": "lightning_dterm.callbacks.RewardComputation",
                "init_args": {
                    "components": [
                        {"class_path": "lightning_dterm.rewards.CompileReward", "init_args": {"lam": 0.5}},
                        {"class_path": "lightning_dterm.rewards.StyleReward", "init_args": {"select": ["E", "F"]}},
                        {
                            "class_path": "lightning_dterm.rewards.FunctionReward",
                            "init_args": {"function": "math.fsum", "name": "mine"},
                        },
                    ],
                    "sandbox_slots": 1,
                    "limits": {"cpu_s": 1.5},
                },
            }
        }
    )
    made = parser.instantiate(config).callback
    assert made.component_names == ("compile", "style", "mine")
    assert made.suite.components[0].lam == 0.5
    assert made._sandbox.limits.cpu_s == 1.5


def test_the_least_isolation_is_configurable() -> None:
    assert RewardComputation().sandbox.min_level is Level.KERNEL
    assert RewardComputation(min_level="namespaces").sandbox.min_level is Level.NAMESPACES
    with pytest.raises(ValueError, match="min_level must be one of none, process"):
        RewardComputation(min_level="safe")
