from __future__ import annotations

import ast
import random
import sys
import threading
import time
import warnings
from collections.abc import Iterator

import pytest
import tree_sitter
import tree_sitter_python
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.syntax import PythonChecker, SyntaxSelfTestError, viability
from lightning_dterm.syntax.context import misplaced
from lightning_dterm.syntax.incremental import PythonSession
from lightning_dterm.syntax.scan import scan
from lightning_dterm.syntax.viability import viable
from tests.syntax_common import mutate, parses, stdlib_functions, token_ends

FUNCTIONS = 500
TREE_SITTER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_python.language()))


@pytest.fixture(scope="module")
def functions() -> list[str]:
    found = stdlib_functions(FUNCTIONS)
    assert len(found) == FUNCTIONS
    return found


@pytest.fixture(scope="module")
def checker() -> PythonChecker:
    return PythonChecker()


def test_no_false_alarm_on_any_token_prefix_of_real_functions(functions: list[str], checker: PythonChecker) -> None:
    """Both ways of asking: the whole prefix at once, and a session fed token by token."""
    rng = random.Random(0)
    for function in functions:
        session, position = PythonSession(checker), 0
        ends = token_ends(function)
        for end in ends:
            assert session.append(function[position:end]), (function, end)
            position = end
        for end in rng.sample(ends, min(8, len(ends))):
            assert viable(function[:end]), (function, end)
        assert checker.check(function).kind == "ok"


@pytest.mark.slow
def test_no_false_alarm_on_any_character_prefix_of_real_functions(functions: list[str]) -> None:
    for function in functions:
        for end in range(len(function)):
            assert viable(function[:end]), (function, end)


