"""Meta-objectives: what the hypernetwork is trained to do.

The DTERM paper leaves this open. Maximising the reward over its own weights is degenerate (they run to the easiest
component), so the objective compares the composite reward with something the weights cannot move: the task's success.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lightning_dterm.dterm import ranking
from lightning_dterm.dterm.hypernetwork import Hypernetwork
from lightning_dterm.dterm.sketch import GradientSketch

Encode = Callable[[Tensor], Tensor]
"""Embeddings ``[B, d]`` of a task encoder's features ``[B, w]``, differentiable in the encoder that trains."""


class Groups(NamedTuple):
    """G groups of up to K samples of one prompt, padded with NaN."""

    embedding: Tensor  #: ``[G, d]`` task embedding of the prompt, or ``[G, w]`` features of an encoder that trains
    mask: Tensor  #: ``[G, n]`` bool, components known for any of its samples
    scores: Tensor  #: ``[G, K, n]`` raw scores, NaN where masked
    outcome: Tensor  #: ``[G, K]`` success, NaN where unknown
    gradients: Tensor  #: ``[G, K, D]`` sketched score functions of responses, D = 0 where no objective asks for them

    def last(self, count: int) -> Groups:
        """The last ``count`` groups."""
        return Groups(*(column[-count:] for column in self))

    def select(self, rows: Tensor) -> Groups:
        """The groups of a bool mask ``[G]``."""
        return Groups(*(column[rows] for column in self))


def concatenate(parts: Sequence[Groups]) -> Groups:
    """Groups of several lots, the shorter ones padded to the largest K."""
    size = max(part.scores.shape[1] for part in parts)
    scores, gradients = (
        torch.cat([pad(part[column], (0, 0, 0, size - part[column].shape[1]), value=math.nan) for part in parts])
        for column in (2, 4)
    )
    outcome = [pad(part.outcome, (0, size - part.outcome.shape[1]), value=math.nan) for part in parts]
    embedding, mask = (torch.cat([part[column] for part in parts]) for column in range(2))
    return Groups(embedding, mask, scores, torch.cat(outcome), gradients)


def embed(parts: Sequence[Groups], encode: Encode | None) -> list[Groups]:
    """Lots of groups with their features embedded by the encoder as it is now, all in one pass.

    Memories of earlier rollouts would otherwise hold what an encoder that has moved since made of their tasks, and no
    gradient would reach it. Without ``encode`` they hold embeddings already.
    """
    if encode is None:
        return list(parts)
    embeddings = encode(torch.cat([part.embedding for part in parts])).to(parts[0].embedding.device)
    lots = embeddings.split([len(part.embedding) for part in parts])
    return [part._replace(embedding=lot) for part, lot in zip(parts, lots, strict=True)]


def split_groups(
    scores: Tensor,
    mask: Tensor,
    embedding: Tensor,
    outcome: Tensor,
    group: Tensor,
    task_types: Sequence[str],
    gradients: Tensor | None = None,
) -> dict[str, Groups]:
    """Sort the samples of a rollout into groups per task type, in order of appearance, float32 on the CPU.

    Args:
        scores: ``[B, n]``, NaN where masked.
        mask: ``[B, n]`` bool, applicable and known.
        embedding: ``[B, d]``.
        outcome: ``[B]``, NaN where unknown.
        group: ``[B]`` index of the prompt.
        task_types: B task types; one prompt has one type.
        gradients: ``[B, D]`` sketched score functions of the responses; None: none are kept.
    """
    kept = scores.new_zeros(len(scores), 0) if gradients is None else gradients
    kept = kept.detach().cpu().float()
    scores = scores.detach().cpu().float().masked_fill(~mask.cpu(), math.nan)
    embedding, outcome = embedding.detach().cpu().float(), outcome.detach().cpu().float()
    rows_of: dict[int, list[int]] = {}
    for row, key in enumerate(group.tolist()):
        rows_of.setdefault(key, []).append(row)
    lots: dict[str, list[Groups]] = {}
    for rows in rows_of.values():
        known = ~scores[rows].isnan()
        known_here, own = known.any(0)[None], (scores[rows][None], outcome[rows][None], kept[rows][None])
        item = Groups(embedding[rows[:1]], known_here, *own)
        lots.setdefault(task_types[rows[0]], []).append(item)
    return {task_type: concatenate(parts) for task_type, parts in lots.items()}


