"""Minibatches are those of one process on any number of ranks: against a brute-force dealing of labelled samples."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_dterm.modules.distributed import global_order
from lightning_dterm.rl.minibatches import own_minibatches, sample_order


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Ranks, prompts a rank, samples a prompt, minibatches."""
    ranks, prompts, per_prompt = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return ranks, prompts, per_prompt, draw(st.integers(1, ranks * prompts * per_prompt))


@given(layouts(), st.booleans(), st.integers(0, 9))
def test_ranks_together_have_the_minibatches_of_one_process(
    layout: tuple[int, int, int, int], shuffle: bool, seed: int
) -> None:
    ranks, prompts, per_prompt, minibatches = layout
    # prompts dealt one by one as the sampler does, every prompt's samples adjacent
    held = [[(p, s) for p in range(r, ranks * prompts, ranks) for s in range(per_prompt)] for r in range(ranks)]
    alone = [(p, s) for p in range(ranks * prompts) for s in range(per_prompt)]
    order = sample_order(len(alone), shuffle, seed, "minibatches")
    single = own_minibatches(order, minibatches, per_prompt, 0, 1)
    shares = [own_minibatches(order, minibatches, per_prompt, rank, ranks) for rank in range(ranks)]
    assert torch.equal(torch.cat([part.rows for part in single]), order)
    assert {len(part.rows) for part in single} <= {len(alone) // minibatches, -(-len(alone) // minibatches)}
    for index, part in enumerate(single):
        expected = [alone[i] for i in part.rows.tolist()]
        found = [[held[rank][i] for i in shares[rank][index].rows.tolist()] for rank in range(ranks)]
        assert sorted(sample for own in found for sample in own) == sorted(expected)
        # within a rank the order of one process is kept
        assert all(own == [sample for sample in expected if sample in own] for own in found)
        assert {share[index].largest for share in shares} == {max(map(len, found))}
        assert part.largest == len(expected)


def test_the_order_depends_on_its_key_alone() -> None:
    torch.manual_seed(1)
    first = sample_order(50, True, 3, "minibatches", 7, 0)
    torch.manual_seed(2)
    assert torch.equal(first, sample_order(50, True, 3, "minibatches", 7, 0))
    assert not torch.equal(first, sample_order(50, True, 3, "minibatches", 7, 1))
    assert torch.equal(sample_order(50, False, 3), torch.arange(50))
    assert torch.equal(first.sort().values, torch.arange(50))


@given(st.integers(0, 20), st.integers(1, 5))
def test_dealt_rows_come_back_in_order(rows: int, ranks: int) -> None:
    assert global_order([list(range(rank, rows, ranks)) for rank in range(ranks)]) == list(range(rows))
