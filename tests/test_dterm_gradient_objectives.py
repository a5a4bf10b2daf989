"""Alignment and look-ahead: against loops, enumerated expectations and real steps of a tiny policy; what they learn."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_dterm.dterm import GradientAlignment, HypernetworkWeighting, LookAhead, MetaObjective
from lightning_dterm.dterm.alignment import alignment_losses, first_halves, halves_per_family
from lightning_dterm.dterm.lookahead import lookahead_losses, stepped_success
from tests.toy_policy import VOCABULARY, WIDTH, ToyPolicy

NAN = math.nan
D = VOCABULARY * WIDTH
CUTS = list(itertools.combinations(range(4), 2))  # every way to part 4 samples in two, in both roles


def case() -> dict[str, Any]:
    """5 groups of 4 in two families; one lacks a sample, one the outcome of one, one outcome does not vary."""
    torch.manual_seed(0)
    outcome = torch.rand(5, 4, dtype=torch.float64).round(decimals=1)
    gradients = torch.randn(5, 4, 3, dtype=torch.float64) + torch.randn(5, 1, 3) + 0.5
    outcome[1, 2], outcome[2, 3], gradients[2, 3] = NAN, NAN, NAN
    outcome[3] = 0.5
    return {
        "alpha": torch.rand(5, 2, dtype=torch.float64),
        "z": torch.randn(5, 4, 2, dtype=torch.float64),
        "outcome": outcome,
        "gradients": gradients,
        "family": torch.tensor([0, 0, 0, 1, 1]),
        "families": 2,
    }


def contributions(values: list[float]) -> list[float]:
    if len(values) < 2:
        return [0.0] * len(values)
    return [(v - sum(values) / len(values)) / (len(values) - 1) for v in values]


def directions(given: dict[str, Any], f: int, half: tuple[int, ...]) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Reward's gradient of ``half``, success's of the rest, and what is held: loops over floats."""
    reward, success, held = torch.zeros(3).double(), torch.zeros(3).double(), []
    for g in [g for g in range(5) if int(given["family"][g]) == f]:
        inside = [j for j in half if not given["gradients"][g, j].isnan().any()]
        outside = [j for j in range(4) if j not in half and not given["outcome"][g, j].isnan()]
        composite = [float(given["alpha"][g] @ given["z"][g, j]) for j in inside]
        for j, c in zip(inside, contributions(composite), strict=True):
            reward += c * given["gradients"][g, j]
        for j, c in zip(outside, contributions([float(given["outcome"][g, j]) for j in outside]), strict=True):
            success += c * given["gradients"][g, j]
        held += [(g, j) for j in outside if len(outside) > 1]
    return reward, success, held


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_alignment_equals_the_written_formula() -> None:
    given = case()
    got = alignment_losses(**given, min_groups=4.0)
    for f, informative in ((0, 3), (1, 1)):
        aligned, agreed = [], []
        for half in CUTS:
            reward, success, _ = directions(given, f, half)
            other = directions(given, f, tuple(j for j in range(4) if j not in half))[1]
            if float(success.norm()) > 1e-6:
                aligned.append(cosine(reward, success))
                agreed.append(cosine(other, success) if float(other.norm()) > 1e-6 else 0.0)
        agreement = max(0.0, sum(agreed) / len(agreed))
        expected = agreement * (1 - sum(aligned) / len(aligned)) * informative / 4
        assert float(got[f]) == pytest.approx(expected, abs=1e-6)
    assert float(got.max()) > 0.05  # not the trivial case


def test_lookahead_equals_the_written_formula() -> None:
    given, step = case(), 0.8
    got = lookahead_losses(**given, step=step, min_groups=4.0)
    for f, informative in ((0, 3), (1, 1)):
        gains = []
        for half in CUTS:
            reward, _, held = directions(given, f, half)
            slope = {(g, j): float(reward @ given["gradients"][g, j]) for g, j in held}
            for g in {g for g, _ in held}:
                mean = sum(s for (h, _), s in slope.items() if h == g) / sum(h == g for h, _ in held)
                slope.update({key: s - mean for key, s in slope.items() if key[0] == g})
            rms = math.sqrt(sum(s * s for s in slope.values()) / len(slope))
            gain = 0.0
            for g in {g for g, _ in held}:
                rows = [j for h, j in held if h == g]
                ratios = [math.exp(step * slope[g, j] / rms) for j in rows]
                outcomes = [float(given["outcome"][g, j]) for j in rows]
                gain += sum(r * s for r, s in zip(ratios, outcomes, strict=True)) / sum(ratios)
                gain -= sum(outcomes) / len(rows)
            gains.append(gain)
        groups = int((given["family"] == f).sum())
        expected = -sum(gains) / len(gains) / groups / step * informative / 4
        assert float(got[f]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [2, 4, 5, 8, 16])
