from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.dterm import ranking
from lightning_dterm.dterm.hypernetwork import Hypernetwork
from lightning_dterm.dterm.objective import OutcomeRanking, split_groups

NAN = math.nan


def oracle(
    alpha: list[list[float]],
    scores: list[list[list[float]]],
    sigma: list[list[float]],
    outcome: list[list[float]],
    family: list[int],
    families: int,
    beta: float,
    min_pairs: float,
) -> list[float]:
    """The formula of the design, as loops over floats."""
    total, weight = [0.0] * families, [0.0] * families
    for g, f in enumerate(family):
        size, components = len(outcome[g]), len(alpha[g])
        means = []
        for i in range(components):
            known = [scores[g][j][i] for j in range(size) if not math.isnan(scores[g][j][i])]
            means.append(sum(known) / len(known) if known else 0.0)
        composite = []
        for j in range(size):
            value = 0.0
            for i in range(components):
                r = scores[g][j][i]
                if not math.isnan(r):
                    value += alpha[g][i] * (r - means[i]) / (sigma[f][i] + 0.02)
            composite.append(value)
        for j in range(size):
            for k in range(size):
                if outcome[g][j] > outcome[g][k]:
                    gap = outcome[g][j] - outcome[g][k]
                    total[f] += gap * math.log1p(math.exp(-beta * (composite[j] - composite[k])))
                    weight[f] += gap
    return [total[f] / max(weight[f], min_pairs) for f in range(families)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[object, ...]:
    groups, size, components = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    unit = st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0])
    maybe = st.one_of(unit, st.just(NAN))

    def table(entry: st.SearchStrategy[float], *shape: int) -> list:  # type: ignore[type-arg]
        if not shape:
            return draw(entry)  # type: ignore[return-value]
        return [table(entry, *shape[1:]) for _ in range(shape[0])]

    return (
        table(unit, groups, components),
        table(maybe, groups, size, components),
        table(st.sampled_from([0.0, 0.1, 0.4]), 3, components),
        table(maybe, groups, size),
        table(st.integers(0, 2), groups),
        draw(st.sampled_from([0.5, 2.0, 10.0])),
        draw(st.sampled_from([0.5, 20.0])),
    )


@settings(max_examples=300, deadline=None)
@given(case=cases())
def test_ranking_losses_against_double_loops(case: tuple[object, ...]) -> None:
    alpha, scores, sigma, outcome, family, beta, min_pairs = case
    double = {"dtype": torch.float64}
    family_index = torch.tensor(family)
    z = ranking.normalize_scores(torch.tensor(scores, **double), torch.tensor(sigma, **double)[family_index])
    got = ranking.ranking_losses(
        torch.tensor(alpha, **double), z, torch.tensor(outcome, **double), family_index, 3,
        torch.tensor(beta, **double), min_pairs,
    )  # fmt: skip
    expected = oracle(alpha, scores, sigma, outcome, family, 3, beta, min_pairs)  # type: ignore[arg-type]
    assert got.tolist() == pytest.approx(expected, abs=1e-9)


def test_within_group_rms_by_hand() -> None:
    scores = torch.tensor(
        [
            [[0.0, 1.0, NAN, 0.2], [1.0, NAN, NAN, 0.2]],  # deviations 0.5, 0.5 | one known: left out | none | 0, 0
            [[0.2, 0.0, NAN, 0.5], [0.4, 0.6, 0.3, 0.5]],  # 0.1, 0.1 | 0.3, 0.3 | one known | 0, 0
        ]
    )
    rms = ranking.within_group_rms(scores)
    assert rms.tolist() == pytest.approx([math.sqrt((0.25 * 2 + 0.01 * 2) / 4), 0.3, NAN, 0.0], nan_ok=True)


def test_pairwise_accuracy_and_kl_by_hand() -> None:
    outcome = torch.tensor([[1.0, 0.0, 0.5]])
    z = torch.tensor([[[1.0], [0.0], [1.0]]])
    # pairs: (0,1) weight 1 right; (0,2) weight .5 tied; (2,1) weight .5 right
    assert float(ranking.pairwise_accuracy(torch.ones(1, 1), z, outcome)) == pytest.approx(1.75 / 2)
    kl = ranking.kl_divergence(torch.tensor([[0.75, 0.25, 0.0]]), torch.tensor([[0.5, 0.5, 0.0]]))
    assert float(kl) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def grouped(objective: OutcomeRanking, scores: torch.Tensor, outcome: torch.Tensor, types: list[str]) -> None:
    """Observe ``scores [G, K, n]`` and ``outcome [G, K]``; embeddings are one-hot per type."""
    groups, size, components = scores.shape
    names = sorted(set(types))
    embedding = torch.stack([torch.eye(4)[names.index(t)] for t in types])
    flat = scores.reshape(-1, components)
    objective.observe(
        split_groups(
            flat, ~flat.isnan(), embedding.repeat_interleave(size, 0), outcome.reshape(-1),
            torch.arange(groups).repeat_interleave(size), [t for t in types for _ in range(size)],
        )
    )  # fmt: skip


