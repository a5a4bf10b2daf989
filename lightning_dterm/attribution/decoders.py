"""Replay of the ``tokenizers`` library's decoders with the owner of every character carried along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class OwnedText(NamedTuple):
    """Text and, for each of its characters, the position of the token that wrote it."""

    text: str
    owners: list[int]


Step = Callable[[list[OwnedText]], list[OwnedText]]


def build_replay(config: dict[str, Any] | None) -> Callable[[list[str], list[int]], OwnedText] | None:
    """Compile a serialised decoder into a replay that keeps owners.

    Args:
        config: The decoder as in ``tokenizer.json`` (``{"type": "Sequence", "decoders": [...]}`` and so on).

    Returns:
        A function from pieces and their token positions to owned text, or None where a step is not known here.
    """
    if config is None:
        return None
    configs = config["decoders"] if config["type"] == "Sequence" else [config]
    steps: list[Step] = []
    for item in configs:
        build = _BUILDERS.get(item["type"])
        step = build(item) if build is not None else None
        if step is None:
            return None
        steps.append(step)

    def replay(pieces: list[str], positions: list[int]) -> OwnedText:
        state = [OwnedText(piece, [at] * len(piece)) for piece, at in zip(pieces, positions, strict=True)]
        for step in steps:
            state = step(state)
        return _join(state)

    return replay


def _join(pieces: list[OwnedText]) -> OwnedText:
    return OwnedText("".join(piece.text for piece in pieces), [owner for piece in pieces for owner in piece.owners])


def _replace(piece: OwnedText, old: str, new: str) -> OwnedText:
    """``str.replace`` where the new characters belong to the token that completes the old ones."""
    if old not in piece.text:
        return piece
    parts = piece.text.split(old)
    owners: list[int] = []
    position = 0
    for index, part in enumerate(parts):
        if index:
            position += len(old)
            owners += [piece.owners[position - 1]] * len(new)
        owners += piece.owners[position : position + len(part)]
        position += len(part)
    return OwnedText(new.join(parts), owners)


def _build_replace(config: dict[str, Any]) -> Step | None:
    old = config["pattern"].get("String")
    new = config["content"]
    return None if not old else lambda pieces: [_replace(piece, old, new) for piece in pieces]


def _byte_of(piece: str) -> int | None:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return int(piece[3:5], 16)
        except ValueError:
            return None
    return None


def _build_byte_fallback(_: dict[str, Any]) -> Step:
    def step(pieces: list[OwnedText]) -> list[OwnedText]:
        result: list[OwnedText] = []
        run: list[tuple[int, int]] = []  # (byte, owner)
        for piece in pieces:
            byte = _byte_of(piece.text)
            if byte is not None:
                run.append((byte, piece.owners[-1]))
                continue
            if run:
                result.append(_decode_run(run))
                run = []
            result.append(piece)
        if run:
            result.append(_decode_run(run))
        return result

    return step


def _decode_run(run: list[tuple[int, int]]) -> OwnedText:
    """Adjacent byte tokens: UTF-8 where the whole run is valid, else one U+FFFD for each token."""
    try:
        text = bytes(byte for byte, _ in run).decode("utf-8")
    except UnicodeDecodeError:
        return OwnedText("\ufffd" * len(run), [owner for _, owner in run])
    owners: list[int] = []
    position = 0
    for character in text:
        position += len(character.encode("utf-8"))
        owners.append(run[position - 1][1])
    return OwnedText(text, owners)


def _build_strip(config: dict[str, Any]) -> Step:
    content, start, stop = config["content"], config["start"], config["stop"]

    def strip(piece: OwnedText) -> OwnedText:
        low, high = 0, len(piece.text)
        while low < min(start, high) and piece.text[low] == content:
            low += 1
        while high > low and len(piece.text) - high < stop and piece.text[high - 1] == content:
            high -= 1
        return OwnedText(piece.text[low:high], piece.owners[low:high])

    return lambda pieces: [strip(piece) for piece in pieces]


def _build_metaspace(config: dict[str, Any]) -> Step:
    mark = config["replacement"]
    drops_first = config.get("prepend_scheme", "always") != "never"

    def step(pieces: list[OwnedText]) -> list[OwnedText]:
        result: list[OwnedText] = []
        for index, piece in enumerate(pieces):
            if index == 0 and drops_first:  # the first piece loses every mark, not only its leading one
                kept = [at for at, character in enumerate(piece.text) if character != mark]
                piece = OwnedText("".join(piece.text[at] for at in kept), [piece.owners[at] for at in kept])
            result.append(_replace(piece, mark, " "))
        return result

    return step


_WORDPIECE_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def _build_wordpiece(config: dict[str, Any]) -> Step:
    prefix, cleanup = config["prefix"], config["cleanup"]

    def step(pieces: list[OwnedText]) -> list[OwnedText]:
        result: list[OwnedText] = []
        for index, piece in enumerate(pieces):
            if index and piece.text.startswith(prefix):
                piece = _replace_first(piece, prefix)
            elif index:
                piece = OwnedText(" " + piece.text, [piece.owners[-1] if piece.owners else 0, *piece.owners])
            if cleanup:
                for old, new in _WORDPIECE_CLEANUP:
                    piece = _replace(piece, old, new)
            result.append(piece)
        return result

    return step


def _replace_first(piece: OwnedText, prefix: str) -> OwnedText:
    return OwnedText(piece.text[len(prefix) :], piece.owners[len(prefix) :])


_BUILDERS: dict[str, Callable[[dict[str, Any]], Step | None]] = {
    "Replace": _build_replace,
    "ByteFallback": _build_byte_fallback,
    "Fuse": lambda _: lambda pieces: [_join(pieces)],
    "Strip": _build_strip,
    "Metaspace": _build_metaspace,
    "WordPiece": _build_wordpiece,
}
