"""GAE against its definition: a double loop over the positions inside the mask, in plain Python floats."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_dterm.rl.gae import generalized_advantages

Row = list[float]
COEFFICIENTS = st.one_of(st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.floats(0.0, 1.0))
NUMBERS = st.floats(-10.0, 10.0, allow_nan=False)


def brute_force(rewards: Row, values: Row, mask: list[int], gamma: float, lam: float) -> tuple[Row, Row]:
    """``A_t = sum_l (gamma lam)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l})`` over the l-th valid position after t."""
    valid = [t for t, m in enumerate(mask) if m]
    advantages, returns = [0.0] * len(mask), [0.0] * len(mask)
    for i, t in enumerate(valid):
        total = 0.0
        for j in range(i, len(valid)):
            following = values[valid[j + 1]] if j + 1 < len(valid) else 0.0
            delta = rewards[valid[j]] + gamma * following - values[valid[j]]
            total += (gamma * lam) ** (j - i) * delta
        advantages[t] = total
        returns[t] = total + values[t]
    return advantages, returns


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Row], list[Row], list[list[int]]]:
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    rows = st.lists(st.lists(NUMBERS, min_size=length, max_size=length), min_size=batch, max_size=batch)
    masks = []
    for _ in range(batch):
        kind = draw(st.sampled_from(["left", "right", "holes", "empty", "full"]))
        count = draw(st.integers(0, length))
        if kind == "holes":
            masks.append(draw(st.lists(st.integers(0, 1), min_size=length, max_size=length)))
        else:
            ones = {"left": count, "right": count, "empty": 0, "full": length}[kind]
            row = [1] * ones + [0] * (length - ones)
            masks.append(row[::-1] if kind == "left" else row)
    return draw(rows), draw(rows), masks


def tensors(*rows: list[Row]) -> list[Tensor]:
    return [torch.tensor(r, dtype=torch.float64) for r in rows]


@settings(max_examples=150, deadline=None)
@given(batches(), COEFFICIENTS, COEFFICIENTS, st.booleans())
@example(([[1.0, 2.0]], [[3.0, 4.0]], [[0, 0]]), 1.0, 1.0, True)
def test_equals_the_definition(
    batch: tuple[list[Row], list[Row], list[list[int]]], gamma: float, lam: float, as_bool: bool
) -> None:
    rewards, values, masks = batch
    r, v = tensors(rewards, values)
    mask = torch.tensor(masks)
    advantages, returns = generalized_advantages(r, v, mask.bool() if as_bool else mask, gamma, lam)
    for b in range(len(masks)):
        expected_a, expected_g = brute_force(rewards[b], values[b], masks[b], gamma, lam)
        assert advantages[b].tolist() == pytest.approx(expected_a, rel=1e-9, abs=1e-9)
        assert returns[b].tolist() == pytest.approx(expected_g, rel=1e-9, abs=1e-9)
        for t, inside in enumerate(masks[b]):
            if not inside:
                assert advantages[b, t] == 0
                assert returns[b, t] == 0


@settings(max_examples=60, deadline=None)
@given(batches(), COEFFICIENTS, COEFFICIENTS, st.sampled_from([1e6, float("nan"), float("inf"), -float("inf")]))
def test_padding_content_does_not_matter(
    batch: tuple[list[Row], list[Row], list[list[int]]], gamma: float, lam: float, junk: float
) -> None:
    r, v = tensors(batch[0], batch[1])
    mask = torch.tensor(batch[2]).bool()
    dirty_r, dirty_v = r.masked_fill(~mask, junk), v.masked_fill(~mask, junk)
    for clean, dirty in zip(
        generalized_advantages(r, v, mask, gamma, lam),
        generalized_advantages(dirty_r, dirty_v, mask, gamma, lam),
        strict=True,
    ):
        assert torch.equal(clean, dirty)


@settings(max_examples=60, deadline=None)
@given(batches())
def test_undiscounted_monte_carlo_return_is_the_reward_to_go(
    batch: tuple[list[Row], list[Row], list[list[int]]],
) -> None:
    rewards, values, masks = batch
    _, returns = generalized_advantages(*tensors(rewards, values), torch.tensor(masks), gamma=1.0, lam=1.0)
    for b, mask in enumerate(masks):
        for t, inside in enumerate(mask):
            to_go = math.fsum(rewards[b][s] for s in range(t, len(mask)) if mask[s]) if inside else 0.0
            assert float(returns[b, t]) == pytest.approx(to_go, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(batches(), COEFFICIENTS, COEFFICIENTS)
def test_holes_are_as_good_as_absent(
    batch: tuple[list[Row], list[Row], list[list[int]]], gamma: float, lam: float
) -> None:
    r, v = tensors(batch[0], batch[1])
    mask = torch.tensor(batch[2]).bool()
    padded = generalized_advantages(r, v, mask, gamma, lam)
    for b in range(len(mask)):
        inside = mask[b]
        if not bool(inside.any()):
            continue
        packed = generalized_advantages(
            r[b : b + 1, inside], v[b : b + 1, inside], torch.ones(1, int(inside.sum())), gamma, lam
        )
        for a, p in zip(padded, packed, strict=True):
            assert torch.allclose(a[b, inside], p[0], rtol=1e-12, atol=1e-12)


def one_row(rewards: Row, values: Row, mask: list[int], gamma: float, lam: float) -> tuple[Row, Row]:
    advantages, returns = generalized_advantages(
        torch.tensor([rewards]), torch.tensor([values]), torch.tensor([mask]), gamma, lam
    )
    return advantages[0].tolist(), returns[0].tolist()


def test_by_hand_three_tokens() -> None:
    # gamma .5, lam .5: delta = [1 + .5*4 - 2, 0 + .5*6 - 4, 8 - 6] = [1, -1, 2]
    # A2 = 2; A1 = -1 + .25*2 = -.5; A0 = 1 + .25*(-.5) = .875
    advantages, returns = one_row([1.0, 0.0, 8.0], [2.0, 4.0, 6.0], [1, 1, 1], 0.5, 0.5)
    assert advantages == [0.875, -0.5, 2.0]
    assert returns == [2.875, 3.5, 8.0]


def test_by_hand_sparse_terminal_reward_with_right_padding() -> None:
    # lam 1, gamma 1, reward 1 at the last valid token: every return is 1; the 99 in the padding is not a reward
    advantages, returns = one_row([0.0, 0.0, 1.0, 99.0], [0.25, 0.5, 0.75, 99.0], [1, 1, 1, 0], 1.0, 1.0)
    assert returns == [1.0, 1.0, 1.0, 0.0]
    assert advantages == [0.75, 0.5, 0.25, 0.0]


def test_by_hand_lambda_zero_is_the_one_step_td_error() -> None:
    # gamma .5: [1 + .5*3 - 2, 2 + .5*5 - 3, 4 - 5]
    advantages, returns = one_row([1.0, 2.0, 4.0], [2.0, 3.0, 5.0], [1, 1, 1], 0.5, 0.0)
    assert advantages == [0.5, 1.5, -1.0]
    assert returns == [2.5, 4.5, 4.0]


def test_by_hand_gamma_zero_is_reward_minus_value() -> None:
    advantages, returns = one_row([1.0, 2.0, 4.0], [2.0, 3.0, 5.0], [1, 1, 1], 0.0, 1.0)
    assert advantages == [-1.0, -1.0, -1.0]
    assert returns == [1.0, 2.0, 4.0]


def test_by_hand_left_padding_and_a_hole() -> None:
    # valid are t = 1 and t = 3: delta3 = 3 - 1 = 2; delta1 = 1 + 1*1 - 0.5 = 1.5; A1 = 1.5 + .5*2 = 2.5
    advantages, returns = one_row([7.0, 1.0, 7.0, 3.0], [7.0, 0.5, 7.0, 1.0], [0, 1, 0, 1], 1.0, 0.5)
    assert advantages == [0.0, 2.5, 0.0, 2.0]
    assert returns == [0.0, 3.0, 0.0, 3.0]


def test_defaults_are_gamma_one_and_lambda_095() -> None:
    # delta = [0 + 0 - 0, 1 - 0]: A = [.95, 1]
    advantages, _ = generalized_advantages(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2), torch.ones(1, 2))
    assert advantages[0].tolist() == pytest.approx([0.95, 1.0])


def test_arguments_are_left_alone() -> None:
    r, v, m = torch.ones(2, 3), torch.ones(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]])
    copies = r.clone(), v.clone(), m.clone()
    advantages, returns = generalized_advantages(r, v, m)
    assert all(torch.equal(a, b) for a, b in zip((r, v, m), copies, strict=True))
    assert advantages.dtype == returns.dtype == torch.float32
    assert not advantages[1].any()
    assert not returns[1].any()


def test_no_rows() -> None:
    advantages, returns = generalized_advantages(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3))
    assert advantages.shape == returns.shape == (0, 3)


def test_no_columns() -> None:
    # a batch of empty responses is what generation gives for a length limit of 0
    advantages, returns = generalized_advantages(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0))
    assert advantages.shape == returns.shape == (2, 0)
