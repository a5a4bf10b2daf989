"""Log-probabilities and entropies of given tokens without ever holding ``[B, T, V]`` in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
Visit = Callable[[slice, Tensor, Tensor], None]
"""Is shown which tokens a chunk holds, what the head read ``[n, h]`` and the chunk's logits over T ``[n, V]``."""


def restrict(logits: Tensor, support: Tensor) -> Tensor:
    """``logits`` ``[N, V]``, ``-inf`` outside the tokens ``support`` ``[N, W]``; -1 fills up, and alone allows any."""
    size = logits.shape[-1]
    allowed = torch.zeros(len(logits), size + 1, dtype=torch.bool, device=logits.device)
    allowed.scatter_(-1, torch.where(support < 0, size, support), True)
    allowed |= (support < 0).all(-1, keepdim=True)
    return logits.masked_fill(~allowed[:, :size], float("-inf"))


def _piece(
    head: Head,
    hidden: Tensor,
    labels: Tensor,
    temperature: float,
    entropy_gradient: bool,
    support: Tensor | None,
    visit: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float() / temperature
    if support is not None:
        logits = restrict(logits, support)
    if visit is not None:
        visit(hidden, logits)
    log_z = logits.logsumexp(-1)
    logprobs = logits.gather(-1, labels[:, None]).squeeze(-1) - log_z
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        # a forbidden token's -inf would make 0 * -inf
        finite = logits.clamp(min=torch.finfo(torch.float32).min)
        entropy = log_z - (logits.softmax(-1) * finite).sum(-1)
    return logprobs, entropy


def token_logprobs(
    head: Head,
    hidden: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int = 4096,
    entropy_gradient: bool = False,
    support: Tensor | None = None,
    visit: Visit | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each label under ``softmax(head(hidden) / temperature)``, and the entropy there, in nats.

    The head is applied to ``chunk_tokens`` positions at a time; under autograd each chunk's logits are recomputed in
    the backward pass instead of kept, so the peak is ``chunk_tokens * V`` whatever the batch.

    Args:
        head: Maps ``[N, h]`` to logits ``[N, V]``.
        hidden: ``[N, h]`` hidden states.
        labels: ``[N]`` int64 token ids.
        temperature: Sampling temperature, > 0.
        chunk_tokens: Positions a chunk, > 0.
        entropy_gradient: Let gradients flow through the entropy (for an entropy bonus).
        support: ``[N, W]`` int64: only these tokens could be sampled and share the probability, see :func:`restrict`.
        visit: Is shown every chunk's logits, which nothing keeps; not under autograd, which would show them twice.

    Returns:
        ``logprobs`` and ``entropy``, both ``[N]`` float32.

    Raises:
        ValueError: If ``temperature`` or ``chunk_tokens`` is not positive, or ``visit`` is given under autograd.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive to score tokens, got {temperature}")
    if chunk_tokens <= 0:
        raise ValueError(f"chunk_tokens must be positive, got {chunk_tokens}")
    if visit is not None and torch.is_grad_enabled():
        raise ValueError("visit is for scoring: call token_logprobs under torch.no_grad()")
    recompute = torch.is_grad_enabled() and hidden.shape[0] > chunk_tokens
    logprobs, entropies = [], []
    # at least one chunk, so that an empty input still runs through the head: every rank then has every gradient
    for start in range(0, max(hidden.shape[0], 1), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        tokens = None if support is None else support[part]
        arguments = (head, hidden[part], labels[part], temperature, entropy_gradient, tokens)
        if recompute:
            logprob, entropy = checkpoint(_piece, *arguments, use_reentrant=False)
        else:
            logprob, entropy = _piece(*arguments, None if visit is None else partial(visit, part))
        logprobs.append(logprob)
        entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies)
