"""PPO losses against closed forms written out case by case, their gradients, and the token mean however it is cut."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_dterm.rl.losses import policy_loss, token_mean, value_loss


def one(x: float, grad: bool = False) -> Tensor:
    return torch.tensor([[x]], dtype=torch.float64, requires_grad=grad)


def policy_with_gradient(
    ratio: float, advantage: float, clip: float, dual: float | None = None
) -> tuple[float, float, float]:
    logprob = one(-1.0 + math.log(ratio), grad=True)
    result = policy_loss(logprob, one(-1.0), one(advantage), clip, dual)
    result.loss.sum().backward()
    assert logprob.grad is not None
    assert result.log_ratio.item() == pytest.approx(math.log(ratio), abs=1e-12)
    return result.loss.item(), logprob.grad.item(), result.clipped.item()


# ratio, advantage, loss, d loss / d logprob, clipped; clip = 0.2
BY_HAND = [
    (1.0, 2.0, -2.0, -2.0, 0.0),
    (1.0, -2.0, 2.0, 2.0, 0.0),
    (1.1, 2.0, -2.2, -2.2, 0.0),
    (1.1, -2.0, 2.2, 2.2, 0.0),
    (0.9, 2.0, -1.8, -1.8, 0.0),
    (0.9, -2.0, 1.8, 1.8, 0.0),
    (1.5, 2.0, -2.4, 0.0, 1.0),  # above, good token: no more to gain
    (1.5, -2.0, 3.0, 3.0, 0.0),  # above, bad token: must still come down
    (0.5, 2.0, -1.0, -1.0, 0.0),  # below, good token: must still go up
    (0.5, -2.0, 1.6, 0.0, 1.0),  # below, bad token: no more to gain
    (1.5, 0.0, 0.0, 0.0, 0.0),
    (0.5, 0.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient", "clipped"), BY_HAND)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float, gradient: float, clipped: float) -> None:
    assert policy_with_gradient(ratio, advantage, 0.2) == pytest.approx((loss, gradient, clipped), abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    st.floats(0.05, 20.0),
    st.floats(-5.0, 5.0),
    st.floats(0.01, 0.9),
    st.one_of(st.none(), st.floats(1.01, 6.0)),
)
def test_policy_loss_by_case(ratio: float, advantage: float, clip: float, dual: float | None) -> None:
    edges = [1 - clip, 1 + clip] + ([dual] if dual is not None else [])
    assume(all(abs(ratio - edge) > 1e-6 for edge in edges))
    assume(abs(advantage) > 1e-6)
    if advantage > 0:
        held = ratio > 1 + clip
        loss = -advantage * (1 + clip if held else ratio)
    else:
        held = ratio < 1 - clip
        objective = advantage * (1 - clip if held else ratio)
        if dual is not None and dual * advantage > objective:
            objective, held = dual * advantage, True
        loss = -objective
    gradient = 0.0 if held else -advantage * ratio
    got = policy_with_gradient(ratio, advantage, clip, dual)
    assert got == pytest.approx((loss, gradient, float(held)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (5.0, -2.0, 6.0, 0.0, 1.0),  # bounded by c |A| = 6
        (2.5, -2.0, 5.0, 5.0, 0.0),
        (0.5, -2.0, 1.6, 0.0, 1.0),
        (5.0, 2.0, -2.4, 0.0, 1.0),  # good tokens: the dual clip has no say
        (1.0, 2.0, -2.0, -2.0, 0.0),
    ],
)
def test_dual_clip_by_hand(ratio: float, advantage: float, loss: float, gradient: float, clipped: float) -> None:
    assert policy_with_gradient(ratio, advantage, 0.2, 3.0) == pytest.approx((loss, gradient, clipped), abs=1e-12)


@pytest.mark.parametrize("dual", [1.0, 0.5, 0.0, -3.0])
def test_dual_clip_must_be_above_one(dual: float) -> None:
    with pytest.raises(ValueError, match="dual_clip"):
        policy_loss(one(0.0), one(0.0), one(1.0), dual_clip=dual)


def test_gradient_at_ratio_one_is_reinforce() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 7, dtype=torch.float64)
    actions, advantages = torch.randint(0, 7, (3, 5, 1)), torch.randn(3, 5, dtype=torch.float64)
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    logprobs = a.log_softmax(-1).gather(-1, actions).squeeze(-1)
    policy_loss(logprobs, logprobs.detach(), advantages).loss.sum().backward()
    (-(advantages * b.log_softmax(-1).gather(-1, actions).squeeze(-1))).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert torch.allclose(a.grad, b.grad, rtol=1e-12, atol=1e-12)


def test_policy_loss_is_elementwise_and_keeps_the_shape() -> None:
    torch.manual_seed(1)
    logprobs, old, advantages = (torch.randn(4, 6) for _ in range(3))
    whole = policy_loss(logprobs, old, advantages, dual_clip=3.0)
    for b in range(4):
        for t in range(6):
            cell = policy_loss(
                logprobs[b, t][None, None], old[b, t][None, None], advantages[b, t][None, None], 0.2, 3.0
            )
            for all_of_it, piece in zip(whole, cell, strict=True):
                assert all_of_it.shape == (4, 6)
                assert all_of_it[b, t] == pytest.approx(piece.item(), rel=1e-6)


def test_policy_loss_of_a_zero_advantage_is_zero_even_for_an_exploded_ratio() -> None:
    # log ratio 100 overflows float32: padding with advantage 0 must not turn the masked mean into NaN
    result = policy_loss(torch.tensor([[100.0, 0.0]]), torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
    assert float(token_mean(result.loss, torch.tensor([[0.0, 1.0]]), 1.0)) == -1.0


def test_dual_clip_keeps_the_gradient_finite_for_an_exploded_ratio() -> None:
    logprob = torch.tensor([[100.0]], requires_grad=True)
    result = policy_loss(logprob, torch.zeros(1, 1), torch.tensor([[-1.0]]), dual_clip=3.0)
    result.loss.sum().backward()
    assert result.loss.item() == 3.0
    assert logprob.grad is not None
    assert logprob.grad.item() == 0.0


def value_with_gradient(value: float, old: float, target: float, clip: float | None) -> tuple[float, float, float]:
    v = one(value, grad=True)
    loss, clipped = value_loss(v, one(old), one(target), clip)
    loss.sum().backward()
    assert v.grad is not None
    return loss.item(), v.grad.item(), clipped.item()


# value, old, target, loss, gradient, clipped; clip = 0.5
VALUE_BY_HAND = [
    (1.25, 1.0, 2.0, 0.5 * 0.75**2, -0.75, 0.0),  # inside the clip: plain squared error
    (2.0, 1.0, 3.0, 0.5 * 1.5**2, 0.0, 1.0),  # ran past the clip towards the target: no more to gain
    (2.0, 1.0, 1.0, 0.5 * 1.0**2, 1.0, 0.0),  # ran past the clip away from the target: pulled back
    (0.0, 1.0, -1.0, 0.5 * 1.5**2, 0.0, 1.0),
    (0.0, 1.0, 1.0, 0.5 * 1.0**2, -1.0, 0.0),
    (1.0, 1.0, 1.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("value", "old", "target", "loss", "gradient", "clipped"), VALUE_BY_HAND)
def test_value_loss_by_hand(
    value: float, old: float, target: float, loss: float, gradient: float, clipped: float
) -> None:
    assert value_with_gradient(value, old, target, 0.5) == pytest.approx((loss, gradient, clipped), abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(*(st.floats(-3.0, 3.0) for _ in range(3)), st.floats(0.05, 1.0))
def test_value_loss_by_case(value: float, old: float, target: float, clip: float) -> None:
    assume(abs(abs(value - old) - clip) > 1e-6)
    plain = (value - target) ** 2
    if abs(value - old) < clip:
        loss, gradient, clipped = plain, value - target, 0.0
    else:
        edge = old + math.copysign(clip, value - old)
        held = (edge - target) ** 2
        assume(abs(held - plain) > 1e-6)
        loss, gradient, clipped = (held, 0.0, 1.0) if held > plain else (plain, value - target, 0.0)
    got = value_with_gradient(value, old, target, clip)
    assert got == pytest.approx((0.5 * loss, gradient, clipped), rel=1e-9, abs=1e-9)
    assert value_with_gradient(value, old, target, None) == pytest.approx((0.5 * plain, value - target, 0.0))


def test_value_clip_fraction_is_zero_for_changes_inside_the_clip_in_float32() -> None:
    torch.manual_seed(2)
    values, old, returns = 0.19 * torch.rand(100, 10) - 0.09, 0.19 * torch.rand(100, 10) - 0.09, torch.randn(100, 10)
    assert float((values - old).abs().max()) < 0.2
    _, clipped = value_loss(values, old, returns, 0.2)
    assert float(clipped.mean()) == 0.0


def test_token_mean_by_hand() -> None:
    per_token = torch.tensor([[1.0, 2.0, 50.0], [3.0, 50.0, 50.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert float(token_mean(per_token, mask, 3.0)) == 2.0
    assert float(token_mean(per_token, mask.bool(), torch.tensor(6))) == 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 4), st.data())
def test_any_cut_into_micro_batches_and_ranks_gives_the_same_loss_and_gradient(
    seed: int, rows: int, ranks: int, data: st.DataObject
) -> None:
    g = torch.Generator().manual_seed(seed)
    base, old, advantages = (torch.randn(rows, 5, generator=g, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(rows, 5, generator=g) < 0.6
    total = max(int(mask.sum()), 1)
    # each row goes to a (rank, micro-batch) cell, some of them empty, in any order
    cells = data.draw(st.lists(st.tuples(st.integers(0, ranks - 1), st.integers(0, 3)), min_size=rows, max_size=rows))

    weight = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    losses = policy_loss(base * weight, old, advantages).loss
    flat = [losses[b, t] for b in range(rows) for t in range(5) if mask[b, t]]
    expected = sum(flat, torch.zeros((), dtype=torch.float64)) / total
    (expected_gradient,) = torch.autograd.grad(expected, weight, allow_unused=True)

    pieces: list[Tensor] = []
    for cell in sorted(set(cells)):
        index = torch.tensor([b for b in range(rows) if cells[b] == cell])
        piece = policy_loss(base[index] * weight, old[index], advantages[index]).loss
        pieces.append(token_mean(piece, mask[index], total))
    gradient = sum(torch.autograd.grad(p, weight)[0] for p in pieces)
    assert sum(p.item() for p in pieces) == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)
    assert float(gradient) == pytest.approx(
        expected_gradient.item() if expected_gradient is not None else 0.0, rel=1e-10, abs=1e-12
    )