class MetaObjective(nn.Module):
    """What a hypernetwork minimises. State beyond parameters goes into the extra state, so that resume is exact.

    Attributes:
        least_samples: Samples of a prompt without which it learns nothing.
        sketch: How the gradients that it observes are compressed; None where it needs none.
    """

    least_samples: int = 1
    sketch: GradientSketch | None = None

    def configure(self, component_names: Sequence[str]) -> None:
        """Learn which components there are, before parameters are handed to an optimizer."""
        raise NotImplementedError

    def observe(self, groups: dict[str, Groups]) -> None:
        """Take in the groups of one rollout, by task type."""
        raise NotImplementedError

    def loss(self, hypernetwork: Hypernetwork, encode: Encode | None = None) -> Tensor | None:
        """The loss to minimise in ``hypernetwork`` and own parameters, or None where there is nothing to learn from.

        ``encode`` is given where the task encoder trains: observed groups then hold features, see :func:`embed`.
        """
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """Scalars of the last :meth:`loss`."""
        return {}


class GroupObjective(MetaObjective):
    """Compares composite reward and success within a prompt's samples, over the last informative groups of each family.

    Minimises, over the task families f (task types) with a known outcome,

        sum_f  family_losses_f + kl_weight * [ KL(alpha(e_f) || alpha_0) + FiLM's distance from the identity ]

    over the last ``fifo`` *informative* groups of each family, those in which S varies. Scores pass FiLM (eq. 7) where
    the hypernetwork has one, and are normalised with the family's current sigma, an EMA of the raw scores' within-group
    RMS. A group's weights are those of the components known for any of its samples; a score that is masked for one
    sample counts as the group's mean. KL and distance are means over the last ``fifo`` groups of the family,
    informative or not: a family that teaches nothing is held at the start instead of drifting with the others.
    Families whose outcome is never known enter nowhere.

    Args:
        kl_weight: lambda, the pull to the prior and to FiLM's identity.
        fifo: Groups remembered per task type.
        ema: Decay of the within-group RMS.
        sigma_floor: Added to the RMS when scores are normalised.
    """

    loss_name: ClassVar[str]  #: what the families' losses are logged as

    def __init__(self, kl_weight: float, fifo: int, ema: float, sigma_floor: float) -> None:
        super().__init__()
        if fifo < 1 or not 0 <= ema < 1 or sigma_floor <= 0 or kl_weight < 0:
            raise ValueError(
                f"fifo must be at least 1, ema in [0, 1), sigma_floor positive, kl_weight not negative; got {fifo}, "
                f"{ema}, {sigma_floor}, {kl_weight}"
            )
        self.kl_weight, self.fifo, self.ema, self.sigma_floor = kl_weight, fifo, ema, sigma_floor
        self.component_names: tuple[str, ...] = ()
        self._sigma: dict[str, Tensor] = {}
        self._informative: dict[str, Groups] = {}
        self._recent: dict[str, Groups] = {}
        self._metrics: dict[str, float] = {}

    def family_losses(self, alpha: Tensor, z: Tensor, groups: Groups, family: Tensor, families: int) -> Tensor:
        """``[F]`` losses of ``groups``; other arguments as in :func:`lightning_dterm.dterm.ranking.ranking_losses`."""
        raise NotImplementedError

    def configure(self, component_names: Sequence[str]) -> None:
        """Remember the components, which a restored state must match."""
        self.component_names = tuple(component_names)

    def sigma(self, task_type: str) -> Tensor | None:
        """``[n]`` EMA of the within-group RMS (NaN: never seen twice in a group); None for an unseen task type."""
        return self._sigma.get(task_type)

    @torch.no_grad()
    def observe(self, groups: dict[str, Groups]) -> None:
        """Update sigma and the FIFOs with the groups of one rollout."""
        for task_type, lot in groups.items():
            lot = lot.select(~lot.outcome.isnan().all(1))
            if not len(lot.outcome):
                continue
            ranking.track_rms(self._sigma, task_type, lot.scores, self.ema)
            bare = lot._replace(gradients=lot.gradients[..., :0])  # only weights are compared there
            self._recent[task_type] = self._push(self._recent.get(task_type), bare)
            lot = lot.select(ranking.informative(lot.outcome))
            if len(lot.outcome):
                self._informative[task_type] = self._push(self._informative.get(task_type), lot)

    def loss(self, hypernetwork: Hypernetwork, encode: Encode | None = None) -> Tensor | None:
        """The families' losses plus the pull to the start; None while no group of any family is informative."""
        if not self._informative:
            return None
        names = sorted(self._recent)
        device = next(hypernetwork.parameters()).device
        groups, family = self._gather(self._informative, names, device)
        recent, recent_family = self._gather(self._recent, names, device)
        groups, recent = embed((groups, recent), encode)
        sigma = torch.stack([self._sigma[name] for name in names]).to(device)
        scores = hypernetwork.modulate(groups.scores, groups.embedding)
        z = ranking.normalize_scores(scores, sigma[family], self.sigma_floor)
        alpha, recent_alpha = hypernetwork(
            torch.cat([groups.embedding, recent.embedding]), torch.cat([groups.mask, recent.mask])
        ).split([len(family), len(recent_family)])
        own = self.family_losses(alpha, z, groups, family, len(names))
        divergence = ranking.mean_per_family(
            ranking.kl_divergence(recent_alpha, hypernetwork.prior_weights(recent.mask)), recent_family, len(names)
        )
        total = own.sum() + self.kl_weight * divergence.sum()
        self._metrics = {
            f"weighting/{self.loss_name}": float(own.detach().sum()),
            "weighting/kl_to_prior": float(divergence.detach().mean()),
            "weighting/pair_accuracy": float(ranking.pairwise_accuracy(alpha.detach(), z.detach(), groups.outcome)),
            "weighting/informative_groups": float(len(family)),
            **self._attention(hypernetwork, recent.embedding, recent_family, names),
        }
        if hypernetwork.film is not None:
            distance = hypernetwork.film.distance(hypernetwork.features(recent.embedding))
            distances = ranking.mean_per_family(distance, recent_family, len(names))
            self._metrics["weighting/film_distance"] = float(distances.detach().mean())
            total = total + self.kl_weight * distances.sum()
        return total

    @torch.no_grad()
    def _attention(
        self, hypernetwork: Hypernetwork, embedding: Tensor, family: Tensor, names: list[str]
    ) -> dict[str, float]:
        """Entropy in nats of the attention over the m prototypes (log m: all alike), mean and per task type."""
        attention = hypernetwork.attention_weights(embedding).float()
        entropy = ranking.mean_per_family(torch.special.entr(attention).sum(-1), family, len(names))
        each = {f"attention_entropy/{name}": float(value) for name, value in zip(names, entropy, strict=True)}
        return {"weighting/attention_entropy": float(entropy.mean()), **each}

    def metrics(self) -> dict[str, float]:
        """The families' loss, KL, FiLM's distance, attention entropy, weighted pairwise accuracy and groups in the
        FIFOs, as of the last loss."""
        return dict(self._metrics)

    def _push(self, old: Groups | None, new: Groups) -> Groups:
        return (new if old is None else concatenate([old, new])).last(self.fifo)

    def _gather(self, fifos: dict[str, Groups], names: list[str], device: torch.device) -> tuple[Groups, Tensor]:
        present = [(index, fifos[name]) for index, name in enumerate(names) if name in fifos]
        family = [torch.full((len(groups.outcome),), index) for index, groups in present]
        joined = concatenate([groups for _, groups in present])
        return Groups(*(column.to(device) for column in joined)), torch.cat(family).to(device)

    def get_extra_state(self) -> dict[str, Any]:
        """Sigma and FIFOs as plain tensors, safe to load with ``weights_only``."""
        return {
            "component_names": list(self.component_names),
            "sigma": {name: sigma.clone() for name, sigma in self._sigma.items()},
            "informative": {name: [column.clone() for column in lot] for name, lot in self._informative.items()},
            "recent": {name: [column.clone() for column in lot] for name, lot in self._recent.items()},
            "metrics": dict(self._metrics),
        }

    def set_extra_state(self, state: Any) -> None:
        """Restore what :meth:`get_extra_state` gave.

        Raises:
            ValueError: It belongs to other components.
        """
        if not isinstance(state, dict):
            return  # torch's distributed loader hands over a placeholder for what it does not carry
        if tuple(state["component_names"]) != self.component_names:
            raise ValueError(
                f"the saved weighting was trained with components {list(state['component_names'])}, this run has "
                f"{list(self.component_names)}: give the same components in the same order"
            )
        self._sigma = {name: sigma.cpu().clone() for name, sigma in state["sigma"].items()}
        self._informative = {name: _restored(columns) for name, columns in state["informative"].items()}
        self._recent = {name: _restored(columns) for name, columns in state["recent"].items()}
        self._metrics = dict(state["metrics"])


