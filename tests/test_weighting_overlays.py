"""Every overlay of configs/weighting builds and trains; what each does to a rollout; what is refused."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from lightning_dterm.dterm import (
    FixedPerTaskTypeWeighting,
    GradientAlignment,
    GradNormWeighting,
    HypernetworkWeighting,
    LookAhead,
    UniformWeighting,
)
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.actor_critic import CriticConfig
from lightning_dterm.modules.config import GenerationConfig, PPOConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.types import Rollout
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor, tiny_trainer

OVERLAYS = Path(__file__).parents[1] / "configs" / "weighting"
FIVE = ("compile", "tests", "similarity", "style", "efficiency")


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_actor(tmp_path_factory.mktemp("actor"))


class Keep(RolloutCallback):
    def __init__(self) -> None:
        self.rollouts: list[Rollout] = []

    def on_update_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        self.rollouts.append(rollout)


def build(spec: Any) -> Any:
    """An object from ``class_path`` and ``init_args``, as the command line makes it."""
    if not isinstance(spec, dict) or "class_path" not in spec:
        return spec
    module, name = spec["class_path"].rsplit(".", 1)
    return getattr(import_module(module), name)(
        **{key: build(value) for key, value in spec.get("init_args", {}).items()}
    )


def weighting_of(name: str) -> Any:
    def read(one: str) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((OVERLAYS / f"{one}.yaml").read_text())["model"]["init_args"]
        return found["weighting"]

    spec = read(name)
    if "class_path" not in spec:  # goes on top of another
        below = read("expert")
        spec = {**below, "init_args": {**below["init_args"], **spec["init_args"]}}
    return build(spec)


def fit(actor: Path, root: Path, weighting: Any, names: tuple[str, ...], per_prompt: int = 2) -> list[Rollout]:
    functions = [share_of_a, lambda text: min(1.0, len(text) / 8), lambda text: float(len(text) % 3 == 0)]
    components = [ScoreOf(name, functions[index % 3]) for index, name in enumerate(names)]
    module = PPOModule(
        actor=ActorConfig(path=str(actor)),
        critic=CriticConfig(kind="shared"),
        generation=GenerationConfig(max_prompt_length=16, max_new_tokens=8, samples_per_prompt=per_prompt),
        ppo=PPOConfig(epochs=1, minibatches=1),
        weighting=weighting,
    )
    keep = Keep()
    tiny_trainer(root, components, 2, callbacks=[keep]).fit(module, datamodule=TextData(batch_size=4, size=16))
    return keep.rollouts


@pytest.mark.parametrize("name", sorted(path.stem for path in OVERLAYS.glob("*.yaml")))
def test_each_overlay_builds_and_runs_two_rollouts(name: str, actor: Path, tmp_path: Path) -> None:
    names = (*FIVE, "success") if "success" in name else FIVE
    weighting = weighting_of(name)
    rollouts = fit(actor, tmp_path, weighting, names, per_prompt=max(2, weighting.least_samples))
    assert len(rollouts) == 2
    for rollout in rollouts:
        assert rollout.alpha is not None
        assert rollout.rewards is not None
        assert rollout.token_rewards is not None
        assert torch.allclose(rollout.alpha.sum(-1), torch.ones(len(rollout)))
        want = (rollout.alpha * rollout.rewards).sum(-1)  # nothing is masked here
        inside = rollout.response_mask.any(-1)
        assert torch.allclose(rollout.token_rewards.sum(-1)[inside], want[inside], atol=1e-5)
        assert torch.equal(rollout.rewards, rollout.scores) == (name != "normalized")
        for task_type in ("repair", "synthesis"):
            assert f"weight/{task_type}/tests" in rollout.metrics


def test_gradnorm_moves_between_rollouts_and_its_figures_are_logged(actor: Path, tmp_path: Path) -> None:
    first, second = fit(actor, tmp_path, GradNormWeighting(), ("a", "b", "c"))
    assert first.alpha is not None
    assert second.alpha is not None
    assert first.alpha.flatten().tolist() == pytest.approx([1 / 3] * 24)
    assert (second.alpha - first.alpha).abs().max() > 1e-3
    assert second.metrics["gradnorm/norm/a"] > 0


def test_hypernetwork_logs_attention_film_and_its_time(actor: Path, tmp_path: Path) -> None:
    rollouts = fit(actor, tmp_path, Told(), ("a", "b", "c"))
    metrics = rollouts[-1].metrics
    assert 0 < metrics["weighting/attention_entropy"] < 2.1
    assert 0 < metrics["time/meta"] < metrics["time/update"]
    assert 0 < metrics["time_share/meta"] < 1
    assert metrics["weighting/film_distance"] > 0


class Told(HypernetworkWeighting):
    """Is told an outcome, which text tasks do not have."""

    def observe(self, scores: torch.Tensor, mask: torch.Tensor, embedding: torch.Tensor, *_: Any, **kw: Any) -> None:
        kw["outcome"] = torch.tensor([0.0, 1.0]).repeat(len(scores) // 2)
        super().observe(scores, mask, embedding, **kw)


@pytest.mark.parametrize("objective", [GradientAlignment, LookAhead])
def test_gradients_of_the_rollout_reach_the_objective(objective: Any, actor: Path, tmp_path: Path) -> None:
    rollouts = fit(actor, tmp_path, told := Told(objective=objective(sketch=4)), ("a", "b", "c"), 4)
    assert rollouts[0].gradients is not None
    assert rollouts[0].gradients.shape == (16, 16)
    fifo = told.objective.get_extra_state()["informative"]
    seen = torch.cat([columns[4][-2:].flatten(0, 1) for columns in fifo.values()])
    last = rollouts[-1].gradients
    assert last is not None
    assert torch.equal(seen.sort(0).values, last.sort(0).values)
    assert f"weighting/{told.objective.loss_name}" in rollouts[-1].metrics


@pytest.mark.parametrize(
    ("weighting", "least"),
    [
        (GradNormWeighting(), 2),
        (UniformWeighting(normalize=True), 2),
        (HypernetworkWeighting(objective=LookAhead(), normalize=True), 4),
    ],
)
def test_too_few_samples_a_prompt_are_refused_in_one_line(
    weighting: Any, least: int, actor: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"samples_per_prompt must be {least} or more") as refusal:
        fit(actor, tmp_path, weighting, ("a",), per_prompt=least - 1)
    assert "\n" not in str(refusal.value)


def test_fixed_weights_per_task_type() -> None:
    table = {"repair": {"a": 1.0, "b": 3.0}, "synthesis": {"b": 0.0, "a": 1.0}}
    weighting = FixedPerTaskTypeWeighting(table)
    weighting.configure(("a", "b"), 1)
    mask = torch.tensor([[True, True], [True, True], [False, True], [False, True]])
    alpha = weighting(None, mask, ["repair", "synthesis", "repair", "synthesis"])
    assert alpha.tolist() == [[0.25, 0.75], [1, 0], [0, 1], [0, 0]]
    with pytest.raises(ValueError, match=r"no weights for task type completion \(it has repair, synthesis\)"):
        weighting(None, mask[:1], ["completion"])
    with_default = FixedPerTaskTypeWeighting(table, default={"a": 1.0, "b": 1.0})
    with_default.configure(("a", "b"), 1)
    assert with_default(None, mask[:2], ["completion", "repair"]).tolist() == [[0.5, 0.5], [0.25, 0.75]]


@pytest.mark.parametrize(
    ("weights", "default", "message"),
    [
        ({}, None, "at least one task type"),
        ({"repair": {"a": -1.0}}, None, r"weights of 'repair' of \['a'\] must be finite and not negative"),
        ({"repair": {"a": 1.0}}, {"a": 0.0}, "default must hold at least one positive weight"),
        ({"repair": {"a": 1.0}}, None, r"weights of 'repair' must name exactly .* missing: \['b'\]"),
        ({"repair": {"a": 1.0, "b": 1.0}}, {"a": 1.0}, r"default must name exactly .* missing: \['b'\]"),
    ],
)
def test_bad_tables_name_the_culprit(weights: Any, default: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FixedPerTaskTypeWeighting(weights, default).configure(("a", "b"), 1)


def test_film_is_checked() -> None:
    with pytest.raises(ValueError, match="film must be one of none, monotone, unconstrained, got 'affine'"):
        HypernetworkWeighting(film="affine")  # type: ignore[arg-type]
