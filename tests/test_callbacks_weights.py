"""WeightLogger on real tiny runs: what it logs and draws, that training does not notice, and that resume is exact."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_dterm.callbacks import WeightLogger
from lightning_dterm.callbacks import weights as weights_module
from lightning_dterm.dterm import HypernetworkWeighting
from lightning_dterm.modules.config import GenerationConfig, OptimizerConfig, PPOConfig
from lightning_dterm.modules.measure import informative_groups
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.modules.supervised import SupervisedModule
from lightning_dterm.rewards import RewardSuite
from lightning_dterm.types import CodeTask
from tests.tiny import ScoreOf, TextData, share_of_a, text_task, tiny_actor, tiny_ppo, tiny_trainer


class TwoTypes(TextData):
    """Validation tasks of two types."""

    def validation_tasks(self) -> Sequence[CodeTask]:
        return [text_task(i, task_type=("synthesis", "repair")[i % 2]) for i in range(8)]


class Even(ScoreOf):
    """Applies to repairs only."""

    def applies_to(self, task: CodeTask) -> bool:
        return task.task_type == "repair"


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_actor(tmp_path_factory.mktemp("actor"))


@pytest.fixture(autouse=True)
def success_varies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random actor never succeeds: let an even number of characters be success."""
    score = RewardSuite.score

    def scored(self: RewardSuite, samples: Any, *args: Any) -> Any:
        result = score(self, samples, *args)
        return replace(result, outcome=torch.tensor([float(len(s.text) % 2 == 0) for s in samples]))

    monkeypatch.setattr(RewardSuite, "score", scored)


def fit(root: Path, actor: Path, steps: int, logger: bool = True, resume: Path | None = None, **kwargs: Any) -> Any:
    module = tiny_ppo(
        actor,
        generation=GenerationConfig(max_prompt_length=8, max_new_tokens=6, samples_per_prompt=4),
        ppo=PPOConfig(epochs=1, minibatches=1),
        optimizer=OptimizerConfig(actor_lr=1e-3, critic_lr=1e-3, weighting_lr=1e-2),
        weighting=HypernetworkWeighting(),
        seed=0,
    )
    seen = WeightLogger(num_tasks=6, every_n_rollouts=2, **kwargs)
    components = [
        ScoreOf("share", share_of_a),
        ScoreOf("long", lambda text: min(1.0, len(text) / 6)),
        Even("odd", lambda text: len(text) % 2),
    ]
    tensorboard = TensorBoardLogger(root, name="", version="")
    trainer = tiny_trainer(
        root, components, steps, callbacks=[seen] if logger else [], logger=tensorboard, log_every_n_steps=1
    )
    trainer.callbacks[0].overlap = False  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=TwoTypes(batch_size=4), ckpt_path=resume)
    trainer.save_checkpoint(root / "end.ckpt")
    return trainer, module, seen


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.shape == right.shape and torch.equal(left.nan_to_num(-7.0), right.nan_to_num(-7.0))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def test_figures_pictures_and_resume_while_training_does_not_notice(actor: Path, tmp_path: Path) -> None:
    _, module, seen = fit(tmp_path / "with", actor, 4)
    fit(tmp_path / "without", actor, 4, logger=False)
    kept, bare = (torch.load(tmp_path / name / "end.ckpt", weights_only=True) for name in ("with", "without"))
    for part in ("state_dict", "optimizer_states", "lightning_dterm"):
        assert equal(kept[part], bare[part]), part
    assert equal(kept["callbacks"]["RewardComputation"], bare["callbacks"]["RewardComputation"])

    assert {name: lot.scores.shape for name, lot in seen.pool.items()} == {"synthesis": (3, 4, 3), "repair": (3, 4, 3)}
    assert seen.pool["synthesis"].mask.tolist() == [[True, True, False]] * 3
    assert seen.steps == [0, 1, 2, 3, 4]
    assert torch.allclose(seen.weights[0][0], torch.tensor([0.5, 0.5, 0.0]))  # the prior, before any rollout
    assert not torch.allclose(seen.weights[-1][0], seen.weights[0][0])

    events = EventAccumulator(str(tmp_path / "with"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "pool/rank_loss", "pool/rank_loss/repair", "pool/pair_accuracy", "pool/weight/repair/odd", "attention/repair/7",
        "weighting/attention_entropy", "weighting/kl_to_prior", "weighting/rank_loss", "weighting/pair_accuracy",
        "weighting/informative_groups", "rollout/informative_groups", "weighting/beta", "weight/repair/odd",
        "time_share/meta",
    } <= tags  # fmt: skip
    alpha = module.weighting(seen.pool["repair"].embedding, seen.pool["repair"].mask, ["repair"] * 3).mean(0)
    logged = [(event.step, event.value) for event in events.Scalars("pool/weight/repair/odd")]
    assert [step for step, _ in logged] == [1, 2, 3, 4]
    assert logged[-1][1] == pytest.approx(float(alpha[2]), abs=1e-6)
    shares = [events.Scalars(f"attention/repair/{place}")[-1].value for place in range(8)]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    assert {image: [event.step for event in events.Images(image)] for image in events.Tags()["images"]} == {
        name: [2, 4, 4] for name in ("weights", "rank_loss", "attention")
    }
    files = {path.name for path in (tmp_path / "with" / "pictures").iterdir()}
    assert files == {f"{name}.{suffix}" for name in ("weights", "rank_loss", "attention") for suffix in ("svg", "png")}
    document = ElementTree.parse(tmp_path / "with" / "pictures" / "weights.svg").getroot()
    assert f"{float(alpha[2]):.2f} odd" in [
        element.text for element in document.iter("{http://www.w3.org/2000/svg}text")
    ]

    fit(tmp_path / "half", actor, 2)
    _, _, resumed = fit(tmp_path / "half", actor, 4, resume=tmp_path / "half" / "end.ckpt")
    assert equal(resumed.state_dict(), seen.state_dict())


def test_long_runs_keep_every_second_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "_MAX_POINTS", 4)
    logger = WeightLogger()
    figures = weights_module.PoolFigures({"repair": 0.5}, {}, {"repair": torch.tensor([0.5, 0.5])}, {})
    for step in range(21):
        logger._remember(step, figures)
    assert logger.steps == [0, 8, 16]
    assert len(logger.weights) == len(logger.losses) == 3


