"""KL estimators against exact expectations over small categorical distributions; the controller against hand steps."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from lightning_dterm.rl.kl import KLController, KLEstimator, kl_estimate

ESTIMATORS: list[KLEstimator] = ["k1", "k2", "k3"]
LOGITS = st.integers(2, 7).flatmap(
    lambda n: st.tuples(*(st.lists(st.floats(-4.0, 4.0), min_size=n, max_size=n) for _ in range(2)))
)


def distributions(pair: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor]:
    return tuple(torch.tensor(x, dtype=torch.float64).log_softmax(-1) for x in pair)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [math.log(2), -math.log(2), 0.0]),
        ("k2", [0.5 * math.log(2) ** 2, 0.5 * math.log(2) ** 2, 0.0]),
        # r = reference / actor: r - 1 - log r at r = 1/2, 2, 1
        ("k3", [0.5 - 1 + math.log(2), 2 - 1 - math.log(2), 0.0]),
    ],
)
def test_closed_forms(estimator: KLEstimator, expected: list[float]) -> None:
    actor = torch.tensor([0.5, 0.25, 0.3], dtype=torch.float64).log()
    reference = torch.tensor([0.25, 0.5, 0.3], dtype=torch.float64).log()
    assert kl_estimate(actor, reference, estimator).tolist() == pytest.approx(expected, abs=1e-12)


def test_k1_is_the_default_and_any_shape_goes() -> None:
    actor, reference = torch.tensor([[[-1.0], [-3.0]]]), torch.tensor([[[-2.0], [-1.5]]])
    assert kl_estimate(actor, reference).tolist() == [[[1.0], [-1.5]]]


@pytest.mark.parametrize("name", ["k4", "", "K1"])
def test_unknown_estimator(name: str) -> None:
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(torch.zeros(1), torch.zeros(1), name)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(LOGITS)
def test_k1_and_k3_are_unbiased_and_k3_is_never_negative(pair: tuple[list[float], list[float]]) -> None:
    log_p, log_q = distributions(pair)
    exact = float(kl_divergence(Categorical(logits=log_p), Categorical(logits=log_q)))
    for estimator in ("k1", "k3"):
        expectation = float((log_p.exp() * kl_estimate(log_p, log_q, estimator)).sum())  # type: ignore[arg-type]
        assert expectation == pytest.approx(exact, abs=1e-10)
    assert float(kl_estimate(log_p, log_q, "k3").min()) >= -1e-12


@settings(max_examples=60, deadline=None)
@given(st.floats(-20.0, 20.0))
def test_k3_is_not_negative_in_float32(difference: float) -> None:
    estimate = kl_estimate(torch.tensor([difference], dtype=torch.float32), torch.zeros(1), "k3")
    assert float(estimate) >= -2e-7


@settings(max_examples=60, deadline=None)
@given(LOGITS)
def test_expected_k2_gradient_is_the_gradient_of_the_kl(pair: tuple[list[float], list[float]]) -> None:
    """On policy: E_p[grad k2], with p held fixed where the token was drawn, equals grad KL(p || q)."""
    theta = torch.tensor(pair[0], dtype=torch.float64, requires_grad=True)
    log_q = torch.tensor(pair[1], dtype=torch.float64).log_softmax(-1)
    exact = (theta.softmax(-1) * (theta.log_softmax(-1) - log_q)).sum()
    (expected,) = torch.autograd.grad(exact, theta)
    probabilities = theta.detach().softmax(-1)
    mean_gradient = torch.zeros_like(expected)
    for token in range(len(pair[0])):
        estimate = kl_estimate(theta.log_softmax(-1)[token], log_q[token], "k2")
        mean_gradient += probabilities[token] * torch.autograd.grad(estimate, theta)[0]
    assert torch.allclose(mean_gradient, expected, atol=1e-10)


def test_k1_has_no_gradient_on_average() -> None:
    """Why k1 belongs in the reward and not in the loss: its expected on-policy gradient is zero."""
    theta = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    estimate = kl_estimate(theta.log_softmax(-1), torch.full((3,), -math.log(3), dtype=torch.float64), "k1")
    (gradient,) = torch.autograd.grad((theta.detach().softmax(-1) * estimate).sum(), theta)
    assert torch.allclose(gradient, torch.zeros(3, dtype=torch.float64), atol=1e-12)


def test_adaptive_controller_by_hand() -> None:
    controller = KLController(0.1, target=5.0, horizon=100)
    controller.update(5.5, 10)  # error .1: * (1 + .1 * 10 / 100) = * 1.01
    assert controller.coef == pytest.approx(0.101)
    controller.update(4.75, 20)  # error -.05: * (1 - .05 * 20 / 100) = * .99
    assert controller.coef == pytest.approx(0.101 * 0.99)
    controller.update(5.0, 50)  # on target: nothing
    assert controller.coef == pytest.approx(0.101 * 0.99)


@pytest.mark.parametrize(("kl", "factor"), [(500.0, 1.04), (6.01, 1.04), (0.0, 0.96), (-3.0, 0.96), (3.99, 0.96)])
def test_adaptive_controller_clips_the_error_at_a_fifth(kl: float, factor: float) -> None:
    controller = KLController(0.5, target=5.0, horizon=100)
    controller.update(kl, 20)
    assert controller.coef == pytest.approx(0.5 * factor)


def test_fixed_controller_never_moves() -> None:
    controller = KLController(0.05)
    for kl in (0.0, 100.0, -4.0):
        controller.update(kl, 1000)
    assert controller.coef == 0.05
    controller.load_state_dict({"coef": 9.0})
    assert controller.coef == 0.05
    assert KLController(0.0).coef == 0.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-10, 50), st.integers(1, 64)), max_size=12),
    st.lists(st.tuples(st.floats(-10, 50), st.integers(1, 64)), max_size=12),
)
def test_state_round_trip_continues_exactly(before: list[tuple[float, int]], after: list[tuple[float, int]]) -> None:
    straight = KLController(0.2, target=6.0, horizon=1000)
    for kl, n in before:
        straight.update(kl, n)
    resumed = KLController(0.7, target=6.0, horizon=1000)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    for kl, n in after:
        straight.update(kl, n)
        resumed.update(kl, n)
    assert resumed.coef == straight.coef
    assert straight.coef > 0


@pytest.mark.parametrize(
    ("coef", "target", "horizon"), [(-0.1, None, 10), (0.1, 0.0, 10), (0.1, -1.0, 10), (0.1, 5.0, 0), (0.1, 5.0, -3)]
)
def test_controller_refuses_nonsense(coef: float, target: float | None, horizon: int) -> None:
    with pytest.raises(ValueError, match="KL"):
        KLController(coef, target, horizon)


def test_coefficient_stays_nonnegative_for_a_batch_larger_than_the_horizon() -> None:
    controller = KLController(0.1, target=5.0, horizon=10)
    controller.update(0.0, 100)  # 1 - .2 * 100 / 10 = -1
    assert controller.coef >= 0


def test_a_nan_measurement_does_not_poison_the_coefficient_silently() -> None:
    controller = KLController(0.1, target=5.0, horizon=100)
    with contextlib.suppress(ValueError):
        controller.update(float("nan"), 10)
    assert math.isfinite(controller.coef)
