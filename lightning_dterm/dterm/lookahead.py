"""One-step look-ahead: weights are judged by the success of the policy that one step under them would make.

Pure functions; notation as in :mod:`lightning_dterm.dterm.alignment`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_dterm.dterm.alignment import family_share, halves_per_family
from lightning_dterm.dterm.hypernetwork import masked_softmax

_TINY = 1e-12


def stepped_success(log_ratio: Tensor, outcome: Tensor, held: Tensor) -> Tensor:
    """What a step of the policy gains in success on held-out samples of the policy before it.

    Self-normalised importance sampling within a prompt's held samples:
    ``sum_l rho_l S_l / sum_l rho_l - mean S`` with ``rho_l = pi'(y_l) / pi(y_l) = exp(log_ratio_l)``.

    Args:
        log_ratio: ``[Q, G, K]``; a constant within a group changes nothing.
        outcome: ``[G, K]`` without NaN.
        held: ``[Q, G, K]`` bool.

    Returns:
        ``[Q, G]``; 0 where fewer than 2 samples are held.
    """
    share = held / held.sum(-1, keepdim=True).clamp(min=1)
    return ((masked_softmax(log_ratio, held) - share) * outcome).sum(-1)


def lookahead_losses(
    alpha: Tensor,
    z: Tensor,
    outcome: Tensor,
    gradients: Tensor,
    family: Tensor,
    families: int,
    step: float = 0.5,
    min_groups: float = 8.0,
) -> Tensor:
    """Minus the success gained by a virtual policy step under the weights, for each task family.

    The step changes the last layer by ``Delta = eta g_R``, g_R the reward's policy gradient from the samples ``A_q``
    (:func:`lightning_dterm.dterm.alignment.alignment_losses`), and is judged on the others, ``B_q``:

        log rho_l = <Delta, f_l>                       first order in Delta, for l in B_q
        loss_f = - mean over q of [ sum_g (sum_l rho_l S_l / sum_l rho_l - mean S) ] / step / max(G_f, min_groups)

    eta is what gives the log-ratios, centred within their group, the root mean square ``step`` over the family's held
    samples: a step of KL about ``step^2 / 2``, as whitened advantages and clipped ratios make PPO's steps independent
    of the reward's scale. It depends on the weights and is differentiated with them.

    Where this differs from alignment: (1) S is taken under the *stepped* policy. The self-normalised ratios keep all
    orders of the tilt, log-partition (curvature) included: a prompt whose better samples have gained the mass already
    has nothing left to give, and a step too bold for its own direction loses where the direction's slope was right.
    Only as ``step`` goes to 0 does the gain become linear, ``step * sum_g |B_q| Cov(<g_R, f>, S) / rms``; (2) even then
    the step is measured by how far it moves the policy on the held samples (their empirical Fisher norm), not by its
    length in weight space; (3) it is success in units of S, so a family counts by what there is to gain; a cosine
    counts all alike. What it does not know: second-order change of the single log-probabilities, deeper layers.

    Source: Zheng, Oh and Singh 2018, "On learning intrinsic rewards for policy gradient methods" (LIRPG,
    arXiv:1804.06459), restricted to the last layer and cross-fitted.

    Args:
        alpha: ``[G, n]`` weights of each group.
        z: ``[G, K, n]`` normalised scores.
        outcome: ``[G, K]`` success in [0, 1], NaN where unknown.
        gradients: ``[G, K, D]`` last-layer score functions, NaN where there is no sample.
        family: ``[G]`` int64 index of each group's family.
        families: Number of families F.
        step: Root mean square of the log-ratios, positive.
        min_groups: Below this number of groups a family counts for less than a full one.

    Returns:
        ``[F]``, success lost per nat of log-ratio.
    """
    gains = []
    for cut in halves_per_family(alpha, z, outcome, gradients, family, families):
        slope = torch.einsum("qd,gkd->qgk", cut.direction(cut.reward), cut.gradients)
        counted = cut.held & (cut.held.sum(-1, keepdim=True) >= 2)
        center = (slope * counted).sum(-1, keepdim=True) / counted.sum(-1, keepdim=True).clamp(min=1)
        slope = torch.where(counted, slope - center, 0.0)
        spread = slope.square().sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)
        log_ratio = step * slope / (spread + _TINY).sqrt()[:, None, None]
        gain = stepped_success(log_ratio, cut.outcome, counted).sum(1).mean()
        gains.append(gain / max(slope.shape[1], 1))
    return -torch.stack(gains) / step * family_share(outcome, family, families, min_groups)
