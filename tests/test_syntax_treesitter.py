from __future__ import annotations

import random
import time

import pytest

from lightning_dterm.syntax import TreeSitterChecker, checker_for, supports, treesitter
from lightning_dterm.syntax.clike import LANGUAGES, Shortened, lexemes, unfinished
from tests.syntax_common import shared_functions

PROGRAMS = {
    "java": """import java.util.*;
class Solution {
    /** Doc "with" 'quotes' { and ( braces. */
    private static final int[] SIZES = {1, 2, 3};
    enum Kind { A, B; int f() { return 1; } }
    public <T extends Comparable<T>> List<T> best(List<T> xs, int n) throws Exception {
        for (int i = 0; i < n; i++) {
            if (xs.get(i) == null) { continue; } else if (i >>> 1 > 2) { break; }
            else { System.out.println("a\\"b{" + 'c' + '\\''); }
        }
        switch (n) { case 1: f(); break; case 2: g(); default: h(); }
        try { int y = n != 0 ? n-- : ~n; } catch (Exception e) { throw e; } finally { n += 2; }
        do { n--; } while (n > 0);
        Runnable r = () -> { run(x -> x.y().z()); };
        String s = \"\"\"
            text { block
            \"\"\";
        return xs.stream().map(x -> x).collect(Collectors.toList()); // done
    }
}
""",
    "csharp": """using System;
namespace N {
    public class A : B<int> {
        public int X { get; set; } = 3;
        string path = @"C:\\dir""quoted" + $"{1 + 2} {{}}";
        public override async Task<int> F(ref int a, out string b) {
            b = a?.ToString() ?? "none";
            foreach (var x in xs.Where(y => y > 1)) { if (x == 1) { Go(); } else { Stop(); } }
            switch (a) { case 1: Go(); break; default: return 2; }
            try { await G(); } catch (Exception e) when (e != null) { throw; } finally { a++; }
            return a switch { 1 => 2, _ => 3 };
        }
    }
}
""",
    "c": """#include <stdio.h>
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#ifdef DEBUG
int debug = 1;
#else
int debug = 0;
#endif
typedef struct { int x; char *name; } point;
struct list { struct list *next; } head = {0};
static int f(const char *s, int n[]) {
    int i, *p = &i; /* a " quote */
    for (i = 0; i < 10; i++) { if (s[i] == '\\'') continue; else if (s[i] == '"') break; else p++; }
    switch (i) { case 1: i = 2; break; default: i = 3; }
    do { i--; } while (i > 0);
    while (i) { i >>= 1; }
    printf("%d {\\n", MAX(i, 2));
    return p->x.y ? 1 : 0;
}
""",
    "cpp": """#include <vector>
using namespace std;
template <typename T> class Box : public Base<T> {
public:
    Box(T x) : x_(x) {}
    ~Box() = default;
    T operator+(const Box& o) const { return x_ + o.x_; }
private:
    T x_;
};
vector<vector<int>> f(map<string, int>& m) {
    auto g = [&](int a) -> int { return a * 2; };
    for (auto& [k, v] : m) { if (v > 1) { g(v); } else { g(1); } }
    string s = R"(raw " { )";
    try { throw runtime_error("x"); } catch (const exception& e) { cout << e.what() << endl; }
    return {{1, 2}, {3}};
}
""",
    "javascript": """'use strict';
const a = [1, 2, ...b], {c, d: e} = f();
// comment with ' quote
function g(x = 1, ...rest) {
  const re = /["'{]+[/]/g, t = `a ${x + `n${1}`} {`;
  if (x) return y
  else if (z) { return x / 2 / 3 } else { x ||= 1 }
  for (const k of o) { try { await_(k) } catch { continue } finally { n++ } }
  switch (x) { case 1: go(); break; default: stop() }
  return { a, b() { return 1 }, get c() { return 2 }, [d]: x => ({ y: x }) };
}
class A extends B { #p = 1; static s() { return this.#p?.q ?? 1 } }
async function* h() { yield* await k(); }
""",
}
BROKEN = {
    "java": [("class A { int f() { return 1 +; } }", ";"), ("class A { void f( { } }", "{"), ("class A { } }", "}"),
             ("class A { void f() { if x) {} } }", "x"), ("class A { int x = (1]; }", "]"),
             ("class A { int f() { a b c; } }", "c")],
    "csharp": [("class A { int F() { return 1 +; } }", ";"), ("class A { int x = (1]; }", "]"), ("class A { } }", "}"),
               ("class A { void F() { while {} } }", "{")],
    "c": [("int main() { int x = ; }", ";"), ("int f(int a { return a; }", "{"), ("int x = (1];", "]"),
          ("int main() { if(a==0||){ } }", ")"), ("int main() { for(i=0;i<n;i++ { } }", "{")],
    "cpp": [("int main() { int x = ; }", ";"), ("int x = (1];", "]"), ("int f() { return 1 +; }", ";")],
    "javascript": [("function f( ) ) { }", ")"), ("x = (1];", "]"), ("let a = ;", ";"), ("if (a) { } }", "}"),
                   ("const = 3", "=")],
}  # fmt: skip


