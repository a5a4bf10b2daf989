"""Cutting a rollout into minibatches in an order that does not depend on the number of processes.

Prompts are dealt to ranks in turn, so local prompt i of rank r is global prompt ``i W + r`` (W ranks); the K samples
of a prompt are adjacent. Global sample ``g`` therefore belongs to prompt ``g // K``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dterm.rl.generation import derive_seed


class Minibatch(NamedTuple):
    """This rank's ``rows`` ``[n]`` of one global minibatch, and the ``largest`` n of any rank."""

    rows: Tensor
    largest: int


def sample_order(size: int, shuffle: bool, *key: object) -> Tensor:
    """``[size]`` int64, the global samples in the order they are trained on; shuffled by ``key`` alone."""
    if not shuffle:
        return torch.arange(size)
    return torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(*key)))


def own_minibatches(order: Tensor, minibatches: int, per_prompt: int, rank: int, ranks: int) -> list[Minibatch]:
    """Cut ``order`` into ``minibatches`` parts of nearly equal size and give ``rank`` its members of each.

    Args:
        order: ``[N]`` global sample numbers, from :func:`sample_order`.
        minibatches: Parts; at most N.
        per_prompt: K, samples a prompt.
        rank: This process.
        ranks: W.

    Returns:
        One entry a minibatch, its rows in the order of ``order``; a rank may have none.
    """
    parts = []
    for part in order.tensor_split(minibatches):
        prompt, sample = part // per_prompt, part % per_prompt
        owner = prompt % ranks
        rows = prompt // ranks * per_prompt + sample
        parts.append(Minibatch(rows[owner == rank], int(torch.bincount(owner, minlength=ranks).max())))
    return parts
