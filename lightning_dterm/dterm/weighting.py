"""How much each reward component counts: uniform, fixed by an expert, or generated per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_dterm.dterm.hypernetwork import Hypernetwork, restrict
from lightning_dterm.dterm.objective import MetaObjective, OutcomeRanking, split_groups


class Weighting(nn.Module):
    """Gives every sample a weight per reward component: ``R = sum_i alpha_i R_i`` (DTERM eq. 6).

    :meth:`configure` is called once the components are known and before an optimizer exists; then, once a rollout,
    :meth:`forward`, :meth:`observe` and :meth:`meta_loss`. Subclasses implement ``build`` and ``forward``. Under
    several processes each must observe the whole gathered rollout in the same order, so that all hold one state.

    Attributes:
        needs_embedding: Whether :meth:`forward` reads the task embedding.
        component_names: The n components in column order; empty before :meth:`configure`.
    """

    needs_embedding: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.component_names: tuple[str, ...] = ()
        self._embedding_dim = 0

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
    ) -> None:
        """Take in one rollout.

        Args:
            scores: ``[B, n]`` raw component values, NaN where masked.
            mask: ``[B, n]`` bool.
            embedding: ``[B, d]`` task embeddings.
            outcome: ``[B]`` the task's own success metric in [0, 1], NaN where unknown.
            group: ``[B]`` int64 index of the prompt.
            task_types: B task types.
        """

    def meta_loss(self) -> Tensor | None:
        """The loss of one meta-step on what was observed; None where there is nothing to learn."""
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
    """

    weights: Tensor

    def __init__(self, weights: dict[str, float]) -> None:
        super().__init__()
        self.weights_by_name = dict(weights)
        _check_weights(self.weights_by_name, "weights")

    def build(self, component_names: tuple[str, ...], embedding_dim: int) -> None:
        """Order the weights as the components are.

        Raises:
            ValueError: If the weights do not name exactly the components.
        """
        self.register_buffer("weights", _ordered(self.weights_by_name, component_names, "weights"), persistent=False)

    def forward(self, embedding: Tensor | None, mask: Tensor, task_types: Sequence[str]) -> Tensor:
        """``[B, n]``: the expert's weights over the applicable components."""
        return restrict(self.weights.float(), mask)


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
    ) -> None:
        super().__init__()
        if min(prototypes, prototype_dim, hidden) < 1:
            raise ValueError("prototypes, prototype_dim and hidden must each be at least 1")
        self.prior = dict(prior) if prior is not None else None
        if self.prior is not None:
            _check_weights(self.prior, "prior")
        self.sizes = {"prototypes": prototypes, "prototype_dim": prototype_dim, "hidden": hidden}
        self.eps = eps
        self.objective: MetaObjective = objective if objective is not None else OutcomeRanking()
        self.hypernetwork: Hypernetwork | None = None

    def build(self, component_names: tuple[str, ...], embedding_dim: int) -> None:
        """Make the hypernetwork, its first output being the prior.

        Raises:
            ValueError: If the prior does not name exactly the components, or one of its weights is not above ``eps``.
        """
        prior = self.prior if self.prior is not None else dict.fromkeys(component_names, 1.0)
        weights = _ordered(prior, component_names, "prior")
        weights = weights / weights.sum()
        low = [name for name, weight in zip(component_names, weights.tolist(), strict=True) if weight <= self.eps]
        if low:
            raise ValueError(
                f"the prior weight of {low} does not exceed the floor eps={self.eps} (of a sum of 1): raise it, lower "
                "eps, or leave the component out"
            )
        self.hypernetwork = Hypernetwork(embedding_dim, weights, eps=self.eps, **self.sizes)
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
    ) -> None:
        """Hand the rollout's groups to the objective."""
        self.objective.observe(split_groups(scores, mask, embedding, outcome, group, task_types))

    def meta_loss(self) -> Tensor | None:
        """The objective's loss at the current weights, differentiable in all parameters of this module."""
        network = self._network
        with torch.enable_grad(), torch.autocast(next(network.parameters()).device.type, enabled=False):
            return self.objective.loss(network)

    def metrics(self) -> dict[str, float]:
        """The objective's scalars."""
        return self.objective.metrics()

    @property
    def _network(self) -> Hypernetwork:
        if self.hypernetwork is None:
            raise RuntimeError("HypernetworkWeighting is used before configure(component_names, embedding_dim)")
        return self.hypernetwork


def _check_weights(weights: Mapping[str, float], what: str) -> None:
    bad = [name for name, weight in weights.items() if not 0 <= weight < float("inf")]
    if bad:
        raise ValueError(f"{what} of {bad} must be finite and not negative")
    if not any(weight > 0 for weight in weights.values()):
        raise ValueError(f"{what} must hold at least one positive weight")


def _ordered(weights: Mapping[str, float], component_names: Sequence[str], what: str) -> Tensor:
    missing = [name for name in component_names if name not in weights]
    unknown = [name for name in weights if name not in component_names]
    if missing or unknown:
        raise ValueError(
            f"{what} must name exactly the reward components {list(component_names)}"
            + (f"; missing: {missing}" if missing else "")
            + (f"; not a component: {unknown}" if unknown else "")
        )
    return torch.tensor([float(weights[name]) for name in component_names])
