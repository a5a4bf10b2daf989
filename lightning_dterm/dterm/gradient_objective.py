"""Meta-objectives that ask where a reward moves the policy: gradient alignment and one-step look-ahead."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_dterm.dterm.alignment import alignment_losses
from lightning_dterm.dterm.lookahead import lookahead_losses
from lightning_dterm.dterm.objective import GroupObjective, Groups
from lightning_dterm.dterm.sketch import GradientSketch


class GradientObjective(GroupObjective):
    """Compares policy gradients of reward and success in the last layer, estimated on disjoint halves of the samples.

    Beside what all group objectives remember, the FIFO of informative groups holds each response's sketched gradient
    (:class:`lightning_dterm.dterm.sketch.GradientSketch`, ``4 sketch^2`` bytes), taken at the policy that wrote it, in
    the pass that scores it; there is no further pass. Gradients are those of REINFORCE with one reward a response: how
    rewards are spread over its tokens, the KL penalty, clipping and the critic play no role, nor do other layers.

    Args:
        kl_weight: lambda, the pull to the prior.
        fifo: Groups remembered per task type.
        min_groups: Groups from which a family counts in full.
        ema: Decay of the within-group RMS.
        sigma_floor: Added to the RMS when scores are normalised.
        sketch: Size of the sketch, a side; D is its square.
    """

    least_samples = 4  # two in either half, or there is no advantage

    def __init__(
        self, kl_weight: float, fifo: int, min_groups: float, ema: float, sigma_floor: float, sketch: int
    ) -> None:
        super().__init__(kl_weight, fifo, ema, sigma_floor)
        if min_groups <= 0:
            raise ValueError(f"min_groups must be positive, got {min_groups}")
        self.min_groups = min_groups
        self.sketch = GradientSketch(sketch)

    def observe(self, groups: dict[str, Groups]) -> None:
        """As :meth:`GroupObjective.observe`.

        Raises:
            ValueError: Without gradients, or with those of another sketch.
        """
        for lot in groups.values():
            self._check_width(lot.gradients, "the rollout")
        super().observe(groups)

    def set_extra_state(self, state: Any) -> None:
        """Restore what :meth:`get_extra_state` gave.

        Raises:
            ValueError: It belongs to other components or another sketch.
        """
        if isinstance(state, dict):
            for columns in state["informative"].values():
                self._check_width(columns[4], "the checkpoint")
        super().set_extra_state(state)

    def _check_width(self, gradients: Tensor, where: str) -> None:
        assert self.sketch is not None
        if gradients.shape[-1] != self.sketch.width:
            raise ValueError(
                f"{type(self).__name__} with sketch {self.sketch.size} needs policy gradients of width "
                f"{self.sketch.width}, {where} has {gradients.shape[-1]}: give the same sketch, and let the actor "
                "score responses with it"
            )


class GradientAlignment(GradientObjective):
    """The policy gradient of the weighted reward must point where that of the task's own success S points.

    The loss of a family is one minus the cosine of the two, each from its own half of every prompt's samples
    (cross-fitting), averaged over the ways of halving and weighted by how far the halves' success gradients agree
    (:func:`lightning_dterm.dterm.alignment.alignment_losses`).
    Unlike ranking it gives nothing for agreement with S that the policy cannot act on. It is the noisier signal.
    Arguments as in :class:`GradientObjective`.
    """

    loss_name = "alignment_loss"

    def __init__(
        self,
        kl_weight: float = 0.05,
        fifo: int = 64,
        min_groups: float = 8.0,
        ema: float = 0.9,
        sigma_floor: float = 0.02,
        sketch: int = 32,
    ) -> None:
        super().__init__(kl_weight, fifo, min_groups, ema, sigma_floor, sketch)

    def family_losses(self, alpha: Tensor, z: Tensor, groups: Groups, family: Tensor, families: int) -> Tensor:
        """One minus the cosine of each family's gradients."""
        return alignment_losses(alpha, z, groups.outcome, groups.gradients, family, families, self.min_groups)


class LookAhead(GradientObjective):
    """After a policy step under the weighted reward, success must be higher on samples that the step has not seen.

    The loss of a family is minus the importance-weighted gain in S on the held halves after a virtual step of the last
    layer along the reward's policy gradient from the other halves
    (:func:`lightning_dterm.dterm.lookahead.lookahead_losses`, which says how this differs from alignment).

    Args:
        kl_weight: lambda, the pull to the prior.
        fifo: Groups remembered per task type.
        min_groups: Groups from which a family counts in full.
        ema: Decay of the within-group RMS.
        sigma_floor: Added to the RMS when scores are normalised.
        sketch: Size of the sketch, a side; D is its square.
        step: How far the virtual step goes: root mean square of its log-ratios on the held samples, in nats.
    """

    loss_name = "lookahead_loss"

    def __init__(
        self,
        kl_weight: float = 0.05,
        fifo: int = 64,
        min_groups: float = 8.0,
        ema: float = 0.9,
        sigma_floor: float = 0.02,
        sketch: int = 32,
        step: float = 0.5,
    ) -> None:
        super().__init__(kl_weight, fifo, min_groups, ema, sigma_floor, sketch)
        if step <= 0:
            raise ValueError(f"step must be positive, got {step}")
        self.step = step

    def family_losses(self, alpha: Tensor, z: Tensor, groups: Groups, family: Tensor, families: int) -> Tensor:
        """Minus the gain of each family, per nat of ``step``."""
        return lookahead_losses(
            alpha, z, groups.outcome, groups.gradients, family, families, self.step, self.min_groups
        )
