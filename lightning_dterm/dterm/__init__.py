"""Dynamic task-embedded reward weighting: task encoders, the hypernetwork, weightings and meta-objectives."""

from lightning_dterm.dterm.encoder import HashingEncoder, HFEncoder, TaskEncoder
from lightning_dterm.dterm.hypernetwork import Hypernetwork
from lightning_dterm.dterm.objective import MetaObjective, OutcomeRanking
from lightning_dterm.dterm.weighting import FixedWeighting, HypernetworkWeighting, UniformWeighting, Weighting

__all__ = [
    "FixedWeighting",
    "HFEncoder",
    "HashingEncoder",
    "Hypernetwork",
    "HypernetworkWeighting",
    "MetaObjective",
    "OutcomeRanking",
    "TaskEncoder",
    "UniformWeighting",
    "Weighting",
]
