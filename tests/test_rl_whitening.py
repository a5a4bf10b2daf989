"""Masked whitening and explained variance against numpy, in one process and across emulated ranks."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_dterm.rl.whitening import explained_variance, masked_moments, whiten


class Group:
    """All-reduce (sum) between threads, one per rank; a rank that never calls makes the others fail, not hang."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.barrier = threading.Barrier(ranks, timeout=10)
        self.slots: list[Tensor | None] = [None] * ranks
        self.calls = [0] * ranks

    def reduce(self, rank: int) -> Callable[[Tensor], Tensor]:
        def summed(x: Tensor) -> Tensor:
            self.slots[rank] = x.clone()
            self.calls[rank] += 1
            self.barrier.wait()
            total = sum((s for s in self.slots if s is not None), torch.zeros_like(x))
            self.barrier.wait()
            return total

        return summed

    def run(self, work: Callable[[int, Callable[[Tensor], Tensor]], object]) -> list[object]:
        results: list[object] = [None] * self.ranks

        def main(rank: int) -> None:
            try:
                results[rank] = work(rank, self.reduce(rank))
            except Exception as error:
                self.barrier.abort()
                results[rank] = error

        threads = [threading.Thread(target=main, args=(rank,)) for rank in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results


def sample(seed: int, rows: int, columns: int, density: float = 0.6, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=(rows, columns)) + offset, dtype=torch.float64)
    return x, torch.tensor(rng.random((rows, columns)) < density)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 8), st.sampled_from([0.2, 0.6, 1.0]), st.booleans())
def test_equals_numpy(seed: int, rows: int, columns: int, density: float, as_bool: bool) -> None:
    x, mask = sample(seed, rows, columns, density)
    inside = x.numpy()[mask.numpy()]
    given_mask = mask if as_bool else mask.long()
    mean, variance, count = masked_moments(x, given_mask)
    assert float(count) == inside.size
    result = whiten(x, given_mask)
    assert not result[~mask].any()
    if inside.size == 0:
        return
    assert float(mean) == pytest.approx(inside.mean(), abs=1e-12)
    assert float(variance) == pytest.approx(inside.var(), abs=1e-12)
    expected = (inside - inside.mean()) / np.sqrt(inside.var() + 1e-8)
    np.testing.assert_allclose(result[mask].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_by_hand() -> None:
    # mean 2, variance ((-1)^2 + 1^2) / 2 = 1
    result = whiten(torch.tensor([[1.0, 3.0, 100.0]]), torch.tensor([[1, 1, 0]]))
    assert result.tolist()[0] == pytest.approx([-1.0, 1.0, 0.0], abs=1e-7)
    assert result.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_and_shape_are_kept(dtype: torch.dtype) -> None:
    x = torch.arange(6).reshape(2, 3).to(dtype)
    result = whiten(x, torch.ones(2, 3))
    assert result.dtype == dtype
    assert result.shape == x.shape


@pytest.mark.parametrize("junk", [1e30, float("inf"), float("nan")])
def test_content_outside_the_mask_does_not_matter(junk: float) -> None:
    x, mask = sample(3, 4, 6)
    dirty = x.masked_fill(~mask, junk)
    assert torch.equal(whiten(x, mask), whiten(dirty, mask))
    assert explained_variance(dirty, dirty, mask) == explained_variance(x, x, mask)


def test_large_offset_keeps_its_digits() -> None:
    rng = np.random.default_rng(0)
    exact = rng.integers(-8, 9, size=4000).astype(np.float64)
    shifted = torch.tensor(exact + 2.0**20, dtype=torch.float32)  # exact in float32; one pass of squares is not
    expected = (exact - exact.mean()) / exact.std()
    result = whiten(shifted, torch.ones(4000), eps=0.0)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)
    far = torch.tensor(exact + 2.0**30, dtype=torch.float64)
    np.testing.assert_allclose(whiten(far, torch.ones(4000), eps=0.0).numpy(), expected, atol=1e-6)


def test_nothing_or_nothing_varying_is_zero_not_nan() -> None:
    assert not whiten(torch.randn(2, 3), torch.zeros(2, 3)).any()
    assert not whiten(torch.full((2, 3), 0.1), torch.ones(2, 3)).any()
    assert not whiten(torch.tensor([[5.0, 9.0]]), torch.tensor([[1, 0]])).any()
    assert whiten(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.lists(st.integers(0, 4), min_size=4, max_size=4))
def test_ranks_agree_with_one_process(seed: int, ranks: int, sizes: list[int]) -> None:
    """Shards of different sizes, also empty ones, whiten as the whole batch does."""
    sizes = sizes[:ranks]
    x, mask = sample(seed, sum(sizes), 5, offset=100.0)
    values = x + sample(seed + 1, sum(sizes), 5)[0]
    shards = list(zip(x.split(sizes), values.split(sizes), mask.split(sizes), strict=True))
    group = Group(ranks)

    def work(rank: int, reduce: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
        returns, predicted, inside = shards[rank]
        return whiten(returns, inside, reduce), explained_variance(predicted, returns, inside, reduce)

    results = group.run(work)
    assert len(set(group.calls)) == 1
    whole = torch.cat([r[0] for r in results])  # type: ignore[index]
    picked = x.numpy()[mask.numpy()]
    if picked.size:
        expected = (picked - picked.mean()) / np.sqrt(picked.var() + 1e-8)
        np.testing.assert_allclose(whole[mask].numpy(), expected, rtol=1e-6, atol=1e-6)
    assert not whole[~mask].any()
    for result in results:
        assert result[1] == pytest.approx(explained_variance(values, x, mask), rel=1e-9, nan_ok=True)  # type: ignore[index]


def test_mean_of_means_would_be_wrong_here() -> None:
    """Two shards of 1 and 3 tokens: the global mean is 3, that of the shards' means 4.5."""
    shards = [(torch.tensor([[9.0]]), torch.ones(1, 1)), (torch.tensor([[0.0, 1.0, 2.0]]), torch.ones(1, 3))]
    moments = Group(2).run(lambda rank, reduce: masked_moments(*shards[rank], reduce))
    for mean, variance, count in moments:  # type: ignore[misc]
        assert float(mean) == 3.0
        assert float(variance) == (36 + 9 + 4 + 1) / 4
        assert float(count) == 4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 8))
def test_explained_variance_equals_numpy(seed: int, rows: int, columns: int) -> None:
    returns, mask = sample(seed, rows, columns)
    values, _ = sample(seed + 1, rows, columns)
    g, v = returns.numpy()[mask.numpy()], values.numpy()[mask.numpy()]
    got = explained_variance(values, returns, mask)
    if g.size < 2:
        assert math.isnan(got)
    else:
        assert got == pytest.approx(1 - (g - v).var() / g.var(), rel=1e-9, abs=1e-9)


def test_explained_variance_landmarks() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 77.0]]), torch.tensor([[1, 1, 1, 0]])
    assert explained_variance(returns.clone(), returns, mask) == 1.0
    assert explained_variance(returns + 5, returns, mask) == 1.0  # a constant error has no variance
    assert explained_variance(torch.full_like(returns, 2.0), returns, mask) == 0.0
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)  # Var[2 G] = 4 Var[G]
    assert math.isnan(explained_variance(returns, torch.full_like(returns, 0.1), mask))
    assert math.isnan(explained_variance(returns, returns, torch.zeros(1, 4)))
