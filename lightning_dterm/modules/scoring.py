"""Scoring given responses in micro-batches, with as many forward passes on every rank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from lightning_dterm.dterm.sketch import GradientSketch
from lightning_dterm.modules.actor_critic import Scores
from lightning_dterm.modules.distributed import all_gather

if TYPE_CHECKING:
    from lightning_dterm.modules.ppo import PPOModule


@torch.no_grad()
def score_responses(
    module: PPOModule,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    *,
    temperature: float,
    critic: bool = False,
    support: Tensor | None = None,
    sketch: GradientSketch | None = None,
) -> Scores:
    """Log-probabilities of actor and reference (where ``kl.placement`` keeps one) and values, where asked for.

    They come from the update's own forward, at most ``ppo.micro_batch_size`` rows at a time. A forward of sharded
    weights is a collective, so a rank with fewer rows than another runs empty passes beside it.

    Args:
        module: Whose policy scores.
        prompt_ids / prompt_mask: ``[B, P]``, left-padded; B may be 0 on some ranks, which must call all the same.
        response_ids / response_mask: ``[B, T]``, right-padded.
        temperature: Of the distribution that was sampled from.
        critic: Give values, too.
        support: ``[B, T, W]`` tokens that sampling could choose from, where it was constrained.
        sketch: Give each response's compressed gradient, too.
    """
    count, reference = len(prompt_ids), module.kl.placement != "none"
    size = module.ppo.micro_batch_size or max(count, 1)
    own = math.ceil(count / size)
    most = max(all_gather(own))  # before any forward, for that is a collective, too
    parts = [
        module.policy(  # type: ignore[misc]
            prompt_ids[start : start + size],
            prompt_mask[start : start + size],
            response_ids[start : start + size],
            response_mask[start : start + size],
            actor=True,
            reference=reference,
            critic=critic,
            temperature=temperature,
            support=None if support is None else support[start : start + size],
            sketch=sketch,
        )
        for start in range(0, count, size)
    ]
    one = torch.ones(1, 1, dtype=torch.long, device=module.device)
    for _ in range(most - own):
        module.policy(one, one, one, one, actor=True, reference=reference, critic=critic)  # type: ignore[misc]
    nothing = torch.zeros(0, response_mask.shape[1], device=module.device)
    columns = [torch.cat(column) if _known(column) else None for column in zip(*parts, strict=True)]
    no_gradient = None if sketch is None else nothing.new_zeros(0, sketch.width)
    return Scores(*columns) if columns else Scores(nothing, nothing, nothing, nothing, no_gradient)


def _known(column: tuple[Tensor | None, ...]) -> TypeGuard[tuple[Tensor, ...]]:
    return all(part is not None for part in column)
