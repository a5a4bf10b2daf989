"""The private channel between judge and program: framing and tagged plain data. Standard library only.

Loaded on both sides (the worker loads this file by path, so nothing heavier may be imported here). Values travel as
JSON in which every container is a list that starts with its tag: ``["l", ...]`` list, ``["t", ...]`` tuple,
``["s", ...]`` set, ``["d", key, value, ...]`` dict, ``["b", hex]`` bytes, ``["i", hex]`` an int beyond 60 bits. Exact
built-in types only: no pickle, no code, nothing that could run on the judge's side.

A frame is ``type (1 byte) | sequence (u32) | nonce (16 bytes) | length (u32) | payload``. What it carries is a claim:
:func:`~lightning_dterm.sandbox.judge.parse_claims` accepts exactly the sequence that an honest harness sends, and calls
anything else forged.
"""

from __future__ import annotations

import json
import marshal
import re
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

MAX_DEPTH = 64
MAX_FRAME = 1 << 20
MAX_BITS = 1 << 16  # of an int: what the judge does with a value must stay cheap
MAX_CLAIMS = 4 << 20
MAX_COST = 10_000_000
NOT_FENCED = 120  # exit code of a child that failed before it ran anything; the reason is in its notes
HEADER = struct.Struct("!cI16sI")
LENGTH = struct.Struct("!I")

REQUEST = struct.Struct("!cQddQQ")  # kind (R run, K stop), number, cpu_s, wall_s, memory bytes, output bytes
REPLY = struct.Struct("!QiddQBi")  # number, wait status, cpu_s, wall_s, peak bytes, flags, line of a hang or 0
TIMED_OUT, STOPPED, NOT_STARTED, FLOODED = 1, 2, 4, 8
SPENT = 16  # the worker gives this answer, and takes no further program

ACCEPTED, COMPILED, LOADED, TEST, DONE = b"A", b"C", b"L", b"T", b"D"


_MAX_COLLISIONS = 32
_UNSHARED = 2  # version of marshal: the last one that writes an object anew wherever it occurs
_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)  # encode() bounds the depth


class Refused(ValueError):
    """A value that is not plain data, or too deep or too large to be carried."""


class Forged(ValueError):
    """A claim that no honest harness would have sent."""


def encode(value: Any, depth: int = 0) -> Any:
    """Turn plain data into its JSON form; subclasses are demoted to their built-in base, anything else is refused.

    Raises:
        Refused: not plain data, or nested deeper than :data:`MAX_DEPTH` (cyclic data included).
    """
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is str:
        return value if len(value) <= MAX_FRAME else _too_large()
    if kind is int:
        if value.bit_length() > MAX_BITS:
            return _too_large()
        return value if -(1 << 60) < value < 1 << 60 else ["i", hex(value)]
    if depth >= MAX_DEPTH:
        raise Refused(f"nested deeper than {MAX_DEPTH}")
    if kind is list:
        return ["l", *[encode(item, depth + 1) for item in value]]
    if kind is tuple:
        return ["t", *[encode(item, depth + 1) for item in value]]
    if kind is set or kind is frozenset:
        return ["s", *[encode(item, depth + 1) for item in value]]
    if kind is dict:
        return ["d", *[encode(part, depth + 1) for pair in value.items() for part in pair]]
    if kind is bytes:
        return ["b", value.hex()] if len(value) <= MAX_FRAME else _too_large()
    return encode(_demote(value, kind), depth)


def _too_large() -> NoReturn:
    raise Refused("value too large")


def _demote(value: Any, kind: type) -> Any:
    """Copy an instance of a subclass into its built-in base, past whatever methods the subclass overrides."""
    if issubclass(kind, int):
        return int.__int__(value)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, bytes):
        return memoryview(value).tobytes()
    if issubclass(kind, list):
        return list(list.__iter__(value))
    if issubclass(kind, tuple):
        return tuple(tuple.__iter__(value))
    if issubclass(kind, set):
        return set(set.__iter__(value))
    if issubclass(kind, frozenset):
        return set(frozenset.__iter__(value))
    if issubclass(kind, dict):
        return dict(dict.items(value))
    raise Refused(f"not plain data: {kind.__name__}")


def decode(data: Any, depth: int = 0, hashable: bool = False) -> Any:
    """Turn the JSON form back into plain data.

    Raises:
        Forged: not the form that :func:`encode` produces.
    """
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise Forged("untagged object")
        return data
    if not data:
        raise Forged("container without a tag")
    tag, items = data[0], data[1:]
    if depth >= MAX_DEPTH and tag != "i":  # exactly where encode() refuses: what is accepted here can be sent on
        raise Forged("too deep")
    if tag in ("i", "b"):
        return _decode_scalar(tag, items)
    if tag == "d" and not hashable:
        if len(items) % 2:
            raise Forged("key without a value")
        keys = spread([decode(key, depth + 1, hashable=True) for key in items[::2]])
        return dict(zip(keys, [decode(value, depth + 1) for value in items[1::2]], strict=True))
    if tag == "t":
        return tuple([decode(item, depth + 1, hashable) for item in items])
    if tag == "s":
        members = spread([decode(item, depth + 1, hashable=True) for item in items])
        return frozenset(members) if hashable else set(members)
    if tag == "l" and not hashable:
        return [decode(item, depth + 1) for item in items]
    raise Forged("unknown tag, or an unhashable value where a hashable one belongs")


