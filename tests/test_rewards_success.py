"""The control component pays exactly the outcome that the weighting learns from, on training tasks."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_dterm.rewards import RewardSuite, SuccessReward, TestsReward
from lightning_dterm.sandbox import Sandbox
from lightning_dterm.types import Sample
from tests.rewards_common import SQUARE, TESTS, make_task, sandbox_fixture

sandbox = sandbox_fixture(slots=2)

VISIBLE_ONLY = "def f(x):\n    return {2: 4, 3: 9}.get(x, 0)\n"
HALF_HIDDEN = "def f(x):\n    return x * x if x < 5 else 0\n"


def sample(code: str, **changes: object) -> Sample:
    return Sample(make_task(**changes), code, ((0, len(code)),))


def test_it_is_the_outcome_and_reads_hidden_tests_alone(sandbox: Sandbox) -> None:
    suite = RewardSuite([TestsReward(), SuccessReward()], sandbox)
    suite.setup()
    exact = {"success_metric": "exact_match", "reference": "a b", "tests": (), "language": "text"}
    samples = [
        sample(SQUARE), sample(VISIBLE_ONLY), sample(HALF_HIDDEN), sample(""), sample(SQUARE, tests=TESTS[:2]),
        sample("a  b", **exact), sample("a c", **exact),
    ]  # fmt: skip
    result = suite.score(samples)
    nan = math.nan
    assert result.scores[:, 1].tolist() == pytest.approx([1, 0, 0.5, 0, nan, 1, 0], nan_ok=True)
    assert result.scores[:, 0].tolist() == pytest.approx([1, 1, 1, 0, 1, nan, nan], nan_ok=True)
    assert torch.equal(result.scores[:, 1].nan_to_num(-1), result.outcome.nan_to_num(-1))
    assert result.failures == {"tests": 0, "success": 0}
    assert all("success" not in spans for spans in result.evidence)


def test_where_success_cannot_be_known_it_does_not_apply() -> None:
    component = SuccessReward("s")
    assert component.name == "s"
    assert component.applies_to(make_task())
    assert not component.applies_to(make_task(tests=TESTS[:2]))
    assert not component.applies_to(make_task(language="cobol"))
    assert component.applies_to(make_task(language="cobol", success_metric="exact_match"))
    assert component.reads_execution(make_task())
    assert not component.reads_execution(make_task(success_metric="exact_match"))
