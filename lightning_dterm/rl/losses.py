"""PPO's losses per token (Schulman et al. 2017, arXiv:1707.06347). Averaging is the caller's: see ``token_mean``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    """``loss`` per token, to be minimised; ``clipped``, 1 where the clip decided; ``log_ratio``; all ``[B, T]``."""

    loss: Tensor
    clipped: Tensor
    log_ratio: Tensor


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float = 0.2, dual_clip: float | None = None
) -> PolicyLoss:
    """Clipped surrogate (eq. 7), with the optional dual clip of Ye et al. 2020 (arXiv:1912.09729, eq. 5).

    Args:
        logprobs: ``[B, T]`` log-probabilities of the actor being trained.
        old_logprobs: ``[B, T]`` log-probabilities when the rollout was collected.
        advantages: ``[B, T]``.
        clip: Ratio clip epsilon, > 0.
        dual_clip: ``c > 1``: where the advantage is negative the objective is bounded below by ``c * A``.

    Raises:
        ValueError: If ``dual_clip`` is not above 1.
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}")
    log_ratio = logprobs - old_logprobs
    # beyond e^20 only the sign of the gradient matters; inf * 0 would be NaN
    ratio = log_ratio.clamp(-20, 20).exp()
    unclipped = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(unclipped, bounded)
    clipped = bounded > unclipped
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        over = (advantages < 0) & (loss > ceiling)
        loss = torch.where(over, ceiling, loss)
        clipped = clipped | over
    return PolicyLoss(loss, clipped.to(loss.dtype), log_ratio)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None = 0.2) -> tuple[Tensor, Tensor]:
    """Half squared error per token, ``0.5 max((V - G)^2, (clip(V) - G)^2)``; None switches the clip off.

    Args:
        values: ``[B, T]`` predictions being trained.
        old_values: ``[B, T]`` predictions when the rollout was collected.
        returns: ``[B, T]`` targets.
        clip: Largest change of a prediction that is rewarded, > 0.

    Returns:
        ``loss`` and ``clipped`` (1 where the clip decided), both ``[B, T]``.
    """
    error = (values - returns).square()
    if clip is None:
        return 0.5 * error, torch.zeros_like(error)
    bounded = torch.maximum(torch.minimum(values, old_values + clip), old_values - clip)
    bounded_error = (bounded - returns).square()
    return 0.5 * torch.maximum(error, bounded_error), (bounded_error > error).to(error.dtype)


def token_mean(per_token: Tensor, mask: Tensor, total_tokens: Tensor | float) -> Tensor:
    """Masked sum over ``total_tokens``, the response tokens of the *whole* minibatch over all ranks.

    Summed over micro-batches and ranks this is one mean per token, however the minibatch was cut: a mean of means
    would weigh tokens of short pieces more.
    """
    return (per_token * mask).sum() / total_tokens
