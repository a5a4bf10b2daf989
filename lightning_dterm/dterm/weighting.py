"""How much each reward component counts: uniform, fixed by an expert (per task type), or generated per task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from lightning_dterm.dterm.film import FilmKind
from lightning_dterm.dterm.hypernetwork import Hypernetwork, restrict
from lightning_dterm.dterm.named_weights import check_weights, ordered
from lightning_dterm.dterm.normalize import ScoreNormalizer
from lightning_dterm.dterm.objective import Encode, MetaObjective, OutcomeRanking, split_groups
from lightning_dterm.dterm.sketch import GradientSketch


class Weighting(nn.Module):
    """Gives every sample a weight per reward component: ``R = sum_i alpha_i R_i`` (DTERM eq. 6).

    :meth:`configure` is called once the components are known and before an optimizer exists; then, once a rollout,
    :meth:`forward` (the alpha_i), :meth:`observe`, :meth:`rewards` (the R_i) and :meth:`meta_loss`. Subclasses
    implement ``build`` and ``forward``; those that override ``observe`` call this one. Under several processes each
    must observe the whole gathered rollout in the same order, so that all hold one state.

    Args:
        normalize: Weigh z-scores (:class:`lightning_dterm.dterm.normalize.ScoreNormalizer`) instead of raw scores;
            needs at least 2 samples a prompt. A KL penalty counts relatively less then: rewards spread more.

    Attributes:
        needs_embedding: Whether :meth:`forward` reads the task embedding.
        least_samples: Samples of a prompt that it needs to compare them; 1 where it compares none.
        sketch: How the policy's gradients are to be compressed for :meth:`observe`; None where it needs none.
        component_names: The n components in column order; empty before :meth:`configure`.
    """

    needs_embedding: bool = False
    least_samples: int = 1
    sketch: GradientSketch | None = None

    def __init__(self, normalize: bool = False) -> None:
        super().__init__()
        self.component_names: tuple[str, ...] = ()
        self._embedding_dim = 0
        self.normalizer = ScoreNormalizer() if normalize else None
        if normalize:
            self.least_samples = 2

    @property
    def normalize(self) -> bool:
        """Whether z-scores are weighed instead of raw scores."""
        return self.normalizer is not None

    def resume_settings(self) -> dict[str, str]:
        """Settings that a checkpoint must share with the run that resumes it, by their names in YAML."""
        return {"normalize": str(self.normalize).lower()}

    def configure(self, component_names: Sequence[str], embedding_dim: int) -> None:
        """Build parameters and buffers; a second call with the same arguments does nothing.

        Args:
            component_names: The n components in column order.
            embedding_dim: Width d of task embeddings.

        Raises:
            ValueError: There is no component, a name occurs twice, the weighting was configured for something else, or
                its own settings do not fit the names.
        """
        names = tuple(component_names)
        if self.component_names:
            if names != self.component_names or (self.needs_embedding and embedding_dim != self._embedding_dim):
                raise ValueError(
                    f"{type(self).__name__} is already configured for components {list(self.component_names)} and "
                    f"embeddings of width {self._embedding_dim}, not {list(names)} and {embedding_dim}: make a new one"
                )
            return
        if not names or len(set(names)) < len(names):
            raise ValueError(f"component names must be distinct and at least one, got {list(names)}")
        self.build(names, embedding_dim)
        self.component_names = names
        self._embedding_dim = embedding_dim

    def build(self, component_names: tuple[str, ...], embedding_dim: int) -> None:
        """Make what depends on the components (called once, by :meth:`configure`).

        Raises:
            ValueError: If the weighting's own settings do not fit the names or the width.
        """

    def forward(self, embedding: Tensor | None, mask: Tensor, task_types: Sequence[str]) -> Tensor:
        """Weights of each sample.

        Args:
            embedding: ``[B, d]`` task embeddings; not read where :attr:`needs_embedding` is False.
            mask: ``[B, n]`` bool, True where the component is applicable and did not fail.
            task_types: B task types.

        Returns:
            ``[B, n]`` float32: 0 outside the mask, rows sum to 1; rows without an applicable component are 0.

        Raises:
            ValueError: If :attr:`needs_embedding` and ``embedding`` is None.
        """
        raise NotImplementedError

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
        """Take in one rollout.

        Args:
            scores: ``[B, n]`` raw component values, NaN where masked.
            mask: ``[B, n]`` bool.
            embedding: ``[B, d]`` task embeddings; of an encoder that trains, the features ``[B, w]`` that
                :meth:`meta_loss` is given the means to embed.
            outcome: ``[B]`` the task's own success metric in [0, 1], NaN where unknown.
            group: ``[B]`` int64 index of the prompt.
            task_types: B task types.
            sensitivity: ``[B]`` squared norm, over a response's tokens, of the gradient of its log-probability in the
                logits of the tokens chosen: ``sum_t (1 - pi(a_t))^2``.
            gradients: ``[B, D]`` gradient of each response's log-probability in the last layer, compressed by
                :attr:`sketch`; None without one.
        """
        if self.normalizer is not None:
            self.normalizer.observe(split_groups(scores, mask, embedding, outcome, group, task_types))

    def modulate(self, scores: Tensor, embedding: Tensor | None) -> Tensor:
        """Scores ``[B, n]`` as the tasks ``[B, d]`` read them (eq. 7); by default as they are."""
        return scores

    @torch.no_grad()
    def rewards(
        self, scores: Tensor, embedding: Tensor | None, group: Tensor | None, task_types: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """What each component is worth before it is weighted: scores after FiLM (eq. 7) and normalisation.

        Args:
            scores: ``[B, n]`` raw component values in [0, 1], NaN where masked.
            embedding: ``[B, d]`` task embeddings.
            group: ``[B]`` int64 index of the prompt, all samples of a prompt being here; None where samples stand
                alone and normalisation cannot centre them.
            task_types: B task types.

        Returns:
            The rewards R_i and their ceilings, what a score of 1 would be worth; both ``[B, n]``, NaN where masked.
        """
        values = self.modulate(scores, embedding)
        ceilings = self.modulate(torch.ones_like(scores).masked_fill(scores.isnan(), math.nan), embedding)
        if self.normalizer is None:
            return values, ceilings
        normal: tuple[Tensor, Tensor] = self.normalizer(values, ceilings, group, task_types)
        return normal

    def meta_loss(self, encode: Encode | None = None) -> Tensor | None:
        """The loss of one meta-step, None where nothing is to be learned; ``encode`` embeds observed features."""
        return None

    def metrics(self) -> dict[str, float]:
        """Scalars to log."""
        return {}


class UniformWeighting(Weighting):
    """The same weight for every applicable component."""

    def forward(self, embedding: Tensor | None, mask: Tensor, task_types: Sequence[str]) -> Tensor:
        """``[B, n]``: 1 / (number of applicable components)."""
        return restrict(torch.ones_like(mask, dtype=torch.float32), mask)


class FixedWeighting(Weighting):
    """Weights set by an expert, renormalised over the applicable components.

    A component of weight 0 counts as not applicable: a sample to which only such components apply gets a row of zeros.

    Args:
        weights: Component name to weight, not negative, at least one positive; every component must be named.
        normalize: See :class:`Weighting`.
    """

    weights: Tensor

    def __init__(self, weights: dict[str, float], normalize: bool = False) -> None:
        super().__init__(normalize)
        self.weights_by_name = dict(weights)
        check_weights(self.weights_by_name, "weights")

    def build(self, component_names: tuple[str, ...], embedding_dim: int) -> None:
        """Order the weights as the components are.

        Raises:
            ValueError: If the weights do not name exactly the components.
        """
        self.register_buffer("weights", ordered(self.weights_by_name, component_names, "weights"), persistent=False)

    def forward(self, embedding: Tensor | None, mask: Tensor, task_types: Sequence[str]) -> Tensor:
        """``[B, n]``: the expert's weights over the applicable components."""
        return restrict(self.weights.float(), mask)