class OutcomeRanking(GroupObjective):
    """Within a prompt's samples the composite reward must order them as the task's own success S does.

    The loss of a family f (DESIGN section 5, :func:`lightning_dterm.dterm.ranking.ranking_losses`) is

        [ sum over groups, pairs with S_j > S_l of (S_j - S_l) softplus(-beta (R_j - R_l)) ] / max(N_f, min_pairs)

    Args:
        kl_weight: lambda, the pull to the prior.
        fifo: Groups remembered per task type.
        min_pairs: Sum of pair weights from which a family counts in full.
        ema: Decay of the within-group RMS.
        sigma_floor: Added to the RMS when scores are normalised.
        beta: Initial inverse temperature; learned.
        beta_min: Lower bound of beta.
        beta_max: Upper bound of beta.
    """

    loss_name = "rank_loss"

    def __init__(
        self,
        kl_weight: float = 0.05,
        fifo: int = 64,
        min_pairs: float = 20.0,
        ema: float = 0.9,
        sigma_floor: float = 0.02,
        beta: float = 2.0,
        beta_min: float = 0.5,
        beta_max: float = 10.0,
    ) -> None:
        super().__init__(kl_weight, fifo, ema, sigma_floor)
        if not beta_min < beta < beta_max:
            raise ValueError(f"beta={beta} must lie between beta_min={beta_min} and beta_max={beta_max}")
        if min_pairs <= 0:
            raise ValueError(f"min_pairs must be positive, got {min_pairs}")
        self.min_pairs, self.beta_min, self.beta_max = min_pairs, beta_min, beta_max
        share = (beta - beta_min) / (beta_max - beta_min)
        self.beta_logit = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    @property
    def beta(self) -> Tensor:
        """Inverse temperature, scalar in [beta_min, beta_max]."""
        return self.beta_min + (self.beta_max - self.beta_min) * torch.sigmoid(self.beta_logit.float())

    def family_losses(self, alpha: Tensor, z: Tensor, groups: Groups, family: Tensor, families: int) -> Tensor:
        """The ranking loss at the present beta."""
        return ranking.ranking_losses(alpha, z, groups.outcome, family, families, self.beta, self.min_pairs)

    def loss(self, hypernetwork: Hypernetwork, encode: Encode | None = None) -> Tensor | None:
        """As :meth:`GroupObjective.loss`; beta is logged, too."""
        total = super().loss(hypernetwork, encode)
        if total is not None:
            self._metrics["weighting/beta"] = float(self.beta.detach())
        return total


