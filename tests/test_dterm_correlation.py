"""The correlation objective: against numpy, and that it finds the component that drives success."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_dterm.dterm import HypernetworkWeighting, OutcomeCorrelation
from lightning_dterm.dterm.ranking import correlation_losses
from tests.test_dterm_weighting import FAMILIES, configured, train, weights_of

NAN = math.nan


def test_against_numpy() -> None:
    torch.manual_seed(0)
    alpha, z, outcome = torch.rand(6, 3), torch.randn(6, 5, 3), torch.rand(6, 5)
    outcome[1, 2] = NAN
    outcome[2] = 0.5  # does not vary: not informative
    outcome[3, 1:] = NAN  # known once
    z[4] = z[4, :1]  # the composite does not vary: correlation 0
    family = torch.tensor([0, 0, 0, 1, 1, 1])
    totals = [0.0, 0.0]
    for g in (0, 1, 4, 5):
        known = ~outcome[g].isnan()
        reward = (z[g] @ alpha[g])[known].numpy()
        correlation = 0.0 if g == 4 else np.corrcoef(reward, outcome[g][known].numpy())[0, 1]
        totals[int(family[g])] += 1 - correlation
    got = correlation_losses(alpha, z, outcome, family, 2, min_groups=1.0)
    assert got.tolist() == pytest.approx([totals[0] / 2, totals[1] / 2], abs=1e-5)
    got = correlation_losses(alpha, z, outcome, family, 3, min_groups=8.0)
    assert got.tolist() == pytest.approx([totals[0] / 8, totals[1] / 8, 0.0], abs=1e-5)


def test_gradients_are_finite_at_the_edges() -> None:
    alpha = torch.full((2, 2), 0.5, requires_grad=True)
    z, outcome = torch.zeros(2, 3, 2), torch.tensor([[0.0, 1.0, NAN], [0.5, 0.5, 0.5]])
    correlation_losses(alpha, z, outcome, torch.tensor([0, 0]), 1).sum().backward()
    assert alpha.grad is not None
    assert torch.isfinite(alpha.grad).all()


def test_bandit_raises_the_component_that_drives_each_family() -> None:
    weighting = HypernetworkWeighting({"compile": 0.4, "tests": 0.3, "style": 0.3}, objective=OutcomeCorrelation())
    configured(weighting, 64)
    assert train(weighting, torch.optim.Adam(weighting.parameters(), lr=1e-3), range(60), idle=False) == 60
    assert weights_of(weighting, FAMILIES["repair"])[1] > 0.55
    assert weights_of(weighting, FAMILIES["synthesis"])[2] > 0.55
    metrics = weighting.metrics()
    assert metrics["weighting/pair_accuracy"] > 0.85
    assert 0 < metrics["weighting/correlation_loss"] < 1
    entropies = [metrics[f"attention_entropy/{name}"] for name in FAMILIES]
    assert metrics["weighting/attention_entropy"] == pytest.approx(sum(entropies) / 2, rel=1e-5)
    assert all(0 < entropy <= math.log(8) for entropy in entropies)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="min_groups must be positive"):
        OutcomeCorrelation(min_groups=0)
    with pytest.raises(ValueError, match="fifo must be at least 1"):
        OutcomeCorrelation(fifo=0)
