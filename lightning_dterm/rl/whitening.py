"""Masked whitening and explained variance from sums, so that they are the same however the batch lies over ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


def _identity(x: Tensor) -> Tensor:
    return x


def masked_moments(x: Tensor, mask: Tensor, reduce: Reduce = _identity) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count of ``x`` inside ``mask`` over all ranks, in float64.

    Two passes (mean first, then squared distances): one pass of sums of squares loses digits.

    Args:
        x: Any shape.
        mask: Same shape.
        reduce: Sums a tensor over ranks; the identity for one process.
    """
    inside = mask.bool()
    picked = x.double()[inside]
    first = reduce(torch.stack([picked.sum(), inside.sum().double()]))
    count = first[1].clamp(min=1)
    mean = first[0] / count
    variance = reduce((picked - mean).square().sum()) / count
    return mean, variance, first[1]


def whiten(x: Tensor, mask: Tensor, reduce: Reduce = _identity, eps: float = 1e-8) -> Tensor:
    """Shift and scale ``x`` to mean 0 and variance 1 over the mask of all ranks; 0 outside. Same shape and dtype."""
    mean, variance, _ = masked_moments(x, mask, reduce)
    whitened = (x.double() - mean) * torch.rsqrt(variance + eps)
    return torch.where(mask.bool(), whitened, torch.zeros_like(whitened)).to(x.dtype)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce = _identity) -> float:
    """``1 - Var[G - V] / Var[G]`` over all ranks: 1 is perfect, 0 no better than the mean; NaN if Var[G] = 0."""
    _, residual, _ = masked_moments(returns - values, mask, reduce)
    _, total, _ = masked_moments(returns, mask, reduce)
    return float(1 - residual / total) if float(total) > 0 else float("nan")