PATTERNS = (
    "1+2j", "-1-2.5j", "-1-2.j", "{1+2j: a}", "[1+0j, 2-1e3j]", "0x1F", "-0b1", "1_0 - 3_0J", "a(1 + .5j)",
    "a as _x", "{**_x}", "{'a': 1, **_rest}", "*_x, a", "[*_]", "A(_x, b=_y)", "a as __", "_x.y", "_x | _y",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_false_alarm_on_any_character_prefix_of_a_pattern(pattern: str, checker: PythonChecker) -> None:
    """A pattern has its own rules for numbers and names: ``1+2`` must become ``1+2j``, ``as _`` such as ``as _x``."""
    program = f"def f(x):\n    match x:\n        case {pattern} if x:\n            pass\n"
    assert parses(program)
    session = PythonSession(checker)
    for end in range(len(program)):
        assert viable(program[:end]), program[:end]
        assert session.append(program[end]), program[: end + 1]
    assert checker.check(program).kind == "ok"


@pytest.mark.parametrize("pattern", ["1+2:", "1+x", "1j+2j", "a as _:", "{**_}", "1+2 ", "a as _ "])
def test_what_no_pattern_may_be_is_found_as_it_ends(pattern: str) -> None:
    assert not viable(f"match x:\n    case {pattern}")


def mutants(functions: list[str], count: int, seed: int) -> Iterator[tuple[str, random.Random]]:
    rng = random.Random(seed)
    for function in rng.sample(functions, count):
        for _ in range(2):
            yield mutate(function, rng, token_ends(function)), rng


def test_a_mutant_is_a_program_exactly_where_ast_parse_takes_it(functions: list[str], checker: PythonChecker) -> None:
    kinds = set()
    for program, _ in mutants(functions, 150, seed=1):
        verdict = checker.check(program)
        kinds.add(verdict.kind)
        assert (verdict.kind == "ok") == parses(program), (program, verdict)
    assert kinds == {"ok", "error", "unfinished"}


def test_what_fails_fails_whatever_follows(functions: list[str], checker: PythonChecker) -> None:
    """No text of other programs, put after a prefix that was called hopeless, makes it a program."""
    tails = ["", "\n", ")", "'", '"""', ":\n    pass\n", "\n    pass\n", "))]}", " = 1\n", "\nelse:\n    pass\n"]
    for program, rng in mutants(functions, 100, seed=2):
        verdict = checker.check(program)
        if verdict.kind == "error":
            prefix = program[: verdict.position]
            other = rng.choice(functions)
            ends = token_ends(other)
            for tail in [*tails, *(other[end:] for end in rng.sample(ends, min(10, len(ends))))]:
                assert not parses(prefix + tail), (prefix, tail)


def test_viability_is_prefix_closed_and_the_session_finds_the_same_place(
    functions: list[str], checker: PythonChecker
) -> None:
    seen = 0
    for program, rng in mutants(functions, 100, seed=3):
        verdict = checker.check(program)
        if verdict.kind != "error":
            continue
        seen += 1
        near = range(max(verdict.position - 10, 0), min(verdict.position + 10, len(program) + 1))
        for end in [*near, *(rng.randrange(len(program) + 1) for _ in range(10))]:
            assert viable(program[:end]) == (end < verdict.position), (program, end, verdict)
        session, at = PythonSession(checker), 0
        while at < len(program):
            step = rng.randrange(1, 12)
            session.append(program[at : at + step])
            at += step
        assert session.position == verdict.position, program
    assert seen > 60


def test_agreement_with_an_independent_parser_on_mutants(functions: list[str], checker: PythonChecker) -> None:
    """tree-sitter's grammar is not CPython's (it takes Python 2's print, for one), but near."""
    agree = total = 0
    for program, _ in mutants(functions, 250, seed=4):
        total += 1
        agree += TREE_SITTER.parse(program.encode()).root_node.has_error == (checker.check(program).kind != "ok")
    assert agree / total > 0.85


@pytest.mark.parametrize(
    ("program", "lexeme"),
    [
        ("def f(:\n    pass\n", ":"),
        ("x = 1 foo\n", "foo"),
        ("x no y\n", "no"),
        ("x = 0777 + 1\n", "0777"),
        ("if x:\ny = 1\n", "y"),
        ("for i in range(3)\n    print(i)\n", "\n"),
        ("a = [1, 2)\n", ")"),
        ("s = 'abc\nt = 1\n", "'abc"),
        ("try:\n    x\nelse:\n    y\n", "else"),
        ("class A:\n    def f(self):\n        return self.x y\n", "y"),
        ("x = é €\n", "€"),
        ("def f():\n    x = 1\n  y = 2\n", "y"),
        ("print 'a'\n", "'a'"),
        ("x = b'é'\n", "b'é'"),
        ("return = 5\n", "="),
        ("x = 1\n\0y = 2\n", "\0"),
    ],
)
def test_the_offending_lexeme_carries_the_blame(program: str, lexeme: str, checker: PythonChecker) -> None:
    verdict = checker.check(program)
    assert verdict.kind == "error"
    assert verdict.span is not None
    assert program[verdict.span[0] : verdict.span[1]] == lexeme
    assert viable(program[: verdict.position - 1])
    assert not viable(program[: verdict.position])


@pytest.mark.parametrize("program", ["", "\n\n", "# only a comment", "x = 1", "'''doc'''\nx: int = 3\n", "if x: pass"])
def test_complete_programs(program: str, checker: PythonChecker) -> None:
    assert checker.check(program).kind == "ok"
    assert checker.session(program).complete()


@pytest.mark.parametrize(
    "prefix",
    [
        "x = f'{", "x = f'{a!", "x = f'{a:>{", "x = rb'", "x = 0x", "x = 1e", "x = 1e-", "a if b els", "f(*",
        "x = [*a, *", "x[1:", "@a.b\n", "async def f():\n  async w", "def f(a, /, b, *, c", "x = a no", "x = a is no",
        "assert x, (", "try:\n  a\nexcept (A, B) a", "with a as b, c a", "lambda *a, **", "global a, ", "x = (yield",
        "del a[", "a, *b", "match a:\n  case [1, *", "match a:\n  case {'x': A(y=", "if a:\n  b\n# note\nel",
        "if a:\n\n\n    b; c; ", "x: i", "raise A fr", "from . imp", "from ..", "import a as", "x = not", "x = a @",
        "a //", "a >>", "x = a if b else lam", "class A(B, metaclass=", "nonlocal", "x = ...", "x = ..", "x = .",
        "x = 'a' 'b", "x = \\", "x = \\\n", "if a:\n\tb\n\t",
        "def f():\n    '''doc'''\n    if a:\n        b\n    elif c:\n        d\n    els", "\f\nx", "x = 1 ;",
        "a = b = ", "((((",
    ],
)  # fmt: skip
def test_unfinished_lexemes_are_given_time(prefix: str, checker: PythonChecker) -> None:
    assert all(viable(prefix[:end]) for end in range(len(prefix) + 1))
    session = checker.session()
    assert all(session.append(character) for character in prefix)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="PEP 701")
@pytest.mark.parametrize(
    "program", ["f'{a['b']}'\n", "f'{f\"{1}\"}' + f'''{\n1\n}'''\n", "f'{{}}{x:{'>'}{3}}'\n", "rf'\\{x}'\n"]
)
def test_nested_f_strings(program: str, checker: PythonChecker) -> None:
    assert all(viable(program[:end]) for end in range(len(program)))
    assert checker.check(program).kind == "ok"


