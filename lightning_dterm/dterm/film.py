"""FiLM on component scores (DTERM eq. 7): the task decides how a component's score is read.

Two readings, each a pure function, and the head that generates their parameters from the task.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

FilmKind = Literal["none", "monotone", "unconstrained"]
MAX_LOG_GAIN = math.log(4.0)
MAX_SHIFT = 3.0


def monotone_film(scores: Tensor, log_gain: Tensor, shift: Tensor) -> Tensor:
    """Eq. 7 on the logit of a score: ``f(r) = sigmoid(gamma logit(r) + beta)`` with ``gamma = exp(log_gain) > 0``.

    Computed as ``e^beta r^gamma / (e^beta r^gamma + (1 - r)^gamma)``. It keeps 0 and 1, stays in [0, 1], never falls as
    r rises (up to rounding), and is exactly r at ``log_gain = shift = 0``. Ours: the paper's affine map of the score
    itself can be undone by the weights and leaves [0, 1].

    Args:
        scores: ``[..., n]`` in [0, 1].
        log_gain: Broadcastable to ``scores``; above 0 pushes scores apart around the middle.
        shift: Broadcastable to ``scores``; above 0 is lenient, below 0 strict.

    Returns:
        ``[..., n]`` in [0, 1].
    """
    gain = log_gain.exp()
    high = shift.exp() * scores.pow(gain)
    return high / (high + (1 - scores).pow(gain))


def affine_film(scores: Tensor, gain_offset: Tensor, shift: Tensor) -> Tensor:
    """Eq. 7 as published, on the score: ``f(r) = (1 + gain_offset) r + beta`` (FiLM, Perez et al. 2018).

    Nothing keeps the gain positive or the result in [0, 1]: a reward may turn into its opposite. Shapes as in
    :func:`monotone_film`; exactly r at ``gain_offset = shift = 0``.
    """
    return (1 + gain_offset) * scores + shift


class FiLM(nn.Module):
    """Generates eq. 7's parameters from task features and applies them to scores; the identity at the start.

    A linear layer, zero at the start, gives a gain and a shift per component. ``monotone`` bounds them softly (gain in
    [1/4, 4], shift in [-3, 3], by tanh), so that no component can be flattened or turned into a step.

    Args:
        features: Width h of the task features.
        components: Number n of components.
        kind: ``monotone`` (:func:`monotone_film`) or ``unconstrained`` (:func:`affine_film`).
    """

    def __init__(self, features: int, components: int, kind: Literal["monotone", "unconstrained"]) -> None:
        super().__init__()
        self.kind = kind
        self.head = nn.Linear(features, 2 * components)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def parameters_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Gain (its logarithm, or its offset from 1) and shift, each ``[B, n]`` float32, of features ``[B, h]``."""
        gain, shift = self.head(features).float().chunk(2, -1)
        if self.kind == "monotone":
            return MAX_LOG_GAIN * torch.tanh(gain / MAX_LOG_GAIN), MAX_SHIFT * torch.tanh(shift / MAX_SHIFT)
        return gain, shift

    def forward(self, scores: Tensor, features: Tensor) -> Tensor:
        """Modulated scores.

        Args:
            scores: ``[B, n]`` or ``[B, K, n]`` in [0, 1], NaN where masked.
            features: ``[B, h]``, one row for all K.

        Returns:
            Of the shape of ``scores``; NaN stays NaN. Gradients are finite.
        """
        gain, shift = self.parameters_of(features)
        if scores.dim() == 3:
            gain, shift = gain[:, None], shift[:, None]
        masked = scores.isnan()
        apply = monotone_film if self.kind == "monotone" else affine_film
        return apply(scores.float().masked_fill(masked, 0.5), gain, shift).masked_fill(masked, math.nan)

    def distance(self, features: Tensor) -> Tensor:
        """How far from the identity, ``[B]``: mean over components of ``gain^2 + shift^2`` of :meth:`parameters_of`."""
        gain, shift = self.parameters_of(features)
        return (gain.square() + shift.square()).mean(-1)
