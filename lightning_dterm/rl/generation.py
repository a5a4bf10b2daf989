"""Sampling responses: a batched decode loop whose randomness belongs to the sample, not to the batch or the rank.

Every token of every sample is drawn by inverse-CDF from one uniform number that is a pure function of (seed, rollout,
task, sample index, position). So a rollout is the same on 1 or 8 ranks, in any order, and after a resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

Processor = Callable[[Tensor, Tensor], Tensor]
"""What transformers calls a ``LogitsProcessor``: ``input_ids [B, L]`` and ``scores [B, V]`` to new scores."""


class Responses(NamedTuple):
    """What was sampled.

    ``ids``, ``mask`` ``[B, T]`` right-padded (the mask covers the end-of-sequence token); ``finished`` ``[B]``;
    ``support`` ``[B, T, W]``: where a grammar constrained the sampling, the tokens it could choose from, filled up with
    -1 (all -1: any token), else None.
    """

    ids: Tensor
    mask: Tensor
    finished: Tensor
    support: Tensor | None = None


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts; stable across processes, machines and Python versions."""
    escaped = (str(part).replace("\\", "\\\\").replace("\x1f", "\\x1f") for part in parts)
    digest = hashlib.blake2b("\x1f".join(escaped).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sample_uniforms(keys: Iterable[Sequence[object]], length: int) -> Tensor:
    """``[B, length]`` float64 uniform numbers in [0, 1), row b a pure function of the b-th key."""
    rows = []
    for key in keys:
        generator = torch.Generator().manual_seed(derive_seed(*key))
        rows.append(torch.rand(length, dtype=torch.float64, generator=generator))
    return torch.stack(rows) if rows else torch.zeros(0, length, dtype=torch.float64)


def draw(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """Draw one token a row by inverse-CDF.

    Args:
        logits: ``[B, V]``.
        uniforms: ``[B]`` in [0, 1).
        temperature: 0 is greedy (the first of equal maxima).
        top_p: Nucleus in (0, 1]: the smallest set of most likely tokens with at least this mass (Holtzman et al. 2020).

    Returns:
        ``[B]`` int64 token ids.

    Raises:
        ValueError: If ``temperature`` or ``top_p`` is out of range.
        FloatingPointError: If the logits hold NaN or infinity.
    """
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature must be >= 0 and top_p in (0, 1], got {temperature} and {top_p}")
    _refuse_diverged(logits)
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / temperature).softmax(-1).double()
    if top_p < 1:
        ordered, index = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, index, ordered)
    cdf = probabilities.cumsum(-1)
    total = cdf[:, -1:]
    # u * total may round up to the total itself: stay below it, and so on a token that has mass
    threshold = torch.minimum(uniforms.to(cdf.device).unsqueeze(-1) * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cdf, threshold, right=True).squeeze(-1)


def _refuse_diverged(logits: Tensor) -> None:
    if logits.numel() and not bool(logits.amax().isfinite()):  # the maximum carries every NaN and +inf
        raise FloatingPointError("the logits are not finite: the model has diverged; lower the learning rates")


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    uniforms: Tensor,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    processor: Processor | None = None,
    decoding: Callable[[Tensor, Tensor, int], Decoding | RowDecoding] | None = None,
) -> Responses:
    """Continue left-padded prompts, by default with a key-value cache; rows that have ended leave the batch.

    Args:
        model: A transformers causal language model.
        prompt_ids: ``[B, P]`` left-padded.
        prompt_mask: ``[B, P]`` 1 on prompt tokens.
        uniforms: ``[B, T]`` from :func:`sample_uniforms`; T is the length limit.
        eos_ids: Tokens that end a response (they belong to it).
        pad_id: Fills the rest.
        temperature: 0 is greedy.
        top_p: Nucleus mass.
        processor: Changes the logits before each draw, called as by transformers: with all B rows in their places, what
            each has written so far ``[B, P + t]``, and zeros as the logits of rows that have left the batch.
        decoding: How the model gives the next token's logits; None is :class:`Decoding`.

    Raises:
        ValueError: If a prompt is empty or not padded on the left, or ``temperature`` or ``top_p`` is out of range.
        FloatingPointError: If the model's logits hold NaN or infinity.
    """
    if not bool(prompt_mask[:, -1:].bool().all()) or prompt_ids.shape[1] == 0:
        raise ValueError("every prompt must end in the last column: pad on the left")
    uniforms = uniforms.to(prompt_ids.device)
    blank = _blank(uniforms, pad_id)
    if uniforms.numel() == 0:
        return blank
    ends = torch.tensor(list(eos_ids), dtype=torch.long, device=uniforms.device)
    running = (decoding or Decoding)(prompt_ids, prompt_mask, uniforms.shape[1])
    _decode(model, running, blank, _Sampler(prompt_ids, uniforms, temperature, top_p, processor), ends)
    # rows kept in the batch after their end produced tokens that are not theirs
    return _cut_after_end(blank.ids, blank.mask, ends, pad_id, blank.finished)


def _blank(uniforms: Tensor, pad_id: int) -> Responses:
    """Nothing written yet in the rows and columns of ``uniforms``."""
    ids = torch.full_like(uniforms, pad_id, dtype=torch.long)
    return Responses(ids, torch.zeros_like(ids), torch.zeros(len(ids), dtype=torch.bool, device=ids.device))


