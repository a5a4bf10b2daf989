from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.attribution import Attribution, code_token_mask
from lightning_dterm.types import Span

NAMES = ("compile", "tests", "style")
# Five tokens over "def f\n```" style text: two characters each, then an end-of-sequence token without characters.
TOKENS = [(0, 2), (2, 4), (4, 6), (6, 8), (8, 8)]
MASK = torch.tensor([[1, 1, 1, 1, 1, 0]])


def one(score: float, spans: list[Span], code: list[tuple[int, int]], mode: str = "dense", **kw: object) -> list[float]:
    rows = Attribution(
        torch.tensor([[score]]),
        torch.tensor([[0.5]]),
        [{"style": spans}],
        ["style"],
        [TOKENS],
        [code],
        MASK,
        mode,
        **kw,
    ).components()
    return [round(value, 6) for value in rows[0, 0].tolist()]


@pytest.mark.parametrize(
    ("score", "spans", "code", "expected"),
    [
        # alpha 0.5; four code tokens: 0.125 credit each; loss 0.5 * (1 - 0.6) = 0.2 to the blamed
        (0.6, [], [(0, 8)], [0.075, 0.075, 0.075, 0.075, 0, 0]),
        (0.6, [Span(2, 4)], [(0, 8)], [0.125, -0.075, 0.125, 0.125, 0, 0]),
        (0.6, [Span(3, 6)], [(0, 8)], [0.125, 0.125 - 0.2 / 3, 0.125 - 0.4 / 3, 0.125, 0, 0]),  # by characters
        (0.6, [Span(0, 2, 3.0), Span(2, 6, 1.0)], [(0, 8)], [-0.025, 0.1, 0.1, 0.125, 0, 0]),  # weight, not length
        (0.6, [Span(0, 2), Span(0, 4)], [(0, 8)], [-0.025, 0.075, 0.125, 0.125, 0, 0]),  # overlapping spans add up
        (1.0, [Span(2, 4)], [(0, 8)], [0.125, 0.125, 0.125, 0.125, 0, 0]),  # nothing lost, nobody blamed
        (0.0, [Span(2, 4)], [(0, 8)], [0.125, -0.375, 0.125, 0.125, 0, 0]),
        (0.6, [Span(2, 2)], [(0, 8)], [0.075, 0.075, 0.075, 0.075, 0, 0]),  # empty
        (0.6, [Span(2, 4, 0.0)], [(0, 8)], [0.075, 0.075, 0.075, 0.075, 0, 0]),  # weightless
        (0.6, [Span(0, 2, 3e307), Span(2, 6, 1e307)], [(0, 8)], [-0.025, 0.1, 0.1, 0.125, 0, 0]),
        (0.6, [Span(0, 2, 1.7e308), Span(0, 2, 1.7e308)], [(0, 8)], [-0.075, 0.125, 0.125, 0.125, 0, 0]),
        (0.6, [Span(0, 2)], [(4, 8)], [0, 0, 0.15, 0.15, 0, 0]),  # outside the code: uniform
        (0.6, [Span(0, 6)], [(4, 8)], [0, 0, 0.05, 0.25, 0, 0]),  # clipped to the code
        (0.6, [Span(0, 2), Span(4, 5)], [(4, 8)], [0, 0, 0.05, 0.25, 0, 0]),  # the one outside is ignored
        (0.6, [Span(90, 95)], [(0, 8)], [0.075, 0.075, 0.075, 0.075, 0, 0]),  # beyond a truncated response
        (0.6, [Span(0, 8)], [(1, 2), (7, 8)], [0.05 + 0.1, 0, 0, 0.05 + 0.1, 0, 0]),  # code in two pieces
        (0.6, [Span(2, 4)], [], [0, 0, 0, 0, 0.3, 0]),  # no code: the last response token
        (math.nan, [Span(2, 4)], [(0, 8)], [0, 0, 0, 0, 0, 0]),
    ],
)
def test_dense_hand_computed(
    score: float, spans: list[Span], code: list[tuple[int, int]], expected: list[float]
) -> None:
    assert one(score, spans, code) == pytest.approx(expected, abs=1e-6)


