from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_dterm.dterm import (
    FixedWeighting,
    HashingEncoder,
    Hypernetwork,
    HypernetworkWeighting,
    OutcomeRanking,
    UniformWeighting,
    Weighting,
)
from lightning_dterm.dterm.hypernetwork import PrototypeAttention, floor_weights, masked_softmax

NAMES = ("compile", "tests", "style")
PRIOR = {"tests": 0.5, "compile": 0.3, "style": 0.2}
ALL = torch.ones(1, 3, dtype=torch.bool)


def configured(weighting: Weighting, dim: int = 8) -> Weighting:
    torch.manual_seed(0)
    weighting.configure(NAMES, dim)
    return weighting


def disturbed(**settings: Any) -> HypernetworkWeighting:
    weighting = HypernetworkWeighting(PRIOR, **settings)
    configured(weighting)
    assert weighting.hypernetwork is not None
    torch.nn.init.normal_(weighting.hypernetwork.mlp[-1].weight, std=1.0)
    return weighting


masks = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6).map(torch.tensor)


@settings(max_examples=150, deadline=None)
@given(mask=masks, kind=st.sampled_from(["uniform", "fixed", "hypernetwork"]))
def test_rows_sum_to_one_over_applicable_components(mask: Tensor, kind: str) -> None:
    weighting = {
        "uniform": lambda: configured(UniformWeighting()),
        "fixed": lambda: configured(FixedWeighting(PRIOR)),
        "hypernetwork": lambda: disturbed(eps=0.05),
    }[kind]()
    alpha = weighting(torch.randn(len(mask), 8) * 5, mask, ["repair"] * len(mask))
    assert alpha.dtype == torch.float32
    assert (alpha[~mask] == 0).all()
    assert torch.allclose(alpha.sum(-1), mask.any(-1).float(), atol=1e-6)
    if kind == "hypernetwork":
        assert (alpha[mask] >= 0.05 - 1e-6).all()


def test_uniform_and_fixed_by_hand() -> None:
    mask = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    uniform = configured(UniformWeighting())(None, mask, ["a"] * 3)
    assert uniform.flatten().tolist() == pytest.approx([1 / 3] * 3 + [0.5, 0, 0.5] + [0] * 3)
    fixed = configured(FixedWeighting({"compile": 1, "tests": 2, "style": 1}))(None, mask, ["a"] * 3)
    assert fixed.flatten().tolist() == pytest.approx([0.25, 0.5, 0.25, 0.5, 0, 0.5, 0, 0, 0])
    only = configured(FixedWeighting({"compile": 0, "tests": 1, "style": 0}))(None, mask, ["a"] * 3)
    assert only.flatten().tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]


@given(mask=masks, scale=st.floats(0.1, 100))
@settings(max_examples=80, deadline=None)
def test_hypernetwork_starts_at_the_prior(mask: Tensor, scale: float) -> None:
    weighting = configured(HypernetworkWeighting(PRIOR, eps=0.05))
    alpha = weighting(torch.randn(len(mask), 8) * scale, mask, [""] * len(mask))
    prior = torch.tensor([0.3, 0.5, 0.2]) * mask
    expected = prior / prior.sum(-1, keepdim=True).clamp(min=1e-9)
    assert torch.allclose(alpha, expected, atol=1e-6)


def test_hypernetwork_forward_equals_its_equations() -> None:
    weighting = disturbed(eps=0.02)
    network = weighting.hypernetwork
    assert network is not None
    e = torch.randn(8)
    x = (e - e.mean()) / (e.var(unbiased=False) + 1e-5).sqrt()
    p = network.attention.prototypes
    a = torch.softmax(p @ (network.attention.query.weight @ x) / math.sqrt(p.shape[1]), 0)
    h = torch.cat([x, a @ p])
    for layer in (network.mlp[0], network.mlp[2]):
        h = torch.nn.functional.gelu(layer.weight @ h + layer.bias)
    shift = network.mlp[4].weight @ h + network.mlp[4].bias
    mask = torch.tensor([True, False, True])
    prior = torch.tensor([0.3 / 0.5, 0.2 / 0.5])
    q = (prior - 0.02) / (1 - 2 * 0.02)
    unnormalised = q * shift[mask].exp()
    expected = (1 - 2 * 0.02) * unnormalised / unnormalised.sum() + 0.02
    got = weighting(e[None], mask[None], [""])[0]
    assert torch.allclose(got[mask], expected, atol=1e-5)


