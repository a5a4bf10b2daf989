"""GradNorm for rewards: gradient norms against autograd, the step by hand, fixed points known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_dterm.dterm import GradNormWeighting
from lightning_dterm.dterm.gradnorm import component_gradient_norms, gradnorm_step

NAN = math.nan
GROUP = torch.tensor([0, 0, 1, 1])
REWARDS = torch.tensor([[1.0, 0.2], [0.0, 0.0], [1.0, 0.4], [0.0, 0.4]])  # advantages +-0.5 and (+-0.1, 0)
SENSITIVITY = torch.tensor([1.0, 4.0, 1.0, 4.0])
NORMS = [math.sqrt(0.25 * 10) / 4, math.sqrt(0.01 * 5) / 4]


def test_norms_by_hand_and_with_masks() -> None:
    assert component_gradient_norms(REWARDS, GROUP, SENSITIVITY).tolist() == pytest.approx(NORMS)
    masked = REWARDS.clone()
    masked[1, 1] = NAN  # b is left without a pair that varies
    masked = torch.cat([masked, torch.tensor([[NAN], [0.5], [NAN], [0.7]])], -1)  # c is never known twice
    assert component_gradient_norms(masked, GROUP, SENSITIVITY).tolist() == pytest.approx(
        [NORMS[0], 0.0, NAN], nan_ok=True
    )


def test_norms_equal_what_autograd_says() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 7, dtype=torch.float64, requires_grad=True)
    actions, mask = torch.randint(0, 7, (4, 5)), torch.rand(4, 5) < 0.8
    chosen = logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
    rewards = torch.rand(4, 3)
    sensitivity = ((1 - chosen.exp()).square() * mask).sum(-1).detach()
    got = component_gradient_norms(rewards, GROUP, sensitivity)
    for column in range(3):
        values = rewards[:, column].double()
        advantage = values - torch.stack([values[:2].mean()] * 2 + [values[2:].mean()] * 2)
        loss = -(advantage[:, None] * chosen * mask).sum() / 4
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert float(got[column]) == pytest.approx(float(gradient.gather(-1, actions[..., None]).norm()), rel=1e-6)
        assert 1 <= float(gradient.norm() / got[column]) <= math.sqrt(2)


def test_one_step_of_two_rewards_by_hand() -> None:
    weighting = GradNormWeighting(asymmetry=1.5, lr=0.1)
    weighting.configure(("a", "b"), 1)
    mask = torch.ones(4, 2, dtype=torch.bool)
    given = (REWARDS, mask, torch.zeros(4, 1), torch.full((4,), NAN), GROUP, ["x"] * 4)
    assert weighting(None, mask, ["x"] * 4)[0].tolist() == [0.5, 0.5]
    weighting.observe(*given, sensitivity=SENSITIVITY)
    # first rollout: both rates 1, so the target is the mean norm m; a pulls harder than that, b less
    m = sum(NORMS) / 2
    moved = [1 - 0.1 * NORMS[0] / m, 1 + 0.1 * NORMS[1] / m]
    assert weighting(None, mask, ["x"] * 4)[0].tolist() == pytest.approx([w / sum(moved) for w in moved])
    metrics = weighting.metrics()
    assert [metrics[f"gradnorm/norm/{name}"] for name in "ab"] == pytest.approx(NORMS)
    assert [metrics[f"gradnorm/rate/{name}"] for name in "ab"] == [1, 1]
    better = REWARDS + torch.tensor([0.0, 0.25])
    weighting.observe(better, *given[1:], sensitivity=SENSITIVITY)
    assert weighting.metrics()["gradnorm/rate/b"] == pytest.approx((1 - 0.5) / (1 - 0.25))
    with pytest.raises(ValueError, match="sensitivity"):
        weighting.observe(*given)


@pytest.mark.parametrize(
    ("norms", "rates", "asymmetry", "expected"),
    [
        ([1.0, 3.0], [1.0, 1.0], 0.0, [1.5, 0.5]),  # equal pulls: w_i g_i alike
        ([1.0, 3.0], [0.5, 1.0], 0.0, [1.5, 0.5]),  # rates do not count
        ([1.0, 3.0], [0.5, 1.0], 1.0, [1.2, 0.8]),  # w_i g_i in the ratio 1 : 2
        ([2.0, 2.0], [1.0, 0.25], 1.0, [1.6, 0.4]),  # 4 : 1, the slow one more
    ],
)
def test_it_settles_where_pulls_match_the_training_rates(
    norms: list[float], rates: list[float], asymmetry: float, expected: list[float]
) -> None:
    weights = torch.ones(2, dtype=torch.float64)
    for step in range(600):
        lr = 0.05 / (1 + step / 30)
        weights = gradnorm_step(weights, torch.tensor(norms), torch.tensor(rates), asymmetry, lr, 0.01)
    assert weights.tolist() == pytest.approx(expected, abs=0.01)


def test_edges_of_a_step() -> None:
    ones = torch.ones(3, dtype=torch.float64)
    nothing = torch.tensor([0.0, 0.0, NAN])
    assert gradnorm_step(ones, nothing, ones, 1.5, 0.1, 0.01).tolist() == [1, 1, 1]
    assert gradnorm_step(ones, torch.tensor([0.3, NAN, NAN]), ones, 1.5, 0.1, 0.01).tolist() == [1, 1, 1]
    weights = ones
    for _ in range(200):  # a component that does not vary is left alone, as Chen's derivative is 0 there
        weights = gradnorm_step(weights, torch.tensor([100.0, 0.01, 0.01]), ones, 0.0, 0.5, 0.01)
        assert float(weights.min()) > 0
        assert float(weights.sum()) == pytest.approx(3)
    for bad in ({"asymmetry": -1.0}, {"lr": 0.0}, {"floor": 1.0}):
        with pytest.raises(ValueError, match="asymmetry must be"):
            GradNormWeighting(**bad)


def test_state_is_restored() -> None:
    weighting, other = GradNormWeighting(), GradNormWeighting()
    for one in (weighting, other):
        one.configure(("a", "b"), 1)
    mask = torch.ones(4, 2, dtype=torch.bool)
    given = (mask, torch.zeros(4, 1), torch.full((4,), NAN), GROUP, ["x"] * 4, SENSITIVITY)
    weighting.observe(REWARDS, *given)
    other.load_state_dict(weighting.state_dict())
    for one in (weighting, other):
        one.observe(REWARDS.flip(0), *given)
    assert torch.equal(weighting.raw_weights, other.raw_weights)
    assert weighting.metrics() == other.metrics()