def test_other_modes_ignore_evidence() -> None:
    assert one(0.6, [Span(2, 4)], [(0, 8)], "uniform") == [0.075, 0.075, 0.075, 0.075, 0, 0]
    assert one(0.6, [Span(2, 4)], [(0, 8)], "terminal") == [0, 0, 0, 0, 0.3, 0]


def test_length_normalisation_follows_its_formula() -> None:
    scores, alpha = torch.ones(3, 1), torch.ones(3, 1)
    spans = [[(i, i + 1) for i in range(40)]] * 3
    code = [[(0, 2)], [(0, 4)], [(0, 36)]]  # mean 14: factors 7 (clamped to 4), 3.5, 14/36
    mask = torch.ones(3, 40)
    rewards = Attribution(scores, alpha, [{}] * 3, ["x"], spans, code, mask, length_normalize=True).total()
    assert rewards.sum(-1).tolist() == pytest.approx([4.0, 3.5, 14 / 36])
    rewards = Attribution(
        scores, alpha, [{}] * 3, ["x"], spans, code, mask, length_normalize=True, reference_length=4.0
    ).total()
    assert rewards.sum(-1).tolist() == pytest.approx([2.0, 1.0, 0.25])
    rewards = Attribution(scores, alpha, [{}] * 3, ["x"], spans, [[], [], []], mask, length_normalize=True).total()
    assert rewards.sum(-1).tolist() == [1, 1, 1]


def test_errors_name_the_culprit() -> None:
    scores = torch.ones(1, 1)

    def call(**changed: object) -> None:
        arguments = {
            "scores": scores, "alpha": scores, "evidence": [{}], "component_names": ["x"],
            "token_spans": [TOKENS], "code_spans": [[(0, 8)]], "response_mask": MASK,
        }  # fmt: skip
        Attribution(**{**arguments, **changed}).total()  # type: ignore[arg-type]

    call()
    with pytest.raises(ValueError, match="unknown attribution mode 'sparse'"):
        call(mode="sparse")
    with pytest.raises(ValueError, match=r"alpha has shape \(1, 2\)"):
        call(alpha=torch.ones(1, 2))
    with pytest.raises(ValueError, match="evidence has 0 rows"):
        call(evidence=[])
    with pytest.raises(ValueError, match=r"unknown component\(s\) \['y'\]"):
        call(evidence=[{"y": []}])
    with pytest.raises(ValueError, match="negative or not finite"):
        call(evidence=[{"x": [Span(0, 1, -1.0)]}])
    with pytest.raises(ValueError, match="row of 7 tokens"):
        call(token_spans=[[(0, 1)] * 7])


@st.composite
def batches(draw: st.DrawFn) -> dict[str, object]:
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    rows: dict[str, list[object]] = {"token_spans": [], "code_spans": [], "evidence": [], "mask": []}
    for _ in range(batch):
        widths = draw(st.lists(st.integers(0, 4), min_size=length, max_size=length))
        ends = [sum(widths[: i + 1]) for i in range(length)]
        kept = draw(st.integers(0, length))
        rows["token_spans"].append(
            [(e - w, e) for e, w in zip(ends, widths, strict=True)][: draw(st.integers(kept, length))]
        )
        rows["mask"].append([i < kept for i in range(length)])
        cuts = sorted(draw(st.lists(st.integers(0, ends[-1] + 5), unique=True, max_size=6)))
        rows["code_spans"].append(list(zip(cuts[::2], cuts[1::2], strict=False)))
        span = st.builds(
            lambda a, b, w: Span(min(a, b), max(a, b), w), st.integers(0, 99), st.integers(0, 99), st.floats(0, 1e3)
        )
        rows["evidence"].append(draw(st.dictionaries(st.sampled_from(NAMES), st.lists(span, max_size=4))))
    unit = st.floats(0, 1, width=32)
    scores = draw(
        st.lists(st.lists(st.one_of(unit, st.just(math.nan)), min_size=3, max_size=3), min_size=batch, max_size=batch)
    )
    alpha = draw(st.lists(st.lists(unit, min_size=3, max_size=3), min_size=batch, max_size=batch))
    return {"scores": torch.tensor(scores), "alpha": torch.tensor(alpha), **rows, "mask": torch.tensor(rows["mask"])}


