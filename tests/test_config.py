"""Settings out of their bounds are refused when they are read, by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_dterm.modules.actor_critic import LoraSettings
from lightning_dterm.modules.config import GenerationConfig, KLConfig, OptimizerConfig, PPOConfig


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GenerationConfig(temperature=0), "temperature"),
        (lambda: GenerationConfig(max_new_tokens=0), "max_new_tokens"),
        (lambda: PPOConfig(epochs=0), "epochs"),
        (lambda: PPOConfig(clip=0), "clip"),
        (lambda: PPOConfig(gamma=1.1), "gamma"),
        (lambda: PPOConfig(lam=-0.1), "lam"),
        (lambda: PPOConfig(value_clip=0), "value_clip"),
        (lambda: PPOConfig(dual_clip=1.0), "dual_clip"),
        (lambda: OptimizerConfig(actor_lr=-1), "actor_lr"),
        (lambda: OptimizerConfig(betas=[0.9]), "betas"),
        (lambda: GenerationConfig(eval_temperature=-1), "eval_temperature"),
        (lambda: KLConfig(placement="loss", estimator="k1"), "k2 or k3"),
        (lambda: KLConfig(horizon=0), "kl.horizon"),
        (lambda: KLConfig(placement="report", target=1.0), "kl.target steers nothing with kl.placement report"),
        (lambda: KLConfig(placement="none", target=1.0), "kl.target steers nothing with kl.placement none"),
        (lambda: PPOConfig(value_coef=-0.1), "ppo.value_coef"),
        (lambda: PPOConfig(value_coef=math.inf), "ppo.value_coef"),
        (lambda: PPOConfig(entropy_coef=-1), "ppo.entropy_coef"),
        (lambda: PPOConfig(entropy_coef=math.nan), "ppo.entropy_coef"),
        (lambda: PPOConfig(missing_eos_penalty=-1), "ppo.missing_eos_penalty"),
        (lambda: PPOConfig(critic_warmup=-1), "ppo.critic_warmup"),
        (lambda: OptimizerConfig(eps=0), "optimizer.eps"),
        (lambda: OptimizerConfig(betas=[0.9, 1.0]), "optimizer.betas"),
        (lambda: OptimizerConfig(critic_lr=math.nan), "optimizer.critic_lr"),
        (lambda: OptimizerConfig(weighting_lr=math.inf), "optimizer.weighting_lr"),
        (lambda: LoraSettings(rank=0), "lora.rank"),
        (lambda: LoraSettings(alpha=0), "lora.alpha"),
    ],
)
def test_bad_settings_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
