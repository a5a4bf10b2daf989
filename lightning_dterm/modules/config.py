"""Settings of a PPO run, as they stand in YAML."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lightning_dterm.rl.kl import KLEstimator

Constraint = Literal["none", "syntax"]


def check_at_least(low: float, settings: Mapping[str, float]) -> None:
    """Raise ValueError naming the first of ``settings`` that is below ``low`` or not finite."""
    for name, value in settings.items():
        if not low <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least {low:g}, got {value}")


def check_positive(settings: Mapping[str, float]) -> None:
    """Raise ValueError naming the first of ``settings`` that is not above 0 and finite."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {value}")


def resolve_seed(seed: int | None) -> int:
    """``seed``, or where that is None the number given to ``seed_everything`` (Lightning's PL_GLOBAL_SEED), else 0.

    Raises:
        ValueError: If PL_GLOBAL_SEED is set to something that is no whole number.
    """
    if seed is not None:
        return seed
    value = os.environ.get("PL_GLOBAL_SEED", "0")
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"the environment variable PL_GLOBAL_SEED must be a whole number, got {value!r}") from None


@dataclass
class GenerationConfig:
    """How responses are sampled.

    Attributes:
        max_prompt_length: Tokens; longer prompts lose their beginning; in training they are counted.
        max_new_tokens: Tokens; longer responses are cut, and count as truncated.
        temperature: Of training rollouts, > 0; log-probabilities are taken under it.
        samples_per_prompt: K.
        eval_temperature: Of validation, test and prediction; 0 is greedy.
        eval_top_p: Nucleus mass of validation, test and prediction.
        constrain: Of training rollouts. ``syntax``: only tokens after which a program of the task's language can still
            come, and an end only after a whole one (:class:`lightning_dterm.syntax.SyntaxLogitsProcessor`);
            log-probabilities, entropy and KL are those of actor and reference without all other tokens. Prose
            (language ``text``) stays free.
        eval_constrain: The same of validation, test and prediction.
    """

    max_prompt_length: int = 512
    max_new_tokens: int = 256
    temperature: float = 1.0
    samples_per_prompt: int = 4
    eval_temperature: float = 0.0
    eval_top_p: float = 1.0
    constrain: Constraint = "none"
    eval_constrain: Constraint = "none"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"generation.temperature must be positive in training, got {self.temperature}")
        for name in ("max_prompt_length", "max_new_tokens", "samples_per_prompt"):
            if getattr(self, name) < 1:
                raise ValueError(f"generation.{name} must be at least 1, got {getattr(self, name)}")
        if self.eval_temperature < 0:
            raise ValueError(f"generation.eval_temperature must not be negative, got {self.eval_temperature}")
        if not 0 < self.eval_top_p <= 1:
            raise ValueError(f"generation.eval_top_p must lie in (0, 1], got {self.eval_top_p}")
        for name in ("constrain", "eval_constrain"):
            if getattr(self, name) not in ("none", "syntax"):
                raise ValueError(f"generation.{name} must be none or syntax, got {getattr(self, name)!r}")


