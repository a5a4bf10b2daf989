"""The leave-one-out baseline against a double loop, and where it is laid."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.rl.baseline import leave_one_out, spread_baseline


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-3, 3, width=32), st.integers(0, 4), st.booleans()),
        min_size=1,
        max_size=16,
    )
)
def test_leave_one_out_is_the_mean_of_the_others(rows) -> None:  # type: ignore[no-untyped-def]
    totals = torch.tensor([r[0] for r in rows], dtype=torch.float64)
    group, valid = torch.tensor([r[1] for r in rows]), torch.tensor([r[2] for r in rows])
    result = leave_one_out(totals, group, valid)
    for i, (_, own_group, own_valid) in enumerate(rows):
        others = [r[0] for j, r in enumerate(rows) if j != i and r[1] == own_group and r[2]]
        expected = sum(others) / len(others) if others and own_valid else 0.0
        assert abs(float(result[i]) - expected) < 1e-9


def test_a_sample_does_not_move_its_own_baseline() -> None:
    group, valid = torch.tensor([0, 0, 0, 1]), torch.ones(4, dtype=torch.bool)
    before = leave_one_out(torch.tensor([1.0, 2.0, 3.0, 4.0]), group, valid)
    after = leave_one_out(torch.tensor([9.0, 2.0, 3.0, 4.0]), group, valid)
    assert before.tolist() == [2.5, 2.0, 1.5, 0.0]
    assert after[0] == before[0]
    assert after[3] == 0


def test_the_baseline_lies_where_the_rewards_lie() -> None:
    places = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    laid = spread_baseline(torch.tensor([1.0, 2.0, 3.0]), places, torch.tensor([2, 2, 3]))
    assert laid.tolist() == [[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 3.0]]