class FixedPerTaskTypeWeighting(Weighting):
    """Weights set by an expert for each task type, renormalised over the applicable components.

    Args:
        weights: Task type to (component name to weight), each as in :class:`FixedWeighting`.
        default: Weights of task types that are not named; without it such a task is an error.
        normalize: See :class:`Weighting`.
    """

    table: Tensor

    def __init__(
        self,
        weights: dict[str, dict[str, float]],
        default: dict[str, float] | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__(normalize)
        if not weights:
            raise ValueError("weights must name at least one task type")
        self.weights_by_type = {task_type: dict(row) for task_type, row in weights.items()}
        self.default = dict(default) if default is not None else None
        for what, row in self._rows():
            check_weights(row, what)

    def _rows(self) -> list[tuple[str, dict[str, float]]]:
        rows = [(f"weights of {task_type!r}", row) for task_type, row in self.weights_by_type.items()]
        return rows if self.default is None else [*rows, ("default", self.default)]

    def build(self, component_names: tuple[str, ...], embedding_dim: int) -> None:
        """Order the weights as the components are.

        Raises:
            ValueError: If the weights of a task type do not name exactly the components.
        """
        table = torch.stack([ordered(row, component_names, what) for what, row in self._rows()])
        self.register_buffer("table", table, persistent=False)

    def forward(self, embedding: Tensor | None, mask: Tensor, task_types: Sequence[str]) -> Tensor:
        """``[B, n]``: the weights of each task's type over the applicable components.

        Raises:
            ValueError: For a task type that is not named, without ``default``.
        """
        row_of = {task_type: row for row, task_type in enumerate(self.weights_by_type)}
        unknown = sorted(set(task_types) - row_of.keys())
        if unknown and self.default is None:
            raise ValueError(
                f"FixedPerTaskTypeWeighting has no weights for task type {', '.join(unknown)} (it has "
                f"{', '.join(row_of)}): add them, or give default"
            )
        rows = [row_of.get(task_type, len(row_of)) for task_type in task_types]
        return restrict(self.table.float()[rows], mask)


class HypernetworkWeighting(Weighting):
    """Weights generated from the task embedding, starting at the prior and trained by a meta-objective.

    Args:
        prior: alpha_0, component name to weight (normalised to sum 1); None is uniform. It is the first output and what
            the objective pulls towards. Every component must be named and exceed ``eps``.
        prototypes: Number m of learned reward prototypes.
        prototype_dim: Width of a prototype.
        hidden: Width of the 3-layer MLP.
        eps: Floor of the weight of every applicable component.
        objective: What trains it; default :class:`OutcomeRanking`.
        film: How the task modulates component scores (eq. 7, :mod:`lightning_dterm.dterm.film`): ``monotone`` re-scales
            and never inverts, ``unconstrained`` is the published affine map, ``none`` leaves them.
        normalize: See :class:`Weighting`.
    """

    needs_embedding = True

    def __init__(
        self,
        prior: dict[str, float] | None = None,
        prototypes: int = 8,
        prototype_dim: int = 64,
        hidden: int = 256,
        eps: float = 0.02,
        objective: MetaObjective | None = None,
        film: FilmKind = "monotone",
        normalize: bool = False,
    ) -> None:
        super().__init__(normalize)
        if film not in get_args(FilmKind):
            raise ValueError(f"film must be one of {', '.join(get_args(FilmKind))}, got {film!r}")
        if min(prototypes, prototype_dim, hidden) < 1:
            raise ValueError("prototypes, prototype_dim and hidden must each be at least 1")
        self.prior = dict(prior) if prior is not None else None
        if self.prior is not None:
            check_weights(self.prior, "prior")
        self.sizes = {"prototypes": prototypes, "prototype_dim": prototype_dim, "hidden": hidden}
        self.eps = eps
        self.film: FilmKind = film
        self.objective: MetaObjective = objective if objective is not None else OutcomeRanking()
        self.hypernetwork: Hypernetwork | None = None
        self.least_samples = max(self.least_samples, self.objective.least_samples)
        self.sketch = self.objective.sketch

    def build(self, component_names: tuple[str, ...], embedding_dim: int) -> None:
        """Make the hypernetwork, its first output being the prior.

        Raises:
            ValueError: If the prior does not name exactly the components, or one of its weights is not above ``eps``.
        """
        prior = self.prior if self.prior is not None else dict.fromkeys(component_names, 1.0)
        weights = ordered(prior, component_names, "prior")
        weights = weights / weights.sum()
        low = [name for name, weight in zip(component_names, weights.tolist(), strict=True) if weight <= self.eps]
        if low:
            raise ValueError(
                f"the prior weight of {low} does not exceed the floor eps={self.eps} (of a sum of 1): raise it, lower "
                "eps, or leave the component out"
            )
        self.hypernetwork = Hypernetwork(embedding_dim, weights, eps=self.eps, film=self.film, **self.sizes)
        self.objective.configure(component_names)

    def forward(self, embedding: Tensor | None, mask: Tensor, task_types: Sequence[str]) -> Tensor:
        """``[B, n]``: the hypernetwork's weights for each embedding, in float32 whatever the autocast.

        Raises:
            ValueError: Without embeddings.
            RuntimeError: Before :meth:`configure`.
        """
        network = self._network
        if embedding is None:
            raise ValueError("HypernetworkWeighting needs task embeddings: give the module a task encoder")
        with torch.autocast(embedding.device.type, enabled=False):
            alpha: Tensor = network(embedding, mask)
        return alpha

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
        """Hand the rollout's groups to the objective."""
        super().observe(scores, mask, embedding, outcome, group, task_types, sensitivity, gradients)
        self.objective.observe(split_groups(scores, mask, embedding, outcome, group, task_types, gradients))

    def modulate(self, scores: Tensor, embedding: Tensor | None) -> Tensor:
        """FiLM's reading of the scores, in float32 whatever the autocast.

        Raises:
            ValueError: Without embeddings.
        """
        if embedding is None:
            raise ValueError("HypernetworkWeighting needs the task embeddings")
        with torch.autocast(embedding.device.type, enabled=False):
            return self._network.modulate(scores, embedding)

    def resume_settings(self) -> dict[str, str]:
        """FiLM beside what all weightings have."""
        return {**super().resume_settings(), "film": self.film}

    def meta_loss(self, encode: Encode | None = None) -> Tensor | None:
        """The objective's loss at the current weights, differentiable in this module's and the encoder's parameters."""
        network = self._network
        with torch.enable_grad(), torch.autocast(next(network.parameters()).device.type, enabled=False):
            return self.objective.loss(network, encode) if encode else self.objective.loss(network)

    def metrics(self) -> dict[str, float]:
        """The objective's scalars."""
        return self.objective.metrics()

    @property
    def _network(self) -> Hypernetwork:
        if self.hypernetwork is None:
            raise RuntimeError("HypernetworkWeighting is used before configure(component_names, embedding_dim)")
        return self.hypernetwork