@dataclass
class PPOConfig:
    """The update.

    Attributes:
        epochs: Passes over a rollout.
        minibatches: Optimizer steps a pass.
        micro_batch_size: Samples a forward and backward pass on each process, None for the whole minibatch; changes
            memory and speed, not the result.
        shuffle: Draw the minibatches anew every epoch; without it they are consecutive samples. Either way a run on
            several processes has the very minibatches of a run on one.
        gamma: Discount.
        lam: GAE's trace decay.
        clip: Ratio clip.
        value_clip: Value clip; None switches it off.
        dual_clip: Lower bound factor where the advantage is negative; None switches it off.
        value_coef: Weight of the value loss.
        entropy_coef: Weight of the entropy bonus.
        baseline: ``critic``, or ``leave_one_out``: also subtract the mean total reward of the prompt's other samples,
            on the tokens where this sample's reward lies; the critic then learns what that leaves.
        whiten_advantages: Shift and scale advantages to mean 0, variance 1 over all ranks.
        target_kl: Stop the epochs of a rollout once the approximate KL to its own policy passes 1.5 times this.
        critic_warmup: Rollouts at the start that train the critic alone.
        max_grad_norm: Gradient norm of actor and critic together is clipped to this.
        missing_eos: What to do with a response cut at the length limit: ``none``, ``penalty`` (subtract
            ``missing_eos_penalty`` at its last token) or ``mask`` (leave it out of the update).
        missing_eos_penalty: See above.
    """

    epochs: int = 2
    minibatches: int = 2
    micro_batch_size: int | None = None
    shuffle: bool = True
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float | None = 0.2
    dual_clip: float | None = None
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    baseline: Literal["critic", "leave_one_out"] = "critic"
    whiten_advantages: bool = True
    target_kl: float | None = None
    critic_warmup: int = 0
    max_grad_norm: float = 1.0
    missing_eos: Literal["none", "penalty", "mask"] = "none"
    missing_eos_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"ppo.{name} must be at least 1, got {getattr(self, name)}")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"ppo.micro_batch_size must be at least 1, got {self.micro_batch_size}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"ppo.{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("value_clip", "target_kl"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"ppo.{name} must be positive or null, got {getattr(self, name)}")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"ppo.dual_clip must be above 1 or null, got {self.dual_clip}")
        if self.clip <= 0 or self.max_grad_norm <= 0:
            raise ValueError(f"ppo.clip and ppo.max_grad_norm must be positive, got {self.clip}, {self.max_grad_norm}")
        names = ("value_coef", "entropy_coef", "missing_eos_penalty", "critic_warmup")
        check_at_least(0, {f"ppo.{name}": getattr(self, name) for name in names})


@dataclass
class KLConfig:
    """KL to the reference: a penalty in the reward *or* a term of the loss, never both.

    Attributes:
        placement: ``reward``, ``loss``, ``report`` (measured, not penalised) or ``none`` (no reference model at all).
        estimator: ``k1``, ``k2`` or ``k3``; in the loss k2 has the right gradient, k1's is zero on average.
        coef: Coefficient, initial if ``target`` is set.
        target: KL in nats per sequence that the adaptive controller steers to; None keeps ``coef`` fixed.
        horizon: Sequences over which the adaptive controller may change by a factor of about e.
    """

    placement: Literal["reward", "loss", "report", "none"] = "reward"
    estimator: KLEstimator = "k1"
    coef: float = 0.05
    target: float | None = None
    horizon: int = 10_000

    def __post_init__(self) -> None:
        if self.placement == "loss" and self.estimator == "k1":
            raise ValueError("kl.estimator k1 has no useful gradient in the loss: choose k2 or k3, or placement reward")
        if self.target is not None and self.placement in ("report", "none"):
            raise ValueError(
                f"kl.target steers nothing with kl.placement {self.placement}: leave it out, or choose placement "
                "reward or loss"
            )
        check_at_least(1, {"kl.horizon": self.horizon})


@dataclass
class OptimizerConfig:
    """One AdamW with a parameter group each for actor, critic, weighting and a task encoder that trains.

    Attributes:
        actor_lr / critic_lr / weighting_lr: Learning rates.
        encoder_lr: Learning rate of the pretrained weights of a task encoder with ``trainable: true``.
        weight_decay: Of actor and critic.
        betas: AdamW's.
        eps: AdamW's.
        warmup: Rollouts over which learning rates rise linearly.
        schedule: ``constant``, or ``linear`` / ``cosine`` down to zero at ``trainer.max_steps``.
    """

    actor_lr: float = 1e-5
    critic_lr: float = 1e-4
    weighting_lr: float = 1e-3
    encoder_lr: float = 2e-5
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"

    def __post_init__(self) -> None:
        names = ("actor_lr", "critic_lr", "weighting_lr", "encoder_lr", "weight_decay", "warmup")
        check_at_least(0, {f"optimizer.{name}": getattr(self, name) for name in names})
        check_positive({"optimizer.eps": self.eps})
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be two numbers in [0, 1), got {self.betas}")

    def lr_factor(self, step: int, max_steps: int) -> float:
        """What learning rates are multiplied by after ``step`` of ``max_steps`` rollouts, in [0, 1]."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup) / max(1, max_steps - self.warmup))
        return 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
