"""Gradient alignment: the reward's policy gradient must point where the success's does, on other samples.

Pure functions. Notation: G groups (prompts) of K samples, Q ways of cutting a group in two, D width of a gradient
(:mod:`lightning_dterm.dterm.sketch`), F task families; NaN marks what is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dterm.dterm.ranking import informative, sum_per_family

_TINY = 1e-12


def first_halves(size: int) -> Tensor:
    """The Q ways of cutting a group in two that are used, ``[Q, K]`` bool: True in the half that gives the reward.

    Position k lies in it where the parity of ``k AND m`` is odd, m from 1 (Walsh functions: for K a power of 2 all
    halves are equal and any two samples are parted in K/2 of the K - 1 cuts); then once more with the halves
    exchanged, so that each is held out once. K = 4: all 3 cuts there are; K = 8: 7 of 35.
    """
    bits = max(1, (size - 1).bit_length())
    odd = [[(k & m).bit_count() % 2 == 1 for k in range(size)] for m in range(1, 2**bits)]
    cut = torch.tensor(odd)
    return torch.cat([cut, ~cut])


def half_contributions(values: Tensor, inside: Tensor) -> Tensor:
    """What multiplies each sample's score function in a half's policy gradient: ``(v_j - half's mean) / (m - 1)``.

    Args:
        values: ``[G, K]`` without NaN.
        inside: ``[Q, G, K]`` bool, the half's samples, m of each group.

    Returns:
        ``[Q, G, K]``, 0 outside and in halves of fewer than 2. With score functions f the sum over j of these times
        f_j is an unbiased estimate of ``Cov(v, f)``, the gradient of ``E[v]``.
    """
    count = inside.sum(-1, keepdim=True)
    center = (values * inside).sum(-1, keepdim=True) / count.clamp(min=1)
    return torch.where(inside & (count >= 2), values - center, 0.0) / (count - 1).clamp(min=1)


class Halves(NamedTuple):
    """One family's groups cut in two in Q ways; shapes after choosing its G groups."""

    reward: Tensor  #: ``[Q, G, K]`` contributions of the composite reward, in one half
    success: Tensor  #: ``[Q, G, K]`` contributions of S, in the other
    held: Tensor  #: ``[Q, G, K]`` bool, the other half: samples with known S
    gradients: Tensor  #: ``[G, K, D]`` sketched score functions of root mean square norm 1, 0 where padded
    outcome: Tensor  #: ``[G, K]`` S, 0 where unknown

    def direction(self, contributions: Tensor) -> Tensor:
        """``[Q, D]`` policy gradient, the sum over all samples of all groups."""
        return contributions.flatten(1) @ self.gradients.flatten(0, 1)


def halves_per_family(
    alpha: Tensor, z: Tensor, outcome: Tensor, gradients: Tensor, family: Tensor, families: int
) -> Iterator[Halves]:
    """Cut each family's groups in two; arguments as in :func:`alignment_losses`."""
    composite = torch.einsum("gn,gkn->gk", alpha, z)
    present = ~gradients.isnan().any(-1)
    known = present & ~outcome.isnan()
    first = first_halves(z.shape[1]).to(z.device)[:, None]
    size = gradients.nan_to_num(0.0).square().sum(-1)
    for index in range(families):
        of = family == index
        scale = (size[of].sum() / present[of].sum().clamp(min=1)).sqrt().clamp(min=_TINY)
        success = outcome[of].nan_to_num(0.0)
        held = known[of] & ~first
        yield Halves(
            half_contributions(composite[of], present[of] & first),
            half_contributions(success, held),
            held,
            gradients[of].nan_to_num(0.0) / scale,
            success,
        )


def alignment_losses(
    alpha: Tensor,
    z: Tensor,
    outcome: Tensor,
    gradients: Tensor,
    family: Tensor,
    families: int,
    min_groups: float = 8.0,
) -> Tensor:
    """One minus the cosine of the reward's and the success's policy gradients, for each task family.

    A cut q parts the samples of every group in two, ``A_q`` and ``B_q``. With ``R_j = sum_i alpha_i z_ij``,

        g_R = sum_g sum_{j in A_q} (R_j - mean over A_q of g) / (|A_q| - 1)  f_j
        g_S = sum_g sum_{l in B_q} (S_l - mean over B_q of g) / (|B_q| - 1)  f_l
        loss_f = rho_f [1 - mean over q of cos(g_R, g_S)] G_f / max(G_f, min_groups)
        rho_f  = max(0, mean over q of cos(g_S of A_q, g_S of B_q))

    over the cuts with g_S not 0; G_f counts the groups with a varying S. rho is how well the success gradients of the
    two halves confirm each other: a cosine gives a direction that is nothing but noise unit length, and without rho
    weights would follow it. It does not depend on the weights. As A and B share no sample, what R and S of
    *one* sample have in common adds nothing by itself (cross-fitting): the expectation of ``<g_R, g_S>`` is the inner
    product of the family's true gradients, and 0 for a reward that agrees with S by luck of the draw, or through
    something that the policy cannot act on. Noise in either gradient shrinks the cosine; it is not rewarded.

    Sources: gradient cosine as the worth of an auxiliary loss, Du et al. 2018 (arXiv:1812.02224); disjoint samples for
    the two factors, Chernozhukov et al. 2018 (arXiv:1608.00060).

    Args:
        alpha: ``[G, n]`` weights of each group.
        z: ``[G, K, n]`` normalised scores.
        outcome: ``[G, K]`` success in [0, 1], NaN where unknown.
        gradients: ``[G, K, D]`` last-layer score functions, NaN where there is no sample.
        family: ``[G]`` int64 index of each group's family.
        families: Number of families F.
        min_groups: Below this number of groups a family counts for less than a full one.

    Returns:
        ``[F]``, each in [0, 2]; 0 for a family without anything to align with.
    """
    losses = []
    for cut in halves_per_family(alpha, z, outcome, gradients, family, families):
        reward, success = cut.direction(cut.reward), cut.direction(cut.success)
        usable = success.square().sum(-1) > _TINY
        other = success.roll(len(success) // 2, 0)  # S in the halves that give the reward
        agreement = mean_cosine(other, success, usable)
        losses.append(agreement.clamp(min=0) * (1 - mean_cosine(reward, success, usable)))
    return torch.stack(losses) * family_share(outcome, family, families, min_groups)


def mean_cosine(one: Tensor, two: Tensor, usable: Tensor) -> Tensor:
    """Mean over the ``usable [Q]`` rows of the cosine of ``one`` and ``two [Q, D]``; a scalar, 0 without such rows."""
    norm = ((one.square().sum(-1) + _TINY) * (two.square().sum(-1) + _TINY)).sqrt()
    return torch.where(usable, (one * two).sum(-1) / norm, 0.0).sum() / usable.sum().clamp(min=1)


def family_share(outcome: Tensor, family: Tensor, families: int, min_groups: float) -> Tensor:
    """``[F]`` how much each family counts: ``G_f / max(G_f, min_groups)``, G_f its groups with a varying outcome."""
    groups = sum_per_family(informative(outcome).float(), family, families)
    return groups / groups.clamp(min=min_groups)
