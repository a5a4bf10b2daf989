"""Potential-based shaping leaves the optimal policy alone: exact dynamic programming on an MDP of token strings."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.attribution import Attribution
from lightning_dterm.types import Span
from tests.test_attribution_distribute import MASK, NAMES, TOKENS, batches

LENGTH = 4
END = "."
ALPHA = (0.7, 0.3)
BAD = ({"bb": 0.7}, {"ab": 1.3, "aa": 0.4})  # per component: what is wrong, known when its last letter is there
Rewards = dict[tuple[str, str], float]


def completions(truncated: bool) -> list[str]:
    """All strings over a and b up to LENGTH; each ends with END, or (truncated) the longest ones just stop."""
    texts = ["".join(t) for n in range(LENGTH + 1) for t in itertools.product("ab", repeat=n)]
    return [text if truncated and len(text) == LENGTH else text + END for text in texts]


def spans_of(text: str, bad: dict[str, float]) -> list[Span]:
    return [Span(i, i + len(w), weight) for w, weight in bad.items() for i in range(len(text)) if text.startswith(w, i)]


def token_rewards(
    episodes: list[str], scores: torch.Tensor, evidence: list[dict[str, list[Span]]], mode: str, gamma: float
) -> list[list[float]]:
    letters = [episode.removesuffix(END) for episode in episodes]
    spans = [[(i, min(i + 1, len(text))) for i in range(len(e))] for e, text in zip(episodes, letters, strict=True)]
    width = LENGTH + 1
    total = Attribution(
        scores,
        torch.tensor([ALPHA] * len(episodes)),
        evidence,
        ("x", "y"),
        spans,
        [[(0, len(text))] if text else [] for text in letters],
        torch.tensor([[i < len(e) for i in range(width)] for e in episodes]),
        mode,  # type: ignore[arg-type]
        gamma=gamma,
        potential_scale=1.5,
    ).total()
    return [row[: len(e)] for row, e in zip(total.tolist(), episodes, strict=True)]


def as_mdp(episodes: list[str], rewards: list[list[float]]) -> Rewards:
    """Reward of each action in each prefix; fails unless it is a function of prefix and action alone."""
    table: Rewards = {}
    for episode, row in zip(episodes, rewards, strict=True):
        for at, reward in enumerate(row):
            known = table.setdefault((episode[:at], episode[at]), reward)
            assert known == pytest.approx(reward, abs=1e-6)
    return table


def action_values(table: Rewards, gamma: float, policy: dict[str, dict[str, float]] | None) -> Rewards:
    """Exact Q by backward induction: of ``policy``, or of the best one (value iteration on a tree needs one sweep)."""
    actions: dict[str, list[str]] = {}
    for state, action in table:
        actions.setdefault(state, []).append(action)
    q: Rewards = {}
    for state in sorted(actions, key=len, reverse=True):
        for action in actions[state]:
            following = state + action
            value = 0.0
            if action != END and following in actions:
                nexts = [q[following, a] for a in actions[following]]
                chances = policy[following] if policy else None
                value = sum(chances[a] * q[following, a] for a in actions[following]) if chances else max(nexts)
            q[state, action] = table[state, action] + gamma * value
    return q


def potential(prefix: str) -> float:
    """The documented formula, from the prefix alone."""
    return -sum(
        1.5 * alpha * (1 - math.exp(-sum(span.weight for span in spans_of(prefix, bad))))
        for alpha, bad in zip(ALPHA, BAD, strict=True)
    )


def best(q: Rewards) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for state in {state for state, _ in q}:
        values = {action: value for (s, action), value in q.items() if s == state}
        found[state] = {a for a, v in values.items() if v > max(values.values()) - 1e-5}
    return found


def random_policy(table: Rewards, draw: random.Random) -> dict[str, dict[str, float]]:
    policy: dict[str, dict[str, float]] = {}
    for state, action in table:
        policy.setdefault(state, {})[action] = draw.random() + 0.01
    return {s: {a: p / sum(chances.values()) for a, p in chances.items()} for s, chances in policy.items()}


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_optimal_policy_and_every_advantage_are_unchanged(truncated: bool, gamma: float, seed: int) -> None:
    episodes = completions(truncated)
    scores = torch.rand(len(episodes), 2, generator=torch.Generator().manual_seed(seed))
    evidence = [
        {name: spans_of(e.removesuffix(END), bad) for name, bad in zip("xy", BAD, strict=True)} for e in episodes
    ]
    plain = as_mdp(episodes, token_rewards(episodes, scores, evidence, "terminal", gamma))
    shaped = as_mdp(episodes, token_rewards(episodes, scores, evidence, "potential", gamma))
    assert any(abs(shaped[key] - plain[key]) > 0.1 for key in plain)  # it does something
    optimal, optimal_shaped = action_values(plain, gamma, None), action_values(shaped, gamma, None)
    assert best(optimal) == best(optimal_shaped)
    policy = random_policy(plain, random.Random(seed))
    for chances in (None, policy):
        q, q_shaped = action_values(plain, gamma, chances), action_values(shaped, gamma, chances)
        for (state, action), value in q.items():
            # Theorem 1 of Ng et al. 1999: Q' = Q - Phi, so that Q' - V' = Q - V in every state.
            assert q_shaped[state, action] == pytest.approx(value - potential(state), abs=1e-5)


def test_the_same_penalties_without_the_potential_do_change_the_optimal_policy() -> None:
    """The control: what the test above would catch."""
    episodes = completions(False)
    found = 0
    for seed in range(4):
        scores = torch.rand(len(episodes), 2, generator=torch.Generator().manual_seed(seed))
        evidence = [{"x": spans_of(e.removesuffix(END), BAD[0])} for e in episodes]
        plain = as_mdp(episodes, token_rewards(episodes, scores, evidence, "terminal", 1.0))
        shaped = as_mdp(episodes, token_rewards(episodes, scores, evidence, "potential", 1.0))
        fined = {key: plain[key] if key[1] == END else shaped[key] for key in plain}  # never paid back
        found += best(action_values(plain, 1.0, None)) != best(action_values(fined, 1.0, None))
    assert found


@settings(max_examples=60, deadline=None)
@given(data=st.data(), gamma=st.sampled_from([1.0, 0.9, 0.3]), truncated=st.booleans())
def test_any_evidence_leaves_every_completions_return_and_so_every_policys(
    data: st.DataObject, gamma: float, truncated: bool
) -> None:
    """Also where evidence depends on what comes later, as that of whole programs does."""
    episodes = completions(truncated)
    draw = random.Random(data.draw(st.integers(0, 10**6)))
    scores = torch.tensor([[draw.random(), draw.random()] for _ in episodes])
    evidence = [
        {name: [Span(draw.randrange(5), draw.randrange(6), 3 * draw.random()) for _ in range(3)] for name in "xy"}
        for _ in episodes
    ]
    returns = {}
    for mode in ("terminal", "potential"):
        rows = token_rewards(episodes, scores, evidence, mode, gamma)
        returns[mode] = [sum(reward * gamma**at for at, reward in enumerate(row)) for row in rows]
    assert returns["potential"] == pytest.approx(returns["terminal"], abs=1e-5)


def one(spans: list[Span], code: list[tuple[int, int]], gamma: float = 1.0, score: float = 0.6) -> list[float]:
    rows = Attribution(
        torch.tensor([[score]]), torch.tensor([[0.5]]), [{"style": spans}], ["style"], [TOKENS], [code], MASK,
        "potential", gamma=gamma, potential_scale=2.0,
    ).components()  # fmt: skip
    return rows[0, 0].tolist()


LOST = 1 - math.exp(-1)  # alpha * scale = 1


@pytest.mark.parametrize(
    ("spans", "code", "gamma", "expected"),
    [
        ([], [(0, 8)], 1.0, [0, 0, 0, 0, 0.3, 0]),
        ([Span(2, 4)], [(0, 8)], 1.0, [0, -LOST, 0, 0, 0.3 + LOST, 0]),
        ([Span(1, 3)], [(0, 8)], 1.0, [0, -LOST, 0, 0, 0.3 + LOST, 0]),  # the token that completes it
        ([Span(2, 4)], [(0, 8)], 0.5, [0, -LOST / 2, LOST / 2, LOST / 2, 0.3 + LOST, 0]),
        ([Span(2, 4, 0.5), Span(3, 4, 0.5)], [(0, 8)], 1.0, [0, -LOST, 0, 0, 0.3 + LOST, 0]),  # overlapping: added
        ([Span(2, 99)], [(0, 8)], 1.0, [0, 0, 0, -LOST, 0.3 + LOST, 0]),  # beyond the kept tokens
        ([Span(2, 8)], [(0, 6)], 1.0, [0, 0, -LOST, 0, 0.3 + LOST, 0]),  # clipped to the code
        ([Span(0, 4, 1e308), Span(0, 4, 1e308)], [(0, 8)], 1.0, [0, -1, 0, 0, 1.3, 0]),
        ([Span(2, 2), Span(2, 4, 0.0), Span(90, 95)], [(0, 8)], 1.0, [0, 0, 0, 0, 0.3, 0]),
        ([Span(2, 4)], [], 1.0, [0, 0, 0, 0, 0.3, 0]),
        ([Span(0, 2)], [(4, 8)], 1.0, [0, 0, 0, 0, 0.3, 0]),
    ],
)
def test_by_hand(spans: list[Span], code: list[tuple[int, int]], gamma: float, expected: list[float]) -> None:
    assert one(spans, code, gamma) == pytest.approx(expected, abs=1e-6)


def test_masked_component_has_no_potential() -> None:
    assert one([Span(2, 4)], [(0, 8)], score=math.nan) == [0] * 6


@settings(max_examples=150, deadline=None)
@given(case=batches(), gamma=st.sampled_from([1.0, 0.9, 0.0]), scale=st.sampled_from([0.5, 1.0, 3.0]))
def test_against_a_character_by_character_oracle(case: dict[str, object], gamma: float, scale: float) -> None:
    scores, alpha, mask = case["scores"], case["alpha"], case["mask"]
    parts = Attribution(
        scores, alpha, case["evidence"], NAMES, case["token_spans"], case["code_spans"], mask, "potential",
        gamma=gamma, potential_scale=scale,
    ).components()  # fmt: skip
    for row in range(len(mask)):
        kept = int(mask[row].sum())
        code = {c for low, high in case["code_spans"][row] for c in range(low, high)}
        owner = {c: t for t, s in enumerate(case["token_spans"][row]) if t < kept for c in range(*s) if c in code}
        for column, name in enumerate(NAMES):
            score, weight = float(scores[row, column]), float(alpha[row, column])
            worst = [0.0] * (kept + 1)  # the potential after so many tokens
            done = [
                (max(owner[c] for c in range(span.start, span.end) if c in owner), span.weight)
                for span in case["evidence"][row].get(name, [])
                if any(c in owner for c in range(span.start, span.end))
            ]
            for count in range(1, kept):
                worst[count] = -scale * weight * (1 - math.exp(-sum(w for t, w in done if t < count)))
            for token in range(mask.shape[1]):
                want = 0.0
                if token < kept and not math.isnan(score):
                    want = gamma * worst[token + 1] - worst[token] + (weight * score if token == kept - 1 else 0.0)
                assert float(parts[row, column, token]) == pytest.approx(want, abs=1e-6)


GIVEN = (torch.ones(1, 1), torch.ones(1, 1), [{}], ["x"], [TOKENS], [[(0, 8)]], MASK, "potential")


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_bad_scale_is_named(scale: float) -> None:
    with pytest.raises(ValueError, match="potential_scale must be positive"):
        Attribution(*GIVEN, potential_scale=scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan])
def test_bad_gamma_is_named(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma must lie"):
        Attribution(*GIVEN, gamma=gamma)  # type: ignore[arg-type]