def spread(keys: list[Any]) -> list[Any]:
    """Refuse keys made to collide (integers 2**61 - 1 apart), which would stall whoever puts them in a set.

    Raises:
        Forged: more than 32 different keys share a hash.
        TypeError: a key is not hashable.
    """
    if len(keys) <= _MAX_COLLISIONS:
        return keys
    shares = Counter(map(hash, keys))
    crowded = {share for share, count in shares.items() if count > _MAX_COLLISIONS}
    different: dict[int, list[Any]] = {}
    for key in keys if crowded else ():
        if (share := hash(key)) in crowded:
            others = different.setdefault(share, [])
            if key not in others:  # a list that has one value many times is honest
                others.append(key)
            if len(others) > _MAX_COLLISIONS:
                raise Forged("keys made to collide")
    return keys


def _decode_scalar(tag: str, items: list[Any]) -> int | bytes:
    if len(items) != 1 or not isinstance(items[0], str):
        raise Forged("malformed scalar")
    try:
        scalar = int(items[0], 16) if tag == "i" else bytes.fromhex(items[0])
    except ValueError as error:
        raise Forged("malformed scalar") from error
    if isinstance(scalar, int) and scalar.bit_length() > MAX_BITS:
        raise Forged("integer too large")
    return scalar


def _small_int(digits: str) -> int:
    if len(digits) > 20:
        raise Forged("large integer outside its tag")
    return int(digits)


_COMMON: dict[bytes, Any] = {b"null": None, b"[]": [], b'["ok"]': ["ok"]}
_LONG_NUMBER = re.compile(rb"[0-9]{20}")
_DECODER, _CAREFUL_DECODER = json.JSONDecoder(), json.JSONDecoder(parse_int=_small_int)


def pack_calls(calls: Iterable[Sequence[Any]]) -> bytes:
    """The arguments of calls, for :func:`pack_job`; they are copied into exact built-in types first.

    Raises:
        Refused: not plain data.
    """
    return marshal.dumps([decode(encode(tuple(arguments))) for arguments in calls], _UNSHARED)


def pack_job(nonce: bytes, metered: bool, program: str, entry_point: str | None, calls: bytes) -> bytes:
    """One job for a program's process, with its length before it.

    From the judge to the program only, never back: ``marshal`` is fast but not safe to read from somebody hostile.
    """
    head = marshal.dumps((nonce, metered, program, entry_point, len(calls)), _UNSHARED)
    return LENGTH.pack(len(head) + len(calls)) + head + calls


def unpack_job(job: bytes) -> tuple[bytes, bool, str, str | None, list[tuple[Any, ...]]]:
    """What :func:`pack_job` packed, without its length: nonce, metered, program, entry point, arguments."""
    nonce, metered, program, entry_point, size = marshal.loads(job)
    return nonce, metered, program, entry_point, marshal.loads(memoryview(job)[len(job) - size :])


def dumps(data: Any) -> bytes:
    """JSON bytes of an encoded value (ASCII, so lone surrogates survive)."""
    return _ENCODER.encode(data).encode("ascii")


def loads(payload: bytes) -> Any:
    """Parse untrusted JSON.

    Raises:
        Forged: not JSON, nested beyond the parser's stack, or with an oversized literal.
    """
    if payload in _COMMON:  # most frames: a new object each time
        common = _COMMON[payload]
        return None if common is None else list(common)
    try:
        decoder = _CAREFUL_DECODER if _LONG_NUMBER.search(payload) else _DECODER
        return decoder.decode(payload.decode("ascii"))
    except Forged:
        raise
    except (ValueError, RecursionError) as error:
        raise Forged(f"payload is not JSON: {type(error).__name__}") from error


def pack_frame(kind: bytes, sequence: int, nonce: bytes, payload: bytes) -> bytes:
    """One frame, ready to send."""
    return HEADER.pack(kind, sequence, nonce, len(payload)) + payload


def split_frames(buffer: bytes, nonce: bytes) -> tuple[list[tuple[bytes, Any]], bool]:
    """Split the bytes a program's process sent into (type, payload) frames.

    Returns:
        The frames in order, and whether the last one was cut short (a process killed while sending, no forgery).

    Raises:
        Forged: wrong nonce, sequence, length or payload.
    """
    frames: list[tuple[bytes, Any]] = []
    position = 0
    while position < len(buffer):
        if len(buffer) - position < HEADER.size:
            return frames, True
        kind, sequence, claimed, length = HEADER.unpack_from(buffer, position)
        if claimed != nonce or sequence != len(frames) or length > MAX_FRAME:
            raise Forged("frame with a wrong nonce, sequence or length")
        position += HEADER.size
        if len(buffer) - position < length:
            return frames, True
        frames.append((kind, loads(buffer[position : position + length])))
        position += length
    return frames, False
