"""The training forward: from prompts and responses to the hidden states that predict each response token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class JoinedBatch:
    """Joined prompts and responses ``[B, P + R]`` without all-padding columns; ``response_mask`` is ``[B, R]``.

    ``start`` is P, ``width`` the T that results are padded back to.
    """

    ids: Tensor
    attention: Tensor
    position: Tensor
    start: int
    response_mask: Tensor
    width: int


def join(prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, response_mask: Tensor) -> JoinedBatch:
    """Join left-padded prompts and right-padded responses, cutting columns that are padding in every row."""
    prompt_length = max(int(prompt_mask.sum(-1).max()), 1)
    response_length = max(int(response_mask.sum(-1).max()), 1)
    prompt_ids, prompt_mask = prompt_ids[:, -prompt_length:], prompt_mask[:, -prompt_length:]
    ids = torch.cat([prompt_ids, response_ids[:, :response_length]], dim=1)
    attention = torch.cat([prompt_mask.long(), response_mask[:, :response_length].long()], dim=1)
    position = attention.cumsum(-1).sub(1).clamp(min=0)
    kept = response_mask[:, :response_length].bool()
    return JoinedBatch(ids, attention, position, prompt_length, kept, response_mask.shape[1])


def predicting_states(trunk: nn.Module, batch: JoinedBatch) -> Tensor:
    """``[N, h]`` hidden states from which the N response tokens are predicted, row by row."""
    output = trunk(input_ids=batch.ids, attention_mask=batch.attention, position_ids=batch.position, use_cache=False)
    predicting: Tensor = output.last_hidden_state[:, batch.start - 1 : -1]
    return predicting[batch.response_mask]


def scatter(picked: Tensor, batch: JoinedBatch) -> Tensor:
    """Put ``[N]`` back where the mask is true, ``[B, T]``; differentiable."""
    mask = batch.response_mask
    placed = torch.zeros(mask.shape, dtype=picked.dtype, device=picked.device).masked_scatter(mask, picked)
    return nn.functional.pad(placed, (0, batch.width - mask.shape[1]))
