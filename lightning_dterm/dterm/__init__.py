"""Dynamic task-embedded reward weighting: task encoders, the hypernetwork, weightings and meta-objectives."""

from lightning_dterm.dterm.encoder import HashingEncoder, HFEncoder, TaskEncoder
from lightning_dterm.dterm.film import FiLM
from lightning_dterm.dterm.fusion import FusedEncoder
from lightning_dterm.dterm.gradient_objective import GradientAlignment, LookAhead
from lightning_dterm.dterm.gradnorm import GradNormWeighting
from lightning_dterm.dterm.hypernetwork import Hypernetwork
from lightning_dterm.dterm.objective import MetaObjective, OutcomeCorrelation, OutcomeRanking
from lightning_dterm.dterm.weighting import (
    FixedPerTaskTypeWeighting,
    FixedWeighting,
    HypernetworkWeighting,
    UniformWeighting,
    Weighting,
)

__all__ = [
    "FiLM",
    "FixedPerTaskTypeWeighting",
    "FixedWeighting",
    "FusedEncoder",
    "GradNormWeighting",
    "GradientAlignment",
    "HFEncoder",
    "HashingEncoder",
    "Hypernetwork",
    "HypernetworkWeighting",
    "LookAhead",
    "MetaObjective",
    "OutcomeCorrelation",
    "OutcomeRanking",
    "TaskEncoder",
    "UniformWeighting",
    "Weighting",
]
