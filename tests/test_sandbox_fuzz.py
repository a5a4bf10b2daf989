"""Whatever a program's process sends is judged, never run, and passes nothing that an honest one would not."""

from __future__ import annotations

import json
import marshal
import pickle
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.sandbox import Limits, Result, stub, wire
from lightning_dterm.sandbox.asserts import read_test
from lightning_dterm.sandbox.compare import equal
from lightning_dterm.sandbox.expect import Recorder
from lightning_dterm.sandbox.judge import Exit, Keep, judge
from lightning_dterm.sandbox.result import STATUSES, from_plain, to_plain
from lightning_dterm.types import CallTest

NONCE = bytes(range(16))
CLEAN = Exit(0, 0.1, 0.1, 1 << 20)
SECRET = "f3a1c0de" * 4  # no fuzzer guesses it
PLAIN = (type(None), bool, int, float, str, bytes, list, tuple, set, frozenset, dict)

# What a frame may say, by a letter: lower case for claims that an honest harness could send there.
FRAMES: dict[str, tuple[bytes, list[Any]]] = {
    "a": (wire.ACCEPTED, [None, 7, ["ok"]]),
    "c": (wire.COMPILED, [[]]),
    "e": (wire.COMPILED, [[["bad", 1, 1, 1, 2]], [["bad", -5, 1 << 40, 0, 0]] * 5]),
    "E": (wire.COMPILED, [None, [["bad", 1, 1, 1]], [["bad", 1, 1, 1, 2]] * 6, [[1, 1, 1, 1, 1]], ["bad"], {}]),
    "l": (wire.LOADED, [["ok"]]),
    "f": (wire.LOADED, [["raised", "x", 3], ["memory", "", None], ["exited", "0", 1]]),
    "F": (wire.LOADED, [None, ["ok", 1], ["passed", "x", 1], ["raised", "x", 0], ["raised", ["x"], 1], [[], "x", 1]]),
    "1": (wire.TEST, [["ok", 1, 7]]),
    "2": (wire.TEST, [["ok", ["l", 2, ["t"]], 0]]),
    "t": (wire.TEST, [["ok", None, 0], ["ok", 1.0, 7], ["ok", ["l", 1], 7], ["raised", "x", 1, 3],
                      ["refused", "", 9, 0]]),
    "T": (wire.TEST, [["ok", 1], ["ok", 1, -1], ["ok", ["z"], 0], ["ok", {}, 0], ["failed", "x", 1, 0],
                      [["ok"], 1, 0]]),
    "d": (wire.DONE, [None]),
    "D": (wire.DONE, [5, 0, True, [], "passed"]),
    "Z": (b"Z", [None, ["ok", 1, 7]]),
}  # fmt: skip
WHOLE = re.compile("a(ed|cfd|cl[12t]{2}d)")
BEGUN = re.compile("a?|ae|ac|acf|acl[12t]{0,2}")
LETTERS = st.one_of(
    st.text(st.sampled_from(sorted(FRAMES)), max_size=8),
    st.builds(
        lambda start, end: start + end,
        st.sampled_from(["acl12d", "acl1td", "acltd", "acfd", "aed", "acl21d", "acl12", "acl", "ac"]),
        st.text(st.sampled_from(sorted(FRAMES)), max_size=2),
    ),
)


@settings(max_examples=400)
@given(st.data(), LETTERS)
def test_the_judge_agrees_with_the_language_of_honest_claims(data: st.DataObject, letters: str) -> None:
    frames = [(FRAMES[letter][0], data.draw(st.sampled_from(FRAMES[letter][1]))) for letter in letters]
    buffer = b"".join(wire.pack_frame(kind, i, NONCE, wire.dumps(claim)) for i, (kind, claim) in enumerate(frames))
    tests = (CallTest((), 1), CallTest((), [2, ()], visible=False))
    result = judge(buffer, NONCE, tests, True, CLEAN, Limits(), "process").result
    whole, begun = WHOLE.fullmatch(letters), BEGUN.fullmatch(letters)
    if not whole and not begun:
        assert result.status == "forged"
    elif letters == "acf":  # it did not load, and said so before it was gone
        claimed = frames[2][1][0]
        assert result.status == {"raised": "error", "memory": "memory", "exited": "exited"}[claimed]
    elif not whole:
        assert result.status == ("exited" if letters else "infra")
    else:
        assert result.status in ("passed", "failed", "error", "memory", "exited")
    returned = letters[3:5] if whole or begun else ""
    assert [outcome.passed for outcome in result.per_test] == [returned[:1] == "1", returned[1:2] == "2"]
    assert result.passed is (letters == "acl12d")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["i", "b", "0x1f"]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.builds(lambda tag, items: [tag, *items], st.sampled_from("ltsdib"), st.lists(inner, max_size=5))
        | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=20,
)


def assert_plain(value: Any) -> None:
    """Of exact built-in types throughout."""
    assert type(value) in PLAIN
    if isinstance(value, dict):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, (list, tuple, set, frozenset)):
        for part in value:
            assert_plain(part)


@settings(max_examples=400)
@given(JSON)
def test_any_json_is_plain_data_or_forged(data: Any) -> None:
    try:
        value = wire.decode(wire.loads(json.dumps(data).encode("ascii")))
    except wire.Forged:
        return
    assert_plain(value)
    assert equal(wire.decode(wire.encode(value)), value)
    assert equal(wire.decode(json.loads(json.dumps(wire.encode(value)))), value)  # what is kept travels to the trainer


