"""The task encoder that the package ships: against the bag of words, and how it was trained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_dterm.data.microcode import MicroCode
from lightning_dterm.dterm import HashingEncoder, HFEncoder
from lightning_dterm.dterm.train_encoder import (
    WORDINGS,
    contrastive_loss,
    examples,
    neighbour_accuracy,
    reworded,
    train_encoder,
)

SHIPPED = Path(__file__).resolve().parent.parent / "lightning_dterm/assets/task-encoder"
#: Neither MicroCode's nor those of training.
UNSEEN = {
    "synthesis": ("Please develop Python code which yields {t}.", "Author a small program to obtain {t}."),
    "completion": (
        "This code breaks off halfway; append what is needed to get {t}.",
        "Fill the gap at the end so that {t} comes out.",
    ),
    "repair": (
        "Something is wrong with this function, make it return {t} again.",
        "Resolve the defect: the output should have been {t}.",
    ),
    "translation": ("Express the following JavaScript as Python; output {t}.", "JavaScript to Python: {t}."),
    "summarization": ("State briefly the purpose of {n}.", "One sentence about what {n} does, please."),
}


def test_examples_are_microcodes_descriptions_in_parts() -> None:
    for example, task in zip(examples("train", 30, 3), MicroCode("train", 30, seed=3), strict=True):
        assert example.description == task.description
        assert (example.task_type, example.name) == (task.task_type, task.entry_point)
        assert example.text in task.description
        assert bool(example.text) == (task.task_type != "summarization")
        words = reworded(example, WORDINGS[example.task_type])
        assert words != task.description
        assert example.text in words or example.name in words
        assert "{" not in words


def test_wordings_of_training_and_of_this_test_are_apart() -> None:
    trained = {text for texts in WORDINGS.values() for text in texts}
    assert WORDINGS.keys() == UNSEEN.keys()
    assert not trained & {text for texts in UNSEEN.values() for text in texts}


def loss_by_loops(
    embeddings: Tensor, types: list[int], families: list[int], temperature: float, closer: float
) -> float:
    total, rows = 0.0, 0
    for i in range(len(types)):
        others = [j for j in range(len(types)) if j != i]
        cosine = {j: float(torch.cosine_similarity(embeddings[i], embeddings[j], dim=0)) / temperature for j in others}
        target = {j: (1 + closer * (families[i] == families[j])) * (types[i] == types[j]) for j in others}
        if not sum(target.values()):
            continue
        normal = math.log(sum(math.exp(value) for value in cosine.values()))
        total -= sum(target[j] / sum(target.values()) * (cosine[j] - normal) for j in others)
        rows += 1
    return total / rows


def test_the_loss_by_loops() -> None:
    torch.manual_seed(0)
    embeddings, types, families = torch.randn(7, 4), [0, 0, 1, 1, 0, 2, 1], [0, 1, 0, 0, 1, 1, 1]  # type 2 is alone
    got = contrastive_loss(embeddings, torch.tensor(types), torch.tensor(families), 0.3, 2.0)
    assert float(got) == pytest.approx(loss_by_loops(embeddings, types, families, 0.3, 2.0), rel=1e-5)


def test_neighbour_accuracy_by_hand() -> None:
    gallery = [("a b", "x"), ("c d", "y")]
    assert neighbour_accuracy(HashingEncoder(), gallery, [("a b e", "x"), ("c d e", "y"), ("a b f", "y")]) == 2 / 3


def test_the_shipped_encoder_beats_the_bag_of_words() -> None:
    """Task type of the nearest of 600 training descriptions, for the test split's structures."""
    torch.set_num_threads(1)
    shipped, hashing = HFEncoder("package:task-encoder", cache_dir=None), HashingEncoder()
    known = [(e.description, e.task_type) for e in examples("train", 600, seed=1)]
    held_out = examples("test", 150, seed=0)
    own = [(e.description, e.task_type) for e in held_out]
    unseen = [(reworded(e, UNSEEN[e.task_type]), e.task_type) for e in held_out]
    figures = {
        name: [neighbour_accuracy(encoder, known, queries) for queries in (own, unseen)]
        for name, encoder in (("shipped", shipped), ("hashing", hashing))
    }
    assert figures["shipped"][0] >= max(0.99, figures["hashing"][0] + 0.05), figures
    assert figures["shipped"][1] >= figures["hashing"][1] + 0.1, figures


def test_what_is_shipped_is_small_and_says_how_it_was_made() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 1_500_000
    record = json.loads((SHIPPED / "training.json").read_text())
    assert "optimization" not in record["config"]["task_types"]
    encoder = HFEncoder("package:task-encoder", cache_dir=None)
    assert encoder.dim == record["config"]["hidden_size"]
    assert encoder.max_length == record["config"]["max_length"]


def test_training_is_repeatable_and_learns(tmp_path: Path) -> None:
    small = {"train_size": 60, "steps": 6, "batch_size": 16, "hidden_size": 16, "layers": 1, "vocab_size": 300}
    folders = [train_encoder(str(tmp_path / name), warmup=1, lr=1e-2, **small) for name in "ab"]  # type: ignore[arg-type]
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}
        for folder in folders
    )
    assert first == second
    other = train_encoder(str(tmp_path / "c"), warmup=1, lr=1e-2, seed=1, **small)  # type: ignore[arg-type]
    assert (other / "model.safetensors").read_bytes() != first["model.safetensors"]
