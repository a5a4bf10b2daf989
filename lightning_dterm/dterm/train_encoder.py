"""Train the small task encoder that the package ships, from nothing, on MicroCode's descriptions.

    python -m lightning_dterm.dterm.train_encoder --out lightning_dterm/assets/task-encoder

makes it again (defaults are what it was made with; minutes on one core; ``training.json`` names the versions).
It is a DistilBERT of 0.2M parameters with a byte-level BPE, trained contrastively so that descriptions of one task type
lie together, those of one program family in it closest. Task types left out of ``task_types`` are never seen, so that
what an embedding transfers to them can be measured; ``optimization`` is left out by default.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

from lightning_dterm.data.microcode import MicroCode
from lightning_dterm.data.microcode.descriptions import INTENTS
from lightning_dterm.data.microcode.generator import TASK_TYPES
from lightning_dterm.dterm.encoder import TaskEncoder
from lightning_dterm.init_actor import train_tokenizer
from lightning_dterm.types import CodeTask

#: Wordings beside MicroCode's own three a type: ``{t}`` is what the program returns, ``{n}`` the function's name.
WORDINGS: dict[str, tuple[str, ...]] = {
    "synthesis": (
        "Create a function {n} that computes {t}.",
        "Generate a new program from this specification: {t}.",
        "Code up a routine giving {t}.",
        "A function is needed, which is to be written from scratch. Result: {t}.",
        "From the docstring, write {n}: {t}.",
    ),
    "completion": (
        "Continue the code from where it stops; it returns {t}.",
        "The beginning of {n} is given, add the missing rest: {t}.",
        "Autocomplete the body of {n}.",
        "Extend the unfinished program until it returns {t}.",
        "The next lines of this snippet are missing, supply them: {t}.",
    ),
    "repair": (
        "Debug {n}: its results are wrong, expected {t}.",
        "The program fails its tests; mend it so that it gives {t}.",
        "There is a mistake in {n}, patch it.",
        "Fix the crash in this code. Expected: {t}.",
        "Broken function: {n} must return {t} and does not.",
    ),
    "translation": (
        "Rewrite this JavaScript in Python: {t}.",
        "Turn the JS source into Python code that gives {t}.",
        "Migrate {n} from one language to the other, JavaScript to Python.",
        "Produce the Python counterpart of a JavaScript routine: {t}.",
        "Same behaviour in another language: {t}.",
    ),
    "summarization": (
        "Give a one-line docstring for {n}.",
        "What does {n} compute? Answer briefly.",
        "Document the function {n} in plain English.",
        "Say in a few words what this code is for: {n}.",
        "Put a short comment above {n} that tells readers its purpose.",
    ),
}
_PATTERNS = {
    name: [
        re.compile(re.escape(intent).replace(r"\{t\}", "(?P<t>.+)").replace(r"\{n\}", "(?P<n>.+)")) for intent in own
    ]
    for name, own in INTENTS.items()
}


class Example(NamedTuple):
    """A description and its parts: ``text`` is what the program returns, empty for summaries."""

    description: str
    task_type: str
    family: str
    text: str
    name: str


def examples(split: str, size: int, seed: int, task_types: Sequence[str] = TASK_TYPES) -> list[Example]:
    """The descriptions of ``size`` MicroCode tasks."""
    return [_example(task) for task in MicroCode(split, size, seed=seed, task_types=task_types)]


def _example(task: CodeTask) -> Example:
    match = next(m for p in _PATTERNS[task.task_type] if (m := p.fullmatch(task.description)))
    family = str(task.metadata["family"])
    return Example(task.description, task.task_type, family, match.groupdict().get("t", ""), str(task.entry_point))


def reworded(example: Example, wordings: Sequence[str]) -> str:
    """The example's description in one of ``wordings``, chosen by the description; those that need more are not."""
    usable = [wording for wording in wordings if example.text or "{t}" not in wording]
    chosen = usable[sum(example.description.encode()) % len(usable)]
    return chosen.format(t=example.text, n=example.name)


def contrastive_loss(embeddings: Tensor, types: Tensor, families: Tensor, temperature: float, closer: float) -> Tensor:
    """Cross-entropy between neighbour probabilities and targets (supervised contrastive, Khosla et al. 2020, graded).

    ``p_ij = softmax_j(cos(e_i, e_j) / temperature)`` over j other than i; the target is proportional to 1 where types
    are equal, to ``1 + closer`` where families are too, and to 0 elsewhere. Rows without a like are left out.

    Args:
        embeddings: ``[B, d]``.
        types: ``[B]`` int64 task types.
        families: ``[B]`` int64 program families.
        temperature: Positive.
        closer: At least 0.

    Returns:
        Scalar, in nats.
    """
    unit = nn.functional.normalize(embeddings, dim=-1)
    itself = torch.eye(len(unit), dtype=torch.bool)
    logits = (unit @ unit.T / temperature).masked_fill(itself, torch.finfo(unit.dtype).min)
    alike = (types[:, None] == types) & ~itself
    target = alike * (1.0 + closer * (families[:, None] == families))
    some = alike.any(-1)
    target = target[some] / target[some].sum(-1, keepdim=True)
    return -(target * torch.log_softmax(logits[some], -1)).sum(-1).mean()


