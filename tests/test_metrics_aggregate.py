from __future__ import annotations

import math
import os
import random
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from hypothesis import given
from hypothesis import strategies as st

from lightning_dterm.metrics import (
    FIGURES,
    SampleRecord,
    SampleTable,
    bleu_statistics,
    bootstrap_interval,
    corpus_bleu,
    resampled_sums,
)

WORDS = ["def", "f", "(", ")", ":", "return", "x"]


def records(count: int, seed: int = 0) -> tuple[list[SampleRecord], list[tuple[str, str]]]:
    generator = random.Random(seed)
    made, pairs = [], []
    for index in range(count):
        kind = generator.choice(["synthesis", "translation", "summarization"])
        infrastructure = generator.random() < 0.1
        pair = tuple(" ".join(generator.choices(WORDS, k=generator.randint(0, 9))) for _ in range(2))
        code = kind != "summarization"
        made.append(
            SampleRecord(
                task_id=f"{kind}/{index}",
                task_type=kind,
                length=generator.randint(1, 50),
                success=None if infrastructure else float(generator.random() < 0.4),
                exact_match=generator.random() < 0.2,
                compiles=generator.random() < 0.7 if code and not infrastructure else None,
                violations=generator.randint(0, 3) if code else None,
                lines=generator.randint(0, 9) if code else 0,
                truncated=generator.random() < 0.1,
                bleu=bleu_statistics(*pair),
                infrastructure=infrastructure,
            )
        )
        pairs.append(pair)
    return made, pairs


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def check_group(group: dict, made: list[SampleRecord], pairs: list[tuple[str, str]]) -> None:
    known = [record for record in made if record.success is not None]
    expected = {
        "success": mean([record.success for record in known]),
        "exact_match": mean([record.exact_match for record in made]),
        "bleu": corpus_bleu(*zip(*pairs, strict=True)),
        "length": mean([record.length for record in made]),
        "truncated": mean([record.truncated for record in made]),
    }
    code = [record for record in made if record.violations is not None]
    if code:
        expected["compile_rate"] = mean([record.compiles for record in code if record.compiles is not None])
        lines = sum(record.lines for record in code)
        expected["lint_per_100_lines"] = 100 * sum(record.violations for record in code) / lines
    for name in FIGURES:
        if name in expected:
            assert group[name]["value"] == pytest.approx(expected[name]), name
            assert group[name]["low"] <= group[name]["value"] <= group[name]["high"]
            assert group[name]["low"] < group[name]["high"]
        else:
            assert group[name] == {"value": None, "low": None, "high": None}
    assert group["samples"] == len(made)
    assert group["infrastructure_failures"] == sum(record.infrastructure for record in made)


def test_every_figure_by_hand_count() -> None:
    made, pairs = records(120)
    table = SampleTable(resamples=200)
    table.update(made)
    result = table.compute()
    check_group(result["overall"], made, pairs)
    assert set(result["tasks"]) == {"synthesis", "translation", "summarization"}
    for kind, group in result["tasks"].items():
        chosen = [index for index, record in enumerate(made) if record.task_type == kind]
        check_group(group, [made[index] for index in chosen], [pairs[index] for index in chosen])


def test_batches_and_their_order_do_not_matter() -> None:
    made, _ = records(40)
    whole, pieces = SampleTable(resamples=100), SampleTable(resamples=100)
    whole.update(made)
    shuffled = random.Random(1).sample(made, len(made))
    for start in range(0, 40, 7):
        pieces.update(shuffled[start : start + 7])
        pieces.update([])
    assert whole.compute() == pieces.compute()


def test_nothing_and_unknown() -> None:
    table = SampleTable()
    with pytest.warns(UserWarning, match="before the ``update``"):
        result = table.compute()
    assert result["tasks"] == {}
    assert result["overall"]["samples"] == 0
    assert result["overall"]["success"]["value"] is None
    with pytest.raises(ValueError, match="task odd: unknown task type 'cooking'"):
        table.update([SampleRecord("odd", "cooking", 1)])


def test_only_infrastructure_failures_leave_success_open() -> None:
    table = SampleTable()
    table.update([SampleRecord("a", "repair", 3, infrastructure=True)])
    group = table.compute()["tasks"]["repair"]
    assert group["infrastructure_failures"] == 1
    assert group["success"]["value"] is None
    assert group["compile_rate"]["value"] is None
    assert group["bleu"]["value"] is None
    assert group["length"]["value"] == 3


def test_a_state_dict_round_trip_and_reset() -> None:
    made, _ = records(10)
    table = SampleTable(resamples=50)
    table.update(made)
    first = table.compute()
    table.reset()
    table.update(made)
    assert table.compute() == first


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank(rank: int, world_size: int, port: int, empty: bool, path: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    made, _ = records(31)
    table = SampleTable(resamples=100)
    if empty:  # one rank saw no batch at all
        if rank == 0:
            table.update(made)
    else:
        table.update(made[rank::world_size])
    result = table.compute()
    torch.save(result, f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("empty", [False, True])
def test_two_processes_give_the_same_numbers_as_one(tmp_path: Path, empty: bool) -> None:
    multiprocessing.spawn(_rank, args=(2, _free_port(), empty, str(tmp_path)), nprocs=2)
    single = SampleTable(resamples=100)
    single.update(records(31)[0])
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=False) == single.compute()


# --- bootstrap -------------------------------------------------------------------------------------------------------


def ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def test_resamples_are_sums_of_drawn_rows() -> None:
    """Powers of a base larger than the sample reveal how often each row was drawn."""
    rows = np.array([[float(10**index), 1.0] for index in range(5)])
    sums = resampled_sums(rows, 300, seed=1)
    assert (sums[:, 1] == 5).all()
    counts = np.array([[int(value) // 10**index % 10 for index in range(5)] for value in sums[:, 0]])
    assert (counts.sum(axis=1) == 5).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(5), abs=0.25)
    assert len({tuple(row) for row in counts.tolist()}) > 50


def test_interval_agrees_with_a_plain_loop_and_with_the_normal_approximation() -> None:
    values = (np.random.default_rng(3).random(400) < 0.3).astype(float)
    statistics = np.column_stack([values, np.ones(400)])
    low, high = bootstrap_interval(statistics, ratio, seed=0)
    generator = np.random.default_rng(9)
    means = sorted(generator.choice(values, 400).mean() for _ in range(2000))
    assert low == pytest.approx(means[50], abs=0.01)
    assert high == pytest.approx(means[1949], abs=0.01)
    half = 1.96 * math.sqrt(values.mean() * (1 - values.mean()) / 400)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.integers(0, 5))
def test_interval_is_reproducible_and_within_the_range(values, seed) -> None:
    statistics = np.column_stack([values, np.ones(len(values))])
    low, high = bootstrap_interval(statistics, ratio, resamples=50, seed=seed)
    assert (low, high) == bootstrap_interval(statistics, ratio, resamples=50, seed=seed)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_large_samples_are_drawn_in_pieces() -> None:
    statistics = np.ones((5000, 1))
    assert (resampled_sums(statistics, 1000) == 5000).all()
    assert bootstrap_interval(np.empty((0, 2)), ratio) == (pytest.approx(math.nan, nan_ok=True),) * 2


def test_undefined_resamples_are_left_out() -> None:
    """With one applicable row among four, about a third of the resamples have no denominator."""
    statistics = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    with np.errstate(invalid="ignore"):
        assert bootstrap_interval(statistics, ratio) == (1.0, 1.0)