def test_objective_equals_the_written_formula() -> None:
    torch.manual_seed(0)
    network = Hypernetwork(4, torch.tensor([0.5, 0.3, 0.2]))
    torch.nn.init.normal_(network.mlp[-1].weight, std=0.3)
    objective = OutcomeRanking(fifo=3)
    objective.configure(("a", "b", "c"))
    lots = []
    for step in range(3):
        scores, outcome = torch.rand(4, 3, 3), torch.rand(4, 3).round(decimals=1)
        scores[0, 1, 2] = NAN
        outcome[3] = 0.5  # not informative: enters sigma and KL only
        types = ["repair", "synthesis", "repair", "synthesis"]
        grouped(objective, scores, outcome, types)
        lots.append((scores, outcome, types, step))
    loss = objective.loss(network)
    assert loss is not None

    expected, kl_total = 0.0, 0.0
    for index, name in enumerate(("repair", "synthesis")):
        sigma: list[float] | None = None
        rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        for scores, outcome, types, _ in lots:
            of_type = [g for g, t in enumerate(types) if t == name]
            rms = ranking.within_group_rms(scores[of_type]).tolist()
            sigma = rms if sigma is None else [0.9 * o + 0.1 * n for o, n in zip(sigma, rms, strict=True)]
            rows += [(scores[g], outcome[g]) for g in of_type]
        informative = [row for row in rows if len(set(row[1].tolist())) > 1][-3:]
        alpha = network(torch.eye(4)[index : index + 1], torch.ones(1, 3, dtype=torch.bool))[0].tolist()
        assert sigma is not None
        expected += oracle(
            [alpha] * len(informative), [r[0].tolist() for r in informative], [sigma],
            [r[1].tolist() for r in informative], [0] * len(informative), 1, 2.0, 20.0,
        )[0]  # fmt: skip
        kl_total += sum(a * math.log(a / p) for a, p in zip(alpha, [0.5, 0.3, 0.2], strict=True))
    assert loss.item() == pytest.approx(expected + 0.05 * kl_total, abs=1e-5)


def test_only_informative_groups_fill_the_fifo() -> None:
    network = Hypernetwork(4, torch.tensor([0.5, 0.5]))
    objective = OutcomeRanking(fifo=5)
    objective.configure(("a", "b"))
    assert objective.loss(network) is None
    grouped(objective, torch.rand(2, 4, 2), torch.full((2, 4), 0.3), ["repair", "repair"])
    grouped(objective, torch.rand(1, 4, 2), torch.full((1, 4), NAN), ["synthesis"])
    grouped(objective, torch.rand(1, 4, 2), torch.tensor([[1.0, NAN, NAN, NAN]]), ["repair"])
    assert objective.loss(network) is None
    assert objective.sigma("synthesis") is None
    for _ in range(4):
        grouped(objective, torch.rand(2, 3, 2), torch.tensor([[0.0, 1.0, 0.0]]).repeat(2, 1), ["repair", "repair"])
    assert objective.loss(network) is not None
    assert objective.metrics()["weighting/informative_groups"] == 5


def test_groups_of_different_sizes_and_interleaved_rows() -> None:
    scores = torch.tensor([[0.0, 1.0], [0.1, NAN], [0.2, 0.3], [0.4, 0.5], [0.6, NAN]])
    embedding = torch.arange(5.0)[:, None]
    outcome = torch.tensor([0.0, 1.0, 0.5, NAN, 0.25])
    lots = split_groups(
        scores, ~scores.isnan(), embedding, outcome, torch.tensor([7, 3, 7, 7, 3]), ["x", "x", "x", "x", "x"]
    )["x"]
    assert lots.embedding.tolist() == [[0.0], [1.0]]
    assert lots.mask.tolist() == [[True, True], [True, False]]
    assert lots.outcome[0].tolist() == pytest.approx([0.0, 0.5, NAN], nan_ok=True)
    assert lots.outcome[1].tolist() == pytest.approx([1.0, 0.25, NAN], nan_ok=True)
    assert lots.scores[0, :, 0].tolist() == pytest.approx([0.0, 0.2, 0.4])


def test_beta_is_bounded_and_settings_checked() -> None:
    objective = OutcomeRanking()
    assert objective.beta.item() == pytest.approx(2.0)
    with torch.no_grad():
        objective.beta_logit.fill_(100.0)
        assert objective.beta.item() == pytest.approx(10.0)
        objective.beta_logit.fill_(-100.0)
        assert objective.beta.item() == pytest.approx(0.5)
    for bad in ({"beta": 0.1}, {"fifo": 0}, {"ema": 1.0}, {"sigma_floor": 0.0}, {"kl_weight": -1.0}):
        with pytest.raises(ValueError, match="must"):
            OutcomeRanking(**bad)  # type: ignore[arg-type]


def test_a_meta_step_is_cheap() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        network = Hypernetwork(256, torch.full((5,), 0.2))
        objective = OutcomeRanking()
        objective.configure(tuple("abcde"))
        flat = torch.rand(512, 5)
        objective.observe(
            split_groups(
                flat, ~flat.isnan(), torch.randn(64, 256).repeat_interleave(8, 0), torch.rand(512).round(),
                torch.arange(64).repeat_interleave(8), ["x"] * 512,
            )
        )  # fmt: skip
        best = float("inf")
        for _ in range(8):
            start = time.perf_counter()
            loss = objective.loss(network)
            assert loss is not None
            torch.autograd.grad(loss, [*network.parameters(), objective.beta_logit])
            best = min(best, time.perf_counter() - start)
        assert best < 0.05
    finally:
        torch.set_num_threads(threads)
