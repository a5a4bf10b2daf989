"""A checkpoint of other settings is refused in one line; so is a run that would train wrongly without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_dterm.callbacks import RewardComputation
from lightning_dterm.cli import DTermTrainer
from lightning_dterm.dterm import FixedWeighting, HashingEncoder, HypernetworkWeighting, UniformWeighting
from lightning_dterm.modules.actor_critic import CriticConfig, LoraSettings
from lightning_dterm.modules.checkpoints import ResumeError
from lightning_dterm.modules.config import GenerationConfig, OptimizerConfig, PPOConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.modules.supervised import SupervisedModule
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor, tiny_fit, tiny_ppo


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_actor(tmp_path_factory.mktemp("actor"))


def ppo(actor: Path, **overrides: Any) -> PPOModule:
    settings: dict[str, Any] = {
        "generation": GenerationConfig(max_prompt_length=8, max_new_tokens=2, samples_per_prompt=1),
        "ppo": PPOConfig(epochs=1, minibatches=1),
        "optimizer": OptimizerConfig(actor_lr=1e-3),
    }
    return tiny_ppo(actor, **{**settings, **overrides})


def fit(root: Path, module: L.LightningModule, steps: int, resume: Path | None = None, **kwargs: Any) -> L.Trainer:
    data = TextData(batch_size=4, size=16)
    return tiny_fit(root, module, [ScoreOf("share", share_of_a)], steps, data, resume, **kwargs)


def lora(rank: int = 4, alpha: int = 8, targets: Any = "all-linear") -> dict[str, Any]:
    return {"lora": LoraSettings(rank, alpha, targets)}


def hyper(dim: int = 16, **sizes: Any) -> dict[str, Any]:
    return {"weighting": HypernetworkWeighting(**sizes), "task_encoder": HashingEncoder(dim)}


CONTENT = "task_encoder's content"
PAIRS = GenerationConfig(max_prompt_length=8, max_new_tokens=2, samples_per_prompt=2)


class OtherEncoder(HashingEncoder):
    """Another embedding of the same width."""


CHANGES = [
    (lora(), lora(alpha=64), "lora.alpha is 8 in this checkpoint and 64 in this run"),
    (lora(), lora(rank=2), "lora.rank is 4 in this checkpoint and 2 in this run"),
    (lora(), lora(targets=["q_proj"]), r"lora.target_modules is all-linear .* \['q_proj'\] in this run"),
    (lora(), {}, "lora is set in this checkpoint and null in this run"),
    ({}, lora(), "lora is null in this checkpoint and set in this run"),
    (lora(), {**lora(), "critic": CriticConfig("adapter")}, "critic.kind is shared in this checkpoint and adapter"),
    ({"weighting": UniformWeighting()}, hyper(), "weighting is UniformWeighting .* HypernetworkWeighting in this run"),
    (hyper(), {"weighting": UniformWeighting()}, "weighting is HypernetworkWeighting .* UniformWeighting in this run"),
    ({}, {"weighting": FixedWeighting({"share": 1.0})}, "weighting is UniformWeighting .* FixedWeighting in this run"),
    (hyper(), hyper(32), "task_encoder's width is 16 in this checkpoint and 32 in this run"),
    (hyper(), {**hyper(), "task_encoder": OtherEncoder(16)}, "task_encoder is HashingEncoder .* OtherEncoder"),
    (hyper(), hyper(hidden=32), "give the same settings of the weighting"),
    (hyper(film="none"), hyper(), "weighting.film is none in this checkpoint and monotone in this run"),
    (
        {"weighting": UniformWeighting(normalize=True), "generation": PAIRS},
        {"weighting": UniformWeighting(), "generation": PAIRS},
        "weighting.normalize is true in this checkpoint and false in this run",
    ),
]


@pytest.mark.parametrize(("before", "after", "message"), CHANGES)
def test_other_settings_are_refused_in_one_line(
    actor: Path, tmp_path: Path, before: dict[str, Any], after: dict[str, Any], message: str
) -> None:
    fit(tmp_path, ppo(actor, **_fresh(before)), 1).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ResumeError, match=message) as refusal:
        fit(tmp_path, ppo(actor, **_fresh(after)), 2, resume=tmp_path / "a.ckpt")
    assert "\n" not in str(refusal.value)
    with pytest.raises(ResumeError, match=message):
        DTermTrainer(accelerator="cpu", logger=False, default_root_dir=tmp_path).export(
            ppo(actor, **_fresh(after)), str(tmp_path / "out"), str(tmp_path / "a.ckpt")
        )
    assert not (tmp_path / "out").exists()


def _fresh(settings: dict[str, Any]) -> dict[str, Any]:
    """A weighting belongs to one module."""
    import copy

    return copy.deepcopy(settings)


@pytest.mark.parametrize("settings", [lora(), hyper(film="none"), {}])
def test_checkpoints_of_older_versions_still_load(actor: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    fit(tmp_path, ppo(actor, **_fresh(settings)), 1).save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del checkpoint["lightning_dterm"]["settings"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    assert fit(tmp_path, ppo(actor, **_fresh(settings)), 2, resume=tmp_path / "old.ckpt").global_step == 2


def test_a_prior_given_at_resume_counts_also_over_that_of_an_older_checkpoint(actor: Path, tmp_path: Path) -> None:
    """Older ones hold the prior, and an identity of the encoder that changed with every version of transformers."""
    components = [ScoreOf("share", share_of_a), ScoreOf("rest", lambda text: 1 - share_of_a(text))]
    data = TextData(batch_size=4, size=16)
    first = tiny_fit(tmp_path, ppo(actor, **hyper(prior={"share": 0.3, "rest": 0.7})), components, 1, data)
    first.save_checkpoint(tmp_path / "new.ckpt")
    old = torch.load(tmp_path / "new.ckpt", weights_only=True)
    assert "weighting.hypernetwork.prior" not in old["state_dict"]
    old["state_dict"]["weighting.hypernetwork.prior"] = torch.tensor([0.3, 0.7])
    settings = old["lightning_dterm"]["settings"]
    settings["task_encoder's identity"] = f"{settings.pop(CONTENT)} under transformers 4.0"
    torch.save(old, tmp_path / "old.ckpt")
    for name in ("new.ckpt", "old.ckpt"):
        module = ppo(actor, **hyper(prior={"share": 0.8, "rest": 0.2}))
        trainer = tiny_fit(tmp_path, module, components, 2, data, tmp_path / name)
        assert trainer.global_step == 2
        alpha = module.weighting(torch.zeros(1, 16), torch.ones(1, 2, dtype=torch.bool), ["synthesis"])
        # nothing was learned yet, so the weights are the prior
        assert torch.allclose(alpha, torch.tensor([[0.8, 0.2]]), atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(lora(), lora(rank=2)), (hyper(film="none"), hyper(32, film="none"))])
def test_older_checkpoints_of_other_shapes_are_refused_in_one_line(
    actor: Path, tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    fit(tmp_path, ppo(actor, **_fresh(before)), 1).save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del checkpoint["lightning_dterm"]["settings"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(ResumeError, match=r"has shape \(.*\) in this checkpoint and \("):
        fit(tmp_path, ppo(actor, **_fresh(after)), 2, resume=tmp_path / "old.ckpt")


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("settings", [{}, lora()])
def test_weights_in_half_precision_are_refused(
    actor: Path, tmp_path: Path, precision: Any, settings: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"trainer.precision {precision} loses small updates: use bf16-mixed"):
        fit(tmp_path, ppo(actor, **settings), 1, precision=precision)
    module = SupervisedModule(ActorConfig(path=str(actor)), warmup_steps=0)
    with pytest.raises(ValueError, match=f"trainer.precision {precision} loses small updates: use bf16-mixed"):
        fit(tmp_path, module, 1, precision=precision)
    assert module.model is None  # before anything was loaded


@pytest.mark.parametrize("precision", ["16-mixed", 16])
def test_16_mixed_is_refused_on_the_cpu_too(precision: Any, tmp_path: Path) -> None:
    with pytest.raises(L.fabric.utilities.exceptions.MisconfigurationException, match="16-mixed is not supported"):
        DTermTrainer(accelerator="cpu", precision=precision, default_root_dir=tmp_path)
    assert DTermTrainer(accelerator="cpu", precision="bf16-mixed", default_root_dir=tmp_path).precision == "bf16-mixed"


def test_a_run_without_attribution_is_refused(actor: Path, tmp_path: Path) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        callbacks=[RewardComputation(components=[ScoreOf("share", share_of_a)])],
    )
    with pytest.raises(ValueError, match=r"add lightning_dterm\.callbacks\.TokenAttribution to trainer\.callbacks"):
        trainer.fit(ppo(actor), datamodule=TextData(batch_size=4, size=16))


def test_supervised_training_is_resumed_from_its_own_actor_alone(actor: Path, tmp_path: Path) -> None:
    def module(path: Path) -> SupervisedModule:
        generation = GenerationConfig(max_prompt_length=8, max_new_tokens=2)
        return SupervisedModule(ActorConfig(path=str(path)), generation, warmup_steps=0, schedule="constant")

    checkpoint = tmp_path / "sft.ckpt"
    fit(tmp_path, module(actor), 1).save_checkpoint(checkpoint)
    others = tiny_actor(tmp_path / "same_shape", seed=1), tiny_actor(tmp_path / "wider", hidden=16)
    for other in others:
        with pytest.raises(ResumeError, match=r"trained from actor .*, but actor\.path is .*: give the same"):
            fit(tmp_path, module(other), 2, checkpoint)
    fit(tmp_path, module(actor), 2, checkpoint)
    older = torch.load(checkpoint, weights_only=True)
    del older["lightning_dterm_supervised"]["actor"], older["lightning_dterm_supervised"]["actor_path"]
    torch.save(older, checkpoint)
    assert fit(tmp_path, module(others[0]), 2, checkpoint).global_step == 2