PIECES = [*"x1'\"#\\ \n\t(){}[]:=,.;@!f-", "if ", "else", "def ", "é", "\r", "\0", "\ud800", "\n  ", "'''"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_text_gets_a_verdict_and_flags_never_come_back(text: str) -> None:
    answers = [viable(text[:end]) for end in range(len(text) + 1)]
    assert answers == sorted(answers, reverse=True)
    checker = PythonChecker()
    verdict = checker.check(text)
    assert (verdict.kind == "ok") == parses(text)
    if verdict.kind == "error":
        assert verdict.position == answers.index(False)
    else:
        assert all(answers)
    session = checker.session()
    for character in text:
        session.append(character)
    assert session.position == (verdict.position if verdict.kind == "error" else None)
    assert scan(text).last <= len(text)


BOMBS = {
    "parentheses": "(" * 50_000,
    "brackets and braces": "[{" * 25_000,
    "calls": "f(a=" * 10_000,
    "unary": "-" * 50_000 + "1",
    "not": "not " * 10_000,
    "sum": "+".join("1" * 20_000),
    "attributes": "a" + ".b" * 20_000,
    "lambda": "lambda: " * 5_000,
    "elif": "if a:\n  b\n" + "elif a:\n  b\n" * 4_000,
    "indentation": "".join(" " * i + "if x:\n" for i in range(300)),
    "digits": "x = " + "9" * 100_000,
    "hexadecimal": "x = 0x" + "f" * 100_000,
    "fields": "f'" + "{" * 5_000,
    "nested fields": 'f"{' * 200,
    "quotes": "'" * 50_001,
    "backslashes": "x = '" + "\\" * 50_000,
    "joined lines": "\\\n" * 20_000,
    "ternary": "a if b else " * 5_000,
    "power": "2**" * 10_000 + "2",
    "NUL": "\0" * 10_000,
    "finally": "".join("  " * i + "try:\n" + "  " * i + " x\n" + "  " * i + "finally:\n" for i in range(40))
    + " " * 80
    + "x\n",
    "too long": "x = 1\n" * 200_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_text_costs_little(name: str, checker: PythonChecker) -> None:
    started = time.process_time()
    verdict = checker.check(BOMBS[name])
    if verdict.kind == "ok":
        misplaced(BOMBS[name])
    checker.session(BOMBS[name][:2_000]).probe("x")
    assert time.process_time() - started < 10


def test_hostile_text_in_a_thread_does_not_end_the_process(checker: PythonChecker) -> None:
    found: list[str] = []
    worker = threading.Thread(target=lambda: found.extend(checker.check(bomb).kind for bomb in BOMBS.values()))
    worker.start()
    worker.join(60)
    assert len(found) == len(BOMBS)


def test_warnings_stay_silent_even_as_errors(checker: PythonChecker) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checker.check("x = '\\d'\ny = 1 if x is 'a' else 0\n").kind == "ok"


def test_another_parser_behaviour_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viability, "parse", lambda source, flags: None)
    viability.self_test.cache_clear()
    try:
        with pytest.raises(SyntaxSelfTestError, match=r"should not be viable. Leave the syntax component out"):
            PythonChecker()
    finally:
        viability.self_test.cache_clear()


@pytest.mark.parametrize(
    ("program", "word"),
    [
        ("return 1\n", "return"), ("def f():\n    x = 1\nreturn x\n", "return"), ("break\n", "break"),
        ("for i in a:\n    pass\nelse:\n    continue\n", "continue"), ("class A:\n    yield 1\n", "yield"),
        ("def f():\n    await x\n", "await"), ("é = 1; return é\n", "return"),
        ("while a:\n    def f():\n        break\n", "break"), ("def f():\n    async with a:\n        pass\n", "async"),
    ],
)  # fmt: skip
def test_misplaced_keywords(program: str, word: str) -> None:
    found = misplaced(program)
    assert found is not None
    assert program[found.start : found.end] == word
    with pytest.raises(SyntaxError):
        compile(program, "", "exec")


@pytest.mark.parametrize("program", ["def f(a, a): pass\n", "nonlocal x\n", "def f():\n    x = 1\n    global x\n"])
def test_what_the_symbol_table_refuses(program: str) -> None:
    assert misplaced(program) is not None
    with pytest.raises(SyntaxError):
        compile(program, "", "exec")


def test_nothing_that_compiles_is_misplaced(functions: list[str]) -> None:
    rng = random.Random(5)
    for function in functions:
        lines = function.splitlines(keepends=True)
        line = rng.choice(lines)
        indent = line[: len(line) - len(line.lstrip())]
        at = lines.index(line)
        extra = indent + rng.choice(["break\n", "return 3\n", "yield\n", "await x\n", "nonlocal q\n", "continue\n"])
        for program in (function, "".join([*lines[:at], extra, *lines[at:]])):
            try:
                compile(program, "", "exec")
            except (SyntaxError, ValueError):
                continue
            assert misplaced(program) is None, program
            ast.parse(program)