class OutcomeCorrelation(GroupObjective):
    """Within a prompt's samples the composite reward must correlate with the task's own success S.

    The loss of a family f is ``[ sum over groups of (1 - corr(R, S)) ] / max(G_f, min_groups)``, with G_f its
    informative groups and Pearson's correlation over a group's samples
    (:func:`lightning_dterm.dterm.ranking.correlation_losses`). Unlike ranking it has no scale to learn and counts all
    informative groups alike.

    Args:
        kl_weight: lambda, the pull to the prior.
        fifo: Groups remembered per task type.
        min_groups: Groups from which a family counts in full.
        ema: Decay of the within-group RMS.
        sigma_floor: Added to the RMS when scores are normalised.
    """

    loss_name = "correlation_loss"

    def __init__(
        self,
        kl_weight: float = 0.05,
        fifo: int = 64,
        min_groups: float = 8.0,
        ema: float = 0.9,
        sigma_floor: float = 0.02,
    ) -> None:
        super().__init__(kl_weight, fifo, ema, sigma_floor)
        if min_groups <= 0:
            raise ValueError(f"min_groups must be positive, got {min_groups}")
        self.min_groups = min_groups

    def family_losses(self, alpha: Tensor, z: Tensor, groups: Groups, family: Tensor, families: int) -> Tensor:
        """One minus the correlation, averaged over each family's groups."""
        return ranking.correlation_losses(alpha, z, groups.outcome, family, families, self.min_groups)


def _restored(columns: Sequence[Tensor]) -> Groups:
    own = [column.cpu().clone() for column in columns]
    if len(own) < len(Groups._fields):  # from before there were gradients
        own.append(own[3].new_zeros(*own[3].shape, 0))
    return Groups(*own)
