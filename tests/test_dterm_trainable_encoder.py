"""A task encoder that trains: the meta-gradient reaches it through groups of old rollouts, and runs resume exactly."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from transformers import BertModel

from lightning_dterm.dterm import HFEncoder, HypernetworkWeighting, TaskEncoder, UniformWeighting
from lightning_dterm.hooks import RolloutCallback
from lightning_dterm.modules.actor_critic import CriticConfig
from lightning_dterm.modules.checkpoints import ResumeError
from lightning_dterm.modules.config import GenerationConfig, OptimizerConfig, PPOConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.types import CodeTask, Rollout
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor, tiny_text_encoder, tiny_trainer

TEXTS = ["fix the bug", "the bug", "fix", "bug the fix the", "fix the bug bug"]
IDS = {"fix": 4, "the": 5, "bug": 6}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_text_encoder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_actor(tmp_path_factory.mktemp("actor"))


def trainable(bert: Path, **settings: Any) -> HFEncoder:
    return HFEncoder(str(bert), trainable=True, **settings)


def by_hand(model: BertModel, text: str, pooling: str = "mean") -> Tensor:
    ids = torch.tensor([[2, *(IDS[word] for word in text.split()), 3]])
    hidden: Tensor = model(input_ids=ids).last_hidden_state[0]
    return hidden.mean(0) if pooling == "mean" else hidden[0]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_forward_is_the_embedding_of_each_description(bert: Path, pooling: Any) -> None:
    encoder = trainable(bert, pooling=pooling).train()
    features = encoder.text_features([*TEXTS, TEXTS[0]])
    model = BertModel.from_pretrained(bert).eval()
    expected = torch.stack([by_hand(model, text, pooling) for text in (*TEXTS, TEXTS[0])])
    assert torch.allclose(encoder(features), expected, atol=1e-6)
    assert torch.equal(encoder.encode(TEXTS), encoder(encoder.text_features(TEXTS)))


def test_a_text_without_tokens_is_embedded_as_zero_and_harms_no_gradient(bert: Path) -> None:
    encoder = trainable(bert)
    features = encoder.text_features(["fix", "fix"])
    features[0] = -1.0
    embedding = encoder(features)
    assert embedding[0].abs().sum() == 0
    embedding.square().sum().backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in encoder.parameters())


def observed(weighting: HypernetworkWeighting, embedding: Tensor) -> None:
    """One rollout of five prompts with three samples each, whose second component is right and the first wrong."""
    generator = torch.Generator().manual_seed(0)
    outcome = torch.rand(15, generator=generator)
    scores = torch.stack([1 - outcome, outcome], 1)
    weighting.observe(
        scores, torch.ones(15, 2, dtype=torch.bool), embedding.repeat_interleave(3, 0), outcome,
        torch.arange(5).repeat_interleave(3), ["repair"] * 9 + ["synthesis"] * 6,
    )  # fmt: skip


def weighting_of_width_16() -> HypernetworkWeighting:
    torch.manual_seed(3)
    weighting = HypernetworkWeighting()
    weighting.configure(("wrong", "right"), 16)
    torch.nn.init.normal_(weighting.hypernetwork.mlp[-1].weight)  # type: ignore[union-attr, arg-type, index]
    return weighting


def test_the_loss_of_old_groups_is_that_of_the_present_encoder(bert: Path) -> None:
    """Groups are observed, then the encoder moves: as if they had been observed as the moved encoder embeds them."""
    encoder = trainable(bert)
    remembers = weighting_of_width_16()
    observed(remembers, encoder.text_features(TEXTS))
    before = float(remembers.meta_loss(encoder).detach())  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    after = float(remembers.meta_loss(encoder).detach())  # type: ignore[union-attr]
    oracle = weighting_of_width_16()
    observed(oracle, torch.stack([by_hand(encoder.model, text) for text in TEXTS]))
    assert after == pytest.approx(float(oracle.meta_loss().detach()), rel=1e-5)  # type: ignore[union-attr]
    assert after != pytest.approx(before, rel=1e-3)
    # outside of the meta-step the hypernetwork reads embeddings again
    alpha = [w(encoder.encode(TEXTS), torch.ones(5, 2, dtype=torch.bool), ["repair"] * 5) for w in (remembers, oracle)]
    assert torch.equal(alpha[0], alpha[1])


def test_the_meta_gradient_is_that_of_finite_differences(bert: Path) -> None:
    encoder, weighting = trainable(bert), weighting_of_width_16()
    observed(weighting, encoder.text_features(TEXTS))
    parameters = [p for name, p in encoder.named_parameters() if "pooler" not in name]
    gradient = torch.autograd.grad(weighting.meta_loss(encoder), parameters)  # type: ignore[arg-type]
    norm = torch.cat([g.flatten() for g in gradient]).norm()
    assert norm > 1e-3

    def at(step: float) -> float:
        moved = copy.deepcopy(encoder)
        names = [p for name, p in moved.named_parameters() if "pooler" not in name]
        with torch.no_grad():
            for parameter, slope in zip(names, gradient, strict=True):
                parameter += step * slope / norm
        return float(weighting.meta_loss(moved).detach())  # type: ignore[union-attr]

    assert (at(1e-3) - at(-1e-3)) / 2e-3 == pytest.approx(float(norm), rel=0.03)


class BugData(TextData):
    def train_tasks(self) -> Sequence[CodeTask]:
        return [
            CodeTask(f"t/{i}", ("synthesis", "repair")[i % 2], "text", f"ab{i % 7}", TEXTS[i % 5], "abc")
            for i in range(self.size)
        ]


class Succeed(RolloutCallback):
    """Success is a short answer: it varies within groups, so that there is something to learn at every step."""

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, rollout: Rollout) -> None:
        rollout.outcome = torch.tensor([1 / (1 + len(text)) for text in rollout.texts])


def module(actor: Path, encoder: TaskEncoder, **overrides: Any) -> PPOModule:
    settings: dict[str, Any] = {
        "actor": ActorConfig(path=str(actor)),
        "critic": CriticConfig(kind="shared"),
        "generation": GenerationConfig(max_prompt_length=8, max_new_tokens=4, samples_per_prompt=3),
        "ppo": PPOConfig(epochs=1, minibatches=2),
        "optimizer": OptimizerConfig(actor_lr=1e-3, weighting_lr=1e-2, encoder_lr=1e-3),
        "weighting": HypernetworkWeighting(),
        "task_encoder": encoder,
    }
    return PPOModule(**{**settings, **overrides})


def fit(root: Path, ppo: PPOModule, steps: int, resume: Path | None = None) -> dict[str, Any]:
    """Train, and give the checkpoint at the end."""
    components = [ScoreOf("share", share_of_a), ScoreOf("long", lambda text: min(1.0, len(text) / 8))]
    trainer = tiny_trainer(root, components, steps, callbacks=[Succeed()])
    trainer.fit(ppo, datamodule=BugData(batch_size=4, size=12), ckpt_path=resume)
    trainer.save_checkpoint(root / f"{steps}.ckpt")
    return torch.load(root / f"{steps}.ckpt", weights_only=True)  # type: ignore[no-any-return]


def encoder_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("task_encoder.")}


def test_it_trains_and_resumes_exactly(bert: Path, actor: Path, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", module(actor, trainable(bert)), 5)
    fit(tmp_path, module(actor, trainable(bert)), 2)
    resumed = fit(tmp_path, module(actor, trainable(bert)), 5, resume=tmp_path / "2.ckpt")
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    start = {f"task_encoder.{name}": p for name, p in trainable(bert).named_parameters()}
    trained = encoder_weights(whole)
    assert trained.keys() == start.keys()
    moved = {name for name in start if not torch.equal(start[name], trained[name])}
    assert {name for name in start if "pooler" not in name and "key.bias" not in name} <= moved
    fifo = whole["lightning_dterm"]["weighting"]["objective"]["informative"]["repair"]
    assert fifo[0].shape[1] == 32  # tokens, not embeddings


def test_another_rate_for_the_encoder_and_none_where_it_is_frozen(bert: Path, actor: Path, tmp_path: Path) -> None:
    still = module(actor, trainable(bert), optimizer=OptimizerConfig(weighting_lr=1e-2, encoder_lr=0.0))
    held = encoder_weights(fit(tmp_path, still, 3))
    start = {f"task_encoder.{name}": p for name, p in trainable(bert).named_parameters()}
    assert all(torch.equal(start[name], held[name]) for name in start)
    assert [group["name"] for group in still.optimizers().param_groups] == ["actor", "critic", "weighting", "encoder"]  # type: ignore[union-attr]
    frozen = module(actor, HFEncoder(str(bert), cache_dir=None))
    assert not encoder_weights(fit(tmp_path, frozen, 3))
    assert [group["name"] for group in frozen.optimizers().param_groups] == ["actor", "critic", "weighting"]  # type: ignore[union-attr]


def test_under_a_weighting_that_reads_no_embedding_nothing_of_it_trains(
    bert: Path, actor: Path, tmp_path: Path
) -> None:
    message = "task_encoder HFEncoder is not trained, because UniformWeighting reads no task embedding: choose another"
    with pytest.warns(UserWarning, match=message):
        assert not encoder_weights(fit(tmp_path, module(actor, trainable(bert), weighting=UniformWeighting()), 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="task_encoder")
        fit(tmp_path, module(actor, HFEncoder(str(bert), cache_dir=None), weighting=UniformWeighting()), 1)
        fit(tmp_path, module(actor, trainable(bert)), 1)


def test_a_checkpoint_of_another_encoder_is_refused(bert: Path, actor: Path, tmp_path: Path) -> None:
    fit(tmp_path, module(actor, trainable(bert)), 2)
    other = tiny_text_encoder(tmp_path / "other", seed=5)
    for encoder, message in (
        (trainable(other), "task_encoder's content is"),
        (HFEncoder(str(bert), cache_dir=None), "trained parts differ.*task_encoder"),
    ):
        with pytest.raises(ResumeError, match=message):
            fit(tmp_path, module(actor, encoder), 3, resume=tmp_path / "2.ckpt")