def test_halves_part_samples_evenly(size: int) -> None:
    cuts = first_halves(size)
    middle = len(cuts) // 2
    assert torch.equal(cuts[:middle], ~cuts[middle:])
    assert len({tuple(row) for row in cuts.tolist()}) == len(cuts)
    if size == 4:
        assert {tuple(row.nonzero()[:, 0].tolist()) for row in cuts} == set(CUTS)
    if size & (size - 1) == 0:
        assert set(cuts.sum(1).tolist()) == {size // 2}
        parted = (cuts[:, :, None] != cuts[:, None, :]).sum(0)
        assert set(parted[~torch.eye(size, dtype=torch.bool)].tolist()) == {size}  # any two, equally often


def test_cross_fitting_is_unbiased_and_pays_nothing_for_shared_luck() -> None:
    """Reward and success are the policy's share of token 0 plus one coin per sample, which the policy cannot act on."""
    policy = ToyPolicy(prompts=1)
    truth = policy.gradient(lambda tokens: float((tokens == 0).double().mean()))
    draws = 1500
    tokens = policy.sample(4 * draws).view(draws, 4, -1)
    gradients = policy.scores(tokens.flatten(0, 1)[None]).view(draws, 4, D)
    coin = 3.0 * torch.rand(draws, 4, generator=policy.generator, dtype=torch.float64).round()
    value = (tokens == 0).double().mean(-1) + coin
    ones = torch.ones(draws, 1, dtype=torch.float64)
    cuts = next(halves_per_family(ones, value[..., None], value, gradients, torch.zeros(draws).long(), 1))
    reward = torch.einsum("qgk,gkd->qgd", cuts.reward, gradients)
    success = torch.einsum("qgk,gkd->qgd", cuts.success, gradients)
    estimates = (reward * success).sum(-1).mean(0)  # one a draw
    error = float(estimates.std() / math.sqrt(draws))
    assert float(estimates.mean()) == pytest.approx(float(truth @ truth), abs=4 * error)
    same = torch.einsum("gk,gkd->gd", (value - value.mean(1, keepdim=True)) / 3, gradients).square().sum(-1).mean()
    assert float(same) > float(truth @ truth) + 10 * error  # the same samples for both: the coin pays


def test_lookahead_against_a_real_step() -> None:
    """The virtual step's success against that of a policy which was really moved: nearer than the linear estimate."""
    policy = ToyPolicy(prompts=1, seed=3)
    tokens = policy.sample(4000)
    success = ((tokens == 0).any(-1)).double()
    gradient = policy.gradient(lambda tokens: float((tokens == 0).any()))
    slope = policy.scores(tokens) @ gradient
    held = torch.ones(1, 1, 4000, dtype=torch.bool)

    def succeeds(tokens: Tensor) -> float:
        return float((tokens == 0).any())

    before = policy.expectation(policy.weight, 0, succeeds)
    for eta, tolerance in ((0.2, 0.002), (4.0, 0.08)):
        moved = policy.weight + eta * gradient.view_as(policy.weight)
        real = float(policy.expectation(moved, 0, succeeds) - before)
        gain = float(stepped_success(eta * slope[None], success, held))
        linear = eta * float(gradient @ gradient)
        assert gain == pytest.approx(real, abs=tolerance)
        assert real > 0.005
    assert abs(gain - real) < abs(linear - real) / 3  # of the bold step


def test_lookahead_turns_linear_only_for_small_steps() -> None:
    given = case()
    at = {step: float(lookahead_losses(**given, step=step).sum()) for step in (1e-4, 1e-3, 3.0)}
    assert at[1e-3] == pytest.approx(at[1e-4], rel=1e-2)
    assert at[3.0] != pytest.approx(at[1e-4], rel=0.1)
    given["alpha"].requires_grad_(True)
    aligned, ahead = (
        torch.autograd.grad(loss, given["alpha"])[0].flatten()
        for loss in (alignment_losses(**given).sum(), lookahead_losses(**given).sum())
    )
    assert abs(cosine(aligned, ahead)) < 0.98  # no multiple of each other


NAMES = ("useful", "opposed", "other")


def observed(weighting: HypernetworkWeighting, policy: ToyPolicy, signal: bool, gradients: bool = True) -> None:
    """Token 0 is success; ``useful`` is its share, ``opposed`` one minus that, ``other`` the share of token 2."""
    tokens = policy.sample(4)
    groups = len(tokens)
    useful, other = (tokens == 0).float().mean(-1), (tokens == 2).float().mean(-1)
    coin = torch.rand(groups, 4, generator=policy.generator).round()
    outcome = (tokens == 0).any(-1).float() if signal else coin
    rows = torch.nn.functional.pad(policy.scores(tokens).float(), (0, 16 - D)).flatten(0, 1)
    flat = torch.stack([useful, 1 - useful, other], -1).flatten(0, 1)
    weighting.observe(
        flat, torch.ones_like(flat, dtype=torch.bool), torch.linspace(-1, 1, 8).expand(len(flat), 8),
        outcome.flatten(), torch.arange(groups).repeat_interleave(4), ["repair"] * len(flat),
        gradients=rows if gradients else None,
    )  # fmt: skip


def made(objective: MetaObjective) -> tuple[HypernetworkWeighting, torch.optim.Adam]:
    weighting = HypernetworkWeighting(dict(zip(NAMES, (0.3, 0.3, 0.4), strict=True)), objective=objective, film="none")
    torch.manual_seed(0)
    weighting.configure(NAMES, 8)
    return weighting, torch.optim.Adam(weighting.parameters(), lr=2e-3)


def train(weighting: HypernetworkWeighting, optimizer: Any, policy: ToyPolicy, steps: int, signal: bool = True) -> None:
    for _ in range(steps):
        observed(weighting, policy, signal)
        loss = weighting.meta_loss()
        if loss is not None:
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weighting.parameters(), 1.0)
            optimizer.step()