def neighbour_accuracy(
    encoder: TaskEncoder, gallery: Sequence[tuple[str, str]], queries: Sequence[tuple[str, str]]
) -> float:
    """Share of queries whose nearest neighbour in the gallery, by cosine, has their label; pairs of text and label."""
    known, asked = ([text for text, _ in part] for part in (gallery, queries))
    units = [nn.functional.normalize(encoder.encode(texts), dim=-1) for texts in (known, asked)]
    nearest: list[int] = (units[1] @ units[0].T).argmax(-1).tolist()
    right = [gallery[i][1] == label for i, (_, label) in zip(nearest, queries, strict=True)]
    return sum(right) / len(right)


class _Batches:
    """Random batches of descriptions, half of them in other words, some words left out of each."""

    def __init__(self, data: Sequence[Example], tokenizer: PreTrainedTokenizerFast, drop: float, seed: int) -> None:
        self.data, self.tokenizer, self.drop = data, tokenizer, drop
        self.random = random.Random(seed)
        self.types = {name: i for i, name in enumerate(sorted({e.task_type for e in data}))}
        self.families = {name: i for i, name in enumerate(sorted({e.family for e in data}))}

    def draw(self, size: int, max_length: int) -> tuple[Any, Tensor, Tensor]:
        """Tokens, types and families of ``size`` examples."""
        chosen = self.random.choices(self.data, k=size)
        texts = [self._text(example) for example in chosen]
        encoded = self.tokenizer(
            texts, truncation=True, max_length=max_length, padding=True, padding_side="right", return_tensors="pt"
        )
        types = torch.tensor([self.types[example.task_type] for example in chosen])
        return encoded, types, torch.tensor([self.families[example.family] for example in chosen])

    def _text(self, example: Example) -> str:
        text = example.description
        if example.task_type in WORDINGS and self.random.random() < 0.5:
            usable = [w for w in WORDINGS[example.task_type] if example.text or "{t}" not in w]
            text = self.random.choice(usable).format(t=example.text, n=example.name)
        kept = [word for word in text.split(" ") if self.random.random() >= self.drop]
        return " ".join(kept) or text


def train_encoder(
    out: str,
    train_size: int = 8000,
    task_types: tuple[str, ...] = TASK_TYPES,
    steps: int = 500,
    batch_size: int = 128,
    lr: float = 1e-3,
    warmup: int = 50,
    temperature: float = 0.1,
    closer: float = 2.0,
    word_drop: float = 0.1,
    vocab_size: int = 768,
    hidden_size: int = 96,
    layers: int = 2,
    heads: int = 4,
    max_length: int = 96,
    seed: int = 0,
) -> Path:
    """Train and write the encoder, its tokenizer and ``training.json``; equal on equal machines and versions.

    Args:
        out: Folder to write.
        train_size: MicroCode training tasks whose descriptions are learned from.
        task_types: Task types that are seen.
        steps: Steps of AdamW, the rate falling linearly to 0 after the warm-up.
        batch_size: Descriptions a step.
        lr: Peak learning rate.
        warmup: Steps over which the rate rises.
        temperature: Of the contrastive loss.
        closer: How much more a neighbour of the same program family counts.
        word_drop: Probability that a word is left out.
        vocab_size: Tokens of the byte-level BPE.
        hidden_size: Width d of the embedding.
        layers: Transformer layers.
        heads: Attention heads; must divide ``hidden_size``.
        max_length: Positions.
        seed: Of data, weights and batches.
    """
    config = {name: value for name, value in locals().items() if name != "out"}
    torch.set_num_threads(1)
    data = examples("train", train_size, seed, task_types)
    words = (reworded(e, WORDINGS[e.task_type]) for e in data if e.task_type in WORDINGS)
    tokenizer = train_tokenizer([*(example.description for example in data), *words], vocab_size)
    sizes: dict[str, Any] = {"dim": hidden_size, "n_layers": layers, "n_heads": heads, "hidden_dim": 2 * hidden_size}
    torch.manual_seed(seed)
    model = DistilBertModel(
        DistilBertConfig(
            vocab_size=len(tokenizer), max_position_embeddings=max_length, pad_token_id=tokenizer.pad_token_id, **sizes
        )
    )
    _fit(model.train(), _Batches(data, tokenizer, word_drop, seed), config)
    return _save(Path(out), model.eval(), tokenizer, config)


def _fit(model: DistilBertModel, batches: _Batches, config: dict[str, Any]) -> None:
    steps, warmup = config["steps"], config["warmup"]
    started = time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), config["lr"], weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config["lr"] * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
        encoded, types, families = batches.draw(config["batch_size"], config["max_length"])
        known = encoded["attention_mask"][..., None].float()
        hidden = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).last_hidden_state
        means = (hidden * known).sum(1) / known.sum(1)
        loss = contrastive_loss(means, types, families, config["temperature"], config["closer"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {float(loss.detach()):.3f}, {time.perf_counter() - started:.0f} s", flush=True)


def _save(folder: Path, model: DistilBertModel, tokenizer: PreTrainedTokenizerFast, config: dict[str, Any]) -> Path:
    import transformers

    tokenizer.model_max_length = config["max_length"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = {"command": "python -m lightning_dterm.dterm.train_encoder", "config": config, "versions": versions}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    return folder


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(train_encoder, as_positional=False)
