"""Leave-one-out baseline over the samples of one prompt (Kool et al. 2019; RLOO, Ahmadian et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor


def leave_one_out(totals: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """Mean total reward of the *other* valid samples of the same prompt.

    It does not depend on a sample's own actions, so subtracting it whole leaves the policy gradient unbiased, and it
    removes what differs between prompts: most of the variance when tasks differ in difficulty.

    Args:
        totals: ``[B]`` total reward of each sample.
        group: ``[B]`` int64 index of the prompt.
        valid: ``[B]`` bool, samples that take part.

    Returns:
        ``[B]``; 0 for a sample without valid siblings, and for one that is not valid.
    """
    groups = int(group.max()) + 1 if group.numel() else 0
    weight = valid.to(totals.dtype)
    sums = torch.zeros(groups, dtype=totals.dtype, device=totals.device).index_add_(0, group, totals * weight)
    counts = torch.zeros_like(sums).index_add_(0, group, weight)
    others = counts[group] - weight
    mean = (sums[group] - totals * weight) / others.clamp(min=1)
    return torch.where(valid & (others > 0), mean, torch.zeros_like(mean))


def spread_baseline(baseline: Tensor, places: Tensor, last: Tensor) -> Tensor:
    """Lay each sample's baseline where rewards may lie, so that no position is favoured by the subtraction.

    Spread over several tokens, what remains of it at a token depends on how long the sample goes on: a small bias,
    taken for a baseline that has the shape of uniform and dense rewards. On one token (terminal) there is none.

    Args:
        baseline: ``[B]``.
        places: ``[B, T]`` bool: with terminal attribution the last token, with dense and uniform ones the code.
        last: ``[B]`` int64 position of the last response token, which takes it where there is no place.

    Returns:
        ``[B, T]``, rows sum to ``baseline``: equal shares on the places.
    """
    places = places.to(baseline.dtype)
    none = places.sum(-1) == 0
    places[none, last[none]] = 1
    return baseline[:, None] * places / places.sum(-1, keepdim=True)
