"""The judge's parser and comparison, without any process: only an honest sequence is not forged."""

from __future__ import annotations

import json
import math
import struct
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.sandbox import CompileError, Limits, Result, TestOutcome, wire
from lightning_dterm.sandbox.compare import equal
from lightning_dterm.sandbox.judge import Exit, judge
from lightning_dterm.sandbox.result import from_plain, to_plain
from lightning_dterm.types import CallTest

NONCE = bytes(range(16))
CLEAN = Exit(0, 0.1, 0.1, 1 << 20)
LIMITS = Limits()
TESTS = (CallTest((), 1), CallTest((), 2))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=20)
KEYS = st.integers() | st.text(max_size=5) | st.booleans() | st.tuples(st.integers(), st.text(max_size=3))
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(KEYS, max_size=4)
    ),
    max_leaves=12,
)
HONEST: list[tuple[bytes, Any]] = [
    (wire.ACCEPTED, None), (wire.COMPILED, []), (wire.LOADED, ["ok"]), (wire.TEST, ["ok", 1, 7]),
    (wire.TEST, ["ok", 2, 7]), (wire.DONE, None),
]  # fmt: skip


def stream(frames: list[tuple[bytes, Any]], nonce: bytes = NONCE) -> bytes:
    return b"".join(wire.pack_frame(kind, i, nonce, wire.dumps(claim)) for i, (kind, claim) in enumerate(frames))


def verdict(buffer: bytes, exit_: Exit = CLEAN) -> str:
    return judge(buffer, NONCE, TESTS, True, exit_, LIMITS, "process").result.status


@given(VALUES)
def test_values_survive_the_wire(value: Any) -> None:
    decoded = wire.decode(wire.loads(wire.dumps(wire.encode(value))))
    assert equal(decoded, value)
    assert equal(value, decoded)
    assert repr(type(decoded)) == repr(type(value))


@given(VALUES, VALUES)
def test_equal_never_holds_where_python_says_different(left: Any, right: Any) -> None:
    if equal(left, right):
        assert type(left) is type(right)
        assert left == right or "nan" in repr(left).lower() or "." in repr(left) or "e" in repr(left)


@pytest.mark.parametrize(
    "value",
    [object(), (i for i in ()), len, 1j, bytearray(b"x"), "x" * (1 << 21), 1 << (1 << 21)],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_plain_data_is_refused(value: Any) -> None:
    with pytest.raises(wire.Refused):
        wire.encode([value])


def test_subclasses_are_demoted_past_their_methods() -> None:
    class Liar(int):
        def __int__(self) -> int:
            return 99

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    class Chameleon(list[int]):
        def __iter__(self) -> Any:
            return iter([99])

    encoded = wire.encode([Liar(3), Chameleon([1, 2])])
    assert encoded == ["l", 3, ["l", 1, 2]]
    assert type(encoded[1]) is int


def test_honest_sequence_passes_and_every_prefix_is_judged_by_the_exit() -> None:
    assert verdict(stream(HONEST)) == "passed"
    killed = Exit(11, 0.1, 0.1, 0)
    assert verdict(b"", killed) == "infra"
    for n in range(1, len(HONEST)):
        assert verdict(stream(HONEST[:n]), killed) == "killed"
        assert verdict(stream(HONEST[:n])[:-1], killed) in ("killed", "infra")
        assert verdict(stream(HONEST[:n])) == "exited"


@pytest.mark.parametrize(
    "name", ["nonce", "sequence", "duplicate", "swap", "extra", "length", "trailing", "cut", "type"]
)
def test_dishonest_sequences_are_forged(name: str) -> None:
    good = stream(HONEST)
    bad = {
        "nonce": stream(HONEST, bytes(16)),
        "sequence": b"".join(wire.pack_frame(kind, 0, NONCE, wire.dumps(claim)) for kind, claim in HONEST),
        "duplicate": stream([*HONEST[:4], HONEST[3], HONEST[4], HONEST[5]]),
        "swap": stream([HONEST[0], HONEST[2], HONEST[1], *HONEST[3:]]),
        "extra": stream([*HONEST, (wire.TEST, ["ok", 1, 7])]),
        "length": struct.pack("!cI16sI", b"A", 0, NONCE, 1 << 30),
        "trailing": good + b"\0" * 40,
        "cut": good[:-1],
        "type": stream([*HONEST[:3], (b"Z", None)]),
    }[name]
    assert verdict(bad) == "forged"
    if name not in ("cut", "length"):
        assert verdict(bad, Exit(11, 0.1, 0.1, 0)) == "forged"


@pytest.mark.parametrize(
    "claim",
    [None, [], ["ok"], ["ok", 1], ["ok", 1, 2, 3], ["ok", 1, -1], ["ok", 1, 1.0], ["ok", 1, True], ["ok", 1, 1 << 50],
     ["ok", {"a": 1}, 0], ["ok", ["x", 1], 0], ["ok", ["d", 1], 0], ["ok", ["d", ["l"], 1], 0], ["ok", [], 0],
     ["ok", ["i", "zz"], 0], ["ok", ["b", "0"], 0], ["ok", ["s", ["l"]], 0], ["raised", "x", 0], ["raised", 1, 1, 0],
     ["raised", "x", -1, 0], ["raised", "x", True, 0], ["raised", "x" * 500, 1, 0], ["passed", "x", 1, 0],
     [["ok"], "x", 1, 0], "ok", 1],
)  # fmt: skip
def test_malformed_claims_are_forged(claim: Any) -> None:
    assert verdict(stream([*HONEST[:3], (wire.TEST, claim), *HONEST[4:]])) == "forged"


@pytest.mark.parametrize("payload", [b"[" * 100_000, b"1" * 5000, b"\xff", b"", b"{", b'["ok",' + b"9" * 30 + b"]"])
def test_hostile_json_is_forged(payload: bytes) -> None:
    head = stream(HONEST[:3])
    assert verdict(head + wire.pack_frame(wire.TEST, 3, NONCE, payload)) == "forged"


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 6), st.integers(0, 400))
def test_noise_never_passes_nor_crashes(noise: bytes, kept: int, at: int) -> None:
    wrong = [*HONEST[:3], (wire.TEST, ["ok", 5, 0]), *HONEST[4:]]
    good = stream(wrong[:kept])
    result = judge(good[:at] + noise + good[at:], NONCE, TESTS, True, CLEAN, LIMITS, "process").result
    assert result.status != "passed"
    assert not result.per_test[0].passed


