"""FiLM (eq. 7): the identity at the start, never inverts a reward, trained by the meta-objective, NaN stays masked."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.dterm import HashingEncoder, HypernetworkWeighting
from lightning_dterm.dterm.film import FiLM, FilmKind, affine_film, monotone_film

NAN = math.nan
unit = st.floats(0, 1, width=32)


def film(kind: FilmKind, std: float = 1.0, components: int = 3) -> FiLM:
    torch.manual_seed(0)
    assert kind != "none"
    one = FiLM(4, components, kind)
    torch.nn.init.normal_(one.head.weight, std=std)
    torch.nn.init.normal_(one.head.bias, std=std)
    return one


@settings(max_examples=100, deadline=None)
@given(low=unit, high=unit, features=st.lists(st.floats(-30, 30), min_size=4, max_size=4))
def test_a_higher_score_never_lowers_the_reward_and_the_range_is_kept(
    low: float, high: float, features: list[float]
) -> None:
    low, high = min(low, high), max(low, high)
    scores = torch.tensor([[[low] * 3, [high] * 3, [0.0] * 3, [1.0] * 3]])
    got = film("monotone", 5.0)(scores, torch.tensor([features]))[0]
    assert (got[1] >= got[0] - 1e-6).all()
    assert ((got >= 0) & (got <= 1)).all()
    assert got[2].tolist() == [0.0] * 3
    assert got[3].tolist() == [1.0] * 3


def test_the_affine_map_of_the_paper_can_invert() -> None:
    """What ``monotone`` is there to prevent."""
    got = affine_film(torch.tensor([0.2, 0.9]), torch.tensor(-2.0), torch.tensor(0.5))
    assert got.tolist() == pytest.approx([0.3, -0.4])


@pytest.mark.parametrize(
    ("score", "gain", "shift"),
    [(0.3, 1.0, 0.0), (0.3, 2.5, 0.0), (0.75, 0.25, 1.0), (0.5, 4.0, -2.0), (0.999, 3.0, 0.7), (1e-4, 0.4, 0.1)],
)
def test_the_monotone_map_is_a_sigmoid_of_the_scaled_and_shifted_logit(score: float, gain: float, shift: float) -> None:
    inner = gain * math.log(score / (1 - score)) + shift
    got = monotone_film(torch.tensor(score), torch.tensor(math.log(gain)), torch.tensor(shift))
    assert float(got) == pytest.approx(1 / (1 + math.exp(-inner)), rel=1e-3)


@pytest.mark.parametrize("kind", ["monotone", "unconstrained"])
def test_it_starts_as_the_identity_to_the_bit(kind: FilmKind) -> None:
    assert kind != "none"
    scores = torch.cat([torch.rand(500, 3), torch.tensor([[0.0, 1.0, 1e-7], [NAN, 0.5, 1 - 1e-7]])])
    got = FiLM(4, 3, kind)(scores, torch.randn(502, 4) * 10)
    assert torch.equal(got.nan_to_num(-1), scores.nan_to_num(-1))


@pytest.mark.parametrize("kind", ["monotone", "unconstrained"])
def test_masks_stay_and_gradients_are_finite(kind: FilmKind) -> None:
    one = film(kind)
    scores = torch.tensor([[0.0, NAN, 1.0], [NAN, NAN, NAN], [0.5, 0.0, 1e-30]])
    features = torch.randn(3, 4)
    got = one(scores, features)
    assert torch.equal(got.isnan(), scores.isnan())
    got.nansum().backward()
    assert one.head.weight.grad is not None
    assert torch.isfinite(one.head.weight.grad).all()
    assert (one.head.weight.grad != 0).any()
    rows = one(scores[:, None].expand(3, 5, 3), features)
    assert torch.equal(rows[:, 2].nan_to_num(-1), got.nan_to_num(-1))


def test_distance_is_zero_for_the_identity_alone() -> None:
    features = torch.randn(2, 4)
    assert FiLM(4, 3, "monotone").distance(features).tolist() == [0, 0]
    one = film("unconstrained")
    gain, shift = (one.head.weight @ features[0] + one.head.bias).chunk(2)
    wanted = sum(float(v) ** 2 for v in torch.cat([gain, shift]).detach()) / 3
    assert one.distance(features)[0].item() == pytest.approx(wanted, rel=1e-5)


def test_the_meta_objective_trains_it() -> None:
    """Success needs a *full* score: half a score is worth nothing, and FiLM is told so by the ranking alone.

    Component b, of the same range, is noise. With raw scores the ranking can only shift weight from b to a.
    """
    task, names = "fix the crash", ("a", "b")
    losses: dict[str, float] = {}
    for kind in ("none", "monotone"):
        torch.manual_seed(0)
        weighting = HypernetworkWeighting(film=kind)  # type: ignore[arg-type]
        weighting.configure(names, 32)
        optimizer = torch.optim.Adam(weighting.parameters(), lr=6e-3)
        generator = torch.Generator().manual_seed(1)
        embedding = HashingEncoder(32).encode([task] * 24)
        group, mask = torch.arange(4).repeat_interleave(6), torch.ones(24, 2, dtype=torch.bool)
        for _ in range(60):
            half = torch.randint(0, 3, (24, 1), generator=generator) / 2  # 0, 1/2 or 1
            scores = torch.cat([half.clamp(0.02, 0.98), torch.rand(24, 1, generator=generator)], -1)
            weighting.observe(scores, mask, embedding, (half[:, 0] == 1).float(), group, ["repair"] * 24)
            loss = weighting.meta_loss()
            assert loss is not None
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[kind] = weighting.metrics()["weighting/rank_loss"]
        if kind == "monotone":
            assert weighting.hypernetwork is not None
            got = weighting.hypernetwork.modulate(torch.tensor([[0.5, 0.5]]), embedding[:1])
            assert got[0, 0].item() < 0.45  # stricter than at the start, where it was 0.5
            assert weighting.metrics()["weighting/film_distance"] > 0
        else:
            assert "weighting/film_distance" not in weighting.metrics()
    assert losses["monotone"] < 0.98 * losses["none"]
