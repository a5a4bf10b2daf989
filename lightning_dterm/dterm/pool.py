"""A fixed pool of answered validation tasks, on which weights are judged over a whole run.

The rank loss that the meta-step minimises is over groups that change from rollout to rollout, as does the policy that
made them: its course says little. Here tasks, answers, scores and success stay what they were, and only the weighting
moves. Nothing is ever trained on the pool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_dterm.dterm import ranking
from lightning_dterm.dterm.encoder import TaskEncoder
from lightning_dterm.dterm.objective import Groups, concatenate
from lightning_dterm.dterm.weighting import HypernetworkWeighting, Weighting

BETA = 2.0  #: inverse temperature of the pool's loss: fixed, so that learning beta does not look like better weights


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """How a weighting does on a pool; by task type, in the pool's order.

    Attributes:
        rank_loss: Mean over pairs, weighted by the difference in success; log 2 = 0.693 for weights that tell nothing.
            NaN where no group's success varies.
        pair_accuracy: Share of pairs ordered as success orders them, likewise.
        weights: ``[n]`` mean weights over the type's tasks.
        attention: ``[m]`` mean attention over prototypes (eq. 8); empty without a hypernetwork.
    """

    rank_loss: dict[str, float]
    pair_accuracy: dict[str, float]
    weights: dict[str, Tensor]
    attention: dict[str, Tensor]


@torch.no_grad()
def judge_weights(
    pool: dict[str, Groups], weighting: Weighting, encoder: TaskEncoder, device: torch.device
) -> PoolFigures:
    """The pool's figures under the present weighting.

    Scores pass FiLM (eq. 7) and are normalised as the meta-objective does it (DESIGN section 5), but by the pool's own
    spread, so that only the weighting can move the figures.

    Args:
        pool: Task type to groups; ``embedding`` holds the encoder's features.
        weighting: Configured for the pool's components.
        encoder: Embeds the features.
        device: Where the weighting lies.
    """
    figures = PoolFigures({}, {}, {}, {})
    if not pool:
        return figures
    names = list(pool)
    groups = Groups(*(column.to(device) for column in concatenate(list(pool.values()))))
    sizes = [len(lot.outcome) for lot in pool.values()]
    types = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
    embedding = encoder(groups.embedding).to(device)
    alpha = weighting(embedding, groups.mask, types)
    scores = weighting.modulate(groups.scores, embedding)
    attention = None
    if isinstance(weighting, HypernetworkWeighting) and weighting.hypernetwork is not None:
        attention = weighting.hypernetwork.attention_weights(embedding).float().cpu()
    start = 0
    for name, size in zip(names, sizes, strict=True):
        rows = slice(start, start := start + size)
        sigma = ranking.within_group_rms(groups.scores[rows])
        z, outcome = ranking.normalize_scores(scores[rows], sigma), groups.outcome[rows]
        loss, accuracy = _judge(alpha[rows], z, outcome)
        figures.rank_loss[name], figures.pair_accuracy[name] = loss, accuracy
        figures.weights[name] = alpha[rows].mean(0).float().cpu()
        if attention is not None:
            figures.attention[name] = attention[rows].mean(0)
    return figures


def _judge(alpha: Tensor, z: Tensor, outcome: Tensor) -> tuple[float, float]:
    """Rank loss and pairwise accuracy of one family's groups, NaN where no success varies."""
    if not (ranking.pair_weights(outcome) > 0).any():
        return math.nan, math.nan
    family = torch.zeros(len(outcome), dtype=torch.long, device=outcome.device)
    beta = alpha.new_tensor(BETA)
    loss = ranking.ranking_losses(alpha, z, outcome, family, 1, beta, min_pairs=1e-12)
    return float(loss), float(ranking.pairwise_accuracy(alpha, z, outcome))


def mean_known(values: dict[str, float]) -> float:
    """Mean over the task types whose value is known; NaN without any."""
    known = [value for value in values.values() if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