def test_every_language_is_named() -> None:
    assert set(PROGRAMS) == set(BROKEN) == set(LANGUAGES)
    assert all(supports(name) for name in ("python", "C++", "c#", "js", *LANGUAGES))
    assert not supports("text")
    assert checker_for("c++") is checker_for("c++")
    with pytest.raises(ValueError, match="No syntax flags for 'cobol': choose one of java"):
        TreeSitterChecker("cobol")


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_false_alarm_on_prefixes(language: str) -> None:
    """Asked whole and followed by a session, at all kinds of places."""
    program, checker = PROGRAMS[language], checker_for(language)
    session, fed = checker.session(), 0
    for end in range(1, len(program) + 1):
        if end % 4 == 0 or end == len(program):
            assert session.append(program[fed:end]), program[:end]
            fed = end
        if end % 5 == 0:
            assert checker.viable(program[:end]), program[:end]
    assert checker.check(program).kind == "ok"
    assert session.complete()


@pytest.mark.parametrize(
    ("language", "program", "lexeme"), [(name, *case) for name, cases in BROKEN.items() for case in cases]
)
def test_the_offending_lexeme_carries_the_blame(language: str, program: str, lexeme: str) -> None:
    checker = checker_for(language)
    verdict = checker.check(program)
    assert verdict.kind == "error"
    assert verdict.span is not None
    assert program[verdict.span[0] : verdict.span[1]] == lexeme
    answers = [checker.viable(program[:end]) for end in range(len(program) + 1)]
    assert answers == sorted(answers, reverse=True)
    assert answers.index(False) == verdict.position
    session = checker.session()
    for character in program:
        session.append(character)
    assert session.position == verdict.position


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_cut_program_is_unfinished(language: str) -> None:
    program = PROGRAMS[language].rstrip()
    verdict = checker_for(language).check(program[:-1] if language != "javascript" else program[:-3])
    assert verdict.kind == "unfinished"
    assert verdict.span is not None


def test_non_ascii_text_and_lone_methods() -> None:
    program = 'public String f() { String s = "äöü€😀" + ]; }'
    verdict = checker_for("java").check(program)
    assert verdict.span is not None
    assert program[verdict.span[0] : verdict.span[1]] == "]"
    assert checker_for("java").check("@Override public void f() throws E {x.y();}").kind == "ok"
    assert checker_for("csharp").check("public virtual void F(){x.Y();}").kind == "ok"
    assert checker_for("csharp").check("protected internal A(int x) : base(x) {}").kind == "ok"


@pytest.mark.parametrize("language", LANGUAGES)
def test_lexemes_tile_the_text(language: str) -> None:
    rng = random.Random(0)
    for _ in range(100):
        text = "".join(rng.choice("ab1 \"'`/*\\\n#{}()@$R<>=;é") for _ in range(40))
        place = 0
        for lexeme in lexemes(text, language):
            assert lexeme.start == place < lexeme.end
            place = lexeme.end
        assert place == len(text)
        assert 0 <= unfinished(text, language) <= len(text)


def test_shortening_keeps_what_a_statement_may_lean_on() -> None:
    text = "class A { int x = 1; void f() { a(); if (b) { c(); } else if (d) { e(); } el"
    short = Shortened("java")
    short.feed(text)
    assert "a();" not in short.render(text)
    assert "int x" not in short.render(text)
    assert "if (b)" in short.render(text)
    short.restore(text)
    assert short.render(text) == text


@pytest.mark.parametrize("language", LANGUAGES)
def test_false_alarms_on_published_functions(language: str) -> None:
    functions = shared_functions(language, 30)
    if not functions:
        pytest.skip("no shared data here")
    rng, checker = random.Random(0), checker_for(language)
    good = [function for function in functions if checker.complete(function)]
    assert len(good) >= 0.9 * len(functions)
    for function in good:
        for end in rng.sample(range(len(function)), min(3, len(function))):
            assert checker.viable(function[:end]), function[:end]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "unit",
    ["(", "{", "a<", "f(a<", "if(x)", '"', "\\", "/*", "\0", "é", ") ] }", "R'(", "`${", "*", "(a)=>", '@"', "\ud800"],
)
def test_hostile_text_costs_little(language: str, unit: str) -> None:
    started = time.process_time()
    checker_for(language).check(unit * (4_000 // len(unit)))
    assert time.process_time() - started < 5


def test_too_long_is_not_viable() -> None:
    program = "int x;\n" * (treesitter.MAX_CHARS // 7 + 10)
    verdict = checker_for("c").check(program)
    assert verdict.kind == "error"
    assert verdict.position == treesitter.MAX_CHARS + 1


def test_another_log_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(treesitter, "_fetch", lambda task, sources, language: [b"" for _ in sources])
    treesitter._self_test.cache_clear()
    try:
        with pytest.raises(treesitter.GrammarError, match="does not report the first refused token of c as expected"):
            TreeSitterChecker("c")
    finally:
        treesitter._self_test.cache_clear()