@pytest.mark.parametrize(
    ("returned", "expected", "same"),
    [(1.0, 1.0 + 5e-10, True), (1e20, 1e20 * (1 + 2e-9), False), (math.nan, math.nan, True), (0.0, 1e-13, True),
     ([1, [True]], [1, [1]], False), ({1: math.nan}, {1: math.nan}, True), ({math.nan}, {math.nan}, True),
     ({(1, True)}, {(1, 1)}, False), ((1,), [1], False), ({"a": 1}, {"a": 1, "b": 2}, False), ("1", 1, False)],
)  # fmt: skip
def test_comparison_by_hand(returned: Any, expected: Any, same: bool) -> None:
    assert equal(returned, expected) is same
    assert equal(expected, returned) is same


def test_a_kill_from_outside_is_ours_to_answer_for() -> None:
    killed = Exit(9, 0.1, 0.1, 1 << 20)
    for n in range(1, len(HONEST) + 1):
        assert verdict(stream(HONEST[:n]), killed) == "infra", n
    hog = Exit(9, 0.1, 0.1, LIMITS.memory_mb << 20)  # the machine's out-of-memory killer
    assert verdict(stream(HONEST[:4]), hog) == "killed"
    assert verdict(stream(HONEST[:4]), Exit(9, LIMITS.cpu_s + 1, 9.0, 1 << 20)) == "timeout"


def test_keys_made_to_collide_are_forged_at_once() -> None:
    started = time.monotonic()
    period = (1 << 61) - 1
    for claim in (
        ["s", *[["i", hex(i * period)] for i in range(20_000)]],
        ["d", *[part for i in range(20_000) for part in (["i", hex(i * period)], 0)]],
        ["s", *[["t", 1, ["i", hex(i * period)]] for i in range(20_000)]],
    ):
        assert verdict(stream([*HONEST[:3], (wire.TEST, ["ok", claim, 0]), *HONEST[4:]])) == "forged"
    assert time.monotonic() - started < 5


@given(VALUES, VALUES)
def test_results_survive_the_way_to_the_trainer(left: Any, right: Any) -> None:
    outcomes = (TestOutcome(True, "passed", False, 3, 0.5), TestOutcome(False, "error", True))
    error = CompileError("bad", 1, 2, 3, 4)
    result = Result("error", outcomes, (3, 9), repr(left)[:50], 1.0, 2.0, 3, "kernel", error, 7, (error, error),
                    "in_process", 2)  # fmt: skip
    assert from_plain(json.loads(json.dumps(to_plain(result)))) == result
    assert from_plain(json.loads(json.dumps(to_plain(Result("passed"))))) == Result("passed")
