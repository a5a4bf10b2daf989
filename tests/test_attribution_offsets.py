from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_dterm.attribution.decoders import build_replay
from lightning_dterm.attribution.offsets import TokenOffsets, prefix_spans

CORPUS = ["def f(x):\n    return x + 1  # naïve 你好 😀\n", "for i in range(10):\n\tprint('ärger', i)\n"]
SPECIAL = ["<pad>", "</s>", "<unk>"]


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens([AddedToken("<tool call>"), AddedToken("é½", normalized=False), AddedToken("print")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=["<|x|>"],
    )


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2 and Qwen2: the 256 bytes and some merges, among them pieces that cut characters in two."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ã", "¤"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("ð", "Ł"), ("½", "a"), ("d", "e"), ("de", "f"), ("Ċ", "Ġ")]
    tokens = SPECIAL + alphabet + [left + right for left, right in merges]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrap(tokenizer)


def metaspace() -> PreTrainedTokenizerFast:
    """T5: Unigram over pieces that carry their space."""
    pieces = [
        "▁",
        "▁▁",
        "▁def",
        "▁f",
        "(",
        "x",
        ")",
        ":",
        "▁return",
        "a▁b",
        "ä",
        "你",
        "😀",
        "\n",
        "e\u0301",
        *"abdefpr",
    ]
    tokenizer = Tokenizer(models.Unigram([(p, -float(i)) for i, p in enumerate(SPECIAL + pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _wrap(tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama-2: BPE with byte fallback, spaces as marks, the first space stripped."""
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁", "▁x", "a", "b", "é", "😀", "def", "\n", "<0xGG>"]
    vocabulary = {token: i for i, token in enumerate(SPECIAL + pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(tokenizer)


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT: continuation marks, and a decoder that tidies spaces before punctuation."""
    pieces = [
        "def",
        "##f",
        "##un",
        ".",
        ",",
        "?",
        "!",
        "'",
        "n't",
        "'s",
        "'m",
        "do",
        "not",
        "do not",
        "##é",
        "你",
        "##.",
        "##",
    ]
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(SPECIAL + pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _wrap(tokenizer)


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": byte_level,
    "metaspace": metaspace,
    "byte_fallback": byte_fallback,
    "wordpiece": wordpiece,
}


@cache
def built(family: str) -> tuple[PreTrainedTokenizerFast, TokenOffsets]:
    tokenizer = FAMILIES[family]()
    return tokenizer, TokenOffsets(tokenizer)


def decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) if ids else ""


def assert_tiles(spans: list[tuple[int, int]], text: str, count: int) -> None:
    assert len(spans) == count
    position = 0
    for start, end in spans:
        assert start == position <= end
        position = end
    assert position == len(text)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_spans_tile_the_decoded_text(family: str, data: st.DataObject) -> None:
    tokenizer, offsets = built(family)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 3), max_size=40))  # the last few are holes
    text, spans = offsets.char_spans(ids)
    assert text == decode(tokenizer, ids)
    assert_tiles(spans, text, len(ids))
    for token, (start, end) in zip(ids, spans, strict=True):
        if token in tokenizer.all_special_ids or token >= len(tokenizer):
            assert start == end


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_replay_is_what_decodes_not_the_fallback(family: str, data: st.DataObject) -> None:
    tokenizer, offsets = built(family)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=40))
    replayed = offsets._byte_level(ids) if offsets._bytes is not None else offsets._replayed(ids)
    assert replayed[0] == decode(tokenizer, ids)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("abdefx() \n.,é你😀ä'"), max_size=30))
