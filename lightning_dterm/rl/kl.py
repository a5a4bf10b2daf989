"""KL between actor and reference: per-token estimators (Schulman 2020, "Approximating KL divergence"), controllers."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    """Per-token estimate of KL(actor || reference) from tokens sampled by the actor; any shape, elementwise.

    With ``d = log actor - log reference``: k1 is ``d`` (unbiased, can be negative), k2 is ``d^2 / 2`` (biased, low
    variance), k3 is ``exp(-d) - 1 + d`` (unbiased, never negative).

    Raises:
        ValueError: If the estimator is unknown.
    """
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    if estimator == "k3":
        return (-difference).exp() - 1 + difference
    raise ValueError(f"unknown KL estimator {estimator!r}: use k1, k2 or k3")


class KLController:
    """The KL coefficient: fixed, or adapted towards a target (Ziegler et al. 2019, arXiv:1909.08593, section 2.2).

    Args:
        coef: Initial coefficient, >= 0.
        target: Wanted KL in nats per sequence; None keeps the coefficient fixed.
        horizon: Number of sequences over which the coefficient may change by a factor of about e.

    Raises:
        ValueError: If the coefficient is negative, or the target or its horizon is not positive.
    """

    def __init__(self, coef: float, target: float | None = None, horizon: int = 10_000) -> None:
        if coef < 0:
            raise ValueError(f"the KL coefficient must not be negative, got {coef}")
        if target is not None and (target <= 0 or horizon <= 0):
            raise ValueError(f"KL target and horizon must be positive, got {target} and {horizon}")
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, sequences: int) -> None:
        """Adapt to a measured ``kl`` (nats a sequence): ``coef *= 1 + clip(kl / target - 1) min(n / h, 1)``.

        Raises:
            ValueError: If the coefficient is adaptive and ``kl`` is not finite.
        """
        if self.target is None:
            return
        if not math.isfinite(kl):
            raise ValueError(f"the measured KL is {kl}: the actor has diverged")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * min(sequences / self.horizon, 1.0)

    def state_dict(self) -> dict[str, float]:
        """The only state: the coefficient."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the coefficient; a fixed controller keeps its configured one."""
        if self.target is not None:
            self.coef = float(state["coef"])
