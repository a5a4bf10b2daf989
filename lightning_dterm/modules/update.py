"""The K epochs of minibatch updates on one rollout."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_dterm.modules.distributed import Means, all_sum, rank, world_size
from lightning_dterm.rl.kl import kl_estimate
from lightning_dterm.rl.losses import policy_loss, token_mean, value_loss
from lightning_dterm.rl.minibatches import Minibatch, own_minibatches, sample_order
from lightning_dterm.types import Rollout

if TYPE_CHECKING:
    from lightning_dterm.modules.ppo import PPOModule


class PPOUpdate:
    """Updates actor and critic on one rollout; one meta-step of the weighting rides on the last optimizer step.

    Args:
        module: The module whose policy is updated.
        rollout: With log-probabilities, values, advantages and returns.
        mask: ``[B, T]`` tokens that take part.
        means: Collects what is logged.
    """

    def __init__(self, module: PPOModule, rollout: Rollout, mask: Tensor, means: Means) -> None:
        self.module = module
        self.rollout = rollout
        self.mask = mask
        self.means = means
        self.settings = module.ppo
        assert rollout.logprobs is not None
        assert rollout.values is not None
        assert rollout.advantages is not None
        assert rollout.returns is not None
        self.old_logprobs, self.old_values = rollout.logprobs, rollout.values
        self.advantages, self.returns = rollout.advantages, rollout.returns

    def run(self) -> int:
        """All epochs, unless the policy has moved further than ``target_kl``.

        Returns:
            Response tokens that this rank passed through the policy to learn from.
        """
        self._set_learning_rates()
        steps = tokens = stop = 0
        for epoch in range(self.settings.epochs):
            plan = self._minibatches(epoch)
            for index, part in enumerate(plan):
                last = epoch == self.settings.epochs - 1 and index == len(plan) - 1
                stop = int(self._accumulate(part))
                self._step(with_meta=last or bool(stop))
                steps += 1
                tokens += int(self.rollout.response_mask[part.rows].sum())
                if stop:
                    break
            if stop:
                break
        self.means.add("ppo/steps", steps)
        self.means.add("ppo/early_stop", stop)
        return tokens

    def _set_learning_rates(self) -> None:
        """From the settings and not from the optimizer's state: what is configured at a resume counts."""
        factor, settings = self.module.lr_factor(), self.module.optimizer_config
        peak = {
            "actor": settings.actor_lr,
            "critic": settings.critic_lr,
            "weighting": settings.weighting_lr,
            "encoder": settings.encoder_lr,
        }
        warming_up = self.module.global_step < self.settings.critic_warmup
        for group in self.module.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = peak[group["name"]] * (0.0 if warming_up and group["name"] == "actor" else factor)
            group["betas"], group["eps"] = tuple(settings.betas), settings.eps
            group["weight_decay"] = settings.weight_decay if group["name"] in ("actor", "critic") else 0.0
            self.means.add(f"lr/{group['name']}", group["lr"])

    def _minibatches(self, epoch: int) -> list[Minibatch]:
        """This rank's share of each minibatch of the whole rollout, which is cut the same on any number of ranks."""
        settings, size = self.settings, world_size() * len(self.rollout)
        if settings.minibatches > size:
            raise ValueError(f"ppo.minibatches is {settings.minibatches}, but a rollout has {size} samples")
        order = sample_order(size, settings.shuffle, self.module.seed, "minibatches", self.module.global_step, epoch)
        return own_minibatches(
            order, settings.minibatches, self.module.generation.samples_per_prompt, rank(), world_size()
        )

    def _accumulate(self, part: Minibatch) -> bool:
        """Gradients of one minibatch, micro-batch by micro-batch. Returns whether to stop after this step.

        Raises:
            FloatingPointError: If the loss is not finite on any rank; on every rank, after the backward pass, since one
                that left before would let the others wait in its collectives.
        """
        self.module.optimizers().zero_grad()  # type: ignore[union-attr]
        total = all_sum(self.mask[part.rows].sum().double()).clamp(min=1)
        moved = torch.zeros((), dtype=torch.float64, device=self.module.device)
        finite = torch.ones((), dtype=torch.bool, device=self.module.device)
        for micro, mask in self._micro_batches(part):
            loss, log_ratio = self._loss(micro, mask, total)
            finite &= torch.isfinite(loss.detach())
            # data-parallel strategies average gradients over ranks; the loss is already a share of the global mean
            self.module.manual_backward(loss * world_size())
            moved += (kl_estimate(-log_ratio, torch.zeros_like(log_ratio), "k3").double() * mask).sum()
        diverged, movement = all_sum(torch.stack([(~finite).double(), moved])).tolist()
        if diverged:
            raise FloatingPointError(
                f"rollout {self.module.global_step}: the loss is not finite on {diverged:.0f} of {world_size()} "
                "process(es); lower the learning rates or the reward scale, or check the reward components for extreme "
                "values"
            )
        return self._moved_too_far(movement / float(total))

    def _micro_batches(self, part: Minibatch) -> list[tuple[Tensor, Tensor]]:
        """Rows and their masks, as many micro-batches on every rank: backward passes are collectives.

        Rows of like length lie together: less padding; the sum, and so the gradient, is the same in any order. A rank
        with fewer rows than the largest passes its shortest response once more, under an empty mask.
        """
        lengths = self.rollout.prompt_mask.sum(-1) + self.rollout.response_mask.sum(-1)
        ordered = part.rows[lengths[part.rows].argsort(stable=True).to(part.rows.device)]
        size = self.settings.micro_batch_size or part.largest
        micro = [(rows, self.mask[rows]) for rows in ordered.split(size) if len(rows)]
        shortest = lengths.argmin().reshape(1).to(part.rows.device)
        idle = (shortest, torch.zeros_like(self.mask[shortest]))
        return micro + [idle] * (math.ceil(part.largest / size) - len(micro))

    def _moved_too_far(self, approx_kl: float) -> bool:
        self.means.add("ppo/approx_kl", approx_kl)
        return self.settings.target_kl is not None and approx_kl > 1.5 * self.settings.target_kl

    def _loss(self, micro: Tensor, mask: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """One summed loss, because sharded strategies allow one backward a step; a share of the token mean."""
        rollout, settings = self.rollout, self.settings
        scores = self.module.policy(  # type: ignore[misc]
            rollout.prompt_ids[micro],
            rollout.prompt_mask[micro],
            rollout.response_ids[micro],
            rollout.response_mask[micro],
            actor=True,
            critic=True,
            temperature=self.module.generation.temperature,
            entropy_gradient=settings.entropy_coef != 0,
            support=None if rollout.support is None else rollout.support[micro],
        )
        surrogate = policy_loss(
            scores.logprobs, self.old_logprobs[micro], self.advantages[micro], settings.clip, settings.dual_clip
        )
        values, value_clipped = value_loss(
            scores.values, self.old_values[micro], self.returns[micro], settings.value_clip
        )
        per_token = surrogate.loss + settings.value_coef * values
        if settings.entropy_coef:
            per_token = per_token - settings.entropy_coef * scores.entropy
        if self.module.kl.placement == "loss":
            assert rollout.ref_logprobs is not None
            divergence = kl_estimate(scores.logprobs, rollout.ref_logprobs[micro], self.module.kl.estimator)
            per_token = per_token + self.module.kl_controller.coef * divergence
        for name, value in (
            ("ppo/policy_loss", surrogate.loss),
            ("ppo/clip_fraction", surrogate.clipped),
            ("critic/loss", values),
            ("critic/clip_fraction", value_clipped),
            ("ppo/entropy", scores.entropy),
        ):
            self.means.add_masked(name, value, mask)
        return token_mean(per_token, mask, total.to(per_token.dtype)), surrogate.log_ratio.detach()

    def _step(self, with_meta: bool) -> None:
        """Clip and step; the strategy's own optimizer step, uncounted: the rollout counts once.

        Raises:
            FloatingPointError: If the gradient is not finite. Strategies sum gradients over ranks before they are
                clipped, so all ranks see the same norm and raise together.
        """
        optimizer = self.module.optimizers()
        norm = self.module.clip_gradients_to(self.settings.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"rollout {self.module.global_step}: the gradient norm is {float(norm)}")
        self.means.add("ppo/grad_norm", norm)
        meta_loss = self._meta_gradient() if with_meta else None
        if meta_loss is not None:
            self.means.add("weighting/meta_loss", meta_loss)
        self.module.trainer.strategy.optimizer_step(optimizer.optimizer, closure=lambda: None, model=self.module)  # type: ignore[union-attr]

    def _meta_gradient(self) -> float | None:
        """Write the meta-gradient of weighting and task encoder (clipped at norm 1) into ``.grad``.

        Gives the meta-loss, None where nothing is to be learned. Its time is logged as ``meta``, part of the update's.
        """
        started = time.perf_counter()
        weighting, encoder = self.module.weighting, self.module.task_encoder
        loss = weighting.meta_loss(encoder) if encoder.trains else weighting.meta_loss()
        if loss is None:
            return None
        parameters = self.module.meta_parameters()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        value = float(loss.detach())  # on a GPU this waits for the loss, and for what was queued before it
        self.module.seconds["meta"] = time.perf_counter() - started
        return value
