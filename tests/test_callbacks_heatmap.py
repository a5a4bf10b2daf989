"""Heat maps written by runs: what they show is what the run computes, and they leave the run alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_dterm.attribution.heatmap import HeatMap, read_json
from lightning_dterm.attribution.render import html_page
from lightning_dterm.callbacks import HeatMapLogger, RewardComputation, TokenAttribution
from lightning_dterm.callbacks.heatmap import heat_maps, in_turn
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.config import PPOConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.rewards import RewardComponent
from lightning_dterm.rl.gae import generalized_advantages
from lightning_dterm.types import CodeTask, RewardResult, Rollout, Span
from tests.test_ppo_module import components, ppo
from tests.tiny import TextData, text_task, tiny_actor, tiny_trainer


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_actor(tmp_path_factory.mktemp("actor"))


class BlameFirst(RewardComponent):
    """0.25, and the first character is to blame; masked for every other task. Counts what it scored."""

    name = "first"

    def __init__(self) -> None:
        self.seen = 0

    def applies_to(self, task: CodeTask) -> bool:
        return int(task.task_id.partition("/")[2]) % 2 == 0

    def score(self, samples: Any) -> list[RewardResult]:
        self.seen += len(samples)
        return [RewardResult(0.25, (Span(0, 1),)) for _ in samples]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Any) -> None:
        self.seen = state["seen"]


class AtTheEnd(RolloutCallback):
    """Weights and counts after each update."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []
        self.counts: list[Any] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.weights.append(torch.cat([p.detach().flatten().clone() for p in pl_module.parameters()]))
        rewards = next(c for c in trainer.callbacks if isinstance(c, RewardComputation))  # type: ignore[attr-defined]
        self.counts.append(rewards.suite.state_dict())


def fit(actor: Path, root: Path, steps: int, *extra: L.Callback, **overrides: Any) -> tuple[L.Trainer, PPOModule]:
    module = ppo(actor, **overrides)
    trainer = tiny_trainer(root, [*components(), BlameFirst()], steps, callbacks=list(extra))
    trainer.fit(module, datamodule=TextData(batch_size=8, size=20))
    return trainer, module


def row(heat_map: HeatMap, name: str) -> torch.Tensor:
    return torch.tensor(next(row.values for row in heat_map.rows if row.name == name), dtype=torch.float64)


def test_maps_add_up(actor: Path, tmp_path: Path) -> None:
    trainer, module = fit(actor, tmp_path, 2, ppo=PPOConfig(missing_eos="penalty", missing_eos_penalty=0.5, lam=0.7))
    tasks = [text_task(index) for index in range(6)]
    for temperature in (0.0, 1.0):
        maps = heat_maps(trainer, module, tasks, temperature)
        assert [one.task_id for one in maps] == [task.task_id for task in tasks]
        for index, one in enumerate(maps):
            assert [r.name for r in one.rows] == ["share", "long", "first", "kl", "total", "advantage", "value"]
            summed = torch.zeros(len(one.tokens), dtype=torch.float64)
            for given in one.rows[:3]:
                assert given.alpha is not None
                want = 0.0 if given.score is None else given.score * given.alpha
                assert sum(given.values) == pytest.approx(want, abs=1e-5)
                summed += torch.tensor(given.values, dtype=torch.float64)
            assert (one.rows[2].score is None) == (index % 2 == 1)
            assert sum(r.alpha for r in one.rows[:3]) == pytest.approx(1.0, abs=1e-5)
            summed += row(one, "kl")
            summed[-1] -= 0.0 if one.finished else 0.5
            assert torch.allclose(summed, row(one, "total"), atol=1e-5)
            inside = torch.ones(1, len(one.tokens))
            advantages, _ = generalized_advantages(
                row(one, "total")[None], row(one, "value")[None], inside, module.ppo.gamma, 0.7
            )
            assert torch.allclose(advantages[0], row(one, "advantage"), atol=1e-5)
    assert any(not one.finished for one in maps)  # the penalty was seen
    assert any(r.values and max(map(abs, r.values)) > 0 for one in maps for r in one.rows if r.name == "kl")


