"""Reward components and the suite that runs them."""

from lightning_dterm.rewards.ast_match import AstMatchReward
from lightning_dterm.rewards.base import Logged, Progress, RewardComponent
from lightning_dterm.rewards.compile import CompileReward
from lightning_dterm.rewards.dfg_match import DfgMatchReward
from lightning_dterm.rewards.efficiency import EfficiencyReward
from lightning_dterm.rewards.function import FunctionReward
from lightning_dterm.rewards.preference import PreferenceReward
from lightning_dterm.rewards.similarity import SimilarityReward
from lightning_dterm.rewards.style import StyleReward
from lightning_dterm.rewards.success import SuccessReward
from lightning_dterm.rewards.suite import Pending, RewardFailure, RewardSuite, SuiteResult
from lightning_dterm.rewards.syntax import SyntaxReward
from lightning_dterm.rewards.tests import TestsReward

__all__ = [
    "AstMatchReward", "CompileReward", "DfgMatchReward", "EfficiencyReward", "FunctionReward", "Logged", "Pending",
    "PreferenceReward", "Progress", "RewardComponent", "RewardFailure", "RewardSuite", "SimilarityReward",
    "StyleReward", "SuccessReward", "SuiteResult", "SyntaxReward", "TestsReward",
]  # fmt: skip
