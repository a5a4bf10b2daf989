"""Exact character spans of generated tokens, from the ids themselves and never by tokenizing the text again.

Tokenizing decoded text a second time may give other ids than those sampled (merges differ, special tokens vanish,
invalid UTF-8 becomes U+FFFD), so the offsets a tokenizer reports for a *text* are not those of the *response*. Here the
decoder is replayed token by token instead:

* byte-level BPE (GPT-2, Qwen2, Llama-3, CodeT5): a table of bytes per id and one pass over the bytes;
* decoders made of Replace, ByteFallback, Fuse, Strip, Metaspace and WordPiece (T5, Llama-2, BERT): the same steps,
  carrying each character's token along;
* anything else: the tokenizer decodes every prefix.

All are checked against ``tokenizer.decode`` on every call; where a replay differs the prefixes decide.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from lightning_dterm.attribution.decoders import OwnedText, build_replay

CharSpan = tuple[int, int]


class TokenOffsets:
    """Maps generated ids to text and exact character spans.

    Tables over the vocabulary are built once, so keep the object; it does not follow tokens added later.

    Args:
        tokenizer: A Hugging Face tokenizer (fast tokenizers have fast paths; slow ones decode prefixes).
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._bytes: list[bytes] | None = None
        self._replay: Callable[[list[str], list[int]], OwnedText] | None = None
        self._pieces: list[str | None] = []
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return
        decoder = _decoder_config(backend)
        pieces = _visible_pieces(backend)
        if decoder is not None and decoder["type"] == "ByteLevel":
            alphabet = _byte_alphabet()
            self._bytes = [b"" if piece is None else _piece_bytes(piece, alphabet) for piece in pieces]
        else:
            self._replay = build_replay(decoder)
            self._pieces = pieces

    def char_spans(self, ids: Sequence[int]) -> tuple[str, list[CharSpan]]:
        """Decode ``ids`` and say which characters each of them wrote.

        The spans are half open and tile the text: the first starts at 0, each starts where the one before ends, the
        last ends at ``len(text)``. Special tokens, and tokens that complete no character, have empty spans. A
        character whose UTF-8 bytes are spread over several tokens belongs to the token that completes it; U+FFFD,
        written for invalid bytes, belongs to the token of the last byte it stands for.

        Args:
            ids: Token ids of one response, without padding.

        Returns:
            ``tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)`` and one span per id.

        Raises:
            ValueError: An id is negative.
        """
        ids = list(ids)
        if ids and min(ids) < 0:
            raise ValueError(f"token id {min(ids)} is negative: pass the response's ids without padding or label masks")
        expected = self._decode(ids)
        if self._bytes is not None:
            text, ends = self._byte_level(ids)
        elif self._replay is not None:
            text, ends = self._replayed(ids)
        else:
            return expected, prefix_spans(self._decode, ids)
        if text != expected:
            return expected, prefix_spans(self._decode, ids)
        return text, list(zip([0, *ends[:-1]], ends, strict=True)) if ids else []

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _byte_level(self, ids: list[int]) -> tuple[str, list[int]]:
        """Text and the end of each token in characters, from the bytes of the tokens."""
        assert self._bytes is not None
        table = self._bytes
        size = len(table)
        pieces = [table[i] if i < size else b"" for i in ids]
        data = b"".join(pieces)
        text = data.decode("utf-8", "replace")
        offsets = list(accumulate(map(len, pieces)))
        if len(text) == len(data):  # one character per byte: ASCII, or every byte invalid by itself
            return text, offsets
        characters = np.concatenate(([0], np.cumsum(_completes_character(data))))
        return text, characters[offsets].tolist()

    def _replayed(self, ids: list[int]) -> tuple[str, list[int]]:
        """Text and the end of each token in characters, from a replay of the decoder's steps."""
        assert self._replay is not None
        size = len(self._pieces)
        kept: list[str] = []
        owners: list[int] = []
        for position, i in enumerate(ids):
            piece = self._pieces[i] if i < size else None
            if piece is not None:
                kept.append(piece)
                owners.append(position)
        text, owner = self._replay(kept, owners)
        counts = [0] * len(ids)
        for position in owner:
            counts[position] += 1
        return text, list(accumulate(counts))


def prefix_spans(decode: Callable[[list[int]], str], ids: list[int]) -> list[CharSpan]:
    """Spans for any decoder, by decoding every prefix: exact, and quadratic in the number of tokens.

    A character counts as written by the first token from which on it never changes again.

    Args:
        decode: Ids to text.
        ids: Token ids of one response.

    Returns:
        One half-open span per id; the spans tile ``decode(ids)``.
    """
    final = decode(ids)
    settled = [_common_prefix(decode(ids[:count]), final) for count in range(1, len(ids) + 1)]
    for index in range(len(settled) - 2, -1, -1):
        settled[index] = min(settled[index], settled[index + 1])
    return list(zip([0, *settled[:-1]], settled, strict=True)) if ids else []


def _common_prefix(left: str, right: str) -> int:
    if right.startswith(left):
        return len(left)
    return next(index for index, pair in enumerate(zip(left + "\0", right + "\1", strict=False)) if pair[0] != pair[1])


def _decoder_config(backend: Any) -> dict[str, Any] | None:
    """The serialised decoder of a ``tokenizers`` tokenizer; a sequence of one is that one."""
    if backend.decoder is None:
        return None
    config = json.loads(backend.decoder.__getstate__())
    while config["type"] == "Sequence" and len(config["decoders"]) == 1:
        config = config["decoders"][0]
    assert isinstance(config, dict)
    return config


def _visible_pieces(backend: Any) -> list[str | None]:
    """The piece of every id; None for special tokens and for holes in the vocabulary."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    pieces: list[str | None] = []
    for index in range(max(vocabulary.values(), default=-1) + 1):
        piece = backend.id_to_token(index)
        pieces.append(None if piece in special else piece)
    return pieces


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: character to byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


def _piece_bytes(piece: str, alphabet: dict[str, int]) -> bytes:
    """Bytes of a vocabulary entry; an entry with a character outside the alphabet (added tokens) stands for itself."""
    try:
        return bytes([alphabet[character] for character in piece])
    except KeyError:
        return piece.encode("utf-8")


def _completes_character(data: bytes) -> np.ndarray[Any, Any]:
    """``[len(data)]`` bool: the byte is the last one of a character of ``data.decode("utf-8", "replace")``."""
    array = np.frombuffer(data, dtype=np.uint8)
    starts = np.append((array & 0xC0) != 0x80, True)
    view = memoryview(data)
    position = 0
    while True:
        try:
            codecs.utf_8_decode(view[position:], "strict", True)
            break
        except (
            UnicodeDecodeError
        ) as error:  # one U+FFFD for each maximal ill-formed part (Unicode 3.9, "best practice")
            low, high = position + error.start, position + error.end
            starts[low] = True  # what follows the part begins a character, or is ill-formed and comes next
            starts[low + 1 : high] = False
            position = high
    return starts[1:]