def test_pieces_of_the_hypernetwork() -> None:
    attention = PrototypeAttention(8, prototypes=4, prototype_dim=3)
    weights = attention.attention(torch.randn(5, 8))
    assert weights.shape == (5, 4)
    assert torch.allclose(weights.sum(-1), torch.ones(5))
    assert attention(torch.randn(5, 8)).shape == (5, 3)
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    alpha = masked_softmax(logits, mask)
    assert alpha.tolist() == [[1, 0, 0], [0, 0, 0]]
    alpha[:, 0].sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    floored = floor_weights(alpha.detach(), mask, 0.1)
    assert floored.flatten().tolist() == pytest.approx([0.9, 0.1, 0, 0, 0, 0])
    assert sum(p.numel() for p in Hypernetwork(8, torch.ones(2) / 2).parameters()) > 0


def test_configuring_again() -> None:
    for weighting in (UniformWeighting(), FixedWeighting(PRIOR), HypernetworkWeighting(PRIOR)):
        configured(weighting)
        before = {name: p.clone() for name, p in weighting.named_parameters()}
        weighting.configure(NAMES, 8)
        assert all(torch.equal(before[name], p) for name, p in weighting.named_parameters())
        with pytest.raises(ValueError, match="already configured"):
            weighting.configure((*NAMES, "ast"), 8)
    with pytest.raises(ValueError, match="already configured"):
        weighting.configure(NAMES, 9)
    with pytest.raises(ValueError, match="distinct"):
        UniformWeighting().configure(("a", "a"), 8)
    with pytest.raises(RuntimeError, match="before configure"):
        HypernetworkWeighting()(torch.zeros(1, 8), ALL, [""])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: configured(FixedWeighting({"tests": 1.0})), r"missing: \['compile', 'style'\]"),
        (lambda: configured(FixedWeighting({**PRIOR, "bleu": 1})), r"not a component: \['bleu'\]"),
        (lambda: FixedWeighting({"tests": -1.0}), r"\['tests'\] must be finite and not negative"),
        (lambda: FixedWeighting({"tests": 0.0}), "at least one positive"),
        (lambda: configured(HypernetworkWeighting({"tests": 1.0})), "missing"),
        (
            lambda: configured(HypernetworkWeighting({**PRIOR, "style": 0.001})),
            r"\['style'\] does not exceed the floor",
        ),
        (lambda: configured(HypernetworkWeighting(eps=0.4)), "does not exceed the floor"),
        (lambda: configured(HypernetworkWeighting(eps=-0.1)), "eps=-0.1"),
        (lambda: HypernetworkWeighting(prototypes=0), "at least 1"),
    ],
)
def test_bad_settings_name_the_culprit(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


FAMILIES = {"repair": "fix the crash in this program", "synthesis": "write a function that adds numbers"}
IDLE = "describe what this code does in one line"


def bandit_step(weighting: Weighting, generator: torch.Generator, idle: bool = True, informative: bool = True) -> None:
    """Outcome follows ``tests`` for repair and ``style`` for synthesis; summarization always succeeds."""
    encoder = HashingEncoder(64)
    texts = {**FAMILIES, "summarization": IDLE} if idle else FAMILIES
    scores, outcome, types, group = [], [], [], []
    for index, name in enumerate([name for name in texts for _ in range(2)]):
        own = torch.rand(6, 3, generator=generator)
        driver = {"repair": 1, "synthesis": 2}.get(name)
        scores.append(own)
        outcome.append((own[:, driver] > 0.5).float() if driver and informative else torch.ones(6))
        types += [name] * 6
        group += [index] * 6
    flat = torch.cat(scores)
    embedding = encoder.encode([texts[name] for name in types])
    mask = torch.ones_like(flat, dtype=torch.bool)
    weighting.observe(flat, mask, embedding, torch.cat(outcome), torch.tensor(group), types)


def train(weighting: Weighting, optimizer: torch.optim.Optimizer, steps: range, **kwargs: bool) -> int:
    taken = 0
    for step in steps:
        bandit_step(weighting, torch.Generator().manual_seed(step), **kwargs)
        loss = weighting.meta_loss()
        if loss is not None:
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weighting.parameters(), 1.0)
            optimizer.step()
            taken += 1
    return taken