def overlaps(token: tuple[int, int], spans: list[tuple[int, int]]) -> bool:
    characters = {c for low, high in spans for c in range(low, high)}
    return any(c in characters for c in range(*token))


@settings(max_examples=400, deadline=None)
@given(
    case=batches(),
    mode=st.sampled_from(["dense", "uniform", "terminal", "potential"]),
    gamma=st.sampled_from([1.0, 0.9, 0.0]),
    reference=st.sampled_from([None, 1.0, 5.0]),
)
def test_the_invariant(case: dict[str, object], mode: str, gamma: float, reference: float | None) -> None:
    """Whatever the evidence, the mask and the truncation: sums are the weighted scores, and all else is exactly 0."""
    scores, alpha, mask = case["scores"], case["alpha"], case["mask"]
    arguments = (scores, alpha, case["evidence"], NAMES, case["token_spans"], case["code_spans"], mask, mode)
    options = {"length_normalize": reference is not None, "reference_length": reference, "gamma": gamma}
    parts = Attribution(*arguments, **options).components()
    found = code_token_mask(case["token_spans"], case["code_spans"], mask)
    counts = found.sum(-1).double()
    factor = torch.ones(len(mask)).double()
    if reference is not None:
        factor = torch.where(counts > 0, (reference / counts.clamp(min=1)).clamp(0.25, 4.0), factor)
    expected = (alpha.double() * scores.double()).nan_to_num(0.0) * mask.any(-1, keepdim=True) * factor[:, None]
    if mode == "potential":  # the discounted sum is that of the terminal reward
        discount = gamma ** torch.arange(mask.shape[1]).double()
        last = (mask.sum(-1) - 1).clamp(min=0)
        sums = (parts.double() * discount).sum(-1)
        expected = expected * discount[last][:, None]
    else:
        sums = parts.double().sum(-1)
    assert torch.allclose(sums, expected, atol=4e-6, rtol=0)
    total = Attribution(*arguments, **options).total()
    assert torch.allclose(total, parts.sum(1), atol=1e-5)
    assert (total[~mask] == 0).all()
    for row in range(len(mask)):
        spans = [*case["token_spans"][row], *([(0, 0)] * mask.shape[1])][: mask.shape[1]]
        is_code = torch.tensor([overlaps(s, case["code_spans"][row]) for s in spans]) & mask[row]
        assert torch.equal(found[row], is_code)
        is_last = torch.arange(mask.shape[1]) == mask[row].sum() - 1
        allowed = {"terminal": is_last, "potential": is_last | is_code}.get(mode, is_code if is_code.any() else is_last)
        if mode != "potential" or gamma == 1:
            assert (parts[row][:, ~allowed] == 0).all()


@settings(max_examples=150, deadline=None)
@given(case=batches())
def test_dense_against_a_character_by_character_oracle(case: dict[str, object]) -> None:
    scores, alpha, mask = case["scores"], case["alpha"], case["mask"]
    parts = Attribution(
        scores, alpha, case["evidence"], NAMES, case["token_spans"], case["code_spans"], mask
    ).components()
    for row in range(len(mask)):
        code = {c for low, high in case["code_spans"][row] for c in range(low, high)}
        owner = {c: t for t, s in enumerate(case["token_spans"][row]) if mask[row, t] for c in range(*s) if c in code}
        tokens = sorted(set(owner.values()))
        if not tokens:
            continue
        for column, name in enumerate(NAMES):
            score, weight = float(scores[row, column]), float(alpha[row, column])
            blame = dict.fromkeys(tokens, 0.0)
            for span in case["evidence"][row].get(name, []):
                hit = [owner[c] for c in range(span.start, span.end) if c in owner]
                for token in hit:
                    blame[token] += span.weight / len(hit)
            mass = sum(blame.values())
            for token in tokens:
                if math.isnan(score):
                    want = 0.0
                elif mass > 0:
                    want = weight / len(tokens) - weight * (1 - score) * (
                        blame[token] / mass
                    )  # the share first: no underflow
                else:
                    want = weight * score / len(tokens)
                assert float(parts[row, column, token]) == pytest.approx(want, abs=1e-6)
