"""Normalised components: by hand, masked, over several rollouts, restored, attributed."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.attribution import Attribution
from lightning_dterm.dterm import FixedWeighting, HypernetworkWeighting, UniformWeighting
from lightning_dterm.dterm.normalize import ScoreNormalizer, group_means
from lightning_dterm.types import Span

NAN = math.nan
GROUP = torch.tensor([0, 0, 1, 1])
TYPES = ["repair", "repair", "synthesis", "synthesis"]
SCORES = torch.tensor([[0.2, 1.0, NAN], [0.6, NAN, 0.3], [0.5, 0.0, 0.7], [0.5, 1.0, 0.1]])


def observed(weighting: UniformWeighting | FixedWeighting, scores: torch.Tensor = SCORES) -> None:
    known = ~scores.isnan()
    weighting.observe(scores, known, torch.zeros(4, 2), torch.full((4,), NAN), GROUP, TYPES)


def normalized() -> UniformWeighting:
    weighting = UniformWeighting(normalize=True)
    weighting.configure(("a", "b", "c"), 2)
    return weighting


def test_z_scores_by_hand() -> None:
    weighting = normalized()
    observed(weighting)
    rewards, ceilings = weighting.rewards(SCORES, None, GROUP, TYPES)
    # repair: sigma (0.2, unknown, unknown): b and c were never known twice. synthesis: sigma (0, 0.5, 0.3)
    expected = [[-0.2 / 0.22, 0, NAN], [0.2 / 0.22, NAN, 0], [0, -0.5 / 0.52, 0.3 / 0.32], [0, 0.5 / 0.52, -0.3 / 0.32]]
    assert rewards.flatten().tolist() == pytest.approx([v for row in expected for v in row], nan_ok=True)
    best = [[0.6 / 0.22, 0, NAN], [0.6 / 0.22, NAN, 0], [25, 0.5 / 0.52, 0.6 / 0.32], [25, 0.5 / 0.52, 0.6 / 0.32]]
    assert ceilings.flatten().tolist() == pytest.approx([v for row in best for v in row], nan_ok=True)
    alone, _ = weighting.rewards(SCORES, None, None, TYPES)  # as heat maps ask: scaled, not centred
    assert alone[:, 0].tolist() == pytest.approx([0.2 / 0.22, 0.6 / 0.22, 25, 25])


def test_sigma_is_a_moving_average_per_task_type() -> None:
    weighting = normalized()
    assert weighting.normalizer is not None
    observed(weighting)
    second = SCORES.clone()
    second[0, 0], second[1, 0] = 0.0, 1.0  # within-group RMS 0.5
    observed(weighting, second)
    scale = weighting.normalizer.scale(["repair", "synthesis", "never seen"], 3)
    assert scale[0].tolist() == pytest.approx([0.9 * 0.2 + 0.1 * 0.5 + 0.02, math.inf, math.inf])
    assert scale[1].tolist() == pytest.approx([0.02, 0.52, 0.32])
    assert scale[2].tolist() == [math.inf] * 3
    file = io.BytesIO()
    torch.save(weighting.state_dict(), file)
    file.seek(0)
    other = normalized()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.normalizer is not None
    assert torch.equal(other.normalizer.scale(TYPES, 3), weighting.normalizer.scale(TYPES, 3))


def test_raw_scores_are_handed_on_as_they_are() -> None:
    weighting = UniformWeighting()
    weighting.configure(("a", "b", "c"), 2)
    observed(weighting)
    rewards, ceilings = weighting.rewards(SCORES, None, GROUP, TYPES)
    assert rewards is SCORES
    assert torch.equal(ceilings.nan_to_num(-1), torch.where(SCORES.isnan(), -1.0, 1.0))


def test_normalisation_follows_film() -> None:
    """The mean is that of the modulated scores, sigma that of the raw ones."""
    torch.manual_seed(0)
    weighting = HypernetworkWeighting(film="monotone", normalize=True)
    weighting.configure(("a", "b", "c"), 2)
    assert weighting.hypernetwork is not None
    assert weighting.hypernetwork.film is not None
    torch.nn.init.normal_(weighting.hypernetwork.film.head.bias)
    embedding = torch.randn(4, 2)
    weighting.observe(SCORES, ~SCORES.isnan(), embedding, torch.full((4,), NAN), GROUP, TYPES)
    read = weighting.modulate(SCORES, embedding)
    rewards, ceilings = weighting.rewards(SCORES, embedding, GROUP, TYPES)
    mean = float(read[2:, 1].mean().detach())
    assert float(rewards[3, 1]) == pytest.approx((float(read[3, 1].detach()) - mean) / 0.52, rel=1e-5)
    assert float(ceilings[3, 1]) == pytest.approx((1 - mean) / 0.52, rel=1e-5)


def test_group_means_skip_what_is_masked() -> None:
    means = group_means(SCORES, GROUP)
    assert means.flatten().tolist() == pytest.approx(
        [0.4, 1, 0.3, 0.4, 1, 0.3, 0.5, 0.5, 0.4, 0.5, 0.5, 0.4], nan_ok=True
    )
    assert group_means(torch.tensor([[NAN], [NAN]]), torch.tensor([0, 0])).isnan().all()
    assert group_means(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)).shape == (0, 2)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_attributed_sums_equal_the_weighted_rewards(data: st.DataObject) -> None:
    """The attribution invariant, for rewards of any sign and ceilings above them."""
    number = st.floats(-5, 5, width=32)
    rewards = torch.tensor([[data.draw(number), data.draw(st.one_of(number, st.just(NAN)))]])
    ceilings = rewards + torch.tensor([[data.draw(st.floats(0, 3)), data.draw(st.floats(0, 3))]])
    alpha = torch.tensor([[0.7, 0.3]])
    spans = [(i, i + 2) for i in range(0, 10, 2)]
    evidence = [{"a": [Span(2, 5, 1.0), Span(6, 8, 0.5)]}]
    mode = data.draw(st.sampled_from(["dense", "uniform", "terminal", "potential"]))
    placed = Attribution(
        rewards, alpha, evidence, ["a", "b"], [spans], [[(0, 8)]], torch.ones(1, 5), mode, ceilings=ceilings
    ).components()
    assert placed.sum(-1)[0].tolist() == pytest.approx((alpha * rewards).nan_to_num(0)[0].tolist(), abs=1e-5)


def test_dense_attribution_charges_what_is_missing_to_the_ceiling() -> None:
    """alpha 0.5, reward -1 of at most 3, four code tokens: credit 0.5 * 3 / 4 each, loss 0.5 * 4 to the blamed."""
    given = (torch.tensor([[-1.0]]), torch.tensor([[0.5]]), [{"a": [Span(2, 4)]}], ["a"])
    spans = [(0, 2), (2, 4), (4, 6), (6, 8)]
    placed = Attribution(*given, [spans], [[(0, 8)]], torch.ones(1, 4), ceilings=torch.tensor([[3.0]])).total()
    assert placed[0].tolist() == pytest.approx([0.375, 0.375 - 2.0, 0.375, 0.375])
    with pytest.raises(ValueError, match=r"ceilings has shape \(1, 2\)"):
        Attribution(*given, [spans], [[(0, 8)]], torch.ones(1, 4), ceilings=torch.ones(1, 2))


def test_bad_settings_are_named() -> None:
    for bad in ({"ema": 1.0}, {"sigma_floor": 0.0}):
        with pytest.raises(ValueError, match="ema must lie in"):
            ScoreNormalizer(**bad)