def test_what_cannot_be_judged_is_refused(actor: Path, tmp_path: Path) -> None:
    for settings in ({"num_tasks": 0}, {"samples_per_task": 1}, {"every_n_rollouts": 0}):
        with pytest.raises(ValueError, match=f"WeightLogger: {next(iter(settings))} must be at least"):
            WeightLogger(**settings)
    trainer = tiny_trainer(tmp_path, [ScoreOf("share", share_of_a)], 1)
    with pytest.raises(ValueError, match="WeightLogger needs PPOModule, got SupervisedModule"):
        WeightLogger().setup(trainer, SupervisedModule.__new__(SupervisedModule), "fit")
    module = PPOModule.__new__(PPOModule)
    with pytest.raises(ValueError, match="WeightLogger needs a DataModule"):
        WeightLogger().setup(trainer, module, "fit")
    with pytest.raises(ValueError, match="WeightLogger needs RewardComputation"):
        WeightLogger().setup(L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False), module, "fit")

    class NoValidation(TextData):
        def validation_tasks(self) -> Sequence[CodeTask]:
            return []

    trainer = tiny_trainer(tmp_path, [ScoreOf("share", share_of_a)], 1, callbacks=[WeightLogger()])
    with pytest.raises(ValueError, match="validation"):
        trainer.fit(tiny_ppo(actor), datamodule=NoValidation(batch_size=4))


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0, math.nan])), max_size=16))
def test_informative_groups_are_those_with_two_different_successes(rows: list[tuple[int, float]]) -> None:
    outcome = torch.tensor([value for _, value in rows])
    group = torch.tensor([prompt for prompt, _ in rows], dtype=torch.long)
    want = sum(
        len({value for prompt, value in rows if prompt == key and not math.isnan(value)}) > 1 for key in range(4)
    )
    assert informative_groups(outcome, group) == want
