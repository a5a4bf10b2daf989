"""What compilers print becomes diagnostics at the right places: text, JSON, bytes, UTF-16; and who moves lines."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.sandbox.languages import Diagnostic, Report, Text
from lightning_dterm.sandbox.languages.diagnostics import moves_lines, parse_gcc_json, parse_text, utf16_offset


def test_gcc_text_and_clang_text() -> None:
    text = Text("int é = x;\nint y\n")
    output = (
        "In file included from main.c:1:\nmain.c:1:10:{1:10-1:11}: error: use of undeclared 'x'\n"
        "main.c:2:6: warning: meh\nmain.c:2:6: note: here\n/usr/include/a.h:3:1: fatal error: deep\n1 error.\n"
    )
    assert parse_text(output, text, "main.c") == [
        Diagnostic("error", "use of undeclared 'x'", 1, 9, 1, 10),
        Diagnostic("warning", "meh", 2, 6, 2, 7),
        Diagnostic("note", "here", 2, 6, 2, 7),
        Diagnostic("error", "deep"),
    ]


def test_gcc_json_from_elsewhere_or_broken() -> None:
    text = Text("int x;\n")
    place = {"file": "a.h", "line": 1, "column": 1}
    inner = {"locations": [{"caret": {"file": "m.c", "line": 1, "column": 5}}], "message": "candidate"}
    line = [
        {"kind": "error", "message": "m", "locations": [{"caret": place}, *inner["locations"]], "children": [inner]}
    ]
    assert parse_gcc_json("noise\n" + json.dumps(line), text, "m.c") == [Diagnostic("error", "m", 1, 5, 1, 6)]
    assert parse_gcc_json("[broken", text, "m.c") is None
    assert parse_gcc_json("[" * 100_000, text, "m.c") is None
    far = [{"kind": "error", "message": "m", "locations": [{"caret": {"file": "m.c", "line": 99, "column": 5}}]}]
    assert parse_gcc_json(json.dumps(far), text, "m.c") == [Diagnostic("error", "m")]


@pytest.mark.parametrize(
    ("tool", "words", "found"),
    [
        ("php", "PHP Parse error:  syntax error, unexpected token \";\" in main.php on line 2",
         Diagnostic("error", "Parse error: syntax error, unexpected token \";\"", 2, 1, 2, 4)),
        ("mcs", "main.cs(2,3): error CS1002: ; expected\nCompilation failed: 1 error(s), 0 warnings",
         Diagnostic("error", "CS1002: ; expected", 2, 3, 2, 4)),
        ("gofmt", "main.go:2:3: expected operand, found ':='",
         Diagnostic("error", "expected operand, found ':='", 2, 3, 2, 4)),
    ],
)  # fmt: skip
def test_output_of_compilers_that_may_not_be_here(tool: str, words: str, found: Diagnostic) -> None:
    from lightning_dterm.sandbox.languages.script import CSharpCompiler, GoCompiler, PhpCompiler

    made: dict[str, Any] = {"php": PhpCompiler(), "mcs": CSharpCompiler(), "gofmt": GoCompiler()}
    backend = made[tool]
    name = {"php": "main.php", "mcs": "main.cs", "gofmt": "main.go"}[tool]
    assert backend.parse(words, Text("abc\nabc\n"), name) == [found]


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="a é😀\t\n\r", max_size=30), st.integers(-2, 40), st.integers(-2, 40))
def test_positions_stay_inside_and_come_back(source: str, line: int, column: int) -> None:
    text = Text(source)
    offset = text.offset(line, column)
    assert 0 <= offset <= len(source)
    assert text.offset(*text.position(offset)) == offset
    assert len(text.starts) == len((source + "x").splitlines()) or "\r" in source
    for units in range(3):
        assert utf16_offset(source, units) <= len(source)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=20), st.integers(0, 20))
def test_columns_in_bytes_and_utf16_are_those_of_the_encodings(line: str, index: int) -> None:
    line = "".join(line.splitlines()).replace("\r", "") or "x"
    line = line.encode("utf-8", "replace").decode("utf-8")
    index = min(index, len(line))
    text = Text(line)
    assert text.from_bytes(1, len(line[:index].encode()) + 1) == index + 1
    assert text.from_utf16(1, len(line[:index].encode("utf-16-le")) // 2 + 1) == index + 1


def test_a_report_that_names_no_error_still_counts_one() -> None:
    assert Report("c", "gcc", "errors").count(10) == 1
    assert Report("c", "gcc", "timeout").count(10) == 10


@pytest.mark.parametrize(
    ("language", "source", "moves"),
    [
        ("c", "#line 5\n", True), ("c", "int x;\r#line 5\r", True), ("cpp", "  #  5 \"x.h\" 3\n", True),
        ("c", "%:line 5\n", True), ("c", "??=line 5\n", True), ("c", "#\\\n  lin\\ \ne 5\n", True),
        ("c", "/*\n*/ #line 5\n", True), ("c", "#/**/line 5\n", True), ("c", "#include <a>\n#define line 5\n", False),
        ("c", "// see #5, #line 3\nint x; int y = 3 # 1;", False), ("c", "#pragma once\n#if 1\n#endif\n", False),
        ("java", "#line 5\n", False), ("python", "#line 5\n", False), ("csharp", "\t# line hidden\n", True),
        ("csharp", "// #line 5\n#region x\n", False), ("go", "//line a.go:5\n", True),
        ("go", "x /*line a:5:1*/ y", True),
        ("go", "// line 5\n", False),
    ],
)  # fmt: skip
def test_who_moves_lines(language: str, source: str, moves: bool) -> None:
    assert moves_lines(language, source) == moves


@pytest.mark.parametrize("unit", ["#", "# ", "/*", "*/", "*/ #", "\\\n", "*/\n#\n", "%:"])
def test_looking_for_them_takes_no_time(unit: str) -> None:
    started = time.process_time()
    for language in ("c", "csharp", "go"):
        moves_lines(language, unit * 50_000)
    assert time.process_time() - started < 5.0
