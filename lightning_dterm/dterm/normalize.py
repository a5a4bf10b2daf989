"""Normalised components: z-scores within the prompt's samples, scaled per task type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dterm.dterm import ranking
from lightning_dterm.dterm.objective import Groups


class ScoreNormalizer(nn.Module):
    """``z_i = (r_i - group mean_i) / (sigma_{f,i} + 0.02)`` (DESIGN section 5).

    The mean is over the known samples of the same prompt; sigma is an EMA, per task type f and component i, of the
    within-group RMS of *raw* scores (:func:`lightning_dterm.dterm.ranking.within_group_rms`). A sample whose siblings
    all lack the component gets 0: there is nothing to compare it with. So does a component before any group of the
    type knew it for two samples.

    Args:
        ema: Decay of sigma, in [0, 1).
        sigma_floor: The 0.02 above, positive.
    """

    def __init__(self, ema: float = 0.9, sigma_floor: float = 0.02) -> None:
        super().__init__()
        if not 0 <= ema < 1 or sigma_floor <= 0:
            raise ValueError(f"ema must lie in [0, 1) and sigma_floor be positive, got {ema} and {sigma_floor}")
        self.ema, self.sigma_floor = ema, sigma_floor
        self._sigma: dict[str, Tensor] = {}

    def observe(self, groups: dict[str, Groups]) -> None:
        """Update sigma with the groups of one rollout, by task type; under several processes of all of them."""
        for task_type, lot in groups.items():
            ranking.track_rms(self._sigma, task_type, lot.scores, self.ema)

    def scale(self, task_types: Sequence[str], components: int) -> Tensor:
        """``[B, n]`` sigma + 0.02 on the CPU, infinite where sigma is not known."""
        unknown = torch.full((components,), math.nan)
        rows = [self._sigma.get(task_type, unknown) for task_type in task_types]
        return (torch.stack(rows) + self.sigma_floor).nan_to_num(math.inf) if rows else torch.zeros(0, components)

    def forward(
        self, values: Tensor, ceilings: Tensor, group: Tensor | None, task_types: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Normalised values and ceilings.

        Args:
            values: ``[B, n]`` scores, NaN where masked.
            ceilings: ``[B, n]`` the value of a perfect score.
            group: ``[B]`` int64 index of the prompt; None where samples stand alone: scaled, not centred.
            task_types: B task types.
        """
        scale = self.scale(task_types, values.shape[1]).to(values.device)
        center = torch.zeros_like(values) if group is None else group_means(values, group)
        return (values - center) / scale, (ceilings - center) / scale

    def get_extra_state(self) -> dict[str, Any]:
        """Sigma as plain tensors, safe to load with ``weights_only``."""
        return {"sigma": {name: sigma.clone() for name, sigma in self._sigma.items()}}

    def set_extra_state(self, state: Any) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        if isinstance(state, dict):  # torch's distributed loader hands over a placeholder
            self._sigma = {name: sigma.cpu().clone() for name, sigma in state["sigma"].items()}


def group_means(values: Tensor, group: Tensor) -> Tensor:
    """``[B, n]`` mean of ``values [B, n]`` over the known samples of each sample's ``group [B]``; NaN without any."""
    known = ~values.isnan()
    group = group.to(values.device)
    zeros = values.new_zeros(int(group.max()) + 1 if group.numel() else 0, values.shape[1])
    sums = zeros.index_add(0, group, values.nan_to_num(0.0))
    counts = zeros.index_add(0, group, known.to(values.dtype))
    return (sums / counts)[group]