def test_tokens_are_the_completion_and_dense_evidence_shows(actor: Path, tmp_path: Path) -> None:
    trainer, module = fit(actor, tmp_path, 1)
    trainer.callbacks.append(TokenAttribution(mode="dense"))  # type: ignore[attr-defined]
    tasks = [text_task(index) for index in range(0, 6, 2)]
    answers = module.complete(tasks, 0.0)  # greedy: no randomness to agree on
    for one, text, length in zip(heat_maps(trainer, module, tasks, 0.0), answers.texts, answers.lengths, strict=True):
        assert "".join(one.tokens) == text
        assert len(one.tokens) == length
        blamed = row(one, "first")
        if text.strip() and not text[0].isspace():
            first = next(at for at, token in enumerate(one.tokens) if token)
            assert int(blamed.argmin()) == first
            assert blamed[first] < 0


def test_files_when_due_and_the_run_is_left_alone(actor: Path, tmp_path: Path) -> None:
    plain, mapped = AtTheEnd(), AtTheEnd()
    fit(actor, tmp_path / "plain", 4, plain)
    fit(actor, tmp_path / "mapped", 4, mapped, HeatMapLogger(every_n_rollouts=3, num_tasks=2, temperature=1.0))
    for left, right in zip(plain.weights, mapped.weights, strict=True):
        assert torch.equal(left, right)
    assert plain.counts == mapped.counts
    folder = tmp_path / "mapped" / "heatmaps"
    names = [f"step_00000{step}.{kind}" for step in (1, 4) for kind in ("html", "json")]
    assert sorted(path.name for path in folder.iterdir()) == names
    title, maps = read_json(folder / "step_000004.json")
    assert title == "Step 4: sampled at 1"
    assert [one.task_id for one in maps] == ["t/0", "t/1"]
    assert (folder / "step_000004.html").read_text() == html_page(title, maps)


def test_validate_writes_one_of_the_chosen_tasks(actor: Path, tmp_path: Path) -> None:
    maps = HeatMapLogger(task_ids=["t/3", "t/1"], folder=str(tmp_path / "here"))
    trainer = tiny_trainer(tmp_path, components(), 1, callbacks=[maps], limit_val_batches=1)
    trainer.validate(ppo(actor), datamodule=TextData(), verbose=False)
    _, found = read_json(next((tmp_path / "here").glob("*.json")))
    assert [one.task_id for one in found] == ["t/3", "t/1"]


def test_unknown_tasks_and_missing_callbacks_are_named(actor: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, components(), 1, callbacks=[HeatMapLogger(task_ids=["t/3", "x"])])
    with pytest.raises(ValueError, match="no validation task x; there are t/0, t/1"):
        trainer.fit(ppo(actor), datamodule=TextData(batch_size=8, size=20))
    trainer = L.Trainer(callbacks=[HeatMapLogger()], default_root_dir=tmp_path, logger=False, accelerator="cpu")
    with pytest.raises(ValueError, match="needs RewardComputation and TokenAttribution"):
        trainer.fit(ppo(actor), datamodule=TextData(batch_size=8, size=20))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_rollouts": 0}, "every_n_rollouts"),
        ({"num_tasks": 0}, "num_tasks"),
        ({"temperature": -0.1}, "temperature"),
        ({"task_ids": []}, "task_ids is empty"),
        ({"task_ids": ["a"], "num_tasks": 1}, "not both"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeatMapLogger(**settings)


def test_task_types_take_turns() -> None:
    tasks = [text_task(i, task_type=kind) for i, kind in enumerate("aaabbc")]
    assert [task.task_id for task in in_turn(tasks, 5)] == ["t/0", "t/3", "t/5", "t/1", "t/4"]
    assert Counter(task.task_id for task in in_turn(tasks, 99)) == Counter(task.task_id for task in tasks)
    with pytest.raises(ValueError, match="no validation tasks"):
        in_turn([], 1)


def test_only_the_last_attribution_acts(actor: Path, tmp_path: Path) -> None:
    """As an overlay appends it: ``trainer.callbacks+``."""
    seen: list[Rollout] = []

    class Keep(RolloutCallback):
        def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
            seen.append(rollout)

    fit(actor, tmp_path, 1, Keep(), TokenAttribution(mode="terminal"))
    rewards, mask = seen[0].token_rewards, seen[0].response_mask
    assert rewards is not None
    for given, inside in zip(rewards, mask, strict=True):
        assert given.nonzero().flatten().tolist() in ([], [int(inside.sum()) - 1])
