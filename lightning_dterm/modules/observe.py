"""What the weighting sees of a rollout: the whole of it, on every rank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lightning_dterm.modules.distributed import all_gather, global_order

if TYPE_CHECKING:
    from lightning_dterm.modules.ppo import PPOModule
    from lightning_dterm.types import Rollout


@torch.no_grad()
def observe(module: PPOModule, rollout: Rollout) -> None:
    """Every rank's weighting sees all ranks' samples in the order of one process, so all ranks stay equal.

    Args:
        module: Whose weighting looks.
        rollout: This rank's, with scores, task features and log-probabilities; a collective.
    """
    assert rollout.scores is not None
    assert rollout.task_features is not None
    assert rollout.logprobs is not None
    outcome = rollout.outcome if rollout.outcome is not None else torch.full((len(rollout),), math.nan)
    sensitivity = ((1 - rollout.logprobs.exp()).square() * rollout.response_mask).sum(-1)
    per_prompt = module.generation.samples_per_prompt
    gradients = rollout.scores.new_zeros(len(rollout), 0) if rollout.gradients is None else rollout.gradients
    columns = [part.cpu() for part in (rollout.scores, rollout.task_features, outcome, sensitivity, gradients)]
    own = [
        ([column[i : i + per_prompt] for column in columns], rollout.tasks[i].task_type)
        for i in range(0, len(rollout), per_prompt)
    ]
    groups = global_order(all_gather(own))
    scores, embeddings, outcomes, sensitivities, sketches = (
        torch.cat(column).to(module.device) for column in zip(*(group[0] for group in groups), strict=True)
    )
    module.weighting.observe(
        scores=scores,
        mask=~scores.isnan(),
        embedding=embeddings,
        outcome=outcomes,
        group=torch.arange(len(groups), device=module.device).repeat_interleave(per_prompt),
        task_types=[group[1] for group in groups for _ in range(per_prompt)],
        sensitivity=sensitivities,
        **({} if module.weighting.sketch is None else {"gradients": sketches}),
    )
