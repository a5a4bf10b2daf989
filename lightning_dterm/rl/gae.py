"""Generalised advantage estimation over token rewards (Schulman et al. 2016, arXiv:1506.02438, eq. 11-16)."""

from __future__ import annotations

import torch
from torch import Tensor


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of a batch of responses.

    ``delta_t = r_t + gamma V_{t+1} - V_t`` and ``A_t = delta_t + gamma lam A_{t+1}``, where ``t + 1`` is the *next
    position inside the mask*, so padding of any shape (left, right, holes) neither receives nor passes anything on.
    The state after the last token is terminal: its value is 0, also for truncated responses (a length limit ends the
    episode; penalise it through the reward where that is not wanted).

    Args:
        rewards: ``[B, T]`` token rewards.
        values: ``[B, T]`` critic values of the state *before* each token.
        mask: ``[B, T]`` response mask, bool or 0/1.
        gamma: Discount in [0, 1].
        lam: Trace decay in [0, 1].

    Returns:
        ``advantages`` and ``returns = advantages + values``, both ``[B, T]`` and 0 outside the mask.
    """
    inside = mask.bool()
    advantages = torch.zeros_like(rewards)
    next_value = rewards.new_zeros(rewards.shape[0])
    next_advantage = rewards.new_zeros(rewards.shape[0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_advantage = torch.where(inside[:, t], advantage, next_advantage)
        next_value = torch.where(inside[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(inside[:, t], advantage, torch.zeros_like(advantage))
    returns = torch.where(inside, advantages + values, torch.zeros_like(values))
    return advantages, returns
