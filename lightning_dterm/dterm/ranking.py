"""Outcome ranking: composite rewards must order the samples of a prompt as the task's success metric does.

Pure functions. Notation: G groups (prompts) of K samples, n components; S the outcome; NaN marks what is unknown.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def center_within_group(scores: Tensor) -> Tensor:
    """Scores minus their group's mean over the known samples.

    Args:
        scores: ``[G, K, n]``, NaN where masked.

    Returns:
        ``[G, K, n]``; NaN stays NaN.
    """
    return scores - scores.nanmean(1, keepdim=True)


def within_group_rms(scores: Tensor) -> Tensor:
    """Root mean square deviation from the group mean, over all samples of groups with at least two known ones.

    Args:
        scores: ``[G, K, n]``, NaN where masked.

    Returns:
        ``[n]``; NaN for a component that no group knows for two samples.
    """
    known = ~scores.isnan()
    paired = known & (known.sum(1, keepdim=True) >= 2)
    squares = torch.where(paired, center_within_group(scores), 0.0).square().sum((0, 1))
    count = paired.sum((0, 1))
    return torch.where(count > 0, (squares / count.clamp(min=1)).sqrt(), torch.nan)


def normalize_scores(scores: Tensor, sigma: Tensor, sigma_floor: float = 0.02) -> Tensor:
    """``z = (r - group mean) / (sigma + 0.02)``, and 0 (the group's mean) where the score is masked.

    Args:
        scores: ``[G, K, n]``, NaN where masked.
        sigma: Within-group RMS, ``[n]`` or ``[G, n]``.
        sigma_floor: Keeps a component that hardly varies from being blown up.

    Returns:
        ``[G, K, n]`` without NaN.
    """
    scale = sigma + sigma_floor
    return (center_within_group(scores) / (scale if scale.dim() == 1 else scale[:, None])).nan_to_num(0.0)


def pair_weights(outcome: Tensor) -> Tensor:
    """``[G, K, K]``: ``S_j - S_l`` where sample j did better than sample l and both are known, else 0."""
    return (outcome[:, :, None] - outcome[:, None, :]).nan_to_num(0.0).clamp(min=0)


def ranking_losses(
    alpha: Tensor, z: Tensor, outcome: Tensor, family: Tensor, families: int, beta: Tensor, min_pairs: float = 20.0
) -> Tensor:
    """The ranking loss of each task family.

    ``sum over groups of f, pairs with S_j > S_l of (S_j - S_l) softplus(-beta (R_j - R_l)) / max(N_f, min_pairs)``
    with ``R_j = sum_i alpha_i z_ij`` and ``N_f`` the sum of the family's pair weights.

    Args:
        alpha: ``[G, n]`` weights of each group.
        z: ``[G, K, n]`` normalised scores.
        outcome: ``[G, K]`` success in [0, 1], NaN where unknown.
        family: ``[G]`` int64 index of each group's family.
        families: Number of families F.
        beta: Scalar, inverse temperature.
        min_pairs: Below this sum of pair weights a family counts for less than a full one.

    Returns:
        ``[F]``.
    """
    composite = torch.einsum("gn,gkn->gk", alpha, z)
    weight = pair_weights(outcome)
    loss = (weight * softplus(-beta * (composite[:, :, None] - composite[:, None, :]))).sum((1, 2))
    zeros = loss.new_zeros(families)
    total = zeros.index_add(0, family, weight.sum((1, 2)).to(loss))
    return zeros.index_add(0, family, loss) / total.clamp(min=min_pairs)


def pairwise_accuracy(alpha: Tensor, z: Tensor, outcome: Tensor) -> Tensor:
    """Share (weighted by ``S_j - S_l``) of pairs that the composite orders as the outcome does; a tie counts half."""
    composite = torch.einsum("gn,gkn->gk", alpha, z)
    difference = composite[:, :, None] - composite[:, None, :]
    weight = pair_weights(outcome)
    right = (difference > 0).float() + 0.5 * (difference == 0).float()
    return (weight * right).sum() / weight.sum().clamp(min=1e-12)


def kl_divergence(alpha: Tensor, prior: Tensor) -> Tensor:
    """``KL(alpha || alpha_0)`` per row of ``[G, n]`` in nats; entries where alpha is 0 count 0. Returns ``[G]``."""
    tiny = torch.finfo(alpha.dtype).tiny
    return (alpha * (alpha.clamp(min=tiny).log() - prior.clamp(min=tiny).log())).sum(-1)


def mean_per_family(values: Tensor, family: Tensor, families: int) -> Tensor:
    """Mean of ``values [G]`` over each family's groups, 0 for a family without any. Returns ``[F]``."""
    zeros = values.new_zeros(families)
    count = zeros.index_add(0, family, torch.ones_like(values))
    return zeros.index_add(0, family, values) / count.clamp(min=1)
