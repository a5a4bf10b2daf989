"""The fixed pool: its figures against sums written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_dterm.dterm import FixedWeighting, HashingEncoder, HypernetworkWeighting, UniformWeighting, Weighting
from lightning_dterm.dterm.objective import Groups
from lightning_dterm.dterm.pool import judge_weights, mean_known

CPU = torch.device("cpu")


def groups(scores: list[list[list[float]]], outcome: list[list[float]]) -> Groups:
    given = torch.tensor(scores)
    embedding = HashingEncoder(8).encode([f"task {row}" for row in range(len(scores))])
    nothing = torch.zeros(*given.shape[:2], 0)
    return Groups(embedding, ~given.isnan().all(1), given, torch.tensor(outcome), nothing)


def configured(weighting: Weighting, n: int = 2) -> Weighting:
    weighting.configure([f"c{i}" for i in range(n)], 8)
    return weighting


def by_hand(scores: Tensor, outcome: Tensor, alpha: Tensor) -> tuple[float, float]:
    """Loss and accuracy in loops, from the definitions; no score is masked."""
    count, samples, n = scores.shape
    centred = [
        [[float(scores[g, k, i] - scores[g, :, i].mean()) for i in range(n)] for k in range(samples)]
        for g in range(count)
    ]
    rms = [
        math.sqrt(sum(centred[g][k][i] ** 2 for g in range(count) for k in range(samples)) / (count * samples))
        for i in range(n)
    ]
    loss = right = total = 0.0
    for g in range(count):
        reward = [sum(float(alpha[i]) * centred[g][k][i] / (rms[i] + 0.02) for i in range(n)) for k in range(samples)]
        for j in range(samples):
            for k in range(samples):
                weight = float(outcome[g, j] - outcome[g, k])
                if weight > 0:
                    gap = reward[j] - reward[k]
                    loss += weight * math.log1p(math.exp(-2 * gap))
                    right += weight * (1.0 if gap > 0 else 0.5 if gap == 0 else 0.0)
                    total += weight
    return loss / total, right / total


def test_figures_are_those_of_loops() -> None:
    draw = torch.Generator().manual_seed(3)
    scores = torch.rand(5, 4, 2, generator=draw)
    outcome = (torch.rand(5, 4, generator=draw) * 3).floor() / 2
    weighting = configured(FixedWeighting({"c0": 0.3, "c1": 0.7}))
    pool = {"repair": groups(scores.tolist(), outcome.tolist())}
    figures = judge_weights(pool, weighting, HashingEncoder(8), CPU)
    loss, accuracy = by_hand(scores, outcome, torch.tensor([0.3, 0.7]))
    assert figures.rank_loss["repair"] == pytest.approx(loss, rel=1e-5)
    assert figures.pair_accuracy["repair"] == pytest.approx(accuracy, rel=1e-5)
    assert torch.allclose(figures.weights["repair"], torch.tensor([0.3, 0.7]))
    assert figures.attention == {}


def test_each_task_type_is_judged_by_itself_and_masks_count() -> None:
    nan = math.nan
    useless = groups([[[0.5, nan], [0.5, nan]]], [[1.0, 0.0]])
    telling = groups([[[0.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]], [[0.0, 1.0], [1.0, 0.0]])
    alike = groups([[[0.0, 1.0], [1.0, 0.0]]], [[1.0, 1.0]])
    pool = {"useless": useless, "telling": telling, "alike": alike}
    figures = judge_weights(pool, configured(UniformWeighting()), HashingEncoder(8), CPU)
    assert figures.rank_loss["useless"] == pytest.approx(math.log(2))  # the composite says nothing
    assert figures.pair_accuracy["useless"] == 0.5
    gap = 0.5 * (2 * 0.5) / 0.52  # weight 1/2; the two scores lie 0.5 around their mean, sigma is 0.5
    assert figures.rank_loss["telling"] == pytest.approx(math.log1p(math.exp(-2 * gap)), rel=1e-5)
    assert figures.pair_accuracy["telling"] == 1.0
    assert math.isnan(figures.rank_loss["alike"])
    assert figures.weights["useless"].tolist() == [1.0, 0.0]
    assert mean_known(figures.rank_loss) == pytest.approx(
        (figures.rank_loss["useless"] + figures.rank_loss["telling"]) / 2
    )
    assert math.isnan(mean_known({"alike": math.nan}))


def test_better_weights_have_a_lower_loss_and_judging_changes_nothing() -> None:
    pool = {"repair": groups([[[0.0, 1.0], [1.0, 0.0], [0.5, 0.4]]], [[0.0, 1.0, 0.5]])}
    good, bad = (configured(FixedWeighting({"c0": share, "c1": 1 - share})) for share in (0.9, 0.1))
    encoder = HashingEncoder(8)
    losses = [judge_weights(pool, weighting, encoder, CPU).rank_loss["repair"] for weighting in (good, bad)]
    assert losses[0] < math.log(2) < losses[1]
    weighting = configured(HypernetworkWeighting())
    state = {name: value.clone() for name, value in weighting.state_dict().items() if isinstance(value, Tensor)}
    drawn = torch.get_rng_state()
    figures = judge_weights(pool, weighting, encoder, CPU)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(weighting.state_dict()[name], value) for name, value in state.items())
    assert figures.attention["repair"].sum() == pytest.approx(1.0)
    assert weighting.meta_loss() is None  # nothing of the pool was observed
    assert judge_weights({}, weighting, encoder, CPU).rank_loss == {}