class _Sampler(NamedTuple):
    """How the next tokens are chosen."""

    prompt_ids: Tensor
    uniforms: Tensor
    temperature: float
    top_p: float
    processor: Processor | None

    def choose(self, logits: Tensor, rows: Tensor, written: Tensor) -> Tensor:
        """``[b]`` tokens for ``rows`` ``[b]`` of the batch from their ``logits`` ``[b, V]``, after ``[B, t]``."""
        if self.processor is not None:
            _refuse_diverged(logits)
            scores = logits.new_zeros(len(written), logits.shape[-1])
            scores[rows] = logits
            logits = self.processor(torch.cat([self.prompt_ids, written], dim=1), scores)[rows]
        return draw(logits, self.uniforms[rows, written.shape[1]], self.temperature, self.top_p)


def _decode(
    model: nn.Module, running: Decoding | RowDecoding, responses: Responses, sampler: _Sampler, ends: Tensor
) -> None:
    """Fill ``responses`` column by column until every row has ended or the last column is reached."""
    ids, mask, finished = responses.ids, responses.mask, responses.finished
    for step in range(ids.shape[1]):
        rows = running.rows
        chosen = sampler.choose(running.next_logits(model), rows, ids[:, :step])
        ids[rows, step] = chosen
        mask[rows, step] = 1
        finished[rows[torch.isin(chosen, ends)]] = True
        keep = (~finished[rows]).nonzero().squeeze(-1)
        if keep.numel() == 0:
            break
        running.append(chosen, keep)


# Names under which models take and return what they remember of the tokens before.
_MEMORIES = ("past_key_values", "cache_params")


class Decoding:
    """The rows that decoding goes on with, and what their next forward pass needs.

    Args:
        prompt_ids: ``[B, P]`` left-padded.
        prompt_mask: ``[B, P]`` 1 on prompt tokens.
        limit: Most tokens that will be decoded.

    Attributes:
        rows: ``[b]`` int64, their places in the whole batch.
    """

    def __init__(self, prompt_ids: Tensor, prompt_mask: Tensor, limit: int) -> None:
        batch = len(prompt_ids)
        self.rows = torch.arange(batch, device=prompt_ids.device)
        self._tokens, self._width = prompt_ids, prompt_ids.shape[1]
        self._attention = torch.cat([prompt_mask.long(), prompt_mask.new_ones(batch, limit, dtype=torch.long)], dim=1)
        self._position = prompt_mask.long().cumsum(-1).sub(1).clamp(min=0)
        self._memory: dict[str, Any] = {}  # empty until the model has made its own kind of cache

    def next_logits(self, model: nn.Module) -> Tensor:
        """``[b, V]`` logits of the next token.

        Raises:
            ValueError: If the model returns no cache to go on with.
        """
        inputs: dict[str, Any] = {"position_ids": self._position, **self._memory}
        if "cache_params" not in self._memory:  # a recurrent state has no columns to mask
            inputs["attention_mask"] = self._attention[:, : self._width]
        output = model(input_ids=self._tokens, use_cache=True, logits_to_keep=1, **inputs)
        returned = {name: getattr(output, name, None) for name in _MEMORIES}
        self._memory = {name: cache for name, cache in returned.items() if cache is not None}
        if not self._memory:
            raise ValueError(f"{type(model).__name__} keeps no cache to decode with")
        logits: Tensor = output.logits[:, -1]
        return logits

    def append(self, chosen: Tensor, keep: Tensor) -> None:
        """Go on with ``chosen`` ``[b]``; ``keep`` are the rows that have not ended."""
        self._tokens = chosen.unsqueeze(-1)
        self._position = self._position[:, -1:] + 1
        self._width += 1
        # Dropping rows copies the cache: only worth it once a quarter of the running rows have ended.
        if keep.numel() <= 0.75 * self.rows.numel() and all(isinstance(c, Cache) for c in self._memory.values()):
            for cache in self._memory.values():
                _select(cache, keep)
            self.rows, self._tokens = self.rows[keep], self._tokens[keep]
            self._attention, self._position = self._attention[keep], self._position[keep]


class RowDecoding:
    """As :class:`Decoding`, for models without a cache: every token takes the row's whole text again, each row alone.

    Nothing is padded; the time grows with the square of the length. Nothing is prepared for ``limit`` tokens.
    """

    def __init__(self, prompt_ids: Tensor, prompt_mask: Tensor, limit: int) -> None:
        self.rows = torch.arange(len(prompt_ids), device=prompt_ids.device)
        self._texts = [ids[mask.bool()] for ids, mask in zip(prompt_ids, prompt_mask, strict=True)]

    def next_logits(self, model: nn.Module) -> Tensor:
        """``[b, V]`` logits of the next token."""
        return torch.cat([model(input_ids=text[None], use_cache=False).logits[:, -1] for text in self._texts])

    def append(self, chosen: Tensor, keep: Tensor) -> None:
        """Go on with ``chosen`` ``[b]`` in the rows ``keep``, which have not ended."""
        self._texts = [torch.cat([self._texts[row], chosen[row : row + 1]]) for row in keep.tolist()]
        self.rows = self.rows[keep]


def _select(cache: Cache, rows: Tensor) -> None:
    """Keep only ``rows`` of the batch in a cache, whatever its layers hold."""
    if type(cache).batch_select_indices is not Cache.batch_select_indices:
        cache.batch_select_indices(rows)  # a model's own cache, with states beside its layers
    else:
        # reordering, unlike selecting, is known to layers with recurrent states, too
        cache.reorder_cache(rows)  # type: ignore[arg-type]


def _cut_after_end(ids: Tensor, mask: Tensor, ends: Tensor, pad_id: int, finished: Tensor) -> Responses:
    is_end = torch.isin(ids, ends) & mask.bool()
    after = is_end.long().cumsum(-1) - is_end.long() > 0
    mask = mask.masked_fill(after, 0)
    ids = ids.masked_fill(mask == 0, pad_id)
    longest = int(mask.sum(-1).max())
    return Responses(ids[:, :longest], mask[:, :longest], finished)
