"""Offsets on the tokenizer classes that models ship with, trained here: spans tile what ``decode`` gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertTokenizerFast,
    GPT2TokenizerFast,
    LlamaTokenizerFast,
    PreTrainedTokenizerFast,
    Qwen2TokenizerFast,
    T5TokenizerFast,
)

from lightning_dterm.attribution.offsets import TokenOffsets, prefix_spans

CORPUS = [
    "def f(x):\n    return x + 1  # naïve 你好 😀\n",
    "for i in range(10):\n\tprint('ärger', i)\n\n\n",
    "public static void Main(String[] args) { int[] xs = {1, 2}; }\n",
    "class A:\n        def __init__(self):\n            self.x = \"don't\"  # it's\n",
] * 4
TEKKEN = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ADDED = [
    AddedToken("<tool call>"),
    AddedToken("ünï", normalized=False),
    AddedToken("<strip>", lstrip=True, rstrip=True),
    AddedToken("    "),
]


def _bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary with its merges, as GPT-2 and Qwen2 store them."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<unk>"]
    raw.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=special)
    )
    model = json.loads(raw.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def gpt2() -> Any:
    vocabulary, merges = _bpe()
    return GPT2TokenizerFast(vocab=vocabulary, merges=merges)


def qwen2() -> Any:
    vocabulary, merges = _bpe()
    tokenizer = Qwen2TokenizerFast(vocab=vocabulary, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def tekken() -> Any:
    """Mistral's and Llama-3's layout: a regular expression splits, then bytes, merges ignored for whole words."""
    vocabulary, merges = _bpe()
    raw = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TEKKEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>", unk_token="<unk>")


def llama() -> Any:
    """SentencePiece-style BPE with byte fallback."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw.train_from_iterator(
        [text.replace("你", "").replace("😀", "") for text in CORPUS],
        trainers.BpeTrainer(vocab_size=420, special_tokens=special),
    )
    model = json.loads(raw.to_str())["model"]
    return LlamaTokenizerFast(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def t5() -> Any:
    """SentencePiece-style Unigram with sentinels."""
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    )
    pieces = [(piece, score) for piece, score in json.loads(raw.to_str())["model"]["vocab"]]
    return T5TokenizerFast(vocab=pieces, extra_ids=5)


def bert() -> Any:
    """WordPiece."""
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    return BertTokenizerFast(vocab=raw.get_vocab(), do_lower_case=False)


FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2, "qwen2": qwen2, "tekken": tekken, "llama": llama, "t5": t5, "bert": bert,
}  # fmt: skip


@cache
def built(family: str) -> tuple[Any, TokenOffsets]:
    tokenizer = FAMILIES[family]()
    tokenizer.add_tokens(ADDED)
    return tokenizer, TokenOffsets(tokenizer)


def decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)) if ids else ""


def assert_exact(tokenizer: Any, offsets: TokenOffsets, ids: list[int]) -> None:
    text, spans = offsets.char_spans(ids)
    assert text == decode(tokenizer, ids)
    assert len(spans) == len(ids)
    assert [start for start, _ in spans] == [0, *(end for _, end in spans)][: len(ids)]  # none lost, none doubled
    assert all(start <= end for start, end in spans)
    assert (spans[-1][1] if spans else 0) == len(text)
    assert all(start == end for i, (start, end) in zip(ids, spans, strict=True) if i in tokenizer.all_special_ids)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_random_ids(family: str, data: st.DataObject) -> None:
    tokenizer, offsets = built(family)
    assert_exact(tokenizer, offsets, data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40)))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("abdefx()=\n\t .,é你😀ä'ünï<tool call>"), max_size=40), cut=st.integers(0, 40))
def test_text_cut_anywhere(family: str, text: str, cut: int) -> None:
    """What a length limit leaves: a prefix of real tokens, perhaps in the midst of a character."""
    tokenizer, offsets = built(family)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:cut]
    assert_exact(tokenizer, offsets, ids)
    by_prefix = prefix_spans(lambda prefix: decode(tokenizer, prefix), ids)
    settled, (decoded, spans) = [end for _, end in by_prefix], offsets.char_spans(ids)
    if "\ufffd" not in decoded and family != "llama":  # there a byte more may undo a run of bytes for a while
        assert [end for _, end in spans] == settled


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fast_path_serves_the_family(family: str) -> None:
    """No family falls back to decoding every prefix, which is quadratic."""
    tokenizer, offsets = built(family)
    ids = tokenizer("".join(CORPUS), add_special_tokens=False)["input_ids"]
    calls: list[int] = []
    inner = tokenizer.decode

    def counted(ids: list[int], **options: Any) -> str:
        calls.append(len(ids))
        return str(inner(ids, **options))

    tokenizer.decode = counted
    try:
        offsets.char_spans(ids)
    finally:
        del tokenizer.decode
    assert calls == [len(ids)]


def test_the_families_are_what_they_claim() -> None:
    kinds = {family: type(built(family)[0].backend_tokenizer.model).__name__ for family in FAMILIES}
    assert kinds == {
        "gpt2": "BPE", "qwen2": "BPE", "tekken": "BPE", "llama": "BPE", "t5": "Unigram", "bert": "WordPiece",
    }  # fmt: skip
    for family in ("gpt2", "qwen2", "tekken", "llama"):  # bytes make any text come back whole
        tokenizer, _ = built(family)
        text = "x = '漢\U0001f9ff'\n\tyes"
        assert decode(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"]) == text
