"""Make a small actor from nothing: a byte-level BPE tokenizer trained on a benchmark's text, and a random Qwen2.

    python -m lightning_dterm.init_actor --data lightning_dterm.data.MicroCodeDataModule --out runs/actor

The folder it writes loads like any other actor; a supervised warm start comes next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lightning_dterm.data.base import CodeDataModule

EOS, PAD = "<|endoftext|>", "<|pad|>"
# Words keep one blank or underscore before them and camelCase is cut at its humps, so that getName and GetName share a
# piece; numbers are single digits, runs of punctuation and of white space stay together.
_PIECES = r"[ _]?[A-Z]?[a-z]+|[ _]?[A-Z]+(?![a-z])|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?=\s)|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: every text round-trips, nothing is ever unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _texts(data: CodeDataModule, limit: int) -> Iterator[str]:
    """Prompts and references of the first ``limit`` training tasks."""
    tasks = data.train_tasks()
    for index in range(min(limit, len(tasks))):
        yield tasks[index].prompt
        yield tasks[index].reference


def _random_model(tokenizer: PreTrainedTokenizerFast, seed: int, **sizes: Any) -> Qwen2ForCausalLM:
    """A Qwen2 with weights drawn from ``seed``, its vocabulary and special tokens the tokenizer's."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config)


def init_actor(
    data: CodeDataModule,
    out: str,
    vocab_size: int = 1024,
    hidden_size: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate_size: int = 384,
    max_positions: int = 1024,
    tokenizer_tasks: int = 20_000,
    seed: int = 0,
) -> Path:
    """Train the tokenizer on the training split and write it with a randomly initialised Qwen2.

    Args:
        data: Benchmark whose training prompts and references the tokenizer learns from.
        out: Folder to write.
        vocab_size: Tokens, special ones included; at least 258.
        hidden_size: Width.
        layers: Decoder layers.
        heads: Attention heads; must divide ``hidden_size``.
        kv_heads: Key-value heads; must divide ``heads``.
        intermediate_size: Width of the feed-forward layers.
        max_positions: Longest sequence, in tokens.
        tokenizer_tasks: Tasks the tokenizer is trained on.
        seed: Of the weights.
    """
    tokenizer = train_tokenizer(_texts(data, tokenizer_tasks), vocab_size)
    model = _random_model(
        tokenizer,
        seed,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_positions,
    )
    folder = Path(out)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    return folder


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(init_actor, as_positional=False)