def test_agrees_with_decoding_every_prefix_on_encoded_text(family: str, text: str) -> None:
    tokenizer, offsets = built(family)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded, spans = offsets.char_spans(ids)
    by_prefix = prefix_spans(lambda prefix: decode(tokenizer, prefix), ids)
    # Another byte may turn a run of byte tokens invalid for a while, so prefixes can settle later than the replay.
    assert all(late[1] <= early[1] for late, early in zip(by_prefix, spans, strict=True))
    if "\ufffd" not in decoded and family != "byte_fallback":
        assert spans == by_prefix
    assert_tiles(by_prefix, decoded, len(ids))


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=24))
def test_byte_level_owner_is_the_token_of_the_last_byte(data: bytes) -> None:
    tokenizer, offsets = built("byte_level")
    alphabet = dict(zip(_gpt2_bytes(), _gpt2_characters(), strict=True))
    ids = [tokenizer.convert_tokens_to_ids(alphabet[byte]) for byte in data]
    text, spans = offsets.char_spans(ids)
    assert text == data.decode("utf-8", "replace")
    if "\ufffd" not in text:  # one id per byte: the last byte of each character owns it
        ends = [len(data[: i + 1].decode("utf-8", "ignore")) for i in range(len(data))]
        assert [end for _, end in spans] == ends
    assert all(end - start <= 1 for start, end in spans)


def _gpt2_bytes() -> list[int]:
    """Byte order of the published GPT-2 ``bytes_to_unicode``."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + [byte for byte in range(256) if byte not in printable]


def _gpt2_characters() -> list[str]:
    printable = [chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))]
    return printable + [chr(256 + i) for i in range(256 - len(printable))]


def test_hand_computed_byte_level() -> None:
    tokenizer, offsets = built("byte_level")
    pieces = ["def", "Ġ", "ð", "Ł", "ĺ", "Ģ", "</s>", "<tool call>", "Ã", "a", "print", "</s>"]
    text, spans = offsets.char_spans(tokenizer.convert_tokens_to_ids(pieces))
    assert text == "def 😀<tool call>\ufffdaprint"
    assert spans == [
        (0, 3), (3, 4), (4, 4), (4, 4), (4, 4), (4, 5), (5, 5), (5, 16), (16, 17), (17, 18), (18, 23), (23, 23),
    ]  # fmt: skip


def test_hand_computed_byte_fallback() -> None:
    tokenizer, offsets = built("byte_fallback")
    pieces = ["▁x", "<0xE2>", "<0x82>", "<0xAC>", "▁▁", "<0xC3>", "a", "</s>"]
    text, spans = offsets.char_spans(tokenizer.convert_tokens_to_ids(pieces))
    assert text == "x€  \ufffda"
    assert spans == [(0, 1), (1, 1), (1, 1), (1, 2), (2, 4), (4, 5), (5, 6), (6, 6)]


def test_hand_computed_metaspace_and_wordpiece() -> None:
    tokenizer, offsets = built("metaspace")
    text, spans = offsets.char_spans(tokenizer.convert_tokens_to_ids(["</s>", "▁def", "▁", "▁f", "a▁b"]))
    assert (text, spans) == ("def  fa b", [(0, 0), (0, 3), (3, 4), (4, 6), (6, 9)])
    tokenizer, offsets = built("wordpiece")
    text, spans = offsets.char_spans(tokenizer.convert_tokens_to_ids(["def", "##un", ".", "do", "n't"]))
    assert (text, spans) == ("defun. don't", [(0, 3), (3, 5), (5, 6), (6, 9), (9, 12)])


def test_empty_and_negative() -> None:
    _, offsets = built("byte_level")
    assert offsets.char_spans([]) == ("", [])
    with pytest.raises(ValueError, match="-100 is negative"):
        offsets.char_spans([3, -100])


def test_unknown_decoder_and_slow_tokenizer_use_prefixes() -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.decoder = decoders.BPEDecoder(suffix="e")
    assert build_replay({"type": "BPEDecoder", "suffix": "e"}) is None
    offsets = TokenOffsets(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["def", "</s>", "de", "a", "b"])
    text, spans = offsets.char_spans(ids)
    assert text == decode(tokenizer, ids)
    assert_tiles(spans, text, len(ids))

    class Slow:
        def decode(self, ids: list[int], **_: Any) -> str:
            return "-".join(map(str, ids))

    assert TokenOffsets(Slow()).char_spans([1, 23, 4]) == ("1-23-4", [(0, 1), (1, 4), (4, 6)])


def test_byte_level_takes_under_20_microseconds_a_token() -> None:
    tokenizer, offsets = built("byte_level")
    ids = tokenizer("".join(CORPUS) * 20, add_special_tokens=False)["input_ids"]
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        offsets.char_spans(ids)
        best = min(best, time.perf_counter() - start)
    assert best / len(ids) < 20e-6
