"""The hypernetwork that turns a task embedding into reward weights (DTERM eq. 3, 5, 7, 8, 9)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dterm.dterm.film import FiLM, FilmKind


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the applicable entries of each row (eq. 5).

    Args:
        logits: ``[B, n]``.
        mask: ``[B, n]`` bool, True where applicable.

    Returns:
        ``[B, n]``: 0 outside the mask; rows sum to 1, rows without an applicable entry are 0. Gradients stay finite.
    """
    lowest = torch.finfo(logits.dtype).min
    return torch.softmax(logits.masked_fill(~mask, lowest), -1) * mask


def floor_weights(alpha: Tensor, mask: Tensor, eps: float) -> Tensor:
    """``(1 - n_a eps) alpha + eps`` over the n_a applicable entries of each row: no weight falls below ``eps``.

    Args:
        alpha: ``[B, n]`` with rows that sum to 1 over the mask.
        mask: ``[B, n]`` bool.
        eps: Floor, below 1/n.
    """
    applicable = mask.sum(-1, keepdim=True)
    return ((1 - applicable * eps) * alpha + eps) * mask


def restrict(weights: Tensor, mask: Tensor) -> Tensor:
    """Weights ``[n]`` or ``[B, n]`` renormalised over the applicable entries ``mask [B, n]``; all-masked rows are 0."""
    inside = weights * mask
    return inside / inside.sum(-1, keepdim=True).clamp(min=torch.finfo(inside.dtype).tiny)


class PrototypeAttention(nn.Module):
    """Learned reward prototypes mixed by attention of the task embedding (eq. 8-9).

    ``a = softmax(P W e / sqrt(d_p))`` over the m rows of the prototypes P; the output is ``a P``.

    Args:
        embedding_dim: Width d of the task embedding.
        prototypes: Number m of prototypes.
        prototype_dim: Width d_p of a prototype.
    """

    def __init__(self, embedding_dim: int, prototypes: int, prototype_dim: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(prototypes, prototype_dim))
        self.query = nn.Linear(embedding_dim, prototype_dim, bias=False)

    def attention(self, embedding: Tensor) -> Tensor:
        """Attention ``[B, m]`` of embeddings ``[B, d]`` over the prototypes; rows sum to 1."""
        return torch.softmax(self.query(embedding) @ self.prototypes.T / math.sqrt(self.prototypes.shape[1]), -1)

    def forward(self, embedding: Tensor) -> Tensor:
        """The attended prototype ``[B, d_p]`` of embeddings ``[B, d]``."""
        return self.attention(embedding) @ self.prototypes


class Hypernetwork(nn.Module):
    """Task embedding to weights: attention over prototypes, a 3-layer MLP, a masked softmax and a floor.

    The embedding is first scaled to zero mean and unit variance over its entries (ours: encoders differ by orders of
    magnitude in scale), then the MLP reads ``[embedding; attended prototype]`` (eq. 3). Its last layer starts at zero
    and its output is added to the logits of the prior, so that the first output *is* the prior, floor included. FiLM
    (eq. 7), where wanted, reads the MLP's last hidden layer, as the weights do, and starts as the identity.

    Args:
        embedding_dim: Width d of the task embedding.
        prior: ``[n]`` weights alpha_0, positive, summing to 1.
        prototypes: Number m of prototypes.
        prototype_dim: Width of a prototype.
        hidden: Width of the MLP.
        eps: Floor of every applicable weight.
        film: How component scores are read, see :mod:`lightning_dterm.dterm.film`.

    Raises:
        ValueError: The floor leaves no freedom (n eps >= 1), or a prior weight is not above it.
    """

    prior: Tensor

    def __init__(
        self,
        embedding_dim: int,
        prior: Tensor,
        prototypes: int = 8,
        prototype_dim: int = 64,
        hidden: int = 256,
        eps: float = 0.02,
        film: FilmKind = "none",
    ) -> None:
        super().__init__()
        if eps < 0 or len(prior) * eps >= 1:
            raise ValueError(f"eps={eps} must be at least 0 and below 1/{len(prior)}, the number of components")
        if (prior <= eps).any() or not torch.isclose(prior.sum(), prior.new_ones(())):
            raise ValueError(f"prior weights must sum to 1 and each exceed the floor eps={eps}, got {prior.tolist()}")
        self.eps = eps
        self.register_buffer("prior", prior.float(), persistent=False)  # a setting, not state: what is given counts
        self.attention = PrototypeAttention(embedding_dim, prototypes, prototype_dim)
        self.mlp = nn.Sequential(
            nn.Linear(embedding_dim + prototype_dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            last := nn.Linear(hidden, len(prior)),
        )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.film = None if film == "none" else FiLM(hidden, len(prior), film)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}prior", None)  # of a time when it was saved
        super()._load_from_state_dict(state_dict, prefix, *args)

    def prior_weights(self, mask: Tensor) -> Tensor:
        """alpha_0 renormalised over the applicable components ``mask [B, n]``."""
        return restrict(self.prior.float(), mask)

    def prior_logits(self, mask: Tensor) -> Tensor:
        """``[B, n]`` logits whose masked softmax, once floored, is :meth:`prior_weights`."""
        applicable = mask.sum(-1, keepdim=True)
        unfloored = (self.prior_weights(mask) - self.eps) / (1 - applicable * self.eps)
        return torch.where(mask, unfloored.clamp(min=1e-12).log(), 0.0)

    @staticmethod
    def standardize(embedding: Tensor) -> Tensor:
        """Zero mean and unit variance over the entries of each embedding ``[B, d]``; a constant one becomes 0."""
        return nn.functional.layer_norm(embedding.float(), embedding.shape[-1:])

    def features(self, embedding: Tensor) -> Tensor:
        """The MLP's last hidden layer ``[B, hidden]`` for embeddings ``[B, d]``."""
        standard = self.standardize(embedding).to(self.attention.prototypes.dtype)
        hidden: Tensor = self.mlp[:-1](torch.cat([standard, self.attention(standard)], -1))
        return hidden

    def forward(self, embedding: Tensor, mask: Tensor) -> Tensor:
        """Weights ``[B, n]`` of embeddings ``[B, d]`` under ``mask [B, n]``; rows sum to 1, all-masked rows are 0."""
        shift = self.mlp[-1](self.features(embedding)).float()
        return floor_weights(masked_softmax(self.prior_logits(mask) + shift, mask), mask, self.eps)

    def modulate(self, scores: Tensor, embedding: Tensor) -> Tensor:
        """Scores ``[B, n]`` or ``[B, K, n]`` (NaN where masked) as the tasks ``[B, d]`` read them (eq. 7)."""
        return scores if self.film is None else self.film(scores, self.features(embedding))

    def attention_weights(self, embedding: Tensor) -> Tensor:
        """Attention ``[B, m]`` of embeddings ``[B, d]`` over the prototypes (eq. 8); rows sum to 1."""
        return self.attention.attention(self.standardize(embedding).to(self.attention.prototypes.dtype))
