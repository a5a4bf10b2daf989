"""The training forward: from prompts and responses to what predicts each response token; batched, or row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_dterm.modules.head import logits_head
from lightning_dterm.rl.generation import Decoding, RowDecoding
from lightning_dterm.rl.logprobs import Head


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

    @property
    def labels(self) -> Tensor:
        """``[N]`` the response tokens, row by row."""
        return self.ids[:, self.start :][self.response_mask]


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


def row_states(trunk: nn.Module, batch: JoinedBatch) -> Tensor:
    """What :func:`predicting_states` gives, from each row alone and without padding."""
    rows = [trunk(input_ids=ids, use_cache=False).last_hidden_state[0, picked] for ids, picked in _rows(batch)]
    return torch.cat(rows)


def row_logits(model: nn.Module, batch: JoinedBatch) -> Tensor:
    """``[N, V]`` logits that the model's own forward gives the N response tokens, each row alone, without padding."""
    return torch.cat([model(input_ids=ids, use_cache=False).logits[0, picked] for ids, picked in _rows(batch)])


def _rows(batch: JoinedBatch) -> Iterator[tuple[Tensor, Tensor]]:
    """Each row's tokens ``[1, L]``, and at which of them the next is a response token ``[L]``."""
    predicting = nn.functional.pad(batch.response_mask, (batch.start - 1, 1))
    for ids, attention, picked in zip(batch.ids, batch.attention.bool(), predicting, strict=True):
        yield ids[attention][None], picked[attention]


class Route(NamedTuple):
    """How a model is run for sampling, scoring and training, chosen once, on loading.

    Attributes:
        decoding: What :func:`lightning_dterm.rl.generation.generate` goes on with.
        states: From a trunk to the ``[N, h]`` hidden states from which the N response tokens are predicted.
        predict: From a causal language model to ``[N, ...]`` and the map from that to the N tokens' logits ``[N, V]``.
        from_states: Whether the first that ``predict`` gives are the hidden states, which a critic may read as well.
    """

    decoding: Callable[[Tensor, Tensor, int], Decoding | RowDecoding]
    states: Callable[[nn.Module, JoinedBatch], Tensor]
    predict: Callable[[nn.Module, JoinedBatch], tuple[Tensor, Head]]
    from_states: bool


def _states_and_head(model: nn.Module, batch: JoinedBatch) -> tuple[Tensor, Head]:
    return predicting_states(model.base_model, batch), logits_head(model)  # type: ignore[arg-type]


def _logits_themselves(model: nn.Module, batch: JoinedBatch) -> tuple[Tensor, Head]:
    return row_logits(model, batch), nn.Identity()


BATCHED = Route(Decoding, predicting_states, _states_and_head, from_states=True)
"""Padded batches; a cache in decoding; logits in chunks, from hidden states."""
ROW_BY_ROW = Route(RowDecoding, row_states, _logits_themselves, from_states=False)
"""For models that need no more than to give a row's logits: without batches, padding, cache or chunks, and slow."""


def scatter(picked: Tensor, batch: JoinedBatch) -> Tensor:
    """Put ``[N]`` back where the mask is true, ``[B, T]``; differentiable."""
    mask = batch.response_mask
    placed = torch.zeros(mask.shape, dtype=picked.dtype, device=picked.device).masked_scatter(mask, picked)
    return nn.functional.pad(placed, (0, batch.width - mask.shape[1]))