@settings(max_examples=300)
@given(st.binary(max_size=80) | st.text(alphabet='[]{}",:0123456789.eE-+ltsdib\\u null', max_size=80).map(str.encode))
def test_any_bytes_are_json_or_forged(payload: bytes) -> None:
    try:
        value = wire.loads(payload)
    except wire.Forged:
        return
    assert wire.loads(wire.dumps(value)) == value or "nan" in repr(value).lower()


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from(["set", "cut", "repeat", "drop"])),
             min_size=1, max_size=6),
    st.booleans(), st.sampled_from([0, 256, 9, 11, 31 * 256]),
)  # fmt: skip
def test_damaged_claims_never_pass_nor_crash(damage: list[tuple[int, int, str]], metered: bool, status: int) -> None:
    claims: list[tuple[bytes, Any]] = [
        (wire.ACCEPTED, None), (wire.COMPILED, 900 if metered else []), (wire.LOADED, ["ok"]),
        (wire.TEST, ["ok", ["l", 1, "a"], 7]), (wire.TEST, ["ok", ["d", "k", ["i", "0x1"]], 7]), (wire.DONE, None),
    ]  # fmt: skip
    buffer = bytearray(
        b"".join(wire.pack_frame(kind, i, NONCE, wire.dumps(claim)) for i, (kind, claim) in enumerate(claims))
    )
    for place, byte, how in damage:
        at = place % max(1, len(buffer))
        if how == "set" and buffer:
            buffer[at] = byte
        elif how == "cut":
            del buffer[at:]
        elif how == "repeat":
            buffer[at:at] = buffer[at : at + byte]
        else:
            del buffer[at : at + byte]
    tests = (CallTest((), SECRET), CallTest((), Keep()))
    exit_ = Exit(status, 0.1, 0.1, 1 << 20)
    judged = judge(bytes(buffer), NONCE, tests, True, exit_, Limits(), "process", metered=metered)
    assert judged.result.status in STATUSES
    assert not judged.result.passed
    assert not judged.result.per_test[0].passed
    assert from_plain(json.loads(json.dumps(to_plain(judged.result)))) == judged.result
    for value in judged.kept.values():
        assert_plain(value)


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return eval, ("1 / 0",)


@pytest.mark.parametrize(
    "payload", [pickle.dumps(Bomb()), marshal.dumps(["ok", 1, 7]), marshal.dumps(compile("1", "", "eval"))]
)
def test_claims_are_never_unmarshalled_or_unpickled(monkeypatch: pytest.MonkeyPatch, payload: bytes) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("read something hostile by a format that may run it")

    for module in (marshal, pickle):
        for name in ("load", "loads"):
            monkeypatch.setattr(module, name, refuse)
    head = b"".join(
        wire.pack_frame(kind, i, NONCE, wire.dumps(claim))
        for i, (kind, claim) in enumerate([(wire.ACCEPTED, None), (wire.COMPILED, []), (wire.LOADED, ["ok"])])
    )
    for buffer in (payload, head + payload, head + wire.pack_frame(wire.TEST, 3, NONCE, payload)):
        assert judge(buffer, NONCE, (CallTest((), 1),), True, CLEAN, Limits(), "process").result.status == "forged"
    honest = head + wire.pack_frame(wire.TEST, 3, NONCE, b'["ok",1,7]') + wire.pack_frame(wire.DONE, 4, NONCE, b"null")
    assert judge(honest, NONCE, (CallTest((), 1),), True, CLEAN, Limits(), "process").result.passed


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.sampled_from([*STATUSES, "ok", "raised", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=5).map(tuple),
    max_leaves=4,
)
SITE = st.tuples(st.integers(-1, 3), st.sampled_from(STATUSES), st.none() | st.integers(-1, 9))
REPORT = st.fixed_dictionaries(
    {
        "ended": st.sampled_from(["ok", "error", "passed", "timeout", "not plain: x"]) | VALUE,
        "missing": VALUE,
        "last": st.tuples(st.sampled_from(STATUSES), VALUE) | VALUE,
        "pending": VALUE,
        "calls": st.lists(VALUE, max_size=2) | VALUE,
        "sites": st.lists(SITE | st.tuples(VALUE, VALUE, VALUE), max_size=4) | VALUE,
        "emitted": st.lists(VALUE, max_size=2) | VALUE,
    }
)


@settings(max_examples=200, deadline=None)
@given(REPORT | VALUE)
def test_a_report_from_the_program_s_own_process_is_well_formed_or_forged(report: Any) -> None:
    plan = read_test("x = f(1)\nassert x == 1\nassert x != 2\nassert f(x) == 1", "f")
    suite = stub.Suite("in_process", plan)
    recorder = Recorder()
    recorder.accepts(report)
    result = stub._claimed(recorder, Result("passed", trust="in_process"), suite)
    assert result.status in STATUSES
    assert len(result.per_test) == plan.n_sites == 3
    assert all(outcome.status in STATUSES and outcome.line != 0 for outcome in result.per_test)
    honest = stub._well_formed(report) and report["ended"] == "ok"
    assert honest or not (result.passed or all(outcome.passed for outcome in result.per_test))
    assert result.passed is (honest and all(outcome.passed for outcome in result.per_test))
    assert result.status != "forged" or not any(outcome.passed for outcome in result.per_test)


@settings(max_examples=150, deadline=None)
@given(VALUE | st.tuples(st.just("ok"), VALUE, st.lists(st.tuples(st.integers(0, 2), VALUE), max_size=2).map(tuple)))
def test_what_a_stub_is_told_has_one_form(claim: Any) -> None:
    if stub._is_claim(claim):
        assert isinstance(claim, tuple)
        assert claim[0] in ("ok", "raised")
        assert all(isinstance(place, int) for place, _ in claim[-1])