def weights_of(weighting: HypernetworkWeighting) -> list[float]:
    with torch.no_grad():
        return weighting(torch.linspace(-1, 1, 8)[None], torch.ones(1, 3, dtype=torch.bool), ["repair"])[0].tolist()


OBJECTIVES = [lambda: GradientAlignment(sketch=4), lambda: LookAhead(sketch=4)]


@pytest.mark.parametrize("make", OBJECTIVES)
def test_the_useful_component_is_raised_and_the_opposed_one_lowered(make: Any) -> None:
    weighting, optimizer = made(make())
    train(weighting, optimizer, ToyPolicy(prompts=8), 30)
    useful, opposed, other = weights_of(weighting)
    assert useful > 0.5
    assert opposed < 0.2
    assert other < 0.4
    assert weighting.metrics()["weighting/pair_accuracy"] > 0.9
    assert f"weighting/{weighting.objective.loss_name}" in weighting.metrics()


@pytest.mark.parametrize("make", OBJECTIVES)
def test_a_success_without_signal_teaches_nothing(make: Any) -> None:
    """A coin as success: the gradient in the weights, at the prior, is 0 but for noise over independent lots."""
    pulls: dict[bool, list[Tensor]] = {True: [], False: []}
    for signal, seed in itertools.product((True, False), range(24)):
        objective = make()
        weighting, _ = made(objective)
        policy = ToyPolicy(prompts=8, common=0.5)
        policy.generator.manual_seed(seed)
        observed(weighting, policy, signal)
        loss = weighting.meta_loss()
        assert loss is not None
        assert weighting.hypernetwork is not None
        pulls[signal].append(torch.autograd.grad(loss, weighting.hypernetwork.mlp[-1].bias)[0])
    real, coin = (torch.stack(pulls[signal]) for signal in (True, False))
    error = coin.std(0) / math.sqrt(len(coin))
    assert (coin.mean(0).abs() < 4 * error).all()
    assert float(real[:, 0].mean()) < -4 * float(error[0])  # down is more weight


@pytest.mark.parametrize("make", OBJECTIVES)
def test_resume_is_exact_and_weights_only_safe(make: Any) -> None:
    whole, optimizer = made(make())
    train(whole, optimizer, policy := ToyPolicy(prompts=3), 3)
    file = io.BytesIO()
    torch.save({"state": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    state = policy.generator.get_state()
    train(whole, optimizer, policy, 2)
    resumed, again = made(make())
    resumed.load_state_dict(saved["state"])
    again.load_state_dict(saved["optimizer"])
    policy.generator.set_state(state)
    train(resumed, again, policy, 2)
    for (name, left), right in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right), name
    assert whole.metrics() == resumed.metrics()
    assert not whole.objective._recent["repair"].gradients.numel()  # type: ignore[union-attr, index]
    other, _ = made(type(whole.objective)(sketch=5))
    with pytest.raises(ValueError, match="with sketch 5 needs policy gradients of width 25, the checkpoint has 16"):
        other.load_state_dict(saved["state"])


def test_missing_gradients_and_bad_settings_are_named() -> None:
    weighting, _ = made(GradientAlignment(sketch=4))
    with pytest.raises(ValueError, match=r"GradientAlignment with sketch 4 needs .* width 16, the rollout has 0"):
        observed(weighting, ToyPolicy(prompts=1), True, gradients=False)
    for bad, message in (({"min_groups": 0}, "min_groups"), ({"sketch": 0}, "sketch"), ({"step": 0.0}, "step")):
        with pytest.raises(ValueError, match=message):
            LookAhead(**bad)  # type: ignore[arg-type]


def test_gradients_are_finite_where_there_is_nothing() -> None:
    alpha = torch.full((3, 2), 0.5, requires_grad=True)
    z, outcome = torch.zeros(3, 4, 2), torch.tensor([[0.0, 1.0, 0.0, 1.0], [NAN, NAN, 1.0, 0.0], [0.5] * 4])
    gradients = torch.zeros(3, 4, 5)
    family = torch.tensor([0, 0, 2])  # none of family 1
    for losses in (alignment_losses, lookahead_losses):
        total = losses(alpha, z, outcome, gradients, family, 3)
        assert total.shape == (3,)
        (gradient,) = torch.autograd.grad(total.sum(), alpha)
        assert torch.isfinite(gradient).all()