def weights_of(weighting: Weighting, text: str) -> list[float]:
    with torch.no_grad():
        return weighting(HashingEncoder(64).encode([text]), ALL, [""])[0].tolist()


def test_bandit_raises_the_component_that_drives_each_family() -> None:
    prior = {"compile": 0.4, "tests": 0.3, "style": 0.3}
    weighting = HypernetworkWeighting(prior)
    configured(weighting, 64)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=1e-3)
    assert train(weighting, optimizer, range(150)) == 150
    repair, synthesis = weights_of(weighting, FAMILIES["repair"]), weights_of(weighting, FAMILIES["synthesis"])
    assert repair[1] > 0.6
    assert synthesis[2] > 0.6
    # the family without an informative group is held at the prior
    assert weights_of(weighting, IDLE) == pytest.approx([0.4, 0.3, 0.3], abs=0.1)
    metrics = weighting.metrics()
    assert metrics["weighting/pair_accuracy"] > 0.9
    assert metrics["weighting/beta"] > 2
    assert metrics["weighting/kl_to_prior"] > 0


def test_nothing_informative_leaves_the_prior_untouched() -> None:
    weighting = HypernetworkWeighting(PRIOR)
    configured(weighting, 64)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=1e-3)
    assert train(weighting, optimizer, range(5), informative=False) == 0
    assert weights_of(weighting, FAMILIES["repair"]) == pytest.approx([0.3, 0.5, 0.2], abs=1e-6)
    assert weighting.metrics() == {}


def test_resume_is_exact_and_weights_only_safe() -> None:
    def fresh() -> tuple[HypernetworkWeighting, torch.optim.Adam]:
        weighting = HypernetworkWeighting(PRIOR, objective=OutcomeRanking(fifo=5))
        configured(weighting, 64)
        return weighting, torch.optim.Adam(weighting.parameters(), lr=1e-3)

    whole, optimizer = fresh()
    train(whole, optimizer, range(8))

    half, optimizer = fresh()
    train(half, optimizer, range(4))
    file = io.BytesIO()
    torch.save({"state": half.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, optimizer = fresh()
    resumed.load_state_dict(saved["state"])
    assert resumed.metrics() == half.metrics()
    optimizer.load_state_dict(saved["optimizer"])
    train(resumed, optimizer, range(4, 8))

    for (name, left), right in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right), name
    assert whole.metrics() == resumed.metrics()

    other = HypernetworkWeighting()
    other.configure(("compile", "tests", "bleu"), 64)
    with pytest.raises(ValueError, match="trained with components"):
        other.load_state_dict(saved["state"])


def test_state_survives_the_distributed_state_dict_functions() -> None:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )

    weighting = HypernetworkWeighting(PRIOR)
    configured(weighting, 64)
    train(weighting, torch.optim.Adam(weighting.parameters(), lr=1e-3), range(2))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(weighting, options=options)
    other = HypernetworkWeighting(PRIOR)
    other.configure(NAMES, 64)
    set_model_state_dict(other, state, options=options)
    assert float(other.meta_loss()) == float(weighting.meta_loss())


def test_float32_under_autocast_and_half_parameters() -> None:
    weighting = disturbed()
    embedding = torch.randn(2, 8)
    plain = weighting(embedding, ALL.expand(2, 3), [""] * 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = weighting(embedding, ALL.expand(2, 3), [""] * 2)
    assert torch.equal(plain, cast)
    half = weighting.to(torch.bfloat16)(embedding.bfloat16(), ALL.expand(2, 3), [""] * 2)
    assert half.dtype == torch.float32
    assert torch.allclose(half.sum(-1), torch.ones(2))
    assert torch.allclose(half, plain, atol=0.05)


def test_the_prior_is_no_state_and_older_states_still_load_strictly() -> None:
    given, other = (HypernetworkWeighting({"a": a, "b": 1 - a}) for a in (0.3, 0.8))
    for weighting in (given, other):
        weighting.configure(("a", "b"), 4)
    state = given.state_dict()
    assert "hypernetwork.prior" not in state
    other.load_state_dict({**state, "hypernetwork.prior": torch.tensor([0.3, 0.7])}, strict=True)
    assert other.prior == {"a": 0.8, "b": pytest.approx(0.2)}
    alpha = other(torch.zeros(1, 4), torch.ones(1, 2, dtype=torch.bool), ["repair"])
    assert torch.allclose(alpha, torch.tensor([[0.8, 0.2]]), atol=1e-6)
