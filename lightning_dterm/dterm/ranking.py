"""Outcome ranking: composite rewards must order the samples of a prompt as the task's success metric does.

Pure functions. Notation: G groups (prompts) of K samples, n components; S the outcome; NaN marks what is unknown.
"""

from __future__ import annotations

import math

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


def mix(old: Tensor | None, new: Tensor, decay: float) -> Tensor:
    """One step of an exponential moving average; where old or new is NaN (not known) the other stands alone."""
    if old is None:
        return new
    mixed = decay * old + (1 - decay) * new
    return torch.where(new.isnan(), old, torch.where(old.isnan(), new, mixed))


def normalize_scores(scores: Tensor, sigma: Tensor, sigma_floor: float = 0.02) -> Tensor:
    """``z = (r - group mean) / (sigma + 0.02)``, and 0 (the group's mean) where the score is masked.

    Args:
        scores: ``[G, K, n]``, NaN where masked.
        sigma: Within-group RMS, ``[n]`` or ``[G, n]``; NaN (not known) gives 0.
        sigma_floor: Keeps a component that hardly varies from being blown up.

    Returns:
        ``[G, K, n]`` without NaN.
    """
    scale = (sigma + sigma_floor).nan_to_num(math.inf)  # not after the division: gradients of FiLM would be NaN
    return (center_within_group(scores) / (scale if scale.dim() == 1 else scale[:, None])).nan_to_num(0.0)


def track_rms(sigmas: dict[str, Tensor], task_type: str, scores: Tensor, decay: float) -> None:
    """Mix the within-group RMS of new ``scores [G, K, n]`` into the moving average of their task type."""
    sigmas[task_type] = mix(sigmas.get(task_type), within_group_rms(scores), decay)


def pair_weights(outcome: Tensor) -> Tensor:
    """``[G, K, K]``: ``S_j - S_l`` where sample j did better than sample l and both are known, else 0."""
    return (outcome[:, :, None] - outcome[:, None, :]).nan_to_num(0.0).clamp(min=0)


def informative(outcome: Tensor) -> Tensor:
    """``[G]`` bool: groups whose known outcomes ``[G, K]`` vary; the others teach nothing."""
    return (pair_weights(outcome) > 0).flatten(1).any(1)


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
    total = sum_per_family(weight.sum((1, 2)).to(loss), family, families)
    return sum_per_family(loss, family, families) / total.clamp(min=min_pairs)


def correlation_losses(
    alpha: Tensor, z: Tensor, outcome: Tensor, family: Tensor, families: int, min_groups: float = 8.0
) -> Tensor:
    """One minus Pearson's correlation of composite reward and outcome, for each task family.

    ``[ sum over informative groups of f of (1 - corr_j(R_j, S_j)) ] / max(G_f, min_groups)`` with ``R_j = sum_i alpha_i
    z_ij`` over the samples with a known S, and G_f the number of these groups. A group whose composite does not vary
    has correlation 0; one whose outcome does not vary, or is known once, is not informative and counts nowhere.

    Args:
        alpha: ``[G, n]`` weights of each group.
        z: ``[G, K, n]`` normalised scores.
        outcome: ``[G, K]`` success in [0, 1], NaN where unknown.
        family: ``[G]`` int64 index of each group's family.
        families: Number of families F.
        min_groups: Below this number of groups a family counts for less than a full one.

    Returns:
        ``[F]``, each in [0, 2].
    """
    known = ~outcome.isnan()
    count = known.sum(1, keepdim=True).clamp(min=1)
    composite = torch.einsum("gn,gkn->gk", alpha, z)
    reward = torch.where(known, composite - (composite * known).sum(1, keepdim=True) / count, 0.0)
    success = outcome.nan_to_num(0.0)
    success = torch.where(known, success - (success * known).sum(1, keepdim=True) / count, 0.0)
    varies = informative(outcome)
    norm = (reward.square().sum(1) + 1e-12).sqrt() * success.square().sum(1).clamp(min=1e-12).sqrt()
    loss = torch.where(varies, 1 - (reward * success).sum(1) / norm, 0.0)
    groups = sum_per_family(varies.to(loss), family, families)
    return sum_per_family(loss, family, families) / groups.clamp(min=min_groups)


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


def sum_per_family(values: Tensor, family: Tensor, families: int) -> Tensor:
    """Sum of ``values [G]`` over the groups of each ``family [G]``. Returns ``[F]``."""
    return values.new_zeros(families).index_add(0, family, values)


def mean_per_family(values: Tensor, family: Tensor, families: int) -> Tensor:
    """Mean of ``values [G]`` over each family's groups, 0 for a family without any. Returns ``[F]``."""
    count = sum_per_family(torch.ones_like(values), family, families)
    return sum_per_family(values, family, families) / count.clamp(min=1)
