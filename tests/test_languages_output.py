"""What compiled programs print and claim, and how it is compared; no process here."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.sandbox.languages.drivers import claims
from lightning_dterm.sandbox.languages.output import Malformed, decode, encode, same_output, same_value


@pytest.mark.parametrize(
    ("printed", "expected", "how", "same"),
    [
        ("1 2\n3 \n", "1\n2 3", {}, True),
        ("12", "1 2", {}, False),
        ("", "", {}, True),
        ("0.30000001", "0.3", {}, False),
        ("0.30000001", "0.3", {"tolerance": 1e-6}, True),
        ("3", "3.0", {"tolerance": 1e-6}, True),
        ("10", "11", {"tolerance": 0.5}, False),  # whole numbers are never approximate
        ("nan", "1.0", {"tolerance": 1.0}, False),
        ("a \nb\n\n", "a\nb", {"rule": "lines"}, True),
        ("a\n b", "a\nb", {"rule": "lines"}, False),
        ("a\n", "a", {"rule": "exact"}, False),
        ("é\n", "é\n", {"rule": "exact"}, True),
    ],
)
def test_output_rules(printed: str, expected: str, how: dict[str, Any], same: bool) -> None:
    assert same_output(printed.encode(), expected, **how) is same


def test_output_rules_are_checked() -> None:
    with pytest.raises(ValueError, match="tolerance"):
        same_output(b"", "", "lines", 1e-6)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(PLAIN)
def test_values_survive_the_way_there_and_back(value: Any) -> None:
    assert same_value(decode(json.dumps(encode(value))), value, "java")


@pytest.mark.parametrize(
    ("returned", "expected", "language", "same"),
    [
        (1, True, "java", False), (1, True, "c", True), (True, 1, "c", False), (2, True, "c", False),
        (3.0, 3, "javascript", True), (3.5, 3, "javascript", False), ("3", 3, "javascript", False),
        ([1], (1,), "java", True), ([1, 2], [2, 1], "java", False), (("set", [2, 1]), {1, 2}, "java", True),
        (("set", [1]), {1, 2}, "java", False), ([1, 2], {1, 2}, "java", False), (None, 0, "java", False),
        (("map", [["1", 2]]), {1: 2}, "javascript", True), (("map", [["1", 2]]), {1: 2}, "java", False),
        (10**400, 1.0, "java", False), (0.1 + 0.2, 0.3, "java", True), (("map", []), {}, "java", True),
    ],
)  # fmt: skip
def test_values_across_languages(returned: Any, expected: Any, language: str, same: bool) -> None:
    assert same_value(returned, expected, language) is same


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# What a driver may print, and the value it stands for; None: no driver prints that.
LEAVES = st.one_of(
    st.none().map(lambda x: ("null", [x])),
    st.booleans().map(lambda x: (written(x), [x])),
    st.integers().map(lambda x: (str(x), [x])),
    st.integers().map(lambda x: (f'{{"int":"{x}"}}', [x])),
    st.floats().map(lambda x: (f'{{"float":"{x!r}"}}', [x])),
    st.text(max_size=8).map(lambda x: (written(x), [x])),
)
MALFORMED = [  # the first one alone, not inside others
    "", "{}", "[", "[1,]", "tru", "'a'", '"\\u12"', "1 2", "01", '{"int":1}', '{"int":"x"}', '{"int":null}',
    '{"int":["1"]}', '{"float":"one"}', '{"float":[1.0]}', '{"float":true}', '{"float":1}', '{"float":null}',
    '{"set":{}}', '{"set":"ab"}', '{"set":null}', '{"map":[[1]]}', '{"map":[[1,2,3]]}', '{"map":["ab"]}',
    '{"map":null}', '{"list":[]}', '{"int":"1","float":"1"}',
]  # fmt: skip
ENDLESS = [
    '{"float":1' + "0" * 400 + "}", "9" * 20_001, '{"int":"' + "9" * 20_001 + '"}', "[" * 70 + "]" * 70,
    '{"set":[' * 70 + "]}" * 70, "[" * 100_000, '{"a":' * 100_000,
]  # fmt: skip
NO_CLAIMS = st.sampled_from(MALFORMED[1:]).map(lambda text: (text, None))
Claim = tuple[str, list[Any] | None]


def together(form: str, items: list[Claim]) -> Claim:
    """A claim of several claims: of a value where every part is one."""
    values = None if any(value is None for _, value in items) else [value[0] for _, value in items if value]
    texts = [text for text, _ in items]
    if form == "map":
        texts = [f"[{text},{text}]" for text in texts]
        values = None if values is None else [[value, value] for value in values]
    text = f"[{','.join(texts)}]"
    if form == "list":
        return text, None if values is None else [values]
    return f'{{"{form}":{text}}}', None if values is None else [(form, values)]


CLAIMS = st.recursive(
    LEAVES | NO_CLAIMS,
    lambda inner: st.builds(together, st.sampled_from(["list", "set", "map"]), st.lists(inner, max_size=3)),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(CLAIMS)
def test_any_claim_is_its_value_or_malformed(claim: Claim) -> None:
    text, value = claim
    printed = b"noise\nmark=" + text.encode() + b"\n"
    if value is None:
        with pytest.raises(Malformed):
            claims(printed, "mark", 1)
        return
    ((found, exception),) = claims(printed, "mark", 1)
    assert exception is None
    assert repr(found) == repr(value[0])  # types too, and nan is nan


@pytest.mark.parametrize("text", [*MALFORMED, *ENDLESS], ids=lambda text: text[:12])
def test_what_no_driver_prints_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        claims(f"mark={text}\n".encode(), "mark", 1)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_any_text_is_a_scalar_or_malformed(text: str) -> None:
    line = text.split("\n")[0]
    try:
        wanted = json.loads(line)
    except ValueError:
        wanted = {}
    if isinstance(wanted, (dict, list)):
        wanted = None if wanted else wanted
    try:
        found = claims(b"mark=" + text.encode() + b"\n", "mark", 1)
    except Malformed:
        assert wanted in ({}, None)
    else:
        assert wanted is None or repr(found) == repr([(wanted, None)])


def test_claims_that_no_driver_makes() -> None:
    for text in ('{"a":1,"b":2}', '{"map":[1]}', "[" * 10_000, "1" * 30_000, '{"int":[]}', '{"float":"x"}'):
        with pytest.raises(Malformed):
            claims(f"m={text}\n".encode(), "m", 1)
    with pytest.raises(Malformed):
        claims(b"m=1\nm=1\n", "m", 1)
    assert claims(b"m=1\nx\nm!E: bad\n", "m", 3) == [(1, None), (None, "E: bad")]
