"""``actor.gradient_checkpointing`` recomputes activations in training, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_dterm.modules.actor_critic import CriticConfig, LoraSettings
from lightning_dterm.modules.config import GenerationConfig, PPOConfig
from lightning_dterm.modules.loading import ActorConfig
from lightning_dterm.modules.ppo import PPOModule
from lightning_dterm.modules.supervised import SupervisedModule
from tests.tiny import ScoreOf, TextData, share_of_a, tiny_actor, tiny_fit


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_actor(tmp_path_factory.mktemp("actor"))


class Passes(L.Callback):
    """Counts the passes of the first layer: with gradients, of a single token, and in training mode inside it."""

    def __init__(self) -> None:
        self.with_grad = self.with_cache = self.noisy = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        layer = next(m for n, m in pl_module.language_model.named_modules() if n.endswith("layers.0"))
        # a forward *pre*-hook: recomputation stops as soon as it has what it needs, before later hooks
        layer.mlp.register_forward_pre_hook(self.note)

    def note(self, part: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.with_grad += torch.is_grad_enabled()
        self.with_cache += inputs[0].shape[1] == 1
        self.noisy += part.training


def module(actor: Path, kind: str, checkpointing: bool) -> L.LightningModule:
    config = ActorConfig(path=str(actor), gradient_checkpointing=checkpointing)
    generation = GenerationConfig(max_prompt_length=8, max_new_tokens=4, samples_per_prompt=2)
    if kind == "supervised":
        return SupervisedModule(config, generation, warmup_steps=0, schedule="constant")
    lora = LoraSettings(rank=2) if kind == "lora" else None
    ppo = PPOConfig(epochs=1, minibatches=1)
    return PPOModule(actor=config, critic=CriticConfig("shared"), lora=lora, generation=generation, ppo=ppo)


@pytest.mark.parametrize("kind", ["ppo", "lora", "supervised"])
def test_fit_recomputes_also_after_validation(actor: Path, tmp_path: Path, kind: str) -> None:
    """Two steps with a validation between them: 2 passes with gradients, and with checkpointing 4."""
    counts: dict[bool, Passes] = {}
    weights: dict[bool, dict[str, Any]] = {}
    for checkpointing in (False, True):
        torch.manual_seed(0)
        counts[checkpointing], trained = Passes(), module(actor, kind, checkpointing)
        settings: dict[str, Any] = {"limit_val_batches": 1, "val_check_interval": 1, "num_sanity_val_steps": 0}
        data = TextData(batch_size=4, size=8)
        callbacks = [counts[checkpointing]]
        tiny_fit(tmp_path, trained, [ScoreOf("a", share_of_a)], 2, data, callbacks=callbacks, **settings)
        weights[checkpointing] = trained.state_dict()
    assert (counts[False].with_grad, counts[True].with_grad) == (2, 4)
    assert counts[True].with_cache == counts[False].with_cache > 0  # generation feeds a token at a time
    assert counts[True].noisy == 0
    for name, tensor in weights[False].items():
        assert torch.allclose(weights[True][name].float(), tensor.float(), atol=1e-5), name
