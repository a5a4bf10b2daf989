"""GradNorm for rewards: components pull equally hard on the policy, the slower ones harder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_dterm.dterm.hypernetwork import restrict
from lightning_dterm.dterm.normalize import group_means
from lightning_dterm.dterm.weighting import Weighting


def component_gradient_norms(rewards: Tensor, group: Tensor, sensitivity: Tensor) -> Tensor:
    """Norm of each component's own policy gradient at the policy's output.

    Component i alone has the REINFORCE loss ``L_i = -1/B sum_b A_bi log pi(y_b)`` with ``A_bi = R_bi - mean of R_i over
    the prompt's samples``. Its gradient in the logit of the token chosen at position t of sample b is
    ``-A_bi (1 - pi(a_bt)) / B``, so the norm over all of them is ``sqrt(sum_b A_bi^2 s_b) / B`` with
    ``s_b = sum_t (1 - pi(a_bt))^2``: exact, from what a rollout holds anyway, without a forward or backward pass. The
    norm in *all* logits of these positions is 1 to sqrt(2) times as large (those of the other tokens add
    ``sum_v pi_v^2 <= (1 - pi(a))^2``). Chen et al. take the gradient in the last shared layer's weights; the output is
    the one place where it costs nothing, and unlike there gradients of different tokens do not cancel.

    Args:
        rewards: ``[B, n]``, NaN where masked.
        group: ``[B]`` int64 index of the prompt.
        sensitivity: ``[B]`` the s_b.

    Returns:
        ``[n]`` float64; NaN for a component without two known samples in any group, 0 for one that does not vary.
    """
    rewards = rewards.double()
    known = ~rewards.isnan()
    siblings = torch.zeros(int(group.max()) + 1, rewards.shape[1], device=rewards.device, dtype=torch.float64)
    paired = known & (siblings.index_add(0, group, known.double())[group] >= 2)
    advantage = torch.where(paired, rewards - group_means(rewards, group), 0.0)
    norm = (advantage.square() * sensitivity.double()[:, None]).sum(0).sqrt() / len(rewards)
    return norm.masked_fill(~paired.any(0), torch.nan)


def gradnorm_step(weights: Tensor, norms: Tensor, rates: Tensor, asymmetry: float, lr: float, floor: float) -> Tensor:
    """One step of GradNorm on the weights (Chen et al. 2018, algorithm 1).

    With ``G_i = w_i g_i``, their mean G and the relative inverse training rates ``r_i = rate_i / mean rate``, the loss
    ``sum_i |G_i - G r_i^asymmetry|`` (the target a constant) has the derivative ``sign(G_i - target_i) g_i`` in w_i.
    The step goes down it, with g in units of its mean so that ``lr`` does not depend on the scale of rewards; then
    weights are kept at ``floor`` or above and renormalised to sum n.

    Args:
        weights: ``[n]`` w, sum n.
        norms: ``[n]`` g, gradient norms of the unweighted components; NaN where not known.
        rates: ``[n]`` L_i(t) / L_i(0), positive; the lower, the further a component has come.
        asymmetry: The exponent, at least 0.
        lr: Step size.
        floor: Least weight, positive.

    Returns:
        ``[n]``; a component with unknown norm keeps its weight but for the renormalisation.
    """
    known = ~norms.isnan()
    if known.sum() < 2 or norms[known].sum() == 0:
        return weights
    pull = weights[known] * norms[known]
    rate = rates[known] / rates[known].mean()
    target = pull.mean() * rate.pow(asymmetry)
    moved = weights.clone()
    moved[known] -= lr * torch.sign(pull - target) * norms[known] / norms[known].mean()
    moved = moved.clamp(min=floor)
    return moved * len(moved) / moved.sum()


class GradNormWeighting(Weighting):
    """GradNorm (Chen et al. 2018) with reward components in the place of tasks; one set of weights for all task types.

    After every rollout: the gradient norms of :func:`component_gradient_norms`, over the samples of all processes;
    the training rates, a component's loss being its shortfall from a perfect score: ``L_i(t) = max(1 - mean raw
    score, 0.02)`` over the rollout, ``L_i(0)`` that of the first rollout which knew the component; then
    :func:`gradnorm_step`. A rollout is weighted with the weights from before it. Needs at least 2 samples a prompt.
    Micro-batches play no role.

    Args:
        asymmetry: How strongly slower components are helped; 0 only equalises the norms (the paper: 0.12 to 1.5).
        lr: Step size of the weights, which sum to n (the paper: 0.025).
        floor: Least weight, where they sum to n.
        normalize: See :class:`Weighting`; gradient norms are then those of the z-scores.
    """

    least_samples = 2
    raw_weights: Tensor
    first_loss: Tensor

    def __init__(self, asymmetry: float = 1.5, lr: float = 0.025, floor: float = 0.01, normalize: bool = False) -> None:
        super().__init__(normalize)
        if asymmetry < 0 or not 0 < lr < 1 or not 0 < floor < 1:
            raise ValueError(
                f"asymmetry must be at least 0, lr and floor between 0 and 1; got {asymmetry}, {lr} and {floor}"
            )
        self.asymmetry, self.lr, self.floor = asymmetry, lr, floor
        self._metrics: dict[str, float] = {}

    def build(self, component_names: tuple[str, ...], embedding_dim: int) -> None:
        """Equal weights."""
        self.register_buffer("raw_weights", torch.ones(len(component_names), dtype=torch.float64))
        self.register_buffer("first_loss", torch.full((len(component_names),), torch.nan, dtype=torch.float64))

    def forward(self, embedding: Tensor | None, mask: Tensor, task_types: Sequence[str]) -> Tensor:
        """``[B, n]``: the present weights over the applicable components."""
        return restrict(self.raw_weights.float(), mask)

    @torch.no_grad()
    def observe(
        self,
        scores: Tensor,
        mask: Tensor,
        embedding: Tensor,
        outcome: Tensor,
        group: Tensor,
        task_types: Sequence[str],
        sensitivity: Tensor | None = None,
        gradients: Tensor | None = None,
    ) -> None:
        """Take one step.

        Raises:
            ValueError: Without ``sensitivity``.
        """
        super().observe(scores, mask, embedding, outcome, group, task_types, sensitivity, gradients)
        if sensitivity is None:
            raise ValueError("GradNormWeighting needs the sensitivity of the policy's log-probabilities")
        known = scores.masked_fill(~mask, torch.nan)
        values, _ = self.rewards(known, embedding, group, task_types)
        norms = component_gradient_norms(values, group, sensitivity)
        loss = (1 - known.double().nanmean(0)).clamp(min=0.02)
        self.first_loss = torch.where(self.first_loss.isnan(), loss, self.first_loss)
        rates = loss / self.first_loss
        self.raw_weights = gradnorm_step(
            self.raw_weights, norms, rates.nan_to_num(1.0), self.asymmetry, self.lr, self.floor
        )
        self._metrics = {
            f"gradnorm/{what}/{name}": value
            for what, column in (("norm", norms), ("rate", rates))
            for name, value in zip(self.component_names, column.tolist(), strict=True)
        }

    def metrics(self) -> dict[str, float]:
        """Gradient norm and training rate of each component, in the last rollout."""
        return dict(self._metrics)
